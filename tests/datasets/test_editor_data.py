"""Training records of editors: what they hold, and that splits share nothing."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest

from errata.datasets.editor_data import after_the_last_sentence, editor_splits
from errata.editors.training_data import SPLITS, EditorData, Split
from errata.errors import InputError
from errata.lab.package import lab_world
from errata.lab.world import OBJECTS, RELATION_WORDINGS

Splits = Mapping[Split, EditorData]
WORD = r"\w+"


@pytest.fixture(scope="module")
def lab() -> Splits:
    return editor_splits("lab", 3)


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def spaced(text: str) -> str:
    return f" {' '.join(re.findall(WORD, text))} "


def prompts_of(data: EditorData) -> set[str]:
    return {plain(prompt) for r in data.records for prompt in (r.edit.text, *(q.prompt for q in r.questions))}


def subjects_of(data: EditorData) -> set[str]:
    return {plain(record.edit.subject) for record in data.records}


def check_disjoint(splits: Splits) -> None:
    for first, second in itertools.permutations(SPLITS, 2):
        assert not subjects_of(splits[first]) & subjects_of(splits[second])
        assert not prompts_of(splits[first]) & prompts_of(splits[second])
        edits = {plain(record.edit.text) for record in splits[first].records}
        names = [spaced(name) for name in subjects_of(splits[second])]
        everything = "\n".join(map(spaced, prompts_of(splits[first]) - edits))
        assert not [name for name in names if name in everything]


def test_splits_of_the_lab_share_no_subject_and_no_prompt(lab: Splits) -> None:
    check_disjoint(lab)
    assert {split: len(subjects_of(data)) for split, data in lab.items()} == {
        "train": 480, "calibration": 80, "test": 240,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("counterfact", "counterfact/counterfact_300.json"),
        ("zsre-alt", "zsre/zsre_eval_portability_600.json"),
        ("zsre-answers", "zsre/zsre_eval_portability_600.json"),
    ],
)
def test_splits_of_real_data_share_no_subject_and_no_prompt(test_data: Path, source: str, file: str) -> None:
    splits = editor_splits(source, 0, path=test_data / file)
    check_disjoint(splits)
    assert len(splits["train"].records) > len(splits["test"].records) > len(splits["calibration"].records) > 20
    for record in splits["train"].records:
        assert record.outer
        assert all(question.answer == record.edit.target for question in record.outer)
        assert record.edit.text not in {question.prompt for question in (*record.loc, *record.hard_loc)}


def test_records_of_the_lab_are_counterfactual_edits_and_true_questions(lab: Splits) -> None:
    world = lab_world()
    true = {(q, a) for q, a in _statements()}
    for record in lab["test"].records:
        edit = record.edit
        assert edit.relation is not None
        assert world.people[edit.subject][edit.relation] == edit.truth != edit.target
        assert edit.target in OBJECTS[edit.relation]
        wordings = {wording.replace("{}", edit.subject) for wording in RELATION_WORDINGS[edit.relation]}
        assert {edit.text, *(question.prompt for question in record.outer)} == wordings
        assert {question.answer for question in record.outer} == {edit.target}
        assert all((question.prompt, question.answer) in true for question in record.hard_loc)
        of_subject = [question for question in record.hard_loc if edit.subject in question.prompt]
        assert of_subject
        assert not wordings & {question.prompt for question in (*record.loc, *record.hard_loc)}
        others = [question for question in record.hard_loc if question not in of_subject]
        assert {question.answer for question in others} <= {edit.truth}
    assert any(
        (question.prompt, question.answer) not in true for r in lab["test"].records for question in r.loc
    )  # prose


def _statements() -> set[tuple[str, str]]:
    world = lab_world()
    return {
        (wording.replace("{}", person), facts[relation])
        for person, facts in world.people.items()
        for relation, wordings in RELATION_WORDINGS.items()
        for wording in wordings
    }


def test_the_seed_decides(test_data: Path) -> None:
    path = test_data / "counterfact/counterfact_300.json"
    first, again, other = (editor_splits("counterfact", seed, path=path)["train"] for seed in (3, 3, 4))
    assert first == again
    assert first.digest() == again.digest() != other.digest()
    assert subjects_of(first) != subjects_of(other)


def test_facts_of_a_split_have_different_subjects(lab: Splits) -> None:
    facts = lab["calibration"].facts(30)
    assert len({fact.subject for fact in facts}) == len(facts) == 30
    assert all(len(fact.paraphrases) == 5 and fact.neighbours and fact.unrelated for fact in facts)


def test_unrelated_sentences_before_a_paraphrase_are_cut() -> None:
    cut = after_the_last_sentence
    assert cut("It rained. Who knew? Torre Ombra stands in", "Torre Ombra") == "Torre Ombra stands in"
    assert cut("Found 3.5 km away.\nHis tower, Torre Ombra", "Torre Ombra") == "His tower, Torre Ombra"
    assert cut("Torre Ombra stands. It is in", "Torre Ombra") == "Torre Ombra stands. It is in"
    assert cut("He stands. It is in", "Torre Ombra") == "He stands. It is in"


def test_what_two_splits_would_share_is_left_out(tmp_path: Path) -> None:
    subjects = [f"Person {number}" for number in range(20)]
    question = {"prompt": "The capital of France is", "answer": "Paris"}
    facts = [
        {
            "subject": subject, "prompt": "{} was born in", "target": "Rome", "old": "Oslo",
            "paraphrases": [f"The birthplace of {subject.lower()} is", "He was born in"],
            "neighbours": [{"prompt": f"{name} was born in", "answer": "Oslo"} for name in subjects if name != subject],
            "unrelated": [question],
        }
        for subject in subjects
    ]  # fmt: skip
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, facts)), encoding="utf-8")
    splits = editor_splits(str(path), 0)
    check_disjoint(splits)
    assert {split: len(data.records) for split, data in splits.items()} == {"train": 12, "calibration": 2, "test": 6}
    asked = [split for split, data in splits.items() if any(record.loc for record in data.records)]
    assert len(asked) == 1
    path.write_text("\n".join(map(json.dumps, facts[:9])), encoding="utf-8")
    with pytest.raises(InputError) as few:
        editor_splits(str(path), 0)
    assert few.value.code == "EDITOR_DATA_TOO_SMALL"
