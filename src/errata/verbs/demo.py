"""``errata demo``: the main job, on the embedded model."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from errata.benchmark.sequential import Examination, examine, run_sequence
from errata.errors import InputError
from errata.evaluation.results_file import Row, write_results
from errata.facts import FactSet
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.lab.texts import held_out_prose
from errata.methods import method_named
from errata.models.language_model import LanguageModel
from errata.output import check_file, write_text
from errata.patch import software_versions
from errata.recipe import shipped_recipe
from errata.report.tables import comparison_tables
from errata.verbs.json_output import JsonOption
from errata.verbs.model_options import DeviceOption, placement
from errata.verbs.terminal import PlainConsole, console, progress

EXAMPLE = "Example: errata demo --out runs/demo --facts 100 --methods memit,memit+blue"
METHODS = "memit,memit+blue,alphaedit,alphaedit+blue"
app = typer.Typer()


@app.command("demo", epilog=EXAMPLE)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where results.json is written.")] = Path("runs/demo"),
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = METHODS,
    facts: Annotated[int, typer.Option(min=1, help="How many facts to edit.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Facts that are solved together.")] = 25,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Which facts; the recipe was tuned on seeds 900 to 902.")
    ] = 0,
    svg: Annotated[Path | None, typer.Option(help="Also write the table as a picture.")] = None,
    device: DeviceOption = "cpu",
    json: JsonOption = None,
) -> None:
    """Edit facts into the embedded model, with and without boundary-layer updates, and show what changed."""
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
    model = LanguageModel.load("lab", device=placement(device, None)["device"])
    edits = lab_facts(world, facts, seed=seed)
    examination = Examination(
        FactSet(tuple(edits), "the lab's world"),
        untouched_questions(world, [fact.subject for fact in edits], 300, seed=seed),
        held_out_prose(60),
    )
    rows: list[Row] = []
    with progress() as report:
        before = examine(model, examination, report=report, what="asking before")
        for index, recipe in enumerate(recipes):
            report("methods", index, len(recipes))
            result = run_sequence(model, recipe, examination, before, report=report, seed=seed)
            result.patch.undo(model)
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
