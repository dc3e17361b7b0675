"""Slow, obvious low-rank approximation: the dense matrix's singular vectors, one by one."""

from __future__ import annotations

import torch
from torch import Tensor


def truncated(change: Tensor, rank: int) -> Tensor:
    """Σ σᵢ uᵢ vᵢᵀ over the ``rank`` largest σ."""
    u, values, vh = torch.linalg.svd(change.double())
    total = torch.zeros_like(change, dtype=torch.float64)
    for index in range(min(rank, len(values))):
        total += values[index] * torch.outer(u[:, index], vh[index])
    return total


def relative_error(change: Tensor, approximation: Tensor) -> float:
    """√Σ (x − y)² / √Σ x²."""
    squares = sum(float(x) ** 2 for x in (change.double() - approximation.double()).flatten())
    return float((squares / sum(float(x) ** 2 for x in change.double().flatten())) ** 0.5)
