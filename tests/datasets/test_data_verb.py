"""``errata data``: the list, the download and the check, as people and machines see them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.cli.main import run
from errata.datasets import registry
from errata.datasets.data_set import Source
from errata.datasets.registry import DATASETS
from errata.facts.files import read_facts

from tests.datasets import records
from tests.datasets.records import varied, written
from tests.support.file_server import FileServer, file_server

CONTENT = json.dumps([records.QAEDIT]).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """QAEdit as if it came from this machine: one file with a checksum, one without."""
    with file_server(CONTENT) as server:
        known = Source("known.json", server.address, 1, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
        row = dataclasses.replace(DATASETS["qaedit"], sources=(known, Source("other.json", server.address)))
        monkeypatch.setattr(registry, "DATASETS", {**DATASETS, "qaedit": row})
        yield server


def result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_list_names_every_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "list", "--json", str(tmp_path / "list.json")]) == 0
    printed = capsys.readouterr().out
    entries = {entry["name"]: entry for entry in result(tmp_path / "list.json")["datasets"]}
    assert list(entries) == list(DATASETS)
    for name, entry in entries.items():
        assert name in printed
        assert entry["licence"]
        assert all(file["here"] is False for file in entry["files"])
    assert entries["me-ppl"]["files"][0]["verified"] is True
    assert entries["mquake"]["files"][0]["verified"] is False


def test_get_and_check_and_list_go_together(
    served: FileServer, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "check", "qaedit"]) == 2
    assert "`errata data get qaedit` downloads it" in capsys.readouterr().err
    assert served.asked == []  # nothing is downloaded without being asked for
    out = tmp_path / "get.json"
    assert run(["data", "get", "qaedit", "--json", str(out)]) == 0
    assert "checksum verified" in capsys.readouterr().out.replace("\n", " ")
    path = cache / "data" / "qaedit" / "known.json"
    assert path.read_bytes() == CONTENT
    assert result(out)["path"] == str(path)
    assert result(out)["downloaded"] is True
    assert run(["data", "get", "qaedit", "--json", str(out)]) == 0
    assert result(out)["downloaded"] is False
    assert len(served.asked) == 1
    assert run(["data", "get", "qaedit", "--again"]) == 0
    assert len(served.asked) == 2
    facts = tmp_path / "facts.jsonl"
    assert run(["data", "check", "qaedit", "--out", str(facts), "--json", str(out)]) == 0
    assert result(out)["valid"] is True
    assert result(out)["facts"] == 1
    assert result(out)["filled"] == {
        "paraphrases": {"facts": 1, "entries": 1},
        "unrelated": {"facts": 1, "entries": 2},
    }
    (fact,) = read_facts(facts)
    assert fact.id == "NQ-3"


def test_get_into_a_folder_and_of_another_file(
    served: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "get", "qaedit", "--file", "other.json", "--out", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "qaedit" / "other.json").read_bytes() == CONTENT
    assert "not verified" in capsys.readouterr().out.replace("\n", " ")
    assert run(["data", "get", "qaedit", "--file", "third.json"]) == 2
    assert "Its files: known.json, other.json" in capsys.readouterr().err


def test_a_modified_file_is_reported(served: FileServer, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "get", "qaedit"]) == 0
    (cache / "data" / "qaedit" / "known.json").write_bytes(b"[]")
    assert run(["data", "get", "qaedit"]) == 1
    assert "Download it again: errata data get qaedit --again" in capsys.readouterr().err
    mine = ["data", "get", "qaedit", "--file", "known.json", "--out", str(cache / "my data")]
    assert run(mine) == 0
    (cache / "my data" / "qaedit" / "known.json").write_bytes(b"[]")
    assert run(mine) == 1
    again = f"errata data get qaedit --file known.json --out '{cache / 'my data'}' --again"
    assert again in capsys.readouterr().err.replace("\n", " ")


def test_a_failed_download_leaves_no_folder(served: FileServer, tmp_path: Path) -> None:
    served.statuses = [404]
    assert run(["data", "get", "qaedit", "--out", str(tmp_path / "a" / "b")]) == 1
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    served.statuses = [404]
    assert run(["data", "get", "qaedit", "--out", str(tmp_path / "mine")]) == 1
    assert [*tmp_path.joinpath("mine").iterdir()] == []  # what was there stays


def test_a_file_of_another_format_is_reported_briefly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    file = written(tmp_path / "q.json", *(varied(records.QAEDIT, "id", number) for number in range(30)))
    assert run(["data", "check", "known", str(file), "--json", str(out)]) == 2
    errors = capsys.readouterr().err
    count = len(result(out)["faults"])
    assert count == 60
    assert f"{count} faults in" in errors
    assert errors.count("q.json[") == 20
    assert f"and {count - 20} more" in errors
    assert f"This looks like qaedit:\n  errata data check qaedit {file}\n" in errors
    # One wrong record does not make a file another set's, and where one can be looked up no command is suggested.
    file = written(tmp_path / "q.json", records.QAEDIT, *({"id": 10 + number} for number in range(10)))
    assert run(["data", "check", "qaedit", str(file)]) == 2
    errors = capsys.readouterr().err
    assert "looks like" not in errors
    assert "--json FILE saves all of them" in errors


def test_a_file_without_a_data_set_gets_a_suggestion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "q.json", records.KNOWN)
    assert run(["data", "check", str(file)]) == 2
    assert f"This looks like known:\n  errata data check known {file}\n" in capsys.readouterr().err
    assert run(["data", "check", "some/where"]) == 2
    assert "errata data check NAME some/where" in capsys.readouterr().err
    assert run(["data", "check", str(tmp_path / "none.json")]) == 2
    assert "FILE_NOT_FOUND" in capsys.readouterr().err


def test_a_file_of_easyedit_is_checked_by_its_path_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "mine.json", {**records.COUNTERFACT_EDIT, "weather": "fine"})
    out, facts = tmp_path / "out.json", tmp_path / "facts.csv"
    assert run(["data", "check", str(file), "--json", str(out), "--out", str(facts)]) == 0
    found = result(out)
    # A user's own rephrase_prompt is a paraphrase, and what is not used is said.
    assert set(found["filled"]) == {"old", "paraphrases", "neighbours"}
    assert found["sample"]["old"] == "Basque"
    assert any("weather" in note for note in found["notes"])
    assert "weather" in capsys.readouterr().out
    assert run(["data", "check", str(facts)]) == 0


def test_facts_replace_facts_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}', encoding="utf-8")
    assert run(["data", "check", "lab", "--count", "2", "--out", str(config)]) == 2
    assert "not a file of facts" in " ".join(capsys.readouterr().err.split())
    assert config.read_text(encoding="utf-8") == '{"model_type": "llama"}'
    facts = tmp_path / "facts.json"
    for count in ("2", "3"):
        assert run(["data", "check", "lab", "--count", count, "--out", str(facts)]) == 0
    assert len(facts.read_text(encoding="utf-8").splitlines()) == 3


def test_the_list_fits_in_eighty_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in DATASETS:  # one line in the table, one below it
        assert len([line for line in lines if line.split()[:1] == [name]]) == 2


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("qaedit", 1, "answers with status 404"),
        ("hardedit", 1, "error[DOWNLOAD_MANUAL]"),
        ("lab", 2, "It comes with errata"),
        ("jsonl", 2, "Give your own file"),
        ("qaedits", 2, "Did you mean qaedit"),
    ],
)
def test_data_sets_that_cannot_be_downloaded(
    served: FileServer, name: str, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served.statuses = [404]
    assert run(["data", "get", name]) == status
    assert words in capsys.readouterr().err.replace("\n", " ")


def test_check_reports_all_faults_as_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = varied(varied(records.QAEDIT, "target", ""), "locality.0.loc", 3)
    file, out = written(tmp_path / "q.json", bad, {"id": 9}), tmp_path / "out.json"
    assert run(["data", "check", "qaedit", str(file), "--json", str(out)]) == 2
    printed = capsys.readouterr().err
    assert "q.json[0] (id 3): 'target' is empty" in printed
    found = result(out)
    assert found["valid"] is False
    assert len(found["faults"]) == 8
    assert found["faults"][2]["where"] == "q.json[1] (id 9)"
    assert all(fault["what"] in printed for fault in found["faults"])
    folder = tmp_path / "folder"
    folder.mkdir()
    assert run(["data", "check", "qaedit", str(folder), "--json", str(out)]) == 2
    assert str(folder) in result(out)["faults"][0]["what"]


def test_check_shows_counts_notes_and_a_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = {**records.QAEDIT, "id": 4}
    file = written(tmp_path / "q.json", records.QAEDIT, twice, varied(records.QAEDIT, "id", 5) | {"target": ""})
    assert run(["data", "check", "qaedit", str(file), "--skip-faulty"]) == 0
    printed = capsys.readouterr().out
    assert f"{file}: 1 fact.\n" in printed
    assert "an earlier one has the same subject" in printed
    assert "invalid records are skipped" in printed
    assert "subject: oria bell" in printed
    assert "unrelated: who invented the paper boat -> nobody  (and 1 more)" in printed


@pytest.mark.parametrize(
    ("name", "record", "words"),
    [("me-ppl", records.TEXT, "1 text, no errors"), ("conceptedit", records.CONCEPT, "1 fact, 1 concept, no errors")],
)
def test_check_of_texts_and_concepts(
    name: str, record: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "check", name, str(written(tmp_path / "f.json", record))]) == 0
    assert words in capsys.readouterr().out


def test_check_of_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "check.json"
    missing = str(tmp_path / "missing.json")
    for arguments in ([missing], ["counterfact", missing]):
        for more in ([], ["--json", str(report)]):
            assert run(["data", "check", *arguments, *more]) == 2
            assert "error[FILE_NOT_FOUND]" in capsys.readouterr().err
        assert [fault["code"] for fault in json.loads(report.read_text(encoding="utf-8"))["faults"]] == [
            "FILE_NOT_FOUND"
        ]


def test_check_selects_by_count_and_seed(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert run(["data", "check", "lab", "--count", "7", "--seed", "2", "--json", str(out)]) == 0
    assert result(out)["facts"] == 7
    assert result(out)["sample"]["id"] == "lab-2-0"


def test_the_result_does_not_replace_the_checked_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.jsonl"
    content = json.dumps({"id": "one", "subject": "Ann", "prompt": "{} lives in", "target": "Rome"}) + "\n"
    own.write_text(content, encoding="utf-8")
    assert run(["data", "check", str(own), "--json", str(own)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "which this command reads or writes" in said or "[OUTPUT_EXISTS]" in said
    assert own.read_text(encoding="utf-8") == content
    assert run(["data", "check", str(own), "--json", str(tmp_path / "result.json")]) == 0
