"""One pair of axes of a study's figure: lines, bars or points, with intervals where there are any."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite, log10
from typing import Any, Final

from errata.analysis.findings import Label, Panel, Series
from errata.report.figure_styles import Scheme, Style, style_at
from errata.report.markdown import visible

TEXT_SIZE: Final = 7.5
_TITLE_SIZE: Final = 8.0
# Inches: a character of the text, on average; a row of panels; what of a panel's width is not its axes.
CHARACTER: Final = 0.062
ROW: Final = 2.35
_MARGIN: Final = 0.65
_FEW: Final = 12  # points of a line: each with its marker and its interval; of more, every so many, and a band
_MANY: Final = 1000  # points of a panel that are kept as a picture inside the SVG
_CUT: Final = 26  # characters of a tick's label
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw_panel(axis: Any, panel: Panel, scheme: Scheme, places: Mapping[str, int], *, width: float) -> None:
    """Draw a panel on matplotlib's axes.

    What a logarithmic axis has no place for is left out, and the panel says how many values that are.

    Args:
        places: label -> place of its style.
        width: of the panel with its labels, in inches.
    """
    across = _Across(panel)
    hidden = sum(_draw_series(axis, panel, number, across, scheme, places) for number in range(len(panel.series)))
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
    told = f"\n({hidden} of its values, not above 0, have no place here)" if hidden else ""
    axis.set_title(title + told, fontsize=_TITLE_SIZE)
    axis.set_xlabel(_wrapped(panel.x_label + (", log scale" if panel.log_x else ""), width - 0.5))
    axis.set_ylabel(_wrapped(panel.y_label + (", log scale" if panel.log_y else ""), ROW - 0.55))


def is_level(series: Series, panel: Panel) -> bool:
    """Whether a series is a line across the whole panel."""
    return panel.kind == "lines" and not len(series.x) and len(series.y) == 1


class _Across:
    """Where a series' x lie: numbers where they are, everything else side by side in the order of appearance."""

    def __init__(self, panel: Panel) -> None:
        self.values: list[Label] = list(dict.fromkeys(x for series in panel.series for x in series.x))
        self.named = panel.kind == "bars" or any(isinstance(value, str) for value in self.values)
        if self.named and not any(isinstance(value, str) for value in self.values):
            self.values.sort()
        self._place = {value: place for place, value in enumerate(self.values)}

    def at(self, value: Label) -> float:
        return float(self._place[value]) if self.named else float(value)

    def step(self) -> float:
        """The distance between neighbours; 0 where that is too small for anything beside them."""
        places = sorted(map(self.at, self.values))
        return min((after - before for before, after in pairwise(places)), default=0.0) if len(places) <= _FEW else 0.0


def _from_middle(number: int, panel: Panel) -> float:
    return number - (len(panel.series) - 1) / 2


def _draw_series(
    axis: Any, panel: Panel, number: int, across: _Across, scheme: Scheme, places: Mapping[str, int]
) -> int:
    """Draws one series; gives how many of its values have no place on the axes."""
    series = panel.series[number]
    style = style_at(places[visible(series.label)], scheme)
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
        _whiskers(axis, xs, shown, panel, scheme.ground, thicker=2)  # so that the ink is seen on any bar
        _whiskers(axis, xs, shown, panel, scheme.ink)
    else:
        if not panel.log_x or across.named:  # a little beside each other, where intervals or lines would hide the last
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
        told = [(x, *each[2:]) for x, each in zip(xs, shown, strict=True) if None not in each[2:]]
        axis.fill_between(
            [x for x, _, _ in told], [_above(low, panel, high) for _, low, high in told], [high for *_, high in told],
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
    """Intervals, drawn from end to end as they were told: a mean need not lie between the ends."""
    told = [
        (x, _above(low, panel, mean), high)
        for x, (_, mean, low, high) in zip(xs, shown, strict=True)
        if low is not None and high is not None and (high > 0 or not panel.log_y)
    ]
    xs, lows, highs = ([each[place] for each in told] for place in range(3))
    width = 1 + thicker
    for ends in (lows, highs):
        axis.plot(xs, ends, linestyle="none", marker="_", markersize=5 + thicker, markeredgewidth=width, color=colour)
    axis.vlines(xs, lows, highs, color=colour, linewidth=width)


def _above(low: float, panel: Panel, value: float) -> float:
    """An interval's lower end; on a logarithmic axis one below 0 goes on to where the axis can still show it."""
    return low if low > 0 or not panel.log_y else value / 100


def _scale(axis: Any, panel: Panel, across: _Across, width: float) -> None:
    """Axes, logarithmic where asked for, with as many ticks as have room in ``width`` inches."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    number = FuncFormatter(lambda value, _: told_number(value))
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
        _name_ticks(axis, [told_label(value) for value in across.values], width - _MARGIN)
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
    """Whether each value of a line may have its own tick."""
    if not 0 < len(values) <= _FEW or (panel.log_x and min(values) <= 0):
        return False
    places = sorted(log10(value) if panel.log_x else value for value in values)
    span = 1.1 * (places[-1] - places[0])
    needed = (2 + max(len(told_number(value)) for value in values)) * CHARACTER
    return all((after - before) / span * width > needed for before, after in pairwise(places))


def slant_of(panel: Panel, width: float) -> float:
    """How much higher a panel of a width must be for the names under it, in inches."""
    across = _Across(panel)
    names = [told_label(value) for value in across.values]
    return 0.64 * CHARACTER * max(map(len, names)) if across.named and _slanted(names, width - _MARGIN) else 0.0


def _slanted(names: Sequence[str], width: float) -> bool:
    return width / max(1, len(names)) < (1 + max(map(len, names), default=0)) * CHARACTER


def _name_ticks(axis: Any, names: Sequence[str], width: float) -> None:
    room = width / max(1, len(names))
    slanted = _slanted(names, width)
    every = max(1, -int(-0.13 // room)) if slanted else 1  # of very many, not all can be named
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axis.set_xticks(range(0, len(names), every), list(names[::every]), **slant)
    axis.set_xlim(-0.6, len(names) - 0.4)


def told_label(value: Label) -> str:
    """A label at an axis: short, on one line."""
    return visible(value, _CUT) if isinstance(value, str) else told_number(value)


def told_number(value: int | float) -> str:
    """``0.25``, ``12,500`` or ``2×10⁻⁵``; with the minus of print."""
    if value == 0 or not isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.6g}".replace("-", "−") if abs(value) < 1e4 else f"{value:,.0f}".replace("-", "−")
    digits, power = f"{value:.5e}".split("e")
    digits = digits.rstrip("0").rstrip(".").replace("-", "−")
    raised = str(int(power)).translate(_SUPERSCRIPTS)
    return f"{'' if digits == '1' else digits + '×'}10{raised}"


def _wrapped(text: str, inches: float, size: float = 1.0) -> str:
    room = max(12, int(inches / (CHARACTER * size)))
    return "\n".join(textwrap.wrap(visible(text, 300), room))
