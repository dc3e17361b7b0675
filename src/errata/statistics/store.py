"""A cache of second moments on disk, keyed by everything that they depend on; invalid entries are recomputed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata.errors import OutputError
from errata.models.language_model import LanguageModel
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import SecondMoment, key_moments
from errata.statistics.settings import StatisticsSettings, corpus_too_short
from errata.utils.files import cache_directory, is_there, new_file
from errata.utils.locks import in_turn

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MomentKey:
    """Everything that a second moment depends on."""

    weights: str
    layer: int
    corpus: str
    corpus_digest: str
    tokens: int | None
    length: int
    special_tokens: bool
    dtype: str
    documents: int | None = None

    def to_record(self) -> dict[str, Any]:
        """For a file's metadata, with the unit that is counted only: tokens or documents."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def file_name(self) -> str:
        return f"{hashlib.sha256(json.dumps(self.to_record(), sort_keys=True).encode()).hexdigest()[:32]}.safetensors"


def default_cache() -> Path:
    """``$ERRATA_CACHE``, else the user's cache directory."""
    return cache_directory("moments")


def packaged_moments() -> tuple[Path, ...]:
    """The directories of the statistics that are shipped with errata."""
    return (Path(str(resources.files("errata"))) / "lab" / "moments",)


def check_corpus(settings: StatisticsSettings) -> None:
    """Check that the corpus can be read and has enough documents; counting tokens would need a tokenizer.

    Raises:
        InputError: if it cannot, or has not.
    """
    documents = open_corpus(settings.corpus).documents()
    if settings.documents is not None:
        found = sum(1 for _ in islice(documents, settings.documents))
        if found < settings.documents:
            raise corpus_too_short(settings, found)


def moments_for(
    model: LanguageModel,
    layers: Sequence[int],
    settings: StatisticsSettings,
    *,
    cache: Path | None = None,
    read_only: Sequence[Path] = (),
    on_read: Callable[[int], None] = lambda count: None,
) -> dict[int, SecondMoment]:
    """The key moments of ``layers`` from the cache; missing ones are computed in one pass over the corpus.

    Args:
        cache: the directory; ``default_cache()`` if None.
        read_only: further directories, such as ``packaged_moments()``, in which nothing is written.
    """
    keys = moment_keys(model, layers, settings)
    found: dict[int, SecondMoment] = {}
    _look(found, keys, read_only)
    if keys.keys() <= found.keys():
        return found
    directory = cache or default_cache()  # not before it is needed: there may be no home directory
    unusable = _look(found, keys, (directory,))
    if not keys.keys() <= found.keys():
        with in_turn(directory.with_name(f"{directory.name}.lock"), "key statistics"):
            _look(found, keys, (directory,), but=unusable)  # another process may have computed them meanwhile
            _compute(found, model, keys, settings, directory, on_read)
    return found


def _look(
    found: dict[int, SecondMoment], keys: Mapping[int, MomentKey], places: Sequence[Path], *, but: Collection[Path] = ()
) -> set[Path]:
    """Read what is missing from the first place that has it; returns the files that cannot be used."""
    unusable = set()
    for layer, key in keys.items():
        for place in places:
            path = place / key.file_name
            if layer in found or path in but or not is_there(path):
                continue
            moment = _read(path, key)
            if moment is None:
                unusable.add(path)
            else:
                found[layer] = moment
    return unusable


def _compute(
    found: dict[int, SecondMoment],
    model: LanguageModel,
    keys: Mapping[int, MomentKey],
    settings: StatisticsSettings,
    directory: Path,
    on_read: Callable[[int], None],
) -> None:
    """Compute what is still missing, and write it to the cache."""
    missing = [layer for layer in keys if layer not in found]
    if not missing:
        return
    documents = open_corpus(settings.corpus).documents()
    for layer, moment in key_moments(model, missing, documents, settings, on_read=on_read).items():
        found[layer] = SecondMoment(moment.total.cpu(), moment.count)
        try:
            write_moment(directory / keys[layer].file_name, keys[layer], moment)
        except OutputError as error:  # the work continues; only the next run has to recompute
            _logger.warning("the statistics of layer %d cannot be cached in %s (%s)", layer, directory, error)


def moment_keys(model: LanguageModel, layers: Sequence[int], settings: StatisticsSettings) -> dict[int, MomentKey]:
    """Layer -> the cache key of its moment."""
    corpus = open_corpus(settings.corpus)
    fingerprint = model.fingerprint()
    return {
        layer: MomentKey(
            weights=fingerprint,
            layer=layer,
            corpus=corpus.name,
            corpus_digest=corpus.digest,
            tokens=settings.tokens,
            length=settings.length,
            special_tokens=settings.special_tokens,
            dtype=str(model.dtype),
            documents=settings.documents,
        )
        for layer in layers
    }


def write_moment(path: Path, key: MomentKey, moment: SecondMoment, *, dtype: torch.dtype = torch.float64) -> None:
    """Write the upper triangle completely or not at all.

    Args:
        dtype: float32 halves the size of the shipped files; the float64 sum is rounded once.

    Raises:
        OutputError: if it cannot be written.
    """
    rows, columns = torch.triu_indices(*moment.total.shape[-2:])
    triangle = moment.total.cpu()[..., rows, columns].to(dtype)
    metadata = {
        "key": json.dumps(key.to_record()),
        "count": str(moment.count),
        "checksum": _checksum(key, triangle, moment.count),
    }
    with new_file(path) as temporary:
        save_file({"triangle": triangle}, temporary, metadata=metadata)


def _read(path: Path, key: MomentKey) -> SecondMoment | None:
    """The moment of a file, or None with a warning if it is damaged or has another key."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            triangle = file.get_tensor("triangle")
        if json.loads(metadata.get("key", "null")) != key.to_record():
            raise ValueError("it belongs to another model, layer or text")
        count = int(metadata["count"])
        if metadata.get("checksum") != _checksum(key, triangle, count) or key.tokens not in (None, count):
            raise ValueError("its content was changed")
        return SecondMoment(_unfolded(triangle), count)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        _logger.warning("the cached statistics %s cannot be used (%s); they are recomputed", path, error)
        return None


def _unfolded(triangle: Tensor) -> Tensor:
    """The symmetric matrices of upper triangles, in float64."""
    width = int(((8 * triangle.shape[-1] + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(width, width)
    total = torch.zeros(*triangle.shape[:-1], width, width, dtype=torch.float64)
    total[..., rows, columns] = triangle.double()
    total[..., columns, rows] = triangle.double()
    return total


def _checksum(key: MomentKey, triangle: Tensor, count: int) -> str:
    digest = hashlib.sha256(triangle.contiguous().numpy().tobytes())
    if key.tokens is None:  # otherwise the key has the count
        digest.update(str(count).encode())
    return digest.hexdigest()
