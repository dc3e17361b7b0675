"""What a benchmark says of itself before its end: how long it takes, and what its finished cells have found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from errata.benchmark.campaign import Campaign, open_campaign
from errata.benchmark.workers import work
from errata.cli.bench_plan import Plan, measured_speed, search_operations, time_left
from errata.cli.main import run
from errata.models.loading import Outline
from errata.results.records import read_results
from errata.utils.progress import silent

from tests.support.bench import Inline, TinyBench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyBench:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return TinyBench.of(tmp_path)


def half_done(bench: TinyBench, out: Path) -> Campaign:
    campaign = bench.begin(out, bench.grid(["memit", "memit+blue"], seeds=(0,), edits=2))
    work(campaign, campaign.cells[:1], Inline(), jobs=1, report=silent, on_end=lambda text: None)
    return campaign


def test_a_report_of_an_unfinished_benchmark_shows_what_is_finished_and_says_so(
    bench: TinyBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    campaign = half_done(bench, out)
    assert run(["bench", "--out", str(out), "--dry-run", "--json", str(tmp_path / "plan.json")]) == 0
    planned = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["cells"]
    assert [cell["label"] for cell in planned] == ["memit+blue"]
    capsys.readouterr()
    assert run(["report", str(out), "--format", "md,html,csv"]) == 0
    assert "1 of 2 runs of the grid is unfinished" in " ".join(capsys.readouterr().err.split())
    assert {row["method"] for row in read_results(out / "summary.json").rows} == {"memit"}
    for name in ("report.md", "report.html"):
        text = (out / name).read_text(encoding="utf-8").lower()
        assert "not finished" in text
        assert campaign.cells[1].name in text
    # The results that it has put together do not outlive further work.
    work(campaign, campaign.pending(), Inline(), jobs=1, report=silent, on_end=lambda text: None)
    assert run(["report", str(out), "--format", "csv"]) == 0
    assert "unfinished" not in capsys.readouterr().err
    assert {row["method"] for row in read_results(out / "summary.json").rows} == {"memit", "memit+blue"}


def test_a_report_of_a_benchmark_without_any_finished_cell_says_how_to_resume(
    bench: TinyBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    bench.begin(out, bench.grid(["memit"], seeds=(0,), edits=2))
    assert run(["report", str(out)]) == 2
    assert "errata bench --out" in " ".join(capsys.readouterr().err.split())
    assert not (out / "summary.json").exists()


def test_the_time_left_is_that_of_the_finished_cells(
    bench: TinyBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = half_done(bench, tmp_path / "out")
    result = campaign.cells[0] / "result.json"
    record = json.loads(result.read_text(encoding="utf-8"))
    result.write_text(json.dumps({**record, "seconds": 7200.0}), encoding="utf-8")
    assert "2 h 00 min" in time_left(campaign, campaign.pending())
    assert time_left(campaign, []) == ""
    assert run(["bench", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 cell of 2 remaining" in said
    assert "about 2 h 00 min" in said
    assert time_left(open_campaign(tmp_path / "out"), campaign.cells) != ""
    result.write_text("{", encoding="utf-8")
    assert time_left(campaign, campaign.pending()) == ""


def test_operations_grow_with_what_is_searched(bench: TinyBench) -> None:
    name = str(bench.folder / "model")

    def operations(methods: list[str], seeds: tuple[int, ...] = (0,), edits: int = 4) -> float:
        grid = bench.grid(methods, seeds=seeds, edits=edits)
        plan = Plan(specs=bench.specs(grid), outlines={name: Outline.load(name)})
        plan.materials = {spec.material: bench.material(spec.seed, edits) for spec in plan.specs}
        (found,) = search_operations(plan).values()
        return found

    one = operations(["memit"])
    assert one > 0
    assert operations(["memit", "memit_seq"]) == 2 * one  # both search at the last layer
    assert operations(["memit+blue"]) > one  # at the first layer too
    assert one < operations(["memit"], edits=6) < 3 * one


def test_a_dry_run_names_a_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--methods", "memit", "--edits", "4", "--seeds", "1", "--out", str(tmp_path / "out"), "--dry-run"]
    assert run(["bench", *options]) == 0
    assert "target searches of all cells" in " ".join(capsys.readouterr().out.split())
    size = Outline.load("lab").size
    assert 1e7 < measured_speed(size, torch.device("cpu"), torch.float32) < 1e15
