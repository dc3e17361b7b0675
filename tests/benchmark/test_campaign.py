"""Grids of cells: what comes out is what editing and asking by hand gives, however often they are stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import errata.benchmark.cell
import errata.benchmark.workers
from errata.benchmark import measurements
from errata.benchmark.campaign import open_campaign
from errata.benchmark.cell import Check, open_cell
from errata.benchmark.collect import collect
from errata.benchmark.grid import Measures
from errata.benchmark.measurements import Measurement, MeasurementInputs, MeasurementResult
from errata.benchmark.workers import Processes, work
from errata.cli.bench_plan import show_results
from errata.editing.batch import BatchRecord
from errata.editors.locate_then_edit import Editor
from errata.errors import EditError, FaultsError, InputError, NonFiniteError
from errata.evaluation.perplexity import perplexity
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.report.bench_run import read_bench_run
from errata.results.records import Record, Row, read_results
from errata.runs.run import Manifest
from errata.utils.progress import Report, silent

from tests.support.bench import PROSE, UNTOUCHED, Inline, TinyBench, finish
from tests.support.errors import raises_code


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyBench:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return TinyBench.of(tmp_path)


def rows_in(summary: Path) -> dict[tuple[str, str, str, int], Row]:
    return {(row["method"], row["metric"], row["when"], row["edits"]): row for row in read_results(summary).rows}


def mean(records: list[Record], metric: str) -> float:
    values = [record.value for record in records if record.metric == metric]
    return sum(values) / len(values)


def test_the_rows_are_what_editing_and_asking_by_hand_gives(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit_seq", "memit_seq+blue"]))
    lines = finish(campaign)
    assert len(lines) == 4
    assert all("6 facts in" in line for line in lines)
    summary, _ = collect(campaign)
    rows = rows_in(summary)
    for method in ("memit_seq", "memit_seq+blue"):
        expected: dict[str, list[Record]] = {"right_after": [], "after": [], "first": [], "last": [], "sample": []}
        sums = {"before": torch.zeros(len(PROSE)), "after": torch.zeros(len(PROSE))}
        for spec in [spec for spec in bench.specs(campaign.grid) if spec.label == method]:
            facts = bench.material(spec.seed).facts.facts
            model = LanguageModel.load(str(bench.folder / "model"), device=torch.device("cpu"))
            sums["before"] += torch.tensor(perplexity(model, PROSE).log_likelihoods)
            done: list[Fact] = []

            def ask(
                batch: BatchRecord,
                model: LanguageModel = model,
                done: list[Fact] = done,
                facts: tuple[Fact, ...] = facts,
                expected: dict[str, list[Record]] = expected,
            ) -> None:
                expected["right_after"] += evaluate_facts(model, batch.facts, tokens=True)
                done.extend(batch.facts)
                if len(done) == 4:
                    expected["first"] += evaluate_facts(model, facts[:2])
                    expected["last"] += evaluate_facts(model, batch.facts)

            Editor(model, spec.recipe).apply(facts, on_batch=ask)
            expected["after"] += evaluate_facts(model, facts, untouched=UNTOUCHED, tokens=True)
            sums["after"] += torch.tensor(perplexity(model, PROSE).log_likelihoods)
        for when in ("right_after", "after"):
            for metric in {record.metric for record in expected[when]}:
                assert rows[method, metric, when, 6]["mean"] == pytest.approx(mean(expected[when], metric)), metric
        first = rows[method, "efficacy_accuracy_first", "during", 4]
        assert first["mean"] == mean(expected["first"], "efficacy_accuracy")
        last = rows[method, "efficacy_accuracy_last", "during", 4]
        assert last["mean"] == mean(expected["last"], "efficacy_accuracy")
        tokens = 2 * perplexity(model, PROSE).tokens
        ratio = float(((sums["before"].double() - sums["after"].double()).sum() / tokens).exp())
        assert rows[method, "perplexity_ratio", "after", 6]["mean"] == pytest.approx(ratio, rel=1e-5)
        assert rows[method, "perplexity_ratio", "after", 6]["n"] == len(PROSE)
        norms = [rows[method, "weight_norm_ratio", "during", edits]["mean"] for edits in (2, 4, 6)]
        assert 0 < norms[0] < norms[1] < norms[2]
        assert rows[method, "weight_norm_ratio", "after", 6]["mean"] == norms[2]
    # Facts that both seeds have are one cluster each, whatever the number of seeds.
    assert rows["memit_seq", "efficacy_accuracy", "after", 6]["n"] == 6
    # The check behind the last batch is of the same sample, so that curves go on to their end.
    assert rows["memit_seq", "efficacy_accuracy", "during", 6]["n"] <= 6


def test_the_table_of_records_holds_every_prompt_and_gives_the_same_means(bench: TinyBench, tmp_path: Path) -> None:
    from pyarrow.parquet import read_table  # slow, so not while tests are collected

    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=4))
    finish(campaign)
    summary, table = collect(campaign)
    rows = rows_in(summary)
    lines = read_table(table).to_pylist()
    assert {line["seed"] for line in lines} == {0, 1}
    answers: dict[tuple[int, str, str], dict[str, dict[str, Any]]] = {}
    for line in lines:
        if line["metric"] == "untouched_accuracy":
            answers.setdefault((line["seed"], line["fact"], line["prompt"]), {})[line["when"]] = line
    changed = [both["before"]["said"] != both["after"]["said"] for both in answers.values()]
    assert rows["memit", "untouched_changed", "after", 4]["mean"] == pytest.approx(sum(changed) / len(changed))
    assert rows["memit", "untouched_changed", "before", 4]["mean"] == 0
    for (method, metric, when, edits), row in rows.items():
        chosen = [line for line in lines if (line["method"], line["metric"], line["when"]) == (method, metric, when)]
        if when == "during":
            chosen = [line for line in chosen if line["edits"] == edits]
        if chosen:  # perplexity, norms and seconds are not of prompts
            assert sum(line["value"] for line in chosen) / len(chosen) == pytest.approx(row["mean"])
    answers = {line["prompt"]: line["expected"] for line in lines}
    assert answers["The crowd runs through the"] == "river"
    for fact in bench.material(0, 4).facts:
        assert answers[fact.text] == fact.target
        assert answers[fact.neighbours[0].prompt] == "Paris"
    about = read_results(summary).about
    assert about["notes"] == ["made for this test"]
    (absent,) = about["absent"]
    assert (absent["model"], absent["data"]) == (campaign.grid.models[0].name, "jsonl")
    assert absent["metrics"]["portability_accuracy"] == "no fact has 'portability'"
    assert not {row["metric"] for row in rows.values()} & absent["metrics"].keys()
    assert [cell["status"] for cell in about["cells"]] == ["done", "done"]


class Stop(KeyboardInterrupt):
    """As the user's Ctrl-C."""


def test_a_grid_that_is_stopped_anywhere_comes_out_the_same(bench: TinyBench, tmp_path: Path) -> None:
    grid = bench.grid(["memit_seq+blue"], seeds=(0,))
    whole = bench.begin(tmp_path / "whole", grid)
    finish(whole)
    expected = _without_seconds(collect(whole)[0])
    moments: list[tuple[str, int]] = []
    campaign = bench.begin(tmp_path / "stopped", grid)

    def stop(what: str, done: int) -> None:
        if (what, done) not in moments:
            moments.append((what, done))
            raise Stop

    while len(moments) < 12:
        with pytest.raises(Stop):
            finish(campaign, Inline(on_report=stop))
    finish(campaign)
    assert len(moments) == 12
    assert any(what == "facts edited" for what, _ in moments)
    assert _without_seconds(collect(campaign)[0]) == expected


def test_a_cause_of_failures_is_reported_in_full_once(
    bench: TinyBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit", "memit+blue"], seeds=(0, 1), edits=2))

    def break_all(cell: Path) -> None:
        raise EditError("the model is not finite", remedy="Try again")

    lines = finish(campaign, Inline(before_cell=break_all))
    assert len(lines) == 4
    assert sum("not finite" in line for line in lines) == 1
    first = lines[0].partition(": failed")[0]
    assert all(line.endswith(first) for line in lines[1:])
    show_results(campaign, *collect(campaign))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("not finite") == 1
    assert "4 cells" in said
    assert all(cell.name in said for cell in campaign.cells)


def _without_seconds(summary: Path) -> list[Row]:
    return [row for row in read_results(summary).rows if row["metric"] != "seconds_per_edit"]


def test_a_failed_cell_is_reported_and_the_others_continue(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit", "memit+blue"], seeds=(0,), edits=2))

    def break_first(cell: Path) -> None:
        if cell == campaign.cells[0]:
            raise EditError("no luck", remedy="Try again")

    runner = Inline(before_cell=break_first)
    lines = finish(campaign, runner)
    assert "failed: no luck" in lines[0]
    assert "2 facts" in lines[1]
    assert campaign.pending() == []  # not again unless asked for
    cells = read_results(collect(campaign)[0]).about["cells"]
    assert [(cell["status"], cell["failure"]) for cell in cells] == [("failed", "no luck. Try again"), ("done", None)]
    assert campaign.pending(retry=True) == [campaign.cells[0]]
    finish(campaign, retry=True)
    assert [cell["status"] for cell in read_results(collect(campaign)[0]).about["cells"]] == ["done", "done"]


class Killed:
    """The first cell fails; the others are worked on until they are killed."""

    def __init__(self, first: Path) -> None:
        self.first = first
        self.begun, self.stopped = threading.Event(), threading.Event()

    def run(self, cell: Path, report: Report) -> int:
        if cell == self.first:
            assert self.begun.wait(60)
            (cell / "failure.json").write_text('{"what": "no luck"}', encoding="utf-8")
            return 1
        report("facts edited", 3, 6)
        self.begun.set()
        assert self.stopped.wait(60)
        return -9

    def stop(self) -> None:
        self.stopped.set()


def test_cells_that_are_killed_do_not_count_as_done(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit", "memit+blue"], seeds=(0,)))
    runner, shown = Killed(campaign.cells[0]), []

    def lines(line: str) -> None:
        assert "no luck" in line
        raise Stop

    def report(what: str, done: int, total: int) -> None:
        if what == "all cells":
            shown.append((done, total))

    with pytest.raises(Stop):
        work(campaign, campaign.cells, runner, jobs=2, report=report, on_end=lines)
    assert shown == [(0, 2000), (450, 2000), (1450, 2000)]


def test_a_collapse_stops_the_run_before_its_batch(bench: TinyBench, tmp_path: Path) -> None:
    grid = bench.grid(["memit"], seeds=(0,))
    free = bench.begin(tmp_path / "free", grid.model_copy(update={"collapse": None}))
    finish(free)
    rows = rows_in(collect(free)[0])
    ratios = [1.0] + [rows["memit", "perplexity_ratio", "during", edits]["mean"] for edits in (2, 4, 6)]
    worst = ratios.index(max(ratios))
    assert worst > 0  # else this test says nothing
    limit = (max(ratios[:worst]) + ratios[worst]) / 2
    campaign = bench.begin(tmp_path / "out", grid.model_copy(update={"collapse": limit}))
    lines = finish(campaign)
    assert f"stopped before batch {worst}" in lines[0]
    summary, _ = collect(campaign)
    (cell,) = read_results(summary).about["cells"]
    assert (cell["status"], cell["collapsed_at"], cell["edits"]) == ("done", worst, 2 * worst - 2)
    found = rows_in(summary)
    there = 2 * worst - 2
    assert found["memit", "perplexity_ratio", "after", there]["mean"] == pytest.approx(ratios[worst - 1])
    # All facts of the run are asked: those that were never edited count as what they are.
    assert found["memit", "efficacy_accuracy", "after", there]["n"] == 6
    assert ("memit", "efficacy_accuracy", "before", 6) in found
    assert {edits for _, _, when, edits in found if when == "right_after"} <= {there}


def test_more_can_be_measured_later_but_nothing_else_can_change(bench: TinyBench, tmp_path: Path) -> None:
    grid = bench.grid(["memit"], seeds=(0,), edits=2)
    campaign = bench.begin(tmp_path / "out", grid)
    finish(campaign)
    options = {"recall": {"again": True}}
    more = bench.begin(tmp_path / "out", grid.model_copy(update={"measures": Measures(options=options)}))
    assert [cell.name for cell in more.cells] == [cell.name for cell in campaign.cells]
    assert more.pending() == list(more.cells)
    edited = (more.cells[0] / "run" / "ledger.jsonl").read_bytes()
    finish(more)
    assert (more.cells[0] / "run" / "ledger.jsonl").read_bytes() == edited
    assert more.pending() == []
    with pytest.raises(FaultsError) as caught:
        bench.begin(tmp_path / "out", grid.model_copy(update={"edits": 4, "batch_size": 1}))
    assert {(fault.where, fault.code) for fault in caught.value.faults} == {
        ("edits", "BENCH_MISMATCH"),
        ("batch_size", "BENCH_MISMATCH"),
    }
    with raises_code("BENCH_MISMATCH", InputError, "recipe"):
        bench.begin(tmp_path / "out", grid, layers=(1, 3))


def test_what_is_no_benchmark_or_was_changed_is_refused(bench: TinyBench, tmp_path: Path) -> None:
    with raises_code("BENCH_MISSING", InputError, str(tmp_path)):
        open_campaign(tmp_path)
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], seeds=(0,), edits=2))
    (material,) = (tmp_path / "out" / "material").iterdir()
    text = material.read_text(encoding="utf-8")
    material.write_text(text.replace("Paris", "Parks"), encoding="utf-8")
    assert "checksum" in finish(campaign)[0]
    material.write_text(text, encoding="utf-8")
    finish(campaign, retry=True)
    said = next((campaign.cells[0] / "run" / "batches").glob("*.json"))
    said.write_text(said.read_text(encoding="utf-8").replace("1.0", "0.0", 1) + " ", encoding="utf-8")
    (about_cell,) = read_results(collect(campaign)[0]).about["cells"]
    assert about_cell["status"] == "failed"
    assert "changed or damaged" in about_cell["failure"]
    record = json.loads((tmp_path / "out" / "grid.json").read_text(encoding="utf-8"))
    (tmp_path / "out" / "grid.json").write_text(json.dumps({**record, "format": "other"}), encoding="utf-8")
    with raises_code("BENCH_DAMAGED", InputError, "grid.json", "'other'"):
        open_campaign(tmp_path / "out")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", '{"key": 1}'])
def test_garbage_as_the_record_of_a_cell_is_an_input_error(content: str, bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=2))
    (campaign.cells[0] / "cell.json").write_text(content, encoding="utf-8")
    for read in (campaign.spec, lambda cell: open_cell(cell, silent)):
        with raises_code("CELL_FILE_DAMAGED", InputError, "cell.json"):
            read(campaign.cells[0])


def test_a_damaged_specification_costs_one_cell(bench: TinyBench, tmp_path: Path) -> None:
    """Of a finished benchmark, and of one whose other cells are still to be edited."""
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], seeds=(0, 1, 2), edits=2))
    first, second, third = campaign.cells
    with pytest.raises(Stop):
        finish(campaign, Inline(before_cell=lambda cell: _interrupt_unless(cell, first)))
    (second / "cell.json").write_text('{"format": ', encoding="utf-8")
    lines = finish(campaign)
    assert [second.name in line for line in lines] == [True, False]
    assert "cell.json" in lines[0]
    assert "2 facts in" in lines[1]
    (third / "cell.json").write_text("{}", encoding="utf-8")
    summary, _ = collect(campaign)
    cells = read_results(summary).about["cells"]
    assert [cell["status"] for cell in cells] == ["done", "failed", "failed"]
    assert all("cell.json" in cell["failure"] for cell in cells[1:])
    assert [cell["seed"] for cell in cells] == [0, None, None]
    assert rows_in(summary)["memit", "efficacy_accuracy", "after", 2]["n"] == 2
    assert [cell.status for cell in read_bench_run(campaign.directory).about.cells] == ["done", "failed", "failed"]


def _interrupt_unless(cell: Path, first: Path) -> None:
    if cell != first:
        raise Stop


def test_a_damaged_record_of_a_failure_stops_nothing(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=2))
    broken = campaign.cells[0]
    (broken / "failure.json").write_text("{", encoding="utf-8")
    assert campaign.pending() == [campaign.cells[1]]
    finish(campaign)
    cells = read_results(collect(campaign)[0]).about["cells"]
    assert [cell["status"] for cell in cells] == ["failed", "done"]
    assert "failure.json" in cells[0]["failure"]
    finish(campaign, retry=True)
    assert [cell["status"] for cell in read_results(collect(campaign)[0]).about["cells"]] == ["done", "done"]


def test_a_new_attempt_removes_traces_of_the_failed_one(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], seeds=(0,), edits=2))
    (cell,) = campaign.cells
    for name in ("failure.json", "traceback.txt", "errors.txt"):
        (cell / name).write_text('{"what": "no luck"}', encoding="utf-8")
    finish(campaign, retry=True)
    assert campaign.is_done(cell)
    assert not {"failure.json", "traceback.txt", "errors.txt"} & {path.name for path in cell.iterdir()}


def test_a_result_of_other_content_costs_one_cell(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=2))
    finish(campaign)
    path = campaign.cells[0] / "after" / "perplexity.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**record, "kept": {}}), encoding="utf-8")
    cells = read_results(collect(campaign)[0]).about["cells"]
    assert [cell["status"] for cell in cells] == ["failed", "done"]
    assert "perplexity" in cells[0]["failure"]


def test_a_collapse_is_kept_so_that_going_on_does_not_try_the_batch_again(
    bench: TinyBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = {"now": 9.0}

    def faked(check: Check, number: int) -> tuple[None, float]:
        return None, ratios["now"] if number == 2 else 1.0

    monkeypatch.setattr(Check, "_ratio", faked)
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], seeds=(0,)))

    def stop(what: str, done: int) -> None:
        if what.startswith("after"):
            raise Stop

    with pytest.raises(Stop):
        finish(campaign, Inline(on_report=stop))
    ratios["now"] = 1.0  # as another machine might find
    finish(campaign)
    (cell,) = read_results(collect(campaign)[0]).about["cells"]
    assert (cell["collapsed_at"], cell["edits"], cell["ratio"]) == (2, 2, 9.0)


def test_what_is_no_number_stops_a_run_as_a_collapse_does(
    bench: TinyBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = errata.benchmark.cell.perplexity
    calls = []

    def broken(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise NonFiniteError("perplexity", facts=(), layer=None)
        return original(*arguments, **options)

    monkeypatch.setattr(errata.benchmark.cell, "perplexity", broken)
    grid = bench.grid(["memit"], seeds=(0,), collapse=None)
    lines = finish(campaign := bench.begin(tmp_path / "out", grid))
    assert "stopped before batch 2" in lines[0]
    (cell,) = read_results(collect(campaign)[0]).about["cells"]
    assert (cell["status"], cell["collapsed_at"], cell["ratio"]) == ("done", 2, None)


def test_asking_for_more_loses_nothing_that_was_measured(bench: TinyBench, tmp_path: Path) -> None:
    grid = bench.grid(["memit"], seeds=(0,), edits=2)
    for parts in (("drift",), ("side",), ()):
        campaign = bench.begin(tmp_path / "out", grid.model_copy(update={"measures": Measures(parts=parts)}))
        finish(campaign)
    metrics = {row["metric"] for row in read_results(collect(campaign)[0]).rows if row["when"] == "after"}
    assert {"drift_kl_neighbours", "negation_accuracy"} <= metrics
    assert campaign.grid.measures.parts == ("drift", "side")


def test_files_that_measurements_read_must_stay_what_they_were(bench: TinyBench, tmp_path: Path) -> None:
    references = tmp_path / "references.jsonl"
    line = {"relation": "city", "target": "Paris", "text": "She was born in Paris."}
    references.write_text(json.dumps(line) + "\n", encoding="utf-8")
    options = {"texts": {"references": str(references), "corpus": str(bench.folder / "corpus.txt")}}
    grid = bench.grid(["memit"], seeds=(0,), edits=2, measures=Measures(parts=("texts",), options=options))
    campaign = bench.begin(tmp_path / "out", grid)
    campaign.check_inputs()
    references.write_text(json.dumps(line | {"text": "He was born in Paris."}) + "\n", encoding="utf-8")
    with raises_code("BENCH_INPUT_CHANGED", FaultsError, "references.jsonl: "):
        campaign.check_inputs()
    references.unlink()
    with raises_code("FILE_UNREADABLE", FaultsError, str(references)):
        campaign.check_inputs()
    record = (tmp_path / "out" / "grid.json").read_bytes()
    with campaign.locked():
        with raises_code("FILE_UNREADABLE", FaultsError, "references.jsonl: texts "):
            campaign.measuring(Measures(parts=("drift",)), (), "errata bench --measure drift")
        assert (tmp_path / "out" / "grid.json").read_bytes() == record
        assert campaign.measuring(Measures(parts=("drift",)), ["texts"], "x").grid.measures == Measures(
            parts=("drift",)
        )


def write_tasks(folder: Path) -> Path:
    """A group of two tasks over one file of data, with a function of their own."""
    (folder / "tasks").mkdir()
    rows = [{"text": text, "right": 0} for text in ("The river runs through the", "The piano is what she")]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "tasks" / "utils.py").write_text("def choices(doc):\n    return ['city', 'rain']\n", encoding="utf-8")
    (folder / "tasks" / "common").write_text(
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'data.jsonl'}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: !function utils.choices\n"
        "doc_to_target: right\n",
        encoding="utf-8",
    )
    for name in ("one", "two"):
        text = f"include: common\ntask: {name}\n"
        (folder / "tasks" / f"{name}.yaml").write_text(text, encoding="utf-8")
    group = "group: both\ntask: [one, two]\naggregate_metric_list: [{metric: acc, aggregation: mean}]\n"
    (folder / "tasks" / "both.yaml").write_text(group, encoding="utf-8")
    return folder / "tasks"


def test_a_groups_number_is_the_harness_own(bench: TinyBench, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path)
    measures = Measures(parts=("ability",), options={"ability": {"tasks": [str(tasks)]}})
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=2, measures=measures))
    campaign.check_inputs()
    finish(campaign)
    found = rows_in(collect(campaign)[0])
    for when in ("before", "after"):
        row = found["memit", "ability:both:acc", when, 2]
        assert row["mean"] == pytest.approx(found["memit", "ability:one:acc", when, 2]["mean"])
        assert (row["low"], row["high"], row["n"]) == (None, None, 4)


@pytest.mark.parametrize("name", ["data.jsonl", "tasks/utils.py", "tasks/common", "tasks/one.yaml"])
def test_what_local_tasks_read_must_stay_what_it_was(bench: TinyBench, tmp_path: Path, name: str) -> None:
    tasks = write_tasks(tmp_path)
    measures = Measures(parts=("ability",), options={"ability": {"tasks": [str(tasks)]}})
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], seeds=(0,), edits=2, measures=measures))
    campaign.check_inputs()
    path = tmp_path / name
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with raises_code("BENCH_INPUT_CHANGED", FaultsError, f"{name}: changed "):
        campaign.check_inputs()
    record = (tmp_path / "out" / "grid.json").read_bytes()
    more = Measures(parts=("ability", "drift"), options=measures.options)
    with campaign.locked(), raises_code("BENCH_INPUT_CHANGED", FaultsError, name):
        campaign.measuring(more, (), "errata bench --measure drift")
    assert (tmp_path / "out" / "grid.json").read_bytes() == record


def test_files_are_compared_as_a_whole_set(bench: TinyBench, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path)
    measures = Measures(parts=("ability",), options={"ability": {"tasks": [str(tasks)]}})
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], seeds=(0,), edits=2, measures=measures))
    (tasks / "helpers.py").write_text("", encoding="utf-8")
    with raises_code("BENCH_INPUT_CHANGED", FaultsError, "helpers.py: added "):
        campaign.check_inputs()
    (tasks / "helpers.py").unlink()
    (tasks / "two.yaml").unlink()
    (tasks / "both.yaml").write_text("group: both\ntask: [one]\n", encoding="utf-8")
    with raises_code("BENCH_INPUT_CHANGED", FaultsError, "two.yaml: removed "):
        campaign.check_inputs()


def test_cells_share_what_depends_on_neither_facts_nor_seed(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit", "memit+blue"], edits=2))
    finish(campaign)
    noted = [json.loads((cell / "before.json").read_text(encoding="utf-8")) for cell in campaign.cells]
    assert len({entry["perplexity"] for entry in noted}) == 1  # four cells, one prose
    assert len({entry["recall"] for entry in noted}) == 2  # two seeds, so two draws of facts
    for entry in noted:
        assert all((tmp_path / "out" / "before" / name).is_file() for name in entry.values())


@pytest.mark.parametrize("changed", ["model", "corpus.txt"])
def test_all_cells_begin_with_the_same_weights_and_the_same_text(
    bench: TinyBench, tmp_path: Path, changed: str
) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=2))
    second = campaign.cells[1]

    def stop(cell: Path) -> None:
        if cell == second:
            raise Stop

    with pytest.raises(Stop):
        finish(campaign, Inline(before_cell=stop))
    if changed == "model":
        other = LanguageModel.load(str(bench.folder / "model"), device=torch.device("cpu"))
        with torch.no_grad():
            next(other.model.parameters()).mul_(1.5)
        other.model.save_pretrained(bench.folder / "model")
    else:
        corpus = bench.folder / "corpus.txt"
        corpus.write_text(corpus.read_text(encoding="utf-8").replace("the", "a"), encoding="utf-8")
    (line,) = finish(campaign)
    assert f"{bench.folder / changed}'" in line
    assert "differs from the one that other cells" in line
    assert not (second / "run").exists()  # so that it can go on when all is as it was
    assert [cell["status"] for cell in read_results(collect(campaign)[0]).about["cells"]] == ["done", "failed"]


def test_nobody_else_works_in_a_benchmark_meanwhile(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], seeds=(0,), edits=2))
    with campaign.locked(), raises_code("LOCKED", InputError, str(tmp_path / "out")), campaign.locked():
        pass
    with campaign.locked():
        pass


@pytest.mark.parametrize("name", ["result.json", "after/recall.json", "before/recall.json"])
def test_a_damaged_file_costs_one_cell_and_is_made_again_when_it_is_removed(
    bench: TinyBench, tmp_path: Path, name: str
) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=2))
    finish(campaign)
    expected = _without_seconds(collect(campaign)[0])
    cell = campaign.cells[0]
    path = cell / name
    if name.startswith("before"):
        noted = json.loads((cell / "before.json").read_text(encoding="utf-8"))
        path = tmp_path / "out" / "before" / noted["recall"]
    path.write_text(path.read_text(encoding="utf-8")[:50], encoding="utf-8")
    summary, _ = collect(campaign)
    failed, other = read_results(summary).about["cells"]
    assert (failed["status"], other["status"], other["failure"]) == ("failed", "done", None)
    assert f"cannot read {path}" in failed["failure"]
    assert "Remove it" in failed["failure"]
    assert read_results(summary).rows  # of the other cell
    path.unlink()
    assert campaign.pending() == [cell]
    ledger = (cell / "run" / "ledger.jsonl").read_bytes()
    finish(campaign)
    assert (cell / "run" / "ledger.jsonl").read_bytes() == ledger
    assert _without_seconds(collect(campaign)[0]) == expected


@pytest.mark.parametrize("left", ["", "{"])
def test_a_lost_note_of_the_unedited_answers_is_made_again(bench: TinyBench, tmp_path: Path, left: str) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], seeds=(0,), edits=2))
    finish(campaign)
    note = campaign.cells[0] / "before.json"
    whole = note.read_text(encoding="utf-8")
    note.write_text(left, encoding="utf-8") if left else note.unlink()
    assert campaign.pending() == list(campaign.cells)
    finish(campaign)
    assert note.read_text(encoding="utf-8") == whole


def _break(monkeypatch: pytest.MonkeyPatch, name: str, seed: int | None = None) -> None:
    """A further measurement fails, of one seed alone if one is given."""

    def with_fault(part: Measurement) -> Measurement:
        def ask(inputs: MeasurementInputs) -> MeasurementResult:
            if seed in (None, inputs.seed):
                raise InputError("no such task", remedy="Name another")
            return part.run(inputs)

        return replace(part, run=ask)

    parts = tuple(with_fault(part) if part.name == name else part for part in measurements.OPTIONAL)
    monkeypatch.setattr(measurements, "OPTIONAL", parts)


def test_a_measurement_that_fails_costs_nothing_else(
    bench: TinyBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = bench.grid(["memit"], edits=2)
    campaign = bench.begin(tmp_path / "out", grid)
    finish(campaign)
    expected = _without_seconds(collect(campaign)[0])
    more = grid.model_copy(update={"measures": Measures(parts=("drift", "side"))})
    with monkeypatch.context() as broken:
        _break(broken, "drift")
        campaign = bench.begin(tmp_path / "out", more)
        lines = finish(campaign)
        assert len(lines) == 2
        assert "measurement 'drift'" in lines[0]
        assert "no such task" in lines[0]
        assert "no such task" not in lines[1], "the same cause is lines once"
        results = read_results(collect(campaign)[0])
    rows = [row for row in results.rows if row["metric"] != "seconds_per_edit"]
    assert [row for row in rows if row in expected] == expected  # nothing is lost
    assert any(row["metric"] == "negation_accuracy" for row in rows)  # what comes behind it is measured
    cells = results.about["cells"]
    assert [cell["status"] for cell in cells] == ["done", "done"]
    assert all("no such task" in cell["failure"] for cell in cells)
    (absent,) = results.about["absent"]
    assert "no such task. Name another" in absent["metrics"]["drift"]
    # It can be tried again, or be dropped.
    assert campaign.pending() == []
    assert campaign.pending(retry=True) == list(campaign.cells)
    with campaign.locked():
        with raises_code("MEASUREMENT_UNKNOWN", InputError, "'texts'"):
            campaign.measuring(None, ["texts"], "errata bench --without texts")
        campaign = campaign.measuring(None, ["drift"], "errata bench --without drift")
    assert campaign.grid.measures.parts == ("side",)
    assert campaign.pending(retry=True) == []
    about = read_results(collect(campaign)[0]).about
    assert [cell["failure"] for cell in about["cells"]] == [None, None]
    assert "drift" not in about["absent"][0]["metrics"]
    assert about["commands"][1:] == ["errata bench (a test) drift side", "errata bench --without drift"]
    assert about["command"] == about["commands"][0] == "errata bench (a test)"


def test_a_measurement_that_some_cells_lack_is_reported(
    bench: TinyBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break(monkeypatch, "drift", seed=1)
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=2, measures=Measures(parts=("drift",))))
    finish(campaign)
    results = read_results(collect(campaign)[0])
    assert any(row["metric"] == "drift_kl_neighbours" for row in results.rows)
    assert not any("drift" in entry["metrics"] for entry in results.about["absent"])
    (note,) = [note for note in results.about["notes"] if "drift" in note]
    assert "memit, seed 1: drift is not measured: " in note
    assert "no such task" in note


def test_the_origin_of_cells_is_reported(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=4))
    finish(campaign)
    for cell, version in zip(campaign.cells, ("1.0", "2.0"), strict=True):
        path = cell / "run" / "run.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        record["versions"] = {"torch": version}
        del record["checksum"]
        path.write_text(json.dumps({**record, "checksum": Manifest(**record).checksum()}), encoding="utf-8")
    results = read_results(collect(campaign)[0])
    assert results.about["versions"] == [{"torch": "1.0"}, {"torch": "2.0"}]
    assert results.about["recipes"]["memit"]["contexts"]["seed"] == 0  # the first seed's
    assert {row["seeds"] for row in results.rows if row["when"] == "during"} == {2}
    for cell, cell_about in zip(campaign.cells, results.about["cells"], strict=True):
        edited = json.loads((cell / "result.json").read_text(encoding="utf-8"))["seconds"]
        asked = [json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in (cell / "after").iterdir()]
        assert cell_about["seconds"] == pytest.approx(edited + sum(asked))
        assert edited > 0 < min(asked)


def test_a_cell_resumed_under_other_settings_notes_it(
    bench: TinyBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], edits=4))

    def stop(what: str, done: int) -> None:
        if (what, done) == ("facts edited", 2):
            raise Stop

    with pytest.raises(Stop):
        finish(campaign, Inline(on_report=stop))
    run = campaign.cells[0] / "run"
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    del record["checksum"]
    record["threads"] += 1
    (run / "run.json").write_text(json.dumps({**record, "checksum": Manifest(**record).checksum()}), encoding="utf-8")
    finish(campaign)
    summary, table = collect(campaign)
    about = read_results(summary).about
    words = "not bit for bit"
    assert [[words in note for note in cell["notes"]] for cell in about["cells"]] == [[True], []]
    (note,) = [note for note in about["notes"] if words in note]
    assert "memit, seed 0: the run began with" in note
    show_results(campaign, summary, table)
    assert words in " ".join(capsys.readouterr().err.split())


def test_seconds_are_those_of_all_sittings(bench: TinyBench, tmp_path: Path) -> None:
    campaign = bench.begin(tmp_path / "out", bench.grid(["memit"], seeds=(0,)))

    def stop(what: str, done: int) -> None:
        if (what, done) == ("facts edited", 4):
            raise Stop

    with pytest.raises(Stop):
        finish(campaign, Inline(on_report=stop))
    finish(campaign)
    (cell,) = campaign.cells
    said = [json.loads(path.read_text(encoding="utf-8")) for path in (cell / "run" / "batches").glob("*.json")]
    batches = [json.loads(line) for line in (cell / "run" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [entry["seconds"] for entry in said] + [line["seconds"] for line in batches if line["kind"] == "batch"]
    assert len(seconds) == 6
    result = json.loads((cell / "result.json").read_text(encoding="utf-8"))
    assert result["seconds"] == pytest.approx(sum(seconds))


def test_what_a_process_says_beside_its_progress_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "print('[nltk_data] Downloading'); print('errata-progress [\"x\", 1, 2]')"
    original = subprocess.Popen

    def started(command: list[str], **options: Any) -> Any:
        return original([sys.executable, "-c", script], **options)

    monkeypatch.setattr(errata.benchmark.workers.subprocess, "Popen", started)
    heard: list[tuple[str, int, int]] = []
    (tmp_path / "cell").mkdir()
    assert Processes().run(tmp_path / "cell", lambda *update: heard.append(update)) == 0
    assert heard == [("x", 1, 2)]
