"""The weights of an edited model: the original ones plus the changes in order, so that any change can be removed.

W = round(W₀ + Σ ΔW), summed in float32 (float64 for float64 models) and rounded once. Half-precision weights
are never added to; removing a change recomputes from W₀ and never subtracts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ModuleName = Literal["down_proj", "q_proj", "v_proj"]
"""A matrix of a block: W, or attention's projection of queries or values."""


class Place(NamedTuple):
    """A matrix of the model: W of a block, unless a module is named; of one expert in a mixture of experts."""

    layer: int
    module: ModuleName = "down_proj"
    expert: int | None = None

    @property
    def title(self) -> str:
        """For messages."""
        module = "" if self.module == "down_proj" else f", {self.module}"
        return f"layer {self.layer}" + module + ("" if self.expert is None else f", expert {self.expert}")


@runtime_checkable
class WeightHolder(Protocol):
    """A model whose weights can be read and set; ``LanguageModel`` is one."""

    @property
    def dtype(self) -> torch.dtype: ...

    def weight(self, layer: int, module: ModuleName = "down_proj", expert: int | None = None) -> Tensor: ...

    def set_weight(
        self, layer: int, value: Tensor, module: ModuleName = "down_proj", expert: int | None = None
    ) -> None: ...


class _AtPlace:
    __slots__ = ()
    layer: int
    module: ModuleName
    expert: int | None

    @property
    def place(self) -> Place:
        """The matrix that it changes."""
        return Place(self.layer, self.module, self.expert)


@dataclass(frozen=True, slots=True, eq=False)
class LowRankTerm(_AtPlace):
    """A change in two factors."""

    layer: int
    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]
    # whether this is the whole change of the run in this layer (a pruned copy), not one batch's addition
    replaces: bool = False
    module: ModuleName = "down_proj"
    expert: int | None = None

    kind: ClassVar[Literal["low_rank"]] = "low_rank"

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the matrix that it changes."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def is_finite(self) -> bool:
        return bool(self.left.isfinite().all()) and bool(self.right.isfinite().all())

    def add_to(self, total: Float[Tensor, "d_out d_in"]) -> None:
        """Add the change to ``total``, in place and in its dtype."""
        # The device first: another device may lack the dtype of the total.
        left, right = (factor.to(total.device).to(total.dtype) for factor in (self.left, self.right))
        total.addmm_(left, right)


@dataclass(frozen=True, slots=True, eq=False)
class SparseTerm(_AtPlace):
    """A change of some entries, of any rank. It may be on another device than the weights; an edit's are on the CPU."""

    layer: int
    values: Float[Tensor, "n"]  # the changes, in the order of the mask's entries, row by row
    mask: Bool[Tensor, "d_out d_in"]  # the entries that change
    module: ModuleName = "down_proj"
    expert: int | None = None

    kind: ClassVar[Literal["sparse"]] = "sparse"

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the matrix that it changes."""
        return self.mask.shape[0], self.mask.shape[1]

    @property
    def is_finite(self) -> bool:
        return bool(self.values.isfinite().all())

    def add_to(self, total: Float[Tensor, "d_out d_in"]) -> None:
        """Add the change to ``total``, in place and in its dtype."""
        total[self.mask.to(total.device)] += self.values.to(total.device).to(total.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class DenseTerm(_AtPlace):
    """A change of all entries, of any rank."""

    layer: int
    value: Float[Tensor, "d_out d_in"]
    module: ModuleName = "down_proj"
    expert: int | None = None

    kind: ClassVar[Literal["dense"]] = "dense"

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the matrix that it changes."""
        return self.value.shape[0], self.value.shape[1]

    @property
    def is_finite(self) -> bool:
        return bool(self.value.isfinite().all())

    def add_to(self, total: Float[Tensor, "d_out d_in"]) -> None:
        """Add the change to ``total``, in place and in its dtype."""
        total += self.value.to(total.device).to(total.dtype)


Term: TypeAlias = LowRankTerm | SparseTerm | DenseTerm
"""One change of one matrix, which is W of a layer unless it names a module."""


@dataclass(frozen=True, slots=True, eq=False)
class Savepoint:
    """A state to roll back to: the number of changes, and their sum in some places; None where there was none."""

    count: int
    totals: Mapping[Place, Tensor | None]


@dataclass(slots=True)
class EditedWeights:
    """All changes that errata has made to one model."""

    model: WeightHolder  # the model whose weights these are
    terms: list[Term] = field(default_factory=list)  # the present changes, oldest first
    _base: dict[Place, Tensor] = field(default_factory=dict)
    _total: dict[Place, Tensor] = field(default_factory=dict)

    @property
    def sum_dtype(self) -> torch.dtype:
        return torch.promote_types(self.model.dtype, torch.float32)

    @property
    def places(self) -> tuple[Place, ...]:
        """The matrices that were written to, including those whose changes have been removed."""
        return tuple(sorted(self._base))

    def base_weight(
        self, layer: int, module: ModuleName = "down_proj", expert: int | None = None
    ) -> Float[Tensor, "d_out d_in"]:
        """W before any change."""
        place = Place(layer, module, expert)
        return self._base[place] if place in self._base else self.model.weight(*place)

    def unrounded(
        self, layer: int, module: ModuleName = "down_proj", expert: int | None = None
    ) -> Float[Tensor, "d_out d_in"]:
        """W before it is rounded to the model's dtype, in ``sum_dtype``; a copy."""
        place = Place(layer, module, expert)
        base = self.base_weight(*place).to(self.sum_dtype)
        return base + self._total[place] if place in self._total else base.clone()

    def add(self, terms: Sequence[Term]) -> None:
        """Add changes after the present ones."""
        for term in terms:
            if (place := term.place) not in self._base:
                self._base[place] = self.model.weight(*place).clone()
                self._total[place] = torch.zeros_like(self._base[place], dtype=self.sum_dtype)
            term.add_to(self._total[place])
        self.terms.extend(terms)
        for place in {term.place for term in terms}:
            self._write(place)

    def remove(self, terms: Sequence[Term]) -> None:
        """Remove changes, wherever in the order they are; the weights are recomputed from W₀.

        Raises:
            ValueError: if one of them is not present.
        """
        if not self.holds(terms):
            raise ValueError("a change that is not in the model cannot be removed")
        leaving = {id(term) for term in terms}
        self.terms = [term for term in self.terms if id(term) not in leaving]
        for place in sorted({term.place for term in terms}):
            self._total[place] = self._sum_of(place, self.terms)
            self._write(place)

    def holds(self, terms: Sequence[Term]) -> bool:
        """Whether all of these changes are present."""
        present = {id(term) for term in self.terms}
        return all(id(term) in present for term in terms)

    def weight_without(
        self, layer: int, terms: Sequence[Term], module: ModuleName = "down_proj", expert: int | None = None
    ) -> Float[Tensor, "d_out d_in"]:
        """W without some of the changes, in the model's dtype."""
        place, leaving = Place(layer, module, expert), {id(term) for term in terms}
        left = [term for term in self.terms if term.place == place and id(term) not in leaving]
        base = self.base_weight(*place)
        if not left:
            return base.clone()
        return (base.to(self.sum_dtype) + self._sum_of(place, left)).to(base.dtype)

    @contextmanager
    def without(self, terms: Sequence[Term]) -> Iterator[None]:
        """Remove some changes while the context is open; afterwards the model is bit for bit as it was.

        Inside, no method here sees these changes. Whatever is added inside must be removed before the end.
        """
        leaving = {id(term) for term in terms}
        places = {term.place for term in terms}
        present = list(self.terms)
        left = [term for term in present if id(term) not in leaving]
        bases = {place: self._base[place] for place in places if place in self._base}
        totals = {place: self._total[place] for place in bases}
        weights = {place: self.model.weight(*place).clone() for place in places}
        others = {place: self.weight_without(place.layer, terms, place.module, place.expert) for place in places}
        try:
            self.terms = left
            for place in bases:
                if any(term.place == place for term in left):
                    self._total[place] = self._sum_of(place, left)
                else:  # as if never written to, which takes no memory
                    del self._base[place], self._total[place]
            for place, weight in others.items():
                self._set(place, weight)
            yield
        finally:
            self.terms = present
            self._base |= bases
            self._total |= totals
            for place, weight in weights.items():
                self._set(place, weight)

    def savepoint(self, places: Iterable[int | Place]) -> Savepoint:
        """The state of some matrices, or of W of some layers, for ``rollback``."""
        found = [Place(place) if isinstance(place, int) else place for place in places]
        totals = {place: self._total[place].clone() if place in self._total else None for place in found}
        return Savepoint(len(self.terms), totals)

    def rollback(self, savepoint: Savepoint) -> None:
        """Remove everything added to the savepoint's places since, without summing the rest again."""
        later = [term for term in self.terms[savepoint.count :] if term.place not in savepoint.totals]
        self.terms = self.terms[: savepoint.count] + later
        for place, total in savepoint.totals.items():
            if place in self._total:
                self._total[place] = torch.zeros_like(self._total[place]) if total is None else total.clone()
                self._write(place)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """If the block ends early (an error, Ctrl-C), the model is bit for bit as it was before it."""
        terms = list(self.terms)
        totals = {place: total.clone() for place, total in self._total.items()}
        weights = {place: self.model.weight(*place).clone() for place in totals}
        try:
            yield
        except BaseException:
            self.terms = terms
            for place in list(self._base):
                if place in totals:
                    self._total[place] = totals[place]
                    self._set(place, weights[place])
                else:
                    self._set(place, self._base.pop(place))
                    self._total.pop(place, None)
            raise

    def _sum_of(self, place: Place, terms: Sequence[Term]) -> Float[Tensor, "d_out d_in"]:
        total = torch.zeros_like(self.base_weight(*place), dtype=self.sum_dtype)
        for term in terms:
            if term.place == place:
                term.add_to(total)
        return total

    def _write(self, place: Place) -> None:
        if any(term.place == place for term in self.terms):
            self._set(place, self._base[place].to(self.sum_dtype) + self._total[place])
        else:
            self._set(place, self._base[place])

    def _set(self, place: Place, value: Tensor) -> None:
        self.model.set_weight(place.layer, value, place.module, place.expert)
