"""Patch: the change of an edit, as small factors where it has them, with its facts and its recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from errata.editing.recipe import Recipe
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.facts.files import facts_from_records
from errata.models.language_model import LanguageModel
from errata.models.weights import DenseTerm, LowRankTerm, ModuleName, Place, SparseTerm, Term
from errata.patches.factors import norm, rank
from errata.results.records import is_row
from errata.utils.files import new_file, reason_of
from errata.utils.settings import Settings
from errata.utils.tensors import checksum, read_checked, to_float64
from errata.utils.text import dtype_name
from errata.utils.yaml import Dumper

DtypeName = Literal["float32", "bfloat16", "float16", "float64"]  # dtypes that models can be edited in


class EditorRecipe(Settings):
    """Everything that decides an edit by an editor of the registry, given model and facts."""

    method: str = Field(description="the editor's name in the registry")
    seed: StrictInt = Field(0, description="seed of everything random")
    batch_size: StrictInt = Field(ge=1, description="facts that are edited together")
    settings: Mapping[str, Any] = Field(description="the editor's settings, as JSON")

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the texts that it refers to: none."""
        return ()

    def without_directories(self) -> EditorRecipe:
        """The recipe with only the last parts of paths, for publication."""
        return self

    def to_yaml(self) -> str:
        return yaml.dump(self.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


AnyRecipe: TypeAlias = Recipe | EditorRecipe
"""The settings of an edit: of a locate-then-edit method, or of an editor with settings of its own."""


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PatchResults:
    """The measurements of an edit, right before and after it."""

    rows: tuple[Any, ...]  # the long form, see ``errata.results.records.Row``
    left_alone: tuple[str, ...] = ()  # ids of facts for which nothing was written
    absent: dict[str, str] = field(default_factory=dict)  # metric -> why it was not measured

    @field_validator("rows")
    @classmethod
    def _check_rows(cls, rows: tuple[Any, ...]) -> tuple[Any, ...]:
        if not all(is_row(row) for row in rows):
            raise ValueError("its results have a row that is not one of the long form")
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """The change of a run.

    Attributes:
        terms: the changes, in the order in which they were added; one per batch and written layer.
        facts: the edited facts, in order.
        recipe: the settings of the edit.
        prefixes: the contexts of keys and targets; none for editors without.
        base: the name of the model that was edited; a path is absolute.
        fingerprint: SHA-256 of its weights before the edit.
        dtype: of the weights.
        created: the time in UTC, ISO 8601.
        versions: of the software that made it.
        results: the measurements of the edit, for a model card; None if nothing was measured.
        processes: number of processes that shared the work.
        state: what its editor needs to continue after it, on the CPU; empty for most.
    """

    terms: tuple[Term, ...]
    facts: tuple[Fact, ...]
    recipe: AnyRecipe
    prefixes: tuple[str, ...]
    base: str
    fingerprint: str
    dtype: DtypeName
    created: str
    versions: Mapping[str, str]
    results: PatchResults | None = None
    processes: int = 1
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Name of the editing method."""
        return self.recipe.method

    @property
    def seed(self) -> int:
        """Seed of everything random in the edit."""
        return self.recipe.seed

    @property
    def replaces(self) -> bool:
        """Whether it is the total change of a run (a pruned copy) rather than an addition."""
        return any(isinstance(term, LowRankTerm) and term.replaces for term in self.terms)

    @property
    def stored_bytes(self) -> int:
        """Size of its tensors in a file."""
        terms = sum(tensor.nbytes for term in self.terms for tensor in _tensors_of(term).values())
        return terms + sum(tensor.nbytes for tensor in self.state.values())

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({term.layer for term in self.terms}))

    @property
    def places(self) -> tuple[Place, ...]:
        """The written matrices: W of some layers, for most editors."""
        return tuple(sorted({term.place for term in self.terms}))

    def of_place(self, place: Place) -> list[Term]:
        return [term for term in self.terms if term.place == place]

    def norms(self) -> dict[int, float]:
        """Frobenius norm of the whole ΔW of every written layer, all its written matrices together."""
        return self._together(lambda place: norm(self.of_place(place)))

    def relative_norms(self, model: LanguageModel) -> dict[int, float]:
        """‖ΔW‖ / ‖W‖ of every written layer, both Frobenius norms, over all its written matrices.

        Args:
            model: the model that was edited, with the patch or without it; W is the weight without the patch.
        """
        before = self._together(
            lambda place: float(
                to_float64(model.edits.weight_without(place.layer, self.terms, place.module, place.expert)).norm()
            )
        )
        return {layer: change / before[layer] for layer, change in self.norms().items()}

    def _together(self, size: Callable[[Place], float]) -> dict[int, float]:
        """Layer -> the norm of its written matrices side by side, by the norm of each."""
        return {
            layer: math.hypot(*(size(place) for place in self.places if place.layer == layer)) for layer in self.layers
        }

    def ranks(self) -> dict[int, int]:
        """Numerical rank of the whole ΔW of every written layer; the largest, if several matrices are written."""
        return {
            layer: max(rank(self.of_place(place)) for place in self.places if place.layer == layer)
            for layer in self.layers
        }

    def apply(self, model: LanguageModel, *, force: bool = False, name: str = "", before: Sequence[str] = ()) -> None:
        """Add the change to ``model``.

        Args:
            name: the patch's name in messages.
            before: names of the patches that were applied before.
            force: also to other weights than those that it was made for. It may then change other things than it was
                made to change, and the edited facts may not be recalled.

        Raises:
            InputError: if the patch was made for other weights or shapes, or the result would not be finite; the model
                is then unchanged.
            UnsupportedModelError: if the model has no such matrix; it is unchanged too.
        """
        if not force and (found := model.fingerprint()) != self.fingerprint:
            raise self._other_weights(model, found, name, before)
        model.check_layers(self.layers)
        for term in self.terms:
            if (shape := tuple(model.weight(*term.place).shape)) != (own := term.shape):
                what = (
                    f"this patch changes a {own[0]} × {own[1]} matrix at {term.place.title}, but that of "
                    f"{model.name!r} is {shape[0]} × {shape[1]}"
                )
                raise InputError(what, remedy="Give the model that it was made for", code="PATCH_SHAPE_MISMATCH")
        with model.edits.transaction():
            model.edits.add(self.terms)
            for place in self.places:  # finite factors may have a product, or a sum with W, that is not
                if not bool(torch.isfinite(model.weight(*place)).all()):
                    raise InputError(
                        f"with this patch the weights of {place.title} of {model.name!r} are not finite in "
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
            remedy = f"{name} is applied already: give each patch once"
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
        """Remove the change; the weights are recomputed from the base, so nothing of it remains.

        Raises:
            InputError: if the patch is not applied to the model.
        """
        try:
            with model.edits.transaction():
                model.edits.remove(self.terms)
        except ValueError as error:
            what = f"this patch is not applied to {model.name!r} in this process"
            remedy = "Undo on the LanguageModel that it was applied to, or load the base again"
            raise InputError(what, remedy=remedy, code="PATCH_NOT_APPLIED") from error

    def save(self, path: str | Path) -> None:
        """Write factors and record to one safetensors file, completely or not at all."""
        write_patch(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read what ``save`` wrote.

        Raises:
            InputError: if the file is not a patch, or is damaged.
        """
        return read_patch(Path(path)).patch


def supported_dtype_name(dtype: torch.dtype) -> DtypeName:
    """``float32`` of ``torch.float32``.

    Raises:
        InputError: for a dtype that models cannot be edited in.
    """
    names: dict[str, DtypeName] = {f"torch.{name}": name for name in get_args(DtypeName)}
    if str(dtype) not in names:
        remedy = f"Use one of {', '.join(names.values())}"
        raise InputError(f"models cannot be edited in {dtype}", remedy=remedy, code="DTYPE_UNSUPPORTED")
    return names[str(dtype)]


FORMAT = "errata-patch-3"
_STORED_AS_IS = ("recipe", "prefixes", "base", "fingerprint", "dtype", "created", "versions", "results", "processes")
_TENSORS = {"low_rank": ("left", "right"), "sparse": ("values", "mask"), "dense": ("value",)}
_STATE = "state."  # before the names of tensors of a patch's state
_NUMBERS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class _TermRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    layer: int = Field(ge=0)
    kind: Literal["low_rank", "sparse", "dense"]
    replaces: bool = False
    rows: int = Field(0, ge=0)
    columns: int = Field(0, ge=0)
    # Left out for W, so that such files are those of earlier versions.
    module: ModuleName = Field("down_proj", exclude_if=lambda module: module == "down_proj")
    expert: int | None = Field(None, ge=0, exclude_if=lambda expert: expert is None)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    terms: list[_TermRecord]
    facts: list[dict[str, Any]]
    recipe: AnyRecipe
    prefixes: tuple[str, ...]
    base: str
    fingerprint: str
    dtype: DtypeName
    created: str
    versions: dict[str, str]
    results: PatchResults | None = None
    processes: int = Field(1, ge=1, exclude_if=lambda count: count == 1)


@dataclass(frozen=True, slots=True)
class PatchFile:
    """The content of a file."""

    patch: Patch
    # layer -> (d_in, u) float64, the keys whose values later batches of the run preserve; only in the files of a run's
    # batches
    keys: Mapping[int, Tensor] = field(default_factory=dict)


def write_patch(patch: Patch, path: Path, *, keys: Mapping[int, Tensor] | None = None) -> None:
    """Write a patch completely or not at all, replacing an older one.

    Raises:
        OutputError: if it cannot be written; an older file remains.
    """
    tensors: dict[str, Tensor] = {}
    for index, term in enumerate(patch.terms):
        tensors |= {f"{index}.{name}": tensor for name, tensor in _tensors_of(term).items()}
    tensors |= {f"keys.{layer}": key.contiguous().cpu() for layer, key in (keys or {}).items()}
    tensors |= {f"{_STATE}{name}": tensor.contiguous().cpu() for name, tensor in patch.state.items()}
    terms = [_record_of(term) for term in patch.terms]
    facts = [fact.to_record() for fact in patch.facts]
    fields: dict[str, Any] = {name: getattr(patch, name) for name in _STORED_AS_IS}
    record = _Record(terms=terms, facts=facts, **fields).model_dump_json()
    metadata = {"format": FORMAT, "record": record, "sha256": checksum(record, tensors)}
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_patch(path: Path) -> PatchFile:
    """Read what ``write_patch`` wrote.

    Raises:
        InputError: if the file is not a patch, or is damaged.
    """
    try:
        header, tensors = read_checked(path, FORMAT, "record")
        record = _Record.model_validate_json(header)
        terms = tuple(
            _term_from(entry, {name: tensors.pop(f"{index}.{name}") for name in _TENSORS[entry.kind]})
            for index, entry in enumerate(record.terms)
        )
        _check_shapes(terms)
        names = [name for name in tensors if name.startswith(_STATE)]
        state = {name.removeprefix(_STATE): _checked(tensors.pop(name), None, name) for name in names}
        keys = {int(name.removeprefix("keys.")): _checked(tensor, 2, name) for name, tensor in tensors.items()}
        facts = facts_from_records(record.facts, source=str(path)).facts
        fields: dict[str, Any] = {name: getattr(record, name) for name in _STORED_AS_IS}
        patch = Patch(terms=terms, facts=facts, state=state, **fields)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        what = f"{path} is not a readable patch: {reason_of(error)}"
        remedy = "Give a complete file written by `errata edit`"
        raise InputError(what, remedy=remedy, code="PATCH_UNREADABLE") from error
    return PatchFile(patch, keys)


def _tensors_of(term: Term) -> dict[str, Tensor]:
    if isinstance(term, LowRankTerm):
        return {"left": term.left.contiguous().cpu(), "right": term.right.contiguous().cpu()}
    if isinstance(term, DenseTerm):
        return {"value": term.value.contiguous().cpu()}
    bits = numpy.packbits(term.mask.cpu().numpy().ravel())
    return {"values": term.values.contiguous().cpu(), "mask": torch.from_numpy(bits)}


def _record_of(term: Term) -> _TermRecord:
    if isinstance(term, LowRankTerm):
        return _TermRecord(
            layer=term.layer, kind=term.kind, replaces=term.replaces, module=term.module, expert=term.expert
        )
    if isinstance(term, DenseTerm):
        return _TermRecord(layer=term.layer, kind=term.kind, module=term.module, expert=term.expert)
    rows, columns = term.shape
    return _TermRecord(
        layer=term.layer, kind=term.kind, rows=rows, columns=columns, module=term.module, expert=term.expert
    )


def _term_from(record: _TermRecord, tensors: Mapping[str, Tensor]) -> Term:
    """The inverse of the two above.

    Raises:
        ValueError: if they do not match, or a value is not finite.
    """
    if record.kind == "low_rank":
        left, right = (_checked(tensors[name], 2, f"{name} of layer {record.layer}") for name in ("left", "right"))
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"its factors at layer {record.layer} are {tuple(left.shape)} and {tuple(right.shape)}")
        return LowRankTerm(
            record.layer, left, right, replaces=record.replaces, module=record.module, expert=record.expert
        )
    if record.kind == "dense":
        value = _checked(tensors["value"], 2, f"value of layer {record.layer}")
        return DenseTerm(record.layer, value, module=record.module, expert=record.expert)
    values, bits = _checked(tensors["values"], 1, f"values of layer {record.layer}"), tensors["mask"]
    count = record.rows * record.columns
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):  # before a tensor of that size is made
        raise ValueError(f"its mask of layer {record.layer} is not {record.rows} × {record.columns}")
    flat = numpy.unpackbits(bits.numpy(), count=count).astype(bool)
    if int(flat.sum()) != len(values):
        raise ValueError("its numbers of values and of mask entries differ")
    mask = torch.from_numpy(flat).view(record.rows, record.columns)
    return SparseTerm(record.layer, values, mask, module=record.module, expert=record.expert)


def _checked(tensor: Tensor, dimensions: int | None, name: str) -> Tensor:
    """The tensor, if it has finite numbers and this many dimensions, or any number for None."""
    fits = dimensions is None or tensor.dim() == dimensions
    if tensor.dtype not in _NUMBERS or not fits or not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"its {name} is {tensor.dtype}, {tuple(tensor.shape)}, or has a value that is not finite")
    return tensor


def _check_shapes(terms: Sequence[Term]) -> None:
    shapes: dict[Place, tuple[int, int]] = {}
    for term in terms:
        if term.shape != shapes.setdefault(term.place, term.shape):
            raise ValueError(f"its changes of {term.place.title} have different shapes")
