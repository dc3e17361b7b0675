"""Patch: what an edit changed, as small factors, with the facts and the recipe that it came from."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy
import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errata._version import __version__
from errata.editing.recipe import Recipe
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.facts.files import facts_from_records
from errata.models.language_model import LanguageModel
from errata.models.weights import LowRankTerm, SparseTerm, Term
from errata.patches.factors import norm, rank, shape_of
from errata.results.records import Row, is_row
from errata.utils.files import new_file, open_file, reason_of

DtypeName = Literal["float32", "bfloat16", "float16", "float64"]  # that models are edited in, as records tell them


@dataclass(frozen=True, slots=True)
class PatchResults:
    """What was measured of an edit: right before it, and with it in.

    Attributes:
        rows: the long form, see ``errata.results.records``.
        left_alone: ids of facts for which nothing was written.
        absent: metric -> why there is none.
    """

    rows: tuple[Row, ...]
    left_alone: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """The change of a run.

    Attributes:
        terms: the factors, in the order in which they were added; one per batch and written layer.
        facts: what was edited, in order.
        recipe: with which numbers.
        prefixes: the contexts that keys and targets were found in.
        base: the name of the model that was edited; an absolute path where it is one.
        fingerprint: of its weights before the edit.
        dtype: in which they were, such as ``float32``.
        created: when, in UTC, as ISO 8601.
        versions: of the software that made it.
        results: what was measured of the edit, as a model card takes it; None where nothing was.
    """

    terms: tuple[Term, ...]
    facts: tuple[Fact, ...]
    recipe: Recipe
    prefixes: tuple[str, ...]
    base: str
    fingerprint: str
    dtype: DtypeName
    created: str
    versions: Mapping[str, str]
    results: PatchResults | None = None

    @property
    def seed(self) -> int:
        """Of the contexts, the only thing in an edit that is drawn."""
        return self.recipe.contexts.seed

    @property
    def replaces(self) -> bool:
        """Whether it stands for everything that its run changed, and not for what was added: a pruned copy."""
        return any(isinstance(term, LowRankTerm) and term.replaces for term in self.terms)

    @property
    def stored_bytes(self) -> int:
        """Size of its tensors in a file."""
        return sum(tensor.nbytes for term in self.terms for tensor in _tensors_of(term).values())

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({term.layer for term in self.terms}))

    def of_layer(self, layer: int) -> list[Term]:
        return [term for term in self.terms if term.layer == layer]

    def norms(self) -> dict[int, float]:
        """Frobenius norm of the whole ΔW of every written layer."""
        return {layer: norm(self.of_layer(layer)) for layer in self.layers}

    def relative_norms(self, model: LanguageModel) -> dict[int, float]:
        """How large the change of every written layer is beside the weights: ‖ΔW‖ / ‖W‖, both Frobenius norms.

        Args:
            model: the model that was edited. The patch may be in it or not; W is the weight without the patch.
        """
        changes = self.norms()
        return {
            layer: change / float(model.edits.weight_without(layer, self.terms).double().norm())
            for layer, change in changes.items()
        }

    def ranks(self) -> dict[int, int]:
        """Numerical rank of the whole ΔW of every written layer."""
        return {layer: rank(self.of_layer(layer)) for layer in self.layers}

    def apply(self, model: LanguageModel, *, force: bool = False, name: str = "", before: Sequence[str] = ()) -> None:
        """Put the change into ``model``.

        Args:
            name: what the patch is called, for messages.
            before: the same of the patches that were put into the model before, which its name does not tell.
            force: also into other weights than those that it was made for. It may then change other things than it
                was made to change, and its facts may not be said.

        Raises:
            InputError: if the model's weights are not those that the patch was made for, or not of its shapes, or would
                not be finite; the model is then what it was.
        """
        if not force and (found := model.fingerprint()) != self.fingerprint:
            raise self._other_weights(model, found, name, before)
        model.check_layers(self.layers)
        for term in self.terms:
            if (shape := tuple(model.weight(term.layer).shape)) != (own := tuple(shape_of(term))):
                raise InputError(
                    f"this patch changes a {own[0]} × {own[1]} matrix at layer {term.layer}, but that of "
                    f"{model.name!r} is {shape[0]} × {shape[1]}",
                    remedy="Give the model that it was made for",
                    code="PATCH_SHAPE_MISMATCH",
                )
        with model.edits.transaction():
            model.edits.add(self.terms)
            for layer in self.layers:  # finite factors may have a product, or a sum with W, that is not
                if not bool(torch.isfinite(model.weight(layer)).all()):
                    raise InputError(
                        f"with this patch the weights of layer {layer} of {model.name!r} are not finite in "
                        f"{dtype_name(model.dtype)}",
                        remedy=f"Give the model that it was made for, in {self.dtype}",
                        code="PATCH_NOT_FINITE",
                    )

    def _other_weights(self, model: LanguageModel, found: str, name: str, before: Sequence[str]) -> InputError:
        dtype = dtype_name(model.dtype)
        there = f"{model.name!r} with {', '.join(before)} on it" if before else repr(model.name)
        if dtype != self.dtype:
            remedy = f"Load {self.base!r} in {self.dtype}, without other edits"
        elif name in before:
            remedy = f"{name} is in already: name each patch once"
        elif before:
            remedy = "Give patches in the order in which they were made, each on top of those before it"
        else:
            remedy = "Load the model that it was made for, with the edits that it was made on top of and no others"
        return InputError(
            f"{name or 'this patch'} was made for other weights (those of {self.base!r} in {self.dtype}, "
            f"{self.fingerprint[:12]}…; {there} in {dtype} has {found[:12]}…)",
            remedy=remedy,
            code="PATCH_OTHER_WEIGHTS",
        )

    def undo(self, model: LanguageModel) -> None:
        """Take the change out again: the weights are computed anew from the base, so nothing of it is left.

        Raises:
            InputError: if the patch is not in the model.
        """
        try:
            with model.edits.transaction():
                model.edits.remove(self.terms)
        except ValueError as error:
            raise InputError(
                f"this patch is not applied to {model.name!r} in this process",
                remedy="Undo on the LanguageModel that it was applied to, or load the base again",
                code="PATCH_NOT_APPLIED",
            ) from error

    def save(self, path: str | Path) -> None:
        """Write factors and record to one safetensors file, whole or not at all; see ``patch_file``."""

        write_patch(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read what ``save`` wrote.

        Raises:
            InputError: if the file is not a patch, or is damaged.
        """

        return read_patch(Path(path)).patch


def dtype_name(dtype: torch.dtype) -> DtypeName:
    """``float32`` of ``torch.float32``.

    Raises:
        InputError: for a dtype that models are not edited in.
    """
    names: dict[str, DtypeName] = {f"torch.{name}": name for name in get_args(DtypeName)}
    if str(dtype) not in names:
        raise InputError(
            f"no model is edited in {dtype}",
            remedy=f"Take one of {', '.join(get_args(DtypeName))}",
            code="DTYPE_UNSUPPORTED",
        )
    return names[str(dtype)]


def now() -> str:
    """The time as records tell it: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def software_versions() -> dict[str, str]:
    """What a record needs to be repeated."""
    return {
        "errata": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


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
            code="PATCH_UNREADABLE",
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
