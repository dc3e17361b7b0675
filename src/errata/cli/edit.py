"""``errata edit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from errata.benchmark.sequence import evaluation_set_record, measure, run_sequence
from errata.cli.edit_output import check_output, finish, finish_run, resolve_conflicts
from errata.cli.edit_with_editor import EditOptions, edit_with_editor
from errata.cli.model_options import (
    CorpusOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    LastWinsOption,
    LayersOption,
    MaxMemoryOption,
    Placement,
    StatisticsOption,
    TrustOption,
    UntouchedOption,
    check_chat,
    check_facts,
    evaluation_set_for,
    has_chat,
    is_lab,
    outline_here,
    outline_of,
    placement,
    seed_option,
    token_check,
)
from errata.cli.recipe_options import automatic_recipe, comes_with_recipe, layers_of, read_recipe_for, show_notes
from errata.cli.terminal import JsonOption, console, progress, warn, write_json
from errata.editing.contexts import ContextSettings
from errata.editing.recipe import Recipe
from errata.editors.edit_file import StoredEdit
from errata.editors.locate_then_edit import Editor
from errata.editors.table import EDITOR_NAMES, check_method
from errata.errors import Fault, FaultsError, InputError, collect_errors
from errata.evaluation.chat import chat_questions
from errata.evaluation.controls import Controls, with_automatic_controls
from errata.facts.conflicts import OnConflict
from errata.facts.fact import FactSet
from errata.facts.files import read_facts
from errata.facts.questions import read_questions
from errata.patches.patch import supported_dtype_name
from errata.runs.loading import is_edit, load_model
from errata.runs.run import RunDirectory, create_run, open_run
from errata.statistics.store import source_digest
from errata.utils.files import check_new, file_digest, is_file
from errata.utils.text import counted

EXAMPLE = """Example: errata edit --model lab --facts examples/facts.jsonl --method memit+blue --out edited

Example: errata edit --facts examples/facts.jsonl --method grace --out grace.safetensors

Example: errata edit --facts examples/facts.jsonl --method ultra --recipe own.yaml --out ultra.safetensors
(own.yaml: 'editors: {ultra: {learning_rate: 0.5}}')

Example: errata edit --facts examples/facts.jsonl --batch-size 4 --run runs/one --out one.safetensors

Example: errata edit --resume runs/one --out one.safetensors

Example: errata edit --model stack --facts more.jsonl --on-conflict replace --out second.safetensors"""

_RESUME_HELP = (
    "Resume an interrupted run after its last complete batch. Can be combined with --out, --json, --device, --model "
    "(the current location of the base model) and --trust-remote-code; any other option must match the run."
)
app = typer.Typer()


@app.command("edit", epilog=EXAMPLE)
def edit(
    facts: Annotated[
        Path | None,
        typer.Option(
            "--facts", "-f", help="Facts to edit: JSONL, JSON (also EasyEdit's format) or CSV; see examples/."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model to edit: 'lab' (default), a directory, a GGUF file, a stack, a name from `errata models "
            "list`, or a name on the Hugging Face hub.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Editing method (see `errata methods`), with or without +blue; default: memit+blue, or the editor of "
            "an edit that changes no weights."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="NAME.safetensors to save only the patch, or a new directory to save the full model."
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="New directory that records the run batch by batch, so that it can be resumed.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help=_RESUME_HELP)] = None,
    on_conflict: Annotated[
        OnConflict | None,
        typer.Option(help="What to do with facts that contradict earlier edits of the model; default: refuse."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Facts solved jointly; default: from the recipe.")
    ] = None,
    seed: Annotated[
        int | None, seed_option("for contexts, question sampling and bootstrap; default: from the recipe, or 0.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="YAML recipe (hyperparameters); default: the one shipped for the model. If there is none, "
            "errata selects layers by trial edits and uses settings relative to the scale of the model."
        ),
    ] = None,
    corpus: CorpusOption = None,
    statistics: StatisticsOption = None,
    schedule: Annotated[
        str | None, typer.Option(help="even, sqrt, boundary, own, single or replay; overrides the method's schedule.")
    ] = None,
    layers: LayersOption = None,
    shaping: Annotated[
        str | None,
        typer.Option(help="rect, prune, norm_cap (comma-separated), or none; overrides the method's shaping."),
    ] = None,
    as_published: Annotated[
        bool,
        typer.Option(
            "--as-published", help="Reproduce known bugs of the reference code that published results depend on."
        ),
    ] = False,
    last_wins: LastWinsOption = False,
    untouched: UntouchedOption = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls",
            help="Generate control questions for facts that have none; the unedited model's answers are the reference.",
        ),
    ] = True,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure the model before and after.")
    ] = True,
    dry_run: DryRunOption = False,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Also edit each fact as a message in the model's chat template, and evaluate everything in it; "
            "locate-then-edit methods only.",
        ),
    ] = False,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    max_memory: MaxMemoryOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Edit facts into a model and show what changed.

    The model on disk is never modified; results are written to --out.
    """
    recipe_for = partial(
        read_recipe_for, path=recipe, batch_size=batch_size, seed=seed, corpus=corpus, statistics=statistics,
        schedule=schedule, layers=layers, shaping=shaping, as_published=as_published, chat=chat,
    )  # fmt: skip
    if resume is not None:
        new_only: dict[str, object] = {"--run": run, "--on-conflict": on_conflict, "--untouched": untouched}
        new_only |= {"--last-wins": last_wins and facts is None}
        new_only |= {"--dry-run": dry_run, "--no-evaluate": not evaluate, "--no-controls": not controls}
        choices = {
            "--method": method, "--batch-size": batch_size, "--seed": seed, "--schedule": schedule, "--layers": layers,
            "--shaping": shaping, "--recipe": recipe, "--corpus": corpus, "--statistics": statistics,
            "--as-published": as_published or None, "--chat": chat or None,
        }  # fmt: skip
        choices = {option: value for option, value in choices.items() if value is not None}
        resume_run(
            resume,
            [option for option, value in new_only.items() if value],
            facts,
            model,
            choices,
            recipe_for,
            out,
            placement(device, dtype, max_memory),
            json,
            trust_remote_code=trust_remote_code,
        )
        return
    model = model or "lab"
    method = method or (StoredEdit.load(Path(model)).method if is_edit(model) else "memit+blue")
    if method in EDITOR_NAMES:
        others: dict[str, object] = {"--run": run, "--corpus": corpus, "--statistics": statistics}
        others |= {
            "--schedule": schedule,
            "--layers": layers,
            "--shaping": shaping,
            "--as-published": as_published,
            "--chat": chat,
        }
        options = EditOptions(
            model, method, facts, out, recipe, seed, batch_size, on_conflict or OnConflict.REFUSE, last_wins, untouched,
            controls, evaluate, dry_run, json, trust_remote_code,
        )  # fmt: skip
        given = [option for option, value in others.items() if value]
        edit_with_editor(options, given, placement(device, dtype, max_memory))
        return
    outline = outline_here(model, trust_remote_code=trust_remote_code)
    automatic = recipe is None and not comes_with_recipe(model)
    if automatic and outline is None:  # automatic settings depend on the model's shape
        outline = outline_of(model, trust_remote_code=trust_remote_code)
    prefix_tokens = 0
    with collect_errors("the input") as part:
        with part:
            _check_outputs(out, run, dry_run=dry_run)
        with part:
            where = placement(device, dtype, max_memory)
        with part:
            check_method(method)
            default = automatic_recipe(model, method, outline) if automatic and outline is not None else None
            resolved_recipe = recipe_for(model, method, default=default)
            prefix_tokens = _prefix_tokens(resolved_recipe.contexts)
            if outline is not None:
                outline.check_layers(resolved_recipe.layers)
        with part:
            if facts is None:
                raise InputError(
                    "missing option --facts",
                    remedy="Give a file of facts, such as examples/facts.jsonl",
                    code="OPTION_MISSING",
                )
            fact_set = read_facts(facts, last_wins=last_wins, check=token_check(outline, prefix_tokens=prefix_tokens))
            for note in fact_set.notes:
                warn(f"note: {note}")
            fact_set = resolve_conflicts(fact_set, model, on_conflict or OnConflict.REFUSE)
        with part:
            questions = read_questions(untouched)
        with part:
            lab = is_lab(model)
    if outline is None:
        outline = outline_of(model, trust_remote_code=trust_remote_code)
        with collect_errors("the input") as part:
            with part:
                outline.check_layers(resolved_recipe.layers)
            with part:
                check_facts(fact_set, outline, prefix_tokens=prefix_tokens)
    chat = resolved_recipe.contexts.chat
    if chat:
        check_chat(outline)
    if not automatic:
        show_notes(resolved_recipe, model)
    seed = resolved_recipe.contexts.seed
    if dry_run:
        if automatic and layers is None:
            warn(
                "note: the layers shown are chosen by depth; without --dry-run they are chosen by trial edits "
                "on the model"
            )
        _show_plan(fact_set, resolved_recipe, model, json)
        return
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    generated = Controls(fact_set, frozenset())
    with progress() as report, loaded.blaming_no_edit():
        if automatic and layers is None:
            chosen, why = layers_of(loaded, report=report)
            resolved_recipe = recipe_for(model, method, default=automatic_recipe(model, method, outline, chosen, why))
        if automatic:
            _show_automatic(resolved_recipe)
        if controls and evaluate and not lab:
            generated = with_automatic_controls(loaded, fact_set, report=report)
            fact_set = generated.facts
            _show_controls(generated)
    evaluation_set = evaluation_set_for(fact_set, lab=lab, untouched=questions, seed=seed)
    evaluation_set = replace(evaluation_set, automatic=generated.automatic)
    if chat or has_chat(outline):
        in_chat = chat_questions(fact_set, evaluation_set.untouched, everything=chat)
        evaluation_set = replace(evaluation_set, chat=in_chat)
    if run is not None:
        fingerprint = loaded.fingerprint()
        created = create_run(
            run,
            model=model,
            fingerprint=fingerprint,
            dtype=supported_dtype_name(loaded.dtype),
            lab=lab,
            recipe=resolved_recipe,
            facts=fact_set,
            corpus=source_digest(resolved_recipe.statistics) if resolved_recipe.needs_statistics else "",
            seed=seed,
            examination=evaluation_set_record(evaluation_set) if evaluate else None,
        )
        finish_run(created, loaded, model, out, json)
        return
    with progress() as report:
        if evaluate:
            before = measure(loaded, evaluation_set, report=report, what="measuring before")
            result = run_sequence(
                loaded, resolved_recipe, evaluation_set, before, report=report, on_search=report.searched, seed=seed
            )
            rows, patch, left_alone = result.rows, result.patch, result.left_alone
            measured = before, result.after
        else:
            editor = Editor(loaded, resolved_recipe, report=report, on_search=report.searched)
            rows, patch, measured = [], editor.apply(fact_set), None
            left_alone = [fact for record in editor.records for fact in record.unwritten]
    finish(loaded, model, patch, rows, left_alone, evaluation_set, seed, out, json, measured)


def _show_automatic(recipe: Recipe) -> None:
    """Note the settings that were chosen for a model without a shipped recipe."""
    warn(
        f"note: errata has no recipe for this model; using scale-free settings that are not tuned for it: layers "
        f"{','.join(map(str, recipe.layers))}, {recipe.target.steps} steps, key statistics "
        f"{recipe.statistics.summary}. `errata recipe auto` searches for better settings"
    )


def _show_controls(generated: Controls) -> None:
    if generated.count:
        warn(
            f"note: generated {counted(generated.count, 'control question')} for facts that have none, about "
            f"other subjects and other properties of the same subjects. The unedited model's answers are the "
            f"reference; disable with --no-controls"
        )


def _check_outputs(out: Path | None, run: Path | None, *, dry_run: bool) -> None:
    if out is not None:
        check_output(out)
    elif run is None and not dry_run:
        raise InputError(
            "missing option --out",
            remedy="Give NAME.safetensors for a patch or a new directory for the full model, or add --dry-run",
            code="OPTION_MISSING",
        )
    if run is not None:
        check_new(run)


def _prefix_tokens(contexts: ContextSettings) -> int:
    """The largest number of tokens that an edit puts before a prompt; each context ends in ". "."""
    return max(contexts.tokens) + 2 if contexts.openers and contexts.per_opener else 0


def _show_plan(facts: FactSet, recipe: Recipe, model: str, json: Path | None) -> None:
    batches = -(-len(facts) // recipe.batch_size)
    plan = {
        "model": model,
        "method": recipe.method,
        "facts": len(facts),
        "batches": batches,
        "steps": [{"layer": s.layer, "target_layer": s.target_layer, "share": s.share} for s in recipe.steps],
        "recipe": recipe.model_dump(mode="json"),
    }
    console().print(
        f"Editing {counted(len(facts), 'fact')} into {model} with {recipe.method}, in "
        f"{counted(batches, 'batch')} of at most {recipe.batch_size}:"
    )
    for step in recipe.steps:
        share = "all" if step.share == 1 else f"a share of {step.share:.3g}"
        console().print(f"  update layer {step.layer} with {share} of the residual at layer {step.target_layer}")
    console().print(recipe.to_yaml(), markup=False, highlight=False)
    console().print("Dry run: no weights were loaded and nothing was written.")
    write_json(json, plan)


def resume_run(
    path: Path,
    new_only: Sequence[str],
    facts: Path | None,
    model: str | None,
    choices: Mapping[str, object],
    recipe_for: Callable[..., Recipe],
    out: Path | None,
    where: Placement,
    json: Path | None,
    *,
    trust_remote_code: bool,
) -> None:
    """Open a run, check that all options match it, and execute its remaining batches.

    Args:
        new_only: given options that only new runs accept.
        model: the current location of the base model, if given.
        choices: given options that select or change the recipe, with their values.
        recipe_for: applies these options to the recipe of a model and a method.

    Raises:
        FaultsError: for every option that differs from the run, before any work.
    """
    if out is not None:
        check_output(out)
    run = open_run(path)
    faults = [
        Fault(option, "cannot be combined with --resume", "Remove it", code="OPTION_CONFLICT") for option in new_only
    ]
    # The run may have been started with --last-wins, which has no effect on files without duplicates.
    if facts is not None and not _same_facts(read_facts(facts, last_wins=True), run.facts):
        what = f"the facts in {facts} differ from those of the run"
        faults.append(Fault("--facts", what, "Remove it, or start a new run", code="RUN_MISMATCH"))
    base = model or run.manifest.model
    if choices:
        method = choices.get("--method", run.recipe.method)
        # Settings that errata chose automatically are not chosen again: they are part of the run.
        ours = run.recipe if run.recipe.is_automatic and method == run.recipe.method else None
        faults += _recipe_faults(run.recipe, recipe_for(base, str(method), default=ours), choices)
    if where["dtype"] is not None and str(where["dtype"]) != f"torch.{run.manifest.dtype}":
        faults.append(Fault("--dtype", f"the run uses {run.manifest.dtype}", "Remove it", code="RUN_MISMATCH"))
    if faults:
        raise FaultsError(f"the options for resuming {path}", faults)
    _note_changed_source(run)
    loaded = load_model(base, **where, trust_remote_code=trust_remote_code)
    finish_run(run, loaded, base, out, json)


def _same_facts(given: FactSet, ours: FactSet) -> bool:
    """Whether a file still contains a run's facts, ignoring control questions that the run generated."""
    if len(given) != len(ours):
        return False
    bare = [
        replace(fact, own=fact.own if source.own else (), unrelated=fact.unrelated if source.unrelated else ())
        for source, fact in zip(given, ours, strict=True)
    ]
    return FactSet(tuple(bare), ours.source).digest() == given.digest()


def _recipe_faults(ours: Recipe, theirs: Recipe, choices: Mapping[str, object]) -> list[Fault]:
    """Options that would change a run's recipe: by option where it sets one field, otherwise by the changed fields."""
    faults = [
        Fault(
            option,
            f"{_shown(_FIELD[option](theirs))}, but the run uses {_shown(_FIELD[option](ours))}",
            "Remove it",
            code="RUN_MISMATCH",
        )
        for option in choices
        if option in _FIELD and _FIELD[option](theirs) != _FIELD[option](ours)
    ]
    one, other = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    fields = [name for name in one if one[name] != other[name] and name != "source"]
    if fields and not faults:
        what = f"the run uses a different {' and '.join(fields)}"
        faults.append(Fault(", ".join(choices), what, "Remove it, or start a new run", code="RUN_MISMATCH"))
    return faults


_FIELD: Mapping[str, Callable[[Recipe], object]] = {
    "--method": lambda recipe: recipe.method,
    "--batch-size": lambda recipe: recipe.batch_size,
    "--seed": lambda recipe: recipe.contexts.seed,
    "--chat": lambda recipe: recipe.contexts.chat,
    "--schedule": lambda recipe: recipe.schedule,
    "--layers": lambda recipe: list(recipe.layers),
    "--shaping": lambda recipe: [shaping.kind for shaping in recipe.shaping],
    "--corpus": lambda recipe: recipe.statistics.corpus,
    "--statistics": lambda recipe: recipe.statistics.file,
}


def _shown(value: object) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _note_changed_source(run: RunDirectory) -> None:
    source = Path(run.manifest.facts_source)
    if is_file(source) and file_digest(source) != run.manifest.facts_source_sha256:
        warn(f"note: {source} has changed since the run was started; the run uses its own copy of the facts")
