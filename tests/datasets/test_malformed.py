"""Damaged files: every fault is told with its record, all at once, and nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.datasets.reading import read_dataset
from errata.errors import FaultsError, InputError

from tests.datasets import records
from tests.datasets.records import varied, written

GOOD = {
    "counterfact": records.COUNTERFACT,
    "counterfact-edit": records.COUNTERFACT_EDIT,
    "zsre-answers": records.ZSRE,
    "zsre-alt": records.ZSRE,
    "qaedit": records.QAEDIT,
    "known": records.KNOWN,
    "conceptedit": records.CONCEPT,
    "hardedit": records.HARD,
    "rippleedits": records.RIPPLE,
    "mquake": records.mquake(3, ("Oria Bell", "Welsh")),
    "me-ppl": records.TEXT,
}
PLACE = {"counterfact": " (case_id 3)", "counterfact-edit": " (case_id 3)", "mquake": " (case_id 3)"} | {
    "qaedit": " (id 3)",
    "known": " (known_id 3)",
    "conceptedit": " (label 'paddle')",
}


def faults_of(name: str, file: Path) -> list[str]:
    with pytest.raises(FaultsError) as caught:
        read_dataset(name, file)
    assert str(file) in str(caught.value)
    return [f"{fault.where}: {fault.what}" for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("name", "path", "value", "what"),
    [
        ("counterfact", "case_id", ..., "'case_id' is missing"),
        ("counterfact", "case_id", True, "'case_id' is true or false, not a number or a name"),
        ("counterfact", "requested_rewrite", ..., "'requested_rewrite' is missing"),
        ("counterfact", "requested_rewrite", [], "'requested_rewrite' is a list, not an object"),
        ("counterfact", "requested_rewrite.subject", ..., "'requested_rewrite.subject' is missing"),
        ("counterfact", "requested_rewrite.subject", " ", "'requested_rewrite.subject' is empty"),
        ("counterfact", "requested_rewrite.target_new.str", 7, "'requested_rewrite.target_new.str' is a number, not"),
        ("counterfact", "requested_rewrite.target_true", "x", "'requested_rewrite.target_true' is text, not an object"),
        ("counterfact", "requested_rewrite.prompt", "no place", "'prompt' has no {}"),
        ("counterfact", "requested_rewrite.prompt", "{} and {}", "'prompt' holds {} 2 times"),
        ("counterfact", "requested_rewrite.subject", "a\x00b", "'subject' holds a NUL (U+0000) at character 2"),
        ("counterfact", "paraphrase_prompts", ..., "'paraphrase_prompts' is missing"),
        ("counterfact", "paraphrase_prompts", "x", "'paraphrase_prompts' is text, not a list"),
        ("counterfact", "neighborhood_prompts.0", None, "'neighborhood_prompts[0]' is missing"),
        ("counterfact", "generation_prompts.1", ["x"], "'generation_prompts[1]' is a list, not text"),
        ("counterfact-edit", "prompt", "Ann speaks", "'prompt' 'Ann speaks' does not hold the subject 'Oria Bell'"),
        ("counterfact-edit", "locality_ground_truth", ..., "'locality_ground_truth' is missing"),
        ("zsre-answers", "answers", [], "'answers' has no answer in it"),
        ("zsre-answers", "answers", ["Basque", 3], "'answers[1]' is a number, not text"),
        ("zsre-answers", "src", "Who?", "'src' 'Who?' does not hold the subject 'Oria Bell'"),
        ("zsre-alt", "alt", ..., "'alt' is missing"),
        ("zsre-alt", "portability.New Answer", ..., "'portability.New Answer' is missing"),
        ("zsre-alt", "portability", "x", "'portability' is text, not an object"),
        ("zsre-alt", "loc_ans", "", "'loc_ans' is empty"),
        ("qaedit", "prompt", "What?", "'prompt' 'What?' does not hold the subject 'oria bell'"),
        ("qaedit", "prompt", "{} is oria bell?", "'prompt' holds {} 2 times"),
        ("qaedit", "locality.1", "x", "'locality[1]' is text, not an object"),
        ("qaedit", "locality.1.loc_ans", ..., "'locality[1].loc_ans' is missing"),
        ("known", "attribute", None, "'attribute' is missing"),
        ("conceptedit", "instance_prompt", ..., "'instance_prompt' is missing"),
        ("conceptedit", "target_new_desc", "", "'target_new_desc' is empty"),
        ("hardedit", "target_new", ..., "'target_new' is missing"),
        ("rippleedits", "edit.subject_label", ..., "'edit' names its subject by Wikidata's id alone"),
        ("rippleedits", "Forgetfulness", ..., "'Forgetfulness' is missing"),
        (
            "rippleedits",
            "Subject_Aliasing.0.test_queries.0.prompt",
            ...,
            "'Subject_Aliasing[0].test_queries[0].prompt' is missing",
        ),
        ("mquake", "requested_rewrite", [], "'requested_rewrite' has no edit in it"),
        ("mquake", "requested_rewrite.0.target_new", ..., "'requested_rewrite[0].target_new' is missing"),
        ("mquake", "new_answer", ..., "'new_answer' is missing"),
        ("me-ppl", "Text", "\n", "'Text' is empty"),
    ],
)
def test_a_wrong_field_is_named(name: str, path: str, value: object, what: str, tmp_path: Path) -> None:
    bad = varied(GOOD[name], path, value)
    place = "f.json[1]" + ("" if path == "case_id" else PLACE.get(name, ""))
    good = GOOD[name] | ({"subject": "Oria", "prompt": "Oria sings"} if name == "hardedit" else {})
    file = written(tmp_path / "f.json", _other(good), bad)
    (fault,) = faults_of(name, file)
    assert fault.startswith(f"{place}: {what}" if path != "case_id" else "f.json[1]")
    assert what in fault


def _other(record: dict[str, Any]) -> dict[str, Any]:
    """The same record under another id, where it has one."""
    return {key: value + 100 if key in ("case_id", "id", "known_id") else value for key, value in record.items()}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("record", [None, 3, "text", []])
def test_what_is_no_record_is_one_fault(name: str, record: object, tmp_path: Path) -> None:
    (fault,) = faults_of(name, written(tmp_path / "f.json", GOOD[name], record))
    assert fault.startswith("f.json[1]: the record is ")
    assert fault.endswith(", not an object")


def test_all_faults_of_all_records_are_told_at_once(tmp_path: Path) -> None:
    bad = varied(varied(records.COUNTERFACT, "requested_rewrite.subject", ""), "paraphrase_prompts.0", 4)
    worse = {"case_id": 9}
    found = faults_of("counterfact", written(tmp_path / "f.json", bad, records.COUNTERFACT, worse))
    assert found == [
        "f.json[0] (case_id 3): 'requested_rewrite.subject' is empty",
        "f.json[0] (case_id 3): 'paraphrase_prompts[0]' is a number, not text",
        "f.json[2] (case_id 9): 'requested_rewrite' is missing",
        "f.json[2] (case_id 9): 'paraphrase_prompts' is missing",
        "f.json[2] (case_id 9): 'neighborhood_prompts' is missing",
        "f.json[2] (case_id 9): 'generation_prompts' is missing",
    ]


def test_an_id_that_stands_twice_is_a_fault(tmp_path: Path) -> None:
    other = varied(records.COUNTERFACT, "requested_rewrite.subject", "Ann Roe")
    (fault,) = faults_of("counterfact", written(tmp_path / "f.json", records.COUNTERFACT, other))
    assert fault == "f.json[1] (case_id 3): its id '3' is already that of f.json[0] (case_id 3)"


def test_faulty_records_are_skipped_only_when_asked_for(tmp_path: Path) -> None:
    bad = varied(records.COUNTERFACT, "requested_rewrite.subject", "")
    file = written(tmp_path / "f.json", {**bad, "case_id": 1}, records.COUNTERFACT)
    loaded = read_dataset("counterfact", file, skip_faulty=True)
    assert [fact.id for fact in loaded.facts] == ["3"]
    assert loaded.notes == (
        "1 record was left out: faulty, and such records were to be skipped (f.json[0] (case_id 1))",
    )


TWO = json.dumps([records.KNOWN, {**records.KNOWN, "known_id": 4, "subject": "Oria"}], indent=1)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "f.json", "the file is not a JSON list of records but empty"),
        ("  \n", "f.json", "the file is not a JSON list of records but empty"),
        (json.dumps(records.KNOWN), "f.json", "the file is not a JSON list of records"),
        ("<!DOCTYPE html>", "f.json", "the file is not a JSON list of records"),
        ("[", "f.json[0]", "invalid JSON at line 1, column 2"),
        (TWO[: len(TWO) // 2 + 40], "f.json[1]", "invalid JSON at line"),
        (TWO.rstrip("]}\n "), "f.json[1]", "invalid JSON at line"),
        (TWO[:-1], "f.json", "the file ends behind record [1], where a comma or ']' belongs"),
        (TWO[:-1] + ",]", "f.json[2]", "invalid JSON at line"),
        (TWO + "\n[]", "f.json", "more stands behind the list, at line"),
        (TWO.replace("},", "}", 1), "f.json", "'{' stands at line"),
        (TWO.replace('"known_id": 4', '"known_id": 4, "known_id": 5'), "f.json[1]", "the field 'known_id' stands"),
        ("[" * 100_000, "f.json[0]", "the brackets are nested too deeply"),
    ],
)
def test_a_broken_file_says_where_it_breaks(text: str, where: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(text, encoding="utf-8")
    (fault,) = faults_of("known", file)
    assert fault.startswith(f"{where}: ")
    assert what in fault
    with pytest.raises(FaultsError):  # a broken file is no faulty record
        read_dataset("known", file, skip_faulty=True)


def test_records_before_a_break_are_checked_too(tmp_path: Path) -> None:
    file = written(tmp_path / "f.json", varied(records.KNOWN, "attribute", 3), records.KNOWN)
    text = file.read_text(encoding="utf-8")
    file.write_text(text[:-60], encoding="utf-8")
    found = faults_of("known", file)
    assert len(found) == 2
    assert found[0] == "f.json[0] (known_id 3): 'attribute' is a number, not text"
    assert found[1].startswith("f.json[1]: invalid JSON")


def test_files_that_hold_nothing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no records"):
        read_dataset("known", written(tmp_path / "empty.json"))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(InputError, match="not UTF-8 at byte 9"):
        read_dataset("known", binary)
    with pytest.raises(InputError, match="cannot read"):
        read_dataset("known", tmp_path)
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps([records.KNOWN]).encode())
    assert len(read_dataset("known", marked).facts) == 1
