"""Curves over the number of edits: a small chart for each metric, with a line for each method.

The SVG is written here because it takes its colours from the page (light, dark, print). A method's colour, dash
and marker are the same in all charts; each of the three distinguishes methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from markupsafe import Markup

from errata.results.metrics import Group, MetricEntry, Unit, entries_by_group
from errata.results.records import Row
from errata.utils.text import counted


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to units of the drawing, with tick values."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    @classmethod
    def linear(cls, low: float, high: float, start: float, end: float) -> Scale:
        """From a round number at or below ``low`` to one at or above ``high``."""
        step = _step((high - low) or abs(high) or 1.0)
        first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step) + 1)
        ticks = tuple(round(index * step, 12) for index in range(first, last + 1))
        return cls(ticks[0], ticks[-1], start, end, ticks)

    @classmethod
    def powers(cls, low: float, high: float, start: float, end: float) -> Scale:
        """Logarithmic, between powers of ten; both values are above 0."""
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(1, math.ceil((last - first) / 5))
        ticks = tuple(10.0**power for power in range(first, last + 1, every))
        return cls(10.0**first, 10.0**last, start, end, ticks, logarithmic=True)

    def at(self, value: float) -> float:
        """The position of a value; values outside are placed on the edge."""
        clipped = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(clipped / self.low) / math.log(self.high / self.low)
        else:
            share = (clipped - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _step(span: float) -> float:
    """A round distance between ticks: 1, 2 or 5 times a power of ten, for four to eight of them."""
    power = 10.0 ** math.floor(math.log10(span))
    return next(power * part for part in (0.2, 0.5, 1.0, 2.0) if span / (power * part) <= 6)


COLOURS: Final = 8  # in the page's style sheet
_DASHES: Final = ("", "6 3", "2 2.5", "8 3 2 3", "12 3", "4 2 1 2")
_MARKERS: Final = ("circle", "square", "triangle", "diamond", "cross", "inverted")
# Of the drawing, in its units; the page scales it.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340.0, 220.0, 46.0, 10.0, 12.0, 38.0
_CHARACTER: Final = 6.2  # maximum width of a digit of a tick label, in the page's font of 10.5
_TITLE: Final = 18.0  # width of the vertical axis label with its gap
_SHOWN_MARKERS: Final = 12  # per line; more would hide it


@dataclass(frozen=True, slots=True)
class Point:
    """A value after a number of edits; ``low`` and ``high`` are None without an interval."""

    edits: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """A method's line; ``style`` is its index among all methods."""

    method: str
    style: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """One metric over the number of edits."""

    title: str
    entry: MetricEntry
    curves: tuple[Curve, ...]

    @property
    def unit(self) -> str:
        """The unit of the vertical axis."""
        named = {Unit.PERCENT: "%", Unit.RATIO: "ratio to the unedited model", Unit.SECONDS: "seconds"}
        return "‖ΔW‖ / ‖W‖" if self.entry.name == "weight_norm_ratio" else named.get(self.entry.unit, "")


def charts(rows: Sequence[Row], methods: Sequence[str]) -> list[Chart]:
    """A chart for each metric that was measured during the run.

    A curve ends where one of its runs stopped: means over the remaining runs could seem to recover. Curves of control
    questions start at 0 edits with the unedited model if it was asked the same number of questions as at the first
    check; otherwise the sampling would look like an effect of editing. Curves of edited facts do not, since the rise to
    the first check would hide the rest. With a single check, the line goes from before editing to the end of the run;
    if these were not measured, there is no chart. Lost, gained and changed answers are in tables only.

    Args:
        rows: of one model and one data set.
        methods: of the whole page, in the order of styles.
    """
    during = [row for row in rows if row["when"] == "during" and "edits" in row]
    drawn = []
    for entry in entries_by_group({row["metric"] for row in during}):
        if entry.group is Group.CHANGES:
            continue
        name, curves = entry.name, []
        for style, method in enumerate(methods):
            checks = [row for row in during if (row["method"], row["metric"]) == (method, name)]
            before, after = (
                [row for row in rows if (row["method"], row["metric"], row["when"]) == (method, name, when)]
                for when in ("before", "after")
            )
            if len({row["edits"] for row in checks}) == 1:
                points = _ends(name, before, after)
            else:
                points = _points(before if entry.group is Group.OTHERS else [], checks) if checks else ()
            if len(points) > 1:
                curves.append(Curve(method, style, points))
        if not curves:
            continue
        drawn.append(Chart(entry.heading[:1].upper() + entry.heading[1:], entry, tuple(curves)))
    return drawn


def _points(before: Sequence[Row], checks: Sequence[Row]) -> tuple[Point, ...]:
    """The unedited model, if it can be compared, and the checks until a run stops."""
    ordered = sorted(checks, key=lambda row: row["edits"])
    first = ordered[0]
    start = [_point(row, 0) for row in before if row["n"] == first["n"] and first["edits"] > 0]
    whole = takewhile(lambda row: row.get("seeds") == first.get("seeds"), ordered)
    return (*start, *(_point(row, row["edits"]) for row in whole))


def _ends(name: str, before: Sequence[Row], after: Sequence[Row]) -> tuple[Point, ...]:
    """Before editing and after the whole run."""
    start = [Point(0, 0.0, None, None)] if name == "weight_norm_ratio" else [_point(row, 0) for row in before]
    return (*start, *(_point(row, row["edits"]) for row in after if row.get("edits", 0) > 0))


def _point(row: Row, edits: int) -> Point:
    return Point(edits, row["mean"], row["low"], row["high"])


def chart_svg(chart: Chart) -> Markup:
    """The chart as an SVG element; its classes ``s0`` … ``s7`` are in the page's style sheet."""
    up = _vertical(chart)
    labels = [_tick(tick, chart) for tick in up.ticks]
    left = max(_LEFT, _TITLE + _CHARACTER * max(map(len, labels)) + 6)
    most = max(point.edits for curve in chart.curves for point in curve.points)
    across = Scale.linear(0.0, float(most), left, _right())
    parts = [_grid(across, up, labels, chart)]
    for curve in chart.curves:
        parts.append(_curve(curve, across, up, chart.entry))
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}, {}: {} over the number of edits">{}</svg>'
    ).format(_WIDTH, _HEIGHT, chart.title, chart.unit, counted(len(chart.curves), "method"), Markup("").join(parts))


def swatch_svg(style: int) -> Markup:
    """A method's line and marker, for the legend."""
    line = Markup('<line x1="1" y1="7" x2="33" y2="7" stroke-dasharray="{}"/>').format(_DASHES[style % len(_DASHES)])
    return Markup('<svg class="swatch s{}" viewBox="0 0 34 14" aria-hidden="true">{}{}</svg>').format(
        style % COLOURS, line, marker_svg(style, 17.0, 7.0)
    )


def marker_of(style: int) -> str:
    """The shape of a method's marker."""
    return _MARKERS[(style + style // len(_MARKERS)) % len(_MARKERS)]


def marker_svg(style: int, x: float, y: float, size: float = 3.4, title: str = "") -> Markup:
    """A method's marker at a point, with ``title`` as its tooltip."""
    kind = marker_of(style)
    shapes = {
        "square": f"M{x - size:.1f} {y - size:.1f}h{2 * size:.1f}v{2 * size:.1f}h{-2 * size:.1f}z",
        "triangle": f"M{x:.1f} {y - 1.2 * size:.1f}l{1.2 * size:.1f} {2.1 * size:.1f}h{-2.4 * size:.1f}z",
        "inverted": f"M{x:.1f} {y + 1.2 * size:.1f}l{1.2 * size:.1f} {-2.1 * size:.1f}h{-2.4 * size:.1f}z",
        "diamond": f"M{x:.1f} {y - 1.4 * size:.1f}l{1.4 * size:.1f} {1.4 * size:.1f}l{-1.4 * size:.1f} "
        f"{1.4 * size:.1f}l{-1.4 * size:.1f} {-1.4 * size:.1f}z",
        "cross": f"M{x - size:.1f} {y - size:.1f}l{2 * size:.1f} {2 * size:.1f}m0 {-2 * size:.1f}"
        f"l{-2 * size:.1f} {2 * size:.1f}",
        "circle": f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size:.1f} 0"
        f"a{size} {size} 0 1 0 {-2 * size:.1f} 0z",
    }
    inner = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<path class="marker" d="{}">{}</path>').format(shapes[kind], inner)


def line_svg(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A line; ``kind`` is its class in the page's style sheet."""
    line = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return line.format(kind, x1, y1, x2, y2)


def text_svg(x: float, y: float, text: object, anchor: str = "middle") -> Markup:
    """A text; ``anchor`` is the part of it at ``x``."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _right() -> float:
    return _WIDTH - _RIGHT


def _vertical(chart: Chart) -> Scale:
    """From 0 to 100 % for shares; logarithmic if values span more than a factor of 20."""
    values = [
        value
        for curve in chart.curves
        for point in curve.points
        for value in (point.mean, point.low, point.high)
        if value is not None
    ]
    low, high, bottom = min(values), max(values), _HEIGHT - _BOTTOM
    if chart.entry.unit is Unit.PERCENT:
        return Scale(0.0, 1.0, bottom, _TOP, (0.0, 0.25, 0.5, 0.75, 1.0))
    if low > 0 and high / low > 20:
        return Scale.powers(low, high, bottom, _TOP)
    return Scale.linear(min(low, 0.0) if chart.entry.name != "perplexity_ratio" else min(low, 1.0), high, bottom, _TOP)


def _tick(value: float, chart: Chart) -> str:
    return f"{100 * value:.0f}" if chart.entry.unit is Unit.PERCENT else f"{value:g}"


def _grid(across: Scale, up: Scale, labels: Sequence[str], chart: Chart) -> Markup:
    parts = []
    left = across.start
    for tick, text in zip(up.ticks, labels, strict=True):
        y = up.at(tick)
        parts += [line_svg("grid", left, y, _right(), y), text_svg(left - 6, y + 3.5, text, anchor="end")]
    for tick in across.ticks:
        if tick == int(tick):
            x, y = across.at(tick), _HEIGHT - _BOTTOM
            parts += [line_svg("tick", x, y, x, y + 4), text_svg(x, y + 15, f"{int(tick)}")]
    parts.append(text_svg((left + _right()) / 2, _HEIGHT - 6, "facts edited"))
    unit = chart.unit + (", log scale" if up.logarithmic else "")
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        Markup('<text transform="translate(10 {}) rotate(-90)" text-anchor="middle">{}</text>').format(middle, unit)
    )
    return Markup("").join(parts)


def _curve(curve: Curve, across: Scale, up: Scale, entry: MetricEntry) -> Markup:
    places = [(across.at(float(point.edits)), up.at(point.mean)) for point in curve.points]
    banded = [point for point in curve.points if point.low is not None and point.high is not None]
    edges = [(point.edits, point.high or 0.0) for point in banded]
    edges += [(point.edits, point.low or 0.0) for point in reversed(banded)]
    band = Markup('<polygon class="band" points="{}"/>').format(
        " ".join(f"{across.at(float(edits)):.1f},{up.at(value):.1f}" for edits, value in edges)
    )
    line = Markup('<polyline points="{}" stroke-dasharray="{}"/>').format(
        " ".join(f"{x:.1f},{y:.1f}" for x, y in places), _DASHES[curve.style % len(_DASHES)]
    )
    every = max(1, math.ceil(len(places) / _SHOWN_MARKERS))
    markers = [
        marker_svg(curve.style, x, y, title=_label(curve.method, point, entry))
        for index, (point, (x, y)) in enumerate(zip(curve.points, places, strict=True))
        if index % every == 0 or index == len(places) - 1
    ]
    return Markup('<g class="curve s{}" data-style="{}">{}{}{}</g>').format(
        curve.style % COLOURS, curve.style, band if len(banded) > 1 else Markup(""), line, Markup("").join(markers)
    )


def _label(method: str, point: Point, entry: MetricEntry) -> str:
    interval = entry.interval(point.low, point.high)
    value = f"{entry.number(point.mean)}{entry.unit_text}"
    return f"{method}, {point.edits} edits: {value}{' ' if interval else ''}{interval}"
