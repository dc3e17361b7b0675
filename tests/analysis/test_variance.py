"""The analysis of variance: against sums of squares by hand, and what it refuses."""

from __future__ import annotations

import random
from itertools import product

import pytest

from errata.analysis.factorial import analysis_of_variance
from errata.errors import MissingExtraError

from tests.reference.factorial import sums_of_squares

FACTORS = {"source": ("spread", "computed", "replay"), "layers": ("both", "all"), "history": ("on", "off")}


def observed(seeds: int = 2) -> list[dict[str, str]]:
    cells = [dict(zip(FACTORS, levels, strict=True)) for levels in product(*FACTORS.values())]
    return [cell | {"seed": str(seed)} for cell in cells for seed in range(seeds)]


def test_sums_of_squares_are_those_by_hand() -> None:
    observations, generator = observed(), random.Random(0)
    values = [
        generator.gauss(0, 0.1) + 0.5 * (entry["source"] == "computed") + 0.2 * int(entry["seed"])
        for entry in observations
    ]
    expected = sums_of_squares(observations, values, "seed")
    found = {term.name: term for term in analysis_of_variance(observations, values, block="seed")}
    assert list(found)[-1] == "residual"
    assert found.keys() == expected.keys()
    assert "seed × source" not in found
    for name, (squares, degrees, f, p) in expected.items():
        assert found[name].squares == pytest.approx(squares, rel=1e-9, abs=1e-12)
        assert found[name].degrees == degrees
        if name != "residual":
            assert found[name].f == pytest.approx(f, rel=1e-6, abs=1e-9)
            assert found[name].p == pytest.approx(p, rel=1e-6, abs=1e-12)
    assert sum(term.share for term in found.values()) == pytest.approx(1)
    assert found["source"].share == max(term.share for term in found.values())


def test_the_order_of_observations_does_not_matter() -> None:
    observations, generator = observed(), random.Random(1)
    values = [generator.random() for _ in observations]
    order = list(range(len(values)))
    generator.shuffle(order)
    found = analysis_of_variance(observations, values, block="seed")
    again = analysis_of_variance([observations[i] for i in order], [values[i] for i in order], block="seed")
    assert {term.name: term.squares for term in again} == pytest.approx({term.name: term.squares for term in found})


def test_a_factor_with_one_level_is_no_term_and_one_seed_no_block() -> None:
    observations = [entry for entry in observed(1) if entry["history"] == "on"]
    found = analysis_of_variance(observations, [float(index**2) for index in range(6)], block="seed")
    assert [term.name for term in found] == ["source", "layers", "source × layers", "residual"]
    assert found[-1].degrees == 0
    assert found[0].f is None  # nothing is left to compare with


def test_what_does_not_vary_has_no_table() -> None:
    assert analysis_of_variance(observed(), [0.3] * len(observed()), block="seed") == []


def test_an_incomplete_design_is_refused() -> None:
    observations = observed()
    with pytest.raises(ValueError, match="combinations of levels"):
        analysis_of_variance(observations[:-1], [0.0] * (len(observations) - 1), block="seed")
    several = [*observations, observations[0]]
    with pytest.raises(ValueError, match="combinations of levels"):
        analysis_of_variance(several, [0.0] * len(several), block="seed")


def test_without_statsmodels_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"errata\[analysis\]"):
        analysis_of_variance(observed(), [0.0] * 24, block="seed")
