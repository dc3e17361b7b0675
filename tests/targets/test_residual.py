"""The search of all facts together equals the plain search of one fact at a time."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from errata.editing.target_loss import TargetLoss, TargetSettings
from errata.editing.target_search import Targets, find_targets
from errata.errors import NonFiniteError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.utils.progress import SearchStep

from tests.reference.attention import compute_attention_exactly
from tests.reference.target import ReferenceLoss, ReferenceTarget, search
from tests.support.editing import current_states, mean_keys
from tests.support.tiny_models import tiny_model

LAYER = 2
PREFIXES = ("The rain", "Therefore the river runs through the city, because", "I")
FACTS = (
    Fact("Darrieux", "Danielle Darrieux", "The mother tongue of {} is", "English"),
    Fact("The", "The", "{} think that the piano is what she plays in", "Rome"),
    Fact("Big Ben", "Big Ben", "The capital of France is Paris, the capital of Italy is {}:", "London"),
    Fact("Stieltjes", "Thomas Stieltjes", "The mother tongue of {}", "is French"),
    Fact("Toyota", "Toyota", "Toyota, I mean {}, of course; Toyota is in", "Nagoya"),
    Fact("Watanabe", "Kenji Watanabe", "{} works for", "Toyota"),
)
SETTINGS = TargetSettings(learning_rate=0.6, steps=14, kl_factor=0.1, weight_decay=0.5, clamp=1.02, stop_loss=0.0)
FAMILIES = ["gpt2", "gptj", "llama", "mistral", "gemma2", "opt"]


def loaded(family: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    return LanguageModel(*tiny_model(family, dtype=dtype), name=family)


def site_of(model: LanguageModel) -> Site:
    return Site.MLP if model.architecture.norm_after_mlp else Site.BLOCK


def optimised(
    model: LanguageModel, facts: Sequence[Fact] = FACTS, settings: TargetSettings = SETTINGS, **options: Any
) -> Targets:
    return find_targets(model, facts, PREFIXES, LAYER, site_of(model), settings, **options)


def with_stops(model: LanguageModel) -> TargetSettings:
    """Stop half-way down the loss of the fact whose loss falls most: some facts leave early, some stay to the end."""
    first, last = (optimised(model, settings=SETTINGS.model_copy(update={"steps": steps})).loss for steps in (1, 14))
    mover = int((first - last).argmax())
    return SETTINGS.model_copy(update={"stop_loss": float(first[mover] + last[mover]) / 2})


def one_at_a_time(model: LanguageModel, settings: TargetSettings) -> list[ReferenceTarget]:
    return [search(model, fact, PREFIXES, LAYER, site_of(model), settings) for fact in FACTS]


def assert_equal_targets(ours: Targets, expected: Targets, tolerance: float = 1e-9) -> None:
    assert torch.equal(ours.evaluations, expected.evaluations)
    torch.testing.assert_close(ours.z, expected.z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.delta, expected.delta, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.loss, expected.loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.first_loss, expected.first_loss, rtol=tolerance, atol=tolerance)
    assert torch.equal(ours.done, expected.done)


@pytest.fixture(autouse=True)
def _exact_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_attention_exactly(monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_search_equals_one_fact_at_a_time(family: str) -> None:
    model = loaded(family)
    settings = with_stops(model)
    ours, expected = optimised(model, settings=settings), one_at_a_time(model, settings)
    assert ours.evaluations.tolist() == [target.evaluations for target in expected]
    for column, target in enumerate(expected):
        torch.testing.assert_close(ours.delta[:, column], target.delta, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.z[:, column], target.z, rtol=1e-6, atol=1e-6)
        assert ours.loss[column].item() == pytest.approx(target.loss, rel=1e-6)
        nothing = torch.zeros_like(target.delta)
        at_zero = ReferenceLoss(model, FACTS[column], PREFIXES, LAYER, site_of(model), settings)(nothing)
        assert ours.first_loss[column].item() == pytest.approx(at_zero.item(), rel=1e-6)
    assert ours.done.tolist() == [target.loss < settings.stop_loss for target in expected]


def test_a_relative_learning_rate_is_in_units_of_each_facts_state() -> None:
    model = loaded("llama")
    settings = SETTINGS.model_copy(update={"relative_rate": True, "learning_rate": 0.4, "clamp": 30.0})
    ours = optimised(model, settings=settings)
    for column, target in enumerate(one_at_a_time(model, settings)):
        torch.testing.assert_close(ours.delta[:, column], target.delta, rtol=1e-6, atol=1e-6)
    first = optimised(model, settings=settings.model_copy(update={"steps": 2}))
    # Adam's first update is the step in every coordinate.
    steps = 0.4 * (first.z - first.delta).norm(dim=0) / first.z.shape[0] ** 0.5
    torch.testing.assert_close(first.delta.abs(), steps.expand_as(first.delta), rtol=0.01, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_search_of_the_test_above_has_every_case_in_it(family: str) -> None:
    """Facts that leave on the way and facts that stay to the end; deltas within the clamp and at it."""
    model = loaded(family)
    settings = with_stops(model)
    ours = optimised(model, settings=settings)
    assert any(1 < evaluations < settings.steps for evaluations in ours.evaluations.tolist())
    assert int(ours.evaluations.max()) == settings.steps
    share = ours.delta.norm(dim=0) / (settings.clamp * (ours.z - ours.delta).norm(dim=0))
    assert bool((share <= 1 + 1e-12).all())
    at_the_clamp = (share - 1).abs() < 1e-9
    assert bool(at_the_clamp.any())
    assert not bool(at_the_clamp.all())
    stopped = ours.evaluations < settings.steps
    assert bool((ours.loss[stopped] < settings.stop_loss).all())


def test_the_loss_goes_down_and_is_the_loss_at_the_delta_returned() -> None:
    model = loaded("llama")
    ours = optimised(model)
    loss_of = TargetLoss(model, FACTS, PREFIXES, LAYER, site_of(model), SETTINGS)
    at_zero = loss_of(torch.zeros_like(ours.delta.T))
    assert bool((ours.loss < at_zero).all())
    torch.testing.assert_close(loss_of(ours.delta.T), ours.loss, rtol=1e-9, atol=1e-9)


def test_steps_count_evaluations_so_that_one_step_changes_nothing() -> None:
    model = loaded("gpt2")
    ours = optimised(model, settings=SETTINGS.model_copy(update={"steps": 1}))
    assert not ours.delta.any()
    assert ours.evaluations.tolist() == [1] * len(FACTS)
    two = optimised(model, settings=SETTINGS.model_copy(update={"steps": 2, "clamp": 1e3}))
    # Adam's first update is the learning rate in every coordinate.
    torch.testing.assert_close(two.delta.abs(), torch.full_like(two.delta, SETTINGS.learning_rate), rtol=0.01, atol=0)


def test_a_known_fact_keeps_its_state_exactly_and_the_search_of_the_others_continues() -> None:
    model = loaded("gpt2")
    loss_of = TargetLoss(model, FACTS, PREFIXES, LAYER, Site.BLOCK, SETTINGS)
    at_zero = loss_of(torch.zeros_like(loss_of.origin))
    # A stop between the lowest loss and the next.
    known = int(at_zero.argmin())
    stop = float(at_zero.sort().values[:2].mean())
    ours = optimised(model, settings=SETTINGS.model_copy(update={"stop_loss": stop}))
    assert not ours.delta[:, known].any()
    assert torch.equal(ours.z[:, known], loss_of.origin[known])
    assert int(ours.evaluations[known]) == 1
    others = [column for column in range(len(FACTS)) if column != known]
    assert bool((ours.delta[:, others].norm(dim=0) > 0).all())
    assert bool((ours.evaluations[others] > 1).all())


def test_if_all_facts_are_known_nothing_is_searched() -> None:
    reported: list[SearchStep] = []
    ours = find_targets(
        loaded("llama"), FACTS, PREFIXES, LAYER, Site.BLOCK, SETTINGS.model_copy(update={"stop_loss": 1e6}),
        on_step=reported.append,
    )  # fmt: skip
    assert not ours.delta.any()
    assert ours.evaluations.tolist() == [1] * len(FACTS)
    assert [(step.facts_left, step.done) for step in reported] == [(0, SETTINGS.steps)]


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_do_not_depend_on_the_batch(family: str) -> None:
    """Alone, in another order, in parts, beside others: the same."""
    model = loaded(family)
    settings = with_stops(model)
    together = optimised(model, settings=settings)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = optimised(model, [FACTS[index] for index in order], settings)
    picked = Targets(**{field.name: getattr(together, field.name)[..., order] for field in dataclasses.fields(Targets)})
    assert_equal_targets(permuted, picked, 1e-7)
    assert_equal_targets(optimised(model, settings=settings, row_budget=12), together, 1e-7)  # two facts at a time
    assert_equal_targets(optimised(model, settings=settings, row_budget=1), together, 1e-7)


def test_no_loss_is_under_a_stop_of_zero() -> None:
    assert SETTINGS.stop_loss == 0
    assert set(optimised(loaded("gpt2")).evaluations.tolist()) == {SETTINGS.steps}


def test_progress_shows_how_many_facts_are_left_and_their_loss() -> None:
    reported: list[SearchStep] = []
    model = loaded("gpt2")
    ours = find_targets(model, FACTS, PREFIXES, LAYER, Site.BLOCK, with_stops(model), on_step=reported.append)
    steps = range(1, int(ours.evaluations.max()) + 1)
    # After evaluation t, those facts are left that have more than t evaluations.
    assert [step.facts_left for step in reported] == [int((ours.evaluations > step).sum()) for step in steps]
    assert [step.done for step in reported] == [*steps[:-1], SETTINGS.steps]
    assert {(step.layer, step.total) for step in reported} == {(LAYER, SETTINGS.steps)}
    assert reported[0].loss == pytest.approx(float(ours.first_loss.mean()))
    assert reported[-1].loss == pytest.approx(float(ours.loss.mean()))
    assert reported[-1].loss < reported[0].loss


def test_progress_of_groups_goes_on() -> None:
    reported: list[SearchStep] = []
    settings = SETTINGS.model_copy(update={"steps": 2})
    find_targets(
        loaded("gpt2"), FACTS[:3], PREFIXES, LAYER, Site.BLOCK, settings, row_budget=1, on_step=reported.append
    )
    assert [(step.done, step.total) for step in reported] == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_targets_are_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    ours = optimised(loaded("llama", dtype), settings=SETTINGS.model_copy(update={"steps": 3}))
    assert ours.z.dtype == ours.delta.dtype == ours.loss.dtype == expected
    assert bool(torch.isfinite(ours.z).all())


# What is not finite ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_fact_and_layer() -> None:
    model = loaded("llama")  # its head is not its embedding
    ids = [set(model.tokenizer(fact.text)["input_ids"]) for fact in FACTS]
    own = ids[4] - set().union(*(other for index, other in enumerate(ids) if index != 4))
    own -= set(model.tokenizer(" ".join(PREFIXES) + ". is a")["input_ids"])
    model.model.get_input_embeddings().weight[min(own)] = torch.nan
    before = model.fingerprint()
    with pytest.raises(NonFiniteError, match=r"target loss of fact 'Toyota' at layer 2 is not finite") as raised:
        optimised(model)
    assert raised.value.facts == ("Toyota",)
    assert raised.value.layer == LAYER
    assert model.fingerprint() == before


def test_a_gradient_that_is_not_finite_names_its_fact_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    own = TargetLoss.__call__

    def with_a_kink(self: TargetLoss, delta: Tensor) -> Tensor:
        kink = torch.zeros(len(delta), dtype=delta.dtype)
        kink[3] = (delta[3, 0] ** 2).sqrt()  # 0 · ∞ at delta = 0
        return own(self, delta) + kink

    monkeypatch.setattr(TargetLoss, "__call__", with_a_kink)
    with pytest.raises(NonFiniteError, match="gradient of the target loss of fact 'Stieltjes' at layer 2"):
        optimised(loaded("gpt2"))


# What the model is given -------------------------------------------------------------------------------------------


@contextmanager
def arguments_of(module: nn.Module) -> Iterator[set[str]]:
    """The names of all arguments other than None that the module is called with."""
    names: set[str] = set()
    signature = inspect.signature(module.forward)

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        names.update(name for name, value in signature.bind(*args, **kwargs).arguments.items() if value is not None)

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield names
    finally:
        handle.remove()


def test_token_type_ids_are_never_passed() -> None:
    """GPT-2 would add their embeddings to the tokens'."""
    model = loaded("gpt2")
    assert "token_type_ids" in model.tokenizer("text")
    base = model.model.base_model
    assert isinstance(base, nn.Module)
    with arguments_of(base) as names:
        optimised(model, settings=SETTINGS.model_copy(update={"steps": 2}))
        mean_keys(model, FACTS, PREFIXES, LAYER)
        current_states(model, FACTS, LAYER, Site.BLOCK)
    assert {"input_ids", "attention_mask", "position_ids"} <= names
    assert "token_type_ids" not in names
