"""Fine-tuning against a plain loop of full forward passes, and its stop rules, caps and rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from errata.editors.ft import FineTuning, FineTuningSettings, FtBfSettings, FtLSettings, FtMSettings, FtSettings
from errata.editors.training import after_the_prompt, seeded, teacher_forced, weight_scale, with_end
from errata.errors import InputError, NonFiniteError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.weights import DenseTerm

from tests.reference import training as slow
from tests.support.editing import FACTS, assert_same_bits, parameter_bits, tiny_language_model

LAYER = 2
Loss = Callable[[LanguageModel, Fact, dict[int, Tensor]], Tensor]
VARIANTS: dict[str, tuple[type[FineTuningSettings], Loss]] = {
    "ft": (FtSettings, slow.bag_loss),
    "ft_l": (FtLSettings, slow.bag_loss),
    "ft_m": (FtMSettings, slow.teacher_forced_loss),
    "ft_bf": (FtBfSettings, lambda model, fact, weights: slow.teacher_forced_loss(model, fact, weights, end=True)),
}


def editor(model: LanguageModel, settings: type[FineTuningSettings], **values: Any) -> FineTuning:
    return FineTuning(model, settings.model_validate({"layer": LAYER, "relative": False, **values}))


def value(patch: Any) -> Tensor:
    (term,) = patch.terms
    assert isinstance(term, DenseTerm)
    return term.value


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_three_steps_are_those_of_a_plain_loop(variant: str, family: str) -> None:
    settings, loss = VARIANTS[variant]
    model = tiny_language_model(family, dtype=torch.float64)
    start = model.weight(LAYER).clone()
    facts, chunks = FACTS[:4], [[0, 1, 2], [3]]
    order = [[(epoch, index) for index in range(4)] for epoch in range(3)]
    generator = seeded(5, 0)
    if settings.shuffled:
        order = [[(epoch, index) for index in torch.randperm(4, generator=generator).tolist()] for epoch in range(3)]
    batches = [[facts[epoch[place][1]] for place in chunk] for epoch in order for chunk in chunks]
    cap = {"cap": 0.015} if variant == "ft_l" else {}
    weight = start.clone().requires_grad_()

    def constrain() -> None:
        if cap:
            weight.copy_(torch.minimum(torch.maximum(weight, start - 0.015), start + 0.015))

    slow.descend([weight], lambda fact: loss(model, fact, {LAYER: weight}), batches, 0.01, constrain=constrain)
    made = editor(model, settings, learning_rate=0.01, steps=3, batch_size=4, mini_batch=3, seed=5, **cap)
    patch = made.apply(facts)
    torch.testing.assert_close(model.weight(LAYER), weight.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(value(patch), weight.detach() - start, rtol=1e-6, atol=1e-8)
    assert patch.facts == facts
    assert patch.recipe.settings["steps"] == 3


def test_depth_first_is_one_call_after_another() -> None:
    model, other = (tiny_language_model("llama", dtype=torch.float64) for _ in range(2))
    editor(model, FtMSettings, learning_rate=0.02, steps=3).apply(FACTS[:3])
    single = editor(other, FtMSettings, learning_rate=0.02, steps=3)
    for fact in FACTS[:3]:
        single.apply([fact])
    torch.testing.assert_close(model.weight(LAYER), other.weight(LAYER))
    assert len(other.edits.terms) == 3
    assert len(model.edits.terms) == 1  # whose memory does not grow with the number of facts


def test_a_target_of_one_token_is_the_same_for_ft_and_ft_m() -> None:
    models = [tiny_language_model("gpt2", dtype=torch.float64) for _ in range(2)]
    short = next(fact for fact in FACTS if len(slow.token_rows(models[0], fact)[1]) == 1)
    for model, settings in zip(models, (FtSettings, FtMSettings), strict=True):
        editor(model, settings, learning_rate=0.01, steps=4).apply([short])
    assert torch.equal(models[0].weight(LAYER), models[1].weight(LAYER))


def test_the_first_step_is_the_sign_of_the_gradient() -> None:
    model = tiny_language_model("gpt2", dtype=torch.float64)
    weight = model.weight(LAYER).clone().requires_grad_()
    loss = sum(slow.bag_loss(model, fact, {LAYER: weight}) for fact in FACTS[:2]) / 2
    (gradient,) = torch.autograd.grad(loss, weight)
    made = editor(model, FtLSettings, learning_rate=5e-4, cap=5e-4, steps=1, batch_size=2, mini_batch=2)
    change = value(made.apply(FACTS[:2]))
    large = gradient.abs() > 1e-4  # where Adam's ε = 1e-8 does not matter
    torch.testing.assert_close(change[large], -5e-4 * gradient[large].sign(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("anchor", ["call", "run"])
def test_no_entry_moves_further_than_the_cap(anchor: str) -> None:
    model = tiny_language_model("llama")
    base = model.weight(LAYER).clone()
    made = editor(model, FtLSettings, learning_rate=0.02, cap=0.01, steps=4, batch_size=1, anchor=anchor)
    first = made.apply(FACTS[:2])
    assert float(value(first).abs().max()) == pytest.approx(0.01)
    assert float(value(first).abs().max()) <= 0.01 * (1 + 1e-6)
    second = made.apply(FACTS[2:4])
    drift = float((model.weight(LAYER) - base).abs().max())
    if anchor == "run":
        assert drift <= 0.01 * (1 + 1e-5)
        # What was removed no longer counts.
        made.remove(second)
        made.remove(first)
        again = made.apply(FACTS[:2])
        torch.testing.assert_close(value(again), value(first), rtol=0, atol=0)
    else:
        assert drift > 0.011
        assert float(value(second).abs().max()) <= 0.01 * (1 + 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_known_fact_changes_nothing(variant: str) -> None:
    model = tiny_language_model("llama")
    before = parameter_bits(model)
    patch = editor(model, VARIANTS[variant][0], stop_loss=100.0).apply(FACTS[:2])
    assert patch.terms == ()
    assert_same_bits(parameter_bits(model), before)


def test_a_learnt_mini_batch_takes_no_step_and_training_ends() -> None:
    model = tiny_language_model("llama")
    steps: list[tuple[str, int, int]] = []
    made = FineTuning(
        model,
        FtMSettings(layer=2, learning_rate=0.02, relative=False, steps=100, batch_size=2, mini_batch=2, stop_loss=1.5),
        report=lambda *progress: steps.append(progress),
    )
    made.apply(FACTS[:2])
    assert len(steps) < 100
    mean = -sum(score.log_probability for score in model.score([fact.pair(fact.target) for fact in FACTS[:2]])) / 2
    assert mean < 1.5
    before = parameter_bits(model)
    assert made.apply(FACTS[:2]).terms == ()
    assert_same_bits(parameter_bits(model), before)


def test_no_special_token_is_trained() -> None:
    model = tiny_language_model("llama")  # its tokenizer adds BOS
    tokenizer = model.tokenizer
    prompt, target = slow.token_rows(model, FACTS[4])
    assert prompt[0] == tokenizer.bos_token_id
    assert len(target) > 1
    (forced,), (bag,), (ended,) = (rows(tokenizer, [FACTS[4]]) for rows in (teacher_forced, after_the_prompt, with_end))
    assert (list(forced.ids), list(forced.targets)) == ([*prompt, *target[:-1]], target)
    assert (list(bag.ids), set(bag.wanted), list(bag.targets)) == (prompt, {len(prompt) - 1}, target)
    assert list(ended.ids) == [*prompt, *target]
    assert list(ended.targets) == [*target, tokenizer.eos_token_id]
    assert ended.wanted == (*forced.wanted, len(ended.ids) - 1)


def test_other_facts_in_a_batch_do_not_change_the_losses_of_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone = (tiny_language_model("llama", dtype=torch.float64) for _ in range(2))
    settings = {"learning_rate": 0.01, "steps": 2, "batch_size": 4, "mini_batch": 4}
    editor(together, FtMSettings, **settings).apply(FACTS[:4])
    monkeypatch.setattr("errata.models.row_replay.GRADIENT_BUDGET", 1)  # one row a pass, so no padding
    editor(alone, FtMSettings, **settings).apply(FACTS[:4])
    torch.testing.assert_close(together.weight(LAYER), alone.weight(LAYER))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_trained_in_float32(dtype: torch.dtype) -> None:
    model = tiny_language_model("llama", dtype=dtype)
    base = model.weight(LAYER).float().clone()
    patch = editor(model, FtMSettings, learning_rate=1e-4, steps=3).apply(FACTS[:1])  # less than a bit of most entries
    change = value(patch)
    assert change.dtype == torch.float32
    assert float(change.abs().max()) > 2e-4  # which adds up
    assert torch.equal(model.weight(LAYER), (base + change).to(dtype))


def test_default_layer_and_units() -> None:
    model = tiny_language_model("llama")
    assert FineTuning(model, FtSettings()).layers == (3,)  # of 5
    base = model.weight(3).clone()
    change = value(FineTuning(model, FtLSettings(cap=0.5, learning_rate=1.0, steps=2)).apply(FACTS[:1]))
    assert float(change.abs().max()) == pytest.approx(0.5 * weight_scale(base), rel=1e-5)
    with pytest.raises(InputError):
        FineTuning(model, FtSettings(layer=5))


def test_the_seed_decides_the_order_and_nothing_else() -> None:
    def weights(seed: int) -> Tensor:
        model = tiny_language_model("llama")
        torch.manual_seed(seed + 7)  # the global generator has no part in it
        editor(model, FtBfSettings, learning_rate=0.01, steps=3, mini_batch=1, seed=seed).apply(FACTS[:4])
        return model.weight(LAYER).clone()

    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_diverging_training_is_reported_and_undone() -> None:
    model = tiny_language_model("llama")
    before = parameter_bits(model)
    with pytest.raises(NonFiniteError):
        editor(model, FtMSettings, learning_rate=1e37, steps=5).apply(FACTS[:2])
    assert_same_bits(parameter_bits(model), before)
    assert not model.edits.terms


def test_a_tokenizer_without_eos_is_refused_where_it_is_trained() -> None:
    model = tiny_language_model("llama")
    assert isinstance(model.tokenizer, PreTrainedTokenizerFast)
    model.tokenizer.eos_token = None
    with pytest.raises(InputError) as caught:
        editor(model, FtBfSettings).apply(FACTS[:1])
    assert caught.value.code == "TOKENIZER_WITHOUT_EOS"
