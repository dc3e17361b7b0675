"""``errata bench``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.benchmark.campaign import Campaign, begin, open_campaign
from errata.benchmark.collect import check_table, collect
from errata.benchmark.grid import Grid, check_trusted, grid_of, read_grid, sound_part
from errata.benchmark.measurement_names import FURTHER_NAMES
from errata.benchmark.workers import Processes, RayCluster, check_ray, work
from errata.cli.bench_plan import (
    Plan,
    corpus_place,
    entries_of,
    file_place,
    judge_of,
    list_cells,
    measures_of,
    names_in,
    place,
    plan_of,
    seeds_named,
    show_plan,
    show_results,
    task_place,
    time_left,
    time_needed,
)
from errata.cli.model_options import TrustOption
from errata.cli.terminal import JsonOption, counted, progress, tell, warn, write_json
from errata.errors import ErrataError, Fault, FaultsError, InputError, InterruptedRunError, collect_errors
from errata.results.records import read_results
from errata.utils.files import check_new

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
        Path | None, typer.Argument(metavar="[GRID.yaml]", help="A grid; options take the place of its keys.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The benchmark's directory; one that is there goes on.")
    ] = Path("runs/bench"),
    model: Annotated[str | None, typer.Option("--model", "-m", help="Models, by commas; default: lab.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Data sets, by commas, each NAME or NAME=FILE; default: lab.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Rows of `errata methods`, by commas, each with or without +blue.")
    ] = None,
    edits: Annotated[int | None, typer.Option(min=1, help="Facts of a run.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Facts that are solved together; default: 100.")] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=0, help="Batches between two checks on the way; 0: none; default: 5.")
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Facts that a check on the way asks; default: 200.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="How many (3: 0, 1 and 2), or which, by commas (7,8,); default: 3.")
    ] = None,
    collapse: Annotated[
        str | None,
        typer.Option(help="Stop a run whose perplexity is over so many times the unedited one's, or 'none'; 1.5."),
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help=f"Further measurements, by commas: {', '.join(FURTHER_NAMES)}.")
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(help="Further measurements of a benchmark that is there, by commas: make them no more."),
    ] = None,
    wild: Annotated[bool, typer.Option("--wild", help="free: to the letter of the paper 'in the wild'.")] = False,
    judge: Annotated[
        str | None, typer.Option(metavar="URL", help="free: an OpenAI-compatible endpoint that judges answers.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="The judge's model.")] = None,
    judge_key: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="The environment variable that holds the judge's key.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="texts: JSONL of {relation, target, text}, for consistency.")
    ] = None,
    reference_corpus: Annotated[
        Path | None, typer.Option(help="texts: a text that the words' weights are taken of, for consistency.")
    ] = None,
    general: Annotated[
        str | None, typer.Option(help="ability: tasks of lm-evaluation-harness, or YAML files, by commas.")
    ] = None,
    probes: Annotated[Path | None, typer.Option(help="ability: a directory with the papers' six probes.")] = None,
    prose: Annotated[
        str | None, typer.Option(help="Texts for perplexity: me-ppl=FILE, or a file with a text a line.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe for the models; default: shipped ones.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Text for key statistics; default: the recipe's.")] = None,
    untouched: Annotated[
        Path | None, typer.Option(help="JSONL of {prompt, answer} about subjects that nobody edits.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Cells that are worked on at the same time.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Work on a Ray cluster: its address, or 'local'; the directory is shared.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try cells again that failed.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda …; default: a GPU if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default: what is stored.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list the cells.")] = False,
    trust_remote_code: TrustOption = False,
    json: JsonOption = None,
) -> None:
    """Run a benchmark: edit facts in sequential batches with several methods and measure them."""
    command = "errata " + shlex.join(sys.argv[1:])
    begun: dict[str, Any] = {}
    chosen: dict[str, Any] = {}  # what is wrong is left out of it
    campaign: Campaign | None = None
    dropped = names_in(without)
    whole: Grid | None = None
    plan: Plan | None = None
    with collect_errors("the input") as part:
        with part:
            check_table()  # it is written at the end, when hours may have gone
        with part:
            if ray is not None:
                check_ray()
        with part:
            chosen["seeds"] = seeds_named(seeds)
        with part:
            chosen["judge"] = judge_of(judge, judge_model, judge_key)
        with part:
            begun = {} if grid is None else dict(read_grid(grid))
            chosen["begun"] = True
        of_models: dict[str, Any] = {
            "recipe": place(recipe), "corpus": corpus_place(corpus), "device": device, "dtype": dtype,
        }  # fmt: skip
        goes_on = grid is None and model is None and (out / "grid.json").is_file()
        if trust_remote_code and not goes_on:
            of_models["trust_remote_code"] = True
        options: dict[str, Any] = {
            "models": entries_of(model, begun.get("models", [{"name": "lab"}]), of_models),
            "data": entries_of(data, begun.get("data", [{"name": "lab"}]), {"untouched": place(untouched)}),
            "methods": None if methods is None else names_in(methods),
            "edits": edits,
            "batch_size": batch_size,
            "eval_every": eval_every,
            "sample": sample,
            "seeds": chosen.get("seeds"),
            "prose": None if prose is None else file_place(prose),
            "measures": measures_of(
                names_in(measure),
                free={"wild": wild or None, "judge": chosen.get("judge")},
                texts={"references": place(references), "corpus": place(reference_corpus)},
                ability={"tasks": [task_place(name) for name in names_in(general)] or None, "probes": place(probes)},
            ),
        }
        given = {name: value for name, value in options.items() if value is not None}
        if collapse is not None:
            given["collapse"] = None if collapse == "none" else collapse
        if grid is None and not given and (out / "grid.json").is_file():
            campaign = open_campaign(out)
        elif "begun" in chosen:
            with part:
                whole = _whole_grid(grid, begun, given)
            with part:
                if not (out / "grid.json").is_file():
                    check_new(out)
            with part:
                sound = whole or sound_part(begun | given)
                if sound is not None and not dry_run:
                    check_trusted(sound.models, trust_remote_code=trust_remote_code)
                plan = None if sound is None else plan_of(sound, trust_remote_code=trust_remote_code)
            if dropped and not (out / "grid.json").is_file():
                with part:
                    raise InputError(
                        f"--without is for a benchmark that is there, and there is none in {out}",
                        remedy="Leave the measurements out of --measure and the grid",
                    )
    if campaign is not None:
        if dry_run:
            campaign.measures_with(None, dropped)
            pending = campaign.pending(retry=retry)
            to_go = f"{counted(len(pending), 'cell')} of {len(campaign.cells)} to go."
            tell(f"{to_go} {time_left(campaign, pending)}".rstrip())
            return
    else:
        if whole is None or plan is None:
            raise AssertionError("a grid that is not whole was not told of")
        show_plan(whole, plan)
        if dry_run:
            list_cells(whole, plan)
            tell(time_needed(plan))
            tell("Nothing was loaded or written (--dry-run).")
            write_json(json, {"cells": [spec.model_dump(mode="json") for spec in plan.specs]})
            return
        campaign = begin(out, whole, plan.specs, plan.undefined, plan.write_materials, command)
    check_trusted(campaign.grid.models, trust_remote_code=trust_remote_code)
    with campaign.locked():
        campaign = campaign.measuring(None if whole is None else whole.measures, dropped, command)
        try:
            _work(campaign, jobs=jobs, ray=ray, retry=retry, trust_remote_code=trust_remote_code)
        except KeyboardInterrupt as error:
            left = len(campaign.pending())
            raise InterruptedRunError(
                f"{counted(left, 'cell')} of {len(campaign.cells)} are left; what they have done is kept in {out}",
                remedy=f"Go on: errata bench --out {out}",
            ) from error
        summary, records = collect(campaign)
    show_results(campaign, summary, records)
    results = read_results(summary)
    write_json(json, {"rows": list(results.rows), "about": dict(results.about)})
    if failed := [cell for cell in results.about["cells"] if cell["status"] != "done" or cell["failure"]]:
        parts = campaign.grid.measures.parts
        drop = "; a measurement that cannot be made here is dropped by --without NAME" if parts else ""
        raise ErrataError(
            f"{counted(len(failed), 'cell')} of {len(campaign.cells)} failed",
            remedy=f"Mend the cause, then: errata bench --out {out} --retry{drop}",
        )


def _work(campaign: Campaign, *, jobs: int, ray: str | None, retry: bool, trust_remote_code: bool) -> None:
    pending = campaign.pending(retry=retry)
    if pending:
        campaign.check_inputs()
    done = len(campaign.cells) - len(pending)
    if done:
        tell(f"{done} of {counted(len(campaign.cells), 'cell')} done or failed before; {len(pending)} to go")
    if ray is not None:
        runner: Any = RayCluster.connect(ray, trust_remote_code=trust_remote_code)
        jobs = max(jobs, runner.workers)
    else:
        runner = Processes(trust_remote_code=trust_remote_code)
    with progress(looked_back=900.0) as report:
        work(campaign, pending, runner, jobs=jobs, report=report, told=warn)


def _whole_grid(path: Path | None, begun: dict[str, Any], given: dict[str, Any]) -> Grid:
    text = "" if path is None else path.read_text(encoding="utf-8")
    source = "the command line" if path is None else str(path)
    data = begun | given
    try:
        return grid_of(data, source, text=text)
    except FaultsError as error:
        missing = [f"--{name}" for name in ("methods", "edits") if name not in data]
        if not missing or path is not None:
            raise
        told = Fault("", f"no {' and no '.join(missing)} given", "See errata bench --help for an example")
        places = [f"{source}: {name.removeprefix('--')}" for name in missing]  # by the names that a file has for them
        raise FaultsError(source, [told, *(fault for fault in error.faults if fault.where not in places)]) from error
