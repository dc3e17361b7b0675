"""The end of an edit: what is written, and what is shown of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from rich import box
from rich.table import Table

from errata.benchmark.sequence import Examination, Measurement, recorded_examination, run_recorded
from errata.cli.model_options import PATCH_SUFFIX, is_lab, patch_name, show_absent
from errata.cli.terminal import console, counted, error_console, progress, tell, warn, write_json
from errata.errors import FaultsError, InputError, InterruptedRunError
from errata.evaluation.outcomes import Change, FactOutcome, Outcome, Reply, absent_changes, outcome_of
from errata.evaluation.recall import absent
from errata.facts.conflicts import OnConflict, conflicts, without
from errata.facts.fact import Fact, FactSet
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch, PatchResults
from errata.patches.stack import Stack, has_stack, write_stack
from errata.report.conclusions import LARGE, NOTABLE, advice
from errata.report.tables import before_after_table
from errata.results.records import FORMAT, Row
from errata.runs.loading import patches_of, stack_under
from errata.runs.run import RunDirectory, is_run
from errata.utils.files import check_new, check_new_file, new_directory, write_text


def check_output(out: Path) -> None:
    """Raises InputError where ``write_edit`` could not write, before any work is done."""
    if out.suffix == PATCH_SUFFIX:
        check_new_file(out)
    else:
        check_new(out)


def write_edit(out: Path, model: LanguageModel, stack: Stack, patch: Patch, record: dict[str, Any]) -> None:
    """Write the change alone where ``out`` ends in .safetensors, else the full model.

    Args:
        stack: everything that is in the model's weights, ``patch`` on top.
    """
    if out.suffix == PATCH_SUFFIX:
        patch.save(out)
        return
    with new_directory(out) as partial:
        save_full(model, stack, partial)
        write_text(partial / "errata.json", json.dumps(record, ensure_ascii=False, indent=2) + "\n")
        write_text(partial / "recipe.yaml", patch.recipe.to_yaml())


def save_full(model: LanguageModel, stack: Stack, directory: Path) -> None:
    """A plain transformers directory like the base's, with the patches that are in its weights beside them.

    Says so where it is in another dtype than the base, or files came from outside the base's directory.
    """
    written = model.write_files(directory)
    write_stack(stack, directory)
    if written.converted is not None:
        stored, dtype = written.converted
        warn(f"note: the weights are written in {dtype}, in which they were edited; the base is in {stored}")
    if written.linked:
        warn(f"note: files of the base that are links to other places were copied: {', '.join(written.linked)}")


def record_of(rows: Sequence[Row], patch: Patch, examination: Examination, seed: int) -> dict[str, Any]:
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


SHOWN = 5  # of each kind; --json has all
_LONGEST = 50  # characters of a prompt that are shown
_Item = TypeVar("_Item")


def show_facts(facts: Sequence[FactOutcome]) -> None:
    """How many facts took, and of the others which wordings failed."""
    if not facts:
        return
    by_status = {status: [fact for fact in facts if fact.status == status] for status in ("took", "partly", "failed")}
    took, partly, failed = by_status.values()
    tell(f"Facts: {len(took)} of {len(facts)} are said in every wording, {len(partly)} in some, {len(failed)} in none.")
    _listed([*failed, *partly], _fact_line)


def show_chat(replies: Sequence[Reply], facts: Sequence[FactOutcome]) -> None:
    """How many facts the model says in its chat template, and what it replies where it does not."""
    own = [reply for reply in replies if reply.own]
    if not own:
        return
    before = "" if own[0].before is None else f" ({sum(bool(reply.before) for reply in own)} before the edit)"
    tell(f"In chat: the reply holds the answer for {sum(reply.took for reply in own)} of {len(own)} facts{before}.")
    if rest := [reply for reply in replies if not reply.own]:
        tell(f"  … and for {sum(reply.took for reply in rest)} of {counted(len(rest), 'paraphrase')}.")
    missed = [reply for reply in own if not reply.took]
    _listed(missed, lambda reply: f"  {reply.fact}: {_short(reply.prompt)} → '{_short(reply.said)}'")
    bare = {fact.id for fact in facts if any(wording.own and wording.took for wording in fact.wordings)}
    if unsaid := [reply for reply in missed if reply.fact in bare]:
        warn(f"note: {counted(len(unsaid), 'fact')} took in plain text, but not in chat; try errata edit --chat")


def show_controls(outcome: Outcome) -> None:
    """How many answers to control questions were lost and gained, and which, with the words before and after."""
    if not outcome.controls:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("control questions")
    for head in ("asked", "known before", "lost", "gained", "changed"):
        table.add_column(head, justify="right")
    for kind, count in outcome.counts().items():
        share = f"{count.changed} ({100 * count.changed / count.asked:.0f} %)"
        numbers = map(str, (count.asked, count.known, count.lost, count.gained))
        table.add_row(kind.replace("_", " ").replace(":chat", ", in chat"), *numbers, share)
    console().print(table)
    for name, which in (
        ("lost", [change for change in outcome.controls if change.lost]),
        ("gained", [change for change in outcome.controls if change.gained]),
        ("changed", [change for change in outcome.controls if change.changed and not (change.lost or change.gained)]),
    ):
        _listed(which, lambda change, name=name: _change_line(name, change))  # type: ignore[misc]
    if any(change.changed and not change.variant for change in outcome.controls):  # those in chat are whole replies
        tell("(Outside chat, after →: the likeliest token at each place, given the expected ones before it.)")


def show_unable(outcome: Outcome, metrics: Iterable[str]) -> None:
    """The numbers above that can show nothing."""
    shown = set(metrics)
    for metric, why in outcome.unable.items():
        if metric in shown:
            tell(f"* {metric.replace('_', ' ')} can show little or nothing: {why}.")


def show_weight_change(outcome: Outcome) -> None:
    """How large the change is beside the weights, with a warning where it is large."""
    changed = outcome.weight_change
    if not changed:
        return
    layers = ", ".join(f"layer {layer}: {_percent(ratio)}" for layer, ratio in changed.items())
    tell(f"Weight change ‖ΔW‖ / ‖W‖: {layers}.")
    largest = max(changed.values())
    if largest > LARGE:
        error_console().print(
            f"warning: the change is large: {_percent(largest)} of a layer's weights. On real models changes above "
            f"{100 * LARGE:.0f} % have done damage.",
            style="yellow",
            markup=False,
            highlight=False,
        )
    elif largest > NOTABLE:
        text = f"note: more than {100 * NOTABLE:.0f} % of a layer's weights changed; look at the control questions."
        warn(text)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.2g} %" if ratio < 0.1 else f"{100 * ratio:.0f} %"


def _fact_line(fact: FactOutcome) -> str:
    first, *rest = fact.failed
    more = f" (and {counted(len(rest), 'wording')} more)" if rest else ""
    return f"  {fact.id}: {_short(first.prompt)} → '{_short(first.said)}', not '{_short(fact.target)}'{more}"


def _change_line(name: str, change: Change) -> str:
    kind = change.kind.replace("_", " ") + (", in chat" if change.variant else "")
    return f"  {name}, {kind}: {_short(change.now.prompt)} '{_short(change.before.said)}' → '{_short(change.now.said)}'"


def _listed(items: Sequence[_Item], line: Callable[[_Item], str]) -> None:
    for item in items[:SHOWN]:
        tell(line(item))
    if len(items) > SHOWN:
        tell(f"  … and {len(items) - SHOWN} more, see --json")


def _short(text: str) -> str:
    """On one line, its end kept: that is where the question is."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else "…" + line[1 - _LONGEST :]


_ENDS: Final = ("before", "after")


def finish_run(run: RunDirectory, model: LanguageModel, name: str, out: Path | None, json: Path | None) -> None:
    """Do what is left of a run, then as ``finish``.

    Raises:
        InterruptedRunError: at Ctrl-C; says how far the run is, and how it goes on.
    """
    try:
        with progress() as report:
            result = run_recorded(model, run, report=report)
        for note in result.notes:
            error_console().print(f"note: {note}", markup=False, highlight=False)
        examination = recorded_examination(run) or Examination(run.facts)
        seed = run.manifest.seed
        asked = None if result.before is None or result.after is None else (result.before, result.after)
        finish(model, name, result.patch, result.rows, result.left_alone, examination, seed, out, json, asked)
    except KeyboardInterrupt as error:
        options = {"--out": out, "--json": json}
        again = " ".join(f"{option} {path}" for option, path in options.items() if path is not None)
        raise InterruptedRunError(
            f"{run.batches_done} of {run.batches} batches are done, and kept in {run.path}",
            remedy=f"To go on: errata edit --resume {run.path} {again}".rstrip(),
        ) from error
    console().print(
        f"The run is in {run.path}: {counted(run.batches, 'batch')}, {counted(len(run.facts), 'fact')}.",
        highlight=False,
        markup=False,
    )


def finish(
    model: LanguageModel,
    name: str,
    patch: Patch,
    rows: Sequence[Row],
    left_alone: Sequence[Fact],
    examination: Examination,
    seed: int,
    out: Path | None,
    json: Path | None,
    asked: tuple[Measurement, Measurement] | None = None,
) -> None:
    """Write an edit that is in ``model``, then show what it did.

    Args:
        name: what ``model`` was loaded from.
        rows: what was measured; may be empty.
        out: a patch's file or a new directory; None writes nothing.
        asked: what the model said before the edit and at the end, prompt by prompt.
    """
    facts = examination.facts
    record = record_of(rows, patch, examination, seed)
    record["about"]["left_alone"] = [fact.id for fact in left_alone]
    outcome = _outcome(model, patch, examination, asked)
    advised = advice(outcome, patch.recipe.method) if asked else None
    record["outcome"] = outcome.to_record() | {"advice": advised}
    if asked is not None:
        record["about"]["absent"] |= absent_changes(asked[0].records, record["about"]["absent"])
    if rows:  # for the card of a model that the patch is applied to
        about = record["about"]
        patch = replace(patch, results=PatchResults(tuple(rows), tuple(about["left_alone"]), about["absent"]))
    if out is not None:
        stack = stack_under(model, name, patch.fingerprint).with_patch(patch_name(out), patch)
        write_edit(out, model, stack, patch, record)
    if asked is not None:
        records = {when: [asdict(entry) for entry in found.records] for when, found in zip(_ENDS, asked, strict=True)}
        record = record | {"records": records}
    write_json(json, record)
    if rows:
        console().print(before_after_table(rows, width=console().width, marked=outcome.unable))
        show_unable(outcome, (row["metric"] for row in rows))
        show_absent(record["about"]["absent"])
        show_facts(outcome.facts)
        show_chat(outcome.chat, outcome.facts)
        show_controls(outcome)
    if left_alone:
        _warn_of_left_alone(left_alone, len(facts))
    show_weight_change(outcome)
    wrote = f"Wrote {out}" if out is not None else "Edited"
    nothing = "" if patch.terms else "; no weight changed"
    tell(f"{wrote} ({counted(len(facts), 'fact')}, {patch.recipe.method}{nothing}).")
    if advised is not None:
        tell(advised)


def _outcome(
    model: LanguageModel, patch: Patch, examination: Examination, asked: tuple[Measurement, Measurement] | None
) -> Outcome:
    before, after = asked or (None, Measurement([], None))
    ratio = None
    if before is not None and before.perplexity is not None and after.perplexity is not None:
        ratio = after.perplexity.value / before.perplexity.value
    return outcome_of(
        list(examination.facts),
        None if before is None else before.records,
        after.records,
        weight_change=patch.relative_norms(model),
        perplexity_ratio=ratio,
        automatic=examination.automatic,
    )


def _warn_of_left_alone(facts: Sequence[Fact], count: int) -> None:
    names = ", ".join(repr(fact.id) for fact in facts[:5]) + (", …" if len(facts) > 5 else "")
    error_console().print(
        f"warning: nothing was written for {len(facts)} of {counted(count, 'fact')} ({names}): their distance to the "
        "target lies outside of rounds.least and rounds.most in the recipe.",
        style="yellow",
        markup=False,
        highlight=False,
    )


def settled(facts: FactSet, model: str, on_conflict: OnConflict) -> FactSet:
    """The facts that are to be edited, where some contradict what ``model`` has been given before.

    Raises:
        FaultsError: for every conflict, where they are to be refused.
        InputError: if none is left.
    """
    if not (has_stack(model) or is_run(model)):
        return facts
    earlier = [(name, fact) for name, patch in patches_of(model) for fact in patch.facts]
    clashing = conflicts(facts, earlier)
    if not clashing:
        return facts
    if on_conflict is OnConflict.REFUSE:
        place = {id(fact): where for fact, where in zip(facts, facts.places, strict=True)}
        raise FaultsError(facts.source, [conflict.fault(place[id(conflict.fact)]) for conflict in clashing])
    one = len(clashing) == 1
    if on_conflict is OnConflict.REPLACE:
        verb = "takes the place of" if one else "take the place of"
    else:
        verb = f"{'is' if one else 'are'} left out for"
    names = ", ".join(repr(conflict.fact.id) for conflict in clashing[:5]) + (", …" if len(clashing) > 5 else "")
    told = counted(len(clashing), "contradicting fact")
    warn(f"note: {told} ({names}) {verb} what {model} was given before (--on-conflict {on_conflict})")
    if on_conflict is OnConflict.REPLACE:
        return facts
    if len(clashing) == len(facts):
        raise InputError("every fact contradicts what the model was given before", remedy="Nothing is left to edit")
    return without(facts, clashing)
