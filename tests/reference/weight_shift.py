"""The shift of a layer's update by spreading, one dense matrix a residual, and the bounds as they are written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from errata.analysis.study import StudyContext
from errata.editing.target_search import find_targets
from errata.facts.fact import Fact
from errata.models.language_model import Site


def residual(bench: StudyContext, fact: Fact, prefixes: Sequence[str], layer: int) -> Tensor:
    """z − h of one fact at one layer, searched alone on the weights as they are; (d_out,) float64."""
    found = find_targets(bench.model, [fact], prefixes, layer, Site.BLOCK, bench.recipe.target)
    return found.delta[:, 0].double()


def weight_shift(
    layers: Sequence[int],
    layer: int,
    keys: Tensor,
    computed: Tensor,
    last: Tensor,
    update: Callable[[Tensor, Tensor], Tensor],
) -> dict[tuple[str, str], float]:
    """(quantity, norm) -> number, of one group of facts at one layer.

    Args:
        keys: (d_in, u).
        computed, last: (d_out, u) the residuals of the layer and of the last one.
        update: (keys, residuals) -> ΔW, dense.
    """
    left = len(layers) - list(layers).index(layer)  # l, …, L
    by_computed, by_spread = update(keys, computed), update(keys, last / left)
    q = update(keys, torch.eye(keys.shape[1], dtype=torch.float64))
    found: dict[tuple[str, str], float] = {}
    for norm, order in (("Frobenius", "fro"), ("spectral", 2)):

        def size(matrix: Tensor, order: str | int = order) -> float:
            return float(torch.linalg.norm(matrix, order))

        found["shift", norm] = size(by_computed - by_spread)
        found["computed update", norm] = size(by_computed)
        found["residual gap", norm] = size(computed - last)
        found["last residual", norm] = size(last)
        found["Q", norm] = size(q)
        found["relative shift", norm] = found["shift", norm] / found["computed update", norm]
    for name, of_r, of_q in (
        ("Frobenius", "Frobenius", "Frobenius"),
        ("Frobenius, Q spectral", "Frobenius", "spectral"),
        ("spectral", "spectral", "spectral"),
    ):
        gap, whole, of_keys = found["residual gap", of_r], found["last residual", of_r], found["Q", of_q]
        found["bound", name] = (gap + (left - 1) * whole) * of_keys
        found["tighter bound", name] = (gap + (left - 1) / left * whole) * of_keys
        if left > 1:
            found["tightness", name] = found["shift", of_r] / found["bound", name]
            found["tightness of the tighter bound", name] = found["shift", of_r] / found["tighter bound", name]
    return found
