"""Percentile intervals by bootstrap over clusters: what belongs together is drawn together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 1 << 22


def resampled_sums(clusters: NDArray[np.float64], *, seed: int, resamples: int) -> NDArray[np.float64]:
    """Bootstrap: draw as many clusters as there are, with replacement, and sum their quantities.

    Args:
        clusters: (quantities, clusters) each cluster's part of each quantity.

    Returns:
        (resamples, quantities). The same seed draws the same clusters.
    """
    generator = np.random.default_rng(seed)
    count = clusters.shape[1]
    sums = np.empty((resamples, len(clusters)))
    step = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        times_drawn = generator.multinomial(count, np.full(count, 1 / count), size=size)  # (size, clusters)
        sums[start : start + size] = times_drawn @ clusters.T
    return sums


def interval_of(drawn: NDArray[np.float64], clusters: int) -> tuple[float | None, float | None]:
    """The middle 95 % of bootstrapped values; none of a single cluster, whose mean never varies.

    A draw in which a quantity has no prompts at all has no value (NaN) and is left out.
    """
    values = drawn[np.isfinite(drawn)]
    if clusters < 2 or not len(values):
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
