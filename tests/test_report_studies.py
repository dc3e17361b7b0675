"""``errata report`` of studies, from outside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from errata.cli.main import run

from tests.support.bench_runs import MadeUp, write_run
from tests.support.studies import COMMAND, lines, made_up_findings, result, write_study

FINDINGS = replace(made_up_findings(), figures=[lines()])
PICTURES = {"lines.svg", "lines-dark.svg", "lines.png", "lines-dark.png"}


def study(directory: Path, *, finished: bool = True, name: str = "made-up") -> Path:
    return write_study(directory, result(name, FINDINGS), finished=finished)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_studys_report_is_written_beside_it_and_is_the_same_again(tmp_path: Path) -> None:
    directory = study(tmp_path / "made-up")
    before = names(directory)
    assert run(["report", str(directory)]) == 0
    assert names(directory) == before | {"report.html", "report.md", "figures"}
    assert names(directory / "figures") == PICTURES
    first = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert run(["report", str(directory)]) == 0
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == first


def test_a_folder_of_studies_has_one_report(tmp_path: Path) -> None:
    for name in ("b", "a"):
        study(tmp_path / "analysis" / name, name=name)
    (tmp_path / "analysis" / "notes").mkdir()
    out = tmp_path / "out"
    assert run(["report", str(tmp_path / "analysis"), "--out", str(out), "--format", "md"]) == 0
    assert names(out) == {"report.md", "figures"}
    document = (out / "report.md").read_text(encoding="utf-8")
    assert document.index("## Study a") < document.index("## Study b")
    assert names(out / "figures") == {f"{name}-{picture}" for name in "ab" for picture in PICTURES}
    assert run(["report", str(tmp_path / "analysis"), "--out", str(tmp_path / "one.html")]) == 0
    assert names(tmp_path) == {"analysis", "out", "one.html"}  # a page has its figures inside


def test_studies_are_added_to_a_benchmarks_report(tmp_path: Path) -> None:
    bench = write_run(tmp_path / "run", MadeUp(seeds=1, facts=20, batch=10))
    study(bench / "made-up")  # a benchmark is one, whatever else lies in its directory
    assert run(["report", str(bench), "--analysis", str(bench / "made-up"), "--format", "html,md,csv"]) == 0
    assert {"report.html", "report.md", "report.csv", "figures"} <= names(bench)
    assert names(bench / "figures") == PICTURES
    for name in ("report.html", "report.md"):
        text = (bench / name).read_text(encoding="utf-8")
        assert "Study made-up" in text
        assert "efficacy" in text.lower()


def test_of_a_folder_the_finished_studies_are_shown_and_the_others_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path / "a" / "done", name="done")
    study(tmp_path / "a" / "begun", name="begun", finished=False)
    bench = write_run(tmp_path / "run", MadeUp(seeds=1, facts=20, batch=10))
    for arguments, out in ((["{0}/a"], tmp_path / "a"), (["{0}/run", "--analysis", "{0}/a"], bench)):
        assert run(["report", *(each.format(tmp_path) for each in arguments), "--format", "html,md"]) == 0
        said = [
            capfd.readouterr().err,
            *((out / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md")),
        ]
        for text in said:
            assert "begunisnotfinished" in "".join(text.split())
            assert "".join(COMMAND.split()) in "".join(text.replace("\\", "").split())
        assert "warning: omitted" in said[0]
        for document in said[1:]:
            assert "Study done" in document
            assert "Study begun" not in document


def test_a_study_that_is_given_twice_is_shown_once(tmp_path: Path) -> None:
    bench = write_run(tmp_path / "run", MadeUp(seeds=1, facts=20, batch=10))
    for name in ("one", "two"):
        study(tmp_path / "a" / name, name=name)
    twice = ["--analysis", f"{tmp_path}/a/two", "--analysis", f"{tmp_path}/a/../a"]
    assert run(["report", str(bench), *twice, "--format", "md"]) == 0
    document = (bench / "report.md").read_text(encoding="utf-8")
    for name in ("one", "two"):
        assert f"../a/{name}/rows.csv" in document.replace("\\", "")
    assert [document.count(f"## Study {name}") for name in ("one", "two")] == [1, 1]


REFUSED: list[tuple[list[str], list[str]]] = [
    (["{0}/done", "--format", "csv,tex"], ["rows.csv", "LaTeX is not supported"]),
    (["{0}/done", "--out", "{0}/x.csv"], ["rows.csv"]),
    (["{0}/done", "--analysis", "{0}/done"], ["adds studies to a benchmark"]),
    (["{0}/begun"], ["is not finished", COMMAND]),
    (["{0}/waiting"], ["begun is not finished", "again is not finished", COMMAND]),
    (["{0}/run", "--analysis", "{0}/waiting"], ["begun is not finished", "again is not finished"]),
    (["{0}/empty"], ["[RUN_NOT_FOUND]", "errata analyse"]),
    (["{0}/nowhere"], ["[FILE_NOT_FOUND]"]),
    (
        ["{0}/empty", "--analysis", "{0}/empty", "--format", "csv"],
        ["contains neither a benchmark", "applies to HTML and Markdown"],
    ),
    (["{0}/run", "--analysis", "{0}/nothing"], ["[FILE_NOT_FOUND]"]),
    (["{0}/run", "--analysis", "{0}/begun"], ["is not finished"]),
    (["{0}/damaged"], ["Remove result.json", COMMAND]),
    (["{0}/wrong"], ["seconds", COMMAND]),
]


def test_unusable_studies_are_refused_and_nothing_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study(tmp_path / "done")
    study(tmp_path / "begun", finished=False)
    for name in ("begun", "again"):
        study(tmp_path / "waiting" / name, finished=False)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "run", MadeUp(seeds=1, facts=20, batch=10))
    damaged = study(tmp_path / "damaged") / "result.json"
    damaged.write_text(damaged.read_text(encoding="utf-8")[:50], encoding="utf-8")
    wrong = study(tmp_path / "wrong") / "result.json"
    whole = json.loads(wrong.read_text(encoding="utf-8"))
    whole["about"]["seconds"] = "long"
    wrong.write_text(json.dumps(whole), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    for arguments, parts in REFUSED:
        assert run(["report", *(argument.format(tmp_path) for argument in arguments)]) == 2, arguments
        said = capfd.readouterr().err
        for each in parts:
            assert "".join(each.split()) in "".join(said.split())
        assert sorted(tmp_path.rglob("*")) == before


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    assert run(["report", str(study(tmp_path / "made-up"))]) == 2
    assert "errata[plots]" in capfd.readouterr().err
