"""Tables of long-form rows, for terminals (rich) and for documents (Markdown)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from rich import box
from rich.table import Table
from rich.text import Text

from errata.errors import InputError
from errata.evaluation.outcomes import no_room
from errata.results.metrics import Group, Metric, Unit, entry_of, in_order
from errata.results.records import Row, When

Part = Literal["edited", "others"]
_PARTS: tuple[Part, ...] = get_args(Part)
MISSING = "–"
UNEDITED = "before editing"
RIGHT_AFTER = "  right after"
_GAP = 2  # blanks between columns, where there is room for so many

# The metrics of each part; their short headings' words are on separate lines in a narrow table.
_COLUMNS: Mapping[Part, tuple[Metric, ...]] = {
    part: tuple(
        metric
        for metric in Metric
        if metric.entry.short
        and (metric.entry.group is Group.EDITED or metric is Metric.SECONDS_PER_EDIT) == (part == "edited")
    )
    for part in _PARTS
}
_MEANING: Mapping[Part, str] = {
    "edited": "%. acc.: every token of the answer is the likeliest; succ.: the new answer is likelier than the old one",
    "others": (
        "%. known: accuracy over the questions that the unedited model answers correctly; all: over all of them; "
        "succ.: the true answer is likelier than the new one; ΔW/W: Frobenius norm of the change over the weights'"
    ),
}
_TITLES: Mapping[Part, str] = {"edited": "The edited facts", "others": "Everything else"}


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a table: its name, its cells, and whether it is dimmed."""

    name: str
    cells: tuple[str, ...]
    dim: bool = False


@dataclass(frozen=True, slots=True)
class _Grid:
    """A table before it is drawn: column heads with their n, lines, and a note."""

    corner: str
    heads: tuple[tuple[str, str], ...]
    lines: tuple[_Line, ...]
    note: str


def comparison_tables(
    rows: Sequence[Row], *, right_after: bool = True, title: str | None = None, width: int = 120
) -> list[Table]:
    """Methods as lines, metrics as columns, in two tables: the edited facts, and everything else. The unedited model is
    on top, each method after its whole run follows, and, dimmed below it, right after each fact's own batch unless that
    is the same (as of one batch). Columns and tables without any value are left out.

    Args:
        rows: the long form, of any number of methods.
        right_after: show the lines of that moment.
        title: before each table's own.
        width: characters of the console that it is for; in a narrow one intervals are below their means.

    Raises:
        InputError: if there are no rows to show.
    """
    lead = "" if title is None else f"{title}: "
    return [_drawn(grid, f"{lead}{_TITLES[part]}", width) for part, grid in _comparisons(rows, right_after).items()]


def markdown_tables(rows: Sequence[Row], *, right_after: bool = True) -> str:
    """The same as ``comparison_tables`` in Markdown, the note of each below it."""
    return "\n".join(map(_in_markdown, _comparisons(rows, right_after).values()))


def before_after_table(
    rows: Sequence[Row],
    *,
    title: str | None = None,
    width: int = 120,
    now: str = "now",
    marked: Collection[str] = (),
) -> Table:
    """All metrics of a single method as lines; before, right after (unless that is the same) and after as columns.
    What was lost, gained and changed is left out: it is listed question by question.

    Args:
        now: what the one column is called where nothing was measured before.
        marked: metrics whose names get an asterisk.

    Raises:
        InputError: if the rows are of several methods, or there are none.
    """
    return _drawn(_before_after(rows, now, marked), title, width)


def before_after_markdown(rows: Sequence[Row]) -> str:
    """The same as ``before_after_table`` in Markdown, its note below it."""
    return _in_markdown(_before_after(rows, "now", ()))


def _comparisons(rows: Sequence[Row], right_after: bool) -> dict[Part, _Grid]:
    present = {row["metric"] for row in rows}
    chosen = {part: [metric for metric in columns if metric in present] for part, columns in _COLUMNS.items()}
    if not any(chosen.values()):
        raise InputError(
            "there is no result to show in a table", remedy="Give rows of at least one metric", code="RESULTS_EMPTY"
        )
    return {part: _comparison(rows, part, metrics, right_after) for part, metrics in chosen.items() if metrics}


def _comparison(rows: Sequence[Row], part: Part, metrics: Sequence[str], right_after: bool) -> _Grid:
    found = {(row["method"], row["metric"], row["when"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))

    def cells(method: str, when: When) -> tuple[str, ...]:
        return tuple(_cell(found.get((method, metric, when))) for metric in metrics)

    nothing = (MISSING,) * len(metrics)
    unedited = list(dict.fromkeys(line for method in methods if (line := cells(method, "before")) != nothing))
    # One model, one set of facts: one line on top for all. Otherwise every method has its own.
    common = len(unedited) == 1
    lines = [_Line(UNEDITED, unedited[0])] if common else []
    for method in methods:
        entries = [(method, cells(method, "after"), False)]
        if right_after and _differs_right_after([row for row in rows if row["method"] == method]):
            entries.append((RIGHT_AFTER, cells(method, "right_after"), True))
        if not common:
            entries.append((f"  {UNEDITED}", cells(method, "before"), True))
        lines += [_Line(*entry) for entry in entries if entry[1] != nothing]
    before = {row["metric"]: row["mean"] for row in rows if row["when"] == "before"}
    unable = {metric for metric in metrics if metric in before and no_room(metric, before[metric])}
    heads = tuple(
        (
            entry_of(metric).short + (" *" if metric in unable else ""),
            _n(row["n"] for row in rows if row["metric"] == metric),
        )
        for metric in metrics
    )
    note = f"After the whole run, mean [95 % interval over n]; {_MEANING[part]}"
    if Metric.SECONDS_PER_EDIT in metrics:
        note += "; s/edit: without preparation (key statistics, contexts)"
    if unable:
        note += "; *: has no room to move from where it was before editing, and can show nothing"
    return _Grid("method", heads, tuple(lines), note)


def _differs_right_after(rows: Sequence[Row]) -> bool:
    """Whether anything of one method is not the same right after each fact's batch and at the end."""
    after = {row["metric"]: row for row in rows if row["when"] == "after"}
    return any(
        row["metric"] not in after or {**row, "when": "after"} != after[row["metric"]]
        for row in rows
        if row["when"] == "right_after"
    )


def _before_after(rows: Sequence[Row], now: str, marked: Collection[str]) -> _Grid:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    if len(methods) != 1:
        raise InputError(
            f"this table is of one method, the rows are of {len(methods)}: {', '.join(methods) or 'none'}",
            remedy="Give the rows of one method, or compare them side by side",
            code="RESULTS_SEVERAL_METHODS",
        )
    found = {(row["metric"], row["when"]): row for row in rows}
    compared = any(row["when"] == "before" for row in rows)
    moments: list[tuple[When, str]] = [
        ("before", "before"), ("right_after", "right after"), ("after", "after" if compared else now),
    ]  # fmt: skip
    shown = [
        (when, head)
        for when, head in moments
        if any(row["when"] == when for row in rows) and (when != "right_after" or _differs_right_after(rows))
    ]
    # Changed answers are listed question by question, or in a table of their own.
    metrics = [name for name in in_order({row["metric"] for row in rows}) if entry_of(name).group is not Group.CHANGES]
    lines = tuple(
        _Line(
            entry_of(metric).heading + (" *" if metric in marked else ""),
            (
                *(_cell(found.get((metric, when))) for when, _ in shown),
                _n(row["n"] for row in rows if row["metric"] == metric),
            ),
        )
        for metric in metrics
    )
    heads = (*((head, "") for _, head in shown), ("n", ""))
    note = "Mean [95 % interval over n]; accuracy, success and score in %"
    return _Grid(
        methods[0],
        heads,
        lines,
        note,
    )


def _cell(row: Row | None) -> str:
    """``95.0 [91,98]``: without a space in the brackets, for a narrow table breaks cells at their space."""
    if row is None:
        return MISSING
    mean, low, high = row["mean"], row["low"], row["high"]
    if row["metric"] == Metric.SECONDS_PER_EDIT:
        # The interval over a few batches describes the machine; it is in the long form.
        return f"{mean:.2f}" if mean < 10 else f"{mean:.0f}"
    if row["metric"] == Metric.WEIGHT_NORM_RATIO:
        return _plain(mean)  # its interval, over a few runs if any, is in the long form
    unit = entry_of(row["metric"]).unit

    def number(value: float, digits: int) -> str:
        if unit is Unit.PERCENT:
            return f"{100 * value:.{digits}f}"
        return f"{value:.2f}" if unit is Unit.RATIO else _plain(value)

    shown = number(mean, 1).replace("100.0", "100") if unit is Unit.PERCENT else number(mean, 1)
    return shown + ("" if low is None or high is None else f" [{number(low, 0)},{number(high, 0)}]")


def _plain(value: float) -> str:
    """A number with three digits that count, such as 0.0123, 4.56 or 612."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _n(counts: Iterable[int]) -> str:
    distinct = sorted(set(counts))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]}–{distinct[-1]}"


def _drawn(grid: _Grid, title: str | None, width: int) -> Table:
    """Side by side where mean and interval have room, else the interval below the mean, and if need be closer.

    Where even that does not fit, a method's options are below its name, and then an interval's ends are on two lines.
    """
    beside = _width(grid, _GAP, stacked=False) <= width
    for narrower in (_named_below, _ends_below):
        if not beside and _width(grid, 1, stacked=True) > width:
            grid = replace(grid, lines=tuple(map(narrower, grid.lines)))
    gap = _GAP if beside or _width(grid, _GAP, stacked=True) <= width else 1
    table = Table(
        title=title,
        title_justify="left",
        caption=grid.note,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, gap - 1),  # the box has a blank between columns already
    )
    table.add_column(Text(grid.corner), no_wrap=True, vertical="top")
    for head, count in grid.heads:
        label = Text(head if beside else head.replace(" ", "\n"))
        if count:
            label.append(f"\nn={count}", style="dim")
        table.add_column(label, justify="right", vertical="top", overflow="fold")
    for line in grid.lines:
        # Text, not markup: an interval's brackets must not be read as a style.
        cells = [Text(cell if beside else cell.replace(" ", "\n")) for cell in line.cells]
        table.add_row(Text(line.name), *cells, style="dim" if line.dim else None)
    return table


def _named_below(line: _Line) -> _Line:
    """``memit [layers=0/2, schedule=even]`` on a line for each of its parts."""
    method, _, choices = line.name.partition(" [")
    parts = [method, *(f"  {choice}" for choice in choices.removesuffix("]").split(", ") if choice)]
    return replace(line, name="\n".join(parts))


def _ends_below(line: _Line) -> _Line:
    """``0.95 [0.91,0.98]`` with blanks at all places where it is broken."""
    return replace(line, cells=tuple(cell.replace(",", ", ") for cell in line.cells))


def _width(grid: _Grid, gap: int, *, stacked: bool) -> int:
    """Characters that a grid takes, with whole cells or with cells broken at their spaces."""
    total = max(len(part) for name in [grid.corner, *(line.name for line in grid.lines)] for part in name.split("\n"))
    for column, (head, count) in enumerate(grid.heads):
        texts = [head, f"n={count}" if count else "", *(line.cells[column] for line in grid.lines)]
        total += gap + max(len(part) for text in texts for part in (text.split() if stacked else [text]))
    return total


def _in_markdown(grid: _Grid) -> str:
    heads = [f"{head} (n={count})" if count else head for head, count in grid.heads]
    lines = [
        [grid.corner, *heads],
        ["---", *("---:" for _ in heads)],
        *([line.name.replace("  ", "&nbsp;&nbsp;"), *line.cells] for line in grid.lines),
    ]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |" for cells in lines) + (
        f"\n\n{grid.note}\n"
    )
