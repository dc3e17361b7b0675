"""The first screen of a benchmark's page: which method, and what did it cost, in one picture and two sentences.

The picture is drawn by matplotlib without any text of a run, and takes its colours from the page (light, dark, print).
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
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
# Colours that stand for those of the page, which no other part of a drawing has.
_SOFT, _RULE = "#010204", "#010205"
_OF_PAGE: Final = {_SOFT: "soft", _RULE: "rule"}


@dataclass(frozen=True, slots=True)
class OverviewLine:
    """A method's main numbers after the whole run; None where nothing was measured.

    Attributes:
        style: its index among all methods of the page.
        lost: the share of known control answers that were lost.
        is_stopped: whether one of its runs stopped early.
    """

    method: str
    style: int
    efficacy: Interval
    paraphrases: Interval | None
    lost: Interval | None
    perplexity: Interval | None
    seconds: Interval | None
    is_stopped: bool


@dataclass(frozen=True, slots=True)
class Overview:
    """The first screen of one model on one data set.

    Attributes:
        lost: the answers that ``OverviewLine.lost`` counts; empty without control questions.
        sentences: the answer in words.
    """

    lines: tuple[OverviewLine, ...]
    lost: str
    sentences: tuple[str, str]

    @property
    def can_be_drawn(self) -> bool:
        """Whether at least one method has both efficacy and damage."""
        return any(_damage(line, self.lost) is not None for line in self.lines)


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

    kind = next((metric for metric in _LOST if any(value(metric, method) for method in methods)), "")
    lines = tuple(
        OverviewLine(
            method,
            style,
            efficacy,
            value(Metric.GENERALISATION_ACCURACY, method),
            _complement(value(kind, method)),
            value(Metric.PERPLEXITY_RATIO, method),
            value(Metric.SECONDS_PER_EDIT, method),
            method in stopped,
        )
        for style, method in enumerate(methods)
        if (efficacy := value(Metric.EFFICACY_ACCURACY, method)) is not None
    )
    if not lines:
        return None
    lost = _LOST.get(kind, "")
    return Overview(lines, lost, _sentences(lines, lost))


def _complement(found: Interval | None) -> Interval | None:
    if found is None:
        return None
    low, high = (None if end is None else 1 - end for end in (found.high, found.low))
    return Interval(1 - found.mean, low, high)


def _damage(line: OverviewLine, lost: str) -> Interval | None:
    return line.lost if lost else line.perplexity


def _sentences(lines: Sequence[OverviewLine], lost: str) -> tuple[str, str]:
    """Which method takes the edits best, and what that cost; nothing is called better within its interval."""
    compared = [line for line in lines if not line.is_stopped]
    if not compared:
        return "Every method stopped early, because perplexity exceeded its limit.", "So none is compared."
    best = max(compared, key=lambda line: line.efficacy.mean)
    share = f"{100 * best.efficacy.mean:.1f} %"
    if len(compared) == 1:
        first = f"{best.method} gives the new answer to {share} of the edited prompts."
    elif separate_best([line.efficacy for line in compared], "higher") is not None:
        first = f"{best.method} gives the new answer to {share} of the edited prompts, more than every other method."
    else:
        first = (
            f"{best.method} gives the new answer to {share} of the edited prompts, the most, but not with an interval "
            "separate from all others."
        )
    return first, _cost(best, compared, lost)


def _cost(best: OverviewLine, compared: Sequence[OverviewLine], lost: str) -> str:
    """What the best method changed besides, and whether one that is nearly as good changed less."""
    parts = []
    if best.lost is not None:
        parts.append(f"{100 * best.lost.mean:.1f} % of the known {lost} are lost")
    if best.perplexity is not None:
        parts.append(f"perplexity is {best.perplexity.mean:.2f} times that of the unedited model")
    if not parts:
        return "What that cost was not measured: there were no control questions and no texts."
    sentence = f"The cost: {' and '.join(parts)}"
    near = [
        (damage, line)
        for line in compared
        if line.efficacy.mean >= best.efficacy.mean - _NEAR and (damage := _damage(line, lost)) is not None
    ]
    if len(near) > 1:
        damage, least = min(near, key=lambda each: each[0].mean)
        number = f"{100 * damage.mean:.1f} %" if lost else f"{damage.mean:.2f} times"
        if least is best:
            sentence += f", the least of the {counted(len(near), 'method')} within {100 * _NEAR:.0f} points"
        else:
            sentence += f"; {least.method}, within {100 * _NEAR:.0f} points, costs least ({number})"
    return f"{sentence}."


def overview_svg(found: Overview, name: str) -> Markup:
    """Efficacy against damage, a method's two intervals as a cross: the better, the farther up and to the left.

    Args:
        name: prefix of the SVG's ids, unique in a page.

    Raises:
        MissingExtraError: if figures cannot be drawn here.
    """
    check_drawing()
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
            _draw_cross(axes, line, found.lost)
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("edited prompts with the new answer, %")
        axes.set_xlabel(f"{found.lost} lost, %" if found.lost else "perplexity, ratio to the unedited model")
        written = io.StringIO()
        FigureCanvasSVG(figure).print_svg(written, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    against = f"{found.lost} lost" if found.lost else "perplexity"
    what = f"efficacy against {against} of {counted(len(found.lines), 'method')}; the numbers are in the table"
    element = page_element(written.getvalue(), name, what)
    for placeholder, variable in (_OF_PAGE | {_colour(index): f"c{index}" for index in range(COLOURS)}).items():
        element = element.replace(placeholder, f"var(--{variable})")
    return Markup(element)


def _colour(style: int) -> str:
    return f"#0102{0x10 + style % COLOURS:02x}"


def _draw_cross(axes: Any, line: OverviewLine, lost: str) -> None:
    damage = _damage(line, lost)
    if damage is None:
        return
    scale = 100 if lost else 1
    x, y, colour = scale * damage.mean, 100 * line.efficacy.mean, _colour(line.style)
    if damage.low is not None and damage.high is not None:
        axes.plot([scale * damage.low, scale * damage.high], [y, y], color=colour, linewidth=1.6)
    if line.efficacy.low is not None and line.efficacy.high is not None:
        axes.plot([x, x], [100 * line.efficacy.low, 100 * line.efficacy.high], color=colour, linewidth=1.6)
    hollow = {"markerfacecolor": "none"} if line.is_stopped else {}
    axes.plot([x], [y], marker=_MARKERS[marker_of(line.style)], markersize=7, color=colour, linestyle="none", **hollow)


def cell_text(value: Interval | None, metric: str) -> tuple[str, str]:
    """A value and its interval as in the tables; ``–`` if nothing was measured."""
    if value is None:
        return "–", ""
    entry = entry_of(metric)
    return entry.number(value.mean), entry.interval(value.low, value.high)
