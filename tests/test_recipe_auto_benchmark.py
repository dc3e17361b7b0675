"""benchmarks/recipe_auto.py: what two recipes did to the same prompts, compared."""

from __future__ import annotations

import pytest

from errata.results.metrics import Metric
from errata.results.records import Record

from benchmarks.common import points
from benchmarks.recipe_auto import compared


def records(values: list[list[float]], metric: str = Metric.EFFICACY_ACCURACY) -> list[Record]:
    """Of facts with some prompts each."""
    return [
        Record(f"fact {number}", metric, f"prompt {place}", float(value), "said")
        for number, answers in enumerate(values)
        for place, value in enumerate(answers)
    ]


def test_differences_are_means_over_prompts_and_kinds_that_nobody_asked_have_no_row() -> None:
    rows = compared(records([[1, 1], [0]]), records([[1, 0], [1]]))
    assert [row["metric"] for row in rows] == [Metric.EFFICACY_ACCURACY]
    assert (rows[0]["tuned"], rows[0]["automatic"], rows[0]["difference"]) == pytest.approx((2 / 3, 2 / 3, 0))
    rows = compared(records([[0]] * 4), records([[1]] * 4))
    assert (rows[0]["difference"], rows[0]["low"], rows[0]["high"]) == (1, 1, 1)


def test_runs_of_other_prompts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="prompts"):
        compared(records([[1, 1], [0]]), records([[1], [1, 0]]))


def test_a_difference_of_one_fact_has_no_interval() -> None:
    (row,) = compared(records([[0]]), records([[1]]))
    assert (row["difference"], row["low"], row["high"]) == (1, None, None)
    assert points(row["difference"], row["low"], row["high"]) == "+100.0"
    assert points(0.015, 0.002, 0.029) == "+1.5 [+0.2, +2.9]"
