"""``errata recipe``: list, show and check recipes, and search for one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
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
    UntouchedOption,
    check_facts,
    evaluation_set_for,
    is_lab,
    outline_here,
    outline_of,
    placement,
    recipe_name,
    seed_option,
    token_check,
)
from errata.cli.recipe_options import corpus_of, layers_named, read_settings_for
from errata.cli.terminal import JsonOption, console, echo, error_console, plain_table, progress, warn, write_json
from errata.editing.methods import BOUNDARY_SUFFIX, Method, method_named
from errata.editing.recipe import Recipe, check_recipe, shipped_recipe
from errata.editing.recipe_files import read_file, shipped_file, shipped_names
from errata.editors.registry import editor_faults
from errata.editors.table import EDITOR_NAMES, check_method
from errata.errors import FaultsError, InputError, collect_errors, faults_of
from errata.evaluation.controls import facts_to_scan, known_facts, with_automatic_controls
from errata.facts.fact import FactSet
from errata.facts.files import read_facts
from errata.facts.questions import read_questions
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline
from errata.runs.loading import load_model
from errata.statistics.settings import BUILTIN
from errata.tracing.layer_scan import ScanSettings
from errata.utils.files import check_file, check_new_file, write_text
from errata.utils.progress import Report
from errata.utils.text import counted

app = typer.Typer(
    help="Recipes (the hyperparameters of an edit): list, show, check, or search for one.", no_args_is_help=True
)


@app.command("list", epilog="Example: errata recipe list")
def list_recipes(json: JsonOption = None) -> None:
    """List the shipped recipes: their models and methods."""
    out, entries = console(), []
    for name in shipped_names():
        file = shipped_file(name)
        also = f"; also used for {', '.join(file.also)}" if file.also else ""
        automatic = str(file.data.get("source", "")).startswith("automatic")
        marked = " (auto-generated, untested)" if automatic else ""
        out.print(Text.assemble((name, "bold"), f"  settings for {file.data['model']}{marked}{also}"))
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
    method: Annotated[
        str | None,
        typer.Option(help="Editing method (see `errata methods`), with or without +blue; default: a table of all."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Show the shipped recipe of a model: one method as YAML, or all methods as a table."""
    name = recipe_name(model)
    if method is not None:
        recipe = shipped_recipe(name, method)
        # No wrapping, so that the output can be redirected to a file.
        console().print(recipe.to_yaml(), end="", markup=False, highlight=False, soft_wrap=True)
        write_json(json, recipe.model_dump(mode="json"))
        return
    file = shipped_file(name)
    recipes = [shipped_recipe(name, entry) for entry in file.names]
    out = console()
    out.print(f"{file.source}: settings for {file.data['model']}", markup=False, highlight=False)
    table = plain_table("method", "layers", "lr", "steps", "KL", "decay", "clamp", "solver", fold=True)
    for recipe in recipes:
        target = recipe.target
        values = (target.learning_rate, target.steps, target.kl_factor, target.weight_decay, target.clamp)
        table.add_row(recipe.method, _layers(recipe), *(f"{value:g}" for value in values), _solver(recipe))
    out.print(table)
    for describe in (_statistics, _source):
        for what, names in _grouped(recipes, describe).items():
            whose = "all methods" if len(names) == len(recipes) else ", ".join(names)  # the table lists them all
            out.print(f"{what}: {whose}", markup=False, highlight=False)
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
    file: Annotated[Path, typer.Argument(help="YAML recipe.")],
    method: Annotated[
        str | None, typer.Option(help="Check this method or editor only; default: all of the recipe.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Validate a recipe file, for one method or editor or all of them; exits with status 2 if it is invalid."""
    try:
        methods, editors = _checked(file, method)
    except InputError as error:
        faults = [asdict(fault) for fault in faults_of(error, str(file))]
        write_json(json, {"file": str(file), "valid": False, "faults": faults})
        raise
    valid_for = " and ".join(filter(None, (_listed(methods), ", ".join(editors))))
    console().print(f"{file} is valid for {valid_for}.", markup=False, highlight=False, soft_wrap=True)
    record = {"file": str(file), "valid": True, "methods": list(methods), "editors": list(editors), "faults": []}
    write_json(json, record)


def _checked(file: Path, method: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The methods and the editors that a recipe file is valid for.

    Raises:
        InputError, FaultsError: if it is invalid; for all faults of both together.
    """
    if method is not None:
        check_method(method)
        if method not in EDITOR_NAMES:
            return check_recipe(file, method), ()
        read_settings_for(method, "lab", file)  # with a file, the model decides nothing
        return (), (method,)
    found = read_file(file)
    faults = editor_faults(found)
    methods: tuple[str, ...] = ()
    try:
        methods = check_recipe(file)
    except FaultsError as error:
        faults = [*error.faults, *faults]
    if faults:
        raise FaultsError(f"the recipe {file}", faults)
    return methods, tuple(map(str, found.editors))


def _listed(methods: Sequence[str]) -> str:
    """The names, with both variants of a method listed once."""
    both = [name for name in methods if f"{name}{BOUNDARY_SUFFIX}" in methods]
    alone = [name for name in methods if name.removesuffix(BOUNDARY_SUFFIX) not in both]
    each = "each " if len(both) > 1 else ""
    paired = [f"{', '.join(both)} ({each}with and without {BOUNDARY_SUFFIX})"] if both else []
    return ", ".join([*paired, *alone])


def _layers(recipe: Recipe) -> str:
    """The edited layers; with the boundary schedule only the first and the last."""
    layers = recipe.layers
    if recipe.schedule == "boundary":
        return ", ".join(str(layer) for layer in dict.fromkeys((layers[0], layers[-1])))
    whole = layers == tuple(range(layers[0], layers[-1] + 1)) and len(layers) > 2
    return f"{layers[0]}–{layers[-1]}" if whole else ", ".join(str(layer) for layer in layers)


def _solver(recipe: Recipe) -> str:
    """The settings of the solver and of the rounds."""
    parts: dict[str, Any] = recipe.solver.model_dump(exclude={"kind", "history", "denominator", "relative"})
    if recipe.rounds is not None:
        parts |= recipe.rounds.model_dump()
    return ", ".join(f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in parts.items())


def _statistics(recipe: Recipe) -> str:
    if not recipe.needs_statistics:
        return "No key statistics"
    return f"Key statistics {recipe.statistics.summary}"


def _source(recipe: Recipe) -> str:
    return recipe.source or "no source given"


def _grouped(recipes: Sequence[Recipe], describe: Callable[[Recipe], str]) -> dict[str, list[str]]:
    """Distinct descriptions of the recipes, with the methods that they apply to."""
    found: dict[str, list[str]] = {}
    for recipe in recipes:
        found.setdefault(describe(recipe), []).append(recipe.method)
    return found


AUTO_EXAMPLE = "Example: errata recipe auto --model lab --methods memit --out auto.yaml --minutes 5"
LAB_SEED = 950  # seed of the lab's held-out facts; not used by any report
FACTS = 100  # held-out facts of the lab
ENOUGH_FACTS = 20  # with fewer facts, a single fact decides between two settings
PREFIX_TOKENS = 12  # tokens that the contexts of a search put before a prompt


@app.command("auto", epilog=AUTO_EXAMPLE)
def auto(
    out: Annotated[Path, typer.Option("--out", "-o", help="Recipe file to write.")],
    model: ModelOption = "lab",
    methods: Annotated[
        str, typer.Option(help="Comma-separated methods (see `errata methods`); each is also searched with +blue.")
    ] = ("memit,alphaedit"),
    facts: Annotated[
        Path | None,
        typer.Option(
            "--facts",
            "-f",
            help="Held-out facts for the search, different from those you will edit; at least 20, better 100. Default: "
            "well-known facts shipped with errata; for lab, facts of its world.",
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Critical layers, such as 4,5,6; default: as found by `errata locate`.")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Text for key statistics; default: the text shipped with errata, or the lab's own."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Number of tokens to read from the --corpus text.")] = 50_000,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Time limit, including layer selection and key statistics; no trial starts after it. 0 writes default "
            "settings without a search. Default: no limit.",
        ),
    ] = None,
    untouched: UntouchedOption = None,
    seed: Annotated[int, seed_option("for contexts, choice of facts and question sampling.")] = 0,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Search for scale-free hyperparameters on held-out facts, for a model without a published recipe.

    Every trial is saved in OUT.tries.jsonl, and running the same command again resumes the search. A value replaces its
    default only if it scores better. With --minutes 0, the defaults are written without a search.
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
            _check_out(out, journal, search=search)
        with part:
            chosen = None if layers is None else tuple(sorted(set(layers_named(layers))))
            if outline is not None:
                outline.check_layers(chosen or ())
        with part:
            text = corpus_of(corpus, default="lab" if lab else BUILTIN)
        with part:
            given = (
                None if facts is None else read_facts(facts, check=token_check(outline, prefix_tokens=PREFIX_TOKENS))
            )
        with part:
            questions = read_questions(untouched)
    if outline is None:
        outline = outline_of(model, trust_remote_code=trust_remote_code)
        with collect_errors("the input") as part:
            with part:
                outline.check_layers(chosen or ())
            with part:
                if given is not None:
                    check_facts(given, outline, prefix_tokens=PREFIX_TOKENS)
    if not search:
        layers_used, why = _write_unsearched(model, rows, outline, chosen, text, tokens, out)
        write_json(json, {"out": str(out), "layers": list(layers_used), "why": why, "reasons": {}})
        return
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    reasons: dict[str, Any] = {}
    with _note_saved_trials(journal), progress() as report:
        held_out = _held_out(loaded, given, lab=lab, seed=seed)
        if chosen is None:
            echo("Choosing layers by editing facts into one layer at a time.")
            scan = scan_model(loaded, given, ScanSettings(corpus=text, seed=seed), lab=lab, report=report)
            chosen, why = scan.choose().layers, scan.why
        else:
            why = "given with --layers"
        _show_plan(rows, held_out, chosen, minutes, time.monotonic() - started)
        evaluation_set = evaluation_set_for(held_out, lab=lab, untouched=questions, seed=seed)
        if (
            not lab
            and not evaluation_set.untouched
            and not any(fact.neighbours or fact.own or fact.unrelated for fact in held_out)
        ):
            evaluation_set = replace(evaluation_set, facts=_with_controls(loaded, held_out, report=report))
        evaluation_set = replace(evaluation_set, prose=())  # trials are not scored by perplexity
        found = {}
        for number, row in enumerate(rows):
            left = math.inf if minutes is None else 60 * minutes - (time.monotonic() - started)
            statistics = {"corpus": text, "tokens": tokens, "length": min(1024, loaded.context_length)}
            base = starting_recipe(model, row, chosen, outline.size.mlp_width, statistics, batch_size=25)
            found[row.name] = RecipeSearch(
                loaded, base, chosen, evaluation_set, journal, seconds=left / (len(rows) - number), report=report
            ).run()
            reasons[row.name] = dict(found[row.name].reasons)
    write_text(out, automatic_file(model, chosen, why, found))
    echo(f"layers {list(chosen)}: {why}")
    for name, each in reasons.items():
        for setting, reason in each.items():
            echo(f"{name}, {setting.replace('_', ' ')}: {reason}")
    incomplete = [name for name, end in found.items() if not end.complete]
    if incomplete:
        console().print(
            f"Time limit reached before the search was complete for {', '.join(incomplete)}; run "
            f"the same command to resume."
        )
    echo(f"Wrote {out}")
    write_json(json, {"out": str(out), "layers": list(chosen), "why": why, "reasons": reasons})


def _held_out(model: LanguageModel, given: FactSet | None, *, lab: bool, seed: int) -> FactSet:
    """The facts that every trial edits."""
    if given is not None:
        if len(given) < ENOUGH_FACTS:
            warn(f"warning: only {counted(len(given), 'fact')} for the search; at least {ENOUGH_FACTS} are recommended")
        return given
    if lab:
        return FactSet(tuple(lab_facts(lab_world(), FACTS, seed=LAB_SEED)), "the lab's world")
    return FactSet(facts_to_scan(model, len(known_facts()) // 2, seed=seed), "errata's well-known facts")


def _with_controls(model: LanguageModel, facts: FactSet, *, report: Report) -> FactSet:
    """Add generated control questions, so that trials are scored by their side effects as well."""
    generated = with_automatic_controls(model, facts, report=report)
    if generated.count:
        count = counted(generated.count, "control question")
        echo(f"Generated {count}; the unedited model's answers are the reference.")
    else:
        warn(
            "warning: there are no control questions, so the search cannot detect side effects. Give "
            "--untouched, or facts with 'neighbours', 'own' or 'unrelated' questions"
        )
    return generated.facts


def _show_plan(
    rows: Sequence[Method], held_out: FactSet, layers: Sequence[int], minutes: float | None, spent: float
) -> None:
    """Print the plan of the search."""
    tries = ", ".join(f"{row.name} {tries_at_most(row)}" for row in rows)
    limit = "none" if minutes is None else f"{max(0.0, minutes - spent / 60):.0f} of {minutes:g} minutes left"
    echo(
        f"Searching with {counted(len(held_out), 'fact')} of {held_out.source} at layers {','.join(map(str, layers))}. "
        f"Maximum number of trials: {tries}; each edits all facts twice, with and without {BOUNDARY_SUFFIX}. The first "
        f"trial also computes the key statistics. Time limit: {limit}."
    )


@contextmanager
def _note_saved_trials(journal: Path) -> Iterator[None]:
    """After Ctrl-C, print how many trials are saved."""
    try:
        yield
    except KeyboardInterrupt:
        if saved := len(read_journal(journal)):
            text = f"{counted(saved, 'finished trial')} saved in {journal}; run the same command again to resume"
            error_console().print(text, highlight=False, soft_wrap=True)
        raise


def _check_out(out: Path, journal: Path, *, search: bool) -> None:
    """Raises InputError if the recipe cannot be written; only a search may replace the recipe of its earlier trials."""
    if search and journal.exists():
        check_file(out)
    else:
        check_new_file(out)
    read_journal(journal)  # report a corrupt journal before the work starts


def _write_unsearched(
    model: str,
    rows: Sequence[Method],
    outline: Outline,
    layers: tuple[int, ...] | None,
    corpus: str,
    tokens: int,
    out: Path,
) -> tuple[tuple[int, ...], str]:
    """Write default settings, using only the model's configuration; returns the layers and the reason for them."""
    why = "given with --layers" if layers is not None else "by depth, in proportion to Llama 3; untested on this model"
    layers = layers_by_depth(outline.layers) if layers is None else layers
    statistics = {"corpus": corpus, "tokens": tokens, "length": min(1024, outline.context_length)}
    found = {row.name: unsearched_recipe(model, row, layers, outline.size.mlp_width, statistics) for row in rows}
    write_text(out, automatic_file(model, layers, why, found))
    echo(f"Wrote {out} with default settings (no search).")
    return layers, why


def _rows(methods: str) -> list[Method]:
    names = [name.strip().removesuffix(BOUNDARY_SUFFIX) for name in methods.split(",") if name.strip()]
    if not names:
        raise InputError("--methods is empty", remedy="See `errata methods`", code="OPTION_INVALID")
    return [method_named(name) for name in dict.fromkeys(names)]
