"""Shaping, as methods.md says it: dense, entry by entry and value by value."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rectified(change: Tensor, weight: Tensor, *, share: float, epsilon: float = 1e-8) -> Tensor:
    """ΔW with all but the share of entries with the largest abs(ΔW / (W + epsilon)) made zero."""
    entries = [(row, column) for row in range(change.shape[0]) for column in range(change.shape[1])]
    entries.sort(key=lambda at: -abs(float(change[at]) / (float(weight[at]) + epsilon)))
    result = torch.zeros_like(change)
    for at in entries[: round(share * len(entries))]:
        result[at] = change[at]
    return result


def pruned(change: Tensor, weight: Tensor) -> Tensor:
    """ΔW with singular values above W₀'s largest, s, made ln σ − ln s + s."""
    largest = float(torch.linalg.svdvals(weight)[0])
    u, values, vh = torch.linalg.svd(change, full_matrices=False)
    pressed = [v if v <= largest else math.log(v) - math.log(largest) + largest for v in values.tolist()]
    return u @ torch.diag(torch.tensor(pressed, dtype=change.dtype)) @ vh


def capped(origin: Tensor, delta: Tensor, unedited_norm: float) -> Tensor:
    """δ of one fact such that ‖h⁰ + δ‖ ≤ max(μ, ‖h⁰‖); all (d,)."""
    z = origin + delta
    most = max(unedited_norm, float(origin.norm()))
    return z * min(1.0, most / float(z.norm())) - origin
