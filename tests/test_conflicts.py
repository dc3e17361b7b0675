"""New facts that contradict or undo earlier ones."""

from __future__ import annotations

from dataclasses import replace

from errata.facts.conflicts import conflicts, without
from errata.facts.fact import Fact, FactSet

OLD = Fact("old", "Big Ben", "{} stands in", "Rome", truth="London")


def new(subject: str = "Big Ben", prompt: str = "{} stands in", target: str = "Paris") -> Fact:
    return Fact("new", subject, prompt, target)


def test_a_conflict_is_another_target_for_the_same_words() -> None:
    for fact, kind in (
        (new(), "contradicts"),
        (new(subject="big  ben"), "contradicts"),
        (new(subject="Ben", prompt="Big {} stands in"), "contradicts"),  # the same words, split elsewhere
        (new(target="London"), "undoes"),
        (new(target="rome"), None),
        (new(subject="The Eiffel Tower"), None),
        (new(prompt="{} is located in"), None),
    ):
        found = conflicts([fact], [("first", OLD)])
        assert len(found) == (kind is not None)
        for conflict in found:
            assert (conflict.fact, conflict.earlier, conflict.patch) == (fact, OLD, "first")
            assert conflict.undoes is (kind == "undoes")
            fault = conflict.fault("mine.jsonl:3")
            assert (fault.where, fault.code) == ("mine.jsonl:3", "FACT_CONFLICT")
            assert ("errata revert" in fault.remedy) is (kind == "undoes")


def test_only_the_latest_earlier_fact_counts() -> None:
    later = Fact("later", "Big Ben", "{} stands in", "Paris")
    assert not conflicts([new()], [("first", OLD), ("second", later)])
    back = new(target="Rome")
    assert conflicts([back], [("first", OLD), ("second", later)])[0].patch == "second"


def test_conflicting_facts_can_be_left_out() -> None:
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
