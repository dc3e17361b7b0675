"""Put a run's batches into a model again, and see whether it is the model, the text and the machine of the run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from errata.editors.locate_then_edit import Editor
from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.runs.run import RunDirectory
from errata.statistics.corpus import open_corpus
from errata.utils.progress import Report, silent


def editor_of(
    model: LanguageModel, run: RunDirectory, *, cache: Path | None = None, report: Report = silent
) -> tuple[Editor, list[str]]:
    """An editor as it was after the run's last batch, whose edits are then in ``model``; and notes on what differs.

    Raises:
        InputError, FaultsError: if the model, the text or a file is not what the run began with; ``model`` is then
            what it was.
    """
    if (found := model.fingerprint()) != run.manifest.fingerprint:
        raise InputError(
            f"the weights of {model.name!r} ({found[:12]}…) are not those that the run {run.path} began with "
            f"({run.manifest.fingerprint[:12]}…, in {run.manifest.dtype})",
            remedy=f"Give {run.manifest.model!r} as it was, in {run.manifest.dtype}",
            code="RUN_OTHER_WEIGHTS",
        )
    if corpus_digest(run) != run.manifest.corpus:
        raise InputError(
            f"the text {run.recipe.statistics.corpus} is not what it was when the run {run.path} began",
            remedy="Put the file back as it was",
            code="CORPUS_CHANGED",
        )
    saved = run.saved_batches()
    editor = Editor(model, run.recipe, cache=cache, report=report)
    editor.prepare()
    if saved and (prefixes := saved[-1].patch.prefixes) != editor.prefixes:
        raise InputError(
            f"the contexts that come out here are not those of the run {run.path}: {editor.prefixes} for {prefixes}",
            remedy="Go on where it began: same machine, same versions, same number of threads",
            code="RUN_OTHER_CONTEXTS",
        )
    editor.restore([batch.record for batch in saved])
    notes = []
    if saved and run.ledger.of("batch")[-1].about["weights"] != edited_weights(editor):
        notes.append(
            "the weights that come out of the run's patches here differ in their last bits from those that were there: "
            "another machine, or another number of threads"
        )
    if (threads := torch.get_num_threads()) != run.manifest.threads:
        notes.append(f"the run began with {run.manifest.threads} threads and goes on with {threads}: not bit for bit")
    return editor, notes


def patch_of_run(model: LanguageModel, run: RunDirectory, *, cache: Path | None = None) -> Patch:
    """What a run has changed so far, as one patch; ``model`` is its base, and has the change in it afterwards."""
    editor, _ = editor_of(model, run, cache=cache)
    return replace(editor.patch(), created=run.manifest.created)


def corpus_digest(run: RunDirectory) -> str:
    """SHA-256 of the text for key statistics as it is now; empty where the run reads none."""
    return open_corpus(run.recipe.statistics.corpus).digest if run.recipe.needs_statistics else ""


def edited_weights(editor: Editor) -> str:
    """SHA-256 of the bytes of every W that the recipe's layers have."""
    digest = hashlib.sha256()
    for layer in editor.recipe.layers:
        content: Any = editor.model.weight(layer).contiguous().cpu().flatten().view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()
