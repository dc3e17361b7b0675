"""Damaged files: all faults are reported with their records, and nothing is guessed."""

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


def faults_of(name: str, file: Path) -> list[tuple[str, str, str]]:
    """(place, code, what) of each fault."""
    with pytest.raises(FaultsError) as error:
        read_dataset(name, file)
    assert str(file) in str(error.value)
    return [(fault.where, fault.code, fault.what) for fault in error.value.faults]


def test_invalid_fields_are_named(tmp_path: Path) -> None:
    for name, path, value, code, field in (
        ("counterfact", "case_id", ..., "FACT_MISSING_FIELD", "case_id"),
        ("counterfact", "case_id", True, "FACT_WRONG_TYPE", "case_id"),
        ("counterfact", "requested_rewrite", ..., "FACT_MISSING_FIELD", "requested_rewrite"),
        ("counterfact", "requested_rewrite", [], "FACT_WRONG_TYPE", "requested_rewrite"),
        ("counterfact", "requested_rewrite.subject", ..., "FACT_MISSING_FIELD", "requested_rewrite.subject"),
        ("counterfact", "requested_rewrite.subject", " ", "FACT_EMPTY_FIELD", "requested_rewrite.subject"),
        ("counterfact", "requested_rewrite.target_new.str", 7, "FACT_WRONG_TYPE", "requested_rewrite.target_new.str"),
        ("counterfact", "requested_rewrite.target_true", "x", "FACT_WRONG_TYPE", "requested_rewrite.target_true"),
        ("counterfact", "requested_rewrite.prompt", "no place", "FACT_SUBJECT_POSITION", "prompt"),
        ("counterfact", "requested_rewrite.prompt", "{} and {}", "FACT_SUBJECT_POSITION", "prompt"),
        ("counterfact", "requested_rewrite.subject", "a\x00b", "FACT_INVALID_CHARACTER", "subject"),
        ("counterfact", "paraphrase_prompts", ..., "FACT_MISSING_FIELD", "paraphrase_prompts"),
        ("counterfact", "paraphrase_prompts", "x", "FACT_WRONG_TYPE", "paraphrase_prompts"),
        ("counterfact", "neighborhood_prompts.0", None, "FACT_MISSING_FIELD", "neighborhood_prompts[0]"),
        ("counterfact", "generation_prompts.1", ["x"], "FACT_WRONG_TYPE", "generation_prompts[1]"),
        ("counterfact-edit", "prompt", "Ann speaks", "FACT_SUBJECT_POSITION", "prompt"),
        ("counterfact-edit", "locality_ground_truth", ..., "FACT_MISSING_FIELD", "locality_ground_truth"),
        ("zsre-answers", "answers", [], "FACT_EMPTY_FIELD", "answers"),
        ("zsre-answers", "answers", ["Basque", 3], "FACT_WRONG_TYPE", "answers[1]"),
        ("zsre-answers", "src", "Who?", "FACT_SUBJECT_POSITION", "src"),
        ("zsre-alt", "alt", ..., "FACT_MISSING_FIELD", "alt"),
        ("zsre-alt", "portability.New Answer", ..., "FACT_MISSING_FIELD", "portability.New Answer"),
        ("zsre-alt", "portability", "x", "FACT_WRONG_TYPE", "portability"),
        ("zsre-alt", "loc_ans", "", "FACT_EMPTY_FIELD", "loc_ans"),
        ("qaedit", "prompt", "What?", "FACT_SUBJECT_POSITION", "prompt"),
        ("qaedit", "prompt", "{} is oria bell?", "FACT_SUBJECT_POSITION", "prompt"),
        ("qaedit", "locality.1", "x", "FACT_WRONG_TYPE", "locality[1]"),
        ("qaedit", "locality.1.loc_ans", ..., "FACT_MISSING_FIELD", "locality[1].loc_ans"),
        ("known", "attribute", None, "FACT_MISSING_FIELD", "attribute"),
        ("conceptedit", "instance_prompt", ..., "FACT_MISSING_FIELD", "instance_prompt"),
        ("conceptedit", "target_new_desc", "", "FACT_EMPTY_FIELD", "target_new_desc"),
        ("hardedit", "target_new", ..., "FACT_MISSING_FIELD", "target_new"),
        ("rippleedits", "edit.subject_label", ..., "DATASET_UNRESOLVED_IDS", "edit"),
        ("rippleedits", "Forgetfulness", ..., "FACT_MISSING_FIELD", "Forgetfulness"),
        (
            "rippleedits",
            "Subject_Aliasing.0.test_queries.0.prompt",
            ...,
            "FACT_MISSING_FIELD",
            "Subject_Aliasing[0].test_queries[0].prompt",
        ),
        ("mquake", "requested_rewrite", [], "FACT_EMPTY_FIELD", "requested_rewrite"),
        ("mquake", "requested_rewrite.0.target_new", ..., "FACT_MISSING_FIELD", "requested_rewrite[0].target_new"),
        ("mquake", "new_answer", ..., "FACT_MISSING_FIELD", "new_answer"),
        ("me-ppl", "Text", "\n", "FACT_EMPTY_FIELD", "Text"),
    ):
        bad = varied(GOOD[name], path, value)
        place = "f.json[1]" + ("" if path == "case_id" else PLACE.get(name, ""))
        good = GOOD[name] | ({"subject": "Oria", "prompt": "Oria sings"} if name == "hardedit" else {})
        (fault,) = faults_of(name, written(tmp_path / "f.json", _other(good), bad))
        assert fault[0].startswith(place) if path == "case_id" else fault[0] == place, path
        assert fault[1] == code, path
        assert fault[2].split("'")[1] == field


def _other(record: dict[str, Any]) -> dict[str, Any]:
    """The same record under another id, where it has one."""
    return {key: value + 100 if key in ("case_id", "id", "known_id") else value for key, value in record.items()}


def test_a_record_that_is_not_an_object_is_one_fault(tmp_path: Path) -> None:
    for name, good in GOOD.items():
        for record in (None, 3, "text", []):
            (fault,) = faults_of(name, written(tmp_path / "f.json", good, record))
            assert fault[:2] == ("f.json[1]", "FACT_WRONG_TYPE")


def test_all_faults_of_all_records_are_reported(tmp_path: Path) -> None:
    bad = varied(varied(records.COUNTERFACT, "requested_rewrite.subject", ""), "paraphrase_prompts.0", 4)
    worse = {"case_id": 9}
    found = faults_of("counterfact", written(tmp_path / "f.json", bad, records.COUNTERFACT, worse))
    assert [(place, what.split("'")[1]) for place, _, what in found] == [
        ("f.json[0] (case_id 3)", "requested_rewrite.subject"),
        ("f.json[0] (case_id 3)", "paraphrase_prompts[0]"),
        *(
            ("f.json[2] (case_id 9)", name)
            for name in ("requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
        ),
    ]


def test_duplicate_ids_are_a_fault(tmp_path: Path) -> None:
    other = varied(records.COUNTERFACT, "requested_rewrite.subject", "Ann Roe")
    ((place, code, what),) = faults_of("counterfact", written(tmp_path / "f.json", records.COUNTERFACT, other))
    assert (place, code) == ("f.json[1] (case_id 3)", "FACT_DUPLICATE_ID")
    assert "f.json[0] (case_id 3)" in what


def test_faulty_records_are_skipped_only_when_asked_for(tmp_path: Path) -> None:
    bad = varied(records.COUNTERFACT, "requested_rewrite.subject", "")
    file = written(tmp_path / "f.json", {**bad, "case_id": 1}, records.COUNTERFACT)
    loaded = read_dataset("counterfact", file, skip_faulty=True)
    assert [fact.id for fact in loaded.facts] == ["3"]
    (note,) = loaded.notes
    assert note.startswith("1 record was left out")
    assert "f.json[0] (case_id 1)" in note


def test_a_skipped_record_uses_no_id(tmp_path: Path) -> None:
    bad = varied(records.COUNTERFACT, "requested_rewrite.prompt", "{} {}")
    file = written(tmp_path / "f.json", bad, records.COUNTERFACT, records.COUNTERFACT)
    loaded = read_dataset("counterfact", file, skip_faulty=True)
    assert [fact.id for fact in loaded.facts] == ["3"]
    assert loaded.facts.places == ("f.json[1] (case_id 3)",)
    assert {code for _, code, _ in faults_of("counterfact", file)} >= {"FACT_DUPLICATE_ID"}


TWO = json.dumps([records.KNOWN, {**records.KNOWN, "known_id": 4, "subject": "Oria"}], indent=1)


def test_broken_files_are_located(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    for text, where, words in (
        ("", "f.json", "empty"),
        ("  \n", "f.json", "empty"),
        (json.dumps(records.KNOWN), "f.json", "not a JSON list"),
        ("<!DOCTYPE html>", "f.json", "not a JSON list"),
        ("[", "f.json[0]", "line 1, column 2"),
        (TWO[: len(TWO) // 2 + 40], "f.json[1]", "invalid JSON at line"),
        (TWO.rstrip("]}\n "), "f.json[1]", "invalid JSON at line"),
        (TWO[:-1], "f.json", "the file ends after record [1]"),
        (TWO[:-1] + ",]", "f.json[2]", "invalid JSON at line"),
        (TWO + "\n[]", "f.json", "after the list, at line"),
        (TWO.replace("},", "}", 1), "f.json", "'{' at line"),
        (TWO.replace('"known_id": 4', '"known_id": 4, "known_id": 5'), "f.json[1]", "'known_id'"),
        ("[" * 100_000, "f.json[0]", "too deeply"),
    ):
        file.write_text(text, encoding="utf-8")
        ((place, code, what),) = faults_of("known", file)
        assert (place, code) == (where, "FACT_DUPLICATE_FIELD" if "known_id" in words else "JSON_INVALID")
        assert words in what
        with pytest.raises(FaultsError):  # a broken file is not an invalid record
            read_dataset("known", file, skip_faulty=True)


def test_records_before_a_break_are_checked_too(tmp_path: Path) -> None:
    file = written(tmp_path / "f.json", varied(records.KNOWN, "attribute", 3), records.KNOWN)
    text = file.read_text(encoding="utf-8")
    file.write_text(text[:-60], encoding="utf-8")
    assert [fault[:2] for fault in faults_of("known", file)] == [
        ("f.json[0] (known_id 3)", "FACT_WRONG_TYPE"),
        ("f.json[1]", "JSON_INVALID"),
    ]


def test_empty_and_unreadable_files(tmp_path: Path) -> None:
    binary, marked = tmp_path / "binary.json", tmp_path / "marked.json"
    binary.write_bytes(b'[{"a": "\xff"}]')
    for file, code in (
        (written(tmp_path / "empty.json"), "FACTS_EMPTY"),
        (binary, "ENCODING_INVALID"),
        (tmp_path, "FACTS_UNREADABLE"),
    ):
        with pytest.raises(InputError) as error:
            read_dataset("known", file)
        assert error.value.code == code
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps([records.KNOWN]).encode())
    assert len(read_dataset("known", marked).facts) == 1
