"""MEMIT's solver: ΔW = R Kᵀ (λC + M + K Kᵀ)⁻¹ (Meng et al. 2023, eq. 14), with M the keys of earlier batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, StrictBool
from torch import Tensor

from errata.editing.solvers.base import (
    Candidate,
    LowRank,
    Solver,
    SolverCost,
    cholesky,
    ridge_candidate,
    ridge_candidates,
)
from errata.editing.solvers.experts import ExpertLeastSquares
from errata.utils.settings import Positive

RIDGES = (2.0, 1.0, 0.5, 0.2, 0.1)  # λ per column of W: as published 1 (Llama-3-8B, GPT-J) to 3 (GPT2-XL)


class LeastSquares(Solver):
    """ΔW = R Kᵀ (λC + M + K Kᵀ)⁻¹, M only with history; without it ``remember`` changes nothing.

    λC is factorised once; a batch costs a system of as many unknowns as it has facts (Woodbury).
    """

    kind: Literal["least_squares"] = "least_squares"
    ridge: Positive = Field(description="λ, the weight of the second moment C")
    history: StrictBool = Field(description="whether keys of earlier batches (M) count")

    ridge_field = "ridge"

    @property
    def cost(self) -> SolverCost:
        return SolverCost(held=2)  # λC and its factor

    @classmethod
    def start(cls, choices: Mapping[str, Any], columns: int) -> Candidate:
        return ridge_candidate("λ", 1.0, columns)

    @classmethod
    def candidates(cls, columns: int) -> Sequence[Candidate]:
        return ridge_candidates("λ", RIDGES, columns)

    def prepare(self, moment: Float[Tensor, "d_in d_in"]) -> LeastSquaresLayer:
        return LeastSquaresLayer(self.ridge * moment, history=self.history)

    def prepare_experts(self, moments: Float[Tensor, "experts f f"]) -> ExpertLeastSquares:
        return ExpertLeastSquares(moments, ridge=self.ridge, history=self.history)


class LeastSquaresLayer:
    """One layer: a Cholesky factor of A₀ = λC + M (M as folded in so far) and the keys not yet folded in."""

    def __init__(self, matrix: Float[Tensor, "d_in d_in"], *, history: bool) -> None:
        self._matrix = matrix
        self._factor = cholesky(matrix, "the second moment of the keys")
        self._history = history
        self._stacked = matrix.new_zeros(matrix.shape[0], 0)

    def solve(
        self, keys: Float[Tensor, "d_in u"], residuals: Float[Tensor, "d_out u"], bare: Tensor | None = None
    ) -> LowRank:
        # Gᵀ(A₀ + G Gᵀ)⁻¹ = (I + Gᵀ A₀⁻¹ G)⁻¹ Gᵀ A₀⁻¹ for G = [earlier keys, keys]; the batch's are the last u rows.
        stacked = torch.cat([self._stacked, keys], dim=1)  # (d_in, n)
        whitened = torch.linalg.solve_triangular(self._factor, stacked, upper=False)  # L⁻¹ G
        inner = whitened.T @ whitened  # (n, n)
        inner.diagonal().add_(1.0)
        count = keys.shape[1]
        selector = torch.eye(len(inner), dtype=keys.dtype, device=keys.device)[:, -count:]
        rows = torch.cholesky_solve(selector, cholesky(inner, "I + KᵀA⁻¹K")).T  # (u, n): the last u rows of the inverse
        right = torch.linalg.solve_triangular(self._factor.T, whitened @ rows.T, upper=True).T
        return LowRank(residuals, right)

    def remember(self, keys: Float[Tensor, "d_in u"]) -> LeastSquaresLayer:
        if not self._history:
            return self
        grown = copy.copy(self)
        grown._stacked = torch.cat([self._stacked, keys], dim=1)
        # From here on the stacked system would cost more than a new factor.
        if grown._stacked.shape[1] >= self._matrix.shape[0]:
            grown._matrix = self._matrix + grown._stacked @ grown._stacked.T
            grown._factor = cholesky(grown._matrix, "λC + M")
            grown._stacked = grown._stacked[:, :0]
        return grown
