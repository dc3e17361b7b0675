"""Tables of long-form rows, for terminals (rich) and for documents (Markdown)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from rich import box
from rich.table import Table
from rich.text import Text

from errata.errors import InputError
from errata.evaluation.outcomes import no_room
from errata.report.comparison import BEFORE, count_range
from errata.report.markdown import markdown_table
from errata.results.metrics import Group, Metric, Unit, entry_of, in_order
from errata.results.records import Row, When

Part = Literal["edited", "others"]
_PARTS: tuple[Part, ...] = get_args(Part)
MISSING = "–"
RIGHT_AFTER = "  right after"
_GAP = 2  # spaces between columns, if they fit
_WHOLE = 9  # characters of an interval that is never broken

# The metrics of each part; in a narrow table, the words of their short headings are on separate lines.
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
        "succ.: the true answer is likelier than the new one"
    ),
}
_TITLES: Mapping[Part, str] = {"edited": "The edited facts", "others": "Everything else"}


@dataclass(frozen=True, slots=True)
class _TextLine:
    """One line of a table: its name, its cells, and whether it is dimmed."""

    name: str
    cells: tuple[str, ...]
    dim: bool = False


@dataclass(frozen=True, slots=True)
class _Grid:
    """A table before it is drawn: column heads with their n, lines, and a note."""

    corner: str
    heads: tuple[tuple[str, str], ...]
    lines: tuple[_TextLine, ...]
    note: str


def comparison_tables(
    rows: Sequence[Row], *, right_after: bool = True, title: str | None = None, width: int = 120
) -> list[Table]:
    """Methods as lines and metrics as columns, in two tables: the edited facts, and everything else.

    The unedited model is on top, followed by each method after its whole run and, dimmed below it, right after each
    fact's own batch unless that is the same (as with a single batch). Columns and tables without values are omitted.

    Args:
        rows: the long form, of any number of methods.
        right_after: show the lines of that moment.
        title: prefix of the titles.
        width: of the console in characters; in a narrow one, intervals are below their means, and tables that are
            still too wide are split.

    Raises:
        InputError: if there are no rows to show.
    """
    lead = "" if title is None else f"{title}: "
    return [
        _drawn(piece, f"{lead}{_TITLES[part]}{', continued' if number else ''}", width)
        for part, grid in _comparisons(rows, right_after).items()
        for number, piece in enumerate(_pieces(grid, width))
    ]


def markdown_tables(rows: Sequence[Row], *, right_after: bool = True) -> str:
    """The same as ``comparison_tables`` in Markdown, with the notes below the tables."""
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

    Lost, gained and changed answers are omitted, since they are listed question by question.

    Args:
        now: heading of the only column if nothing was measured before.
        marked: metrics whose names get an asterisk.

    Raises:
        InputError: if the rows are of several methods, or there are none.
    """
    return _drawn(_before_after(rows, now, marked), title, width)


def before_after_markdown(rows: Sequence[Row]) -> str:
    """The same as ``before_after_table`` in Markdown, with the note below."""
    return _in_markdown(_before_after(rows, "now", ()))


def _comparisons(rows: Sequence[Row], right_after: bool) -> dict[Part, _Grid]:
    present = {row["metric"] for row in rows}
    chosen = {part: [metric for metric in columns if metric in present] for part, columns in _COLUMNS.items()}
    if not any(chosen.values()):
        raise InputError(
            "there are no results for a table", remedy="Give rows of at least one metric", code="RESULTS_EMPTY"
        )
    return {part: _comparison(rows, part, metrics, right_after) for part, metrics in chosen.items() if metrics}


def _comparison(rows: Sequence[Row], part: Part, metrics: Sequence[str], right_after: bool) -> _Grid:
    found = {(row["method"], row["metric"], row["when"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))

    def cells(method: str, when: When) -> tuple[str, ...]:
        return tuple(_cell(found.get((method, metric, when))) for metric in metrics)

    nothing = (MISSING,) * len(metrics)
    unedited = list(dict.fromkeys(line for method in methods if (line := cells(method, "before")) != nothing))
    # Usually one line for all methods; otherwise each has its own.
    common = len(unedited) == 1
    lines = [_TextLine(BEFORE, unedited[0])] if common else []
    for method in methods:
        entries = [(method, cells(method, "after"), False)]
        if right_after and _differs_right_after([row for row in rows if row["method"] == method]):
            entries.append((RIGHT_AFTER, cells(method, "right_after"), True))
        if not common:
            entries.append((f"  {BEFORE}", cells(method, "before"), True))
        lines += [_TextLine(*entry) for entry in entries if entry[1] != nothing]
    before = {row["metric"]: row["mean"] for row in rows if row["when"] == "before"}
    unable = {metric for metric in metrics if metric in before and no_room(metric, before[metric])}
    heads = tuple(
        (
            entry_of(metric).short + (" *" if metric in unable else ""),
            count_range(row["n"] for row in rows if row["metric"] == metric),
        )
        for metric in metrics
    )
    note = f"After the whole run, mean [95 % interval over n]; {_MEANING[part]}"
    if Metric.SECONDS_PER_EDIT in metrics:
        note += "; s/edit: without preparation (key statistics, contexts)"
    if Metric.WEIGHT_NORM_RATIO in metrics:
        note += "; ΔW/W: Frobenius norm of the change, relative to that of the weights"
    if unable:
        note += "; *: was at its floor or ceiling before the edit, so it cannot show an effect"
    return _Grid("method", heads, tuple(lines), note)


def _differs_right_after(rows: Sequence[Row]) -> bool:
    """Whether any value of one method differs between right after each fact's batch and the end."""
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
            f"the table needs the rows of one method, got {len(methods)}: {', '.join(methods) or 'none'}",
            remedy="Give the rows of one method, or use comparison_tables",
            code="RESULTS_SEVERAL_METHODS",
        )
    found = {(row["metric"], row["when"]): row for row in rows}
    compared = any(row["when"] == "before" for row in rows)
    moments: list[tuple[When, str]] = [
        ("before", "before"), ("right_after", "right after"), ("after", "after" if compared else now),
    ]  # fmt: skip
    # Changed answers are listed question by question, or in a separate table.
    metrics = [name for name in in_order({row["metric"] for row in rows}) if entry_of(name).group is not Group.CHANGES]
    shown = [
        (when, head)
        for when, head in moments
        if any((metric, when) in found for metric in metrics) and (when != "right_after" or _differs_right_after(rows))
    ]
    lines = tuple(
        _TextLine(
            entry_of(metric).heading + (" *" if metric in marked else ""),
            (
                *(_cell(found.get((metric, when))) for when, _ in shown),
                count_range(row["n"] for row in rows if row["metric"] == metric),
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
    """``95.0 [91,98]``, without a space in the brackets, since narrow tables break cells at spaces."""
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
    """A number with three significant digits, such as 0.0123, 4.56 or 612."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _pieces(grid: _Grid, width: int) -> list[_Grid]:
    """The columns of a grid in as few pieces of similar size as fit; only the last one has the note."""
    count = len(grid.heads)
    for pieces in range(1, count + 1):
        ends = [count * number // pieces for number in range(pieces + 1)]
        parts = [_columns_of(grid, start, end) for start, end in pairwise(ends)]
        if all(_width(_narrowed(part, width), 1, stacked=True) <= width for part in parts):
            break
    return [replace(part, note=grid.note if part is parts[-1] else "") for part in parts]


def _columns_of(grid: _Grid, start: int, end: int) -> _Grid:
    lines = tuple(replace(line, cells=line.cells[start:end]) for line in grid.lines)
    return replace(grid, heads=grid.heads[start:end], lines=lines)


def _narrowed(grid: _Grid, width: int) -> _Grid:
    """A grid that does not fit with intervals beside or below their means: narrower names and counts, and then narrower
    cells.
    """
    if _width(grid, _GAP, stacked=False) <= width:
        return grid
    for narrower in (_named_below, _ends_below):
        if _width(grid, 1, stacked=True) > width:
            heads = tuple((head, count.replace("–", "– ")) for head, count in grid.heads)
            grid = replace(grid, heads=heads, lines=tuple(map(narrower, grid.lines)))
    return grid


def _drawn(grid: _Grid, title: str | None, width: int) -> Table:
    """Mean and interval side by side if they fit, otherwise below each other, if necessary with smaller gaps.

    If even that does not fit, a method's options are below its name, and then the ends of long intervals are on two
    lines.
    """
    side_by_side = _width(grid, _GAP, stacked=False) <= width
    grid = _narrowed(grid, width)
    gap = _GAP if side_by_side or _width(grid, _GAP, stacked=True) <= width else 1
    table = Table(
        title=title,
        title_justify="left",
        caption=grid.note or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, gap - 1),  # the box has a space between columns already
    )
    table.add_column(Text(grid.corner), no_wrap=True, vertical="top")
    for head, count in grid.heads:
        label = Text(head if side_by_side else head.replace(" ", "\n"))
        if count:
            label.append(f"\nn={count}".replace("– ", "–\n"), style="dim")
        table.add_column(label, justify="right", vertical="top", overflow="fold")
    for line in grid.lines:
        # Text, not markup: an interval's brackets must not be read as a style.
        cells = [Text(cell if side_by_side else cell.replace(" ", "\n")) for cell in line.cells]
        table.add_row(Text(line.name), *cells, style="dim" if line.dim else None)
    return table


def _named_below(line: _TextLine) -> _TextLine:
    """``memit [layers=0/2, schedule=even]`` with one line for each part."""
    method, _, choices = line.name.partition(" [")
    parts = [method, *(f"  {choice}" for choice in choices.removesuffix("]").split(", ") if choice)]
    return replace(line, name="\n".join(parts))


def _ends_below(line: _TextLine) -> _TextLine:
    """``0.955 [0.912,0.981]`` with spaces where it can be broken; short intervals stay whole."""
    return replace(
        line,
        cells=tuple(cell.replace(",", ", ") if len(cell.partition(" ")[2]) > _WHOLE else cell for cell in line.cells),
    )


def _width(grid: _Grid, gap: int, *, stacked: bool) -> int:
    """The width of a grid in characters, with whole cells or with cells broken at spaces."""
    total = max(len(part) for name in [grid.corner, *(line.name for line in grid.lines)] for part in name.split("\n"))
    for column, (head, count) in enumerate(grid.heads):
        texts = [head, f"n={count}" if count else "", *(line.cells[column] for line in grid.lines)]
        total += gap + max(len(part) for text in texts for part in (text.split() if stacked else [text]))
    return total


def _in_markdown(grid: _Grid) -> str:
    heads = [grid.corner, *(f"{head} (n={count})" if count else head for head, count in grid.heads)]
    lines = [[line.name.replace("  ", "&nbsp;&nbsp;"), *line.cells] for line in grid.lines]
    heads, *lines = [[cell.replace("|", "&#124;") for cell in cells] for cells in (heads, *lines)]
    return f"{markdown_table(heads, lines, ['---', *('---:' for _ in grid.heads)])}\n\n{grid.note}\n"
