"""Schedules: which layers are written, towards the target at which layer, with which share of the residual.

A schedule is a list of steps, so that spreading a residual and writing two layers with residuals of their own are
the same loop over different lists (methods.md, section 1, Schedules).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Step:
    """Write ``layer`` with ``share`` · (z − h), z and h being at ``target_layer``.

    A target is found when a step first needs it, on the weights as they are then, and used for the whole batch.

    Attributes:
        follows: the layer whose searched target is injected to read this one's off a forward pass; None: this one is
            searched itself.
    """

    layer: int
    target_layer: int
    share: float
    follows: int | None = None


def even(layers: Sequence[int]) -> list[Step]:
    """MEMIT: all layers, the residual left at the last one divided by the number of critical layers left."""
    return [Step(layer, layers[-1], 1 / (len(layers) - index)) for index, layer in enumerate(layers)]


def sqrt(layers: Sequence[int]) -> list[Step]:
    """PMET: as ``even``, divided by the square root of the number of critical layers left."""
    return [Step(layer, layers[-1], 1 / math.sqrt(len(layers) - index)) for index, layer in enumerate(layers)]


def boundary(layers: Sequence[int]) -> list[Step]:
    """BLUE: the first and the last layer only, each towards its own target, undivided."""
    return own(tuple(dict.fromkeys((layers[0], layers[-1]))))


def own(layers: Sequence[int]) -> list[Step]:
    """All given layers, each towards its own target, undivided: BLUE without its choice of layers (an ablation)."""
    return [Step(layer, layer, 1.0) for layer in layers]


def single(layers: Sequence[int]) -> list[Step]:
    """ROME's: the one given layer, undivided.

    Raises:
        ValueError: if there are several.
    """
    if len(layers) != 1:
        raise ValueError(f"the schedule 'single' writes one layer, got {list(layers)}")
    return [Step(layers[0], layers[0], 1.0)]


def replay(layers: Sequence[int]) -> list[Step]:
    """Forward replay: all given layers, undivided; the first's target is searched, the later ones' follow from it.

    Raises:
        ValueError: if there is only one.
    """
    first, *later = layers
    if not later:
        raise ValueError(
            "the schedule 'replay' carries the first layer's target to later ones, so it needs several layers; use "
            "'single' for one"
        )
    return [Step(first, first, 1.0), *(Step(layer, layer, 1.0, follows=first) for layer in later)]


ScheduleName: TypeAlias = Literal["even", "sqrt", "boundary", "own", "single", "replay"]
SCHEDULES: Final[Mapping[str, Callable[[Sequence[int]], list[Step]]]] = {
    "even": even,
    "sqrt": sqrt,
    "boundary": boundary,
    "own": own,
    "single": single,
    "replay": replay,
}
