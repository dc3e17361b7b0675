"""The end of an edit: what is written, and what is shown of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from errata.benchmark.recorded import recorded_examination, run_recorded
from errata.benchmark.sequential import Examination
from errata.errors import InterruptedRunError
from errata.evaluation.results_file import Row
from errata.facts import Fact
from errata.loading import stack_under
from errata.models.language_model import LanguageModel
from errata.patch import Patch
from errata.report.tables import before_after_table
from errata.run_directory import RunDirectory
from errata.verbs.json_output import write_json
from errata.verbs.models import patch_name
from errata.verbs.questions import show_absent
from errata.verbs.saving import record_of, write_edit
from errata.verbs.terminal import console, counted, error_console, progress


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
        finish(model, name, result.patch, result.rows, result.left_alone, examination, seed, out, json)
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
) -> None:
    """Write an edit that is in ``model``, and show what it did.

    Args:
        name: what ``model`` was loaded from.
        rows: what was measured; may be empty.
        out: a patch's file or a new directory; None writes nothing.
    """
    facts = examination.facts
    record = record_of(rows, patch, examination, seed)
    record["about"]["left_alone"] = [fact.id for fact in left_alone]
    if out is not None:
        stack = stack_under(model, name, patch.fingerprint).with_patch(patch_name(out), patch)
        write_edit(out, model, stack, patch, record)
    if rows:
        console().print(before_after_table(rows, width=console().width))
        show_absent(facts, examination.untouched)
        _warn_if_nothing_took(rows)
    if left_alone:
        _warn_of_left_alone(left_alone, len(facts))
    norms = ", ".join(f"layer {layer}: {norm:.3g}" for layer, norm in patch.norms().items())
    changed = f"norm of the change at {norms}" if norms else "no weight changed"
    wrote = f"Wrote {out}" if out is not None else "Edited"
    told = counted(len(facts), "fact")
    console().print(f"{wrote} ({told}, {patch.recipe.method}; {changed}).", highlight=False, markup=False)
    write_json(json, record)


def _warn_of_left_alone(facts: Sequence[Fact], count: int) -> None:
    names = ", ".join(repr(fact.id) for fact in facts[:5]) + (", …" if len(facts) > 5 else "")
    error_console().print(
        f"warning: nothing was written for {len(facts)} of {counted(count, 'fact')} ({names}): their distance to the "
        "target lies outside of rounds.least and rounds.most in the recipe.",
        style="yellow",
        markup=False,
        highlight=False,
    )


def _warn_if_nothing_took(rows: Sequence[Row]) -> None:
    took = [row["mean"] for row in rows if row["metric"] == "efficacy_accuracy" and row["when"] == "after"]
    if took == [0.0]:
        error_console().print(
            "[yellow]warning:[/] none of the facts took: the model says none of the targets. It may not know these "
            "subjects, or the recipe may not suit it (more target steps, a smaller ridge).",
            markup=True,
        )
