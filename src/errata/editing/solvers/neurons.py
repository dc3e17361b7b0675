"""NSE's solver: least squares with history on the neurons that matter (Jiang et al. 2024, arXiv:2410.04045).

A neuron is a column of W, a row of K. Those with the largest Σ over the facts of |k| are written, in descending order
while their sum is at most ``share`` of the whole; λC and M are taken on them, [I, I]. Other columns stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, StrictBool, StrictFloat
from torch import Tensor

from errata.editing.solvers.base import Candidate, LayerSolver, LowRank, Solver, SolverCost, cholesky
from errata.editing.solvers.least_squares import LeastSquares
from errata.utils.settings import Positive


class Neurons(Solver):
    """Least squares on the columns of W with the largest keys; without a history ``remember`` changes nothing.

    Which neurons count depends on the batch, so there is nothing to factorise beforehand.
    """

    kind: Literal["neurons"] = "neurons"
    ridge: Positive = Field(description="λ, the weight of the second moment C")
    share: StrictFloat = Field(gt=0, le=1, description="p: the chosen columns make up at most this part of all keys")
    history: StrictBool = Field(description="whether keys of earlier batches (M) count")

    @property
    def cost(self) -> SolverCost:
        return SolverCost(held=2, refactors=self.share < 1)

    @classmethod
    def start(cls, choices: Mapping[str, Any], columns: int) -> Candidate:
        least_squares = LeastSquares.start(choices, columns)
        return Candidate({**least_squares.values, "share": 1.0}, least_squares.description)

    @classmethod
    def candidates(cls, columns: int) -> Sequence[Candidate]:
        return LeastSquares.candidates(columns)

    @property
    def unsearched(self) -> Mapping[str, str]:
        return {"share": f"{self.share:g}, all neurons"}

    def prepare(self, moment: Float[Tensor, "d_in d_in"]) -> LayerSolver:
        if self.share == 1:  # all neurons: λC is factorised once
            return LeastSquares(ridge=self.ridge, history=self.history).prepare(moment)
        return NeuronsLayer(self.ridge * moment, self)


class NeuronsLayer:
    """One layer: λC + M."""

    def __init__(self, matrix: Float[Tensor, "d_in d_in"], settings: Neurons) -> None:
        self._matrix, self._settings = matrix, settings

    def solve(
        self, keys: Float[Tensor, "d_in u"], residuals: Float[Tensor, "d_out u"], bare: Tensor | None = None
    ) -> LowRank:
        chosen = chosen_neurons(keys, self._settings.share)
        some = keys[chosen]  # K_I, (n, u)
        matrix = self._matrix[chosen][:, chosen] + some @ some.T
        right = torch.zeros_like(keys.T)  # (u, d_in)
        right[:, chosen] = torch.cholesky_solve(some, cholesky(matrix, "λC + M + KKᵀ on the chosen neurons")).T
        return LowRank(residuals, right)

    def remember(self, keys: Float[Tensor, "d_in u"]) -> NeuronsLayer:
        return NeuronsLayer(self._matrix + keys @ keys.T, self._settings) if self._settings.history else self


def chosen_neurons(keys: Float[Tensor, "d_in u"], share: float) -> Int[Tensor, "n"]:
    """Ascending indices of the neurons with the largest Σ|k|, which add up to at most ``share`` of all; never none."""
    weight = keys.abs().sum(1)
    order = weight.argsort(descending=True, stable=True)
    # A share of 1 means all, whatever rounding does to the last sum.
    within = int((weight[order].cumsum(0) <= share * weight.sum()).sum()) if share < 1 else len(weight)
    return order[: max(within, 1)].sort().values
