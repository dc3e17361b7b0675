"""What became of the answers to control questions, counted by hand."""

from __future__ import annotations

import pytest

from errata.evaluation.outcomes import absent_changes, change_records, changes, derived
from errata.results.metrics import CONTROLS, Metric
from errata.results.records import Record, summarise

NEAR = Metric.SPECIFICITY_ACCURACY


def asked(said: dict[tuple[str, str], str], right: str = "Paris", metric: str = NEAR) -> list[Record]:
    return [Record(fact, metric, prompt, float(text == right), text) for (fact, prompt), text in said.items()]


# Of five questions two are known: one of them is lost. One is gained. One that was wrong is another wrong answer now.
BEFORE = asked({("f", "a"): "Paris", ("f", "b"): "Paris", ("f", "c"): "Rome", ("g", "d"): "Rome", ("g", "e"): "Rome"})
AFTER = asked({("f", "a"): "Paris", ("f", "b"): "Rome", ("f", "c"): "Paris", ("g", "d"): "Oslo", ("g", "e"): "Rome"})


def values(records: list[Record]) -> dict[str, tuple[float, int, int]]:
    return {found.metric: (found.mean, found.n, found.prompts) for found in summarise(records, "after")}


def test_lost_gained_and_changed_by_hand() -> None:
    assert values(change_records(BEFORE, AFTER)) == {
        "specificity_accuracy_known": (1 / 2, 1, 2),  # of two questions, both of one fact
        "specificity_lost": (1 / 5, 2, 5),
        "specificity_gained": (1 / 5, 2, 5),
        "specificity_changed": (3 / 5, 2, 5),  # 40 % were right before, and 40 % are now
    }


def test_of_the_unedited_model_all_known_are_right_and_nothing_changed() -> None:
    found = values(change_records(BEFORE, BEFORE))
    assert {metric: mean for metric, (mean, *_) in found.items()} == {
        "specificity_accuracy_known": 1.0,
        "specificity_lost": 0.0,
        "specificity_gained": 0.0,
        "specificity_changed": 0.0,
    }


def test_other_metrics_are_no_control_questions() -> None:
    others = asked({("f", "a"): "Rome"}, metric=Metric.EFFICACY_ACCURACY)
    assert change_records(others, others) == []


def test_variants_keep_their_name() -> None:
    chat = asked({("f", "a"): "Paris"}, metric=f"{Metric.UNTOUCHED_ACCURACY}:chat")
    assert {record.metric for record in change_records(chat, chat)} == {
        f"untouched_{name}:chat" for name in ("accuracy_known", "lost", "gained", "changed")
    }


def test_only_what_was_asked_both_times_is_compared() -> None:
    part = [record for record in AFTER if record.fact == "g"]
    assert [(change.before.prompt, change.known) for change in changes(BEFORE, part)] == [("d", False), ("e", False)]
    new = asked({("h", "z"): "Paris"})
    assert change_records(BEFORE, new) == []


def test_a_prompt_that_is_asked_twice_is_compared_in_order() -> None:
    """A fact may ask one prompt with two right answers."""
    twice = [Record("f", NEAR, "a", 1.0, "Paris"), Record("f", NEAR, "a", 0.0, "Paris")]
    assert values(change_records(twice, twice))["specificity_accuracy_known"] == (1.0, 1, 1)
    assert values(change_records(twice, twice))["specificity_changed"] == (0.0, 1, 2)


@pytest.mark.parametrize("accuracy", CONTROLS)
def test_absent_with_its_reason_where_nothing_is_known_or_nothing_was_compared(accuracy: str) -> None:
    wrong = asked({("f", "a"): "Rome"}, metric=accuracy)
    right = asked({("f", "a"): "Paris"}, metric=accuracy)
    known, *others = derived(accuracy)
    missing = absent_changes(wrong, {})
    assert list(missing) == [known]
    assert "correctly" in missing[known]
    assert known not in {record.metric for record in change_records(wrong, right)}
    assert absent_changes(right, {}) == {}
    assert set(derived(accuracy)) <= absent_changes(None, {}).keys()
    assert absent_changes([], {accuracy: "none were given"}) == dict.fromkeys((known, *others), "none were given")
