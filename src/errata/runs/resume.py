"""Restore a run's edits in a model, and check that model, corpus and machine are those of the run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from errata.editors.locate_then_edit import Editor
from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.runs.run import RunDirectory
from errata.statistics.store import source_digest
from errata.utils.progress import OnSearch, Report, silent, unwatched
from errata.utils.tensors import tensor_bytes


def editor_of(
    model: LanguageModel,
    run: RunDirectory,
    *,
    cache: Path | None = None,
    report: Report = silent,
    on_search: OnSearch = unwatched,
) -> tuple[Editor, list[str]]:
    """An editor in its state after the run's last batch, and notes on differences from the original run.

    Args:
        model: the run's base, which gets its edits.
        on_search: see ``Editor``.

    Raises:
        InputError, FaultsError: if the model, the corpus or a file has changed; ``model`` is then unchanged.
    """
    if (found := model.fingerprint()) != run.manifest.fingerprint:
        raise InputError(
            f"the weights of {model.name!r} ({found[:12]}…) are not those that the run {run.path} began with "
            f"({run.manifest.fingerprint[:12]}…, in {run.manifest.dtype})",
            remedy=f"Give the original {run.manifest.model!r}, in {run.manifest.dtype}",
            code="RUN_OTHER_WEIGHTS",
        )
    if corpus_digest(run) != run.manifest.corpus:
        what = f"the corpus {run.recipe.statistics.source} has changed since the run {run.path} began"
        raise InputError(what, remedy="Restore the file", code="CORPUS_CHANGED")
    saved = run.saved_batches()
    editor = Editor(model, run.recipe, cache=cache, report=report, on_search=on_search)
    editor.prepare()
    if saved and (prefixes := saved[-1].patch.prefixes) != editor.prefixes:
        what = f"the contexts generated here differ from those of the run {run.path}: {editor.prefixes} for {prefixes}"
        remedy = "Resume with the same machine, versions and number of threads"
        raise InputError(what, remedy=remedy, code="RUN_OTHER_CONTEXTS")
    editor.restore([batch.record for batch in saved])
    notes = []
    if saved and run.ledger.of("batch")[-1].fields["weights"] != edited_weights(editor):
        notes.append(
            "the weights restored from the run's patches differ from the original ones in their last bits: another "
            "machine, or another number of threads"
        )
    if (threads := torch.get_num_threads()) != run.manifest.threads:
        notes.append(f"the run began with {run.manifest.threads} threads and continues with {threads}: not bit for bit")
    return editor, notes


def patch_of_run(model: LanguageModel, run: RunDirectory, *, cache: Path | None = None) -> Patch:
    """The change of a run so far as one patch; ``model`` is its base, which gets the change."""
    editor, _ = editor_of(model, run, cache=cache)
    return replace(editor.patch(), created=run.manifest.created)


def corpus_digest(run: RunDirectory) -> str:
    """SHA-256 of the current corpus for key statistics; empty if the run reads none."""
    return source_digest(run.recipe.statistics) if run.recipe.needs_statistics else ""


def edited_weights(editor: Editor) -> str:
    """SHA-256 of the bytes of W of all layers of the recipe."""
    digest = hashlib.sha256()
    for layer in editor.recipe.layers:
        for place in editor.model.places(layer):
            digest.update(tensor_bytes(editor.model.weight(*place)))
    return digest.hexdigest()
