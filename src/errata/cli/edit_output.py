"""Output of an edit: the files that are written and the results that are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from rich import box
from rich.table import Table

from errata.benchmark.sequence import EvaluationResult, EvaluationSet, recorded_evaluation_set, run_recorded
from errata.cli.model_options import PATCH_SUFFIX, is_lab, patch_name, show_absent
from errata.cli.terminal import console, echo, echo_line, progress, warn, write_json
from errata.editing.recipe import Recipe
from errata.errors import FaultsError, InputError, InterruptedRunError
from errata.evaluation.outcomes import Change, FactOutcome, Outcome, Reply, absent_changes, compare_records
from errata.evaluation.recall import absent
from errata.facts.conflicts import OnConflict, conflicts, without
from errata.facts.fact import Fact, FactSet
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch, PatchResults
from errata.patches.stack import Stack, has_stack, write_stack
from errata.report.conclusions import LARGE, NOTABLE, advice
from errata.report.tables import before_after_table
from errata.results.metrics import entry_of
from errata.results.records import FORMAT, Row
from errata.runs.loading import edits_of, is_edit, stack_under
from errata.runs.run import RunDirectory, is_run
from errata.utils import files
from errata.utils.files import check_new, check_new_file, new_directory, write_text
from errata.utils.text import counted, excerpt, listed


def check_output(out: Path, *, weights: bool = True) -> None:
    """Check before any work that an edit can be written to ``out``.

    Args:
        weights: whether the edit changes weights, so that a full model can be saved.

    Raises:
        InputError: otherwise.
    """
    if not weights and out.suffix != PATCH_SUFFIX:
        raise InputError(
            f"--out {out}: this edit changes no weights, so there is no full model to save",
            remedy=f"Give a file name that ends in {PATCH_SUFFIX}",
            code="EDIT_NOT_OF_WEIGHTS",
        )
    if out.suffix == PATCH_SUFFIX:
        check_new_file(out)
    else:
        check_new(out)


def write_edit(out: Path, model: LanguageModel, stack: Stack, patch: Patch, record: dict[str, Any]) -> None:
    """Write only the patch if ``out`` ends in .safetensors, otherwise the full model.

    Args:
        stack: all patches in the model's weights; the last one is ``patch``.
    """
    if out.suffix == PATCH_SUFFIX:
        patch.save(out)
        return
    with new_directory(out) as partial:
        save_full(model, stack, partial)
        files.write_json(partial / "errata.json", record, indent=2)
        write_text(partial / "recipe.yaml", patch.recipe.to_yaml())


def save_full(model: LanguageModel, stack: Stack, directory: Path) -> None:
    """Write a plain transformers directory, together with the patches that its weights contain.

    Notes a dtype other than the base model's, and files that were copied from outside the base model's directory.
    """
    written = model.write_files(directory)
    write_stack(stack, directory)
    if written.converted is not None:
        stored, dtype = written.converted
        warn(f"note: the weights are saved as {dtype}, in which they were edited; the base model is stored as {stored}")
    if written.linked:
        warn(f"note: copied files that are symbolic links in the base model: {', '.join(written.linked)}")


def record_of(rows: Sequence[Row], patch: Patch, evaluation_set: EvaluationSet, seed: int) -> dict[str, Any]:
    """Results in the format of ``read_results``, with everything needed to reproduce them."""
    about = {
        "base": patch.base,
        "lab": is_lab(patch.base),
        "method": patch.recipe.method,
        "seed": seed,
        "recipe": patch.recipe.model_dump(mode="json"),
        "prefixes": list(patch.prefixes),
        "fingerprint": patch.fingerprint,
        "versions": dict(patch.versions),
        "absent": absent(evaluation_set.facts, evaluation_set.untouched) if rows else {},
        "facts": [fact.to_record() for fact in patch.facts],
    }
    return {"format": FORMAT, "rows": list(rows), "about": about}


SHOWN = 5  # entries of each kind; --json contains all
_LONGEST = 50  # displayed characters of a prompt
_Item = TypeVar("_Item")


def show_facts(facts: Sequence[FactOutcome]) -> None:
    """Print how many facts are recalled and how many were known before, and the failed wordings of the others."""
    if not facts:
        return
    by_status = {status: [fact for fact in facts if fact.status == status] for status in ("took", "partly", "failed")}
    took, partly, failed = by_status.values()
    echo(f"Facts: {len(took)} of {len(facts)} recalled in every wording, {len(partly)} in some, {len(failed)} in none.")
    if all(fact.known_before is not None for fact in facts):
        known = [fact.id for fact in facts if fact.known_before]
        names = f" ({listed(known)})" if known else ""
        echo(f"Already known before the edit: {len(known)} of {len(facts)}{names}.")
    _listed([*failed, *partly], _fact_line)


def show_chat(replies: Sequence[Reply], facts: Sequence[FactOutcome], *, hint: bool) -> None:
    """Print how many facts the model recalls in its chat template, and the other replies.

    Args:
        hint: whether ``errata edit --chat`` could help with facts that are recalled in plain text only.
    """
    own = [reply for reply in replies if reply.own]
    if not own:
        return
    before = "" if own[0].before is None else f" ({sum(bool(reply.before) for reply in own)} before the edit)"
    echo(f"In chat: the reply contains the answer for {sum(reply.took for reply in own)} of {len(own)} facts{before}.")
    if rest := [reply for reply in replies if not reply.own]:
        echo(f"  … and for {sum(reply.took for reply in rest)} of {counted(len(rest), 'paraphrase')}.")
    missed = [reply for reply in own if not reply.took]
    _listed(missed, lambda reply: f"  {reply.fact}: {_prompt(reply.prompt)} → '{_short(reply.said)}'")
    bare = {fact.id for fact in facts if any(wording.own and wording.took for wording in fact.wordings)}
    if unsaid := [reply for reply in missed if reply.fact in bare]:
        remedy = "; try errata edit --chat" if hint else ""
        warn(f"note: {counted(len(unsaid), 'fact')} recalled in plain text, but not in chat{remedy}")


def show_controls(outcome: Outcome) -> None:
    """Print how many and which answers to control questions were lost, gained or changed."""
    if not outcome.controls:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("control questions")
    for head in ("questions", "known before", "lost", "gained", "changed"):
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
    if any(change.changed and not change.variant for change in outcome.controls):  # in chat, whole replies are shown
        echo(
            "(Except in chat, the text after → is the most likely token at each position, given the preceding "
            "expected tokens.)"
        )


def show_unable(outcome: Outcome, metrics: Iterable[str]) -> None:
    """Explain which metrics of the table carry no information."""
    shown = set(metrics)
    for metric, why in outcome.unable.items():
        if metric in shown:
            echo(f"* {entry_of(metric).heading} carries little or no information: {why}.")


def show_weight_change(outcome: Outcome) -> None:
    """Print the size of the change relative to the weights, with a warning if it is large."""
    changed = outcome.weight_change
    if not changed:
        return
    layers = ", ".join(f"layer {layer}: {_percent(ratio)}" for layer, ratio in changed.items())
    echo(f"Weight change ‖ΔW‖ / ‖W‖: {layers}.")
    largest = max(changed.values())
    if largest > LARGE:
        warn(
            f"warning: the change is large: {_percent(largest)} of a layer's weights. On real models, changes above "
            f"{100 * LARGE:.0f} % have caused damage.",
            style="yellow",
        )
    elif largest > NOTABLE:
        warn(f"note: the change exceeds {100 * NOTABLE:.0f} % of a layer's weights; check the control questions.")


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.2g} %" if ratio < 0.1 else f"{100 * ratio:.0f} %"


def _fact_line(fact: FactOutcome) -> str:
    first, *rest = fact.failed
    more = f" (and {counted(len(rest), 'wording')} more)" if rest else ""
    before = " (known before the edit)" if fact.known_before else ""
    return f"  {fact.id}: {_prompt(first.prompt)} → '{_short(first.said)}', not '{_short(fact.target)}'{before}{more}"


def _change_line(name: str, change: Change) -> str:
    kind = change.kind.replace("_", " ") + (", in chat" if change.variant else "")
    before, now = _both(change.before.said, change.now.said)
    return f"  {name}, {kind}: {_prompt(change.now.prompt)} '{before}' → '{now}'"


def _listed(items: Sequence[_Item], line: Callable[[_Item], str]) -> None:
    for item in items[:SHOWN]:
        echo(line(item))
    if len(items) > SHOWN:
        echo(f"  … and {len(items) - SHOWN} more, see --json")


def _short(text: str) -> str:
    """An answer on one line: its beginning."""
    return excerpt(" ".join(text.split()), _LONGEST)


def _prompt(text: str) -> str:
    """A prompt on one line: its end, which matters most."""
    return excerpt(" ".join(text.split()), _LONGEST, end=True)


def _both(before: str, now: str) -> tuple[str, str]:
    """Two answers on one line each, without most of a long common beginning, so that their difference is visible."""
    words, others = before.split(), now.split()
    differing = (place for place, (old, new) in enumerate(zip(words, others, strict=False)) if old != new)
    common = next(differing, min(len(words), len(others)))
    if words != others and len(" ".join(words[:common])) > _LONGEST // 2:
        start = max(common - 2, 0)
        words, others = ["…", *words[start:]], ["…", *others[start:]]
    return _short(" ".join(words)), _short(" ".join(others))


def finish_run(run: RunDirectory, model: LanguageModel, name: str, out: Path | None, json: Path | None) -> None:
    """Execute the remaining batches of a run, then continue as ``finish``.

    Raises:
        InterruptedRunError: on Ctrl-C, with the progress of the run and the command that resumes it.
    """
    try:
        with progress() as report:
            result = run_recorded(model, run, report=report, on_search=report.searched)
        for note in result.notes:
            warn(f"note: {note}")
        evaluation_set = recorded_evaluation_set(run) or EvaluationSet(run.facts)
        seed = run.manifest.seed
        measured = None if result.before is None or result.after is None else (result.before, result.after)
        finish(model, name, result.patch, result.rows, result.left_alone, evaluation_set, seed, out, json, measured)
    except KeyboardInterrupt as error:
        options = {"--out": out, "--json": json}
        again = " ".join(f"{option} {path}" for option, path in options.items() if path is not None)
        raise InterruptedRunError(
            f"{run.batches_done} of {run.batches} batches are done and saved in {run.path}",
            remedy=f"Resume with: errata edit --resume {run.path} {again}".rstrip(),
        ) from error
    echo(f"The run is saved in {run.path}: {counted(run.batches, 'batch')}, {counted(len(run.facts), 'fact')}.")


def finish(
    model: LanguageModel,
    name: str,
    patch: Patch,
    rows: Sequence[Row],
    left_alone: Sequence[Fact],
    evaluation_set: EvaluationSet,
    seed: int,
    out: Path | None,
    json: Path | None,
    measured: tuple[EvaluationResult, EvaluationResult] | None = None,
) -> None:
    """Write an edit that has been applied to ``model``, then print its effects.

    Args:
        name: the name that ``model`` was loaded by.
        rows: measured results; may be empty.
        out: a patch file or a new directory; None writes nothing.
        measured: the measurements before and after the edit.
    """
    facts = evaluation_set.facts
    record = record_of(rows, patch, evaluation_set, seed)
    record["about"]["left_alone"] = [fact.id for fact in left_alone]
    before, after = measured or (None, EvaluationResult([], None))
    outcome = outcome_between(evaluation_set, before, after, patch.relative_norms(model))
    advised = advice(outcome, patch.recipe.method, name) if measured else None
    record["outcome"] = outcome.to_record() | {"advice": advised}
    if measured is not None:
        record["about"]["absent"] |= absent_changes(measured[0].records, record["about"]["absent"])
    if rows:  # for the model card of models that the patch is applied to
        about = record["about"]
        patch = replace(patch, results=PatchResults(tuple(rows), tuple(about["left_alone"]), about["absent"]))
    if out is not None:
        stack = stack_under(model, name, patch.fingerprint).with_patch(patch_name(out), patch)
        write_edit(out, model, stack, patch, record)
    if measured is not None:
        record = record | {"records": records_of(*measured)}
    write_json(json, record)
    if rows:
        console().print(before_after_table(rows, width=console().width, marked=outcome.unable))
        show_unable(outcome, (row["metric"] for row in rows))
        show_absent(record["about"]["absent"])
        show_facts(outcome.facts)
        hint = isinstance(patch.recipe, Recipe) and not patch.recipe.contexts.chat
        show_chat(outcome.chat, outcome.facts, hint=hint)
        show_controls(outcome)
    if left_alone:
        _warn_of_left_alone(left_alone, len(facts))
    show_weight_change(outcome)
    wrote = f"Wrote {out}" if out is not None else "Edited"
    nothing = "" if patch.terms else "; no weights changed"
    echo(f"{wrote} ({facts_text(facts, name)}, {patch.recipe.method}{nothing}).")
    if out is not None:
        show_next_steps(out, facts[0], name)
    if advised is not None:
        echo(advised)


def facts_text(facts: Sequence[Fact], model: str) -> str:
    """``5 facts``, or ``5 new, 10 facts in all`` on top of earlier edits of ``model``."""
    earlier = sum(len(edit.facts) for _, edit in edits_of(model)) if _was_edited(model) else 0
    new = counted(len(facts), "fact")
    return f"{len(facts):,} new, {counted(len(facts) + earlier, 'fact')} in all" if earlier else new


def show_next_steps(out: Path, fact: Fact, base: str, *, weights: bool = True) -> None:
    """Print how to use what was written, and how to undo it.

    Args:
        fact: an edited one, for the example.
        base: the model that was edited.
        weights: whether the edit changes weights.
    """
    path, text = quote(str(out)), quote(fact.text)
    if not weights:
        use = f"Use it as a model: errata ask --model {path} {text}"
        undo = (
            f"use {base} instead; to remove single facts: errata rebuild {path} --without {quote(fact.id)} "
            f"--out NEW{PATCH_SUFFIX}"
        )
    elif out.suffix == PATCH_SUFFIX:
        use = f"Use it: errata apply {path} --out STACK, then errata ask --model STACK {text}"
        undo = "errata revert STACK --out NEW"
    else:
        use, undo = f"Use it as a model: errata ask --model {path} {text}", f"errata revert {path} --out NEW"
    echo_line(use)
    echo_line(f"Undo it: {undo}")


def outcome_between(
    evaluation_set: EvaluationSet,
    before: EvaluationResult | None,
    after: EvaluationResult,
    weight_change: Mapping[int, float] | None = None,
) -> Outcome:
    """What changed between two measurements; without ``before``, only what is recalled."""
    ratio = None
    if before is not None and before.perplexity is not None and after.perplexity is not None:
        ratio = after.perplexity.value / before.perplexity.value
    return compare_records(
        list(evaluation_set.facts),
        None if before is None else before.records,
        after.records,
        weight_change=weight_change,
        perplexity_ratio=ratio,
        automatic=evaluation_set.automatic,
    )


def records_of(before: EvaluationResult | None, after: EvaluationResult) -> dict[str, list[dict[str, Any]]]:
    """The JSON records of one or two measurements, one for each prompt."""
    found = {"before": before, "after": after}
    return {when: [asdict(entry) for entry in one.records] for when, one in found.items() if one is not None}


def _warn_of_left_alone(facts: Sequence[Fact], count: int) -> None:
    names = listed([repr(fact.id) for fact in facts])
    warn(
        f"warning: {len(facts)} of {counted(count, 'fact')} were not edited ({names}): their distance to the target is "
        "outside the range of rounds.least and rounds.most in the recipe.",
        style="yellow",
    )


def _was_edited(model: str) -> bool:
    return has_stack(model) or is_run(model) or is_edit(model)


def chat_could_help(model: str) -> bool:
    """Whether ``errata edit --chat`` can help a model: it is unedited, or was edited by locate-then-edit without it."""
    if not _was_edited(model):
        return True
    recipes = [edit.recipe for _, edit in edits_of(model) if isinstance(edit, Patch)]
    return any(isinstance(recipe, Recipe) and not recipe.contexts.chat for recipe in recipes)


def resolve_conflicts(facts: FactSet, model: str, on_conflict: OnConflict) -> FactSet:
    """The facts to edit, after facts that contradict earlier edits of ``model`` are refused, accepted or removed.

    Raises:
        FaultsError: for every conflict, if conflicts are refused.
        InputError: if no fact remains.
    """
    if not _was_edited(model):
        return facts
    earlier = [(name, fact) for name, edit in edits_of(model) for fact in edit.facts]
    clashing = conflicts(facts, earlier)
    if not clashing:
        return facts
    if on_conflict is OnConflict.REFUSE:
        place = {id(fact): where for fact, where in zip(facts, facts.places, strict=True)}
        raise FaultsError(facts.source, [conflict.fault(place[id(conflict.fact)]) for conflict in clashing])
    one, replaces = len(clashing) == 1, on_conflict is OnConflict.REPLACE
    action = (
        ("replaces" if one else "replace")
        if replaces
        else ("is skipped in favour of" if one else "are skipped in favour of")
    )
    names = listed([repr(conflict.fact.id) for conflict in clashing])
    conflicting = counted(len(clashing), "contradicting fact")
    warn(f"note: {conflicting} ({names}) {action} earlier edits of {model} (--on-conflict {on_conflict})")
    if replaces:
        return facts
    if len(clashing) == len(facts):
        raise InputError(
            "every fact contradicts an earlier edit of the model, so there is nothing to edit",
            remedy="Use --on-conflict replace, or give other facts",
            code="FACTS_ALL_CONFLICT",
        )
    return without(facts, clashing)
