"""Results of measurements, and what is absent from them."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest

from errata.benchmark import measurements
from errata.benchmark.measurements import PERPLEXITY, MeasurementInputs, MeasurementResult, run_ability
from errata.evaluation.ability import AbilityResults, TaskMetric, TaskResult
from errata.utils.progress import silent


def test_numbers_that_are_not_finite_are_absent_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"perplexity_{index}" for index in range(12)]
    metrics = {name: TaskMetric(math.inf, None, 3) for name in names} | {"f1": TaskMetric(0.5, None, 3)}
    results = AbilityResults({"task": TaskResult("", metrics, ())}, {"ability:other": "no reason"})
    monkeypatch.setattr(measurements, "measure_ability", lambda *_, **__: results)
    missing: Any = None
    inputs = MeasurementInputs(missing, missing, {"tasks": ["task"]}, 0, None, nullcontext, silent)
    found = run_ability(inputs)
    assert list(found.absent) == ["ability:other", *(f"ability:task:{name}" for name in names)]
    assert found.extra["values"] == {"ability:task:f1": [0.5, 3]}


WHOLE = MeasurementResult([], {"perplexity": {"log_likelihoods": [-1.0], "counts": [2]}}, {}, 1.0)


@pytest.mark.parametrize(
    "extra", [{"labels": {"m": {"s": [0]}}}, {"labels": []}, {"values": {"m": ["much", 1]}}, {"perplexity": {}}]
)
def test_values_that_summaries_cannot_read_are_damage(extra: dict[str, Any]) -> None:
    record = WHOLE.to_record()
    assert MeasurementResult.of(record, PERPLEXITY.extra) == WHOLE
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        MeasurementResult.of({**record, "kept": extra})


def test_a_perplexity_must_be_in_its_own_result() -> None:
    record = {**WHOLE.to_record(), "kept": {}}
    assert MeasurementResult.of(record).extra == {}
    with pytest.raises(KeyError, match="perplexity"):
        MeasurementResult.of(record, PERPLEXITY.extra)
