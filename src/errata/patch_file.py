"""A patch as one safetensors file: factors as tensors, the record as JSON in the header, a checksum over both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata.errors import InputError
from errata.evaluation.results_file import Row, is_row
from errata.factors import shape_of
from errata.facts_io import facts_from_records
from errata.models.weights import LowRankTerm, SparseTerm, Term
from errata.output import new_file
from errata.patch import DtypeName, Patch, PatchResults
from errata.reading import open_file, reason_of
from errata.recipe import Recipe

FORMAT = "errata-patch-3"
_TENSORS = {"low_rank": ("left", "right"), "sparse": ("values", "mask")}
_NUMBERS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class _TermRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    layer: int = Field(ge=0)
    kind: Literal["low_rank", "sparse"]
    replaces: bool = False
    rows: int = Field(0, ge=0)
    columns: int = Field(0, ge=0)


class _Results(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rows: list[dict[str, Any]]
    left_alone: tuple[str, ...]
    absent: dict[str, str]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    terms: list[_TermRecord]
    facts: list[dict[str, Any]]
    recipe: Recipe
    prefixes: tuple[str, ...]
    base: str
    fingerprint: str
    dtype: DtypeName
    created: str
    versions: dict[str, str]
    results: _Results | None = None


@dataclass(frozen=True, slots=True)
class PatchFile:
    """What a file holds.

    Attributes:
        keys: layer -> (d_in, u) float64, the keys that later batches of the same run keep in place; in the files of
            a run's batches only.
    """

    patch: Patch
    keys: Mapping[int, Tensor] = field(default_factory=dict)


def write_patch(patch: Patch, path: Path, *, keys: Mapping[int, Tensor] | None = None) -> None:
    """Write a patch, whole or not at all, over an older one.

    Raises:
        OutputError: if it cannot be written; what was there before is left.
    """
    tensors: dict[str, Tensor] = {}
    for index, term in enumerate(patch.terms):
        tensors |= {f"{index}.{name}": tensor for name, tensor in _tensors_of(term).items()}
    tensors |= {f"keys.{layer}": key.contiguous().cpu() for layer, key in (keys or {}).items()}
    record = _Record(
        terms=[_record_of(term) for term in patch.terms],
        facts=[fact.to_record() for fact in patch.facts],
        recipe=patch.recipe,
        prefixes=patch.prefixes,
        base=patch.base,
        fingerprint=patch.fingerprint,
        dtype=patch.dtype,
        created=patch.created,
        versions=dict(patch.versions),
        results=_results_record(patch.results),
    ).model_dump_json()
    metadata = {"format": FORMAT, "record": record, "sha256": _checksum(record, tensors)}
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_patch(path: Path) -> PatchFile:
    """Read what ``write_patch`` wrote.

    Raises:
        InputError: if the file is not a patch, or is damaged.
    """
    try:
        with open_file(path):  # which knows more reasons why a file cannot be read than safetensors tells
            pass
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
            # Copies: what is read is mapped from the file, and would change, or be gone, with it after it was checked.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        if _checksum(metadata["record"], tensors) != metadata["sha256"]:
            raise ValueError("its checksum is not that of what it holds")
        record = _Record.model_validate_json(metadata["record"])
        terms = tuple(
            _term_from(entry, {name: tensors.pop(f"{index}.{name}") for name in _TENSORS[entry.kind]})
            for index, entry in enumerate(record.terms)
        )
        _check_shapes(terms)
        keys = {int(name.removeprefix("keys.")): _sound(tensor, 2, name) for name, tensor in tensors.items()}
        patch = Patch(
            terms=terms,
            facts=facts_from_records(record.facts, source=str(path)).facts,
            recipe=record.recipe,
            prefixes=record.prefixes,
            base=record.base,
            fingerprint=record.fingerprint,
            dtype=record.dtype,
            created=record.created,
            versions=record.versions,
            results=_results_from(record.results),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a patch that can be read: {reason_of(error)}",
            remedy="Give a file that `errata edit` wrote, whole",
        ) from error
    return PatchFile(patch, keys)


def _checksum(record: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        content: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def _results_record(results: PatchResults | None) -> _Results | None:
    if results is None:
        return None
    rows = [dict(row) for row in results.rows]
    return _Results(rows=rows, left_alone=results.left_alone, absent=dict(results.absent))


def _results_from(record: _Results | None) -> PatchResults | None:
    """The inverse.

    Raises:
        ValueError: if a row is none.
    """
    if record is None:
        return None
    if not all(is_row(row) for row in record.rows):
        raise ValueError("its results have a row that is not one of the long form")
    return PatchResults(tuple(cast(Row, row) for row in record.rows), record.left_alone, record.absent)


def _tensors_of(term: Term) -> dict[str, Tensor]:
    if isinstance(term, SparseTerm):
        # One bit an entry.
        bits = numpy.packbits(term.mask.cpu().numpy().ravel())
        return {"values": term.values.contiguous().cpu(), "mask": torch.from_numpy(bits)}
    assert isinstance(term, LowRankTerm)
    return {"left": term.left.contiguous().cpu(), "right": term.right.contiguous().cpu()}


def _record_of(term: Term) -> _TermRecord:
    if isinstance(term, SparseTerm):
        rows, columns = term.mask.shape
        return _TermRecord(layer=term.layer, kind="sparse", rows=rows, columns=columns)
    assert isinstance(term, LowRankTerm)
    return _TermRecord(layer=term.layer, kind="low_rank", replaces=term.replaces)


def _term_from(record: _TermRecord, tensors: Mapping[str, Tensor]) -> Term:
    """The inverse of the two above.

    Raises:
        ValueError: if they do not belong together, or a number is not finite.
    """
    if record.kind == "low_rank":
        left, right = (_sound(tensors[name], 2, f"{name} of layer {record.layer}") for name in ("left", "right"))
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"its factors at layer {record.layer} are {tuple(left.shape)} and {tuple(right.shape)}")
        return LowRankTerm(record.layer, left, right, replaces=record.replaces)
    values, bits = _sound(tensors["values"], 1, f"values of layer {record.layer}"), tensors["mask"]
    count = record.rows * record.columns
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):  # before anything of that size is made
        raise ValueError(f"its mask of layer {record.layer} is not one of {record.rows} × {record.columns}")
    flat = numpy.unpackbits(bits.numpy(), count=count).astype(bool)
    if int(flat.sum()) != len(values):
        raise ValueError("the number of values is not that of the mask's entries")
    return SparseTerm(record.layer, values, torch.from_numpy(flat).view(record.rows, record.columns))


def _sound(tensor: Tensor, dimensions: int, name: str) -> Tensor:
    """The tensor, if it is one of finite numbers with so many dimensions."""
    if tensor.dtype not in _NUMBERS or tensor.dim() != dimensions or not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"its {name} is {tensor.dtype}, {tuple(tensor.shape)}, or has a number that is not finite")
    return tensor


def _check_shapes(terms: Sequence[Term]) -> None:
    shapes: dict[int, torch.Size] = {}
    for term in terms:
        if (shape := shape_of(term)) != shapes.setdefault(term.layer, shape):
            raise ValueError(f"its changes of layer {term.layer} are of different shapes")
