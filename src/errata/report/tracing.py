"""Causal tracing for terminals: effects by layer as a table, and the heat map as rows of bars."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from errata.locate import Cell
from errata.report.tables import MISSING
from errata.tracing.places import Part, Position

PART_TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {Part.BLOCK: "hidden state", Part.MLP: "MLP outputs", Part.ATTENTION: "attention outputs"}
)
POSITION_TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        Position.SUBJECT_FIRST: "first subject token",
        Position.SUBJECT_MIDDLE: "middle subject tokens",
        Position.SUBJECT_LAST: "last subject token",
        Position.NEXT_FIRST: "first subsequent token",
        Position.NEXT_FURTHER: "further tokens",
        Position.LAST: "last token",
    }
)
_BARS = "·▁▂▃▄▅▆▇█"


def tracing_table(cells: Sequence[Cell], critical: Collection[int] = ()) -> Table:
    """Layers as lines, parts as columns: average indirect effects at the subject's last token with 95 % intervals.

    Args:
        critical: layers to mark.
    """
    found = {(cell["part"], cell["layer"]): cell for cell in cells if cell["position"] == Position.SUBJECT_LAST}
    facts = next(iter(found.values()))["n"]
    blocks = window_size(cells)
    table = Table(
        caption=f"Average indirect effect on the probability of the answer's first token [95 % interval over {facts} "
        "facts], restored at the subject's last token: the hidden state behind the layer; MLP and attention outputs "
        f"in {blocks} block{'s' if blocks > 1 else ''} around it",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,  # the box has a blank between columns already, and so 80 characters suffice
    )
    table.add_column("layer", justify="right")
    for title in PART_TITLES.values():
        table.add_column(title, justify="right")
    for layer in sorted({layer for _, layer in found}):
        # Text, not markup: an interval's brackets must not be read as a style.
        entries = [Text(_entry(found[part, layer])) for part in PART_TITLES]
        mark = "● " if layer in critical else ""
        table.add_row(Text(f"{mark}{layer}"), *entries, style="bold" if layer in critical else None)
    return table


def window_size(cells: Sequence[Cell]) -> int:
    """How many blocks were restored together; the model's ends cut the windows there."""
    return max(last - first + 1 for first, last in (cell["window"] for cell in cells))


def text_heat_map(cells: Sequence[Cell], *, width: int = 120) -> str:
    """For each part a line of bars for each kind of token, a bar for each layer; full ones are the part's largest.

    Args:
        width: of the lines, in characters; where there is room a bar takes two.
    """
    found = {(cell["part"], cell["position"], cell["layer"]): cell["mean"] for cell in cells}
    layers = 1 + max(layer for _, _, layer in found)
    margin = 2 + max(len(title) for title in POSITION_TITLES.values())
    thick = 2 if margin + 2 * layers <= width else 1
    lines = []
    for part, title in PART_TITLES.items():
        largest = max(mean for (of, _, _), mean in found.items() if of == part)
        scale = f"layers 0 to {layers - 1}, {_BARS[-1]} = {largest:.3f}" if largest > 0 else "no positive effect"
        lines.append(f"{title} ({scale})")
        for position, name in POSITION_TITLES.items():
            means = [found.get((part, position, layer)) for layer in range(layers)]
            bars = "".join(_bar(mean, largest) * thick for mean in means if mean is not None)
            lines.append(f"{name:>{margin - 2}}  {bars or MISSING}")
    return "\n".join(lines)


def _entry(cell: Cell) -> str:
    interval = "" if cell["low"] is None else f" [{cell['low']:.3f},{cell['high']:.3f}]"
    return f"{cell['mean']:.3f}{interval}"


def _bar(mean: float, largest: float) -> str:
    """In eighths of the largest; a dot where there is less than a sixteenth, or a negative effect."""
    return _BARS[round(8 * max(0.0, mean) / largest)] if largest > 0 else _BARS[0]
