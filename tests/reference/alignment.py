"""Two residuals of one fact compared number by number."""

from __future__ import annotations

import math
from collections.abc import Sequence


def norm(vector: Sequence[float]) -> float:
    return math.sqrt(sum(x * x for x in vector))


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (norm(a) * norm(b))


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    return norm([x - y for x, y in zip(a, b, strict=True)])


def least_distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Of c · a from b over the shares c ≥ 0, by trying many; good to about 1e-4 of ‖b‖."""
    steps = range(4001)
    largest = 2 * norm(b) / norm(a)
    return min(distance([largest * step / 4000 * x for x in a], b) for step in steps)
