"""A study's figures as pictures: SVG and PNG, in dark ink on a light ground and the other way round.

They are made for a print width of seven inches, at which no text is smaller than 7 pt. The same findings give the
same bytes. matplotlib is imported here and in ``panels`` only, without pyplot: nothing of it lasts beyond a call.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any, Final

from markupsafe import escape

from errata.analysis.findings import Figure, Panel
from errata.extras import require
from errata.report.figure_styles import Scheme, places_of, style_at
from errata.report.markdown import visible
from errata.report.panels import CHARACTER, ROW, TEXT_SIZE, draw_panel, is_level, slant_of

# Inches.
_WIDTH, _WIDTH_OF_ONE, _LEGEND_ROW = 7.0, 4.8, 0.17
_PER_ROW: Final = 3
_DPI: Final = 200
_NO_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# What refers to a part of an SVG by its id, and the id itself.
_IDS: Final = re.compile(r'(\sid="|href="#|url\(#)')
_SETTINGS: Final[Mapping[str, Any]] = {
    "font.size": TEXT_SIZE,
    "font.family": "DejaVu Sans",  # matplotlib brings it along: the same letters everywhere
    "svg.hashsalt": "errata",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a $ in somebody's label is a $
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.5,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure in one scheme.

    Attributes:
        svg: one element ``<svg>``, for a file of its own or for the middle of a page: its ids begin with the name that
            was asked for, it has no style sheet, no script, and nothing of it lies elsewhere.
    """

    svg: str
    png: bytes


def check_drawing() -> None:
    """Raises MissingExtraError if figures cannot be drawn here."""
    require("a study's figures", "plots", "matplotlib")


def draw(figure: Figure, scheme: Scheme, *, name: str, places: Mapping[str, int] | None = None) -> Picture:
    """Draw a figure, its panels in rows of at most three, with one legend for all.

    Args:
        name: what the SVG's ids begin with, as one page may hold many; letters, digits and ``-``.
        places: label -> place of its style, where several figures share them; see ``places_of``.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    with composed(figure, scheme, places) as canvas:
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata=_NO_METADATA)
        canvas.savefig(png, format="png", metadata={"Software": None})
    return Picture(_element(svg.getvalue(), f"{name}{scheme.suffix}", figure), png.getvalue())


@contextmanager
def composed(figure: Figure, scheme: Scheme, places: Mapping[str, int] | None = None) -> Iterator[Any]:
    """A figure as matplotlib's, to be saved inside the block, where the settings hold that it is made with; see
    ``draw``.
    """
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    known = places_of([figure]) if places is None else places
    rows = _rows(figure.panels)
    width = _WIDTH_OF_ONE if len(figure.panels) <= 1 else _WIDTH
    heights = [ROW + max((slant_of(panel, width / len(row)) for panel in row), default=0.0) for row in rows]
    labels = sorted(places_of([figure]), key=known.__getitem__)
    per_line = min(len(labels), max(1, int(width / (0.55 + CHARACTER * max(map(len, labels), default=1)))))
    legend = 0.06 + _LEGEND_ROW * ceil(len(labels) / max(1, per_line))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user has set for pictures of their own
        settings: Any = {**_SETTINGS, **_inks(scheme)}
        matplotlib.rcParams.update(settings)
        canvas = Canvas(figsize=(width, sum(heights) + legend), layout="constrained", dpi=_DPI)
        parts = canvas.subfigures(len(rows) + 1, 1, height_ratios=[*heights, legend], squeeze=False)[:, 0]
        for part, row in zip(parts, rows, strict=False):  # each row by itself: columns have no use for each other
            axes = part.subplots(1, len(row), squeeze=False)[0]
            for axis, panel in zip(axes, row, strict=True):
                draw_panel(axis, panel, scheme, known, width=width / len(row))
        if figure.shared_axes:
            _share(canvas.axes)
        if labels:
            handles = [
                _key(label, known[label], scheme, _kinds(figure, label), level=_only_levels(figure, label))
                for label in labels
            ]
            parts[-1].legend(handles=handles, loc="center", frameon=False, ncols=per_line, handlelength=3)
        yield canvas


def _share(axes: Sequence[Any]) -> None:
    """All panels as far as the farthest of them."""
    for limits, limit in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        ends = [getattr(axis, limits)() for axis in axes]
        for axis in axes:
            getattr(axis, limit)(min(low for low, _ in ends), max(high for _, high in ends))


def _rows(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    """As few rows as there can be with at most three panels each, as even as can be; the first ones are longer."""
    rows = max(1, ceil(len(panels) / _PER_ROW))
    ends = [ceil(len(panels) * row / rows) for row in range(rows + 1)]
    return [panels[start:end] for start, end in pairwise(ends) if end > start]


def _inks(scheme: Scheme) -> dict[str, Any]:
    ink = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    soft = ("axes.edgecolor", "xtick.color", "ytick.color")
    ground = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "savefig.edgecolor")
    return (
        dict.fromkeys(ink, scheme.ink)
        | dict.fromkeys(soft, scheme.soft)
        | dict.fromkeys(ground, scheme.ground)
        | {"grid.color": scheme.rule}
    )


def _kinds(figure: Figure, label: str) -> set[str]:
    return {panel.kind for panel in figure.panels for each in panel.series if visible(each.label) == label}


def _only_levels(figure: Figure, label: str) -> bool:
    """Whether a label is of lines across panels and of nothing else."""
    return all(
        is_level(each, panel) for panel in figure.panels for each in panel.series if visible(each.label) == label
    )


def _key(label: str, place: int, scheme: Scheme, kinds: set[str], *, level: bool) -> Any:
    """The legend's entry of a series: as it looks in the panels that have it."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    style = style_at(place, scheme)
    if kinds == {"bars"}:
        return Patch(facecolor=style.colour, edgecolor=scheme.ground, hatch=style.hatch, label=label)
    dash: Any = style.dash if "lines" in kinds else "none"
    marker = "" if level else style.marker
    return Line2D([], [], color=style.colour, linestyle=dash, marker=marker, markersize=4.5, linewidth=1.4, label=label)


def _element(whole: str, name: str, figure: Figure) -> str:
    """The SVG as an element that may stand in a page beside others."""
    inner = re.sub(r"<!--.*?-->\s*", "", whole[whole.index("<svg") :], flags=re.DOTALL)  # every text, once more
    inner = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", inner, flags=re.DOTALL)  # would be the page's
    inner = _IDS.sub(lambda found: f"{found[0]}{name}-", inner)
    says = escape(visible(figure.caption or figure.name, 2000))
    root = f'<svg role="img" aria-label="{says}" stroke-linejoin="round" stroke-linecap="butt"'
    return inner.replace("<svg", root, 1)
