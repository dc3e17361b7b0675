"""Methods side by side: lines, columns, and the best value where its interval is separate from all others."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from errata.results.metrics import Better, Group, MetricEntry, entries_by_group, entry_of
from errata.results.records import Row, When

BEFORE: Final = "before editing"
_MOMENTS: Final[tuple[tuple[When, str], ...]] = (("right_after", "right after"), ("after", "after"))
BEST_NOTE: Final = (
    "A value is marked as best only if its 95 % interval is separate from those of all others in its column; if "
    "intervals overlap, or one is unknown, none is marked. A method with a run that stopped early is not compared, "
    "because fewer facts were edited."
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval; None without one."""

    mean: float
    low: float | None
    high: float | None


def separate_best(values: Sequence[Interval | None], better: Better | None) -> int | None:
    """The index of the value whose interval is separate from and better than all others; None if there is none.

    Args:
        values: one for each method; None for a method that was not measured, which is not compared.
        better: None if neither direction is better; nothing is best then.
    """
    present = [(index, value) for index, value in enumerate(values) if value is not None]
    if better is None or len(present) < 2:
        return None
    sign = 1 if better == "higher" else -1
    spans: list[tuple[float, float, int]] = []  # the worse end, the better end, index
    for index, value in present:
        if value.low is None or value.high is None:
            return None
        worse, best = sorted((sign * value.low, sign * value.high))
        spans.append((worse, best, index))
    candidate = max(spans)
    others = [span for span in spans if span is not candidate]
    return candidate[2] if all(candidate[0] > best for _, best, _ in others) else None


@dataclass(frozen=True, slots=True)
class MetricColumn:
    """One metric at one moment.

    Attributes:
        n: the number that means are over, such as ``200``, or ``180–200`` if methods differ.
    """

    entry: MetricEntry
    when: When
    moment: str
    n: str


@dataclass(frozen=True, slots=True)
class TableCell:
    """A displayed value; ``row`` is None if nothing was measured."""

    row: Row | None = None
    value: str = "–"
    interval: str = ""
    n: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class TableLine:
    """A method's name and its cells, one for each column."""

    name: str
    cells: tuple[TableCell, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table of one group of metrics.

    Attributes:
        unedited: lines of the unedited model, above the methods: one if it is the same for all methods, else one per
            method. They have one cell per metric, not per column.
    """

    group: Group
    metrics: tuple[tuple[MetricEntry, int], ...]
    columns: tuple[MetricColumn, ...]
    unedited: tuple[TableLine, ...]
    lines: tuple[TableLine, ...]


def comparisons(rows: Sequence[Row], stopped: Collection[str] = (), *, most: int | None = None) -> list[Comparison]:
    """The tables of one model and one data set: after the whole run, and right after each fact's batch if that differs.

    Args:
        stopped: methods with a run that stopped early; their values are shown, but not compared.
        most: columns of one table; larger groups of metrics are split into several tables. None: no limit.
    """
    found: dict[tuple[str, str, When], Row] = {
        (row["method"], row["metric"], row["when"]): row for row in rows if row["when"] != "during"
    }
    found = {key: row for key, row in found.items() if key[2] != "right_after" or _differs(key, found)}
    methods = list(dict.fromkeys(method for method, _, _ in found))
    metrics = entries_by_group({metric for _, metric, when in found if when != "before"})
    return [
        _comparison(group, part, methods, found, stopped)
        for group in Group
        for part in _parts([entry for entry in metrics if entry.group is group], found, most)
    ]


def _differs(key: tuple[str, str, When], found: Mapping[tuple[str, str, When], Row]) -> bool:
    """Whether any method's value of a metric differs between right after its batch and the end.

    With a single batch none does, and one column shows both.
    """
    right_after = {method: row for (method, metric, when), row in found.items() if (metric, when) == key[1:]}
    after = {method: found.get((method, key[1], "after")) for method in right_after}
    return any(
        (end := after[method]) is None
        or (row["mean"], row["low"], row["high"], row["n"]) != (end["mean"], end["low"], end["high"], end["n"])
        for method, row in right_after.items()
    )


def _parts(
    metrics: Sequence[MetricEntry], found: Mapping[tuple[str, str, When], Row], most: int | None
) -> list[list[MetricEntry]]:
    """A group's metrics, split into parts of similar size with at most ``most`` columns."""
    columns = {
        entry.name: len({when for _, metric, when in found if metric == entry.name and when != "before"})
        for entry in metrics
    }
    total = sum(columns.values())
    if most is None or total <= most:
        return [list(metrics)] if metrics else []
    target = math.ceil(total / math.ceil(total / most))
    parts: list[list[MetricEntry]] = [[]]
    for entry in metrics:
        if parts[-1] and sum(columns[each.name] for each in parts[-1]) + columns[entry.name] > min(target + 1, most):
            parts.append([])
        parts[-1].append(entry)
    return parts


def _comparison(
    group: Group,
    metrics: Sequence[MetricEntry],
    methods: Sequence[str],
    found: dict[tuple[str, str, When], Row],
    stopped: Collection[str],
) -> Comparison:
    columns, blocks = [], []
    for entry in metrics:
        shown = [
            MetricColumn(entry, when, moment, count_range(row["n"] for row in values if row))
            for when, moment in _MOMENTS
            if any(values := [found.get((method, entry.name, when)) for method in methods])
        ]
        columns += shown
        blocks.append((entry, len(shown)))
    by_column = []
    for column in columns:
        of_column = [found.get((method, column.entry.name, column.when)) for method in methods]
        intervals = [
            None if row is None or method in stopped else Interval(row["mean"], row["low"], row["high"])
            for method, row in zip(methods, of_column, strict=True)
        ]
        best = separate_best(intervals, column.entry.better)
        by_column.append(
            [table_cell(row, best=index == best, with_n="–" in column.n) for index, row in enumerate(of_column)]
        )
    lines = tuple(
        TableLine(method, tuple(column[index] for column in by_column)) for index, method in enumerate(methods)
    )
    # Methods without any value in this group are omitted.
    lines = tuple(line for line in lines if any(cell.row for cell in line.cells))
    return Comparison(group, tuple(blocks), tuple(columns), _unedited(metrics, methods, found), lines)


def _unedited(
    metrics: Sequence[MetricEntry], methods: Sequence[str], found: dict[tuple[str, str, When], Row]
) -> tuple[TableLine, ...]:
    lines = [
        (method, tuple(table_cell(found.get((method, entry.name, "before"))) for entry in metrics))
        for method in methods
    ]
    lines = [(method, cells) for method, cells in lines if any(cell.row for cell in cells)]
    values = {tuple((cell.value, cell.interval) for cell in cells) for _, cells in lines}
    if len(values) == 1:
        return (TableLine(BEFORE, lines[0][1]),)
    return tuple(TableLine(f"{BEFORE}: {method}", cells) for method, cells in lines)


def table_cell(row: Row | None, *, best: bool = False, with_n: bool = False) -> TableCell:
    if row is None:
        return TableCell()
    entry = entry_of(row["metric"])
    interval = entry.interval(row["low"], row["high"])
    return TableCell(row, entry.number(row["mean"]), interval, f"n = {row['n']}" if with_n else "", best)


def count_range(counts: Iterable[int]) -> str:
    """``200``, or ``180–200`` if counts differ."""
    distinct = sorted(set(counts))
    smallest, largest = distinct[0], distinct[-1]
    return str(smallest) if smallest == largest else f"{smallest}–{largest}"
