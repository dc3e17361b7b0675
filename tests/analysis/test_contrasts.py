"""Effects with intervals over facts: numbers by hand, and that facts are drawn in all cells at once."""

from __future__ import annotations

import random
from itertools import product
from statistics import harmonic_mean

import numpy as np
import pytest

from errata.analysis.factorial import Response, Sums, effects, parts_of_gain, response_of, value_of

SOURCES, LAYERS, HISTORY = ("spread", "computed"), ("both", "all"), ("on", "off")
CELLS = [
    dict(zip(("source", "layers", "history"), levels, strict=True)) for levels in product(SOURCES, LAYERS, HISTORY)
]
FACTS = [f"fact {number}" for number in range(30)]


def response(seed: int = 0, *, noise: float = 0.0) -> Response:
    """Facts of very different ease; the computed residual adds 0.2 to each, at both ends 0.1 more."""
    generator = random.Random(seed)
    ease = {fact: generator.random() for fact in FACTS}
    sums: list[list[Sums]] = []
    for cell in CELLS:
        added = 0.2 * (cell["source"] == "computed")
        added += 0.1 * (cell["source"] == "computed" and cell["layers"] == "both")
        sums.append([{fact: (2 * (ease[fact] + added + generator.gauss(0, noise)), 2.0) for fact in FACTS}])
    return response_of("efficacy", "share", CELLS, sums)


def test_a_difference_that_all_facts_share_has_no_doubt_though_each_mean_has() -> None:
    found = response()
    mean = found.row("mean", {}, found.mean_of(source="spread"))
    assert mean.low is not None
    assert mean.high is not None
    assert mean.high - mean.low > 0.1
    difference = found.row("difference", {}, found.mean_of(source="computed") - found.mean_of(source="spread"))
    assert (difference.low, difference.mean, difference.high) == pytest.approx((0.25, 0.25, 0.25))
    assert difference.n == len(FACTS)


def test_effects_are_those_by_hand() -> None:
    found = response(noise=0.05)
    rows = {
        (row.quantity, row.where["factor"], row.where["level"]): row
        for row in effects(found, ("source", "layers", "history"), {"design": "d"})
    }

    def mean(**levels: str) -> float:
        pairs = zip(CELLS, found.found, strict=True)
        return float(np.mean([value for cell, value in pairs if levels.items() <= cell.items()]))

    for factor, levels in (("source", SOURCES), ("layers", LAYERS), ("history", HISTORY)):
        for level in levels:
            expected = mean(**{factor: level}) - mean()
            assert rows["main effect", factor, level].mean == pytest.approx(expected, abs=1e-12)
        one, other = levels
        expected = mean(**{factor: other}) - mean(**{factor: one})
        assert rows["difference", factor, f"{other} minus {one}"].mean == pytest.approx(expected, abs=1e-12)
    together = mean(source="computed", layers="both")
    apart = mean(source="computed") + mean(layers="both") - mean()
    assert rows["interaction", "source × layers", "computed × both"].mean == pytest.approx(together - apart)
    assert rows["mean", "source × layers", "computed × both"].mean == pytest.approx(together)
    assert {row.unit for row in rows.values()} == {"share"}


def test_the_gain_is_taken_apart_without_a_rest() -> None:
    found = response()
    parts = {name: float(found.found @ weights) for name, weights in parts_of_gain(found).items()}
    assert parts["whole"] == pytest.approx(0.3)
    assert parts["source"] == pytest.approx(0.25)
    assert parts["layers"] == pytest.approx(0.05)
    assert parts["source"] + parts["layers"] == pytest.approx(parts["whole"])
    assert parts["source, at all layers"] == pytest.approx(0.2)
    assert parts["source, at both ends"] == pytest.approx(0.3)
    assert parts["layers, spread residual"] == pytest.approx(0, abs=1e-12)
    assert parts["layers, computed residual"] == pytest.approx(0.1)
    assert parts["interaction"] == pytest.approx(0.1)


def test_intervals_are_as_wide_as_the_standard_error_of_paired_differences_says() -> None:
    found = response(noise=0.2)
    weights = found.mean_of(source="computed") - found.mean_of(source="spread")
    row = found.row("difference", {}, weights)
    assert row.low is not None
    assert row.high is not None
    spread = float(np.std(found.resampled @ weights))
    assert row.high - row.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    # the standard error of a mean of paired differences: 0.2 · √(1/4 + 1/4) over the root of the facts
    assert spread == pytest.approx(0.2 * 0.5**0.5 / len(FACTS) ** 0.5, rel=0.35)


def test_a_score_is_the_harmonic_mean_drawn_for_all_three_at_once() -> None:
    parts: list[Sums] = [
        {"a": (1.0, 1.0), "b": (0.0, 1.0)},
        {"a": (2.0, 2.0), "b": (1.0, 2.0)},
        {"b": (1.0, 4.0)},  # the first fact has no neighbours
    ]
    cells = [{"source": "spread"}]
    found = response_of("score", "share", cells, [parts])
    assert found.found[0] == pytest.approx(harmonic_mean([0.5, 0.75, 0.25]))
    assert value_of(parts) == pytest.approx(found.found[0])
    assert found.clusters == 2
    drawn = {harmonic_mean([0.5, 0.75, 0.25]), 0.0}  # both facts, or the second twice (it was never recalled)
    assert {round(float(value), 9) for value in found.resampled[:, 0] if np.isfinite(value)} == {
        round(value, 9) for value in drawn
    }
    assert np.isnan(found.resampled[:, 0]).any()  # the first twice: no neighbour was asked


def test_cells_that_were_asked_other_things_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different prompts"):
        response_of("efficacy", "share", CELLS[:2], [[{"a": (1.0, 1.0)}], [{"a": (1.0, 2.0)}]])
    with pytest.raises(ValueError, match="no cells"):
        response().mean_of(source="replay")
