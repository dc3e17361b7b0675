"""Schedules: which layers are written, towards the target at which layer, with which share of the residual.

A schedule is a list of steps, so that spreading a residual and writing two layers with residuals of their own are
the same loop over different lists (methods.md, section 1, Schedules).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Write ``layer`` with ``share`` · (z − h), z and h being at ``target_layer``.

    A target is searched for when a step first needs it, on the weights as they are then, and kept for the batch.
    """

    layer: int
    target_layer: int
    share: float


def even(layers: Sequence[int]) -> list[Step]:
    """MEMIT: all layers, the residual left at the last one divided by the number of critical layers left."""
    return [Step(layer, layers[-1], 1 / (len(layers) - index)) for index, layer in enumerate(layers)]


def sqrt(layers: Sequence[int]) -> list[Step]:
    """PMET: as ``even``, divided by the square root of the number of critical layers left."""
    return [Step(layer, layers[-1], 1 / math.sqrt(len(layers) - index)) for index, layer in enumerate(layers)]


def boundary(layers: Sequence[int]) -> list[Step]:
    """BLUE: the first and the last layer only, each towards its own target, undivided."""
    return [Step(layer, layer, 1.0) for layer in dict.fromkeys((layers[0], layers[-1]))]


def single(layers: Sequence[int]) -> list[Step]:
    """ROME's: the one given layer, undivided.

    Raises:
        ValueError: if there are several.
    """
    if len(layers) != 1:
        raise ValueError(f"the schedule 'single' writes one layer, got {list(layers)}")
    return [Step(layers[0], layers[0], 1.0)]


SCHEDULES: Mapping[str, Callable[[Sequence[int]], list[Step]]] = {
    "even": even,
    "sqrt": sqrt,
    "boundary": boundary,
    "single": single,
}
