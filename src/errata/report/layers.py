"""Layer scans and causal tracing as tables for terminals and documents, and as figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from errata.report.figures import check_drawing
from errata.report.markdown import markdown_table
from errata.report.tables import MISSING
from errata.tracing.causal_tracing import Component, EffectEstimate, Position
from errata.tracing.layer_scan import LayerScan, LayerScore

PART_TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {Component.BLOCK: "hidden state", Component.MLP: "MLP outputs", Component.ATTENTION: "attention outputs"}
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


def tracing_table(cells: Sequence[EffectEstimate], critical: Collection[int] = ()) -> Table:
    """Average indirect effects at the last subject token by layer and part, with 95 % intervals.

    Args:
        critical: layers to mark.
    """
    found = {(cell["part"], cell["layer"]): cell for cell in cells if cell["position"] == Position.SUBJECT_LAST}
    facts = next(iter(found.values()))["n"]
    blocks = window_size(cells)
    table = Table(
        caption=f"Average indirect effect on the probability of the answer's first token [95 % interval over {facts} "
        "facts], restored at the last subject token: the hidden state after the layer; MLP and attention outputs "
        f"in {blocks} block{'s' if blocks > 1 else ''} around it",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,  # the box has a space between columns already, so 80 characters suffice
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


def window_size(cells: Sequence[EffectEstimate]) -> int:
    """The number of blocks restored together; smaller at both ends of the model."""
    return max(last - first + 1 for first, last in (cell["window"] for cell in cells))


def text_heat_map(cells: Sequence[EffectEstimate], *, width: int = 120) -> str:
    """For each part, one line per kind of token with one bar per layer; full bars are the largest of the part.

    Args:
        width: of the lines, in characters; bars are two characters wide if they fit.
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


def _entry(cell: EffectEstimate) -> str:
    interval = "" if cell["low"] is None else f" [{cell['low']:.3f},{cell['high']:.3f}]"
    return f"{cell['mean']:.3f}{interval}"


def _bar(mean: float, largest: float) -> str:
    """In eighths of the largest; a dot for less than a sixteenth, and for negative effects."""
    return _BARS[round(8 * max(0.0, mean) / largest)] if largest > 0 else _BARS[0]


# One hue per part, as in the paper; each darkens evenly, so that it can be read in greyscale.
_COLOURS = {Component.BLOCK: "Purples", Component.MLP: "Greens", Component.ATTENTION: "Reds"}
# Inches: text width of a page; headings, ticks and bars; one kind of token; the legend.
_WIDTH, _MARGIN, _ROW, _LEGEND = 7.2, 1.6, 0.18, 0.22


# A $ in a model's name is not mathematics. The salt makes the names inside an SVG, and so the file, reproducible.
_STYLE: Final[Any] = {"font.size": 8, "text.parse_math": False, "svg.hashsalt": "errata"}


def draw_heat_map(
    cells: Sequence[EffectEstimate], paths: Sequence[Path], *, title: str = "", critical: Collection[int] = ()
) -> None:
    """Draw average indirect effects, and write the figure to each path, in the format of its suffix.

    Each part has its own scale from 0 to its largest effect; negative effects are white, missing ones are hatched.

    Args:
        critical: neighbouring layers to frame at the last subject token, with a legend.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure

    positions = list(POSITION_TITLES) if len({cell["position"] for cell in cells}) > 1 else [Position.SUBJECT_LAST]
    layers = 1 + max(cell["layer"] for cell in cells)

    with matplotlib.rc_context({**_STYLE, "hatch.linewidth": 0.4}):
        height = _MARGIN + _ROW * len(positions) + (_LEGEND if critical else 0)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        panels = figure.subplots(1, len(PART_TITLES), sharey=True, squeeze=False)[0]
        for panel, (part, name) in zip(panels, PART_TITLES.items(), strict=True):
            values = _values(cells, part, positions, layers)
            _draw_panel(figure, panel, values, _COLOURS[Component(part)])
            reach = "at one layer" if part == Component.BLOCK else f"window of {window_size(cells)}"
            panel.set_title(f"{name}\n({reach})", fontsize=8)
            if critical:
                corner, width = (min(critical) - 0.5, positions.index(Position.SUBJECT_LAST) - 0.5), len(critical)
                panel.add_patch(_frame(corner, width))
        panels[0].set_yticks(range(len(positions)), [POSITION_TITLES[position] for position in positions])
        figure.suptitle(title, fontsize=8)
        if critical:
            first, last = min(critical), max(critical)
            named = f"layer {first}" if first == last else f"layers {first} to {last}"
            frame = _frame((0.0, 0.0), 1, label=f"proposed critical {named}, at the last subject token")
            figure.legend(handles=[frame], loc="outside lower center", frameon=False, fontsize=7)
        _save(figure, paths, dpi=300)


def _save(figure: Any, paths: Sequence[Path], *, dpi: int) -> None:
    for path in paths:  # without the time, so that the same figure is the same file
        figure.savefig(path, dpi=dpi, metadata={"Date": None} if path.suffix == ".svg" else None)


def _values(cells: Sequence[EffectEstimate], part: str, positions: Sequence[str], layers: int) -> Any:
    """(positions, layers) effects; NaN if no fact has such a token."""
    values = np.full((len(positions), layers), np.nan)
    for cell in cells:
        if cell["part"] == part and cell["position"] in positions:
            values[positions.index(cell["position"]), cell["layer"]] = cell["mean"]
    return values


def _frame(corner: tuple[float, float], width: int, *, label: str = "") -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, 1, fill=False, edgecolor="black", linewidth=1, clip_on=False, label=label)


def _draw_panel(figure: Any, panel: Any, values: Any, colours: str) -> None:
    from matplotlib.ticker import MaxNLocator

    largest = max(float(np.nanmax(values)), 1e-9)  # a scale from 0 to 0 cannot be drawn
    panel.patch.set(facecolor="white", hatch="////", edgecolor="0.6")
    image = panel.imshow(values, cmap=colours, vmin=0, vmax=largest, aspect="auto", interpolation="nearest")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panel.set_xlabel("layer")
    panel.tick_params(length=2)
    bar = figure.colorbar(image, ax=panel, location="bottom", shrink=0.9, aspect=18, pad=0.04)
    bar.set_label("average indirect effect\n(probability of the answer)", fontsize=7)
    bar.ax.tick_params(labelsize=7, length=2)


_COLUMNS = ("layer", "score", "efficacy", "generalisation", "damage", "accuracy", "paraphrased")


def scan_table(scan: LayerScan, chosen: Collection[int] = ()) -> Table:
    """A table with one line per scanned layer.

    Args:
        chosen: layers to mark.
    """
    wordings = "in paraphrases" if scan.paraphrased else "in contexts that the target search did not use"
    asked = (
        f"; damage: decrease of the share of correct answers to {scan.controls} control questions"
        if scan.controls
        else "; no control questions were asked"
    )
    table = Table(
        caption=f"{scan.facts} facts edited into a single layer. Efficacy: probability of the new answers after the "
        f"edited prompts; generalisation: {wordings}{asked}. The last two columns: accuracy in % on the prompts of "
        "efficacy and of generalisation.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for title in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for row in scan.scores:
        marked = row.layer in chosen
        cells = [f"{'● ' if marked else ''}{row.layer}", *_numbers(row)]
        table.add_row(*(Text(cell) for cell in cells), style="bold" if marked else None)
    return table


def scan_markdown(scan: LayerScan, chosen: Collection[int] = ()) -> str:
    """The same table for documents; chosen layers are bold."""
    lines = [[f"**{row.layer}**" if row.layer in chosen else str(row.layer), *_numbers(row)] for row in scan.scores]
    return markdown_table(_COLUMNS, lines, ["---:"] * len(_COLUMNS)) + "\n"


def _numbers(row: LayerScore) -> list[str]:
    damage = MISSING if row.damage is None else f"{row.damage:.3f}"
    own, other = (f"{100 * share:.0f}" for share in row.accuracy)
    return [f"{row.score:.3f}", f"{row.efficacy:.3f}", f"{row.generalisation:.3f}", damage, own, other]


def draw_scan(scan: LayerScan, paths: Sequence[Path], *, title: str = "", chosen: Collection[int] = ()) -> None:
    """Draw score, efficacy, generalisation and damage over the layers, the chosen ones shaded, and write each path.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure

    layers = [row.layer for row in scan.scores]

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        axes: Any = figure.subplots()
        if chosen:
            axes.axvspan(min(chosen) - 0.5, max(chosen) + 0.5, color="0.9", label="critical layers")
        curves: dict[str, tuple[list[float], dict[str, Any]]] = {
            "score": ([row.score for row in scan.scores], {"color": "black", "marker": "o", "linewidth": 1.8}),
            "efficacy": ([row.efficacy for row in scan.scores], {"color": "#0072b2", "marker": "s", "linestyle": "--"}),
            "generalisation": (
                [row.generalisation for row in scan.scores], {"color": "#009e73", "marker": "^", "linestyle": "--"}
            ),
        }  # fmt: skip
        if scan.controls:
            damage = [row.damage or 0.0 for row in scan.scores]
            curves["damage"] = (damage, {"color": "#d55e00", "marker": "v", "linestyle": ":"})
        for name, (values, style) in curves.items():
            axes.plot(layers, values, label=name, markersize=3.5, **style)
        axes.set_xlim(-0.5, scan.depth - 0.5)
        axes.set_xlabel("edited layer")
        axes.set_ylabel("probability")
        axes.set_title(title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend(frameon=False, loc="upper right", fontsize=7)
        _save(figure, paths, dpi=150)
