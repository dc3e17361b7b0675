"""``errata bench``: run a grid of models, data sets, methods and seeds."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.benchmark import OPTIONAL_MEASUREMENTS
from errata.benchmark.campaign import Campaign, begin, open_campaign
from errata.benchmark.collect import check_table, collect
from errata.benchmark.grid import (
    Grid,
    check_trusted,
    grid_of,
    model_entry,
    placed_prose,
    placed_task,
    read_grid,
    valid_part,
)
from errata.benchmark.worker import Ranks
from errata.benchmark.workers import Processes, RayCluster, check_ray, work
from errata.cli.bench_plan import (
    Plan,
    absolute,
    absolute_corpus,
    absolute_if_given,
    entries_of,
    judge_of,
    list_cells,
    measures_of,
    named_data,
    names_in,
    number_or_text,
    plan_of,
    seeds_named,
    show_plan,
    show_results,
    time_left,
    time_needed,
)
from errata.cli.model_options import (
    CorpusOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    ProseOption,
    StatisticsOption,
    TrustOption,
    UntouchedOption,
)
from errata.cli.terminal import JsonOption, echo, progress, warn, write_json
from errata.errors import ErrataError, Fault, FaultsError, InputError, InterruptedRunError, collect_errors
from errata.models.copies import process_count
from errata.results.records import read_results
from errata.utils.files import check_new
from errata.utils.text import counted

HELP = (
    "Run a benchmark: edit facts in sequential batches with several methods and measure them.\n\n"
    "Every combination of model, data set, method and seed is a cell, run in its own process, which may be killed at "
    "any time. Running the same command again, or `errata bench --out` alone, resumes the benchmark: finished cells "
    "are not repeated, and interruptions do not change the results. A failed cell is reported; the rest continue. "
    "Further --measure options can be added later; they measure the same edits.\n\n"
    "Results are written to summary.json (means with 95 % confidence intervals) and records.parquet (one row per "
    "prompt); `errata report` turns them into tables and figures. docs/bench.md describes each measurement and when it "
    "runs.\n\n"
    "Metrics named …_success: the correct one of two continuations is more likely. Metrics named …_accuracy: the model "
    "would generate the answer. docs/bench.md relates the papers' names (ES, PS, NS, S …) to these."
)
EXAMPLE = (
    "Example: errata bench --model lab --data lab --methods memit,memit+blue,alphaedit,alphaedit+blue "
    "--edits 1000 --batch-size 100 --eval-every 2 --seeds 3 --out runs/x\n\n"
    "A published table: errata bench --model meta-llama/Meta-Llama-3-8B-Instruct --data counterfact "
    "--corpus wikipedia.txt --methods memit,alphaedit,alphaedit+blue --edits 2000 --batch-size 100 --collapse none "
    "--measure texts --references refs.jsonl --reference-corpus wikipedia.txt --out runs/llama3\n\n"
    "A grid: errata bench examples/grid.yaml --out runs/factorial"
)
app = typer.Typer()


@app.command("bench", help=HELP, epilog=EXAMPLE)
def bench(
    grid: Annotated[
        Path | None, typer.Argument(metavar="[GRID.yaml]", help="Grid file; options override its keys.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory of the benchmark; an existing one is resumed.")
    ] = Path("runs/bench"),
    model: Annotated[str | None, typer.Option("--model", "-m", help="Comma-separated models; default: lab.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Comma-separated data sets, each NAME or NAME=FILE; default: lab."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated methods (see `errata methods`), each with or without +blue.")
    ] = None,
    edits: Annotated[int | None, typer.Option(min=1, help="Facts per cell.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Facts solved jointly; default: 100.")] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=0, help="Batches between intermediate evaluations; 0 disables them; default: 5.")
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Facts per intermediate evaluation; default: 200.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Number of seeds (3 means 0, 1 and 2) or a comma-separated list (7,8,); default: 3."),
    ] = None,
    collapse: Annotated[
        str | None,
        typer.Option(
            help="Stop a cell when perplexity exceeds this multiple of the unedited model's, or 'none'; default: 1.5."
        ),
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help=f"Comma-separated further measurements: {', '.join(OPTIONAL_MEASUREMENTS)}.")
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(help="Comma-separated optional measurements to drop from an existing benchmark."),
    ] = None,
    wild: Annotated[bool, typer.Option("--wild", help="free: follow Yang et al. (2025) exactly.")] = False,
    judge: Annotated[
        str | None, typer.Option(metavar="URL", help="free: OpenAI-compatible endpoint that judges answers.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="free: model of the judge.")] = None,
    judge_key: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="free: environment variable with the judge's API key.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="texts: JSONL of {relation, target, text}, for the consistency metric.")
    ] = None,
    reference_corpus: Annotated[
        Path | None, typer.Option(help="texts: text for TF-IDF weights, for the consistency metric.")
    ] = None,
    general: Annotated[
        str | None, typer.Option(help="ability: comma-separated tasks of lm-evaluation-harness, or YAML files.")
    ] = None,
    probes: Annotated[Path | None, typer.Option(help="ability: directory with the six probes of the papers.")] = None,
    prose: ProseOption = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe for all models; default: the shipped ones.")] = None,
    corpus: CorpusOption = None,
    statistics: StatisticsOption = None,
    untouched: UntouchedOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Number of cells to run in parallel.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(help="Run on a Ray cluster: its address, or 'local'; OUT must be on a shared file system."),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed cells again.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    dry_run: DryRunOption = False,
    trust_remote_code: TrustOption = False,
    json: JsonOption = None,
) -> None:
    """Run a benchmark: edit facts in sequential batches with several methods and measure them."""
    command = "errata " + shlex.join(sys.argv[1:])
    grid_file: dict[str, Any] = {}
    chosen: dict[str, Any] = {}  # only valid entries
    campaign: Campaign | None = None
    dropped = names_in(without)
    full_grid: Grid | None = None
    plan: Plan | None = None
    with collect_errors("the input") as part:
        with part:
            check_table()  # needed for the results, which may be written only after hours
        with part:
            if ray is not None:
                check_ray()
        with part:
            chosen["seeds"] = seeds_named(seeds)
        with part:
            chosen["judge"] = judge_of(judge, judge_model, judge_key)
        with part:
            grid_file = {} if grid is None else dict(read_grid(grid))
            chosen["grid_file"] = True
        of_models: dict[str, Any] = {
            "recipe": absolute_if_given(recipe),
            "corpus": corpus and absolute_corpus(corpus),
            "statistics": absolute_if_given(statistics),
            "device": device,
            "dtype": dtype,
        }
        of_data = {"untouched": absolute_if_given(untouched)}
        resuming = grid is None and model is None and (out / "grid.json").is_file()
        if trust_remote_code and not resuming:
            of_models["trust_remote_code"] = True
        options: dict[str, Any] = {
            "models": entries_of(model, model_entry, grid_file.get("models", [{"name": "lab"}]), of_models),
            "data": entries_of(
                data,
                named_data,
                grid_file.get("data", [{"name": "lab"}]),
                of_data,
            ),
            "methods": None if methods is None else names_in(methods),
            "edits": edits,
            "batch_size": batch_size,
            "eval_every": eval_every,
            "sample": sample,
            "seeds": chosen.get("seeds"),
            "prose": prose and placed_prose(prose, absolute),
            "measures": measures_of(
                names_in(measure),
                free={"wild": wild or None, "judge": chosen.get("judge")},
                texts={
                    "references": absolute_if_given(references),
                    "corpus": absolute_if_given(reference_corpus),
                },
                ability={
                    "tasks": [placed_task(name, Path.cwd(), absolute) for name in names_in(general)] or None,
                    "probes": absolute_if_given(probes),
                },
            ),
        }
        given = {name: value for name, value in options.items() if value is not None}
        if collapse is not None:
            given["collapse"] = None if collapse == "none" else number_or_text(collapse)
        if grid is None and not given and (out / "grid.json").is_file():
            campaign = open_campaign(out)
        elif "grid_file" in chosen:
            with part:
                full_grid = _whole_grid(grid, grid_file, given)
            with part:
                if not (out / "grid.json").is_file():
                    check_new(out)
            with part:
                checkable = full_grid or valid_part(grid_file | given)
                if checkable is not None and not dry_run:
                    check_trusted(checkable.models, trust_remote_code=trust_remote_code)
                plan = None if checkable is None else plan_of(checkable, trust_remote_code=trust_remote_code)
            if dropped and not (out / "grid.json").is_file():
                with part:
                    raise InputError(
                        f"--without needs an existing benchmark, but there is none in {out}",
                        remedy="Remove the measurements from --measure and the grid",
                        code="BENCHMARK_NOT_FOUND",
                    )
    if campaign is not None:
        if dry_run:
            campaign.measures_with(None, dropped)
            pending = campaign.pending(retry=retry)
            remaining = f"{counted(len(pending), 'cell')} of {len(campaign.cells)} remaining."
            echo(f"{remaining} {time_left(campaign, pending)}".rstrip())
            write_json(json, {"cells": [campaign.spec(cell).model_dump(mode="json") for cell in pending]})
            return
    else:
        if full_grid is None or plan is None:
            raise AssertionError("an incomplete grid was not reported")
        show_plan(full_grid, plan)
        if dry_run:
            list_cells(full_grid, plan)
            echo(time_needed(plan))
            echo("Dry run: no weights were loaded and nothing was written.")
            write_json(json, {"cells": [spec.model_dump(mode="json") for spec in plan.specs]})
            return
        campaign = begin(out, full_grid, plan.specs, plan.undefined, plan.write_materials, command)
    check_trusted(campaign.grid.models, trust_remote_code=trust_remote_code)
    with campaign.locked():
        campaign = campaign.measuring(None if full_grid is None else full_grid.measures, dropped, command)
        try:
            _run_cells(campaign, jobs=jobs, ray=ray, retry=retry, trust_remote_code=trust_remote_code)
        except KeyboardInterrupt as error:
            left = len(campaign.pending())
            raise InterruptedRunError(
                f"{counted(left, 'cell')} of {len(campaign.cells)} remaining; their progress is saved in {out}",
                remedy=f"Resume with: errata bench --out {out}",
            ) from error
        summary, records = collect(campaign)
    show_results(campaign, summary, records)
    results = read_results(summary)
    write_json(json, {"rows": list(results.rows), "about": dict(results.about)})
    if failed := [cell for cell in results.about["cells"] if cell["status"] != "done" or cell["failure"]]:
        parts = campaign.grid.measures.parts
        drop = "; use --without NAME to drop a measurement that is impossible here" if parts else ""
        raise ErrataError(
            f"{counted(len(failed), 'cell')} of {len(campaign.cells)} failed",
            remedy=f"Fix the cause, then run: errata bench --out {out} --retry{drop}",
            code="CELLS_FAILED",
        )


def _run_cells(campaign: Campaign, *, jobs: int, ray: str | None, retry: bool, trust_remote_code: bool) -> None:
    pending = campaign.pending(retry=retry)
    if pending:
        campaign.check_inputs()
    done = len(campaign.cells) - len(pending)
    if done:
        echo(f"{done} of {counted(len(campaign.cells), 'cell')} finished or failed before; {len(pending)} remaining")
    if ray is not None:
        runner: Any = RayCluster.connect(ray, trust_remote_code=trust_remote_code)
        jobs = max(jobs, runner.workers)
    elif process_count() > 1:
        runner = Ranks(trust_remote_code)
        jobs = process_count()
    else:
        runner = Processes(trust_remote_code=trust_remote_code)
    with progress(speed_window=900.0) as report:
        work(campaign, pending, runner, jobs=jobs, report=report, on_end=warn)


def _whole_grid(path: Path | None, grid_file: dict[str, Any], given: dict[str, Any]) -> Grid:
    text = "" if path is None else path.read_text(encoding="utf-8")
    source = "the command line" if path is None else str(path)
    data = grid_file | given
    try:
        return grid_of(data, source, text=text)
    except FaultsError as error:
        missing = [f"--{name}" for name in ("methods", "edits") if name not in data]
        if not missing or path is not None:
            raise
        fault = Fault(
            "", f"missing {' and '.join(missing)}", "See errata bench --help for an example", code="OPTION_MISSING"
        )
        places = [f"{source}: {name.removeprefix('--')}" for name in missing]  # their names in a grid file
        others = [other for other in error.faults if other.where not in places]
        raise FaultsError(source, [fault, *others]) from error
