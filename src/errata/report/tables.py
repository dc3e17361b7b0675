"""Tables of long-form rows, for terminals (rich) and for documents (Markdown)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from errata.errors import InputError
from errata.evaluation.metrics import NOT_SHARES, SUCCESSES, Metric, in_order
from errata.evaluation.records import When
from errata.evaluation.results_file import Row

Measure = Literal["accuracy", "success"]
MISSING = "–"
UNEDITED = "before editing"
RIGHT_AFTER = "  right after"
_GAP = 2  # blanks between columns, where there is room for so many

# Column heads of the comparison, narrow enough for all columns to stand side by side in 120 characters.
_HEADS: dict[str, str] = {
    Metric.EFFICACY_SUCCESS: "eff.",
    Metric.EFFICACY_ACCURACY: "eff.",
    Metric.GENERALISATION_SUCCESS: "gen.",
    Metric.GENERALISATION_ACCURACY: "gen.",
    Metric.SPECIFICITY_SUCCESS: "spec.",
    Metric.SPECIFICITY_ACCURACY: "spec.",
    Metric.SCORE: "score",
    Metric.SAME_SUBJECT_ACCURACY: "same subj.",
    Metric.UNTOUCHED_ACCURACY: "untouched",
    Metric.PERPLEXITY_RATIO: "ppl ratio",
    Metric.SECONDS_PER_EDIT: "s/edit",
}
_COLUMNS: dict[Measure, tuple[Metric, ...]] = {
    "accuracy": (
        Metric.EFFICACY_ACCURACY,
        Metric.GENERALISATION_ACCURACY,
        Metric.SPECIFICITY_ACCURACY,
        Metric.SAME_SUBJECT_ACCURACY,
        Metric.UNTOUCHED_ACCURACY,
        Metric.PERPLEXITY_RATIO,
        Metric.SECONDS_PER_EDIT,
    ),
    "success": (*SUCCESSES, Metric.SCORE),
}
_MEANING: dict[Measure, str] = {
    "accuracy": "%: what the model would say, token by token",
    "success": "%: which of two the model holds likelier",
}


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a table: its name, its cells, and whether it stands back behind the others."""

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


def comparison_table(
    rows: Sequence[Row],
    *,
    measure: Measure = "accuracy",
    right_after: bool = True,
    title: str | None = None,
    width: int = 120,
) -> Table:
    """Methods as lines, metrics as columns: the unedited model on top, each method after its whole run, and,
    dimmed below it, right after each fact's own batch. Columns without any value are left out.

    Args:
        rows: the long form, of any number of methods.
        measure: whether efficacy, generalisation and specificity are accuracies or successes.
        right_after: show the lines of that moment.
        width: characters of the console that it is for; in a narrow one intervals stand below their means.

    Raises:
        InputError: if there are no rows to show.
    """
    return _drawn(_comparison(rows, measure, right_after), title, width)


def markdown_table(rows: Sequence[Row], *, measure: Measure = "accuracy", right_after: bool = True) -> str:
    """The same as ``comparison_table`` in Markdown, its note below it."""
    return _in_markdown(_comparison(rows, measure, right_after))


def before_after_table(rows: Sequence[Row], *, title: str | None = None, width: int = 120) -> Table:
    """All metrics of a single method as lines; before, right after and after as columns.

    Raises:
        InputError: if the rows are of several methods, or there are none.
    """
    return _drawn(_before_after(rows), title, width)


def before_after_markdown(rows: Sequence[Row]) -> str:
    """The same as ``before_after_table`` in Markdown, its note below it."""
    return _in_markdown(_before_after(rows))


def _comparison(rows: Sequence[Row], measure: Measure, right_after: bool) -> _Grid:
    present = {row["metric"] for row in rows}
    metrics = [metric for metric in _COLUMNS[measure] if metric in present]
    if not metrics:
        raise InputError("there is no result to show in a table", remedy="Give rows of at least one metric")
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
        if right_after:
            entries.append((RIGHT_AFTER, cells(method, "right_after"), True))
        if not common:
            entries.append((f"  {UNEDITED}", cells(method, "before"), True))
        lines += [_Line(*entry) for entry in entries if entry[1] != nothing]
    heads = tuple((_HEADS[metric], _n(row["n"] for row in rows if row["metric"] == metric)) for metric in metrics)
    return _Grid(
        "method", heads, tuple(lines), f"After the whole run, mean [95 % interval over n]; {_MEANING[measure]}"
    )


def _before_after(rows: Sequence[Row]) -> _Grid:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    if len(methods) != 1:
        raise InputError(
            f"this table is of one method, the rows are of {len(methods)}: {', '.join(methods) or 'none'}",
            remedy="Give the rows of one method, or compare them side by side",
        )
    found = {(row["metric"], row["when"]): row for row in rows}
    moments: list[tuple[When, str]] = [("before", "before"), ("right_after", "right after"), ("after", "after")]
    shown = [(when, head) for when, head in moments if any(row["when"] == when for row in rows)]
    metrics = in_order({row["metric"] for row in rows})
    lines = tuple(
        _Line(
            metric.replace("_", " "),
            (
                *(_cell(found.get((metric, when))) for when, _ in shown),
                _n(row["n"] for row in rows if row["metric"] == metric),
            ),
        )
        for metric in metrics
    )
    heads = (*((head, "") for _, head in shown), ("n", ""))
    return _Grid(
        methods[0],
        heads,
        lines,
        "Mean [95 % interval over n]; accuracy, success and score in %",
    )


def _cell(row: Row | None) -> str:
    """``95.0 [91,98]``: without a space in the brackets, for a narrow table breaks cells at their space."""
    if row is None:
        return MISSING
    mean, low, high = row["mean"], row["low"], row["high"]
    if row["metric"] == Metric.SECONDS_PER_EDIT:
        # How much a few batches' times vary is the machine's affair; the long form has the interval.
        return f"{mean:.2f}" if mean < 10 else f"{mean:.0f}"
    if row["metric"] == Metric.PERPLEXITY_RATIO:
        return f"{mean:.2f}" + ("" if low is None or high is None else f" [{low:.2f},{high:.2f}]")
    if row["metric"].partition(":")[0] in NOT_SHARES:
        return _plain(mean) + ("" if low is None or high is None else f" [{_plain(low)},{_plain(high)}]")
    percent = f"{100 * mean:.1f}".replace("100.0", "100")
    return percent + ("" if low is None or high is None else f" [{100 * low:.0f},{100 * high:.0f}]")


def _plain(value: float) -> str:
    """A number with three digits that count, such as 0.0123, 4.56 or 612."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _n(counts: Iterable[int]) -> str:
    distinct = sorted(set(counts))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]}–{distinct[-1]}"


def _drawn(grid: _Grid, title: str | None, width: int) -> Table:
    """Side by side where mean and interval have room, else the interval below the mean, and if need be closer.

    Where even that has no room, what a method varies stands below its name, and then an interval's ends on two lines.
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
