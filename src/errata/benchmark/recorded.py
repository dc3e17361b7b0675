"""A run of batches that is kept on disk as it goes, and goes on after whatever stopped it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from errata.batch_record import BatchRecord
from errata.benchmark.sequential import Examination, Measurement, examine, rows_of, weight_norm_ratio
from errata.edit import Editor
from errata.errors import ErrataError
from errata.evaluation.chat import ChatQuestion
from errata.evaluation.perplexity import Perplexity
from errata.evaluation.recall import evaluate_facts
from errata.evaluation.records import Record
from errata.evaluation.results_file import Row
from errata.facts import Fact, Question
from errata.models.language_model import LanguageModel
from errata.patch import Patch
from errata.progress import Report, silent
from errata.restore import edited_weights, editor_of
from errata.run_directory import RunDirectory


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
