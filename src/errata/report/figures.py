"""The figures of a study as SVG and PNG, each in a light and a dark colour scheme.

They are made for a print width of seven inches, at which no text is smaller than 7 pt. Equal findings give equal bytes.
matplotlib is used without pyplot, so that no global state remains.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, pairwise
from math import ceil, isfinite, log10
from typing import Any, Final

from markupsafe import escape

from errata.analysis.findings import Figure, Label, Panel, Series
from errata.report.markdown import visible
from errata.utils.optional import require
from errata.utils.text import counted


@dataclass(frozen=True, slots=True)
class Scheme:
    """A colour scheme.

    Attributes:
        suffix: of file names.
        ground: the background.
        ink: of text.
        soft: of axes and less important text.
        rule: of grid lines.
        colours: of series; the first ones differ most.
    """

    suffix: str
    ground: str
    ink: str
    soft: str
    rule: str
    colours: tuple[str, ...]


LIGHT: Final = Scheme(
    "", "#ffffff", "#1c2026", "#59616c", "#e3e6ea",
    ("#05429a", "#de7419", "#087b3f", "#002043", "#e03695", "#8007ed", "#571503"),
)  # fmt: skip
DARK: Final = Scheme(
    "-dark", "#14171b", "#e7eaee", "#a4adb8", "#2b3138",
    ("#3c8bff", "#d44a0f", "#12dc92", "#ffffff", "#ff73c4", "#7727ff", "#ffd405"),
)  # fmt: skip
SCHEMES: Final = (LIGHT, DARK)

_CLEAR: Final = 5  # colours that are easily distinguished
_MARKERS: Final = ("o", "s", "^", "D", "v", "X", "P", "p", "*")
_DASHES: Final[tuple[Any, ...]] = (
    "-",
    (0, (5, 2)),
    (0, (1.2, 1.4)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1.2, 1, 1.2, 1, 1.2)),
)
_HATCHES: Final = ("", "////", "---", "\\\\\\\\", "xxxx")  # dots would add a quarter of a megabyte to an SVG


@dataclass(frozen=True, slots=True)
class Style:
    """The style of a series; ``dash`` and ``hatch`` as in matplotlib."""

    colour: str
    marker: str
    dash: Any
    hatch: str


def style_at(index: int, scheme: Scheme) -> Style:
    """The style with an index; colours, markers, dashes and hatches repeat after different numbers of indices."""
    colours = scheme.colours
    return Style(
        colours[index % len(colours)],
        _MARKERS[index % len(_MARKERS)],
        _DASHES[index % len(_DASHES)],
        _HATCHES[index % len(_HATCHES)],
    )


def style_indices(*studies: Iterable[Figure]) -> dict[str, int]:
    """The style index of each label, common to all figures, so that equal labels look the same.

    Labels of one figure never share an index. Labels of one study do only if there are more than clearly different
    colours; labels that share no study start from the first colour again.

    Args:
        studies: the figures of each study.
    """
    same_figure: dict[str, set[str]] = {}
    same_study: dict[str, set[str]] = {}
    for figures in studies:
        of_figures = [_labels(figure) for figure in figures]
        of_study = {label for labels in of_figures for label in labels}
        for labels in of_figures:
            for label in labels:
                same_figure.setdefault(label, set()).update(labels)
                same_study.setdefault(label, set()).update(of_study)
    styles: dict[str, int] = {}
    for label in same_figure:
        in_study, in_figure = (
            {styles[other] for other in group[label] if other in styles} for group in (same_study, same_figure)
        )
        free = (style for style in range(_CLEAR) if style not in in_study)
        styles[label] = next(free, next(style for style in count() if style not in in_figure))
    return styles


def _labels(figure: Figure) -> list[str]:
    return list(dict.fromkeys(visible(series.label) for panel in figure.panels for series in panel.series))


TEXT_SIZE: Final = 7.5
_TITLE_SIZE: Final = 8.0
# Inches: average width of a character; height of a row of panels; width of a panel outside its axes.
CHARACTER: Final = 0.062
ROW: Final = 2.35
_MARGIN: Final = 0.65
_FEW: Final = 12  # points of a line with markers and intervals; longer lines have fewer markers and a band
_MANY: Final = 1000  # points; panels with more are rasterised in the SVG
_CUT: Final = 26  # characters of a tick's label
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw_panel(axis: Any, panel: Panel, scheme: Scheme, styles: Mapping[str, int], *, width: float) -> None:
    """Draw a panel on matplotlib's axes.

    Values that are not positive are omitted from logarithmic axes, and the panel shows their number.

    Args:
        styles: label -> style index.
        width: of the panel with its labels, in inches.
    """
    across = _Positions(panel)
    hidden = sum(_draw_series(axis, panel, number, across, scheme, styles) for number in range(len(panel.series)))
    if not any(len(series.x) or is_level(series, panel) for series in panel.series):
        axis.text(0.5, 0.5, "no values", transform=axis.transAxes, ha="center", va="center", color=scheme.soft)
    _scale(axis, panel, across, width)
    axis.grid(axis="both" if panel.kind == "points" else "y", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=2.5)
    low, high = axis.get_ylim()
    if low < 0 < high and panel.kind != "points":
        axis.axhline(0, color=scheme.soft, linewidth=0.7, zorder=1)
    title = _wrapped(panel.title, width - 0.3, 1.08)
    note = f"\n({counted(hidden, 'value')} not above 0 omitted)" if hidden else ""
    axis.set_title(title + note, fontsize=_TITLE_SIZE)
    axis.set_xlabel(_wrapped(panel.x_label + (", log scale" if panel.log_x else ""), width - 0.5))
    axis.set_ylabel(_wrapped(panel.y_label + (", log scale" if panel.log_y else ""), ROW - 0.55))


def is_level(series: Series, panel: Panel) -> bool:
    """Whether a series is a line across the whole panel."""
    return panel.kind == "lines" and not len(series.x) and len(series.y) == 1


class _Positions:
    """Horizontal positions of x values: numbers at their value, others side by side in order of appearance."""

    def __init__(self, panel: Panel) -> None:
        self.values: list[Label] = list(dict.fromkeys(x for series in panel.series for x in series.x))
        self.named = panel.kind == "bars" or any(isinstance(value, str) for value in self.values)
        if self.named and not any(isinstance(value, str) for value in self.values):
            self.values.sort()
        self._place = {value: place for place, value in enumerate(self.values)}

    def at(self, value: Label) -> float:
        return float(self._place[value]) if self.named else float(value)

    def step(self) -> float:
        """The distance between neighbours; 0 if it is too small to shift points."""
        places = sorted(map(self.at, self.values))
        return min((after - before for before, after in pairwise(places)), default=0.0) if len(places) <= _FEW else 0.0


def _from_middle(number: int, panel: Panel) -> float:
    return number - (len(panel.series) - 1) / 2


def _draw_series(
    axis: Any, panel: Panel, number: int, across: _Positions, scheme: Scheme, styles: Mapping[str, int]
) -> int:
    """Draw one series; returns the number of omitted values."""
    series = panel.series[number]
    style = style_at(styles[visible(series.label)], scheme)
    if is_level(series, panel):
        (level,) = series.y
        if level > 0 or not panel.log_y:
            axis.axhline(level, color=style.colour, linestyle=style.dash, linewidth=1.2)
            return 0
        return 1
    lows = series.low or [None] * len(series.x)
    highs = series.high or [None] * len(series.x)
    whole = [
        (across.at(x), y, low, high)
        for x, y, low, high in zip(series.x, series.y, lows, highs, strict=True)
    ]  # fmt: skip
    shown = [
        each for each in whole if (each[1] > 0 or not panel.log_y) and (each[0] > 0 or across.named or not panel.log_x)
    ]
    if not shown:
        return len(whole)
    xs, ys = [each[0] for each in shown], [each[1] for each in shown]
    if panel.kind == "points":
        total = sum(len(each.x) for each in panel.series)
        size, alpha = (16, 0.85) if total <= 100 else (9, 0.6) if total <= _MANY else (4, 0.35)
        axis.scatter(
            xs, ys, s=size, c=style.colour, marker=style.marker, alpha=alpha, linewidths=0, rasterized=total > _MANY
        )
    elif panel.kind == "bars":
        share = 0.8 / len(panel.series)
        xs = [x + share * _from_middle(number, panel) for x in xs]
        axis.bar(xs, ys, share, color=style.colour, edgecolor=scheme.ground, hatch=style.hatch, linewidth=0.6)
        _whiskers(axis, xs, shown, panel, scheme.ground, thicker=2)  # so that it is visible on any bar
        _whiskers(axis, xs, shown, panel, scheme.ink)
    else:
        if not panel.log_x or across.named:  # shifted slightly, so that intervals and lines do not hide each other
            xs = [x + across.step() * 0.04 * _from_middle(number, panel) for x in xs]
        _draw_line(axis, xs, ys, shown, panel, style)
    return len(whole) - len(shown)


def _draw_line(
    axis: Any, xs: Sequence[float], ys: Sequence[float], shown: Sequence[tuple[Any, ...]], panel: Panel, style: Style
) -> None:
    few = len(xs) <= _FEW
    axis.plot(
        xs, ys, color=style.colour, linestyle=style.dash, linewidth=1.4, marker=style.marker, markersize=4.5,
        markevery=1 if few else max(1, len(xs) // _FEW),
    )  # fmt: skip
    if few:
        _whiskers(axis, xs, shown, panel, style.colour)
    else:
        known = [(x, *each[2:]) for x, each in zip(xs, shown, strict=True) if None not in each[2:]]
        axis.fill_between(
            [x for x, _, _ in known], [_above(low, panel, high) for _, low, high in known],
            [high for *_, high in known],
            color=style.colour, alpha=0.18, linewidth=0,
        )  # fmt: skip


def _whiskers(
    axis: Any,
    xs: Sequence[float],
    shown: Sequence[tuple[Any, ...]],
    panel: Panel,
    colour: str,
    *,
    thicker: int = 0,
) -> None:
    """Intervals, drawn from end to end: a mean need not lie between the ends."""
    known = [
        (x, _above(low, panel, mean), high)
        for x, (_, mean, low, high) in zip(xs, shown, strict=True)
        if low is not None and high is not None and (high > 0 or not panel.log_y)
    ]
    xs, lows, highs = ([each[place] for each in known] for place in range(3))
    width = 1 + thicker
    for ends in (lows, highs):
        axis.plot(xs, ends, linestyle="none", marker="_", markersize=5 + thicker, markeredgewidth=width, color=colour)
    axis.vlines(xs, lows, highs, color=colour, linewidth=width)


def _above(low: float, panel: Panel, value: float) -> float:
    """The lower end of an interval; on a logarithmic axis, one below 0 extends to the end of the axis."""
    return low if low > 0 or not panel.log_y else value / 100


def _scale(axis: Any, panel: Panel, across: _Positions, width: float) -> None:
    """Set scales, and as many ticks as fit into ``width`` inches."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    number = FuncFormatter(lambda value, _: format_number(value))
    for which, logarithmic in ((axis.xaxis, panel.log_x and not across.named), (axis.yaxis, panel.log_y)):
        if logarithmic:
            which._set_axes_scale("log")
            low, high = which.get_view_interval()
            which.set_major_locator(LogLocator(subs=(1.0,) if high / low > 30 else (1.0, 2.0, 5.0), numticks=8))
            which.set_minor_formatter(NullFormatter())
        else:
            which.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=3))
        which.set_major_formatter(number)
    if across.named:
        _name_ticks(axis, [format_label(value) for value in across.values], width - _MARGIN)
    elif (
        panel.kind == "lines"
        and across.values
        and _have_room([float(x) for x in across.values], panel, width - _MARGIN)
    ):
        axis.xaxis.set_major_locator(FixedLocator(sorted(map(float, across.values))))
        axis.xaxis.set_minor_locator(NullLocator())
    elif not panel.log_x and all(isinstance(value, int) for value in across.values):
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _have_room(values: Sequence[float], panel: Panel, width: float) -> bool:
    """Whether each value of a line can have a tick."""
    if not 0 < len(values) <= _FEW or (panel.log_x and min(values) <= 0):
        return False
    places = sorted(log10(value) if panel.log_x else value for value in values)
    span = 1.1 * (places[-1] - places[0])
    needed = (2 + max(len(format_number(value)) for value in values)) * CHARACTER
    return all((after - before) / span * width > needed for before, after in pairwise(places))


def slant_of(panel: Panel, width: float) -> float:
    """The additional height in inches of a panel with slanted tick labels."""
    across = _Positions(panel)
    names = [format_label(value) for value in across.values]
    return 0.64 * CHARACTER * max(map(len, names)) if across.named and _slanted(names, width - _MARGIN) else 0.0


def _slanted(names: Sequence[str], width: float) -> bool:
    return width / max(1, len(names)) < (1 + max(map(len, names), default=0)) * CHARACTER


def _name_ticks(axis: Any, names: Sequence[str], width: float) -> None:
    spacing = width / max(1, len(names))
    slanted = _slanted(names, width)
    every = max(1, -int(-0.13 // spacing)) if slanted else 1  # not all of very many can be labelled
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axis.set_xticks(range(0, len(names), every), list(names[::every]), **slant)
    axis.set_xlim(-0.6, len(names) - 0.4)


def format_label(value: Label) -> str:
    """A tick label: short, on one line."""
    return visible(value, _CUT) if isinstance(value, str) else format_number(value)


def format_number(value: int | float) -> str:
    """``0.25``, ``12,500`` or ``2×10⁻⁵``, with a typographic minus."""
    if value == 0 or not isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.6g}".replace("-", "−") if abs(value) < 1e4 else f"{value:,.0f}".replace("-", "−")
    digits, power = f"{value:.5e}".split("e")
    digits = digits.rstrip("0").rstrip(".").replace("-", "−")
    raised = str(int(power)).translate(_SUPERSCRIPTS)
    return f"{'' if digits == '1' else digits + '×'}10{raised}"


def _wrapped(text: str, inches: float, size: float = 1.0) -> str:
    characters = max(12, int(inches / (CHARACTER * size)))
    return "\n".join(textwrap.wrap(visible(text, 300), characters))


# Inches.
_WIDTH, _WIDTH_OF_ONE, _LEGEND_ROW = 7.0, 4.8, 0.17
_PER_ROW: Final = 3
_DPI: Final = 200
_NO_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# Ids in an SVG, and references to them.
_IDS: Final = re.compile(r'(\sid="|href="#|url\(#)')
_SETTINGS: Final[Mapping[str, Any]] = {
    "font.size": TEXT_SIZE,
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so the same everywhere
    "svg.hashsalt": "errata",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a $ in a label is not mathematics
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.5,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure in one colour scheme.

    Attributes:
        svg: an ``<svg>`` element for a file or a page; its ids start with the given name, and it has no style sheet,
            script or external reference.
    """

    svg: str
    png: bytes


def check_drawing() -> None:
    """Raises MissingExtraError if figures cannot be drawn here."""
    require("drawing figures", "plots", "matplotlib")


def draw(figure: Figure, scheme: Scheme, *, name: str, styles: Mapping[str, int] | None = None) -> Picture:
    """Draw a figure, its panels in rows of at most three, with one legend for all.

    Args:
        name: prefix of the SVG's ids, unique in a page; letters, digits and ``-``.
        styles: label -> style index, if several figures share them; see ``style_indices``.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    with composed(figure, scheme, styles) as canvas:
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata=_NO_METADATA)
        canvas.savefig(png, format="png", metadata={"Software": None})
    return Picture(
        page_element(svg.getvalue(), f"{name}{scheme.suffix}", figure.caption or figure.name), png.getvalue()
    )


@contextmanager
def composed(figure: Figure, scheme: Scheme, styles: Mapping[str, int] | None = None) -> Iterator[Any]:
    """A figure of matplotlib, to be saved inside the block, in which its settings apply; see ``draw``."""
    check_drawing()
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    known = style_indices([figure]) if styles is None else styles
    rows = _rows(figure.panels)
    width = _WIDTH_OF_ONE if len(figure.panels) <= 1 else _WIDTH
    heights = [ROW + max((slant_of(panel, width / len(row)) for panel in row), default=0.0) for row in rows]
    labels = sorted(style_indices([figure]), key=known.__getitem__)
    per_line = min(len(labels), max(1, int(width / (0.55 + CHARACTER * max(map(len, labels), default=1)))))
    legend = 0.06 + _LEGEND_ROW * ceil(len(labels) / max(1, per_line))
    with matplotlib.rc_context():
        drawing_settings(_colour_settings(scheme))
        canvas = Canvas(figsize=(width, sum(heights) + legend), layout="constrained", dpi=_DPI)
        parts = canvas.subfigures(len(rows) + 1, 1, height_ratios=[*heights, legend], squeeze=False)[:, 0]
        for part, row in zip(parts, rows, strict=False):  # rows are laid out separately: their columns need not align
            axes = part.subplots(1, len(row), squeeze=False)[0]
            for axis, panel in zip(axes, row, strict=True):
                draw_panel(axis, panel, scheme, known, width=width / len(row))
        if figure.shared_axes:
            _use_common_limits(canvas.axes)
        if labels:
            handles = [_legend_handle(figure, label, known[label], scheme) for label in labels]
            parts[-1].legend(handles=handles, loc="center", frameon=False, ncols=per_line, handlelength=3)
        yield canvas


def _use_common_limits(axes: Sequence[Any]) -> None:
    """Give all panels the same limits."""
    for limits, limit in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        ends = [getattr(axis, limits)() for axis in axes]
        for axis in axes:
            getattr(axis, limit)(min(low for low, _ in ends), max(high for _, high in ends))


def _rows(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    """As few rows as possible with at most three panels each, of similar length."""
    rows = max(1, ceil(len(panels) / _PER_ROW))
    ends = [ceil(len(panels) * row / rows) for row in range(rows + 1)]
    return [panels[start:end] for start, end in pairwise(ends) if end > start]


def _colour_settings(scheme: Scheme) -> dict[str, Any]:
    ink = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    soft = ("axes.edgecolor", "xtick.color", "ytick.color")
    ground = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "savefig.edgecolor")
    return (
        dict.fromkeys(ink, scheme.ink)
        | dict.fromkeys(soft, scheme.soft)
        | dict.fromkeys(ground, scheme.ground)
        | {"grid.color": scheme.rule}
    )


def _legend_handle(figure: Figure, label: str, index: int, scheme: Scheme) -> Any:
    """The legend entry of a series, as it looks in the panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found = [(each, panel) for panel in figure.panels for each in panel.series if visible(each.label) == label]
    kinds = {panel.kind for _, panel in found}
    level = all(is_level(each, panel) for each, panel in found)
    style = style_at(index, scheme)
    if kinds == {"bars"}:
        return Patch(facecolor=style.colour, edgecolor=scheme.ground, hatch=style.hatch, label=label)
    dash: Any = style.dash if "lines" in kinds else "none"
    marker = "" if level else style.marker
    return Line2D([], [], color=style.colour, linestyle=dash, marker=marker, markersize=4.5, linewidth=1.4, label=label)


def drawing_settings(own: Mapping[str, Any]) -> None:
    """Set matplotlib's settings for a drawing, whatever the user's are; inside ``matplotlib.rc_context``.

    Args:
        own: further settings of the drawing.
    """
    import matplotlib

    matplotlib.rcdefaults()
    settings: Any = {**_SETTINGS, **own}
    matplotlib.rcParams.update(settings)


def page_element(whole: str, name: str, caption: str) -> str:
    """An SVG of matplotlib as an element that can be put into a page with others.

    Args:
        name: prefix of its ids, unique in the page; letters, digits and ``-``.
        caption: what it shows, for those who do not see it.
    """
    inner = re.sub(r"<!--.*?-->\s*", "", whole[whole.index("<svg") :], flags=re.DOTALL)  # copies of all texts
    inner = re.sub(
        r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", inner, flags=re.DOTALL
    )  # would apply to the page
    inner = _IDS.sub(lambda found: f"{found[0]}{name}-", inner)
    says = escape(visible(caption, 2000))
    root = f'<svg role="img" aria-label="{says}" stroke-linejoin="round" stroke-linecap="butt"'
    return inner.replace("<svg", root, 1)
