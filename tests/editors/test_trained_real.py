"""Editors of W, with their default settings, on the lab's model and on SmolLM2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from errata.datasets.lab import lab_units
from errata.editors.registry import EDITORS
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair
from errata.utils.progress import silent

from tests.support.editing import FACTS


@pytest.fixture(scope="module")
def lab() -> LanguageModel:
    return LanguageModel.load("lab")


def right(model: LanguageModel, pairs: list[Pair]) -> float:
    return sum(score.correct for score in model.score(pairs)) / len(pairs)


@pytest.mark.parametrize(
    ("name", "paraphrased"), [("ft", 0.7), ("ft_m", 0.9), ("ft_bf", 0.7), ("lora", 0.7), ("ultra", 0.5)]
)
def test_defaults_edit_the_lab(lab: LanguageModel, name: str, paraphrased: float) -> None:
    facts = [unit.facts[0] for unit in lab_units(10, 3)]
    editor = EDITORS[name].make(lab, {}, silent)
    before = editor.fingerprint()
    edit = editor.apply(facts)
    try:
        assert right(lab, [fact.pair(fact.target) for fact in facts]) >= 0.9
        assert right(lab, [(prompt, fact.target) for fact in facts for prompt in fact.paraphrases]) >= paraphrased
        assert right(lab, [question.pair for fact in facts for question in fact.neighbours]) >= 0.75
    finally:
        editor.remove(edit)
    assert editor.fingerprint() == before


@pytest.fixture(scope="module")
def real(smollm2: Path) -> LanguageModel:
    return LanguageModel.load(smollm2, device="cpu")


@pytest.mark.real
@pytest.mark.parametrize("name", ["ft_m", "lora", "ultra", "simie"])
def test_defaults_edit_a_real_model(real: LanguageModel, name: str) -> None:
    facts = FACTS[:3]
    assert right(real, [fact.pair(fact.target) for fact in facts]) < 0.5
    editor = EDITORS[name].make(real, {}, silent)
    edit = editor.apply(facts)
    try:
        check(real, facts)
    finally:
        editor.remove(edit)


def check(model: LanguageModel, facts: Sequence[Fact]) -> None:
    """Facts are recalled, and what the model knows is not lost."""
    assert right(model, [fact.pair(fact.target) for fact in facts]) == 1
    # Fine-tuning does damage: of seven answers that the model knows, among them other capitals, three or four are left.
    others = [
        ("The sun rises in the", "east"),
        ("Water freezes at 0 degrees", "Celsius"),
        ("Shakespeare wrote Romeo and", "Juliet"),
        ("The opposite of hot is", "cold"),
    ]
    assert right(model, others) >= 0.5
