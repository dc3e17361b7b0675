"""``errata analyse`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.analysis.studies import STUDIES, read_result
from errata.cli.main import run

SMALL = ["analyse", "contribution", "--count", "4"]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_a_study_of_the_lab_and_what_it_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, machine = tmp_path / "out", tmp_path / "all.json"
    assert run([*SMALL, "--out", str(out), "--json", str(machine)]) == 0
    said = flat(capsys.readouterr().out)
    assert "contribution of one layer's residual (seeds 0, count 4)" in said
    assert "undecided" in said  # of four facts nothing is decided
    result = read_result(out / "contribution")
    assert {row.where["layer"] for row in result.findings.rows if "residual" in row.where} == {0, 1, 2}
    assert all(row.n == 4 for row in result.findings.rows)
    saved = json.loads(machine.read_text(encoding="utf-8"))["studies"]["contribution"]
    assert saved["findings"]["rows"] == json.loads(json.dumps(result.to_record()["findings"]["rows"]))
    # All is done: the same command tells it again and does nothing again.
    pieces = {path: path.stat().st_mtime_ns for path in (out / "contribution" / "pieces").iterdir()}
    assert run([*SMALL, "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "contribution" / "pieces").iterdir()} == pieces
    # Another study has no place there.
    capsys.readouterr()
    assert run(["analyse", "contribution", "--count", "5", "--out", str(out)]) == 2
    assert "settings" in capsys.readouterr().err


def test_wrong_inputs_are_reported_together_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run([*SMALL, "--method", "mmit", "--facts", "none.jsonl", "--out", str(out)]) == 2
    said = flat(capsys.readouterr().err)
    for part in ("mmit", "none.jsonl"):  # found before the work's imports
        assert part in said, part
    arguments = ["--seeds", "x", "--sizes", "1", "--layers", "one", "--device", "abacus"]
    assert run([*SMALL, *arguments, "--out", str(out)]) == 2
    said = flat(capsys.readouterr().err)
    for part in ("--seeds 'x'", "--sizes", "abacus"):
        assert part in said, part
    for wrong, message in (
        (["analyse", "contributions"], "there is no study 'contributions'"),
        (["analyse", ","], "STUDY_UNKNOWN"),
        ([*SMALL, "--facts", "lab,lab"], "names 2 data sets"),
        (["analyse", "contribution", "--count", "6000"], "count must be between 1 and 5600"),  # it has no --edits
        ([*SMALL, "--layers", "3,9"], "9"),
    ):
        assert run([*wrong, "--out", str(out)]) == 2, wrong
        said = flat(capsys.readouterr().err)
        assert message in said, wrong
        assert "--edits" not in said
    assert not out.exists()


def test_a_dry_run_says_what_would_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, machine = tmp_path / "out", tmp_path / "plan.json"
    assert run(["analyse", "all", "--dry-run", "--out", str(out), "--json", str(machine)]) == 0
    said = flat(capsys.readouterr().out)
    assert all(f"{name}: " in said for name in STUDIES)
    assert not out.exists()
    plan = json.loads(machine.read_text(encoding="utf-8"))["studies"]
    assert [entry["study"] for entry in plan] == list(STUDIES)
