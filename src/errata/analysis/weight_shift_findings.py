"""What study ``weight-shift`` makes of its numbers: rows, how they grow, what becomes of the claims, pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from errata.analysis.findings import Figure, Findings, Label, Panel, Row, Series, line_of, mean_row
from errata.analysis.shift_norms import READINGS
from errata.analysis.study import AnalysisSettings, Kept
from errata.analysis.weight_shift_claims import ENOUGH_GROUPS, Growths, claims_of, growths_of
from errata.analysis.weight_shift_table import QUANTITIES, Case, Table

_LINES = {"shift": "shift", "tighter bound": "tighter bound", "bound": "bound of the theory"}


def piece_name(seed: int, earlier: int) -> str:
    return f"seed-{seed}-after-{earlier}"


def weight_shift_findings(settings: AnalysisSettings, kept: Mapping[str, Kept]) -> Findings:
    """All that follows from what the pieces kept."""
    table = Table.of(settings, kept, piece_name)
    undefined: dict[str, str] = {}
    rows = _rows(table, undefined)
    growths = growths_of(table, undefined)
    return Findings([*rows, *growths.rows], claims_of(table, growths), _figures(rows, table, growths), (), undefined)


def _rows(table: Table, undefined: dict[str, str]) -> list[Row]:
    rows: list[Row] = []
    for earlier in table.earlier:
        for size in table.sizes:
            for layer in table.layers:
                for name, quantity in QUANTITIES.items():
                    for norm in quantity.norms:
                        found = quantity.of(table, norm, Case(layer, size, earlier)).ravel()
                        where: dict[str, Label] = {
                            "layer": layer,
                            "distance": table.behind(layer),
                            "size": size,
                            "earlier": earlier,
                            "norm": norm,
                        }
                        if len(known := found[np.isfinite(found)]):
                            rows.append(mean_row(name, quantity.unit, where, known.tolist()))
                        elif table.behind(layer) == 0:
                            undefined[f"{name} at layer {layer}"] = (
                                "it is the last critical layer, where both updates are one and the bound is 0"
                            )
                        else:
                            undefined[f"{name} at layer {layer}, size {size}, after {earlier} batches"] = (
                                "the residuals are 0: the model knows all of the facts"
                            )
    return rows


def _figures(rows: list[Row], table: Table, growths: Growths) -> list[Figure]:
    """At ``growths.large``, as with one fact a batch all matrices are of rank 1 and all norms the same."""
    first, size, start = growths.first, growths.large, growths.earlier[0]
    groups = table.groups(size)
    large = f"{_counted(size, 'fact')} a batch"
    means = f"mean over {_counted(groups, 'group')}" + (" with 95 % intervals" if groups > 1 else "")
    if groups >= ENOUGH_GROUPS:
        large += f" (the largest size with {ENOUGH_GROUPS} groups)" if len(table.sizes) > 1 else ""
    else:
        large += f" (no size above {table.sizes[0]} has {ENOUGH_GROUPS} groups)" if len(table.sizes) > 1 else ""
    large += ", where all norms coincide" if size == 1 else ""
    left = f"{_AXES['distance']} ({table.behind(first)}: layer {first}, 0: layer {table.layers[-1]})"
    return [
        Figure(
            "weight-shift-distance",
            "Shift of the weights by spreading the residual, with its bounds, over the number of critical layers from "
            f"the one that is written to the last; {large}; {_counted(start, 'earlier batch')}; {means}.",
            [_panel(rows, reading, "distance", {"size": size, "earlier": start}, left) for reading in READINGS],
        ),
        Figure(
            "weight-shift-size",
            f"Shift of the weights at layer {first}, with its bounds, over the batch size (both axes logarithmic); "
            f"{_counted(start, 'earlier batch')}; mean over groups with 95 % intervals, none where there is one group.",
            [
                _panel(rows, reading, "size", {"layer": first, "earlier": start}, _AXES["size"], log=True)
                for reading in READINGS
            ],
        ),
        Figure(
            "weight-shift-earlier",
            f"Shift of the weights at layer {first}, with its bounds, over the number of batches written before; "
            f"{large}; {means}.",
            [
                _panel(rows, reading, "earlier", {"layer": first, "size": size}, _AXES["earlier"])
                for reading in READINGS
            ],
        ),
        Figure(
            "weight-shift-tightness",
            "How tight the bounds are: shift / bound, by the number of critical layers left to the last and by the "
            f"norm that the bound is told in; {large}; {_counted(start, 'earlier batch')}; {means}.",
            [
                Panel(
                    title,
                    left,
                    "shift / bound (1 is tight)",
                    [
                        _line(rows, name, reading, reading, "distance", {"size": size, "earlier": start})
                        for reading in READINGS
                    ],
                )
                for name, title in (
                    ("tightness", "Bound of the theory"),
                    ("tightness of the tighter bound", "Tighter bound"),
                )
            ],
        ),
    ]


_AXES = {"distance": "critical layers left to the last", "size": "facts a batch", "earlier": "earlier batches"}


def _panel(
    rows: list[Row], reading: str, x: str, where: Mapping[str, Label], x_label: str, *, log: bool = False
) -> Panel:
    of_shift = READINGS[reading][0]
    series = [
        _line(rows, name, of_shift if name == "shift" else reading, label, x, where) for name, label in _LINES.items()
    ]
    label = f"norm of the update's shift, {of_shift} (unit of W)"
    return Panel(f"Norms: {reading}", x_label, label, series, log_x=log, log_y=log)


def _line(rows: list[Row], quantity: str, norm: str, label: str, x: str, where: Mapping[str, Label]) -> Series:
    chosen = [
        row
        for row in rows
        if row.quantity == quantity
        and row.where["norm"] == norm
        and all(row.where[name] == value for name, value in where.items())
    ]
    return line_of(chosen, label, x)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}{'es' if what.endswith('ch') else 's'}"
