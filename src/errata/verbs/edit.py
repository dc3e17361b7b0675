"""``errata edit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from errata.benchmark.sequential import examine, run_sequence
from errata.edit import Editor
from errata.errors import InputError, told_together
from errata.evaluation.records import Row
from errata.facts import FactSet
from errata.facts_io import read_facts
from errata.models.language_model import LanguageModel
from errata.output import check_new, new_directory
from errata.recipe import Recipe
from errata.recipe_settings import ContextSettings
from errata.report.tables import before_after_table
from errata.schedules import SCHEDULES
from errata.verbs.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    TrustOption,
    console,
    error_console,
    outline_here,
    outline_of,
    placement,
    progress,
    write_json,
)
from errata.verbs.models import check_facts, is_lab, token_check
from errata.verbs.numbers import read_numbers, show_notes
from errata.verbs.questions import examination_for, read_questions, show_absent
from errata.verbs.saving import record_of, save_edited

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
    outline = outline_here(model, trust_remote_code=trust_remote_code)
    lead = 0
    with told_together("what was given") as part:
        with part:
            _check_out(out, dry_run=dry_run)
        with part:
            where = placement(device, dtype)
        with part:
            numbers = read_numbers(
                model, method, recipe, batch_size=batch_size, seed=seed, corpus=corpus, schedule=schedule,
                layers=layers, shaping=shaping, as_published=as_published,
            )  # fmt: skip
            lead = _lead_of(numbers.contexts)
            if outline is not None:
                outline.check_layers(numbers.layers)
        with part:
            fact_set = read_facts(facts, last_wins=last_wins, check=token_check(outline, lead=lead))
        with part:
            questions = read_questions(untouched)
        with part:
            lab = is_lab(model)
    if outline is None:
        outline = outline_of(model, trust_remote_code=trust_remote_code)
        with told_together("what was given") as part:
            with part:
                outline.check_layers(numbers.layers)
            with part:
                check_facts(fact_set, outline, lead=lead)
    show_notes(numbers, model)
    seed = numbers.contexts.seed
    examination = examination_for(fact_set, lab=lab, untouched=questions, seed=seed)
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
    record = record_of(rows, patch, examination, seed)
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


def _check_out(out: Path | None, *, dry_run: bool) -> None:
    if out is not None:
        check_new(out)
    elif not dry_run:
        raise InputError("no --out was given", remedy="Name a new directory for the edited model, or add --dry-run")


def _lead_of(contexts: ContextSettings) -> int:
    """How many tokens an edit puts before a prompt, at most: ". " stands behind each context."""
    return max(contexts.tokens) + 2 if contexts.openers and contexts.per_opener else 0


def _warn_if_nothing_took(rows: Sequence[Row]) -> None:
    took = [row["mean"] for row in rows if row["metric"] == "efficacy_accuracy" and row["when"] == "after"]
    if took == [0.0]:
        error_console().print(
            "[yellow]warning:[/] none of the facts took: the model says none of the targets. It may not know these "
            "subjects, or the recipe may not suit it (more target steps, a smaller ridge)."
        )


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
