"""The scan of layers: its rule on curves with known answers, and what it does to a model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import errata.tracing.layer_scan
from errata.errors import ErrataError, InputError
from errata.evaluation.controls import facts_to_scan, known_facts
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel
from errata.models.weights import LowRankTerm
from errata.tracing.layer_scan import (
    LayerScore,
    ScanSettings,
    choose_layers,
    first_layers,
    further_layers,
    scan_layers,
    window_size,
)

from tests.support.errors import raises_code
from tests.support.tiny_models import tiny_model

FACTS = (
    Fact("a", "Danielle Darrieux", "The mother tongue of {} is", "Dutch", paraphrases=("Danielle Darrieux spoke",)),
    Fact("b", "The Eiffel Tower", "{} stands in", "Rome", own=(Question("The Eiffel Tower is", "big"),)),
)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.txt"
    path.write_text("The river runs through the city.\n\nThe piano is what she plays.\n\n" * 40, encoding="utf-8")
    return str(path)


def small(corpus: str) -> ScanSettings:
    return ScanSettings(steps=3, tokens=200, corpus=corpus)


# Harmonic means of efficacy and generalisation accuracy as measured on SmolLM2-135M-Instruct (30 blocks).
SMOLLM2 = {1: 0.504, 3: 0.547, 5: 0.509, 7: 0.487, 9: 0.429, 11: 0.286, 16: 0.1, 21: 0.05, 29: 0.0}


@pytest.mark.parametrize(
    ("scores", "depth", "layers"),
    [
        (SMOLLM2, 30, (5, 6, 7, 8, 9)),
        (SMOLLM2 | {2: 0.3}, 30, (5, 6, 7, 8, 9)),  # one layer's noise does not end the good ones
        ({0: 0.2, 1: 0.15, 2: 0.15, 3: 0.01, 7: 0.0}, 8, (0, 1, 2)),  # the lab's shape
        ({0: 1.0, 4: 0.0}, 8, (0, 1)),  # halfway to nothing is no good layer, a quarter of the way is
        ({0: 0.0, 10: 1.0, 20: 0.0}, 32, (9, 10, 11, 12, 13)),
        ({0: 0.1, 12: 0.9, 13: 0.2, 20: 0.9}, 24, (8, 9, 10, 11, 12)),  # later layers behind a real gap do not count
        ({0: 0.5, 1: 0.5, 2: 0.5}, 3, (2,)),
    ],
)
def test_the_rule_from_scores_to_layers(scores: dict[int, float], depth: int, layers: tuple[int, ...]) -> None:
    assert choose_layers(scores, depth).layers == layers


def test_without_a_layer_that_takes_edits_none_is_chosen() -> None:
    for scores in ({}, {0: 0.0, 4: -0.2}, {0: math.nan, 4: 0.5}):
        with raises_code("NO_LAYERS_FOUND", ErrataError):
            choose_layers(scores, 8)


@pytest.mark.parametrize(("depth", "size"), [(1, 1), (4, 2), (8, 3), (16, 5), (18, 5), (30, 5), (80, 5)])
def test_deep_models_get_five_layers_and_shallow_ones_fewer(depth: int, size: int) -> None:
    assert window_size(depth) == size


def test_refinement_looks_beside_the_best_and_at_the_end_of_the_good_layers() -> None:
    assert first_layers(30, None) == [0, 4, 8, 12, 16, 20, 24, 28]
    scores = dict.fromkeys(first_layers(30, None), 0.0) | {4: 0.55, 8: 0.45, 12: 0.2}
    more = further_layers(scores, 30)
    assert {9, 10, 11} <= set(more), "where the score falls"
    assert set(more) & {1, 2, 3} and set(more) & {5, 6, 7}, "on both sides of the best"  # noqa: PT018
    assert not set(more) & set(scores)
    assert further_layers(dict.fromkeys(range(8), 0.1), 8) == []


def test_the_score_is_the_harmonic_mean_less_the_share_that_is_damaged() -> None:
    row = LayerScore(0, efficacy=0.6, generalisation=0.3, damage=None, accuracy=(1.0, 0.5))
    assert row.score == pytest.approx(0.4)
    assert replace(row, damage=0.25).score == pytest.approx(0.3)
    assert LayerScore(0, 0.0, 0.0, None, (0.0, 0.0)).score == 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_a_scan_measures_layers_and_leaves_the_model_as_it_was(family: str, corpus: str) -> None:
    model = LanguageModel(*tiny_model(family))
    before = model.fingerprint()
    updates: list[tuple[int, int]] = []
    found = scan_layers(model, FACTS, small(corpus), report=lambda what, done, total: updates.append((done, total)))
    assert model.fingerprint() == before
    assert not model.edits.terms
    assert [row.layer for row in found.scores] == [0, 1, 2, 3, 4]
    assert (found.facts, found.controls, found.paraphrased, found.depth) == (2, 1, True, 5)
    assert all(0 <= value <= 1 for row in found.scores for value in (row.efficacy, row.generalisation, row.damage or 0))
    assert len({row.efficacy for row in found.scores}) > 1, "layers differ"
    assert updates[-1][0] == updates[-1][1]
    assert [done for done, _ in updates] == sorted(done for done, _ in updates), "it never goes back"
    again = scan_layers(model, FACTS, small(corpus))
    assert again.scores == found.scores


def test_without_its_patches_a_model_is_scanned_as_if_it_had_none(corpus: str) -> None:
    model = LanguageModel(*tiny_model("llama"))
    of_base = scan_layers(model, FACTS, small(corpus))
    generator = torch.Generator().manual_seed(0)
    rows, columns = model.weight(1).shape
    patch = [
        LowRankTerm(layer, torch.randn(rows, 1, generator=generator), torch.randn(1, columns, generator=generator))
        for layer in (1, 3)
    ]
    model.edits.add(patch)
    before = model.fingerprint()
    assert scan_layers(model, FACTS, small(corpus)).scores != of_base.scores
    with model.edits.without(patch):
        assert scan_layers(model, FACTS, small(corpus)).scores == of_base.scores
    assert model.fingerprint() == before
    assert model.edits.terms == patch


def test_an_edit_at_a_good_layer_raises_the_targets_probability(corpus: str) -> None:
    model = LanguageModel(*tiny_model("llama"))
    none = scan_layers(model, FACTS, replace(small(corpus), steps=1))
    some = scan_layers(model, FACTS, replace(small(corpus), steps=10))
    gains = [b.efficacy - a.efficacy for a, b in zip(none.scores, some.scores, strict=True)]
    assert max(gains) > 0
    # One evaluation writes nothing. Questions are scored in other batches than before, so there is float32 rounding.
    assert all(row.damage == pytest.approx(0, abs=1e-5) for row in none.scores)


def test_a_layer_that_gives_no_numbers_takes_no_edits_and_the_scan_continues(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LanguageModel(*tiny_model("llama"))
    before = model.fingerprint()
    search = errata.tracing.layer_scan.find_targets

    def overflowing(
        model: LanguageModel, facts: list[Fact], prefixes: object, layer: int, *rest: Any, **more: Any
    ) -> Any:
        found = search(model, facts, prefixes, layer, *rest, **more)
        return replace(found, delta=found.delta * math.inf) if layer == 2 else found

    monkeypatch.setattr(errata.tracing.layer_scan, "find_targets", overflowing)
    found = scan_layers(model, FACTS, small(corpus))
    assert [row.score for row in found.scores if row.layer == 2] == [0]
    assert all(row.score > 0 for row in found.scores if row.layer != 2)
    assert model.fingerprint() == before


def test_facts_and_questions_are_asked_with_their_own_joiners(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    real = errata.tracing.layer_scan.score

    def recording(model: LanguageModel, pairs: list[tuple[str, ...]], **options: Any) -> Any:
        asked.extend(pairs)
        return real(model, pairs, **options)

    monkeypatch.setattr(errata.tracing.layer_scan, "score", recording)
    fact = Fact("a", "Danielle Darrieux", "The mother tongue of {} is (", "Dutch", joiner="",
                unrelated=(Question("The river-", "side", ""),))  # fmt: skip
    scan_layers(LanguageModel(*tiny_model("gpt2")), [fact], small(corpus))
    assert {pair[2:] for pair in asked} == {("",)}


def test_facts_without_other_wordings_are_measured_in_contexts(corpus: str) -> None:
    model = LanguageModel(*tiny_model("gpt2"))
    found = scan_layers(model, [replace(fact, paraphrases=(), own=()) for fact in FACTS], small(corpus))
    assert not found.paraphrased
    assert all(row.damage is None for row in found.scores)
    assert {row.generalisation for row in found.scores} != {row.efficacy for row in found.scores}


def test_a_scan_reads_a_short_text_to_its_end(corpus: str) -> None:
    model = LanguageModel(*tiny_model("gpt2"))
    found = scan_layers(model, FACTS, replace(small(corpus), tokens=100_000))
    assert [row.layer for row in found.scores] == [0, 1, 2, 3, 4]
    assert all(row.efficacy > 0 for row in found.scores)


def test_a_scan_needs_facts() -> None:
    with raises_code("FACTS_MISSING", InputError):
        scan_layers(LanguageModel(*tiny_model("gpt2")), [])


def test_the_well_known_facts_hold_together() -> None:
    facts = known_facts()
    assert len(facts) >= 80
    assert all(fact.old and fact.target != fact.old for fact in facts)
    assert all(fact.subject in text for fact in facts for text in fact.paraphrases)
    by_relation: dict[str | None, set[str | None]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, set()).add(fact.old)
    assert all(fact.target in by_relation[fact.relation] for fact in facts), "a target is another fact's answer"


def test_no_subject_is_both_edited_and_asked_about() -> None:
    facts = facts_to_scan(LanguageModel(*tiny_model("llama")), 12)
    assert len(facts) == len({fact.subject for fact in facts}) == 12
    asked = [question.prompt for fact in facts for question in fact.neighbours]
    assert not any(fact.unrelated for fact in facts), "they are of the same relation"
    assert not any(fact.subject in prompt for fact in facts for prompt in asked)
