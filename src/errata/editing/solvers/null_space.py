"""AlphaEdit's solver: [P(K Kᵀ + M) + L2·I] X = P K Rᵀ, ΔW = Xᵀ (Fang et al. 2025); P: null space of ordinary keys."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, StrictBool
from torch import Tensor

from errata.editing.solvers.base import Candidate, LowRank, Solver, SolverCost, cholesky
from errata.editing.solvers.experts import ExpertNullSpace
from errata.errors import EditError
from errata.utils.settings import Positive

# (share of the directions, L2 in units of an ordinary key's energy in them)
THRESHOLDS = ((0.8, 2.0), (0.8, 1.0), (0.8, 0.4), (0.6, 1.0))


class NullSpace(Solver):
    """[P(K Kᵀ + M) + L2·I] X = P K Rᵀ, ΔW = Xᵀ; without a history ``remember`` changes nothing.

    P = U₀U₀ᵀ, U₀ the eigenvectors of C whose eigenvalues lie below ``threshold``. ``threshold`` and ``l2`` are in the
    units of C; with ``relative`` in units of C's mean eigenvalue, so that one number serves layers of different scale.
    With ``shares``, ``threshold`` is the share of the directions that span P, those with the least eigenvalues, and L2
    is in units of what an ordinary key has inside of P, the sum of the eigenvalues there: a few very large eigenvalues,
    such as those of attention sinks, change neither.
    """

    kind: Literal["null_space"] = "null_space"
    threshold: Positive = Field(description="eigenvectors of C with eigenvalues below this span P")
    l2: Positive = Field(description="L2, the ridge")
    relative: StrictBool = Field(False, description="threshold and L2 are in units of C's mean eigenvalue")
    shares: StrictBool = Field(
        False, description="threshold is a share of the directions, L2 in units of an ordinary key's energy in them"
    )
    history: StrictBool = Field(description="whether keys of earlier batches (M) count")

    ridge_field = "l2"

    @property
    def cost(self) -> SolverCost:
        # At most all eigenvectors, which take about 9 d_in³.
        return SolverCost(held=1, temporary=3, prepare=9.0, products=2, history_solved=False)

    def contradictions(self, *, rounds: bool) -> Iterator[str]:
        if self.shares and self.relative:
            yield "'relative' and 'shares' are two units for the solver's threshold and L2: set one of them"
        if self.shares and self.threshold > 1:
            yield f"with 'shares' the threshold is a share of directions, at most 1, got {self.threshold:g}"

    @classmethod
    def start(cls, choices: Mapping[str, Any], columns: int) -> Candidate:
        return cls.candidates(columns)[0]

    @classmethod
    def candidates(cls, columns: int) -> Sequence[Candidate]:
        return [
            Candidate(
                {"threshold": threshold, "l2": l2, "shares": True},
                f"threshold {threshold:g} of the directions, L2 {l2:g} (in the energy of ordinary keys there)",
            )
            for threshold, l2 in THRESHOLDS
        ]

    def prepare(self, moment: Float[Tensor, "d_in d_in"]) -> NullSpaceLayer:
        bases, l2 = self._bases(moment.unsqueeze(0))
        return NullSpaceLayer(bases[0], l2=l2, history=self.history)

    def prepare_experts(self, moments: Float[Tensor, "experts f f"]) -> ExpertNullSpace:
        bases, l2 = self._bases(moments)
        return ExpertNullSpace(bases, l2=l2, history=self.history)

    def _bases(self, moments: Float[Tensor, "blocks d d"]) -> tuple[list[Tensor], float]:
        """U₀ of each of the blocks of C, (d, d_null) each, and L2 in the units of C."""
        decomposed = [torch.linalg.eigh(moment) for moment in moments]
        if self.shares:
            count = round(self.threshold * moments.shape[1])
            if not 0 < count <= moments.shape[1]:
                raise EditError(
                    f"solver.threshold = {self.threshold:g} does not select a null space from {moments.shape[1]} "
                    "directions",
                    remedy="Set solver.threshold in the recipe to a share between 0 and 1, such as 0.8",
                    code="NULL_SPACE_EMPTY",
                )
            energy = sum(float(values[:count].clamp_min(0).sum()) for values, _ in decomposed)
            return [vectors[:, :count] for _, vectors in decomposed], self.l2 * energy
        unit = float(torch.cat([values for values, _ in decomposed]).mean()) if self.relative else 1.0
        bases = [vectors[:, values < self.threshold * unit] for values, vectors in decomposed]
        if not any(basis.shape[1] for basis in bases):
            least = min(float(values[0]) for values, _ in decomposed)
            raise EditError(
                f"no eigenvalue of the keys' second moment lies below {self.threshold * unit:g} (the least is "
                f"{least:.3g}): there is no null space to write in",
                remedy="Raise solver.threshold in the recipe",
                code="NULL_SPACE_EMPTY",
            )
        return bases, self.l2 * unit


class NullSpaceLayer:
    """One layer: the basis U₀ and, in its coordinates, the keys of earlier batches (their sum once they are many)."""

    def __init__(self, basis: Float[Tensor, "d_in d_null"], *, l2: float, history: bool) -> None:
        self.basis = basis
        self._l2, self._history = l2, history
        self._stacked = basis.new_zeros(basis.shape[1], 0)  # Q of earlier batches, (d_null, n)
        self._folded: Tensor | None = None  # Q Qᵀ of still earlier ones, (d_null, d_null)

    def solve(
        self, keys: Float[Tensor, "d_in u"], residuals: Float[Tensor, "d_out u"], bare: Tensor | None = None
    ) -> LowRank:
        # X = U₀ (Q Qᵀ + L2)⁻¹ Q_batch Rᵀ with Q = U₀ᵀ[earlier keys, keys]: all of it happens inside the null space.
        projected = self.basis.T @ keys  # (d_null, u)
        stacked = torch.cat([self._stacked, projected], dim=1)  # (d_null, n)
        if self._folded is None and stacked.shape[1] <= stacked.shape[0]:
            # (Q Qᵀ + L2)⁻¹ Q = Q (QᵀQ + L2)⁻¹: an n × n system, of which the batch's columns are wanted.
            inner = stacked.T @ stacked
            inner.diagonal().add_(self._l2)
            count = keys.shape[1]
            selector = torch.eye(len(inner), dtype=keys.dtype, device=keys.device)[:, -count:]
            coordinates = stacked @ torch.cholesky_solve(selector, cholesky(inner, "QᵀQ + L2"))
        else:
            outer = stacked @ stacked.T if self._folded is None else self._folded + stacked @ stacked.T
            outer.diagonal().add_(self._l2)
            coordinates = torch.cholesky_solve(projected, cholesky(outer, "QQᵀ + L2"))
        return LowRank(residuals, (self.basis @ coordinates).T)

    def remember(self, keys: Float[Tensor, "d_in u"]) -> NullSpaceLayer:
        if not self._history:
            return self
        grown = copy.copy(self)
        grown._stacked = torch.cat([self._stacked, self.basis.T @ keys], dim=1)
        if grown._stacked.shape[1] > grown._stacked.shape[0]:
            sum_of_outer = grown._stacked @ grown._stacked.T
            grown._folded = sum_of_outer if self._folded is None else self._folded + sum_of_outer
            grown._stacked = grown._stacked[:, :0]
        return grown
