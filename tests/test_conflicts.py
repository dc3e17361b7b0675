"""New facts against earlier ones: what contradicts, what undoes, what is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from errata.facts.conflicts import conflicts, without
from errata.facts.fact import Fact, FactSet

OLD = Fact("old", "Big Ben", "{} stands in", "Rome", truth="London")


def new(subject: str = "Big Ben", prompt: str = "{} stands in", target: str = "Paris") -> Fact:
    return Fact("new", subject, prompt, target)


@pytest.mark.parametrize(
    ("fact", "found"),
    [
        (new(), "contradicts"),
        (new(subject="big  ben"), "contradicts"),
        (new(subject="Ben", prompt="Big {} stands in"), "contradicts"),  # the same words, cut elsewhere
        (new(target="London"), "undoes"),
        (new(target="rome"), None),
        (new(subject="The Eiffel Tower"), None),
        (new(prompt="{} is located in"), None),
    ],
)
def test_a_conflict_is_another_target_for_the_same_words(fact: Fact, found: str | None) -> None:
    clashing = conflicts([fact], [("first", OLD)])
    assert len(clashing) == (found is not None)
    if clashing:
        assert (clashing[0].fact, clashing[0].earlier, clashing[0].patch) == (fact, OLD, "first")
        assert clashing[0].undoes is (found == "undoes")
        fault = clashing[0].fault("mine.jsonl:3")
        assert fault.where == "mine.jsonl:3"
        assert "'first'" in fault.what
        assert ("errata revert" in fault.remedy) is (found == "undoes")


def test_only_what_was_said_last_counts() -> None:
    later = Fact("later", "Big Ben", "{} stands in", "Paris")
    assert not conflicts([new()], [("first", OLD), ("second", later)])
    back = new(target="Rome")
    assert conflicts([back], [("first", OLD), ("second", later)])[0].patch == "second"


def test_what_clashes_can_be_left_out() -> None:
    other = Fact("other", "Italy", "The capital of {} is", "Lisbon")
    facts = FactSet((new(), other), "mine.jsonl", ("mine.jsonl:1", "mine.jsonl:2"))
    left = without(facts, conflicts(facts, [("first", OLD)]))
    assert left.facts == (other,)
    assert left.places == ("mine.jsonl:2",)


def test_spellings_of_one_name_are_one_name() -> None:
    old = Fact("old", "Andr\u00e9", "{} lives in caf\u00e9", "Rome")
    new = Fact("new", "Andre\u0301", "{} lives in cafe\u0301", "Oslo")
    assert [conflict.fact for conflict in conflicts([new], [("first", old)])] == [new]
    assert conflicts([replace(new, target="Rome")], [("first", old)]) == []
