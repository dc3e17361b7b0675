"""``errata demo``: the main job, on the embedded model."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from errata.benchmark.sequence import Examination, examine, run_sequence
from errata.cli.demo_real import demo_real
from errata.cli.model_options import DeviceOption, placement
from errata.cli.terminal import JsonOption, PlainConsole, console, progress
from errata.editing.methods import method_named
from errata.editing.recipe import shipped_recipe
from errata.errors import InputError
from errata.facts.fact import FactSet
from errata.lab.corpus import held_out_prose
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.models.language_model import LanguageModel
from errata.patches.patch import software_versions
from errata.report.tables import comparison_tables
from errata.results.records import Row, write_results
from errata.utils.files import check_file, write_text

EXAMPLE = """Example: errata demo --out runs/demo --facts 100 --methods memit,memit+blue

Example: errata demo --model smollm2-135m-instruct --out runs/real"""
METHODS = "memit,memit+blue,alphaedit,alphaedit+blue"
app = typer.Typer()


@app.command("demo", epilog=EXAMPLE)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where results.json is written.")] = Path("runs/demo"),
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="'lab', or a pretrained model such as smollm2-135m-instruct: ten real facts are corrected then.",
        ),
    ] = "lab",
    methods: Annotated[str | None, typer.Option(help=f"Methods by commas (lab only); default: {METHODS}.")] = None,
    facts: Annotated[int | None, typer.Option(min=1, help="How many facts to edit (lab only); default: 100.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Facts that are solved together (lab only); default: 25.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=2**63 - 1, help="Which facts (lab only); default: 0. The recipe was tuned on seeds 900 to 902."
        ),
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Also write the table as a picture.")] = None,
    device: DeviceOption = "cpu",
    json: JsonOption = None,
) -> None:
    """Edit facts into the embedded model, with and without boundary-layer updates, and show what changed.

    With --model: correct ten real facts in a pretrained model, show its answers, and take the edit back.
    """
    if model != "lab":
        if any(option is not None for option in (methods, facts, batch_size, seed)):
            raise InputError(
                "--methods, --facts, --batch-size and --seed are for the demo on 'lab'", remedy="Leave them out"
            )
        demo_real(model, out, svg, device, json)
        return
    methods = METHODS if methods is None else methods
    facts = 100 if facts is None else facts
    batch_size = 25 if batch_size is None else batch_size
    seed = 0 if seed is None else seed
    started = time.perf_counter()
    results = out / "results.json"
    for path in (results, *([svg] if svg else [])):
        check_file(path)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise InputError("no method was named", remedy=f"Give some of --methods {METHODS}")
    recipes = []
    for name in names:
        method_named(name)
        recipe = shipped_recipe("lab", name)
        contexts = recipe.contexts.model_copy(update={"seed": seed})
        recipes.append(recipe.model_copy(update={"batch_size": batch_size, "contexts": contexts}))
    world = lab_world()
    if facts > len(world.people):
        raise InputError(
            f"there are {len(world.people)} people, each edited once; got --facts {facts}", remedy="Lower it"
        )
    loaded = LanguageModel.load("lab", device=placement(device, None)["device"])
    edits = lab_facts(world, facts, seed=seed)
    examination = Examination(
        FactSet(tuple(edits), "the lab's world"),
        untouched_questions(world, [fact.subject for fact in edits], 300, seed=seed),
        held_out_prose(60),
    )
    rows: list[Row] = []
    with progress() as report:
        before = examine(loaded, examination, report=report, what="asking before")
        for index, recipe in enumerate(recipes):
            report("methods", index, len(recipes))
            result = run_sequence(loaded, recipe, examination, before, report=report, seed=seed)
            result.patch.undo(loaded)
            rows += result.rows
        report("methods", len(recipes), len(recipes))
    # A file or a picture is not narrower than the table; a terminal may be.
    wide = PlainConsole(record=svg is not None, width=None if console().is_terminal and svg is None else 120)
    for table in comparison_tables(rows, width=wide.width):
        wide.print(table)
        wide.print()
    seconds = time.perf_counter() - started
    wide.print(f"{facts} facts in batches of {batch_size}, {len(names)} methods, {seconds:.0f} s in all; seed {seed}.")
    if svg is not None:
        # rich would have the reader fetch its font; without that, any monospace font serves.
        write_text(svg, re.sub(r"@font-face \{.*?\}\s*", "", wide.export_svg(title="errata demo"), flags=re.DOTALL))
    about = {
        "command": f"errata demo --facts {facts} --batch-size {batch_size} --methods {methods} --seed {seed}",
        "recipes": {recipe.method: recipe.model_dump(mode="json") for recipe in recipes},
        "seconds": seconds,
        "versions": software_versions(),
    }
    for path in (results, *([json] if json else [])):
        write_results(path, rows, about)
    console().print(f"Wrote {results}", highlight=False)
