"""A cache of second moments on disk, keyed by everything that they depend on; what does not fit its key is rebuilt."""

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

from errata.errors import InputError, OutputError
from errata.models.language_model import LanguageModel
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import SecondMoment, key_moments
from errata.statistics.settings import StatisticsSettings
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
        """For a file's metadata. It holds only the unit that is counted: tokens or documents."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def file_name(self) -> str:
        return f"{hashlib.sha256(json.dumps(self.to_record(), sort_keys=True).encode()).hexdigest()[:32]}.safetensors"


def default_cache() -> Path:
    """``$ERRATA_CACHE``, else the user's cache directory."""
    return cache_directory("moments")


def packaged_moments() -> tuple[Path, ...]:
    """Where the statistics that ship with errata lie."""
    return (Path(str(resources.files("errata"))) / "lab" / "moments",)


def check_corpus(settings: StatisticsSettings) -> None:
    """That there is a text, and enough documents in it; whether there are enough tokens, only a tokenizer can say.

    Raises:
        InputError: if there is not.
    """
    documents = open_corpus(settings.corpus).documents()
    held = sum(1 for _ in islice(documents, settings.documents)) if settings.documents is not None else 0
    if settings.documents is not None and held < settings.documents:
        raise InputError(
            f"the corpus {settings.corpus!r} holds {held} documents, but {settings.documents} were asked for",
            remedy="Give more text (a blank line ends a document), or a --recipe with fewer statistics.documents; "
            "`errata recipe show --method …` prints one to change",
            code="CORPUS_TOO_SHORT",
        )


def moments_for(
    model: LanguageModel,
    layers: Sequence[int],
    settings: StatisticsSettings,
    *,
    cache: Path | None = None,
    read_only: Sequence[Path] = (),
    on_read: Callable[[int], None] = lambda count: None,
) -> dict[int, SecondMoment]:
    """The key moments of ``layers``, from the cache where it has them, else in one pass over the corpus.

    Args:
        cache: where to look and to write; ``default_cache()`` if None.
        read_only: further places to look, such as what ships with the package.
    """
    keys = moment_keys(model, layers, settings)
    found: dict[int, SecondMoment] = {}
    _look(found, keys, read_only)
    if keys.keys() <= found.keys():
        return found
    directory = cache or default_cache()  # not before it is needed: there may be no home directory
    useless = _look(found, keys, (directory,))
    if not keys.keys() <= found.keys():
        with in_turn(directory.with_name(f"{directory.name}.lock"), "key statistics"):
            _look(found, keys, (directory,), but=useless)  # another process may have computed them meanwhile
            _compute(found, model, keys, settings, directory, on_read)
    return found


def _look(
    found: dict[int, SecondMoment],
    keys: Mapping[int, MomentKey],
    places: Sequence[Path],
    *,
    but: Collection[Path] = (),
) -> set[Path]:
    """Take what is missing from the first place that has it; the files that are there and cannot be used, each of
    which has been warned of.
    """
    useless = set()
    for layer, key in keys.items():
        for place in places:
            path = place / key.file_name
            if layer in found or path in but or not is_there(path):
                continue
            moment = _read(path, key)
            if moment is None:
                useless.add(path)
            else:
                found[layer] = moment
    return useless


def _compute(
    found: dict[int, SecondMoment],
    model: LanguageModel,
    keys: Mapping[int, MomentKey],
    settings: StatisticsSettings,
    directory: Path,
    on_read: Callable[[int], None],
) -> None:
    """Take what is still missing from the corpus, and keep it."""
    missing = [layer for layer in keys if layer not in found]
    computed = compute_moments(model, missing, settings, on_read=on_read) if missing else {}
    for layer, moment in computed.items():
        found[layer] = SecondMoment(moment.total.cpu(), moment.count)
        try:
            write_moment(directory / keys[layer].file_name, keys[layer], moment)
        except OutputError as error:  # the work continues; only the next run has to recompute
            _logger.warning("the statistics of layer %d cannot be kept in %s (%s)", layer, directory, error)


def compute_moments(
    model: LanguageModel,
    layers: Sequence[int],
    settings: StatisticsSettings,
    *,
    on_read: Callable[[int], None] = lambda count: None,
) -> dict[int, SecondMoment]:
    """The key moments of ``layers`` in one pass over the corpus of ``settings``, whatever a cache may hold."""
    return key_moments(
        model,
        layers,
        open_corpus(settings.corpus).documents(),
        tokens=settings.tokens,
        documents=settings.documents,
        length=settings.length,
        special_tokens=settings.special_tokens,
        on_read=on_read,
    )


def moment_keys(model: LanguageModel, layers: Sequence[int], settings: StatisticsSettings) -> dict[int, MomentKey]:
    """What the moments of these layers depend on."""
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
    """Write the upper triangle, whole or not at all.

    Args:
        dtype: float32 halves the file, for what ships with the package: the sum, taken in float64, is rounded once.

    Raises:
        OutputError: if it cannot be written.
    """
    rows, columns = torch.triu_indices(*moment.total.shape)
    triangle = moment.total.cpu()[rows, columns].to(dtype)
    metadata = {
        "key": json.dumps(key.to_record()),
        "count": str(moment.count),
        "checksum": _checksum(key, triangle, moment.count),
    }
    with new_file(path) as temporary:
        save_file({"triangle": triangle}, temporary, metadata=metadata)


def _read(path: Path, key: MomentKey) -> SecondMoment | None:
    """What is cached, or None if there is nothing, or nothing that can be trusted."""
    if not is_there(path):
        return None
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
        _logger.warning("the cached statistics %s cannot be used (%s); they are computed anew", path, error)
        return None


def _unfolded(triangle: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle, in float64."""
    width = int(((8 * len(triangle) + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.triu_indices(width, width)
    total = torch.zeros(width, width, dtype=torch.float64)
    total[rows, columns] = triangle.double()
    total[columns, rows] = triangle.double()
    return total


def _checksum(key: MomentKey, triangle: Tensor, count: int) -> str:
    digest = hashlib.sha256(triangle.contiguous().numpy().tobytes())
    if key.tokens is None:  # otherwise the key itself says how many there are
        digest.update(str(count).encode())
    return digest.hexdigest()
