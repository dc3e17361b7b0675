"""Least squares and the null space for mixtures of experts: one u × u system for all experts of a layer.

The gated keys of the experts, side by side, are one key κ = [g_1 k_1; …; g_E k_E] of the matrix [W_1 … W_E] (see
``errata.models.experts``). With C block-diagonal, one block an expert, ΔW = R κᵀ (λC + κκᵀ)⁻¹ needs the factors of the
blocks only, and all experts share one system of as many unknowns as there are facts:

    Δ_e = Y (g_e K_e)ᵀ A_e⁻¹,   Y = R (I + Σ_e (g_e K_e)ᵀ A_e⁻¹ (g_e K_e))⁻¹.

This is the exact solution of the problem that MoEEdit (ICLR 2026) approaches by descent over the experts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from errata.editing.solvers.base import LowRank, cholesky

# An expert that few tokens of the statistics chose has a singular C_e. Each direction costs at least this share of what
# a direction costs on average over all experts.
LEAST_SHARE: Final = 1e-2


@dataclass(frozen=True, slots=True)
class ExpertChange(LowRank):
    """The change of all experts side by side.

    Attributes:
        by_expert: expert -> the change of its columns, in as few factors as the expert has facts; only of experts that
            some fact uses.
    """

    by_expert: Mapping[int, LowRank]

    @property
    def parts(self) -> Mapping[int | None, LowRank]:
        return {expert: change for expert, change in self.by_expert.items()}  # noqa: C416  (None is a key too)


class ExpertLeastSquares:
    """One layer: A_e = λC_e of each expert as a Cholesky factor, and the keys of earlier batches.

    Args:
        moments: C_e, (experts, f, f).
        ridge: λ.
    """

    def __init__(self, moments: Float[Tensor, "experts f f"], *, ridge: float, history: bool) -> None:
        floor = LEAST_SHARE * float(moments.diagonal(dim1=1, dim2=2).mean())
        eye = torch.eye(moments.shape[1], dtype=moments.dtype, device=moments.device)
        self._factors = torch.stack(
            [cholesky(ridge * (moment + floor * eye), "the second moment of an expert's keys") for moment in moments]
        )
        self._history = history
        self._stacked = moments.new_zeros(moments.shape[0] * moments.shape[1], 0)

    def solve(
        self, keys: Float[Tensor, "d_in u"], residuals: Float[Tensor, "d_out u"], bare: Tensor | None = None
    ) -> ExpertChange:
        stacked = torch.cat([self._stacked, keys], dim=1)  # G = [earlier keys, keys], (d_in, n)
        blocks = stacked.view(len(self._factors), -1, stacked.shape[1])
        whitened = torch.linalg.solve_triangular(self._factors, blocks, upper=False)  # L_e⁻¹ G_e
        inner = torch.einsum("efn,efm->nm", whitened, whitened)
        inner.diagonal().add_(1.0)
        rows = _last_rows(inner, keys.shape[1], "I + KᵀA⁻¹K")
        solved = torch.linalg.solve_triangular(self._factors.mT, whitened, upper=True)  # A_e⁻¹ G_e
        return _change(residuals, rows, blocks, solved)

    def remember(self, keys: Float[Tensor, "d_in u"]) -> ExpertLeastSquares:
        if not self._history:
            return self
        grown = copy.copy(self)
        grown._stacked = torch.cat([self._stacked, keys], dim=1)
        return grown


class ExpertNullSpace:
    """One layer: the basis U_e of each expert, P_e = U_e U_eᵀ, and the keys of earlier batches.

    Args:
        bases: for each expert (f, d_null).
        l2: the ridge, the same for all experts.
    """

    def __init__(self, bases: Sequence[Tensor], *, l2: float, history: bool) -> None:
        self.bases = tuple(bases)
        self._l2, self._history = l2, history
        self._stacked = bases[0].new_zeros(sum(len(basis) for basis in bases), 0)

    def solve(
        self, keys: Float[Tensor, "d_in u"], residuals: Float[Tensor, "d_out u"], bare: Tensor | None = None
    ) -> ExpertChange:
        stacked = torch.cat([self._stacked, keys], dim=1)
        blocks = stacked.view(len(self.bases), -1, stacked.shape[1])
        # P_e G_e, for P_e (Q Qᵀ + L2)⁻¹ Q = P_e G (GᵀP G + L2)⁻¹ with P the blocks P_e.
        projected = torch.stack([basis @ (basis.T @ block) for basis, block in zip(self.bases, blocks, strict=True)])
        inner = torch.einsum("efn,efm->nm", blocks, projected)
        inner = (inner + inner.T) / 2
        inner.diagonal().add_(self._l2)
        return _change(residuals, _last_rows(inner, keys.shape[1], "QᵀQ + L2"), blocks, projected)

    def remember(self, keys: Float[Tensor, "d_in u"]) -> ExpertNullSpace:
        if not self._history:
            return self
        grown = copy.copy(self)
        grown._stacked = torch.cat([self._stacked, keys], dim=1)
        return grown


def _last_rows(inner: Float[Tensor, "n n"], count: int, what: str) -> Float[Tensor, "count n"]:
    """The last rows of the inverse."""
    selector = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)[:, -count:]
    return torch.cholesky_solve(selector, cholesky(inner, what)).T


def _change(
    residuals: Float[Tensor, "d_out u"],
    rows: Float[Tensor, "u n"],
    blocks: Float[Tensor, "experts f n"],
    solved: Float[Tensor, "experts f n"],
) -> ExpertChange:
    """ΔW = R · rows · solvedᵀ, for all experts and for each.

    An expert's columns have one factor for each fact, earlier ones included, that uses it, or one for each fact of the
    batch, whichever is less.
    """
    left = residuals @ rows  # Y, (d_out, n)
    used = blocks.any(1)  # (experts, n)
    by_expert: dict[int, LowRank] = {}
    for expert, uses in enumerate(used):
        facts = uses.nonzero()[:, 0]
        right = solved[expert][:, facts].T
        if 0 < len(facts) <= residuals.shape[1]:
            by_expert[expert] = LowRank(left[:, facts], right)
        elif len(facts):
            by_expert[expert] = LowRank(residuals, rows[:, facts] @ right)
    return ExpertChange(residuals, rows @ solved.flatten(0, 1).T, by_expert)
