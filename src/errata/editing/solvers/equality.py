"""EMMET's solver: ΔW = R (Kᵀ C⁻¹ K + εI)⁻¹ Kᵀ C⁻¹, which for ε = 0 is the least change in C's norm with ΔW·K = R.

Gupta et al. 2024, "A Unified Framework for Model Editing", arXiv:2403.14236, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
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
from errata.utils.settings import NotNegative

EPSILONS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.01)  # ε per column of W; for one layer ε is what λ is in least squares


class Equality(Solver):
    """ΔW = R (Kᵀ C⁻¹ K + εI)⁻¹ Kᵀ C⁻¹; the keys of several facts may be nearly dependent.

    C is factorised once; a batch costs a system of as many unknowns as it has facts.
    """

    kind: Literal["equality"] = "equality"
    ridge: NotNegative = Field(0.1, description="ε of a batch of several facts")
    ridge_of_one: NotNegative = Field(0.0, description="ε of a batch of one fact")

    @property
    def cost(self) -> SolverCost:
        return SolverCost(held=1, history_solved=False)

    @classmethod
    def start(cls, choices: Mapping[str, Any], columns: int) -> Candidate:
        return ridge_candidate("ε", 1.0, columns)

    @classmethod
    def candidates(cls, columns: int) -> Sequence[Candidate]:
        return ridge_candidates("ε", EPSILONS, columns)

    def prepare(self, moment: Float[Tensor, "d_in d_in"]) -> EqualityLayer:
        return EqualityLayer(moment, self)


class EqualityLayer:
    """One layer: the Cholesky factor of C. Nothing remains of earlier batches."""

    def __init__(self, moment: Float[Tensor, "d_in d_in"], settings: Equality) -> None:
        self._factor = cholesky(moment, "the second moment of the keys")
        self._settings = settings

    def solve(
        self, keys: Float[Tensor, "d_in u"], residuals: Float[Tensor, "d_out u"], bare: Tensor | None = None
    ) -> LowRank:
        whitened = torch.linalg.solve_triangular(self._factor, keys, upper=False)  # L⁻¹ K, (d_in, u)
        inner = whitened.T @ whitened  # Kᵀ C⁻¹ K, (u, u)
        inner.diagonal().add_(self._settings.ridge_of_one if keys.shape[1] == 1 else self._settings.ridge)
        directions = torch.linalg.solve_triangular(self._factor.T, whitened, upper=True)  # C⁻¹ K
        return LowRank(residuals, torch.cholesky_solve(directions.T, cholesky(inner, "KᵀC⁻¹K + ε")))

    def remember(self, keys: Float[Tensor, "d_in u"]) -> EqualityLayer:
        return self
