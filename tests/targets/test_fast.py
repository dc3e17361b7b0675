"""The fast search: few contexts at each step, as a slow twin takes them one at a time, and products in bfloat16."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from errata.editing.recipe import parse_recipe, shipped_recipe
from errata.editing.target_loss import JointTargetSettings, TargetSettings, in_turn
from errata.editing.target_search import Targets, find_targets
from errata.editors.locate_then_edit import Editor
from errata.errors import FaultsError
from errata.evaluation.recall import evaluate_facts
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel, Site
from errata.results.metrics import Metric

from tests.reference.attention import compute_attention_exactly
from tests.reference.target import ReferenceLoss, search, search_in_turn
from tests.support.editing import FACTS, tiny_language_model

LAYER = 2
PREFIXES = ("The rain", "Therefore the river runs through the city, because", "I", "You know")
SETTINGS = TargetSettings(learning_rate=0.6, steps=12, kl_factor=0.1, weight_decay=0.5, clamp=1.02, stop_loss=0.0)


@pytest.fixture
def bfloat16_instructions(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether the CPU says that it has them; products are right, if slower, without."""

    def have(they_are_there: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": they_are_there})

    return have


def searched(model: LanguageModel, settings: TargetSettings, **options: int) -> Targets:
    return find_targets(model, FACTS, PREFIXES, LAYER, Site.BLOCK, settings, **options)


def with_stop(model: LanguageModel, **changes: object) -> TargetSettings:
    """A stop that some facts reach and others do not."""
    some = SETTINGS.model_copy(update=changes)
    first, last = (searched(model, some.model_copy(update={"steps": steps})).loss for steps in (1, 12))
    return some.model_copy(update={"stop_loss": float((first.min() + last.median()) / 2)})


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("per_step", [1, 3])
def test_few_contexts_at_each_step_equal_one_fact_at_a_time(
    family: str, per_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_attention_exactly(monkeypatch)
    model = tiny_language_model(family, dtype=torch.float64)
    settings = with_stop(model, contexts_per_step=per_step)
    turns = [in_turn(len(PREFIXES), per_step, step) for step in range(1, settings.steps + 1)]
    ours = searched(model, settings)
    assert 1 < ours.evaluations.float().mean() < settings.steps
    for column, fact in enumerate(FACTS):
        expected = search_in_turn(model, fact, PREFIXES, LAYER, Site.BLOCK, settings, turns)
        assert int(ours.evaluations[column]) == expected.evaluations
        torch.testing.assert_close(ours.delta[:, column], expected.delta, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.z[:, column], expected.z, rtol=1e-5, atol=1e-5)
        assert ours.loss[column].item() == pytest.approx(expected.loss, rel=1e-5)
        whole = ReferenceLoss(model, fact, PREFIXES, LAYER, Site.BLOCK, settings)
        assert ours.first_loss[column].item() == pytest.approx(whole(torch.zeros_like(expected.delta)).item())
        assert whole(expected.delta).item() == pytest.approx(ours.loss[column].item(), rel=1e-5), "the whole loss"
        assert bool(ours.done[column]) == (expected.loss < settings.stop_loss)


def test_as_many_contexts_as_there_are_is_the_exact_search() -> None:
    model = tiny_language_model("llama")
    exact, all_of_them = searched(model, SETTINGS), SETTINGS.model_copy(update={"contexts_per_step": 4})
    found = searched(model, all_of_them)
    torch.testing.assert_close(found.delta, exact.delta, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            searched(model, SETTINGS.model_copy(update={"contexts_per_step": 1})).delta, exact.delta
        )


def test_without_other_contexts_the_bare_prompt_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_attention_exactly(monkeypatch)
    model = tiny_language_model("llama", dtype=torch.float64)
    found = searched(model, SETTINGS.model_copy(update={"contexts_per_step": 0}))
    for column, fact in enumerate(FACTS):
        alone = search(model, fact, (), LAYER, Site.BLOCK, SETTINGS)
        torch.testing.assert_close(found.delta[:, column], alone.delta, rtol=1e-6, atol=1e-6)


def test_fast_targets_do_not_depend_on_the_batch(bfloat16_instructions: Callable[[bool], None]) -> None:
    bfloat16_instructions(False)
    model = tiny_language_model("llama", dtype=torch.float64)
    settings = with_stop(model, mode="fast")
    together, alone = searched(model, settings), searched(model, settings, row_budget=1)
    torch.testing.assert_close(alone.delta, together.delta, rtol=1e-7, atol=1e-7)
    assert torch.equal(alone.evaluations, together.evaluations)


def test_every_context_has_its_turn() -> None:
    for number, per_step in ((5, 1), (6, 2), (4, 3), (3, 0)):
        turns = [in_turn(number, per_step, step) for step in range(1, 4 * number + 1)]
        assert turns == [in_turn(number, per_step, step) for step in range(1, 4 * number + 1)]
        assert all(turn == sorted(set(turn)) and len(turn) <= per_step for turn in turns)
        assert all(0 <= index < number for turn in turns for index in turn)
        counts = [sum(index in turn for turn in turns) for index in range(number)]
        assert min(counts) >= min(1, per_step) * 3
    singly = [in_turn(5, 1, step)[0] for step in range(1, 11)]
    assert sorted(singly[:5]) == sorted(singly[5:]) == list(range(5))
    assert singly[:5] != singly[5:]


def test_rounded_products_find_nearly_the_same_targets(bfloat16_instructions: Callable[[bool], None]) -> None:
    bfloat16_instructions(True)
    model = tiny_language_model("llama")
    before = model.fingerprint()
    exact, rounded = searched(model, SETTINGS), searched(model, SETTINGS.model_copy(update={"products": "bfloat16"}))
    assert model.fingerprint() == before
    assert not torch.equal(rounded.delta, exact.delta)
    assert torch.nn.functional.cosine_similarity(rounded.delta, exact.delta, dim=0).min() > 0.9
    # What is written is the difference from h⁰, which is not rounded.
    torch.testing.assert_close(rounded.z - rounded.delta, exact.z - exact.delta, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rounded.first_loss, exact.first_loss, rtol=0.02, atol=0.02)


def test_without_the_instructions_the_search_is_in_float32_and_says_so(
    bfloat16_instructions: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    bfloat16_instructions(False)
    model = tiny_language_model("llama")
    with caplog.at_level(logging.WARNING):
        found = searched(model, SETTINGS.model_copy(update={"products": "bfloat16"}))
    assert any("float32" in record.message for record in caplog.records)
    assert torch.equal(found.delta, searched(model, SETTINGS).delta)


def test_a_recipe_turns_it_on(bfloat16_instructions: Callable[[bool], None]) -> None:
    bfloat16_instructions(True)
    recipe_text = shipped_recipe("lab", "memit").to_yaml()
    recipe = parse_recipe(recipe_text.replace("mode: exact", "mode: fast"), "memit", source="test")
    assert recipe.target.mode == "fast"
    assert recipe.target.sampled == 1
    model = tiny_language_model("llama")
    assert recipe.target.rounds_products(model)
    assert not recipe.target.rounds_products(tiny_language_model("llama", dtype=torch.float64))
    own = recipe.target.model_copy(update={"products": "own", "contexts_per_step": 3})
    assert not own.rounds_products(model)
    assert own.sampled == 3
    assert shipped_recipe("lab", "memit").target.sampled is None
    assert JointTargetSettings(learning_rate=0.1, steps=3, mode="fast").sampled is None
    with pytest.raises(FaultsError) as raised:
        parse_recipe(recipe_text.replace("mode: exact", "mode: quick"), "memit", source="test")
    assert [fault.code for fault in raised.value.faults] == ["RECIPE_VALUE_INVALID"]


@pytest.mark.parametrize("method", ["memit+blue", "alphaedit", "pmet"])
def test_an_edit_in_fast_mode_makes_the_model_say_the_facts(method: str) -> None:
    model = LanguageModel.load("lab")
    facts = lab_facts(lab_world(), 12, seed=3)
    recipe = shipped_recipe("lab", method)
    recipe = recipe.with_choices({"target": {**recipe.target.model_dump(), "mode": "fast"}})

    def share() -> float:
        records = [record for record in evaluate_facts(model, facts) if record.metric == Metric.EFFICACY_SUCCESS]
        return sum(record.value for record in records) / len(records)

    before = share()
    patch = Editor(model, recipe).apply(facts)
    assert share() > max(0.8, before)
    patch.undo(model)
