"""Teacher-forced metrics next to their free-running counterparts, and the gap between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from errata.report.comparison import TableCell, table_cell
from errata.report.curves import COLOURS, line_svg, marker_svg, text_svg
from errata.results.metrics import entry_of
from errata.results.records import Row

# Question, teacher-forced metrics, and free-running ones, the one for the chart first.
_PAIRS: Final = (
    *(
        (
            subject.capitalize(),
            (f"{subject}_accuracy", f"{subject}_tokens"),
            tuple(f"free_{subject}_{measure}" for measure in ("contained", "exact", "judged")),
        )
        for subject in ("efficacy", "generalisation", "portability")
    ),
    ("Specificity", ("specificity_accuracy",), ("free_locality_neighbours",)),
    ("Unrelated questions", ("unrelated_agreement", "unrelated_accuracy"), ("free_locality_unrelated",)),
    ("Untouched facts", ("untouched_accuracy",), ("free_locality_untouched",)),
)
_LEFT, _RIGHT, _ROW, _TOP, _BOTTOM, _WIDTH = 12.0, 12.0, 22.0, 8.0, 34.0, 340.0


@dataclass(frozen=True, slots=True)
class GapLine:
    """One method: teacher-forced and free-running values, and the difference of the first two in percentage points."""

    method: str
    style: int
    forced: TableCell
    free: tuple[TableCell, ...]
    gap: str


@dataclass(frozen=True, slots=True)
class Gap:
    """One kind of question, measured both ways after the whole run."""

    title: str
    forced: str
    free: tuple[str, ...]
    lines: tuple[GapLine, ...]


def gaps(rows: Sequence[Row], methods: Sequence[str]) -> list[Gap]:
    """A table for each kind of question that was measured both ways, for one model and data set.

    Args:
        methods: of the whole page, in the order of styles.
    """
    after = {(row["method"], row["metric"]): row for row in rows if row["when"] == "after"}
    measured = {metric for _, metric in after}
    found = []
    for title, forced_names, free_names in _PAIRS:
        forced = next((name for name in forced_names if name in measured), None)
        free = [name for name in free_names if name in measured]
        if forced is None or not free:
            continue
        lines = [
            _line(method, style, after.get((method, forced)), [after.get((method, name)) for name in free])
            for style, method in enumerate(methods)
            if any((method, name) in after for name in (forced, *free))
        ]
        headings = tuple(entry_of(name).heading for name in free)
        found.append(Gap(title, entry_of(forced).heading, headings, tuple(lines)))
    return found


def _line(method: str, style: int, forced: Row | None, free: Sequence[Row | None]) -> GapLine:
    first = free[0]
    gap = "–" if forced is None or first is None else f"{100 * (first['mean'] - forced['mean']):+.1f}"
    cells = tuple(table_cell(row, with_n=True) for row in free)
    return GapLine(method, style, table_cell(forced, with_n=True), cells, gap.replace("-", "−"))


def gap_svg(gap: Gap) -> Markup:
    """A line for each method from its teacher-forced value (hollow) to its free-running one (filled)."""
    height = _TOP + _ROW * len(gap.lines) + _BOTTOM
    bottom = height - _BOTTOM
    parts = []
    for tick in (0, 25, 50, 75, 100):
        x = _across(tick / 100)
        parts += [line_svg("grid", x, _TOP, x, bottom), text_svg(x, bottom + 14, tick)]
    parts.append(text_svg(_WIDTH / 2, height - 6, "%"))
    parts += [_dumbbell(line, _TOP + _ROW * (index + 0.5)) for index, line in enumerate(gap.lines)]
    return Markup(
        '<svg class="chart gap" viewBox="0 0 {} {}" role="img" aria-label="{}, teacher-forced (hollow) and '
        'free-running (filled), in percent">{}</svg>'
    ).format(_WIDTH, height, gap.title, Markup("").join(parts))


def _dumbbell(line: GapLine, y: float) -> Markup:
    forced, free = line.forced.row, line.free[0].row
    parts = []
    if forced is not None and free is not None:
        parts.append(line_svg("bar", _across(forced["mean"]), y, _across(free["mean"]), y))
    if forced is not None:
        title = f"{line.method}, teacher-forced: {line.forced.value} %"
        parts.append(
            Markup('<g class="hollow">{}</g>').format(marker_svg(line.style, _across(forced["mean"]), y, 5.2, title))
        )
    if free is not None:
        title = f"{line.method}, free-running: {line.free[0].value} %"
        parts.append(marker_svg(line.style, _across(free["mean"]), y, 3.2, title))
    return Markup('<g class="curve s{}" data-style="{}">{}</g>').format(
        line.style % COLOURS, line.style, Markup("").join(parts)
    )


def _across(share: float) -> float:
    return _LEFT + min(max(share, 0.0), 1.0) * (_WIDTH - _LEFT - _RIGHT)
