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


def equality(keys: Tensor, residuals: Tensor, moment: Tensor, *, ridge: float) -> Tensor:
    """ΔW = R (Kᵀ C⁻¹ K + εI)⁻¹ Kᵀ C⁻¹."""
    inverse = torch.linalg.inv(moment)
    inner = keys.T @ inverse @ keys + ridge * torch.eye(keys.shape[1], dtype=keys.dtype)
    return residuals @ torch.linalg.inv(inner) @ keys.T @ inverse


def rank_one(key: Tensor, bare: Tensor, residual: Tensor, moment: Tensor) -> Tensor:
    """ΔW = r (C⁻¹ k̄)ᵀ / (k_bareᵀ C⁻¹ k̄); key and bare (d_in,), residual (d_out,)."""
    direction = torch.linalg.inv(moment) @ key
    return torch.outer(residual, direction) / (bare @ direction)


def neurons(
    keys: Tensor, residuals: Tensor, moment: Tensor, *, ridge: float, share: float, earlier: Tensor | None = None
) -> Tensor:
    """Least squares with history on the rows I of K with the largest sums of absolute keys."""
    sums = [sum(abs(float(key)) for key in row) for row in keys]
    chosen: list[int] = []
    for row in sorted(range(len(sums)), key=lambda row: -sums[row]):
        if chosen and sum(sums[other] for other in [*chosen, row]) > share * sum(sums) * (1 + 1e-12):
            break
        chosen.append(row)
    matrix = ridge * moment + _history(moment, earlier)
    some = keys[chosen]
    inner = torch.stack([matrix[row][chosen] for row in chosen]) + some @ some.T
    change = torch.zeros(len(residuals), len(keys), dtype=keys.dtype)
    for column, values in zip(chosen, (residuals @ some.T @ torch.linalg.inv(inner)).T, strict=True):
        change[:, column] = values
    return change


def _history(moment: Tensor, earlier: Tensor | None) -> Tensor:
    return torch.zeros_like(moment) if earlier is None else earlier @ earlier.T
