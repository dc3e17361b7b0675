"""The end of an edit: what is written, and what is shown of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from errata.benchmark.recorded import recorded_examination, run_recorded
from errata.benchmark.sequential import Examination, Measurement
from errata.errors import InterruptedRunError
from errata.evaluation.changes import absent_changes
from errata.evaluation.outcomes import Outcome, outcome_of
from errata.evaluation.results_file import Row
from errata.facts import Fact
from errata.loading import stack_under
from errata.models.language_model import LanguageModel
from errata.patch import Patch, PatchResults
from errata.report.advice import advice
from errata.report.tables import before_after_table
from errata.run_directory import RunDirectory
from errata.verbs.json_output import write_json
from errata.verbs.models import patch_name
from errata.verbs.outcome import show_chat, show_controls, show_facts, show_unable, show_weight_change
from errata.verbs.questions import show_absent
from errata.verbs.saving import record_of, write_edit
from errata.verbs.terminal import console, counted, error_console, progress, tell

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
