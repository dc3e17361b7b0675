"""``errata recipe``: the numbers that come with errata, and the check of one's own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from errata.benchmark.recipe_search import (
    RecipeSearch,
    automatic_file,
    layers_by_depth,
    read_journal,
    starting_recipe,
    tries_at_most,
    unsearched_recipe,
)
from errata.cli.locate import scan_model
from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TrustOption,
    check_facts,
    examination_for,
    is_lab,
    outline_here,
    outline_of,
    placement,
    read_questions,
    recipe_name,
    token_check,
)
from errata.cli.recipe_options import layers_named, text_named
from errata.cli.terminal import JsonOption, console, counted, error_console, progress, tell, warn, write_json
from errata.editing.methods import BOUNDARY_SUFFIX, Method, method_named
from errata.editing.recipe import Recipe, check_recipe, shipped_recipe
from errata.editing.recipe_files import shipped_file, shipped_names
from errata.errors import Fault, FaultsError, InputError, collect_errors
from errata.evaluation.controls import facts_to_scan, known_facts, with_automatic_controls
from errata.facts.fact import FactSet
from errata.facts.files import read_facts
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline
from errata.runs.loading import load_model
from errata.statistics.settings import BUILTIN
from errata.tracing.layer_scan import ScanSettings
from errata.utils.files import check_file, write_text
from errata.utils.progress import Report

app = typer.Typer(
    help="Recipes (the hyperparameters of an edit): list, show, check, or search for one.", no_args_is_help=True
)


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


AUTO_EXAMPLE = "Example: errata recipe auto --model lab --methods memit --out auto.yaml --minutes 5"
LAB_SEED = 950  # of the held-out facts that the lab draws: no report draws its own with it
FACTS = 100
ENOUGH_FACTS = 20  # of fewer, one fact more or less decides between two settings
LEAD = 12  # tokens that the contexts of a search put before a prompt


@app.command("auto", epilog=AUTO_EXAMPLE)
def auto(
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe file to write.")],
    model: ModelOption = "lab",
    methods: Annotated[
        str, typer.Option(help="Rows of `errata methods`, by commas; each is searched with +blue too.")
    ] = ("memit,alphaedit"),
    facts: Annotated[
        Path | None,
        typer.Option(
            "--facts",
            "-f",
            help="Held-out facts to search with, 20 or more, 100 are better; not those that you will edit. Default: "
            "well-known facts that come with errata; lab: from its world.",
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Critical layers, such as 4,5,6; default: as `locate` finds.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Text for the key statistics; default: one that comes with errata; lab: its own.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens of it to read.")] = 50_000,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="From the start of the command, layers and key statistics included; no try begins after so many. 0: "
            "no search, only the configuration is read. Default: no limit.",
        ),
    ] = None,
    untouched: Annotated[
        Path | None, typer.Option(help="JSONL of {prompt, answer} about other subjects; lab: from its world.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of contexts, the choice of facts, and the questions.")
    ] = 0,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Search a recipe for a model that nobody has published one for, on held-out facts, in scale-free numbers.

    Every try is kept in OUT.tries.jsonl; the same command goes on where it was stopped. A number replaces its default
    only where it scores better. With --minutes 0 nothing is searched: the defaults are written, which takes seconds.
    """
    started = time.monotonic()
    journal = out.with_name(out.name + ".tries.jsonl")
    outline = outline_here(model, trust_remote_code=trust_remote_code)
    search, lab = minutes != 0, is_lab(model)
    with collect_errors("the input") as part:
        with part:
            where = placement(device, dtype)
        with part:
            rows = _rows(methods)
        with part:
            _check_out(out, journal)
        with part:
            chosen = None if layers is None else tuple(sorted(set(layers_named(layers))))
            if outline is not None:
                outline.check_layers(chosen or ())
        with part:
            text = text_named(corpus, default="lab" if lab else BUILTIN)
        with part:
            given = None if facts is None else read_facts(facts, check=token_check(outline, lead=LEAD))
        with part:
            questions = read_questions(untouched)
    if outline is None:
        outline = outline_of(model, trust_remote_code=trust_remote_code)
        with collect_errors("the input") as part:
            with part:
                outline.check_layers(chosen or ())
            with part:
                if given is not None:
                    check_facts(given, outline, lead=LEAD)
    if not search:
        _write_unsearched(model, rows, outline, chosen, text, tokens, out)
        return
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    reasons: dict[str, Any] = {}
    with _tries_told(journal), progress() as report:
        held_out = _held_out(loaded, given, lab=lab, seed=seed)
        if chosen is None:
            tell("Choosing layers by writing facts into one layer at a time.")
            scan = scan_model(loaded, given, ScanSettings(corpus=text, seed=seed), lab=lab, report=report)
            chosen, why = scan.choose().layers, scan.why
        else:
            why = "given with --layers"
        _tell_plan(rows, held_out, chosen, minutes, time.monotonic() - started)
        examination = examination_for(held_out, lab=lab, untouched=questions, seed=seed)
        if (
            not lab
            and not examination.untouched
            and not any(fact.neighbours or fact.own or fact.unrelated for fact in held_out)
        ):
            examination = replace(examination, facts=_with_controls(loaded, held_out, report=report))
        examination = replace(examination, prose=())  # no try is scored by perplexity
        found = {}
        for number, row in enumerate(rows):
            left = math.inf if minutes is None else 60 * minutes - (time.monotonic() - started)
            statistics = {"corpus": text, "tokens": tokens, "length": min(1024, loaded.context_length)}
            base = starting_recipe(model, row, chosen, outline.size.mlp_width, statistics, batch_size=25)
            found[row.name] = RecipeSearch(
                loaded, base, chosen, examination, journal, seconds=left / (len(rows) - number), report=report
            ).run()
            reasons[row.name] = dict(found[row.name].reasons)
    write_text(out, automatic_file(model, chosen, why, found))
    console().print(f"layers {list(chosen)}: {why}", markup=False, highlight=False)
    for name, each in reasons.items():
        for number_name, reason in each.items():
            console().print(f"{name}, {number_name.replace('_', ' ')}: {reason}", markup=False, highlight=False)
    incomplete = [name for name, end in found.items() if not end.complete]
    if incomplete:
        console().print(f"Time was up before all was tried for {', '.join(incomplete)}; the same command goes on.")
    console().print(f"Wrote {out}", highlight=False)
    write_json(json, {"out": str(out), "layers": list(chosen), "why": why, "reasons": reasons})


def _held_out(model: LanguageModel, given: FactSet | None, *, lab: bool, seed: int) -> FactSet:
    """The facts that every try edits."""
    if given is not None:
        if len(given) < ENOUGH_FACTS:
            warn(f"warning: {counted(len(given), 'fact')} to search with; {ENOUGH_FACTS} are needed")
        return given
    if lab:
        return FactSet(tuple(lab_facts(lab_world(), FACTS, seed=LAB_SEED)), "the lab's world")
    return FactSet(facts_to_scan(model, len(known_facts()) // 2, seed=seed), "the well-known facts of errata")


def _with_controls(model: LanguageModel, facts: FactSet, *, report: Report) -> FactSet:
    """Facts without any control question, with drawn ones: else no try is scored by what it does to everything else."""
    drawn = with_automatic_controls(model, facts, report=report)
    if drawn.count:
        tell(f"Drew {counted(drawn.count, 'control question')}; the answers are the unedited model's.")
    else:
        warn(
            "warning: there are no control questions, so the search cannot see damage. Give --untouched, or facts with "
            "'neighbours', 'own' or 'unrelated' questions"
        )
    return drawn.facts


def _tell_plan(
    rows: Sequence[Method], held_out: FactSet, layers: Sequence[int], minutes: float | None, spent: float
) -> None:
    """What will be done, before the first try can say how long one takes."""
    tries = ", ".join(f"{row.name} {tries_at_most(row)}" for row in rows)
    limit = "no limit" if minutes is None else f"{max(0.0, minutes - spent / 60):.0f} of {minutes:g} minutes left"
    tell(
        f"Searching with {counted(len(held_out), 'fact')} of {held_out.source} at layers {','.join(map(str, layers))}. "
        f"Tries at most: {tries}; each edits all of them twice, with and without {BOUNDARY_SUFFIX}. The first try also "
        f"reads the key statistics. Time: {limit}."
    )


@contextmanager
def _tries_told(journal: Path) -> Iterator[None]:
    """After Ctrl-C, say what is kept, if anything is: hours of tries look lost otherwise."""
    try:
        yield
    except KeyboardInterrupt:
        if kept := len(read_journal(journal)):
            tries = f"{kept} finished {'try is' if kept == 1 else 'tries are'} kept in {journal}"
            error_console().print(
                f"{tries}; the same command goes on from there", markup=False, highlight=False, soft_wrap=True
            )
        raise


def _check_out(out: Path, journal: Path) -> None:
    if out.exists() and not journal.exists():
        raise InputError(f"{out} exists already", remedy="Give another name, or remove it first")
    check_file(out)
    read_journal(journal)  # refuse a broken one now, and not after layers have been chosen


def _write_unsearched(
    model: str,
    rows: Sequence[Method],
    outline: Outline,
    layers: tuple[int, ...] | None,
    corpus: str,
    tokens: int,
    out: Path,
) -> None:
    """A recipe from the configuration alone."""
    why = "given with --layers" if layers is not None else "by depth, as in Llama 3; not tried on this model"
    layers = layers_by_depth(outline.layers) if layers is None else layers
    statistics = {"corpus": corpus, "tokens": tokens, "length": min(1024, outline.context_length)}
    found = {row.name: unsearched_recipe(model, row, layers, outline.size.mlp_width, statistics) for row in rows}
    write_text(out, automatic_file(model, layers, why, found))
    console().print(f"Wrote {out}: defaults, not searched.", highlight=False, markup=False)


def _rows(methods: str) -> list[Method]:
    names = [name.strip().removesuffix(BOUNDARY_SUFFIX) for name in methods.split(",") if name.strip()]
    if not names:
        raise InputError("no method was named", remedy="Give some of `errata methods`")
    return [method_named(name) for name in dict.fromkeys(names)]
