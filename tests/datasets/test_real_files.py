"""The real files, whole: nothing of them is refused, and what is left out is counted."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from errata.datasets.reading import read_dataset
from errata.datasets.records import Loaded
from errata.facts.fact import Fact
from errata.facts.files import read_facts


@functools.cache
def read(name: str, path: Path) -> Loaded:
    """Read once for all tests of this file."""
    return read_dataset(name, path)


def raw(path: Path) -> Sequence[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "file", "facts", "texts", "notes"),
    [
        ("counterfact", "counterfact/counterfact_300.json", 300, 0, []),
        ("counterfact-edit", "counterfact/counterfact_reduced_5000.json", 4978, 0, ["1 record was", "21 records were"]),
        ("zsre-answers", "zsre/zsre_eval_portability_600.json", 600, 0, []),
        ("zsre-alt", "zsre/zsre_eval_portability_600.json", 600, 0, []),
        ("qaedit", "qaedit/qaedit_500.json", 498, 0, ["2 records were"]),
        ("known", "known/known_1000.json", 1208, 0, ["1 record was"]),
        ("me-ppl", "perplexity/ME-PPL_50.json", 0, 50, []),
        ("me-ppl", "perplexity/ME-PPL_1k.json", 0, 1000, []),
    ],
)
def test_every_record_is_read_or_reported(
    name: str, file: str, facts: int, texts: int, notes: list[str], test_data: Path
) -> None:
    loaded = read(name, test_data / file)
    assert (len(loaded.facts), len(loaded.texts)) == (facts, texts)
    assert [note.split(" left out")[0] for note in loaded.notes] == notes
    left = sum(int(note.split()[0]) for note in loaded.notes)
    assert facts + texts + left == len(raw(test_data / file))


def by_id(facts: Sequence[Fact]) -> dict[str, Fact]:
    return {fact.id: fact for fact in facts}


def test_counterfact_is_mapped_word_for_word(test_data: Path) -> None:
    file = test_data / "counterfact" / "counterfact_300.json"
    found = by_id(read("counterfact", file).facts)
    for record in raw(file):
        fact, rewrite = found[str(record["case_id"])], record["requested_rewrite"]
        assert (fact.prompt, fact.subject) == (rewrite["prompt"], rewrite["subject"])
        assert (fact.target, fact.truth) == (rewrite["target_new"]["str"], rewrite["target_true"]["str"])
        assert list(fact.paraphrases) == record["paraphrase_prompts"]
        assert [question.prompt for question in fact.neighbours] == record["neighborhood_prompts"]
        assert {question.answer for question in fact.neighbours} == {fact.truth}
        assert list(fact.generation) == record["generation_prompts"]
        assert fact.relation == rewrite["relation_id"]


@pytest.mark.parametrize(
    ("name", "file", "field", "name_of"),
    [
        ("counterfact-edit", "counterfact/counterfact_reduced_5000.json", "prompt", lambda r, i: str(r["case_id"])),
        ("qaedit", "qaedit/qaedit_500.json", "prompt", lambda r, i: f"{r['source']}-{r['id']}"),
        ("known", "known/known_1000.json", "prompt", lambda r, i: f"known-{r['known_id']}"),
        ("zsre-answers", "zsre/zsre_eval_portability_600.json", "src", lambda r, i: f"zsre-{i}"),
    ],
)
def test_the_subject_goes_back_where_it_was(name: str, file: str, field: str, name_of, test_data: Path) -> None:
    records = {name_of(record, index): record for index, record in enumerate(raw(test_data / file))}
    for fact in read(name, test_data / file).facts:
        record = records[fact.id]
        assert fact.text == record[field].strip()
        start, end = fact.subject_span
        assert fact.text[start:end] == record["subject"].strip()


def test_the_readings_of_zsre_part_where_they_should(test_data: Path) -> None:
    file = test_data / "zsre" / "zsre_eval_portability_600.json"
    answers, alternative = read("zsre-answers", file).facts, read("zsre-alt", file).facts
    for record, fact, other in zip(raw(file), answers, alternative, strict=True):
        assert fact.target == record["answers"][0]
        assert other.target == record["alt"].strip()
        assert fact.portability == ()
        assert [question.answer for question in other.portability] == [record["portability"]["New Answer"]]
        assert fact.unrelated == other.unrelated
        assert fact.unrelated[0].prompt == record["loc"] + "?"
        assert fact.unrelated[0].prompt.startswith("nq question: ")
        assert other.truth != other.target


def test_no_rephrase_prompt_of_the_reduced_file_becomes_a_paraphrase(test_data: Path) -> None:
    facts = read("counterfact-edit", test_data / "counterfact" / "counterfact_reduced_5000.json").facts
    assert all(not fact.paraphrases and len(fact.generation) == 1 for fact in facts)


def test_a_draw_of_the_real_file_holds_twenty_of_its_facts(test_data: Path) -> None:
    file = test_data / "qaedit" / "qaedit_500.json"
    drawn = read_dataset("qaedit", file, count=20, seed=1).facts
    assert len(drawn) == 20
    assert {fact.id for fact in drawn} <= {fact.id for fact in read("qaedit", file).facts}


@pytest.mark.parametrize(
    ("name", "file"),
    [("counterfact", "counterfact/counterfact_300.json"), ("zsre-alt", "zsre/zsre_eval_portability_600.json")],
)
def test_as_ones_own_facts_these_files_say_the_same(name: str, file: str, test_data: Path) -> None:
    own, published = read_facts(test_data / file), read(name, test_data / file).facts
    for fields in (("subject", "prompt", "target", "old", "paraphrases", "relation"), ("unrelated", "portability")):
        for found, expected in zip(own, published, strict=True):
            assert [getattr(found, field) for field in fields] == [getattr(expected, field) for field in fields]
