"""A run of batches that is kept on disk as it goes, and goes on after whatever stopped it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from errata.benchmark.sequential import Examination, Measurement, examine, rows_of
from errata.edit import BatchRecord, Editor
from errata.errors import ErrataError, InputError
from errata.evaluation.perplexity import Perplexity
from errata.evaluation.recall import evaluate_facts
from errata.evaluation.records import Record, Row
from errata.facts import Fact, Question
from errata.models.language_model import LanguageModel
from errata.patch import Patch
from errata.progress import Report, silent
from errata.run_directory import RunDirectory
from errata.statistics.corpus import open_corpus


@dataclass(frozen=True, slots=True)
class RecordedResult:
    """A run that is at its end.

    Attributes:
        rows: the long form; empty where nothing was measured.
        patch: of the whole run, shaped where the recipe shapes runs.
        left_alone: facts that nothing was written for.
        notes: what a user should know of how it came about.
    """

    rows: list[Row]
    patch: Patch
    left_alone: list[Fact]
    notes: list[str]


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
        _check_model(model, run)
        run.begin_batch_over()
        run.log(f"{'going on behind' if run.batches_done else 'beginning; batches done:'} {run.batches_done}")
        editor = Editor(model, run.recipe, cache=cache, report=report)
        notes = _restore(editor, run)
        examination = _examination(run)
        before = None if examination is None else _measured(model, run, examination, "before", report)
        _edit(editor, run, ask=examination is not None, report=report)
        after = None if examination is None else _measured(model, run, examination, "after", report)
        run.log("done")
        records = list(editor.records)
        rows: list[Row] = []
        if before is not None and after is not None:
            said = [Record(**entry) for _, _, batch in run.saved_batches() for entry in batch]
            rows = rows_of(run.recipe.method, before, said, after, records, run.manifest.seed)
        patch = replace(editor.patch(), created=run.manifest.created)
        return RecordedResult(rows, patch, [fact for record in records for fact in record.left_alone], notes)


def patch_of_run(model: LanguageModel, run: RunDirectory, *, cache: Path | None = None) -> Patch:
    """What a run has changed so far, as one patch; ``model`` is its base, and has the change in it afterwards."""
    _check_model(model, run)
    editor = Editor(model, run.recipe, cache=cache)
    _restore(editor, run)
    return replace(editor.patch(), created=run.manifest.created)


def examination_record(examination: Examination) -> dict[str, Any]:
    """What is asked beside the facts, as JSON holds it."""
    return {
        "untouched": [[cluster, question.to_record()] for cluster, question in examination.untouched],
        "prose": list(examination.prose),
    }


def _examination(run: RunDirectory) -> Examination | None:
    if run.examination is None:
        return None
    untouched = [(cluster, Question(**question)) for cluster, question in run.examination["untouched"]]
    return Examination(run.facts, untouched, run.examination["prose"])


def _check_model(model: LanguageModel, run: RunDirectory) -> None:
    if (found := model.fingerprint()) != run.manifest.fingerprint:
        raise InputError(
            f"the weights of {model.name!r} ({found[:12]}…) are not those that the run {run.path} began with "
            f"({run.manifest.fingerprint[:12]}…, in {run.manifest.dtype})",
            remedy=f"Give {run.manifest.model!r} as it was, in {run.manifest.dtype}",
        )
    if run.recipe.needs_statistics and open_corpus(run.recipe.statistics.corpus).digest != run.manifest.corpus:
        raise InputError(
            f"the text {run.recipe.statistics.corpus} is not what it was when the run {run.path} began",
            remedy="Put the file back as it was",
        )


def _restore(editor: Editor, run: RunDirectory) -> list[str]:
    """Put the run's batches into the model; returns what differs from the process that made them."""
    notes: list[str] = []
    saved = run.saved_batches()
    editor.restore([record for record, _, _ in saved])
    if saved and (prefixes := saved[-1][1].patch.prefixes) != editor.prefixes:
        raise InputError(
            f"the contexts that come out here are not those of the run {run.path}: {editor.prefixes} for {prefixes}",
            remedy="Go on where it began: same machine, same versions, same number of threads",
        )
    if saved and run.ledger.of("batch")[-1].about["weights"] != _edited_weights(editor):
        notes.append(
            "the weights that come out of the run's patches here differ in their last bits from those that were there: "
            "another machine, or another number of threads"
        )
    if (threads := torch.get_num_threads()) != run.manifest.threads:
        notes.append(f"the run began with {run.manifest.threads} threads and goes on with {threads}: not bit for bit")
    for note in notes:
        run.log(note)
    return notes


def _edit(editor: Editor, run: RunDirectory, *, ask: bool, report: Report) -> None:
    size, total = run.recipe.batch_size, len(run.facts)
    for index in range(run.batches_done, run.batches):
        facts = run.facts.facts[index * size : (index + 1) * size]
        report("facts edited", index * size, total)

        def keep(record: BatchRecord) -> None:
            said = [asdict(entry) for entry in evaluate_facts(editor.model, record.facts)] if ask else None
            added = replace(editor.patch(), terms=record.terms, facts=record.facts)
            run.add_batch(record, added, said, _edited_weights(editor))

        try:
            editor.apply_batch(facts, on_batch=keep)
        except (ErrataError, OSError, MemoryError, RuntimeError) as error:
            what = error.what if isinstance(error, ErrataError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, ErrataError | OSError | MemoryError) and not _is_out_of_memory(error):
                raise
            state = f"the model and {run.path} are as they were after batch {index} of {run.batches}"
            _log_if_possible(run, f"batch {index + 1} failed: {what}")
            raise ErrataError(
                f"batch {index + 1} failed: {what}; {state}",
                remedy=f"Mend the cause, then: errata edit --resume {run.path}",
            ) from error
        run.log(f"batch {index + 1} of {run.batches}: {len(facts)} facts")
        report("facts edited", min((index + 1) * size, total), total)


def _measured(
    model: LanguageModel, run: RunDirectory, examination: Examination, when: Any, report: Report
) -> Measurement:
    """What the run has, or what the model says now."""
    saved: Mapping[str, Any] | None = run.measurement(when)
    if saved is None:
        found = examine(model, examination, report=report, what="asking before" if when == "before" else "asking")
        run.add_measurement(
            when,
            {
                "records": [asdict(record) for record in found.records],
                "perplexity": None if found.perplexity is None else asdict(found.perplexity),
            },
        )
        return found
    prose = saved["perplexity"]
    perplexity = None if prose is None else Perplexity(tuple(prose["log_likelihoods"]), tuple(prose["counts"]))
    return Measurement([Record(**entry) for entry in saved["records"]], perplexity)


def _edited_weights(editor: Editor) -> str:
    """SHA-256 of the bytes of every W that the recipe's layers have."""
    digest = hashlib.sha256()
    for layer in editor.recipe.layers:
        content: Any = editor.model.weight(layer).contiguous().cpu().flatten().view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for it on GPUs only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _log_if_possible(run: RunDirectory, text: str) -> None:
    """Where the disk is full, the message that the user sees has to do."""
    try:
        run.log(text)
    except OSError:
        return
