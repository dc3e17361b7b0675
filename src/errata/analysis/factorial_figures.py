"""The pictures of a factorial: main effects, source against layers, the boundary gain taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from errata.analysis.findings import Figure, Panel, Row, Series, series_of
from errata.analysis.variance import joined
from errata.evaluation.metrics import ACCURACIES

_TITLES = {
    "source": "Source of the residual",
    "layers": "Layers that are written",
    "history": "History of keys",
    "ridge": "Ridge",
    "contexts": "Key contexts",
}
_UNITS = {"ridge": "times the recipe's λ or L2"}


def main_effect_figure(
    rows: Sequence[Row], designs: Mapping[str, Mapping[str, Sequence[str]]], responses: Sequence[str]
) -> Figure:
    """A panel a factor: the source's design shows all but the layers, which have theirs."""
    panels = []
    for factor, title in _TITLES.items():
        design = "layers" if factor == "layers" else "source"
        if len(designs[design][factor]) > 1:
            series = [
                series_of(_rows(rows, "main effect", name, design, factor), ACCURACIES[name], "level")
                for name in ACCURACIES
                if name in responses
            ]
            label = "difference from the design's mean (share)"
            panels.append(Panel(title, _UNITS.get(factor, factor), label, series, "bars"))
    return Figure(
        "factorial-main-effects",
        "What each factor does by itself: the mean of the runs with a level minus the mean of all runs of its design "
        "(accuracies as shares), with 95 % intervals over facts. Layers are compared with computed residuals, "
        "everything else over both ends and all layers.",
        panels,
    )


def interaction_figure(rows: Sequence[Row], responses: Sequence[str]) -> Figure:
    """Whether the source does the same at both ends as at all layers: then the lines are parallel."""
    panels = []
    for name, title in ACCURACIES.items():
        found = _rows(rows, "mean", name, "source", joined("source", "layers")) if name in responses else []
        if found:
            split = {layers: [row for row in found if _levels(row)[1] == layers] for layers in ("both", "all")}
            series = [
                Series(
                    {"both": "both ends", "all": "all layers"}[layers],
                    [_levels(row)[0] for row in chosen],
                    [row.mean for row in chosen],
                    [row.low for row in chosen],
                    [row.high for row in chosen],
                )
                for layers, chosen in split.items()
            ]
            panels.append(Panel(title.capitalize(), "source of the residual", f"{title} (share)", series))
    return Figure(
        "factorial-interaction",
        "Source of the residual against the layers that are written: means of the runs over history, ridge and key "
        "contexts, with 95 % intervals over facts. Where lines are parallel, the two do not depend on each other.",
        panels,
    )


def decomposition_figure(rows: Sequence[Row], responses: Sequence[str]) -> Figure:
    """Bars: the whole gain, and what source and layers bring of it."""
    parts = ("whole", "source", "layers", "interaction")
    series = []
    for name, title in ACCURACIES.items():
        found = {row.where["part"]: row for row in rows if _is(row, "boundary gain", name)}
        if found and name in responses:
            chosen = [found[part] for part in parts]
            series.append(
                Series(
                    title,
                    parts,
                    [row.mean for row in chosen],
                    [row.low for row in chosen],
                    [row.high for row in chosen],
                )
            )
    panel = Panel(
        "From (spread, all layers) to (computed, both ends)", "part of the change", "change (share)", series, "bars"
    )
    return Figure(
        "factorial-decomposition",
        "The change from the spread residual over all layers to computed residuals at both ends, and what the source "
        "and the layers bring of it (they add up to the whole; the interaction is beside them), with 95 % intervals "
        "over facts.",
        [panel] if series else [],
    )


def _is(row: Row, quantity: str, response: str) -> bool:
    return row.quantity == quantity and row.where.get("response") == response


def _rows(rows: Sequence[Row], quantity: str, response: str, design: str, factor: str) -> list[Row]:
    wanted = {"design": design, "factor": factor}
    return [row for row in rows if _is(row, quantity, response) and wanted.items() <= row.where.items()]


def _levels(row: Row) -> list[str]:
    return str(row.where["level"]).split(joined("", ""))
