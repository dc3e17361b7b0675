"""``errata report`` from outside: what it writes, and what it says of directories that it cannot use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from errata.cli.main import run

from tests.support.bench_runs import MadeUp, write_run

SMALL = MadeUp(seeds=1, facts=20, batch=10)
REPORTS = {"report.html", "report.md", "report.csv", "report.tex"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("written") / "run", SMALL)


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "run"))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_all_formats_are_written_beside_the_results_and_again(directory: Path) -> None:
    before = names(directory)
    assert run(["report", str(directory)]) == 0
    assert names(directory) == before | REPORTS
    first = {name: (directory / name).read_bytes() for name in REPORTS}
    assert run(["report", str(directory)]) == 0
    assert {name: (directory / name).read_bytes() for name in REPORTS} == first


def test_formats_and_places_can_be_chosen(directory: Path, tmp_path: Path) -> None:
    assert run(["report", str(directory), "--format", "md,csv", "--out", str(tmp_path / "new" / "place")]) == 0
    assert names(tmp_path / "new" / "place") == {"report.md", "report.csv"}
    assert run(["report", str(directory), "--out", str(tmp_path / "table.tex")]) == 0
    assert "\\begin{tabular}" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert not REPORTS & names(directory)


@pytest.mark.parametrize("kind", ["html", "md", "csv", "tex"])
def test_only_reports_are_replaced(directory: Path, tmp_path: Path, kind: str) -> None:
    mine = tmp_path / f"mine.{kind}"
    mine.write_text("My own notes, a,b\n", encoding="utf-8")
    assert run(["report", str(directory), "--out", str(mine)]) == 2
    assert mine.read_text(encoding="utf-8") == "My own notes, a,b\n"
    (tmp_path / "place").mkdir()
    mine.rename(tmp_path / "place" / f"report.{kind}")
    assert run(["report", str(directory), "--out", str(tmp_path / "place")]) == 2
    assert names(tmp_path / "place") == {f"report.{kind}"}
    other = tmp_path / f"other.{kind}"
    other.touch()
    for _ in range(2):  # an empty file, and then a report
        assert run(["report", str(directory), "--out", str(other)]) == 0
    assert other.stat().st_size
    (directory / f"report.{kind}").write_text("made by an earlier version", encoding="utf-8")
    assert run(["report", str(directory), "--format", kind]) == 0
    assert (directory / f"report.{kind}").read_bytes() == other.read_bytes()


def test_a_cause_of_failures_is_reported_once_with_its_cells(directory: Path) -> None:
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    cells = summary["about"]["cells"]
    for cell, failure in zip(cells, ("the model is not finite", "the model is not finite", "no room"), strict=False):
        cell.update(status="failed", failure=failure, seconds=None)
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert run(["report", str(directory), "--format", "html,md"]) == 0
    texts = [(directory / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]
    for text in texts:
        assert text.count("the model is not finite") == text.count("no room") == 1
        (line,) = [line for line in " ".join(text.split()).split("no room")[0].split("ailed") if "not finite" in line]
        assert all(cell["id"] in line for cell in cells[:2])


def test_failed_and_unfinished_cells_are_reported(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    summary["about"]["cells"][0].update(status="failed", failure="it broke", seconds=None)
    summary["about"]["cells"][1].update(status="not done", seconds=None)
    summary["about"]["cells"][2].update(collapsed_at=7)
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert run(["report", str(directory)]) == 0
    said = capfd.readouterr().err
    assert "1 of 4 runs of the grid failed" in said
    assert "1 of 4 runs of the grid is unfinished" in said
    for name in ("report.html", "report.md"):
        text = (directory / name).read_text(encoding="utf-8")
        assert "it broke" in text
        assert "stopped before batch 7" in text
        assert "not finished" in text.lower()


def _rows(change: Callable[[list[dict[str, object]]], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        change(summary["rows"])
        (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")

    return damage


def _about(**values: object) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        summary["about"].update(values)
        (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")

    return damage


def _remove(*names: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return damage


def _cut(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(whole[: len(whole) // 2])

    return damage


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (_remove("summary.json"), "is not finished"),
    (
        _remove("summary.json", "grid.json"),
        "contains neither a benchmark",
    ),
    (_remove("records.parquet"), "cannot be read as Parquet"),
    (_cut("summary.json"), "it is not JSON"),
    (_cut("records.parquet"), "cannot be read as Parquet"),
    (_rows(lambda rows: rows.append({"method": 1})), "is not one of"),
    (_rows(lambda rows: rows.append(rows[0])), "duplicates rows"),
    (_about(cells=[{"id": "x"}]), "invalid 'about' in"),
    (_about(command=None), "summary.json: command: input"),
    (_about(notes=["\ud800"]), "not valid Unicode"),
]


def test_unusable_results_leave_no_partial_report(
    written: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, (damage, words) in enumerate(DAMAGE):
        directory = Path(shutil.copytree(written, tmp_path / str(number)))
        (directory / "report.html").write_text("older", encoding="utf-8")
        damage(directory)
        before = names(directory)
        assert run(["report", str(directory)]) == 2, words
        assert words in " ".join(capfd.readouterr().err.split())
        assert names(directory) == before
        assert (directory / "report.html").read_text(encoding="utf-8") == "older"


def test_an_unfinished_run_says_how_to_resume_it(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (directory / "summary.json").unlink()
    assert run(["report", str(directory)]) == 2
    assert f"errata bench --out {directory}" in capfd.readouterr().err.replace("\n", "")


def test_wrong_options_are_reported_with_wrong_directories(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    for options, words in (
        (["--format", "html,pdf"], "unknown format 'pdf'"),
        (["--out", f"{tmp_path}/report.pdf"], "unknown file extension"),
        (["--out", f"{tmp_path}/x.md", "--format", "html"], "but --format is html"),
        (["--out", f"{tmp_path}/summary.json"], "unknown file extension"),
    ):
        assert run(["report", str(tmp_path / "nothing"), *options]) == 2
        said = " ".join(capfd.readouterr().err.split())
        assert words in said
        assert "contains neither a benchmark" in said
        assert [path.name for path in tmp_path.iterdir()] == ["nothing"]
