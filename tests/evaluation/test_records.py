"""Summaries against hand-worked and brute-force versions; the results file."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from errata.errors import InputError
from errata.results.metrics import Metric
from errata.results.records import (
    Record,
    Row,
    Summary,
    read_results,
    summarise,
    summarise_groups,
    to_long,
    write_results,
)

from tests.support.errors import raises_code


def record(fact: str, value: float, metric: str = Metric.EFFICACY_SUCCESS, prompt: str = "p") -> Record:
    return Record(fact, metric, prompt, float(value), "said")


def test_the_mean_is_over_prompts_and_n_counts_facts() -> None:
    records = [record("a", 1), record("a", 1), record("a", 0), record("b", 0)]
    (summary,) = summarise(records, "after")
    assert (summary.metric, summary.when) == (Metric.EFFICACY_SUCCESS, "after")
    assert (summary.mean, summary.n, summary.prompts) == (0.5, 2, 4)


def test_prompts_of_a_fact_are_drawn_together() -> None:
    # Of two facts, one draw in four is twice the first and one in four twice the second, however many prompts.
    records = [record("a", 1)] * 50 + [record("b", 0)] * 50
    (summary,) = summarise(records, "after")
    assert (summary.low, summary.high) == (0.0, 1.0)


def test_the_interval_is_that_of_a_slow_bootstrap() -> None:
    generator = random.Random(5)
    facts = {f"fact {index}": [float(generator.random() < 0.7) for _ in range(1 + index % 4)] for index in range(40)}
    records = [record(fact, value) for fact, values in facts.items() for value in values]
    (summary,) = summarise(records, "after", seed=3, resamples=20_000)
    means = []
    for _ in range(20_000):
        drawn = [value for fact in generator.choices(list(facts), k=len(facts)) for value in facts[fact]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    assert summary.low == pytest.approx(means[500], abs=0.012)
    assert summary.high == pytest.approx(means[19_500], abs=0.012)


def test_the_interval_has_the_width_that_theory_says() -> None:
    records = [record(str(index), float(index % 2)) for index in range(400)]
    (summary,) = summarise(records, "after", resamples=4000)
    assert summary.low is not None
    assert summary.high is not None
    assert summary.high - summary.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.08)


def test_the_same_seed_gives_the_same_interval_whatever_else_there_is() -> None:
    records = [record(str(index), float(index % 3 == 0)) for index in range(30)]
    other = [record(f"u{index}", 1.0, Metric.UNTOUCHED_ACCURACY) for index in range(7)]
    (alone,) = summarise(records, "after", seed=1)
    assert summarise([*other, *records], "after", seed=1)[0] == alone
    assert summarise(records, "after", seed=2)[0] != alone
    assert summarise(records, "after", seed=1) == [alone]


def test_a_single_fact_has_no_interval() -> None:
    (summary,) = summarise([record("a", 1), record("a", 0)], "before")
    assert (summary.mean, summary.low, summary.high, summary.n) == (0.5, None, None, 1)


def test_many_facts_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(str(index), float(index % 2)) for index in range(50)]
    monkeypatch.setattr("errata.results.records._DRAWS_AT_ONCE", 500)
    (in_parts,) = summarise(records, "after")
    monkeypatch.undo()
    assert summarise(records, "after") == [in_parts]


def three_successes(efficacy: float, generalisation: float, specificity: float, fact: str = "a") -> list[Record]:
    return [
        record(fact, efficacy, Metric.EFFICACY_SUCCESS),
        record(fact, generalisation, Metric.GENERALISATION_SUCCESS),
        record(fact, specificity, Metric.SPECIFICITY_SUCCESS),
    ]


def test_the_score_is_the_harmonic_mean_of_the_three() -> None:
    summaries = summarise([*three_successes(1, 1, 0), *three_successes(1, 0, 1, "b")], "after")
    assert [summary.metric for summary in summaries] == [
        Metric.EFFICACY_SUCCESS,
        Metric.GENERALISATION_SUCCESS,
        Metric.SPECIFICITY_SUCCESS,
        Metric.SCORE,
    ]
    assert summaries[-1].mean == pytest.approx(3 / (1 + 2 + 2))
    # Twice the same fact is one draw in two, and has a mean of 0 among the three.
    assert (summaries[-1].low, summaries[-1].high) == pytest.approx((0.0, 0.6))
    assert summaries[-1].n == 2
    assert summarise(three_successes(1, 0, 1), "after")[-1].mean == 0.0


def test_the_score_draws_the_same_facts_for_all_three() -> None:
    # Facts are all good or all bad, so the three means are the same in every draw, and the score is each of them.
    records = []
    for index in range(20):
        mean = float(index % 2)
        records += three_successes(mean, mean, mean, str(index))
    *successes, score = summarise(records, "after")
    for summary in successes:
        assert (summary.mean, summary.low, summary.high) == pytest.approx((score.mean, score.low, score.high))


def test_without_one_of_the_three_there_is_no_score() -> None:
    assert [summary.metric for summary in summarise(three_successes(1, 1, 1)[:2], "after")] == [
        Metric.EFFICACY_SUCCESS,
        Metric.GENERALISATION_SUCCESS,
    ]
    assert summarise([], "after") == []


def test_seconds_of_batches() -> None:
    summary = summarise_groups(Metric.SECONDS_PER_EDIT, "after", [10.0, 30.0], [25, 25])
    assert (summary.mean, summary.n) == (0.8, 50)
    assert (summary.low, summary.high) == pytest.approx((0.4, 1.2))
    with pytest.raises(ValueError, match="no groups"):
        summarise_groups(Metric.SECONDS_PER_EDIT, "after", [], [])


def test_the_long_form_has_exactly_these_keys() -> None:
    (row,) = to_long("memit", [Summary(Metric.UNTOUCHED_ACCURACY, "right_after", 0.5, 0.25, None, 7, 9)])
    assert list(row) == ["method", "metric", "when", "mean", "low", "high", "n"]
    assert json.loads(json.dumps(row)) == {
        "method": "memit",
        "metric": "untouched_accuracy",
        "when": "right_after",
        "mean": 0.5,
        "low": 0.25,
        "high": None,
        "n": 7,
    }
    assert type(row["metric"]) is str


ROW = Row(method="memit", metric="score", when="after", mean=0.5, low=None, high=1.0, n=3)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    about = {"command": "errata …", "absent": {"score": "no 'truth'"}}
    write_results(tmp_path / "new" / "results.json", [ROW], about)
    found = read_results(tmp_path / "new" / "results.json")
    assert (found.rows, found.about) == ((ROW,), about)
    assert json.loads((tmp_path / "new" / "results.json").read_text("utf-8"))["format"] == "errata-results-1"


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path / "results.json", [{**ROW, "mean": math.nan}], {})
    assert list(tmp_path.iterdir()) == []


def test_damaged_results_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    whole = {"format": "errata-results-1", "about": {}, "rows": [ROW]}
    for text, code in (
        ("{", "JSON_INVALID"),
        ("[]", "FILE_WRONG_FORMAT"),
        (json.dumps({**whole, "format": "other"}), "FILE_WRONG_FORMAT"),
        ('{"format": "errata-results-1", "rows": []}', "RESULTS_DAMAGED"),
        *(
            (json.dumps({**whole, "rows": [ROW, row]}), "RESULTS_DAMAGED")
            for row in ({}, {**ROW, "when": "later"}, {**ROW, "mean": "1"})
        ),
    ):
        path.write_text(text, encoding="utf-8")
        with raises_code(code, InputError):
            read_results(path)
    path.write_text(json.dumps(whole), encoding="utf-8")
    assert len(read_results(path).rows) == 1


def test_a_missing_results_file_is_refused(tmp_path: Path) -> None:
    with raises_code("JSON_INVALID", InputError):
        read_results(tmp_path / "none.json")
