"""A scan of layers for people: a table for terminals and documents, and the curve as a figure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from errata.layer_scan import LayerScan, LayerScore
from errata.report.heatmap import check_drawing
from errata.report.tables import MISSING

_COLUMNS = ("layer", "score", "efficacy", "generalisation", "damage", "says it", "reworded")


def scan_table(scan: LayerScan, chosen: Collection[int] = ()) -> Table:
    """One line for each scanned layer.

    Args:
        chosen: layers to mark.
    """
    wordings = "in other wordings" if scan.paraphrased else "in contexts that the search has not seen"
    asked = (
        f"; damage: the share that answers to {scan.controls} control questions lost"
        if scan.controls
        else "; no control questions were asked"
    )
    table = Table(
        caption=f"{scan.facts} facts written into one layer alone. Efficacy: the probability of the new answers in the "
        f"facts' own prompts; generalisation: {wordings}{asked}. The last two columns: how many facts in a hundred the "
        "model says as they were written.",
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
    """The same as a table for documents; chosen layers are bold."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---:|" * len(_COLUMNS)]
    for row in scan.scores:
        name = f"**{row.layer}**" if row.layer in chosen else str(row.layer)
        lines.append("| " + " | ".join([name, *_numbers(row)]) + " |")
    return "\n".join(lines) + "\n"


def _numbers(row: LayerScore) -> list[str]:
    damage = MISSING if row.damage is None else f"{row.damage:.3f}"
    own, other = (f"{100 * share:.0f}" for share in row.accuracy)
    return [f"{row.score:.3f}", f"{row.efficacy:.3f}", f"{row.generalisation:.3f}", damage, own, other]


def draw_scan(scan: LayerScan, paths: Sequence[Path], *, title: str = "", chosen: Collection[int] = ()) -> None:
    """Draw score, efficacy, generalisation and damage over the layers, the chosen ones shaded; one file for each path.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure

    layers = [row.layer for row in scan.scores]
    # The salt makes the names inside an SVG, and with them the file, the same every time.
    with matplotlib.rc_context({"font.size": 8, "svg.hashsalt": "errata"}):
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
        axes.set_xlabel("layer that is edited alone")
        axes.set_ylabel("probability")
        axes.set_title(title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend(frameon=False, loc="upper right", fontsize=7)
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=150, metadata=metadata)
