"""What an edit did, by hand: facts, control questions, and numbers that can show nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from errata.evaluation.outcomes import compare_records, no_room, unable_to_show
from errata.facts.fact import Fact
from errata.results.metrics import Metric
from errata.results.records import Record

FACTS = [
    Fact("a", "Rome", "{} is in", "Spain", old="Italy", paraphrases=("Where is Rome? In",)),
    Fact("b", "Oslo", "{} is in", "Spain", old="Norway", paraphrases=("Where is Oslo? In",)),
    Fact("c", "Bonn", "{} is in", "Spain"),
]
AFTER = [
    Record("a", Metric.EFFICACY_ACCURACY, "Rome is in", 1.0, "Spain"),
    Record("a", Metric.EFFICACY_SUCCESS, "Rome is in", 1.0, "Spain"),
    Record("a", Metric.GENERALISATION_ACCURACY, "Where is Rome? In", 0.0, "Italy"),
    Record("b", Metric.EFFICACY_ACCURACY, "Oslo is in", 0.0, "Norway"),
    Record("b", Metric.GENERALISATION_ACCURACY, "Where is Oslo? In", 0.0, "Norway"),
    Record("c", Metric.EFFICACY_ACCURACY, "Bonn is in", 1.0, "Spain"),
]


def test_each_fact_took_or_not_with_the_wordings_that_failed() -> None:
    outcome = compare_records(FACTS, None, AFTER)
    assert [fact.status for fact in outcome.facts] == ["partly", "failed", "took"]
    assert [[(w.prompt, w.own, w.said) for w in fact.failed] for fact in outcome.facts] == [
        [("Where is Rome? In", False, "Italy")],
        [("Oslo is in", True, "Norway"), ("Where is Oslo? In", False, "Norway")],
        [],
    ]
    assert outcome.controls == ()
    assert outcome.counts() == {}


def test_each_fact_says_whether_its_answer_was_known_before() -> None:
    before = [replace(record, value=float(record.prompt == "Bonn is in")) for record in AFTER]
    outcome = compare_records(FACTS, before, AFTER)
    assert [fact.known_before for fact in outcome.facts] == [False, False, True]
    record = outcome.to_record()["facts"]
    assert [fact["known_before"] for fact in record] == [False, False, True]
    assert [wording["before"] for wording in record[0]["wordings"]] == [False, False]
    assert all(fact["known_before"] is None for fact in compare_records(FACTS, None, AFTER).to_record()["facts"])


def test_a_mean_that_stays_hides_nothing() -> None:
    """One answer is lost and one is gained: the accuracy is what it was."""
    before = [Record("a", Metric.UNTOUCHED_ACCURACY, f"q{i}", float(i == 0), "x" if i == 0 else "y") for i in range(3)]
    after = [Record("a", Metric.UNTOUCHED_ACCURACY, f"q{i}", float(i == 1), "x" if i == 1 else "y") for i in range(3)]
    count = compare_records([], before, after).counts()["untouched"]
    assert (count.asked, count.known, count.lost, count.gained, count.changed) == (3, 1, 1, 1, 2)
    record = compare_records([], before, after).to_record()
    assert record["controls"] == {"untouched": {"asked": 3, "known": 1, "lost": 1, "gained": 1, "changed": 2}}
    assert [(q["before"], q["now"], q["changed"]) for q in record["control_questions"]] == [
        ("x", "y", True), ("y", "x", True), ("y", "y", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "before", "able"),
    [
        ("specificity_accuracy", 0.025, False),
        ("specificity_accuracy", 0.7, True),
        ("specificity_success", 0.05, False),
        ("untouched_accuracy:chat", 0.0, False),
        ("efficacy_accuracy", 0.0, True),
        ("efficacy_success", 0.95, False),
        ("generalisation_accuracy", 0.5, True),
        ("perplexity_ratio", 1.0, True),
    ],
)
def test_at_the_floor_nothing_can_fall_and_at_the_ceiling_nothing_can_rise(
    metric: str, before: float, able: bool
) -> None:
    assert (no_room(metric, before) is None) == able


def test_few_known_questions_show_little() -> None:
    before = [Record("a", Metric.SPECIFICITY_ACCURACY, f"q{i}", float(i < 2), "") for i in range(10)]
    assert list(unable_to_show(before)) == ["specificity_accuracy_known"]
    before = [Record("a", Metric.SPECIFICITY_ACCURACY, f"q{i}", float(i < 5), "") for i in range(10)]
    assert unable_to_show(before) == {}
