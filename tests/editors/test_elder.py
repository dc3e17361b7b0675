"""ELDER: its mixture against three nested loops, its codes and their number, and what the published code gets wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editors.elder import (
    Elder,
    ElderSettings,
    ball,
    code_space,
    factors_of,
    false_scope,
    hamming,
    most_likely,
    routed,
)
from errata.editors.routed import Prompt, prompts_of
from errata.models.language_model import LanguageModel
from errata.models.prompts import encode
from errata.models.row_hooks import RowPass

from tests.reference import elder as reference
from tests.support.editing import FACTS, tiny_language_model
from tests.support.errors import raises_code

TINY: dict[str, Any] = {"learning_rate": 0.01, "steps": 12, "guidance": 0.01}


def elder(family: str = "llama", **settings: Any) -> Elder:
    return Elder(tiny_language_model(family), ElderSettings(**{**TINY, **settings}))


# Codes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modules", "experts", "chosen"), [(2, 4, 2), (3, 4, 1), (2, 5, 3)])
def test_balls_of_codes_are_those_that_counting_finds(modules: int, experts: int, chosen: int) -> None:
    codes = reference.all_codes(modules, experts, chosen)
    assert code_space(modules, experts, chosen) == len(codes)
    for threshold in range(1, 2 * chosen * modules + 3):
        near = sum(reference.distance(codes[0], code) < threshold for code in codes)
        assert ball(modules, experts, chosen, threshold) == near


def test_the_false_scope_rate_is_that_of_the_table() -> None:
    """editors.md, B4: E, k, M, N."""
    rates = [false_scope(6, 4, 2, threshold, 100) for threshold in (2, 4, 6, 8)]
    assert rates == pytest.approx([0.002, 0.05, 0.44, 0.97], abs=0.006)
    rates = [false_scope(6, 4, 2, threshold, 1000) for threshold in (2, 4, 6)]
    assert rates == pytest.approx([0.02, 0.42, 0.997], abs=0.006)
    rates = [false_scope(6, 8, 2, threshold, 1000) for threshold in (2, 4, 6, 8)]
    assert rates == pytest.approx([0, 0.0002, 0.005, 0.08], abs=0.0005) or rates[3] == pytest.approx(0.08, abs=0.005)


def test_distances_are_those_of_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = {"G": torch.randn(3, 5, 7, generator=generator), "c": torch.randn(3, 5, generator=generator)}
    queries = torch.randn(9, 7, generator=generator)
    codes = most_likely(routed(parameters, queries), 2)
    bits = [reference.code(parameters, query, 2) for query in queries]
    found = hamming(codes[:, None], codes[None])
    assert found.tolist() == [[reference.distance(one, other) for other in bits] for one in bits]
    assert found.max() > 2


def test_a_run_that_the_codes_cannot_hold_is_refused_with_the_modules_that_could() -> None:
    editor = elder("llama", experts=4, threshold=2)  # 36 codes: 5 % with one fact
    with raises_code("ELDER_CODES_TOO_FEW") as caught:
        editor.apply(FACTS[:4])
    enough = int(caught.value.remedy.split("modules to ")[1].split()[0])
    assert false_scope(enough, 4, 2, 2, 4) <= 0.05 < false_scope(enough - 1, 4, 2, 2, 4)
    assert editor.view().used([FACTS[0].text]) == [()]
    with raises_code("ELDER_CODES_TOO_FEW"):
        elder("llama", experts=2).apply(FACTS[:1])


def test_allocations_are_apart_and_belong_to_the_fact() -> None:
    editor = elder(batch_size=2)
    editor.apply(FACTS)
    allocations = editor.state.allocations
    apart = hamming(allocations[:, None], allocations[None])
    assert (apart + 100 * torch.eye(len(FACTS), dtype=torch.long)).min() >= editor.threshold + 2
    other = elder()
    other.apply(FACTS[:1])
    assert torch.equal(other.state.allocations[0], allocations[0])


# The mixture ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_the_mixture_is_that_of_three_loops(family: str) -> None:
    editor = elder(family)
    editor.apply(FACTS[:3])
    state, view, model = editor.state, editor.view(), editor.model
    module, layer = 1, editor.layers[1]
    texts = [FACTS[0].text, FACTS[2].text]
    queries = editor.queries.of(prompts(model, texts))
    own = (queries - state.centre) / state.scales[0]
    for row, text in enumerate(texts):
        (encoded,) = encode(model.tokenizer, [text])
        ids = torch.tensor([encoded.ids])
        read: dict[str, Tensor] = {}

        def note(module: Any, args: Any, output: Tensor, read: dict[str, Tensor] = read) -> None:
            read["x"], read["own"] = args[0].reshape(1, -1, args[0].shape[-1]), output.reshape(1, -1, output.shape[-1])

        def note_changed(module: Any, args: Any, output: Tensor, read: dict[str, Tensor] = read) -> None:
            read["changed"] = output.reshape(1, -1, output.shape[-1])

        down = model.down_projection(layer)
        first = down.register_forward_hook(note)  # before the editor's hook, so it sees what that is given
        with torch.no_grad(), view.hooks([text], [encoded])(RowPass((0,), torch.arange(ids.shape[1])[None])):
            second = down.register_forward_hook(note_changed)
            model.model(input_ids=ids, use_cache=False)
        first.remove()
        second.remove()
        factor = factors_of(editor.settings, state)[module]
        expected = reference.mixture(read["x"], state.parameters, module, own[row : row + 1], 2, factor)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(
            (read["changed"] - read["own"]).double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )


def prompts(model: LanguageModel, texts: list[str]) -> list[Prompt]:
    return prompts_of(model.tokenizer, texts, encode(model.tokenizer, texts))


def test_training_is_that_of_whole_passes_with_all_experts() -> None:
    """The first step from the start: gradients by replay and chosen experts equal those of everything, computed."""
    editor = elder("gpt2", steps=1, learning_rate=1e-3, guidance=0.3)
    editor.apply(FACTS[:2])
    model, state = editor.model, editor.state
    start = elder("gpt2", steps=1)._begun()
    parameters = {name: value.clone().requires_grad_(True) for name, value in start.parameters.items()}
    total = torch.zeros(())
    for fact, allocation, query in zip(FACTS[:2], state.allocations, state.queries, strict=True):
        ids = model.tokenizer(f"{fact.text} {fact.target}")["input_ids"]
        prompt = len(model.tokenizer(fact.text)["input_ids"])
        shares = [
            torch.softmax(matrix @ query + bias, 0)
            for matrix, bias in zip(parameters["G"], parameters["c"], strict=True)
        ]
        handles = []
        for module, layer in enumerate(editor.layers):

            def add(_: Any, args: Any, output: Tensor, module: int = module, shares: Any = shares) -> Tensor:
                best = shares[module].topk(2).indices.tolist()
                factor = factors_of(editor.settings, start)[module]
                for expert in best:
                    inner = args[0] @ parameters["A"][module, expert]
                    output = output + factor * shares[module][expert] * (inner @ parameters["B"][module, expert])
                return output

            handles.append(model.down_projection(layer).register_forward_hook(add))
        logits = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        loss = -sum(logits[place - 1, ids[place]] for place in range(prompt, len(ids))) / (len(ids) - prompt)
        guided = -sum(shares[m][e].log() for m in range(len(shares)) for e in allocation[m].tolist()) / len(shares)
        total = total + (loss + 0.3 * guided) / 2
    gradients = torch.autograd.grad(total, list(parameters.values()))
    for (name, before), gradient in zip(start.parameters.items(), gradients, strict=True):
        moved = state.parameters[name] - before
        large = gradient.abs() > 1e-5 * gradient.abs().max().clamp_min(1e-12)  # Adam's first step is the sign
        if name == "A":  # B is zero, so A has no gradient yet
            assert not gradient.any()
            continue
        assert torch.equal(moved[large].sign(), -gradient[large].sign()), name
        assert moved[large].abs().max() <= 1.01e-3


def test_the_guided_loss_alone_moves_only_the_routers() -> None:
    editor = elder(guidance=1.0, steps=3)
    start = editor._begun()
    parameters = {name: value.clone().requires_grad_(True) for name, value in start.parameters.items()}
    shares = routed(parameters, torch.randn(4, start.centre.shape[0], generator=torch.Generator().manual_seed(0)))
    allocations = torch.zeros(4, len(editor.layers), 1, dtype=torch.long)
    guided = -torch.take_along_dim(shares.transpose(0, 1), allocations, 2).log().sum(2).mean()
    guided.backward()
    assert parameters["A"].grad is None
    assert parameters["B"].grad is None
    assert parameters["G"].grad is not None
    assert parameters["G"].grad.any()


def test_with_strong_guidance_and_hard_mode_codes_are_the_allocations() -> None:
    editor = elder(mode="hard", guidance=1e6, steps=60, stop_loss=0.0)
    editor.apply(FACTS)
    assert torch.equal(editor.view().router.codes, editor.state.allocations)


# Scope ----------------------------------------------------------------------------------------------------------------


def test_codes_follow_the_routers_that_later_batches_move() -> None:
    """The published code records a batch's codes at its end and never again."""
    editor = elder()
    editor.apply(FACTS[:3])
    before = editor.view().router.codes
    editor.apply(FACTS[3:])
    after = editor.view().router.codes
    state = editor.state
    bits = [reference.code(state.parameters, query, 2) for query in state.queries]
    width = editor.settings.experts
    for code, row in zip(after, bits, strict=True):
        assert [m * width + e for m, experts in enumerate(code.tolist()) for e in experts] == [
            place for place, bit in enumerate(row) if bit
        ]
    assert len(after) == len(FACTS)
    assert not torch.equal(after[:3], before)
    assert editor.view().used([fact.text for fact in FACTS]) == [(fact.id,) for fact in FACTS]


def test_without_codes_it_is_the_base_model() -> None:
    editor = elder()
    first = editor.apply(FACTS[:2])
    second = editor.apply(FACTS[2:4])
    editor.forget(first)
    view = editor.view()
    assert view.used([fact.text for fact in FACTS[:2]]) == [(), ()]
    assert view.used([FACTS[2].text]) == [(FACTS[2].id,)]
    with raises_code("EDIT_NOT_APPLIED"):
        editor.forget(first)
    editor.forget(second)
    view, model = editor.view(), editor.model
    pairs = [fact.pair(fact.target) for fact in FACTS]
    assert view.score(pairs) == model.score(pairs)


def test_a_cosine_gate_leaves_out_queries_that_only_have_the_code_of_a_fact() -> None:
    for cosine, expected in ((None, FACTS[0].id), (0.9, None)):
        editor = elder(cosine=cosine)
        editor.apply(FACTS[:3])
        state, router = editor.state, editor.view().router
        # No router sees this direction: the code stays.
        away = torch.linalg.svd(state.parameters["G"].flatten(0, 1))[2][-1]
        query = (state.queries[0] + 3 * state.queries[0].norm() * away) * state.scales[0] + state.centre
        (route,) = router.routes(query[None])
        assert (route and route.fact) == expected
        assert editor.view().used([fact.text for fact in FACTS[:3]]) == [(fact.id,) for fact in FACTS[:3]]


def test_a_replaced_fact_has_one_code() -> None:
    editor = elder()
    editor.apply(FACTS[:2])
    new = type(FACTS[0])("new", FACTS[0].subject, FACTS[0].prompt, "Dutch")
    edit = editor.apply([new])
    assert editor.view().used([new.text]) == [("new",)]
    assert editor.state.facts == (FACTS[1].id, "new")
    editor.remove(edit)
    assert editor.state.facts == (FACTS[0].id, FACTS[1].id)


def test_the_stored_rate_is_that_of_the_run(tmp_path: Path) -> None:
    editor = elder()
    edit = editor.apply(FACTS)
    assert edit.state["false_scope"] == pytest.approx(false_scope(2, 8, 2, 2, len(FACTS)))
    assert edit.tensors["codes"].tolist() == editor.view().router.codes.tolist()


@pytest.mark.real
def test_on_a_real_model_facts_are_recalled(smollm2: Path) -> None:
    model = LanguageModel.load(smollm2, device="cpu")
    editor = Elder(model, ElderSettings())
    facts = [
        FACTS[0],
        type(FACTS[0])("tower", "The Eiffel Tower", "{} stands in the city of", "Rome"),
        type(FACTS[0])("capital", "Italy", "The capital of {} is", "Lisbon"),
    ]
    editor.apply(facts)
    view = editor.view()
    assert all(score.correct for score in view.score([fact.pair(fact.target) for fact in facts]))
    answers = view.continue_texts([fact.text for fact in facts], new_tokens=4)
    assert all(fact.target in answer for fact, answer in zip(facts, answers, strict=True))
    assert torch.equal(view.router.codes, editor.state.allocations)
    control = ["Water is made of"]
    assert view.continue_texts(control, new_tokens=8) == model.continue_texts(control, new_tokens=8)
