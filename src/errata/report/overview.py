"""The first screen of a benchmark's page: which method, and what did it cost, in one picture and two sentences.

The picture is drawn by matplotlib without any text of a run, and takes its colours from the page (light, dark, print).
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from errata.report.comparison import Interval, separate_best
from errata.report.curves import COLOURS, marker_of
from errata.report.figures import check_drawing, drawing_settings, page_element
from errata.results.metrics import Metric, entry_of
from errata.results.records import Row
from errata.utils.text import counted

# The answers of which the unedited model knew some and the edited one lost some, the broadest kind first.
_LOST: Final = {
    "untouched_accuracy_known": "answers about other subjects",
    "unrelated_accuracy_known": "answers to unrelated questions",
    "specificity_accuracy_known": "answers about neighbours",
    "same_subject_accuracy_known": "other answers about the same subjects",
}
_NEAR: Final = 0.05  # methods whose efficacy is at most this much below the best are compared by what they cost
_WIDTH, _HEIGHT, _TEXT = 3.7, 2.9, 8.5  # inches, points
# Matplotlib's marker for each of the page's.
_MARKERS: Final = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "X", "inverted": "v"}
# Placeholders for the colours of the page; no other part of a drawing has these colours.
_SOFT, _RULE = "#010204", "#010205"
_OF_PAGE: Final = {_SOFT: "soft", _RULE: "rule"}


@dataclass(frozen=True, slots=True)
class OverviewLine:
    """A method's main numbers after the whole run; None where nothing was measured.

    Attributes:
        style: its index among all methods of the page.
        lost: metric -> the share of its known answers that were lost; only what was measured, the broadest kind first.
        is_stopped: whether one of its runs stopped early.
    """

    method: str
    style: int
    efficacy: Interval
    lost: Mapping[str, Interval]
    perplexity: Interval | None
    seconds: Interval | None
    is_stopped: bool


@dataclass(frozen=True, slots=True)
class OverviewColumn:
    """A column of the main table.

    Attributes:
        cells: for each method the value and its interval in words; ``–`` where nothing was measured.
    """

    heading: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """The first screen of one model on one data set.

    Attributes:
        kinds: the metrics of ``OverviewLine.lost`` that any method has, the broadest kind first, which the picture
            shows; empty without control questions.
        sentences: the answer in words.
    """

    lines: tuple[OverviewLine, ...]
    kinds: tuple[str, ...]
    sentences: tuple[str, str]

    @property
    def can_be_drawn(self) -> bool:
        """Whether at least one method has both efficacy and damage."""
        return any(_damage(line, self.drawn_kind) is not None for line in self.lines)

    @property
    def drawn_kind(self) -> str:
        """The kind of loss in the picture; empty if it shows perplexity."""
        return self.kinds[0] if self.kinds else ""

    @property
    def columns(self) -> tuple[OverviewColumn, ...]:
        """The main table, without columns in which nothing was measured."""
        values: list[tuple[str, str, list[Interval | None]]] = [
            ("new answer, %", Metric.EFFICACY_ACCURACY, [line.efficacy for line in self.lines]),
            *((f"{_LOST[kind]} lost, %", kind, [line.lost.get(kind) for line in self.lines]) for kind in self.kinds),
            ("perplexity ratio", Metric.PERPLEXITY_RATIO, [line.perplexity for line in self.lines]),
            ("time per edit, s", Metric.SECONDS_PER_EDIT, [line.seconds for line in self.lines]),
        ]
        return tuple(
            OverviewColumn(heading, tuple(_cell_text(value, metric) for value in column))
            for heading, metric, column in values
            if any(column)
        )


def overview(rows: Sequence[Row], methods: Sequence[str], stopped: Collection[str] = ()) -> Overview | None:
    """The first screen; None if efficacy accuracy was not measured after the whole run.

    Args:
        rows: of one model and one data set.
        methods: of the whole page, in the order of styles.
        stopped: methods with a run that stopped early, which are shown but not compared.
    """
    after = {(row["metric"], row["method"]): row for row in rows if row["when"] == "after"}

    def value(metric: str, method: str) -> Interval | None:
        row = after.get((metric, method))
        return None if row is None else Interval(row["mean"], row["low"], row["high"])

    lines = tuple(
        OverviewLine(
            method,
            style,
            efficacy,
            {kind: _complement(kept) for kind in _LOST if (kept := value(kind, method)) is not None},
            value(Metric.PERPLEXITY_RATIO, method),
            value(Metric.SECONDS_PER_EDIT, method),
            method in stopped,
        )
        for style, method in enumerate(methods)
        if (efficacy := value(Metric.EFFICACY_ACCURACY, method)) is not None
    )
    if not lines:
        return None
    kinds = tuple(kind for kind in _LOST if any(kind in line.lost for line in lines))
    return Overview(lines, kinds, _sentences(lines))


def _complement(found: Interval) -> Interval:
    low, high = (None if end is None else 1 - end for end in (found.high, found.low))
    return Interval(1 - found.mean, low, high)


def _damage(line: OverviewLine, kind: str) -> Interval | None:
    return line.lost.get(kind) if kind else line.perplexity


def _share(value: Interval) -> str:
    """``35.0 % [20.0, 50.0]``."""
    ends = "" if value.low is None or value.high is None else f" [{100 * value.low:.1f}, {100 * value.high:.1f}]"
    return f"{100 * value.mean:.1f} %{ends}"


def _times(value: Interval) -> str:
    """``1.10 times [1.09, 1.11]``."""
    ends = "" if value.low is None or value.high is None else f" [{value.low:.2f}, {value.high:.2f}]"
    return f"{value.mean:.2f} times{ends}"


def _sentences(lines: Sequence[OverviewLine]) -> tuple[str, str]:
    """Which method takes the edits best, and what that cost; nothing is called better within its interval."""
    compared = [line for line in lines if not line.is_stopped]
    if not compared:
        return "Every method stopped early, because perplexity exceeded its limit.", "So none is compared."
    best = max(compared, key=lambda line: line.efficacy.mean)
    first = f"{best.method} gives the new answer to {_share(best.efficacy)} of the edited prompts"
    if len(compared) == 1:
        pass
    elif separate_best([line.efficacy for line in compared], "higher") is not None:
        first += ", more than every other method"
    elif any(line.efficacy.low is None or line.efficacy.high is None for line in compared):
        first += ", the highest share, but some intervals are unknown, so the difference may be chance"
    else:
        first += ", the highest share, but its 95 % interval overlaps with that of another method"
    return f"{first}.", _cost(best, compared)


def _cost(best: OverviewLine, compared: Sequence[OverviewLine]) -> str:
    """What the best method changed besides, and whether one that is nearly as good clearly changed less.

    Of the kinds of lost answers, the sentence has the broadest and the one with the largest loss.
    """
    worst = max(best.lost, key=lambda kind: best.lost[kind].mean, default="")  # of equal ones, the broadest
    alone = all(best.lost[worst].mean > value.mean for kind, value in best.lost.items() if kind != worst)
    note = "the largest measured loss" if alone else "no measured loss is larger"
    parts = []
    for kind in dict.fromkeys([worst, *list(best.lost)[:1]] if worst else []):
        largest = f" ({note})" if kind == worst and len(best.lost) > 1 else ""
        parts.append(f"{_share(best.lost[kind])} of the known {_LOST[kind]} are lost{largest}")
    if best.perplexity is not None:
        parts.append(f"perplexity is {_times(best.perplexity)} that of the unedited model")
    if not parts:
        return "What that cost was not measured: there were no control questions and no texts."
    joined = ", and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"The cost: {joined}{_cheaper(best, worst, compared)}."


def _cheaper(best: OverviewLine, kind: str, compared: Sequence[OverviewLine]) -> str:
    """The method with the least damage of a kind among those near the best, if its interval is below the best's."""
    near = [
        (damage, line)
        for line in compared
        if line is not best
        and line.efficacy.mean >= best.efficacy.mean - _NEAR
        and (damage := _damage(line, kind)) is not None
    ]
    own = _damage(best, kind)
    if not near or own is None:
        return ""
    damage, least = min(near, key=lambda each: each[0].mean)
    if separate_best([own, damage], "lower") != 1:
        return ""
    what = (
        f"loses only {_share(damage)} of the known {_LOST[kind]}"
        if kind
        else f"has a perplexity of only {_times(damage)} that"
    )
    return f"; {least.method}, within {100 * _NEAR:.0f} points of its share, {what}"


def overview_svg(found: Overview, name: str) -> Markup:
    """Efficacy against damage, a method's two intervals as a cross: the better, the farther up and to the left.

    Args:
        name: prefix of the SVG's ids, unique in a page.

    Raises:
        MissingExtraError: if figures cannot be drawn here.
    """
    check_drawing()
    lost = _LOST.get(found.drawn_kind, "")
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context():
        drawing_settings(
            {
                "svg.fonttype": "none",
                "font.size": _TEXT,
                **dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _SOFT),
                "grid.color": _RULE,
            }
        )
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes: Any = figure.subplots()
        axes.patch.set_alpha(0.0)
        for line in found.lines:
            _draw_cross(axes, line, found.drawn_kind)
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("edited prompts with the new answer, %")
        axes.set_xlabel(f"{lost} lost, %" if lost else "perplexity, ratio to the unedited model")
        written = io.StringIO()
        FigureCanvasSVG(figure).print_svg(written, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    against = f"{lost} lost" if lost else "perplexity"
    what = f"efficacy against {against} of {counted(len(found.lines), 'method')}; the numbers are in the table"
    element = page_element(written.getvalue(), name, what)
    for placeholder, variable in (_OF_PAGE | {_colour(index): f"c{index}" for index in range(COLOURS)}).items():
        element = element.replace(placeholder, f"var(--{variable})")
    return Markup(element)


def _colour(style: int) -> str:
    return f"#0102{0x10 + style % COLOURS:02x}"


def _draw_cross(axes: Any, line: OverviewLine, kind: str) -> None:
    damage = _damage(line, kind)
    if damage is None:
        return
    scale = 100 if kind else 1
    x, y, colour = scale * damage.mean, 100 * line.efficacy.mean, _colour(line.style)
    if damage.low is not None and damage.high is not None:
        axes.plot([scale * damage.low, scale * damage.high], [y, y], color=colour, linewidth=1.6)
    if line.efficacy.low is not None and line.efficacy.high is not None:
        axes.plot([x, x], [100 * line.efficacy.low, 100 * line.efficacy.high], color=colour, linewidth=1.6)
    hollow = {"markerfacecolor": "none"} if line.is_stopped else {}
    axes.plot([x], [y], marker=_MARKERS[marker_of(line.style)], markersize=7, color=colour, linestyle="none", **hollow)


def _cell_text(value: Interval | None, metric: str) -> tuple[str, str]:
    if value is None:
        return "–", ""
    entry = entry_of(metric)
    return entry.number(value.mean), entry.interval(value.low, value.high)
