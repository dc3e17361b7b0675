"""Mixtures of experts: keys against the router and the experts written out, one exact solve against the dense problem
of all experts, edits that reach their targets and are undone bit for bit, adapters through PEFT itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from errata.editing.keys import SubjectTexts
from errata.editing.solvers.experts import LEAST_SHARE
from errata.editing.solvers.least_squares import LeastSquares
from errata.editing.solvers.null_space import NullSpace
from errata.editors.locate_then_edit import Editor
from errata.errors import EditError, InputError, UnsupportedModelError
from errata.models.families import architecture_of, check_config
from errata.models.language_model import LanguageModel, Site
from errata.models.size import ModelSize
from errata.models.weights import Place
from errata.patches.lora_export import Adapter, compare_answers
from errata.patches.patch import Patch
from errata.statistics.moments import key_moments, moment_shape
from errata.statistics.settings import StatisticsSettings

from tests.reference import solvers as dense
from tests.reference.experts import block_diagonal, expert_moments, stacked_key
from tests.support.editing import (
    FACTS,
    assert_same_bits,
    corpus_texts,
    editor_maker,
    parameter_bits,
    tiny_language_model,
)
from tests.support.errors import raises_code
from tests.support.tiny_models import EXPERT_FAMILIES, WIDTH, tiny_model

LAYER = 2
METHODS = ("memit", "memit_seq", "alphaedit", "alphaedit+blue")
EXPERTS, INNER = 5, 4


def random_matrix(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loaded(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return LanguageModel(*tiny_model(family, dtype=dtype), name=family)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Editor]:
    return editor_maker(tmp_path_factory.mktemp("experts"))


# Keys and statistics


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_keys_are_those_of_the_router_and_the_experts_written_out(family: str) -> None:
    model = loaded(family, torch.float64)
    ids = torch.randint(8, model.model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []
    handle = model.mlp(LAYER).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with model.capture({Site.KEY: [LAYER], Site.MLP: [LAYER]}) as read, torch.no_grad():
        model.run_captured({"input_ids": ids})
    handle.remove()
    keys = read[Site.KEY, LAYER]
    assert keys.shape == (2, 9, model.key_width(LAYER))
    expected = [[stacked_key(model.blocks[LAYER], model.model.config, x) for x in row] for row in seen[0]]
    # The routers of three families take their softmax in float32.
    torch.testing.assert_close(keys, torch.stack([torch.stack(row) for row in expected]), rtol=0, atol=1e-6)
    weights = torch.cat([model.weight(*place) for place in model.places(LAYER)], dim=1)  # [W_1 … W_E]
    output = keys @ weights.T
    if family == "gpt_oss":
        bias = model.experts(LAYER).down_proj_bias.detach()
        gates = torch.zeros(18, len(bias), dtype=torch.float64)
        router = model.mlp(LAYER).router(seen[0].reshape(-1, WIDTH))
        output = output + (gates.scatter(1, router[2], router[1]) @ bias).view(2, 9, WIDTH)
    torch.testing.assert_close(read[Site.MLP, LAYER], output, rtol=0, atol=1e-12)


def test_a_dense_block_among_experts_has_one_place() -> None:
    model = loaded("qwen3_moe")
    assert model.places(1) == (Place(1),)
    assert model.places(2) == tuple(Place(2, expert=expert) for expert in range(6))
    assert model.weight(1).shape[1] == model.key_width(1) == 48
    assert moment_shape(model, 1) == (48, 48)
    assert moment_shape(model, 2) == (6, 20, 20)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_statistics_are_moments_of_each_expert_over_all_tokens(family: str) -> None:
    model = loaded(family, torch.float64)
    settings = StatisticsSettings(corpus="here", tokens=200, length=32)
    found = key_moments(model, [LAYER], corpus_texts(), settings)[LAYER]
    keys: list[Tensor] = []
    for text in corpus_texts():
        ids = model.tokenizer(text)["input_ids"][:32]
        with model.capture({Site.KEY: [LAYER]}) as read, torch.no_grad():
            model.run_captured({"input_ids": torch.tensor([ids])})
        keys.extend(read[Site.KEY, LAYER][0])
    expected = expert_moments(torch.stack(keys[:200]), model.expert_count(LAYER))
    assert found.count == 200
    # The routers of three families take their softmax in float32, with other last bits in a batch.
    torch.testing.assert_close(found.mean, expected, rtol=1e-3, atol=1e-6)


# The solve


def gated(facts: int, *, seed: int) -> Tensor:
    """Keys of experts side by side, of which each fact uses two."""
    keys = random_matrix(EXPERTS, INNER, facts, seed=seed)
    used = random_matrix(EXPERTS, facts, seed=seed + 1).argsort(0) < 2
    return (keys * used[:, None]).flatten(0, 1)


def moments() -> Tensor:
    factors = random_matrix(EXPERTS, INNER, 3, seed=9)  # rank 3: singular, as of rarely chosen experts
    return factors @ factors.mT


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("facts", [1, 4, 30])
def test_least_squares_is_the_dense_solution_of_all_experts(facts: int, history: bool) -> None:
    blocks = moments()
    floor = LEAST_SHARE * torch.cat([block.diagonal() for block in blocks]).mean()
    whole = block_diagonal(blocks) + floor * torch.eye(EXPERTS * INNER, dtype=torch.float64)
    state, earlier = LeastSquares(ridge=0.3, history=history).prepare_experts(blocks), []
    for batch in range(3):
        keys, residuals = gated(facts, seed=10 * batch), random_matrix(7, facts, seed=10 * batch + 5)
        before = torch.cat(earlier, dim=1) if history and earlier else None
        expected = dense.least_squares(keys, residuals, whole, ridge=0.3, earlier=before)
        assert_is(state.solve(keys, residuals), expected, facts)
        state = state.remember(keys)
        earlier.append(keys)


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("facts", [1, 4, 30])
def test_the_null_space_is_the_dense_solution_of_all_experts(facts: int, history: bool) -> None:
    whole = block_diagonal(moments())
    state, earlier = NullSpace(threshold=0.5, l2=0.4, history=history).prepare_experts(moments()), []
    for batch in range(3):
        keys, residuals = gated(facts, seed=10 * batch), random_matrix(7, facts, seed=10 * batch + 5)
        before = torch.cat(earlier, dim=1) if history and earlier else None
        expected = dense.null_space(keys, residuals, whole, threshold=0.5, l2=0.4, earlier=before)
        assert_is(state.solve(keys, residuals), expected, facts)
        state = state.remember(keys)
        earlier.append(keys)


def assert_is(change: object, expected: Tensor, facts: int) -> None:
    """The whole change and the changes of experts, which have no more factors than facts of the batch."""
    torch.testing.assert_close(change.dense(), expected, rtol=1e-9, atol=1e-9)
    for expert, columns in enumerate(expected.split(INNER, dim=1)):
        part = change.parts.get(expert)
        if part is None:
            assert not columns.any()
        else:
            assert part.left.shape[1] == part.right.shape[0] <= facts
            torch.testing.assert_close(part.dense(), columns, rtol=1e-9, atol=1e-9)


def test_an_expert_that_no_fact_uses_is_not_written() -> None:
    keys = gated(4, seed=1)
    keys.view(EXPERTS, INNER, 4)[2] = 0
    change = LeastSquares(ridge=0.3, history=False).prepare_experts(moments()).solve(keys, random_matrix(7, 4, seed=2))
    assert 2 not in change.parts


# Edits


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize(
    ("method", "solver"), [("memit", {"ridge": 1e-7}), ("alphaedit", {"threshold": 9.0, "l2": 1e-7})]
)
def test_with_a_vanishing_ridge_the_block_outputs_move_by_the_residuals(
    family: str, method: str, solver: dict[str, float], make: Callable[..., Editor]
) -> None:
    model = tiny_language_model(family)
    editor = make(model, method, layers=(LAYER,), solver=solver, contexts={"openers": ()}, batch_size=4)
    texts = SubjectTexts.tokenise(model, FACTS[:4])
    before = texts.read(Site.BLOCK, [LAYER])[LAYER][0]
    editor.apply(FACTS[:4])
    moved = texts.read(Site.BLOCK, [LAYER])[LAYER][0] - before
    target = editor.records[0].targets[LAYER].delta.double()
    assert target.norm() > 0.1
    assert float((moved - target).norm() / target.norm()) < 1e-3


@pytest.mark.parametrize(("family", "method"), list(zip(EXPERT_FAMILIES, METHODS, strict=True)))
def test_edits_are_saved_and_undone_bit_for_bit(
    family: str, method: str, make: Callable[..., Editor], tmp_path: Path
) -> None:
    model = tiny_language_model(family)
    base = parameter_bits(model)
    patch = make(model, method).apply(FACTS[:4])
    edited = parameter_bits(model)
    assert any(place.expert is not None for place in patch.places)
    patch.save(tmp_path / "edit.patch")
    patch.undo(model)
    assert_same_bits(parameter_bits(model), base)
    again, fresh = Patch.load(tmp_path / "edit.patch"), tiny_language_model(family)
    assert again.places == patch.places
    again.apply(fresh)
    assert_same_bits(parameter_bits(fresh), edited)
    again.undo(fresh)
    assert_same_bits(parameter_bits(fresh), base)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_an_edited_model_is_saved_in_its_bases_form(family: str, make: Callable[..., Editor], tmp_path: Path) -> None:
    model, tokenizer = tiny_model(family)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    loaded_model = LanguageModel.load(tmp_path / "base", device="cpu")
    make(loaded_model, "memit").apply(FACTS[:2])
    loaded_model.save(tmp_path / "edited")
    assert LanguageModel.load(tmp_path / "edited", device="cpu").fingerprint() == loaded_model.fingerprint()


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_peft_computes_the_same_from_the_adapter(family: str, make: Callable[..., Editor], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_language_model(family)
    layers = (2, 3)  # not Qwen3-MoE's dense block
    patch = make(model, "memit_seq", layers=layers).apply(FACTS[:4])
    ids = torch.randint(8, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.model(input_ids=ids).logits
    base, _ = tiny_model(family)
    adapter = Adapter.of([patch])
    adapter.write(tmp_path / "adapter", base, base="lab")
    with torch.no_grad():
        found = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    patch.undo(model)
    before = parameter_bits(model)
    assert not any(entry.is_lost for entry in compare_answers(model, adapter))
    assert_same_bits(parameter_bits(model), before)


def test_a_dense_block_of_experts_has_no_adapter(make: Callable[..., Editor], tmp_path: Path) -> None:
    patch = make(tiny_language_model("qwen3_moe"), "memit_seq", layers=(1, 2)).apply(FACTS[:2])
    with raises_code("LORA_DENSE_BLOCK_OF_EXPERTS", InputError, "model.layers.1.mlp.down_proj"):
        Adapter.of([patch]).write(tmp_path / "adapter", tiny_model("qwen3_moe")[0], base="lab")


# Refusals


@pytest.mark.parametrize(("method", "code"), [("emmet", "SOLVER_WITHOUT_EXPERTS"), ("rome", "SOLVER_WITHOUT_EXPERTS")])
def test_solvers_without_experts_say_so(method: str, code: str, make: Callable[..., Editor]) -> None:
    model = tiny_language_model("mixtral")
    base = parameter_bits(model)
    with raises_code(code, EditError):
        make(model, method).apply(FACTS[:1])
    assert_same_bits(parameter_bits(model), base)


@pytest.mark.parametrize("method", ["rect", "prune"])
def test_shaping_of_whole_matrices_is_refused(method: str, make: Callable[..., Editor]) -> None:
    model = tiny_language_model("olmoe")
    base = parameter_bits(model)
    with raises_code("MODEL_EXPERTS_APART", UnsupportedModelError):
        make(model, method).apply(FACTS[:1])
    assert_same_bits(parameter_bits(model), base)


def test_other_readers_of_one_down_projection_are_refused() -> None:
    model = tiny_language_model("mixtral")
    with raises_code("MODEL_EXPERTS_APART", UnsupportedModelError):
        model.weight(LAYER)
    with raises_code("EXPERT_UNKNOWN", InputError, "expert 4"):
        model.weight(LAYER, expert=4)
    with raises_code("EXPERT_UNKNOWN", InputError):
        tiny_language_model("llama").weight(LAYER, expert=0)


def test_a_patch_of_experts_does_not_fit_a_dense_model(make: Callable[..., Editor]) -> None:
    patch, other = make(tiny_language_model("olmoe"), "memit").apply(FACTS[:1]), tiny_language_model("llama")
    base = parameter_bits(other)
    with raises_code("EXPERT_UNKNOWN", InputError):
        patch.apply(other, force=True)
    assert_same_bits(parameter_bits(other), base)


def test_unknown_families_of_experts_are_refused() -> None:
    config = AutoConfig.for_model("deepseek_v3", num_hidden_layers=2)
    with raises_code("MODEL_MIXTURE_OF_EXPERTS", UnsupportedModelError):
        check_config(config)


def test_sizes_count_all_experts_in_memory_and_the_chosen_ones_in_products() -> None:
    model, _ = tiny_model("mixtral")
    size = ModelSize.of(model)
    assert (size.mlp_width, size.experts) == (4 * 48, 4)
    per_expert = 3 * 48 * WIDTH
    assert size.mlp_products == 2 * per_expert
    assert architecture_of(model).experts is not None
