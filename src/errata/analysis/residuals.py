"""The residuals of a batch, per layer: what spreading gives it of the last layer's, and what is computed at it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from jaxtyping import Float
from torch import Tensor

from errata.analysis.study import Workbench
from errata.editing.target_search import Targets, optimise_targets
from errata.facts.fact import Fact

# Residual -> the share of the last layer's that spreading gives a layer, by the number of critical layers left.
SPREADS: Final[Mapping[str, Callable[[int], float]]] = {
    "spread": lambda left: 1 / left,
    "sqrt-spread": lambda left: 1 / math.sqrt(left),
}
COMPUTED: Final = "computed"


@dataclass(frozen=True, slots=True)
class LayerTargets:
    """The targets of some facts at each critical layer, each found on the weights as they were then.

    Attributes:
        layers: ascending.
        found: layer -> targets.
    """

    layers: Sequence[int]
    found: Mapping[int, Targets]

    def residual(self, kind: str, layer: int) -> Float[Tensor, "d u"]:
        """float64. ``spread`` is δ_L / (number of critical layers from this one on), ``sqrt-spread`` the same by its
        root, ``computed`` the layer's own δ (methods.md, section 1, Schedules).
        """
        if kind == COMPUTED:
            return self.found[layer].delta.double()
        left = len(self.layers) - list(self.layers).index(layer)
        return SPREADS[kind](left) * self.found[self.layers[-1]].delta.double()


def search_targets(bench: Workbench, facts: Sequence[Fact], prefixes: Sequence[str]) -> LayerTargets:
    """The targets at every critical layer, on the weights as they are now."""
    return LayerTargets(bench.layers, {layer: search_at(bench, facts, prefixes, layer) for layer in bench.layers})


def search_at(bench: Workbench, facts: Sequence[Fact], prefixes: Sequence[str], layer: int) -> Targets:
    """The targets at one layer, on the weights as they are now.

    Args:
        prefixes: the contexts; used where the recipe searches targets in all of them.
    """
    evaluations = 0

    def on_step(facts_left: int) -> None:
        nonlocal evaluations
        evaluations += 1
        bench.report(f"targets at layer {layer}", evaluations, bench.recipe.target.steps)

    chosen = prefixes if bench.recipe.contexts.targets == "all" else ()
    return optimise_targets(bench.model, facts, chosen, layer, bench.site, bench.recipe.target, on_step=on_step)
