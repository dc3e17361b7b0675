"""benchmarks/lab_table.py: how runs of several seeds are pooled."""

from __future__ import annotations

import pytest

from errata.benchmark.sequence import EvaluationResult
from errata.evaluation.perplexity import Perplexity
from errata.results.metrics import Metric
from errata.results.records import Record

from benchmarks.lab_table import pooled_rows


def run(seed: int, loss: float) -> EvaluationResult:
    """Of a fact of its own, on the same four texts as the others."""
    records = [Record(f"fact {seed}", Metric.EFFICACY_ACCURACY, "prompt", 1.0, "said")]
    losses = tuple(-loss * (1 + text) for text in range(4))
    return EvaluationResult(records, Perplexity(losses, (10, 10, 10, 10)))


def test_a_text_of_several_seeds_is_one_cluster() -> None:
    before, after = [run(seed, 1.0) for seed in range(3)], [run(seed, 1.5) for seed in range(3)]
    rows = {(row["metric"], row["when"]): row for row in pooled_rows("memit", before, after, [(1.0, 2)])}
    assert rows[Metric.PERPLEXITY_RATIO, "after"]["n"] == 4
    alone = {(row["metric"], row["when"]): row for row in pooled_rows("memit", before[:1], after[:1], [(1.0, 2)])}
    for end in ("mean", "low", "high"):
        ratio = alone[Metric.PERPLEXITY_RATIO, "after"][end]  # type: ignore[literal-required]
        assert rows[Metric.PERPLEXITY_RATIO, "after"][end] == pytest.approx(ratio)  # type: ignore[literal-required]
    assert rows[Metric.EFFICACY_ACCURACY, "after"]["n"] == 3


def test_seconds_per_edit_count_the_facts_of_incomplete_batches() -> None:
    """90 facts in batches of 25."""
    batches = [(5.0, 25), (5.0, 25), (5.0, 25), (3.0, 15)]
    (row,) = [
        row
        for row in pooled_rows("memit", [run(0, 1.0)], [run(0, 1.0)], batches)
        if row["metric"] == Metric.SECONDS_PER_EDIT
    ]
    assert row["mean"] == pytest.approx(18 / 90)
