"""The heat map of causal tracing as in the literature: rows are kinds of tokens, columns layers, a panel a part.

After Meng et al. (2022), "Locating and Editing Factual Associations in GPT", figure 2. matplotlib is imported here
only, without pyplot: nothing of it lasts beyond a call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errata.extras import require
from errata.locate import Cell
from errata.report.tracing import PART_TITLES, POSITION_TITLES, window_size
from errata.tracing.places import Part, Position

# One hue a part, as in the paper; each grows darker evenly, so that it can be read in grey.
_COLOURS = {Part.BLOCK: "Purples", Part.MLP: "Greens", Part.ATTENTION: "Reds"}
# Inches: a printed page's text; heads, ticks and bars; one kind of token; the legend.
_WIDTH, _MARGIN, _ROW, _LEGEND = 7.2, 1.6, 0.18, 0.22


def check_drawing() -> None:
    """Raises MissingExtraError if heat maps cannot be drawn here."""
    require("the heat map", "plots", "matplotlib")


def draw_heat_map(
    cells: Sequence[Cell], paths: Sequence[Path], *, title: str = "", critical: Collection[int] = ()
) -> None:
    """Draw average indirect effects, and write the picture once for each path, in the format of its suffix.

    A part has its own scale from 0 to its largest effect; negative effects are white, what no fact has is hatched.

    Args:
        critical: neighbouring layers to frame at the subject's last token; a legend says what the frame is.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure

    positions = list(POSITION_TITLES) if len({cell["position"] for cell in cells}) > 1 else [Position.SUBJECT_LAST]
    layers = 1 + max(cell["layer"] for cell in cells)
    # The hash salt makes the names inside an SVG, and with them the file, the same every time.
    with matplotlib.rc_context({"font.size": 8, "svg.hashsalt": "errata", "hatch.linewidth": 0.4}):
        height = _MARGIN + _ROW * len(positions) + (_LEGEND if critical else 0)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        panels = figure.subplots(1, len(PART_TITLES), sharey=True, squeeze=False)[0]
        for panel, (part, name) in zip(panels, PART_TITLES.items(), strict=True):
            values = _values(cells, part, positions, layers)
            _draw_panel(figure, panel, values, _COLOURS[Part(part)])
            reach = "at one layer" if part == Part.BLOCK else f"window of {window_size(cells)}"
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
        for path in paths:
            figure.savefig(path, dpi=300, metadata={"Date": None} if path.suffix == ".svg" else None)


def _values(cells: Sequence[Cell], part: str, positions: Sequence[str], layers: int) -> Any:
    """(positions, layers) effects; NaN where no fact has such a token."""
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
