"""``errata recipe``: the numbers that come with errata, and the check of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from errata.cli.model_options import ModelOption, recipe_name
from errata.cli.recipe_auto import EXAMPLE as AUTO_EXAMPLE
from errata.cli.recipe_auto import auto
from errata.cli.terminal import JsonOption, console, write_json
from errata.editing.methods import BOUNDARY_SUFFIX
from errata.editing.recipe import Recipe, check_recipe, shipped_recipe
from errata.editing.recipe_files import shipped_file, shipped_names
from errata.errors import Fault, FaultsError, InputError

app = typer.Typer(
    help="The numbers of an edit: what comes with errata, and the check of your own.", no_args_is_help=True
)


app.command("auto", epilog=AUTO_EXAMPLE)(auto)


@app.command("list", epilog="Example: errata recipe list")
def list_recipes(json: JsonOption = None) -> None:
    """List the models that a recipe comes with errata for, and for which methods."""
    out, entries = console(), []
    for name in shipped_names():
        file = shipped_file(name)
        also = f"; also taken for {', '.join(file.also)}" if file.also else ""
        automatic = str(file.data.get("source", "")).startswith("automatic")
        marked = " (automatic: published by nobody, tried on nothing)" if automatic else ""
        out.print(Text.assemble((name, "bold"), f"  numbers for {file.data['model']}{marked}{also}"))
        out.print(f"    {', '.join(file.names)}", style="dim", highlight=False)
        entries.append(
            {
                "name": name,
                "model": file.data["model"],
                "automatic": automatic,
                "also": file.also,
                "methods": file.names,
            }
        )
    write_json(json, {"recipes": entries})


@app.command("show", epilog="Example: errata recipe show --model gpt2-xl --method alphaedit+blue > own.yaml")
def show(
    model: ModelOption = "lab",
    method: Annotated[str | None, typer.Option(help="A row of `errata methods`, with or without +blue.")] = None,
    json: JsonOption = None,
) -> None:
    """Show the recipe that comes with errata for a model: one method's as YAML, or what there is as a table."""
    name = recipe_name(model)
    if method is not None:
        recipe = shipped_recipe(name, method)
        # Wrapped lines would be another file for whoever redirects this.
        console().print(recipe.to_yaml(), end="", markup=False, highlight=False, soft_wrap=True)
        write_json(json, recipe.model_dump(mode="json"))
        return
    file = shipped_file(name)
    recipes = [shipped_recipe(name, entry) for entry in file.names]
    out = console()
    out.print(f"{file.source}: numbers for {file.data['model']}", markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("method", "layers", "lr", "steps", "KL", "decay", "clamp", "solver"):
        table.add_column(head, overflow="fold")
    for recipe in recipes:
        target = recipe.target
        numbers = (target.learning_rate, target.steps, target.kl_factor, target.weight_decay, target.clamp)
        table.add_row(recipe.method, _layers(recipe), *(f"{number:g}" for number in numbers), _solver(recipe))
    out.print(table)
    for told in (_statistics, _source):
        for what, names in _grouped(recipes, told).items():
            out.print(f"{what}: {', '.join(names)}", markup=False, highlight=False)
    write_json(
        json,
        {
            "model": file.data["model"],
            "source": file.data.get("source", ""),
            "methods": [recipe.model_dump(mode="json") for recipe in recipes],
        },
    )


@app.command("check", epilog="Example: errata recipe check examples/recipe.yaml")
def check(
    file: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    method: Annotated[str | None, typer.Option(help="Only for this one; default: all that it covers.")] = None,
    json: JsonOption = None,
) -> None:
    """Check a recipe of your own, for one method or for all that it has numbers for; exit status 2 if any are wrong."""
    try:
        methods = check_recipe(file, method)
    except FaultsError as error:
        faults = [asdict(fault) for fault in error.faults]
        write_json(json, {"file": str(file), "valid": False, "faults": faults})
        raise
    except InputError as error:
        faults = [asdict(Fault(str(file), error.what, error.remedy))]
        write_json(json, {"file": str(file), "valid": False, "faults": faults})
        raise
    console().print(f"{file} holds for {_listed(methods)}.", markup=False, highlight=False, soft_wrap=True)
    write_json(json, {"file": str(file), "valid": True, "methods": list(methods), "faults": []})


def _listed(methods: Sequence[str]) -> str:
    """Names; rows that are there with ``+blue`` as well are told once."""
    both = [name for name in methods if f"{name}{BOUNDARY_SUFFIX}" in methods]
    alone = [name for name in methods if name.removesuffix(BOUNDARY_SUFFIX) not in both]
    each = "each " if len(both) > 1 else ""
    told = [f"{', '.join(both)} ({each}with and without {BOUNDARY_SUFFIX})"] if both else []
    return ", ".join([*told, *alone])


def _layers(recipe: Recipe) -> str:
    """What is written: with the boundary schedule the two ends."""
    layers = recipe.layers
    if recipe.schedule == "boundary":
        return ", ".join(str(layer) for layer in dict.fromkeys((layers[0], layers[-1])))
    whole = layers == tuple(range(layers[0], layers[-1] + 1)) and len(layers) > 2
    return f"{layers[0]}–{layers[-1]}" if whole else ", ".join(str(layer) for layer in layers)


def _solver(recipe: Recipe) -> str:
    """The solver's numbers, and those of rounds."""
    parts: dict[str, Any] = recipe.solver.model_dump(exclude={"kind", "history", "denominator", "relative"})
    if recipe.rounds is not None:
        parts |= recipe.rounds.model_dump()
    return ", ".join(f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in parts.items())


def _statistics(recipe: Recipe) -> str:
    if not recipe.needs_statistics:
        return "No key statistics"
    statistics = recipe.statistics
    unit = "tokens" if statistics.tokens else "documents"
    return f"Key statistics over {statistics.amount} {unit} of {statistics.corpus}"


def _source(recipe: Recipe) -> str:
    return recipe.source or "without a source"


def _grouped(recipes: Sequence[Recipe], told: Callable[[Recipe], str]) -> dict[str, list[str]]:
    """What is told of recipes, each once, with the methods that it is told of."""
    found: dict[str, list[str]] = {}
    for recipe in recipes:
        found.setdefault(told(recipe), []).append(recipe.method)
    return found
