"""Study ``single-layer``: against an editor with a one-step plan of its own, and what must be the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from errata.analysis.single_layer import KINDS, SINGLE_LAYER, difference_row, single_layer_runs, step_of
from errata.editing.schedules import Step
from errata.errors import FaultsError
from errata.evaluation.perplexity import perplexity
from errata.results.records import Record

from tests.reference.factorial import answers_of
from tests.support.bench import ASKED, PROSE, UNTOUCHED
from tests.support.editing import assert_same_bits, parameter_bits
from tests.support.study_context import done, tiny_context

FACTS = ASKED[:3]
PLANS = {
    (1, "spread"): Step(1, 3, 1 / 3),
    (2, "spread"): Step(2, 3, 1 / 2),
    (1, "sqrt-spread"): Step(1, 3, 1 / 3**0.5),
    (1, "undivided"): Step(1, 3, 1.0),
    (2, "computed"): Step(2, 2, 1.0),
    (3, "computed"): Step(3, 3, 1.0),
}


def test_the_steps_are_those_of_the_schedules() -> None:
    for (layer, kind), step in PLANS.items():
        assert step_of(kind, layer, (1, 2, 3)) == step
    assert len(single_layer_runs((1, 2, 3))) == 2 * len(KINDS) + 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_number_is_what_an_editor_of_its_own_gives(tmp_path: Path, family: str) -> None:
    context = tiny_context(tmp_path, family, facts=FACTS)
    bits = parameter_bits(context.model)
    result = done(SINGLE_LAYER, context, tmp_path / "out")
    assert_same_bits(parameter_bits(context.model), bits)
    rows = {(row.where.get("layer"), row.where["residual"], row.quantity): row for row in result.findings.rows}
    before = perplexity(context.model, PROSE).value
    for (layer, kind), step in PLANS.items():
        expected = answers_of(context.model, context.recipe, FACTS, UNTOUCHED, tmp_path / "cache", [step])
        assert {"efficacy_success", "specificity_accuracy", "untouched_accuracy"} <= expected.keys()
        for metric, facts in expected.items():
            values = [value for found in facts.values() for value in found]
            assert rows[layer, kind, metric].mean == pytest.approx(sum(values) / len(values))
            assert rows[layer, kind, metric].n == len(facts)
        assert rows[layer, kind, "perplexity_ratio"].mean != 1
        assert rows[layer, kind, "perplexity_ratio"].unit == "1"
    assert rows[None, "none, unedited", "perplexity_ratio"].mean == 1
    assert perplexity(context.model, PROSE).value == before
    # At the last layer all residuals are one run; before it the residuals differ, and so does what they do.
    for metric in ("efficacy_success", "perplexity_ratio", "untouched_accuracy"):
        assert len({rows[3, kind, metric].mean for kind in KINDS}) == 1
    assert len({rows[1, kind, "perplexity_ratio"].mean for kind in KINDS}) == len(KINDS)
    difference = rows[2, "computed minus spread", "efficacy_accuracy, difference"]
    apart = rows[2, "computed", "efficacy_accuracy"].mean - rows[2, "spread", "efficacy_accuracy"].mean
    assert difference.mean == pytest.approx(apart)
    assert not any("at layer 3" in name for name in result.findings.undefined)  # they have rows
    assert sum("higher efficacy than the spread one" in claim.text for claim in result.findings.claims) == 2
    (figure,) = result.findings.figures
    assert [panel.title for panel in figure.panels] == ["Efficacy", "Generalisation", "Specificity", "Untouched"]
    assert {len(series.x) for panel in figure.panels for series in panel.series} == {0, 3}
    for panel in figure.panels:
        (level,) = [series for series in panel.series if not series.x]
        assert level.label == "unedited"
        assert level.y == [rows[None, "none, unedited", f"{panel.title.lower()}_accuracy"].mean]


def test_further_measurements_and_a_study_that_is_resumed_elsewhere(tmp_path: Path) -> None:
    measures = {"parts": ("free", "drift", "side"), "options": {"free": {"settings": {"new_tokens": 3}}}}
    context = tiny_context(tmp_path, facts=FACTS, measures=measures, recipe={"layers": (1, 3)})
    result = done(SINGLE_LAYER, context, tmp_path / "out")
    found = {row.quantity.partition(":")[0]: row for row in result.findings.rows}
    assert {"free_efficacy_contained", "free_locality_neighbours", "drift_kl_untouched", "negation_accuracy"} <= set(
        found
    )
    assert found["drift_kl_untouched"].unit == "nats"
    # Another process, which has not asked the unedited model, gives a piece the same.
    path = tmp_path / "out" / "pieces" / "seed-0-layer-1-computed.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["kept"]
    again = {piece.name: piece for piece in SINGLE_LAYER.tasks(context)}["seed-0-layer-1-computed"]
    assert json.loads(json.dumps(again.work())) == kept


def record(fact: str, prompt: str, value: float) -> Record:
    return Record(fact, "specificity_accuracy", prompt, value, "")


def test_differences_are_paired_over_facts() -> None:
    ones = [record("a", "1", 1.0), record("a", "2", 1.0), record("b", "3", 0.0), record("b", "4", 1.0)]
    others = [record(one.fact, one.prompt, one.value - 0.25) for one in ones]
    row = difference_row("specificity_accuracy", {"layer": 1}, ones, others)
    assert (row.low, row.mean, row.high, row.n) == (0.25, 0.25, 0.25, 2)
    with pytest.raises(ValueError, match="different prompts"):
        difference_row("specificity_accuracy", {}, ones, others[:-1])


def test_measurements_that_cannot_be_made_are_refused_before_any_work(tmp_path: Path) -> None:
    measures: Mapping[str, Any] = {"parts": ("free",), "options": {"drift": {"x": 1}}}
    context = tiny_context(tmp_path, facts=FACTS, measures=measures)
    with pytest.raises(FaultsError, match="measurement that is not made"):
        SINGLE_LAYER.check(context.recipe, context.settings)


def test_numbers_that_are_no_means_over_samples_are_rows_too(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, facts=FACTS, recipe={"layers": (1, 3)})
    done(SINGLE_LAYER, context, tmp_path / "out")
    kept: dict[str, Any] = {}
    for path in sorted((tmp_path / "out" / "pieces").glob("*.json")):
        piece = json.loads(path.read_text(encoding="utf-8"))["kept"]
        own = 0.25 if "layer" in piece else 0.75
        labels = {"0": [1, 1], "1": [0, 0] if own == 0.75 else [0, 1]}
        more = {"values": {"ability:task:bits": [own, 7]}, "labels": {"ability:probe:f1": labels}}
        kept[path.stem] = piece | {
            "answers": piece["answers"] | {"ability": {"records": [], "absent": {}, "kept": more}}
        }
    rows = SINGLE_LAYER.findings(context.settings, kept).rows
    found = {(row.where["residual"], row.where.get("layer"), row.quantity): row for row in rows}
    assert found["none, unedited", None, "ability:task:bits"].mean == 0.75
    assert found["spread", 1, "ability:task:bits"].mean == 0.25
    assert (found["spread", 1, "ability:task:bits"].low, found["spread", 1, "ability:task:bits"].unit) == (None, "1")
    assert found["none, unedited", None, "ability:probe:f1"].mean == 1.0
    assert found["spread", 1, "ability:probe:f1"].mean < 1.0
