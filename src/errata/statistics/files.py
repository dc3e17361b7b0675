"""Statistics files: second moments of one model's layers in one safetensors file, with everything they depend on.

The cache holds one layer in a file, ``errata statistics make`` and ``import`` write several: the format is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errata.errors import InputError
from errata.models.prompts import encode
from errata.statistics.moments import SecondMoment
from errata.utils.files import new_file, reason_of
from errata.utils.tensors import checksum, opened, read_checked

FORMAT: Final = "errata-statistics-1"
_HEADER: Final = "header"
# How text becomes rows of tokens: documents end at blank lines, their lines are stripped, and long ones are cut.
PREPROCESSING: Final = "documents at blank lines, stripped lines, cut at length"
IMPORTED: Final = "imported from published statistics"
_REMEDY: Final = "Make it with `errata statistics make`, or with `errata statistics import` from published .npz files"
_PROBE: Final = "The Eiffel Tower's 2 iron pillars weren't BUILT in the naïve 東京, αβγ ﬁ\n\tor мир 🙂 (3.14%)."


@dataclass(frozen=True, slots=True)
class StatisticsKey:
    """Everything that second moments depend on, besides the layer.

    Attributes:
        weights: fingerprint of the model.
        dtype: of its weights.
        tokenizer: see ``tokenizer_digest``.
        corpus: SHA-256 of the text; for published statistics of their file, whose text is not known here.
        tokens, documents: the amount of text, in one of the two units.
        length: documents were cut at this many tokens; None if that is not known.
        special_tokens: whether keys of special tokens count.
        preprocessing: how the text became rows of tokens.
    """

    weights: str
    dtype: str
    tokenizer: str
    corpus: str
    tokens: int | None
    documents: int | None
    length: int | None
    special_tokens: bool
    preprocessing: str = PREPROCESSING

    def file_name(self, layer: int) -> str:
        """The name of a layer's file in the cache."""
        text = json.dumps([FORMAT, asdict(self), layer], sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


@dataclass(frozen=True, slots=True)
class StatisticsFile:
    """The content of a file.

    Attributes:
        corpus: name of the text, without directories, for people.
        model: name of the model, without directories, for people.
        moments: layer -> its moment.
        documents_read: of sums that are not complete yet, the number of documents in them, else None.
        missing: of such sums, the tokens or documents that are missing.
    """

    key: StatisticsKey
    model: str
    corpus: str
    moments: Mapping[int, SecondMoment]
    documents_read: int | None = None
    missing: int | None = None

    @property
    def is_complete(self) -> bool:
        return self.documents_read is None

    @property
    def is_imported(self) -> bool:
        return self.key.preprocessing == IMPORTED


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what a tokenizer does: its vocabulary, its special tokens, and the tokens of a text with many kinds of
    characters. It does not depend on how a version of the library writes a tokenizer to a file.
    """
    vocabulary = sorted(tokenizer.get_vocab().items())
    row = encode(tokenizer, [_PROBE])[0].ids
    text = json.dumps([vocabulary, sorted(tokenizer.all_special_ids), row])
    return hashlib.sha256(text.encode()).hexdigest()


def write_statistics(path: Path, content: StatisticsFile, *, dtype: torch.dtype = torch.float64) -> None:
    """Write a file completely or not at all; of each moment the upper triangle.

    Args:
        dtype: float32 halves the size of shipped files; the float64 sums are rounded once.

    Raises:
        OutputError: if it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for layer, moment in content.moments.items():
        rows, columns = torch.triu_indices(*moment.total.shape[-2:])
        tensors[f"layer.{layer}"] = moment.total.cpu()[..., rows, columns].to(dtype)
    header: dict[str, Any] = {
        "key": asdict(content.key),
        "model": Path(content.model).name,
        "corpus": Path(content.corpus).name,
        "counts": {str(layer): moment.count for layer, moment in content.moments.items()},
    }
    if not content.is_complete:
        header["documents_read"], header["missing"] = content.documents_read, content.missing
    text = json.dumps(header)
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, _HEADER: text, "sha256": checksum(text, tensors)})


def read_statistics(path: Path) -> StatisticsFile:
    """Read a file and verify its checksum.

    Raises:
        OSError, SafetensorError, KeyError, TypeError, ValueError: if it cannot be read, is of another format, or is
            damaged.
    """
    text, tensors = read_checked(path, FORMAT, _HEADER)
    header = json.loads(text)
    key = StatisticsKey(**header["key"])
    moments: dict[int, SecondMoment] = {}
    for layer, count in header["counts"].items():
        triangle = tensors[f"layer.{layer}"]
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"layer {layer} has {count!r} keys")
        moments[int(layer)] = SecondMoment(_unfolded(triangle), count)
    content = StatisticsFile(key, str(header["model"]), str(header["corpus"]), moments)
    if "documents_read" in header:
        return replace(content, documents_read=int(header["documents_read"]), missing=int(header["missing"]))
    return content


def read_statistics_file(path: Path) -> StatisticsFile:
    """As ``read_statistics``, for a file that the user gave.

    Raises:
        InputError: if it cannot be read, is damaged, or is not complete.
    """
    with _readable(path):
        content = read_statistics(path)
        if not content.is_complete:
            raise ValueError("it holds the unfinished sums of an interrupted run")
        return content


def check_file_has(path: Path, layers: Sequence[int]) -> None:
    """Check from a file's header alone, which is fast, that it is a statistics file with these layers.

    Raises:
        InputError: if it is not, or has not.
    """
    with _readable(path), opened(path, FORMAT) as (_, metadata):
        counts = [int(layer) for layer in json.loads(metadata[_HEADER])["counts"]]
    _check_layers(path, counts, layers)


def _check_layers(path: Path, found: Collection[int], wanted: Sequence[int]) -> None:
    if missing := [layer for layer in wanted if layer not in found]:
        raise InputError(
            f"the statistics file {path} has the layers {', '.join(map(str, found))}, but not "
            f"{', '.join(map(str, missing))}",
            remedy=f"Make one with all of them: errata statistics make --layers {','.join(map(str, wanted))} …",
            code="STATISTICS_LAYER_MISSING",
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Report the errors of reading a statistics file that the user gave."""
    try:
        yield
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"cannot read the statistics file {path}: {reason_of(error)}"
        raise InputError(what, remedy=_REMEDY, code="STATISTICS_FILE_UNREADABLE") from error


def moments_of_file(
    path: Path, shapes: Mapping[int, tuple[int, ...]], *, fingerprint: str, name: str
) -> dict[int, SecondMoment]:
    """The moments of some layers from a file, which must have been made for these weights.

    Args:
        shapes: layer -> shape of C.
        fingerprint: of the model's weights.
        name: of the model, for messages.

    Raises:
        InputError: if the file cannot be read, belongs to other weights, or lacks a layer.
    """
    content = read_statistics_file(path)
    if content.key.weights != fingerprint:
        raise InputError(
            f"the statistics file {path} was made for {content.model!r} with other weights "
            f"({content.key.weights[:12]}…, {content.key.dtype}) than those of {name!r} ({fingerprint[:12]}…)",
            remedy="Give a file for these weights in this dtype, or leave it out to compute statistics from a text",
            code="STATISTICS_OTHER_WEIGHTS",
        )
    _check_layers(path, content.moments, list(shapes))
    found = {layer: content.moments[layer] for layer in shapes}
    for layer, moment in found.items():
        shape = tuple(moment.total.shape)
        if shape != shapes[layer] or moment.count == 0:
            what = (
                f"layer {layer} of {path} has {moment.count} keys and sums of shape {shape}, expected {shapes[layer]}"
            )
            raise InputError(what, remedy="Make the file again", code="STATISTICS_FILE_UNREADABLE")
    return found


def _unfolded(triangle: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle, or those of a row of them, in float64.

    Raises:
        ValueError: if it is not a triangle of numbers.
    """
    entries = triangle.shape[-1] if triangle.dim() in (1, 2) else 0
    width = int(((8 * entries + 1) ** 0.5 - 1) / 2)
    if width == 0 or width * (width + 1) // 2 != entries or not triangle.is_floating_point():
        raise ValueError("a tensor is not a triangle of a matrix")
    rows, columns = torch.triu_indices(width, width)
    total = torch.zeros(*triangle.shape[:-1], width, width, dtype=torch.float64)
    total[..., rows, columns] = triangle.double()
    total[..., columns, rows] = triangle.double()
    return total
