"""What one batch of an edit did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from errata.facts import Fact
from errata.models.weights import Term
from errata.targets.search import Targets


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What one batch did.

    Attributes:
        index: 0 for the first of the editor's life.
        facts: in the order given.
        terms: what was added to the weights, in order.
        targets: target layer -> what the facts aimed at there.
        seconds: wall time of the batch.
        left_alone: facts that no round was for, so that nothing was written for them.
        keys: layer -> (d_in, u) float64, what later batches keep in place; empty without history, and in what the
            editor keeps, where it would be there twice.
    """

    index: int
    facts: tuple[Fact, ...]
    terms: tuple[Term, ...]
    targets: dict[int, Targets]
    seconds: float
    left_alone: tuple[Fact, ...] = ()
    keys: Mapping[int, Tensor] = field(default_factory=dict)
