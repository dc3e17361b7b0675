"""``errata edit``."""

from __future__ import annotations

import difflib
import json as json_module
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.benchmark.sequential import Examination, examine, run_sequence
from errata.edit import Editor
from errata.errors import Fault, FaultsError, InputError
from errata.evaluation.recall import absent
from errata.evaluation.records import FORMAT, Row
from errata.facts import Fact, FactSet
from errata.facts_io import Check, read_facts
from errata.facts_tokens import token_faults
from errata.methods import BOUNDARY_SUFFIX, method_named
from errata.models.language_model import LanguageModel, Outline
from errata.output import check_new, new_directory, write_text
from errata.patch import Patch
from errata.recipe import Recipe, read_recipe, shipped_recipe
from errata.report.tables import before_after_table
from errata.schedules import SCHEDULES
from errata.shaping import SHAPERS
from errata.statistics.store import check_corpus
from errata.verbs.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    TrustOption,
    console,
    error_console,
    outline_of,
    placement,
    progress,
    write_json,
)
from errata.verbs.questions import examination_for, show_absent

EXAMPLE = "Example: errata edit --model lab --facts examples/facts.jsonl --method memit+blue --out edited"


def edit(
    facts: Annotated[Path, typer.Option("--facts", "-f", help="JSONL or CSV; see examples/.")],
    model: ModelOption = "lab",
    method: Annotated[str, typer.Option(help="A row of `errata methods`, with or without +blue.")] = "memit+blue",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A new directory for the edited model.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Facts solved together; default: the recipe's.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of contexts, questions and intervals; default: the recipe's, or 0.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe; default: the one shipped for the model.")] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Text for key statistics, a blank line between documents; default: the recipe's."),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="even, sqrt, boundary, single or replay, in place of the method's.")
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
    evaluate: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="Measure before and after.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan; load no weights.")
    ] = False,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Edit facts into a model and show what changed. The model on disk is never touched: OUT is a new directory."""
    method_named(method)
    if out is None and not dry_run:
        raise InputError("no --out was given", remedy="Name a new directory for the edited model, or add --dry-run")
    if out is not None:
        check_new(out)
    where = placement(device, dtype)
    outline = outline_of(model, trust_remote_code=trust_remote_code)
    choices = _choices(method, schedule, layers, shaping)
    numbers = _numbers(model, method, recipe, batch_size, seed, corpus, choices, as_published=as_published)
    seed = numbers.contexts.seed
    _show_notes(numbers, model)
    outline.check_layers(numbers.layers)
    if numbers.needs_statistics:
        check_corpus(numbers.statistics)
    contexts = numbers.contexts
    lead = max(contexts.tokens) + 2 if contexts.openers and contexts.per_opener else 0  # ". " stands behind each
    fact_set = read_facts(facts, last_wins=last_wins, check=token_check(outline, lead=lead))
    examination = examination_for(fact_set, lab=is_lab(model), untouched=untouched, seed=seed)
    if dry_run:
        _show_plan(fact_set, numbers, model, json)
        return
    assert out is not None
    loaded = LanguageModel.load(model, **where, trust_remote_code=trust_remote_code)
    with progress() as report:
        if evaluate:
            before = examine(loaded, examination, report=report, what="asking before")
            result = run_sequence(loaded, numbers, examination, before, report=report, seed=seed)
            rows, patch, left_alone = result.rows, result.patch, result.left_alone
        else:
            editor = Editor(loaded, numbers, report=report)
            rows, patch = [], editor.apply(fact_set)
            left_alone = [fact for record in editor.records for fact in record.left_alone]
    record = _record(rows, patch, examination, seed)
    record["about"]["left_alone"] = [fact.id for fact in left_alone]
    with new_directory(out) as partial:
        save_edited(loaded, patch, record, partial)
    if rows:
        console().print(before_after_table(rows, width=console().width))
        show_absent(fact_set, examination.untouched)
        _warn_if_nothing_took(rows)
    if left_alone:
        names = ", ".join(repr(fact.id) for fact in left_alone[:5]) + (", …" if len(left_alone) > 5 else "")
        error_console().print(
            f"warning: nothing was written for {len(left_alone)} of {len(fact_set)} facts ({names}): their distance to "
            "the target lies outside of rounds.least and rounds.most in the recipe.",
            style="yellow",
            markup=False,
            highlight=False,
        )
    norms = ", ".join(f"layer {layer}: {norm:.3g}" for layer, norm in patch.norms().items())
    changed = f"norm of the change at {norms}" if norms else "no weight changed"
    console().print(f"Wrote {out} ({len(fact_set)} facts, {method}; {changed}).", highlight=False, markup=False)
    write_json(json, record)


def token_check(model: Outline, *, lead: int = 0) -> Check:
    """What finds subjects without tokens, and prompts that are too long for the model.

    Args:
        lead: the tokens that an edit puts before a prompt.
    """

    def count_tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def check(facts: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
        limit = model.context_length - 1  # one for BOS
        return token_faults(facts, places, count_tokens=count_tokens, limit=limit, lead=lead)

    return check


def is_lab(name: str) -> bool:
    """Whether a model is the embedded one, was saved from it, or was edited from it, once or again and again.

    Raises:
        InputError: if the record beside the model cannot be read.
    """
    path = Path(name) / "errata.json"
    if name != "lab" and path.is_file():
        try:
            return bool(json_module.loads(path.read_text(encoding="utf-8"))["about"]["lab"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not the record of an edit: {type(error).__name__}: {error}",
                remedy="Remove this file, or edit the model anew",
            ) from error
    return name == "lab" or (Path(name) / "world.json").is_file()


def save_edited(model: LanguageModel, patch: Patch, record: dict[str, Any], directory: Path) -> None:
    """A plain transformers directory, with the patch and the record of the run beside the weights."""
    model.model.save_pretrained(directory)
    model.tokenizer.save_pretrained(directory)
    patch.save(directory / "patch.safetensors")
    text = json_module.dumps(record, ensure_ascii=False, indent=2)
    write_text(directory / "errata.json", text + "\n")
    write_text(directory / "recipe.yaml", patch.recipe.to_yaml())


def _warn_if_nothing_took(rows: Sequence[Row]) -> None:
    took = [row["mean"] for row in rows if row["metric"] == "efficacy_accuracy" and row["when"] == "after"]
    if took == [0.0]:
        error_console().print(
            "[yellow]warning:[/] none of the facts took: the model says none of the targets. It may not know these "
            "subjects, or the recipe may not suit it (more target steps, a smaller ridge)."
        )


def _choices(method: str, schedule: str | None, layers: str | None, shaping: str | None) -> dict[str, Any]:
    """What --schedule, --layers and --shaping put in place of the recipe's.

    Raises:
        FaultsError: for what cannot be read, and for a schedule that the method's name speaks against.
    """
    faults: list[Fault] = []
    choices: dict[str, Any] = {}
    if schedule is not None:
        choices["schedule"] = schedule
        if schedule not in SCHEDULES:
            faults.append(Fault("--schedule", f"there is no schedule {schedule!r}", _known(schedule, SCHEDULES)))
        elif method.endswith(BOUNDARY_SUFFIX) and schedule != "boundary":
            faults.append(Fault("--schedule", f"{method!r} is the boundary schedule", "Leave out one of the two"))
    if layers is not None:
        try:
            choices["layers"] = [int(part) for part in layers.split(",")]
        except ValueError:
            faults.append(Fault("--layers", f"{layers!r} is no list of numbers", "Write them as 4,5,6"))
    if shaping is not None:
        kinds = [kind.strip() for kind in shaping.split(",") if kind.strip() not in ("", "none")]
        choices["shaping"] = [{"kind": kind} for kind in kinds]
        unknown = [kind for kind in kinds if kind not in SHAPERS]
        faults += [
            Fault("--shaping", f"there is no shaping {kind!r}", f"Known: {', '.join(SHAPERS)}, none")
            for kind in unknown
        ]
    if faults:
        raise FaultsError("the command line", faults)
    return choices


def _known(name: str, names: Iterable[str]) -> str:
    """What there is, and the nearest of it."""
    near = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(names)}"


def _numbers(
    model: str,
    method: str,
    path: Path | None,
    batch_size: int | None,
    seed: int | None,
    corpus: str | None,
    choices: Mapping[str, Any],
    *,
    as_published: bool,
) -> Recipe:
    if path is not None:
        numbers = read_recipe(path, method, as_published=as_published)
    else:
        numbers = shipped_recipe(recipe_name(model), method, as_published=as_published)
    if corpus is not None:
        numbers = numbers.with_corpus(corpus if corpus == "lab" else Path(corpus).expanduser().resolve())
    contexts = numbers.contexts if seed is None else numbers.contexts.model_copy(update={"seed": seed})
    numbers = numbers.model_copy(update={"contexts": contexts, "batch_size": batch_size or numbers.batch_size})
    numbers = numbers.with_choices(choices) if choices else numbers
    if as_published:
        plain = _numbers(model, method, path, batch_size, seed, corpus, choices, as_published=False)
        if plain.model_dump(exclude={"source"}) == numbers.model_dump(exclude={"source"}):
            raise InputError(
                f"--as-published changes nothing here: {', '.join(choices)} took the place of what it changes",
                remedy="Leave out one of them",
            )
    return numbers


def _show_notes(recipe: Recipe, model: str) -> None:
    """What a user should know of the numbers before they are used."""
    names = {_last_part(model), _last_part(recipe_name(model))}
    notes = []
    if _last_part(recipe.model) not in names:
        notes.append(f"the recipe's numbers are for {recipe.model!r}; they are taken for {model!r} as they are")
    if recipe.is_automatic:
        notes.append(f"the recipe is {recipe.source}")
    for note in notes:
        error_console().print(f"note: {note}", markup=False, highlight=False)


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def recipe_name(model: str) -> str:
    """Which shipped recipe a model takes: the lab's for what was made from the lab."""
    return "lab" if is_lab(model) else model


def _record(rows: Sequence[Row], patch: Patch, examination: Examination, seed: int) -> dict[str, Any]:
    """Results in the form that ``read_results`` reads, and everything that it takes to make them again."""
    about = {
        "base": patch.base,
        "lab": is_lab(patch.base),
        "method": patch.recipe.method,
        "seed": seed,
        "recipe": patch.recipe.model_dump(mode="json"),
        "prefixes": list(patch.prefixes),
        "fingerprint": patch.fingerprint,
        "versions": dict(patch.versions),
        "absent": absent(examination.facts, examination.untouched) if rows else {},
        "facts": [fact.to_record() for fact in patch.facts],
    }
    return {"format": FORMAT, "rows": list(rows), "about": about}


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
        f"{len(facts)} facts in batches of at most {recipe.batch_size} ({batches} in all) into {model} "
        f"with {recipe.method}:"
    )
    for step in steps:
        share = "the whole" if step.share == 1 else f"{step.share:.3g}"
        console().print(f"  write layer {step.layer} with {share} of the residual at layer {step.target_layer}")
    console().print(recipe.to_yaml(), markup=False, highlight=False)
    console().print("Nothing was loaded or written (--dry-run).")
    write_json(json, plan)
