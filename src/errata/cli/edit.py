"""``errata edit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from errata.benchmark.sequence import examination_record, examine, run_sequence
from errata.cli.edit_output import check_output, finish, finish_run, settled
from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    Placement,
    TrustOption,
    check_chat,
    check_facts,
    examination_for,
    has_chat,
    is_lab,
    outline_here,
    outline_of,
    placement,
    read_questions,
    token_check,
)
from errata.cli.recipe_options import automatic_recipe, comes_with_recipe, layers_of, read_numbers, show_notes
from errata.cli.terminal import JsonOption, console, counted, error_console, progress, warn, write_json
from errata.editing.recipe import Recipe
from errata.editing.recipe_settings import ContextSettings
from errata.editing.schedules import SCHEDULES
from errata.editors.locate_then_edit import Editor
from errata.errors import Fault, FaultsError, InputError, collect_errors
from errata.evaluation.chat import chat_questions
from errata.evaluation.controls import Controls, with_automatic_controls
from errata.facts.conflicts import OnConflict
from errata.facts.fact import FactSet
from errata.facts.files import read_facts
from errata.patches.patch import dtype_name
from errata.runs.loading import load_model
from errata.runs.run import RunDirectory, create_run, open_run
from errata.statistics.corpus import open_corpus
from errata.utils.files import check_new, file_digest, is_file

EXAMPLE = """Example: errata edit --model lab --facts examples/facts.jsonl --method memit+blue --out edited

Example: errata edit --facts examples/facts.jsonl --batch-size 4 --run runs/one --out one.safetensors

Example: errata edit --resume runs/one --out one.safetensors

Example: errata edit --model stack --facts more.jsonl --on-conflict replace --out second.safetensors"""

_RESUME_HELP = (
    "Go on with a run that was stopped, from its last whole batch. Beside it: --out, --json, --device, --model (where "
    "the base is now), --trust-remote-code; whatever else is given must be what the run began with."
)
app = typer.Typer()


@app.command("edit", epilog=EXAMPLE)
def edit(
    facts: Annotated[
        Path | None,
        typer.Option("--facts", "-f", help="JSONL, JSON or CSV, also as EasyEdit writes them; see examples/."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="'lab' (the default), a directory, a GGUF file, a stack, one of `errata models list`, or a hub name.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="A row of `errata methods`, with or without +blue; default: memit+blue.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="NAME.safetensors for the change alone, or a new directory for the model."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="A new directory that keeps the run, batch by batch, so that it can go on.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help=_RESUME_HELP)] = None,
    on_conflict: Annotated[
        OnConflict | None,
        typer.Option(help="Of facts that contradict what the model was given by earlier edits; default: refuse."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Facts solved together; default: the recipe's.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Of contexts, questions and intervals; default: the recipe's, or 0."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A YAML recipe; default: the one shipped for the model. Without one errata chooses layers by trying "
            "them, and takes settings that are relative to the model's own scale."
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Text for key statistics, a blank line between documents; default: the recipe's."),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="even, sqrt, boundary, own, single or replay, in place of the method's.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Critical layers, such as 4,5,6, in place of the recipe's.")
    ] = None,
    shaping: Annotated[
        str | None, typer.Option(help="rect, prune, norm_cap (several by commas, or none), in place of the method's.")
    ] = None,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Repeat the faults of published code that its numbers depend on.")
    ] = False,
    last_wins: Annotated[
        bool, typer.Option("--last-wins", help="Of facts with the same subject and prompt keep the last.")
    ] = False,
    untouched: Annotated[
        Path | None, typer.Option(help="JSONL of {prompt, answer} about other subjects; lab: from its world.")
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls",
            help="Draw control questions for facts that have none; the answers are the unedited model's.",
        ),
    ] = True,
    evaluate: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="Measure before and after.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan; load no weights.")
    ] = False,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Learn each fact as a message in the model's chat template too, and ask everything there."
        ),
    ] = False,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Edit facts into a model and show what changed. The model on disk is never touched: OUT is new."""
    recipe_for = partial(
        read_numbers, path=recipe, batch_size=batch_size, seed=seed, corpus=corpus, schedule=schedule, layers=layers,
        shaping=shaping, as_published=as_published, chat=chat,
    )  # fmt: skip
    if resume is not None:
        new = {"--run": run, "--on-conflict": on_conflict, "--untouched": untouched, "--last-wins": last_wins}
        new |= {"--dry-run": dry_run, "--no-evaluate": not evaluate, "--no-controls": not controls}
        decide = {
            "--method": method, "--batch-size": batch_size, "--seed": seed, "--schedule": schedule, "--layers": layers,
            "--shaping": shaping, "--recipe": recipe, "--corpus": corpus, "--as-published": as_published or None,
            "--chat": chat or None,
        }  # fmt: skip
        decide = {option: value for option, value in decide.items() if value is not None}
        resume_run(
            resume,
            [option for option, value in new.items() if value],
            facts,
            model,
            decide,
            recipe_for,
            out,
            placement(device, dtype),
            json,
            trust_remote_code=trust_remote_code,
        )
        return
    model, method = model or "lab", method or "memit+blue"
    outline = outline_here(model, trust_remote_code=trust_remote_code)
    automatic = recipe is None and not comes_with_recipe(model)
    if automatic and outline is None:  # the numbers depend on its shape
        outline = outline_of(model, trust_remote_code=trust_remote_code)
    lead = 0
    with collect_errors("the input") as part:
        with part:
            _check_outputs(out, run, dry_run=dry_run)
        with part:
            where = placement(device, dtype)
        with part:
            default = automatic_recipe(model, method, outline) if automatic and outline is not None else None
            numbers = recipe_for(model, method, default=default)
            lead = _lead_of(numbers.contexts)
            if outline is not None:
                outline.check_layers(numbers.layers)
        with part:
            if facts is None:
                raise InputError("no --facts were given", remedy="Name a file of facts; examples/facts.jsonl is one")
            fact_set = read_facts(facts, last_wins=last_wins, check=token_check(outline, lead=lead))
            for note in fact_set.notes:
                warn(f"note: {note}")
            fact_set = settled(fact_set, model, on_conflict or OnConflict.REFUSE)
        with part:
            questions = read_questions(untouched)
        with part:
            lab = is_lab(model)
    if outline is None:
        outline = outline_of(model, trust_remote_code=trust_remote_code)
        with collect_errors("the input") as part:
            with part:
                outline.check_layers(numbers.layers)
            with part:
                check_facts(fact_set, outline, lead=lead)
    chat = numbers.contexts.chat
    if chat:
        check_chat(outline)
    if not automatic:
        show_notes(numbers, model)
    seed = numbers.contexts.seed
    if dry_run:
        if automatic and layers is None:
            warn("note: layers are shown by depth; without --dry-run they are chosen by trying them on the model")
        _show_plan(fact_set, numbers, model, json)
        return
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    drawn = Controls(fact_set, frozenset())
    with progress() as report, loaded.blaming_no_edit():
        if automatic and layers is None:
            chosen, why = layers_of(loaded, report=report)
            numbers = recipe_for(model, method, default=automatic_recipe(model, method, outline, chosen, why))
        if automatic:
            _show_automatic(numbers)
        if controls and evaluate and not lab:
            drawn = with_automatic_controls(loaded, fact_set, report=report)
            fact_set = drawn.facts
            _show_controls(drawn)
    examination = examination_for(fact_set, lab=lab, untouched=questions, seed=seed)
    examination = replace(examination, automatic=drawn.automatic)
    if chat or has_chat(outline):
        asked_in_chat = chat_questions(fact_set, examination.untouched, everything=chat)
        examination = replace(examination, chat=asked_in_chat)
    if run is not None:
        fingerprint = loaded.fingerprint()
        kept = create_run(
            run,
            model=model,
            fingerprint=fingerprint,
            dtype=dtype_name(loaded.dtype),
            lab=lab,
            recipe=numbers,
            facts=fact_set,
            corpus=open_corpus(numbers.statistics.corpus).digest if numbers.needs_statistics else "",
            seed=seed,
            examination=examination_record(examination) if evaluate else None,
        )
        finish_run(kept, loaded, model, out, json)
        return
    with progress() as report:
        if evaluate:
            before = examine(loaded, examination, report=report, what="asking before")
            result = run_sequence(loaded, numbers, examination, before, report=report, seed=seed)
            rows, patch, left_alone = result.rows, result.patch, result.left_alone
            asked = before, result.after
        else:
            editor = Editor(loaded, numbers, report=report)
            rows, patch, asked = [], editor.apply(fact_set), None
            left_alone = [fact for record in editor.records for fact in record.left_alone]
    finish(loaded, model, patch, rows, left_alone, examination, seed, out, json, asked)


def _show_automatic(recipe: Recipe) -> None:
    """What was chosen for a model that no recipe ships for."""
    warn(
        f"note: no recipe comes with errata for this model; these settings are scale-free and not tuned on it: layers"
        f" {','.join(map(str, recipe.layers))}, {recipe.target.steps} steps, key statistics over "
        f"{recipe.statistics.amount:,} {'tokens' if recipe.statistics.tokens else 'documents'} of "
        f"{recipe.statistics.corpus!r}. `errata recipe auto` searches better ones"
    )


def _show_controls(drawn: Controls) -> None:
    if drawn.count:
        warn(
            f"note: {counted(drawn.count, 'control question')} drawn for facts that have none, about other subjects "
            "and other things about the same ones. The answers are the unedited model's (--no-controls leaves them out)"
        )


def _check_outputs(out: Path | None, run: Path | None, *, dry_run: bool) -> None:
    if out is not None:
        check_output(out)
    elif run is None and not dry_run:
        raise InputError(
            "no --out was given",
            remedy="Name a new directory for the edited model or NAME.safetensors for the change, or add --dry-run",
        )
    if run is not None:
        check_new(run)


def _lead_of(contexts: ContextSettings) -> int:
    """How many tokens an edit puts before a prompt, at most: ". " stands behind each context."""
    return max(contexts.tokens) + 2 if contexts.openers and contexts.per_opener else 0


def _show_plan(facts: FactSet, recipe: Recipe, model: str, json: Path | None) -> None:
    steps = SCHEDULES[recipe.schedule](recipe.layers)
    batches = -(-len(facts) // recipe.batch_size)
    plan = {
        "model": model,
        "method": recipe.method,
        "facts": len(facts),
        "batches": batches,
        "steps": [{"layer": s.layer, "target_layer": s.target_layer, "share": s.share} for s in steps],
        "recipe": recipe.model_dump(mode="json"),
    }
    console().print(
        f"{counted(len(facts), 'fact')} in batches of at most {recipe.batch_size} ({batches} in all) into {model} "
        f"with {recipe.method}:"
    )
    for step in steps:
        share = "the whole" if step.share == 1 else f"{step.share:.3g}"
        console().print(f"  write layer {step.layer} with {share} of the residual at layer {step.target_layer}")
    console().print(recipe.to_yaml(), markup=False, highlight=False)
    console().print("Nothing was loaded or written (--dry-run).")
    write_json(json, plan)


def resume_run(
    path: Path,
    new: Sequence[str],
    facts: Path | None,
    model: str | None,
    decide: Mapping[str, object],
    recipe_for: Callable[..., Recipe],
    out: Path | None,
    where: Placement,
    json: Path | None,
    *,
    trust_remote_code: bool,
) -> None:
    """Open a run, see that what else was given is what it began with, and do what is left of it.

    Args:
        new: options on the command line that are for new runs only.
        model: where the base is now, if that was given.
        decide: options on the command line that choose or change a recipe, with their values.
        recipe_for: what these make of a model's recipe for a method.

    Raises:
        FaultsError: everything that is not what the run began with; nothing has happened.
    """
    if out is not None:
        check_output(out)
    run = open_run(path)
    faults = [Fault(option, "it cannot be given together with --resume", "Leave it out") for option in new]
    if facts is not None and not _same_facts(read_facts(facts), run.facts):
        remedy = "Leave it out, or begin a new run"
        faults.append(Fault("--facts", f"{facts} does not hold the facts of the run", remedy))
    base = model or run.manifest.model
    if decide:
        method = decide.get("--method", run.recipe.method)
        # What errata chose by itself is not chosen again: the run has it.
        ours = run.recipe if run.recipe.is_automatic and method == run.recipe.method else None
        faults += _recipe_faults(run.recipe, recipe_for(base, str(method), default=ours), decide)
    if where["dtype"] is not None and str(where["dtype"]) != f"torch.{run.manifest.dtype}":
        faults.append(Fault("--dtype", f"the run is in {run.manifest.dtype}", "Leave it out"))
    if faults:
        raise FaultsError(f"going on with {path}", faults)
    _note_changed_source(run)
    loaded = load_model(base, **where, trust_remote_code=trust_remote_code)
    finish_run(run, loaded, base, out, json)


def _same_facts(given: FactSet, ours: FactSet) -> bool:
    """Whether a file still holds a run's facts; control questions that the run drew for itself do not count."""
    if len(given) != len(ours):
        return False
    bare = [
        replace(fact, own=fact.own if asked.own else (), unrelated=fact.unrelated if asked.unrelated else ())
        for asked, fact in zip(given, ours, strict=True)
    ]
    return FactSet(tuple(bare), ours.source).digest() == given.digest()


def _recipe_faults(ours: Recipe, theirs: Recipe, decide: Mapping[str, object]) -> list[Fault]:
    """What the options would make another: those that name one thing each by themselves, the others by what differs."""
    faults = [
        Fault(option, f"{_shown(_OF[option](theirs))}, but the run has {_shown(_OF[option](ours))}", "Leave it out")
        for option in decide
        if option in _OF and _OF[option](theirs) != _OF[option](ours)
    ]
    one, other = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    fields = [name for name in one if one[name] != other[name] and name != "source"]
    if fields and not faults:
        options = ", ".join(decide)
        faults.append(Fault(options, f"the run has another {' and '.join(fields)}", "Leave it out, or begin a new run"))
    return faults


_OF: Mapping[str, Callable[[Recipe], object]] = {
    "--method": lambda recipe: recipe.method,
    "--batch-size": lambda recipe: recipe.batch_size,
    "--seed": lambda recipe: recipe.contexts.seed,
    "--chat": lambda recipe: recipe.contexts.chat,
    "--schedule": lambda recipe: recipe.schedule,
    "--layers": lambda recipe: list(recipe.layers),
    "--shaping": lambda recipe: [shaping.kind for shaping in recipe.shaping],
    "--corpus": lambda recipe: recipe.statistics.corpus,
}


def _shown(value: object) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _note_changed_source(run: RunDirectory) -> None:
    source = Path(run.manifest.facts_source)
    if is_file(source) and file_digest(source) != run.manifest.facts_source_sha256:
        error_console().print(
            f"note: {source} has changed since the run began; the run goes on with the copy that it keeps",
            markup=False,
            highlight=False,
        )
