"""A sequence of batches edited into a model with one recipe, measured before, right after each batch, at the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from errata.editing.batch import BatchRecord
from errata.editing.preparation import Prepared
from errata.editing.recipe import Recipe
from errata.editors.locate_then_edit import Editor
from errata.errors import ErrataError
from errata.evaluation.chat import ChatQuestion, evaluate_chat
from errata.evaluation.outcomes import change_records
from errata.evaluation.perplexity import Perplexity, perplexity, perplexity_ratio
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.results.metrics import Metric
from errata.results.records import Record, Row, Summary, When, summarise, summarise_groups, to_long
from errata.runs.resume import edited_weights, editor_of
from errata.runs.run import RunDirectory
from errata.utils.progress import Report, silent


@dataclass(frozen=True, slots=True)
class Examination:
    """What a model is asked: the facts with their neighbours, questions about other subjects, prose, and what it is
    asked in its chat template.

    Attributes:
        automatic: (id of a fact, field) of control questions that errata drew by itself; see ``automatic_controls``.
    """

    facts: Sequence[Fact]
    untouched: Sequence[tuple[str, Question]] = ()
    prose: Sequence[str] = ()
    chat: Sequence[ChatQuestion] = ()
    automatic: Collection[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """What it answered.

    Attributes:
        records: one per prompt.
        perplexity: on the prose; None without prose.
        weight_norm_ratio: what ``weight_norm_ratio`` gave when it was asked; None where that is not known.
    """

    records: list[Record]
    perplexity: Perplexity | None
    weight_norm_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """A finished run; the edit is in the model until ``patch.undo``.

    Attributes:
        rows: the long form, see ``errata.results.records.to_long``.
    """

    method: str
    rows: list[Row]
    patch: Patch
    batches: list[BatchRecord]
    after: Measurement

    @property
    def left_alone(self) -> list[Fact]:
        """Facts that no round was for; see ``BatchRecord``."""
        return [fact for batch in self.batches for fact in batch.left_alone]


def examine(
    model: LanguageModel, examination: Examination, *, report: Report = silent, what: str = "asking"
) -> Measurement:
    """Ask the model everything, as it is now."""

    def asking(_: str, done: int, total: int) -> None:
        report(what, done, total)

    with model.blaming_no_edit():
        records = evaluate_facts(model, examination.facts, untouched=examination.untouched, report=asking)
        if examination.chat:
            records += evaluate_chat(model, examination.chat, report=report)
        prose = perplexity(model, examination.prose, report=report) if examination.prose else None
    return Measurement(records, prose)


def run_sequence(
    model: LanguageModel,
    recipe: Recipe,
    examination: Examination,
    before: Measurement,
    *,
    cache: Path | None = None,
    report: Report = silent,
    seed: int = 0,
    prepared: Prepared | None = None,
) -> SequenceResult:
    """Edit ``examination.facts`` in batches of ``recipe.batch_size`` and measure.

    Args:
        before: what ``examine`` gave on the model as it comes in.
        seed: of the bootstrap.
        prepared: see ``Editor``.

    Raises:
        EditError, InputError: the model is then what it was.
    """
    editor = Editor(model, recipe, cache=cache, report=report, prepared=prepared)
    right_after: list[Record] = []
    facts_done = 0

    def on_batch(batch: BatchRecord) -> None:
        nonlocal facts_done
        right_after.extend(evaluate_facts(model, batch.facts))
        facts_done += len(batch.facts)
        report("facts edited", facts_done, len(examination.facts))

    report("facts edited", 0, len(examination.facts))
    patch = editor.apply(examination.facts, on_batch=on_batch)
    try:
        after = replace(examine(model, examination, report=report), weight_norm_ratio=weight_norm_ratio(editor))
    except BaseException:
        patch.undo(model)
        raise
    rows = rows_of(recipe.method, before, right_after, after, editor.records, seed)
    return SequenceResult(recipe.method, rows, patch, list(editor.records), after)


def rows_of(
    method: str,
    before: Measurement,
    right_after: Sequence[Record],
    after: Measurement,
    batches: Sequence[BatchRecord],
    seed: int,
) -> list[Row]:
    """The long form of a run: each metric before it, right after each fact's own batch, and after it."""
    summaries = (
        compared(before.records, before.records, "before", seed=seed)
        + compared(before.records, right_after, "right_after", seed=seed)
        + compared(before.records, after.records, "after", seed=seed)
    )
    if before.perplexity is not None and after.perplexity is not None:
        summaries += perplexity_summaries(before.perplexity, after.perplexity, seed=seed)
    if after.weight_norm_ratio is not None:
        summaries.append(weight_norm_summary([after.weight_norm_ratio], "after", seed=seed))
    summaries.append(_seconds_per_edit(batches, seed))
    return to_long(method, summaries)


def compared(before: Sequence[Record], now: Sequence[Record], when: When, *, seed: int = 0) -> list[Summary]:
    """Summaries of what a model said, and of how its answers to control questions differ from the unedited model's."""
    return summarise([*now, *change_records(before, now)], when, seed=seed)


def weight_norm_ratio(editor: Editor) -> float:
    """‖W − W₀‖ / ‖W₀‖ (Frobenius) over all layers that are written, as one vector."""
    terms = editor.patch().terms
    change = total = 0.0
    for layer in dict.fromkeys(term.layer for term in terms):
        before = editor.model.edits.weight_without(layer, terms).double()
        change += float((editor.model.weight(layer).double() - before).square().sum())
        total += float(before.square().sum())
    return (change / total) ** 0.5 if total else 0.0


def weight_norm_summary(ratios: Sequence[float], when: When, *, seed: int = 0) -> Summary:
    """The mean of what ``weight_norm_ratio`` gave for some runs."""
    return summarise_groups(Metric.WEIGHT_NORM_RATIO, when, ratios, [1] * len(ratios), seed=seed)


def perplexity_summaries(before: Perplexity, after: Perplexity, *, seed: int = 0) -> list[Summary]:
    """The perplexity of both as a ratio to the one before."""
    return [
        perplexity_ratio(before, before, "before", seed=seed),
        perplexity_ratio(before, after, "after", seed=seed),
    ]


def _seconds_per_edit(batches: Sequence[BatchRecord], seed: int) -> Summary:
    """Wall time of editing over facts, evaluation and preparation left out; the interval is over batches."""
    seconds, facts = [batch.seconds for batch in batches], [len(batch.facts) for batch in batches]
    return summarise_groups(Metric.SECONDS_PER_EDIT, "after", seconds, facts, seed=seed)


# ----------------------------------------------------------------------------------------------------
# A run of batches that is kept on disk as it goes, and goes on after whatever stopped it.


@dataclass(frozen=True, slots=True)
class RecordedResult:
    """A run that is at its end.

    Attributes:
        rows: the long form; empty where nothing was measured.
        patch: of the whole run, shaped where the recipe shapes runs.
        left_alone: facts that nothing was written for.
        notes: what a user should know of how it came about.
        before, after: what was measured; None where nothing was.
    """

    rows: list[Row]
    patch: Patch
    left_alone: list[Fact]
    notes: list[str]
    before: Measurement | None
    after: Measurement | None


def run_recorded(
    model: LanguageModel, run: RunDirectory, *, cache: Path | None = None, report: Report = silent
) -> RecordedResult:
    """Do what is left of a run. The batches that it has are put into the model, and not found again.

    Each batch is on the disk before the next one begins. When a batch fails, or cannot be written, the model and the
    directory are left with those before it.

    Raises:
        InputError, FaultsError: if the model, the text or a file is not what the run began with; nothing has happened.
        ErrataError: if a batch failed; says how far the run is.
    """
    with run.locked():
        editor, notes = editor_of(model, run, cache=cache, report=report)
        with _told(run, "beginning"):
            notes += run.begin_batch_over()
            for text in (f"going on behind batch {run.batches_done}" if run.batches_done else "beginning", *notes):
                run.log(text)
        examination = recorded_examination(run)
        before = None if examination is None else _measured(editor, run, examination, "before", report)

        def say(record: BatchRecord) -> Any:
            return [asdict(entry) for entry in evaluate_facts(model, record.facts)]

        edit_batches(editor, run, None if examination is None else say, report=report)
        after = None if examination is None else _measured(editor, run, examination, "after", report)
        with _told(run, "writing the log"):
            run.log("done")
        rows = [] if before is None or after is None else _rows(run, before, after)
        patch = replace(editor.patch(), created=run.manifest.created)
        left_alone = [fact for record in editor.records for fact in record.left_alone]
        return RecordedResult(rows, patch, left_alone, notes, before, after)


def recorded_rows(run: RunDirectory) -> list[Row]:
    """The long form of what a run has measured; none where it asks nothing, or is not at its end."""
    before, after = run.measurement("before"), run.measurement("after")
    return [] if before is None or after is None else _rows(run, _measurement(before), _measurement(after))


def examination_record(examination: Examination) -> dict[str, Any]:
    """What is asked beside the facts, as JSON holds it."""
    return {
        "untouched": [[cluster, question.to_record()] for cluster, question in examination.untouched],
        "prose": list(examination.prose),
        "chat": [asdict(question) for question in examination.chat],
        "automatic": [list(entry) for entry in sorted(examination.automatic)],
    }


def recorded_examination(run: RunDirectory) -> Examination | None:
    """What a run asks the model; None where it asks nothing."""
    if run.examination is None:
        return None
    untouched = [(cluster, Question(**question)) for cluster, question in run.examination["untouched"]]
    # Runs that were begun by earlier versions ask nothing in chat, and drew no questions.
    chat = [
        ChatQuestion(**{**entry, "accepted": tuple(entry["accepted"])}) for entry in run.examination.get("chat", ())
    ]
    automatic = [(fact, name) for fact, name in run.examination.get("automatic", ())]
    return Examination(run.facts, untouched, run.examination["prose"], chat, automatic)


class RunStoppedError(ErrataError):
    """Raised behind a batch that shall not stay: it is taken out, and the run ends before it."""


def edit_batches(
    editor: Editor,
    run: RunDirectory,
    say: Callable[[BatchRecord], Any] | None,
    *,
    report: Report = silent,
    go_on: str | None = None,
) -> None:
    """Edit the batches that a run has not got yet, each on the disk before the next one begins.

    Args:
        say: what is asked right after a batch, as JSON; nothing without it.
        go_on: what a user can do after a failure, once its cause is mended; by default `errata edit --resume`.

    Raises:
        ErrataError: if a batch failed, or is not wanted (``RunStoppedError``); the model and the run are then as they
            were after the batch before it.
    """
    size, total = run.recipe.batch_size, len(run.facts)
    for index in range(run.batches_done, run.batches):
        facts = run.facts.facts[index * size : (index + 1) * size]
        report("facts edited", index * size, total)

        def keep(record: BatchRecord) -> None:
            said = None if say is None else say(record)
            added = replace(editor.patch(), terms=record.terms, facts=record.facts)
            run.add_batch(record, added, said, edited_weights(editor))

        with _told(run, f"batch {index + 1}", go_on):
            editor.apply_batch(facts, on_batch=keep)
        with _told(run, "writing the log"):
            run.log(f"batch {index + 1} of {run.batches}: {len(facts)} facts")
        report("facts edited", min((index + 1) * size, total), total)


def _measured(
    editor: Editor, run: RunDirectory, examination: Examination, when: Literal["before", "after"], report: Report
) -> Measurement:
    """What the run has, or what the model says now."""
    saved: Mapping[str, Any] | None = run.measurement(when)
    if saved is None:
        with _told(run, f"asking {when} the edits"):
            what = "asking before" if when == "before" else "asking"
            found = examine(editor.model, examination, report=report, what=what)
            if when == "after":
                found = replace(found, weight_norm_ratio=weight_norm_ratio(editor))
            run.add_measurement(
                when,
                {
                    "records": [asdict(record) for record in found.records],
                    "perplexity": None if found.perplexity is None else asdict(found.perplexity),
                    "weight_norm_ratio": found.weight_norm_ratio,
                },
            )
        return found
    return _measurement(saved)


def _measurement(saved: Mapping[str, Any]) -> Measurement:
    prose = saved["perplexity"]
    perplexity = None if prose is None else Perplexity(tuple(prose["log_likelihoods"]), tuple(prose["counts"]))
    # A run that an earlier errata measured does not say how much of the weights was changed.
    return Measurement([Record(**entry) for entry in saved["records"]], perplexity, saved.get("weight_norm_ratio"))


def _rows(run: RunDirectory, before: Measurement, after: Measurement) -> list[Row]:
    batches = run.saved_batches()
    said = [Record(**entry) for batch in batches for entry in batch.said]
    records = [batch.record for batch in batches]
    return rows_of(run.recipe.method, before, said, after, records, run.manifest.seed)


@contextmanager
def _told(run: RunDirectory, what: str, go_on: str | None = None) -> Iterator[None]:
    """Whatever stops the run is told together with how far the run is."""
    try:
        yield
    except RunStoppedError:
        raise
    except (ErrataError, OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, ErrataError | OSError) and not _is_out_of_memory(error):
            raise
        reason = error.what if isinstance(error, ErrataError) else f"{type(error).__name__}: {error}"
        state = f"the model and {run.path} are as they were after batch {run.batches_done} of {run.batches}"
        _log_if_possible(run, f"{what} failed: {reason}")
        remedy = f"Mend the cause, then: {go_on or f'errata edit --resume {run.path}'}"
        raise ErrataError(f"{what} failed: {reason}; {state}", remedy=remedy) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for it on GPUs only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _log_if_possible(run: RunDirectory, text: str) -> None:
    """Where the disk is full, the message that the user sees has to do."""
    try:
        run.log(text)
    except OSError:
        return
