"""Study ``alignment``: distance and angle between a layer's spread residual and the one computed at the layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from errata.analysis.common import (
    COMPUTED,
    SPREADS,
    LayerTargets,
    axis_label,
    check_plane,
    fit_plane,
    search_targets,
)
from errata.analysis.findings import (
    Claim,
    Figure,
    Finding,
    Findings,
    Label,
    Panel,
    PlanePoint,
    Series,
    Sign,
    line_of,
    mean_row,
    with_n,
)
from errata.analysis.study import AnalysisSettings, Study, StudyContext, StudyTask, TaskRecord
from errata.editing.contexts import generate_prefixes
from errata.editing.methods import BOUNDARY_PAPER
from errata.editing.recipe import Recipe
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.utils.tensors import to_float64

_COSINE, _FAR, _BEST = "cosine", "distance, relative", "distance at the best share, relative"


@dataclass(slots=True)
class _Measured:
    """The values of all seeds' facts, and rows computed from them.

    Attributes:
        values: (quantity, residual, layer) -> one per fact; None if undefined.
    """

    values: dict[tuple[str, str, int], list[float | None]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    rows: list[Finding] = field(default_factory=list)
    undefined: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: Mapping[str, TaskRecord]) -> _Measured:
        measured = cls()
        for record in saved.values():
            for entry in record["measured"]:
                where = (entry["quantity"], entry["residual"], entry["layer"])
                measured.values.setdefault(where, []).extend(entry["values"])
                measured.units[entry["quantity"]] = entry["unit"]
        for (quantity, residual, layer), values in measured.values.items():
            labels: dict[str, Label] = {"residual": residual, "layer": layer} if residual else {"layer": layer}
            measured.row(quantity, measured.units[quantity], labels, values)
        return measured

    def row(
        self, quantity: str, unit: str, where: Mapping[str, Label], values: Sequence[float | None]
    ) -> Finding | None:
        """The mean over facts with a value; facts without one are noted in ``undefined``."""
        defined = [value for value in values if value is not None]
        if len(defined) < len(values):
            name = ", ".join([quantity, *(f"{key} {value}" for key, value in where.items())])
            self.undefined[name] = (
                f"{len(values) - len(defined)} of {len(values)} facts are left out: their residual is zero (the model "
                "knows them), or there is no other fact"
            )
        if not defined:
            return None
        found = mean_row(quantity, unit, where, defined)
        self.rows.append(found)
        return found

    def lines(self, quantity: str, residual: str = "") -> list[Finding]:
        """One row per layer."""
        where = {"residual": residual} if residual else {}
        return [
            row
            for row in self.rows
            if row.quantity == quantity and {key: row.where[key] for key in row.where if key != "layer"} == where
        ]

    def by_layer(self, quantity: str, residual: str, layers: Sequence[int]) -> str:
        rows = {row.where["layer"]: row for row in self.lines(quantity, residual)}
        return ", ".join(f"layer {layer}: {with_n(rows[layer]) if layer in rows else 'none'}" for layer in layers)


def findings_of(settings: AnalysisSettings, saved: Mapping[str, TaskRecord]) -> Findings:
    """Cosines, distances and norms per layer, slopes over the layers, claims, curves and planes."""
    measured = _Measured.of(saved)
    layers = sorted({layer for _, _, layer in measured.values})
    claims = [*_directions(measured, layers), *_slopes(measured, layers), *_lengths(measured, layers)]
    pictures = {f"residuals-{name}": record["picture"] for name, record in saved.items() if record["picture"]}
    for name, record in saved.items():
        if record["picture"] is None:
            measured.undefined[f"picture of {name}"] = "its residuals do not vary in two dimensions"
    points = [PlanePoint(name, where, x, y) for name, found in pictures.items() for where, x, y in found["points"]]
    figures = [_by_layer(measured), *(_in_a_plane(name, found) for name, found in pictures.items())]
    return Findings(measured.rows, claims, figures, points, measured.undefined)


def _directions(measured: _Measured, layers: Sequence[int]) -> list[Claim]:
    claims = []
    for layer in layers[:-1]:
        values = measured.values[_COSINE, "", layer]
        turned = measured.row("one minus cosine", "1", {"layer": layer}, _one_minus(values))
        if turned is not None:
            claims.append(
                Claim.on(
                    turned,
                    f"At layer {layer}, before the last one, spread and computed residual point in different "
                    "directions: their cosine is below 1.",
                    f"1 − cosine {with_n(turned)}; cosine with other facts' computed residuals, "
                    + measured.by_layer("cosine with other facts", "", [layer]),
                )
            )
    return claims


def _slopes(measured: _Measured, layers: Sequence[int]) -> list[Claim]:
    """Change with the distance from the last layer, which is left out: there all residuals are equal."""
    claims = []
    earlier = layers[:-1]
    if len(earlier) < 2:
        measured.undefined["slopes over the distance from the last layer"] = "they need three critical layers"
        return []
    tested: tuple[tuple[str, str, Sign, str], ...] = (
        (_COSINE, "", "negative", "The cosine of spread and computed residual falls"),
        (_FAR, "spread", "positive", "The distance of spread and computed residual, in norms of the latter, grows"),
        (
            _FAR,
            "sqrt-spread",
            "positive",
            "The distance of √-spread and computed residual, in norms of the latter, grows",
        ),
    )
    for quantity, residual, claimed, text in tested:
        values = [measured.values[quantity, residual, layer] for layer in earlier]
        where = {"residual": residual} if residual else {}
        slope = measured.row(
            f"{quantity}, slope", f"{measured.units[quantity]} per critical layer", where, slopes(values)
        )
        if slope is not None:
            claims.append(
                Claim.on(
                    slope,
                    f"{text} with the number of critical layers to the last one.",
                    f"slope {with_n(slope)} per layer, of a line through each fact's values before the last layer; "
                    + measured.by_layer(quantity, residual, earlier),
                    claimed=claimed,
                )
            )
    return claims


def slopes(values: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Least-squares slope of each fact over the distance from the last layer; None for a fact that lacks a value.

    Args:
        values: one row per layer, ascending, without the last.
    """
    middle = (len(values) - 1) / 2
    weights = [middle - index for index in range(len(values))]  # distances from the last layer, less their mean
    total = sum(weight**2 for weight in weights)
    found: list[float | None] = []
    for of_fact in zip(*values, strict=True):
        known = [value for value in of_fact if value is not None]
        complete = len(known) == len(values)
        found.append(sum(w * value for w, value in zip(weights, known, strict=True)) / total if complete else None)
    return found


def _lengths(measured: _Measured, layers: Sequence[int]) -> list[Claim]:
    first = layers[0]
    where = {"layer": first}
    (longer,) = [row for row in measured.lines("norm, spread minus computed") if row.where == where]
    claims = [
        Claim.on(
            longer,
            f"At layer {first}, the first one, the spread residual is shorter than the computed one.",
            f"‖spread‖ − ‖computed‖ {with_n(longer)} (paired over facts); in means of ‖h⁰‖: spread, "
            + "; computed, ".join(
                measured.by_layer("norm, relative", kind, [first]) for kind in ("spread", "computed")
            ),
            claimed="negative",
        )
    ]
    values = measured.values[_FAR, "spread", first]
    gained = measured.row(
        "what the spread residual spares of the distance from nothing", "‖computed‖", where, _one_minus(values)
    )
    if gained is not None:
        claims.append(
            Claim.on(
                gained,
                f"At layer {first}, the first one, the spread residual is nearer to the computed one than no residual.",
                f"1 − ‖spread − computed‖ / ‖computed‖ {with_n(gained)}; the best of all shares of δ_L would leave a "
                f"distance of {measured.by_layer(_BEST, '', [first])}",
            )
        )
    return claims


def _one_minus(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 1 - value for value in values]


def _by_layer(measured: _Measured) -> Figure:
    def line(quantity: str, residual: str, label: str) -> list[Series]:
        rows = measured.lines(quantity, residual)
        return [line_of(rows, label, "layer")] if rows else []

    cosines = [*line(_COSINE, "", "same fact"), *line("cosine with other facts", "", "other facts")]
    distances = [series for kind in SPREADS for series in line(_FAR, kind, kind)] + line(_BEST, "", "best share")
    norms = [series for kind in ("spread", "sqrt-spread", "computed") for series in line("norm, relative", kind, kind)]
    return Figure(
        "alignment",
        "Spread against computed residuals by layer, means over facts with 95 % intervals: the cosine, with the same "
        "fact's computed residual and with other facts'; the distance from the computed residual in norms of it, and "
        "what the best of all shares of the last layer's would leave; the norms in means of the state's.",
        [
            Panel("Direction", "layer", "cosine with the computed residual (1)", cosines),
            Panel("Distance", "layer", "distance / ‖computed residual‖ (1)", distances),
            Panel("Length", "layer", "norm / mean ‖h⁰‖ (1)", norms),
        ],
    )


def _in_a_plane(name: str, found: Mapping[str, Any]) -> Figure:
    """One panel per layer, all in the same plane."""
    by_layer: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for where, x, y in found["points"]:
        by_layer.setdefault(where["layer"], {}).setdefault(where["residual"], []).append((x, y))
    x_label, y_label = (axis_label(number, share) for number, share in enumerate(found["shares"], start=1))
    panels = [
        Panel(
            f"Layer {layer}",
            x_label,
            y_label,
            [Series(kind, [x for x, _ in points], [y for _, y in points]) for kind, points in kinds.items()],
            kind="points",
        )
        for layer, kinds in by_layer.items()
    ]
    return Figure(
        name,
        "The residuals of all layers and facts along their first two principal components (one plane and the same axes "
        "for all panels), a point a fact; at the last layer the three kinds are one.",
        panels,
        shared_axes=True,
    )


KINDS = (*SPREADS, COMPUTED)
Values: TypeAlias = list[float | None]
"""One per fact; None if undefined."""


def quantities(targets: LayerTargets, layer: int) -> Iterator[tuple[str, str, str, Values]]:
    """All quantities at a layer: name, unit, residual (empty if none or all), values.

    Relative quantities of a zero residual are undefined.
    """
    residuals = {kind: targets.residual(kind, layer) for kind in KINDS}
    norms = {kind: residual.norm(dim=0) for kind, residual in residuals.items()}
    found = targets.found[layer]
    states = (to_float64(found.z) - to_float64(found.delta)).norm(dim=0)
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
    own = cosines.diagonal().clamp(-1, 1)  # rounding may exceed 1
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
            vectors.append(targets.residual(kind, layer).T.cpu())
    plane = fit_plane(torch.cat(vectors))
    if plane is None:
        return None
    points = [[name, x, y] for name, (x, y) in zip(names, plane.points(torch.cat(vectors)), strict=True)]
    return {"points": points, "shares": plane.shares}


def _measure(context: StudyContext, seed: int) -> TaskRecord:
    facts = context.materials[seed].facts.facts
    targets = search_targets(context, facts, generate_prefixes(context.model, context.recipe_for(seed).contexts))
    measured = [
        {"layer": layer, "quantity": quantity, "unit": unit, "residual": residual, "values": values}
        for layer in targets.layers
        for quantity, unit, residual, values in quantities(targets, layer)
    ]
    return {"measured": measured, "picture": picture(targets, facts)}


def _tasks(context: StudyContext) -> list[StudyTask]:
    return [StudyTask(f"seed-{seed}", partial(_measure, context, seed)) for seed in context.settings.seeds]


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    check_plane()
    if len(recipe.layers) < 2:
        raise InputError(
            f"with one critical layer ({recipe.layers[0]}) no residual is spread, so there is nothing to compare",
            remedy="Use a recipe with two layers or more",
            code="STUDY_NEEDS_LAYERS",
        )


ALIGNMENT = Study(
    name="alignment",
    shows="At each critical layer, on unedited weights: the cosine between the residual that spreading assigns to "
    "the layer (δ_L divided by the number of remaining critical layers, or by its square root; the "
    "direction is the same) and the residual computed at the layer. For comparison: the cosine with the "
    "computed residuals of other facts, which shows what any two facts have in common. Also: the distance "
    "of the two residuals, the distance for the best share of δ_L, all norms, and all residuals in the "
    "plane of their first two principal components.",
    units="Norms and distances are Euclidean, in units of h. Relative norms are in units of the mean ‖h⁰‖, the "
    "norm of the state at the layer in the bare prompts. Relative distances are in units of the norm of the "
    "same fact's computed residual.",
    source=f"directions of the two residuals, after {BOUNDARY_PAPER}",
    uses=("count",),
    tasks=_tasks,
    findings=findings_of,
    check=_check,
)
