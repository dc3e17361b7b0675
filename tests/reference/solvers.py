"""ΔW by dense float64 solves, as the formulas of methods.md say it."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(
    keys: Tensor, residuals: Tensor, moment: Tensor, *, ridge: float, earlier: Tensor | None = None
) -> Tensor:
    """ΔW = R Kᵀ (λC + M + K Kᵀ)⁻¹.

    Args:
        keys: K, (d_in, u).
        residuals: R, (d_out, u).
        moment: C, (d_in, d_in).
        ridge: λ.
        earlier: the keys of all earlier batches, (d_in, n): M = earlier earlierᵀ; None is no history.
    """
    matrix = ridge * moment + _history(moment, earlier) + keys @ keys.T
    return residuals @ keys.T @ torch.linalg.inv(matrix)


def null_space_projector(moment: Tensor, threshold: float) -> Tensor:
    """P = U₀U₀ᵀ, U₀ the eigenvectors of C with eigenvalues below the threshold."""
    values, vectors = torch.linalg.eigh(moment)
    basis = torch.stack([vectors[:, i] for i in range(len(values)) if values[i] < threshold], dim=1)
    return basis @ basis.T


def null_space(
    keys: Tensor,
    residuals: Tensor,
    moment: Tensor,
    *,
    threshold: float,
    l2: float,
    earlier: Tensor | None = None,
) -> Tensor:
    """Solve [P(K Kᵀ + M) + L2·I] X = P K Rᵀ; ΔW = Xᵀ. Arguments as in ``least_squares``."""
    projector = null_space_projector(moment, threshold)
    matrix = projector @ (keys @ keys.T + _history(moment, earlier)) + l2 * torch.eye(len(moment), dtype=moment.dtype)
    return torch.linalg.solve(matrix, projector @ keys @ residuals.T).T


def _history(moment: Tensor, earlier: Tensor | None) -> Tensor:
    return torch.zeros_like(moment) if earlier is None else earlier @ earlier.T
