"""``errata bench`` from outside: real processes, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from errata.benchmark.campaign import open_campaign
from errata.cli.main import run
from errata.results.records import read_results

from tests.support.errors import assert_reported, reported
from tests.support.quick import quick_recipe

PATHS = ":".join(str(Path(path or ".").absolute()) for path in sys.path)
SMALL = ["--methods", "memit,memit+blue", "--edits", "6", "--batch-size", "2", "--eval-every", "1", "--sample", "2"]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", PATHS)


def light(folder: Path) -> list[str]:
    """Options with few questions, few texts and short searches, in place of hundreds."""
    (folder / "untouched.jsonl").write_text('{"prompt": "The capital of France is", "answer": "Paris"}\n' * 3, "utf-8")
    (folder / "prose.txt").write_text("The river runs through the old town.\nIt rained all day.\n", "utf-8")
    given = {"untouched": "untouched.jsonl", "prose": "prose.txt"}
    files = [word for option, name in given.items() for word in (f"--{option}", str(folder / name))]
    return [*SMALL, *files, "--recipe", quick_recipe(folder), "--collapse", "1000"]


def test_a_killed_bench_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, small = tmp_path / "out", light(tmp_path)
    command = [sys.executable, "-m", "errata", "bench", *small, "--seeds", "1", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (batches := [*out.glob("cells/*/run/batches/*.safetensors")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {batch: batch.read_bytes() for batch in batches}
    assert 1 <= len(kept) < 6
    assert run(["bench", "--out", str(out), "--json", str(tmp_path / "all.json")]) == 0
    assert {batch: batch.read_bytes() for batch in kept} == kept  # they were not edited anew
    said = capsys.readouterr()
    assert "memit+blue" in said.out
    assert said.err.count("6 facts in") == 2
    rows = read_results(out / "summary.json").rows
    assert json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["rows"] == list(rows)
    assert {row["method"] for row in rows} == {"memit", "memit+blue"}
    # All is done: nothing is worked on again, and the same comes out.
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()}
    assert run(["bench", *small, "--seeds", "1", "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()} == before
    assert read_results(out / "summary.json").rows == rows
    # Another grid has no place there.
    assert run(["bench", *small, "--seeds", "2", "--out", str(out)]) == 2
    assert_reported(capsys.readouterr().err, ("BENCH_MISMATCH", "seeds"))
    # A command that is refused has changed nothing.
    record = (out / "grid.json").read_bytes()
    with open_campaign(out).locked():
        assert run(["bench", *small, "--seeds", "1", "--measure", "drift", "--out", str(out)]) == 2
    assert_reported(capsys.readouterr().err, ("LOCKED", str(out)))
    assert run(["bench", "--without", "drift", "--out", str(out)]) == 2
    assert_reported(capsys.readouterr().err, ("MEASUREMENT_UNKNOWN", "'drift'"))
    assert (out / "grid.json").read_bytes() == record


def test_wrong_inputs_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for arguments, code, name in (
        ([], "OPTION_MISSING", "--methods and --edits"),
        (["--methods", "memit", "--edits", "6000"], "TOO_MANY_FACTS", " 5600"),
        (["--methods", "memit", "--edits", "3", "--data", "jsonl=none.jsonl"], "FILE_NOT_FOUND", "none.jsonl"),
        (["--methods", "memit", "--edits", "3", "--seeds", "x"], "SEEDS_INVALID", "--seeds"),
        (["--methods", "memit", "--edits", "3", "--collapse", "often"], "GRID_INVALID", "collapse"),
        (["--methods", "memit,mmit", "--edits", "3"], "METHOD_UNKNOWN", "'mmit'"),
        (["none.yaml"], "FILE_NOT_FOUND", "none.yaml"),
        (["--methods", "memit", "--edits", "3", "--without", "drift"], "BENCHMARK_NOT_FOUND", "--without"),
    ):
        assert run(["bench", *arguments, "--out", str(out)]) == 2, arguments
        assert_reported(capsys.readouterr().err, (code, name))
        assert not out.exists()
    assert run(["bench", *SMALL, "--collapse", "2", "--dry-run", "--out", str(out)]) == 0
    assert "6 cells: 1 model, 1 data set, 2 methods, 3 seeds; each 6 facts in 3 batches" in capsys.readouterr().out
    assert not out.exists()


def test_everything_wrong_is_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    wrong = ["--methods", "memit", "--seeds", "x", "--judge-model", "j", "--measure", "foo", "--data", "nope"]
    wrong += ["--model", str(tmp_path / "none"), "--collapse", "often", "--out", str(tmp_path / "taken")]
    assert run(["bench", *wrong]) == 2
    errors = capsys.readouterr().err
    assert len(reported(errors)) == 1 + 9
    assert_reported(
        errors,
        ("SEVERAL", ""), ("SEEDS_INVALID", "--seeds 'x'"), ("OPTION_MISSING", "--judge-model"),
        ("OPTION_MISSING", "--edits"), ("GRID_INVALID", "collapse"), ("OUTPUT_EXISTS", "taken"),
        ("MEASUREMENT_UNKNOWN", "'foo'"), ("MODEL_NOT_LOADED", str(tmp_path / "none")), ("DATASET_UNKNOWN", "'nope'"),
    )  # fmt: skip
    wrong = ["--methods", "memit", "--edits", "6000", "--collapse", "often"]
    assert run(["bench", *wrong, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert sorted(code for code, _ in reported(errors)) == ["GRID_INVALID", "SEVERAL", "TOO_MANY_FACTS"]


def test_a_set_with_very_many_faults_is_reported_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps([{"id": number} for number in range(30)]), encoding="utf-8")
    data = ["--data", f"qaedit={file}", "--out", str(tmp_path / "out")]
    assert run(["bench", "--methods", "memit", "--edits", "3", "--collapse", "often", *data]) == 2
    errors = capsys.readouterr().err
    assert errors.count("q.json[") == 1
    assert f"errata data check qaedit {file}" in errors
    assert_reported(errors, ("GRID_INVALID", "collapse"))


def test_a_dry_run_is_legible_and_says_what_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    grid = str(Path(__file__).resolve().parents[1] / "examples" / "grid.yaml")
    command = ["bench", grid, "--dry-run", "--measure", "texts,drift,concepts", "--out", str(tmp_path / "out")]
    assert run(command) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "lab, lab, seeds 0, 1, 2:" in lines
    rows = [line.split() for line in lines if line.startswith("  memit ")]
    assert len(rows) == 32
    assert rows[0] == ["memit", "False", "even", "0/1/2", "512"]
    assert said.err.count("skipped, invalid combination") == 1  # one reason for four methods
    assert said.err.count("  memit [") == 4
    assert "texts cannot be measured on lab: no fact has 'generation'" in said.err
    assert "concepts cannot be measured on lab: there are no concepts" in said.err
    assert "drift cannot" not in said.err
    monkeypatch.setenv("COLUMNS", "50")  # no room for columns: each label whole, on lines of its own
    assert run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  memit [solver.history=True, schedule=replay," in lines
    assert "      layers=0/2, solver.ridge=1024]" in lines


def test_missing_packages_are_reported_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pyarrow", "ray", "nltk"):
        monkeypatch.setitem(sys.modules, package, None)
    command = ["bench", *SMALL, "--ray", "local", "--measure", "texts", "--out", str(tmp_path / "out")]
    for options in ([], ["--dry-run"]):
        assert run([*command, *options]) == 2
        missing = [message for code, message in reported(capsys.readouterr().err) if code == "EXTRA_MISSING"]
        for name, extra in (("records", "eval"), ("--ray", "ray"), ("fluency", "eval")):
            assert any(name in message and f"errata[{extra}]" in message for message in missing), name
    assert not (tmp_path / "out").exists()


def test_a_process_that_is_killed_is_a_failed_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    def kill() -> None:
        deadline = time.monotonic() + 300
        while not [*out.glob("cells/*/run/batches/*.safetensors")] and time.monotonic() < deadline:
            time.sleep(0.05)
        (child,) = _cell_processes(out)
        os.kill(child, signal.SIGKILL)

    options = ["--seeds", "1", "--methods", "memit", "--edits", "16", "--out", str(out)]
    killer = threading.Thread(target=kill)
    killer.start()
    assert run(["bench", *light(tmp_path), *options]) == 1
    killer.join()
    said = capsys.readouterr().err
    assert "by signal 9" in " ".join(said.split())
    assert_reported(said, ("CELLS_FAILED", "1 cell of 1 "))
    assert run(["bench", "--out", str(out), "--retry"]) == 0


def _cell_processes(out: Path) -> list[int]:
    """The processes that work on a benchmark's cells."""
    wanted = {b"errata.benchmark.cell", str(out).encode()}
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and wanted <= _words(entry)]


def _words(process: Path) -> set[bytes]:
    """Of its command line, the last part of a module's name and the benchmark's directory in a path among them."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile
        return set()
    return {word.rsplit(b".", 1)[-1] for word in words} | {word.split(b"/cells/")[0] for word in words}
