"""Selection of facts: against a slow, obvious implementation, and for files that contradict themselves."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.datasets.reading import read_dataset, select
from errata.datasets.records import RecordContents
from errata.errors import InputError
from errata.facts.fact import Fact, Question, clashes

from tests.datasets import records
from tests.datasets.records import mquake, written


def unit(number: int, *said: tuple[str, str]) -> RecordContents:
    facts = tuple(
        Fact(id=f"{number}.{place}", subject=subject, prompt="{} is", target=target)
        for place, (subject, target) in enumerate(said)
    )
    return RecordContents(f"record {number}", facts, (Question(f"question {number}", "answer"),))


UNITS = [unit(number, (f"subject {number}", "x")) for number in range(30)]


def test_the_files_order_is_kept_without_a_seed() -> None:
    assert [fact.id for fact in select(UNITS, count=3, seed=None, source="f").facts] == ["0.0", "1.0", "2.0"]
    assert len(select(UNITS, count=None, seed=None, source="f").facts) == 30


def test_a_seed_shuffles_and_a_smaller_selection_begins_a_larger_one() -> None:
    order = list(range(30))
    random.Random(7).shuffle(order)
    whole = select(UNITS, count=None, seed=7, source="f")
    assert [fact.id for fact in whole.facts] == [f"{number}.0" for number in order]
    assert whole.places == [f"record {number}" for number in order]
    for count in (1, 4, 29):
        assert select(UNITS, count=count, seed=7, source="f").facts == whole.facts[:count]
    assert select(UNITS, count=None, seed=8, source="f").facts != whole.facts


def test_impossible_counts_are_refused() -> None:
    for count in (0, -1, 31):
        with pytest.raises(InputError) as error:
            select(UNITS, count=count, seed=None, source="f")
        assert error.value.code == "DATASET_COUNT"


def test_the_first_of_clashing_records_is_selected_and_the_others_are_counted() -> None:
    units = [unit(0, ("a", "x")), unit(1, ("a", "x")), unit(2, ("a", "y")), unit(3, ("b", "x")), unit(4, ("b", "z"))]
    selected = select(units, count=None, seed=None, source="f")
    assert [fact.id for fact in selected.facts] == ["0.0", "3.0"]
    repeating, contradicting = selected.notes()
    assert repeating.startswith("1 record was left out")
    assert contradicting.startswith("2 records were left out")
    assert contradicting.endswith("(record 2, record 4)")


def test_a_record_of_several_facts_is_taken_whole_or_not_at_all() -> None:
    units = [unit(0, ("a", "x")), unit(1, ("b", "x"), ("c", "x"), ("d", "x")), unit(2, ("e", "x"))]
    assert [fact.id for fact in select(units, count=2, seed=None, source="f").facts] == ["0.0", "2.0"]
    torn = [unit(0, ("a", "x")), unit(1, ("b", "x"), ("a", "y")), unit(2, ("c", "x"), ("c", "y"))]
    selected = select(torn, count=None, seed=None, source="f")
    assert [fact.id for fact in selected.facts] == ["0.0"]
    assert "2 records were left out" in selected.notes()[0]


def test_questions_of_several_facts_go_where_all_of_them_are_in(tmp_path: Path) -> None:
    file = written(
        tmp_path / "m.json",
        mquake(0, ("Ann", "Welsh"), ("Bob", "Irish")),
        mquake(1, ("Cid", "Manx"), ("Ann", "Welsh")),  # adds one fact, repeats one
        mquake(2, ("Ann", "Welsh")),  # adds nothing but its question
        mquake(3, ("Dan", "Manx"), ("Bob", "Scots")),  # contradicts the first
    )
    loaded = read_dataset("mquake", file)
    asked = {fact.id: [question.prompt for question in fact.portability] for fact in loaded.facts}
    assert asked == {
        "0.0": ["Question 2 about Ann?"],
        "0.1": ["Question 0 about Ann and Bob?"],
        "1.0": ["Question 1 about Cid and Ann?"],
    }
    assert len(loaded.notes) == 2
    assert "m.json[3] (case_id 3)" in loaded.notes[1]


def test_texts_are_selected_like_facts(tmp_path: Path) -> None:
    file = written(tmp_path / "p.json", *({**records.TEXT, "Text": f"text {number}"} for number in range(9)))
    assert read_dataset("me-ppl", file, count=2).texts == ("text 0", "text 1")
    shuffled = read_dataset("me-ppl", file, seed=1)
    assert sorted(shuffled.texts) == [f"text {number}" for number in range(9)]
    assert read_dataset("me-ppl", file, seed=1, count=4).texts == shuffled.texts[:4]
    with pytest.raises(InputError) as error:
        read_dataset("me-ppl", file, count=10)
    assert error.value.code == "DATASET_COUNT"


def slow_select(units: list[RecordContents], seed: int | None) -> list[str]:
    """The ids of the selected facts, computed in the obvious way."""
    order = list(units)
    if seed is not None:
        numbers = list(range(len(units)))
        random.Random(seed).shuffle(numbers)
        order = [units[number] for number in numbers]
    taken: list[Fact] = []
    for one in order:
        together = [*taken, *one.facts]
        if any(
            a.target != b.target and (a.subject, a.prompt) == (b.subject, b.prompt) for a in together for b in together
        ):
            continue
        for fact in one.facts:
            if all(fact.subject != other.subject for other in taken):
                taken.append(fact)
    return [fact.id for fact in taken]


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("xy")), min_size=1, max_size=3), max_size=8),
    st.none() | st.integers(0, 3),
)
def test_selection_agrees_with_the_slow_one(said: list[list[tuple[str, str]]], seed: int | None) -> None:
    units = [unit(number, *entries) for number, entries in enumerate(said)]
    selected = select(units, count=None, seed=seed, source="f")
    assert [fact.id for fact in selected.facts] == slow_select(units, seed)
    assert clashes(selected.facts, selected.places) == []
