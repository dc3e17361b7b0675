"""Second moments for an edit: from a statistics file, from the cache on disk, or computed; invalid cached ones are
recomputed, and an interrupted computation is continued.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from errata.errors import OutputError
from errata.models.language_model import LanguageModel
from errata.statistics.corpus import open_corpus
from errata.statistics.files import (
    StatisticsFile,
    StatisticsKey,
    check_file_has,
    moments_of_file,
    read_statistics,
    tokenizer_digest,
    write_statistics,
)
from errata.statistics.moments import CHUNK_TOKENS, Progress, SecondMoment, key_moments, moment_shape
from errata.statistics.settings import StatisticsSettings, corpus_too_short
from errata.utils.files import cache_directory, file_digest, is_there, reading
from errata.utils.locks import in_turn
from errata.utils.tensors import float64_device

# Sums so far are saved after a chunk of text if this many seconds have passed since the last time; more if writing them
# takes longer than three seconds (of a large model they are gigabytes), so that it takes a twentieth of the time.
SECONDS_BETWEEN_SAVES: Final = 60.0
_QUICK_SAVE: Final = 3.0
_logger = logging.getLogger(__name__)


def default_cache() -> Path:
    """``$ERRATA_CACHE``, else the user's cache directory."""
    return cache_directory("moments")


def packaged_moments() -> tuple[Path, ...]:
    """The directories of the statistics that are shipped with errata."""
    return (Path(str(resources.files("errata"))) / "lab" / "moments",)


def check_source(settings: StatisticsSettings, layers: Sequence[int]) -> None:
    """Check that the corpus can be read and has enough documents, or that the file has the layers, without a model:
    counting tokens would need its tokenizer, and comparing weights the model itself.

    Raises:
        InputError: if it cannot, or has not.
    """
    if settings.file is not None:
        check_file_has(Path(settings.file), layers)
        return
    documents = open_corpus(settings.corpus).documents()
    if settings.documents is not None:
        found = sum(1 for _ in islice(documents, settings.documents))
        if found < settings.documents:
            raise corpus_too_short(settings, found)


def source_digest(settings: StatisticsSettings) -> str:
    """SHA-256 of the text, or of the statistics file that takes its place.

    Raises:
        InputError: if it cannot be read.
    """
    if settings.file is None:
        return open_corpus(settings.corpus).digest
    remedy = "Make it with `errata statistics make`, or leave the setting out"
    with reading(f"the statistics file {settings.file}", remedy=remedy, code="STATISTICS_FILE_UNREADABLE"):
        return file_digest(Path(settings.file))


def moments_for(
    model: LanguageModel,
    layers: Sequence[int],
    settings: StatisticsSettings,
    *,
    cache: Path | None = None,
    read_only: Sequence[Path] = (),
    between_saves: float = SECONDS_BETWEEN_SAVES,
    chunk_tokens: int = CHUNK_TOKENS,
    on_read: Callable[[int], None] = lambda count: None,
) -> dict[int, SecondMoment]:
    """The key moments of ``layers`` from the settings' file or else from the cache; missing ones are computed in one
    pass over the corpus, which continues where a killed process stopped.

    Args:
        cache: the directory; ``default_cache()`` if None.
        read_only: further directories, such as ``packaged_moments()``, in which nothing is written.
        between_saves: the least seconds between two times that sums so far are saved.
        chunk_tokens: tokens between two such times at least; see ``chunks_of``.

    Raises:
        InputError: if the corpus or the file cannot be read, or does not suit the model.
    """
    if settings.file is not None:
        shapes = {layer: moment_shape(model, layer) for layer in layers}
        return moments_of_file(Path(settings.file), shapes, fingerprint=model.fingerprint(), name=model.name)
    key = statistics_key(model, settings)
    found: dict[int, SecondMoment] = {}
    _look(found, layers, key, read_only)
    if set(layers) <= found.keys():
        return found
    directory = cache or default_cache()  # not before it is needed: there may be no home directory
    unusable = _look(found, layers, key, (directory,))
    if not set(layers) <= found.keys():
        with in_turn(directory.with_name(f"{directory.name}.lock"), "key statistics"):
            # Another process may have computed them meanwhile.
            _look(found, layers, key, (directory,), but=unusable)
            missing = [layer for layer in layers if layer not in found]
            if missing:
                found |= _computed(model, missing, settings, key, directory, between_saves, chunk_tokens, on_read)
    return found


def statistics_key(model: LanguageModel, settings: StatisticsSettings) -> StatisticsKey:
    """The key of a model's moments over the settings' text."""
    return StatisticsKey(
        weights=model.fingerprint(),
        dtype=str(model.dtype),
        tokenizer=tokenizer_digest(model.tokenizer),
        corpus=open_corpus(settings.corpus).digest,
        tokens=settings.tokens,
        documents=settings.documents,
        length=settings.length,
        special_tokens=settings.special_tokens,
    )


def _look(
    found: dict[int, SecondMoment],
    layers: Sequence[int],
    key: StatisticsKey,
    places: Sequence[Path],
    *,
    but: Collection[Path] = (),
) -> set[Path]:
    """Read what is missing from the first place that has it; returns the files that cannot be used."""
    unusable = set()
    for layer in layers:
        for place in places:
            path = place / key.file_name(layer)
            if layer in found or path in but or not is_there(path):
                continue
            content = _read(path, key, [layer])
            if content is None:
                unusable.add(path)
            else:
                found[layer] = content.moments[layer]
    return unusable


def _computed(
    model: LanguageModel,
    layers: Sequence[int],
    settings: StatisticsSettings,
    key: StatisticsKey,
    directory: Path,
    between_saves: float,
    chunk_tokens: int,
    on_read: Callable[[int], None],
) -> dict[int, SecondMoment]:
    """Compute moments, saving the sums so far from time to time, and write them to the cache."""
    corpus = open_corpus(settings.corpus)
    unfinished = directory / f"unfinished-{'-'.join(map(str, layers))}-{key.file_name(-1)}"
    saved, cost = time.monotonic(), 0.0

    def save(progress: Progress) -> None:
        nonlocal saved, cost
        if progress.missing and time.monotonic() - saved >= between_saves * max(1.0, cost / _QUICK_SAVE):
            began = time.monotonic()
            content = StatisticsFile(
                key, model.name, corpus.name, progress.moments, progress.documents, progress.missing
            )
            _write_cached(unfinished, content)
            saved = time.monotonic()
            cost = saved - began

    moments = key_moments(
        model,
        layers,
        corpus.documents(),
        settings,
        chunk_tokens=chunk_tokens,
        start=_progress(unfinished, key, layers, model),
        on_chunk=save,
        on_read=on_read,
    )
    found = {layer: SecondMoment(moment.total.cpu(), moment.count) for layer, moment in moments.items()}
    written = [
        _write_cached(directory / key.file_name(layer), StatisticsFile(key, model.name, corpus.name, {layer: moment}))
        for layer, moment in found.items()
    ]
    if all(written):
        unfinished.unlink(missing_ok=True)
    return found


def _progress(path: Path, key: StatisticsKey, layers: Sequence[int], model: LanguageModel) -> Progress | None:
    """The sums that a killed process saved, on the device of the sums."""
    content = _read(path, key, layers) if is_there(path) else None
    if content is None or content.documents_read is None or content.missing is None:
        return None
    _logger.info("key statistics continue after %d documents", content.documents_read)
    device = float64_device(model.device)
    moments = {layer: SecondMoment(found.total.to(device), found.count) for layer, found in content.moments.items()}
    return Progress(content.documents_read, content.missing, moments)


def _write_cached(path: Path, content: StatisticsFile) -> bool:
    """Write a file of the cache; a warning if that is not possible: only the next run has to compute it again."""
    try:
        write_statistics(path, content)
    except OutputError as error:
        layers = ", ".join(map(str, content.moments))
        _logger.warning("the statistics of layer %s cannot be cached in %s (%s)", layers, path.parent, error)
        return False
    return True


def _read(path: Path, key: StatisticsKey, layers: Sequence[int]) -> StatisticsFile | None:
    """The content of a file with these layers, or None with a warning if it is damaged or has another key."""
    try:
        content = read_statistics(path)
        if content.key != key or list(content.moments) != list(layers):
            raise ValueError("it belongs to another model, layer or text")
        counts = {moment.count for moment in content.moments.values()}
        if content.is_complete and key.tokens not in (None, *counts):
            raise ValueError("its content was changed")
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        _logger.warning("the cached statistics %s cannot be used (%s); they are recomputed", path, error)
        return None
    return content
