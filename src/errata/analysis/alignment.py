"""Study ``alignment``: how far the residual that spreading gives a layer is from the one computed at the layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from errata.analysis.alignment_findings import findings_of
from errata.analysis.projection import check_projection, project
from errata.analysis.residuals import COMPUTED, SPREADS, LayerTargets, search_targets
from errata.analysis.study import AnalysisSettings, Kept, Piece, Study, Workbench
from errata.analysis.titles import TITLES
from errata.errors import InputError
from errata.facts import Fact
from errata.methods import BOUNDARY_PAPER
from errata.recipe import Recipe
from errata.targets.contexts import generate_prefixes

KINDS = (*SPREADS, COMPUTED)
Values: TypeAlias = list[float | None]
"""One of each fact; None of a fact that has none."""


def quantities(targets: LayerTargets, layer: int) -> Iterator[tuple[str, str, str, Values]]:
    """Everything that is measured at a layer: quantity, unit, residual (empty if of none or of all), values.

    A residual that is zero has no direction and is nothing to measure others in.
    """
    residuals = {kind: targets.residual(kind, layer) for kind in KINDS}
    norms = {kind: residual.norm(dim=0) for kind, residual in residuals.items()}
    found = targets.found[layer]
    states = (found.z.double() - found.delta.double()).norm(dim=0)
    yield "norm of the state", "units of h", "", _values(states)
    for kind in KINDS:
        yield "norm", "units of h", kind, _values(norms[kind])
        yield "norm, relative", "mean ‖h⁰‖", kind, _values(norms[kind] / states.mean())
    for kind in SPREADS:
        distance = (residuals[kind] - residuals[COMPUTED]).norm(dim=0)
        yield "distance", "units of h", kind, _values(distance)
        yield "distance, relative", "‖computed‖", kind, _values(distance / norms[COMPUTED])
    yield "norm, spread minus computed", "units of h", "", _values(norms["spread"] - norms[COMPUTED])
    cosines = (residuals["spread"] / norms["spread"]).T @ (residuals[COMPUTED] / norms[COMPUTED])  # (u, u)
    own = cosines.diagonal().clamp(-1, 1)  # a vector's with itself may be above 1 by its last bits
    others = cosines.masked_fill(torch.eye(len(cosines), dtype=torch.bool, device=cosines.device), math.nan)
    yield "cosine", "1", "", _values(own)
    yield "cosine with other facts", "1", "", _values(others.nanmean(dim=1))
    # The share c ≥ 0 with which c · δ_L is nearest to the computed residual leaves its part at right angles to δ_L.
    yield "distance at the best share, relative", "‖computed‖", "", _values((1 - own.clamp(min=0) ** 2).sqrt())


def _values(numbers: Tensor) -> Values:
    return [number if math.isfinite(number) else None for number in numbers.tolist()]


def picture(targets: LayerTargets, facts: Sequence[Fact]) -> dict[str, Any] | None:
    """The residuals of all kinds, layers and facts in two dimensions; None where they do not vary in two."""
    names: list[dict[str, str | int]] = []
    vectors = []
    for layer in targets.layers:
        for kind in KINDS:
            names += [{"residual": kind, "layer": layer, "fact": fact.id} for fact in facts]
            vectors.append(targets.residual(kind, layer).T.cpu().numpy())
    projection = project(np.concatenate(vectors))
    if projection is None:
        return None
    points = [[name, x, y] for name, (x, y) in zip(names, projection.points.tolist(), strict=True)]
    return {"points": points, "shares": projection.shares}


def _measure(bench: Workbench, seed: int) -> Kept:
    facts = bench.materials[seed].facts.facts
    targets = search_targets(bench, facts, generate_prefixes(bench.model, bench.recipe_for(seed).contexts))
    measured = [
        {"layer": layer, "quantity": quantity, "unit": unit, "residual": residual, "values": values}
        for layer in targets.layers
        for quantity, unit, residual, values in quantities(targets, layer)
    ]
    return {"measured": measured, "picture": picture(targets, facts)}


def _pieces(bench: Workbench) -> list[Piece]:
    return [Piece(f"seed-{seed}", partial(_measure, bench, seed)) for seed in bench.settings.seeds]


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    check_projection()
    if len(recipe.layers) < 2:
        raise InputError(
            f"with one critical layer ({recipe.layers[0]}) nothing is spread, so that there is nothing to compare",
            remedy="Take a recipe with two layers or more",
        )


ALIGNMENT = Study(
    name="alignment",
    title=TITLES["alignment"],
    shows="At each critical layer, on unedited weights: the cosine of the residual that spreading gives the layer (δ_L "
    "divided by the number of critical layers left, or by its root, which has the same direction) and the one computed "
    "at the layer; beside it the cosine with other facts' computed residuals, which is what any two facts have in "
    "common; their distance, and the distance that is left at the best of all shares of δ_L; the norms of all; and all "
    "residuals in one plane, their first two principal components.",
    units="Norms and distances are Euclidean, in units of h; relative norms in means of ‖h⁰‖, the state's norm at the "
    "layer in the bare prompts; relative distances in norms of the same fact's computed residual.",
    source=f"directions of the two residuals, after {BOUNDARY_PAPER}",
    uses=("count",),
    pieces=_pieces,
    findings=findings_of,
    check=_check,
)
