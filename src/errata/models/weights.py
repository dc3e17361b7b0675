"""The weights of an edited model: the original ones plus the changes in order, so that any change can be removed.

W = round(W₀ + Σ ΔW), summed in float32 (float64 for float64 models) and rounded once. Half-precision weights
are never added to; removing a change recomputes from W₀ and never subtracts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class WeightHolder(Protocol):
    """A model whose weights can be read and set; ``LanguageModel`` is one."""

    @property
    def dtype(self) -> torch.dtype: ...

    def weight(self, layer: int) -> Tensor: ...

    def set_weight(self, layer: int, value: Tensor) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class LowRankTerm:
    """A change in two factors."""

    layer: int
    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]
    # whether this is the whole change of the run in this layer (a pruned copy), not one batch's addition
    replaces: bool = False

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
class SparseTerm:
    """A change of some entries, of any rank. It may be on another device than the weights; an edit's are on the CPU."""

    layer: int
    values: Float[Tensor, "n"]  # the changes, in the order of the mask's entries, row by row
    mask: Bool[Tensor, "d_out d_in"]  # the entries that change

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
class DenseTerm:
    """A change of all entries, of any rank."""

    layer: int
    value: Float[Tensor, "d_out d_in"]

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
"""One change of one layer's W."""


@dataclass(frozen=True, slots=True, eq=False)
class Savepoint:
    """A state to roll back to: the number of changes, and their sum in some layers; None where there was none."""

    count: int
    totals: Mapping[int, Tensor | None]


@dataclass(slots=True)
class EditedWeights:
    """All changes that errata has made to one model."""

    model: WeightHolder  # the model whose weights these are
    terms: list[Term] = field(default_factory=list)  # the present changes, oldest first
    _base: dict[int, Tensor] = field(default_factory=dict)
    _total: dict[int, Tensor] = field(default_factory=dict)

    @property
    def sum_dtype(self) -> torch.dtype:
        return torch.promote_types(self.model.dtype, torch.float32)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were written to, including those whose changes have been removed."""
        return tuple(sorted(self._base))

    def base_weight(self, layer: int) -> Float[Tensor, "d_out d_in"]:
        """W before any change."""
        return self._base.get(layer, self.model.weight(layer))

    def unrounded(self, layer: int) -> Float[Tensor, "d_out d_in"]:
        """W before it is rounded to the model's dtype, in ``sum_dtype``; a copy."""
        base = self.base_weight(layer).to(self.sum_dtype)
        return base + self._total[layer] if layer in self._total else base.clone()

    def add(self, terms: Sequence[Term]) -> None:
        """Add changes after the present ones."""
        for term in terms:
            if term.layer not in self._base:
                self._base[term.layer] = self.model.weight(term.layer).clone()
                self._total[term.layer] = torch.zeros_like(self._base[term.layer], dtype=self.sum_dtype)
            term.add_to(self._total[term.layer])
        self.terms.extend(terms)
        for layer in {term.layer for term in terms}:
            self._write(layer)

    def remove(self, terms: Sequence[Term]) -> None:
        """Remove changes, wherever in the order they are; the weights are recomputed from W₀.

        Raises:
            ValueError: if one of them is not present.
        """
        if not self.holds(terms):
            raise ValueError("a change that is not in the model cannot be removed")
        leaving = {id(term) for term in terms}
        self.terms = [term for term in self.terms if id(term) not in leaving]
        for layer in sorted({term.layer for term in terms}):
            self._total[layer] = self._sum_of(layer, self.terms)
            self._write(layer)

    def holds(self, terms: Sequence[Term]) -> bool:
        """Whether all of these changes are present."""
        present = {id(term) for term in self.terms}
        return all(id(term) in present for term in terms)

    def weight_without(self, layer: int, terms: Sequence[Term]) -> Float[Tensor, "d_out d_in"]:
        """W without some of the changes, in the model's dtype."""
        leaving = {id(term) for term in terms}
        left = [term for term in self.terms if term.layer == layer and id(term) not in leaving]
        base = self.base_weight(layer)
        if not left:
            return base.clone()
        return (base.to(self.sum_dtype) + self._sum_of(layer, left)).to(base.dtype)

    @contextmanager
    def without(self, terms: Sequence[Term]) -> Iterator[None]:
        """Remove some changes while the context is open; afterwards the model is bit for bit as it was.

        Inside, no method here sees these changes. Whatever is added inside must be removed before the end.
        """
        leaving = {id(term) for term in terms}
        layers = {term.layer for term in terms}
        present = list(self.terms)
        left = [term for term in present if id(term) not in leaving]
        bases = {layer: self._base[layer] for layer in layers if layer in self._base}
        totals = {layer: self._total[layer] for layer in bases}
        weights = {layer: self.model.weight(layer).clone() for layer in layers}
        others = {layer: self.weight_without(layer, terms) for layer in layers}
        try:
            self.terms = left
            for layer in bases:
                if any(term.layer == layer for term in left):
                    self._total[layer] = self._sum_of(layer, left)
                else:  # as if never written to, which takes no memory
                    del self._base[layer], self._total[layer]
            for layer, weight in others.items():
                self.model.set_weight(layer, weight)
            yield
        finally:
            self.terms = present
            self._base |= bases
            self._total |= totals
            for layer, weight in weights.items():
                self.model.set_weight(layer, weight)

    def savepoint(self, layers: Iterable[int]) -> Savepoint:
        """The state of these layers, for ``rollback``."""
        totals = {layer: self._total[layer].clone() if layer in self._total else None for layer in layers}
        return Savepoint(len(self.terms), totals)

    def rollback(self, savepoint: Savepoint) -> None:
        """Remove everything added to the savepoint's layers since, without summing the rest again."""
        later = [term for term in self.terms[savepoint.count :] if term.layer not in savepoint.totals]
        self.terms = self.terms[: savepoint.count] + later
        for layer, total in savepoint.totals.items():
            if layer in self._total:
                self._total[layer] = torch.zeros_like(self._total[layer]) if total is None else total.clone()
                self._write(layer)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """If the block ends early (an error, Ctrl-C), the model is bit for bit as it was before it."""
        terms = list(self.terms)
        totals = {layer: total.clone() for layer, total in self._total.items()}
        weights = {layer: self.model.weight(layer).clone() for layer in totals}
        try:
            yield
        except BaseException:
            self.terms = terms
            for layer in list(self._base):
                if layer in totals:
                    self._total[layer] = totals[layer]
                    self.model.set_weight(layer, weights[layer])
                else:
                    self.model.set_weight(layer, self._base.pop(layer))
                    self._total.pop(layer, None)
            raise

    def _sum_of(self, layer: int, terms: Sequence[Term]) -> Float[Tensor, "d_out d_in"]:
        total = torch.zeros_like(self.base_weight(layer), dtype=self.sum_dtype)
        for term in terms:
            if term.layer == layer:
                term.add_to(total)
        return total

    def _write(self, layer: int) -> None:
        if any(term.layer == layer for term in self.terms):
            self.model.set_weight(layer, self._base[layer].to(self.sum_dtype) + self._total[layer])
        else:
            self.model.set_weight(layer, self._base[layer])
