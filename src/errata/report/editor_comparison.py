"""Trials of several editors on several numbers of facts, side by side: tables, verdicts, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

from errata.analysis.findings import Figure, Panel, Series
from errata.benchmark import columns as names
from errata.benchmark.columns import COLUMNS, Argument, Column
from errata.benchmark.trials import UNEDITED, Trial
from errata.report.bench_run import shown_name
from errata.report.trial_page import PagePart, PageTable, trial_page
from errata.results.metrics import Metric
from errata.results.records import Summary
from errata.utils.text import counted, size_text

REFERENCE: Final = "retrieval"
SEPARATE: Final = 1.5  # times; numbers without intervals, such as seconds, differ from there on
NOISE: Final[Mapping[str, float]] = {"milliseconds": 5.0, "seconds": 0.05, "memory": 16 * 2**20}
"""Quantity -> differences between numbers without intervals that mean nothing."""
PERCEPTIBLE: Final = 1.01  # ratio of perplexities
MISSING: Final = "–"
_QUALITY: Final = (
    names.TOOK_FREE, names.WORDINGS_FREE, names.AGREEMENT, names.COVERAGE, Metric.SPECIFICITY_ACCURACY,
    Metric.UNTOUCHED_ACCURACY,
)  # fmt: skip
_PRICE: Final = (names.SECONDS, names.TIME_HIT, names.BYTES)


def number_of(trial: Trial, name: str) -> Summary | None:
    """A column's number; None if it is missing."""
    cost = _cost_of(trial).get(name) if not trial.failure and trial.method != UNEDITED else None
    return trial.numbers.get(name) if cost is None else Summary(name, "after", cost, None, None, 1, 1)


def _cost_of(trial: Trial) -> dict[str, float | None]:
    hit, miss = (
        1000 * (now - before) for now, before in zip(trial.query_seconds, trial.base_query_seconds, strict=True)
    )
    return {
        names.SECONDS: trial.seconds_per_fact,
        names.PEAK: None if trial.peak_bytes is None else float(trial.peak_bytes),
        names.BYTES: trial.stored_bytes / trial.facts,
        names.TIME_HIT: hit,
        names.TIME_MISS: miss,
    }


@dataclass(frozen=True)
class EditorComparison:
    """All trials of one number of facts.

    Attributes:
        facts: their number.
        trials: of each editor, in the order of the tables.
        unedited: the numbers of the unedited model.
        seed: of the bootstrap.
    """

    facts: int
    trials: tuple[Trial, ...]
    unedited: Trial
    seed: int = 0

    @cached_property
    def able(self) -> tuple[Trial, ...]:
        """The trials that did not fail."""
        return tuple(trial for trial in self.trials if not trial.failure)

    @property
    def reference(self) -> Trial | None:
        """Retrieval or, without it, the first editor."""
        return next((trial for trial in self.able if trial.method == REFERENCE), next(iter(self.able), None))

    def difference(self, one: Trial, other: Trial, column: Column) -> Summary | None:
        """One editor's number less another's, over the same facts; None if one has none, or not of the same facts."""
        if column.name not in one.tallies or column.name not in other.tallies:
            return None
        magnitude = column.best == "zero"
        return one.tallies[column.name].difference(
            other.tallies[column.name], column.name, magnitude=magnitude, seed=self.seed
        )

    def better(self, one: Trial, other: Trial, column: Column) -> int:
        """1 if one editor is better than another in a column, -1 if it is worse, 0 if neither is shown, or known.

        The interval of the difference must not hold 0; numbers without intervals must differ by a factor of
        ``SEPARATE``, and by more than ``NOISE``.
        """
        a, b = number_of(one, column.name), number_of(other, column.name)
        if a is None or b is None:
            return 0
        difference = self.difference(one, other, column)
        if difference is not None and difference.low is not None and difference.high is not None:
            sign = (difference.low > 0) - (difference.high < 0)
        elif a.low is not None and a.high is not None and b.low is not None and b.high is not None:
            # Of perplexity: a ratio below 1 is no damage, and neither is one just above.
            least = PERCEPTIBLE if column.quantity == "ratio" else 0.0
            sign = (a.low > max(b.high, least)) - (b.low > max(a.high, least))
        elif column.quantity in ("share", "slope", "nats", "ratio") or difference is not None:
            sign = 0  # of a single fact
        else:
            sign = _differ(a.mean, b.mean, column)
        return sign if column.best == "higher" else -sign

    def better_in(self, one: Trial, other: Trial, *, cost: bool = True) -> list[Column]:
        """The columns in which one editor is better than another."""
        return [
            column
            for column in COLUMNS
            if column.compared and (cost or not is_cost(column)) and self.better(one, other, column) > 0
        ]

    def dominating(self, trial: Trial, *, cost: bool = True) -> list[Trial]:
        """The editors that are better in some column and worse in none."""
        return [
            other
            for other in self.able
            if other is not trial
            and self.better_in(other, trial, cost=cost)
            and not self.better_in(trial, other, cost=cost)
        ]

    def verdict(self) -> list[str]:
        """Sentences: who is dominated, and whether the reference is."""
        if len(self.able) < 2:
            return ["With fewer than two editors there is nothing to compare."]
        found = []
        if self.facts == 1:
            found.append("A single fact gives no intervals over facts, so little but cost can be compared.")
        for cost, words in ((True, "in all columns"), (False, "leaving cost aside")):
            worse = {trial.method: self.dominating(trial, cost=cost) for trial in self.able}
            parts = [
                f"{method} by {_joined([by.method for by in others])}" for method, others in worse.items() if others
            ]
            found.append(
                f"Dominated {words}: {'; '.join(parts)}."
                if parts
                else f"No editor is dominated {words}: none has another that is better somewhere and worse nowhere."
            )
        reference = self.reference
        if reference is not None and not self.dominating(reference):
            aside = self.dominating(reference, cost=False)
            but = f", but leaving cost aside by {_joined([by.method for by in aside])}" if aside else ""
            found.append(
                f"{reference.method} is not dominated{but}: for these facts no other editor is shown to be better "
                f"without being worse in something else."
            )
        return [*found, *(self._against(trial, reference) for trial in self.able if reference not in (None, trial))]

    def _against(self, trial: Trial, reference: Trial | None) -> str:
        assert reference is not None
        wins, losses = (_by_argument(self.better_in(*pair)) for pair in ((trial, reference), (reference, trial)))
        return f"{trial.method} against {reference.method}: better in {wins}; worse in {losses}."

    def to_record(self) -> dict[str, Any]:
        """A mapping for JSON: one row per editor, with all columns."""
        reference = self.reference
        rows = []
        for trial in (self.unedited, *self.trials):
            numbers = {column.name: number_of(trial, column.name) for column in COLUMNS}
            differences = {
                column.name: self.difference(trial, reference, column)
                for column in COLUMNS
                if reference is not None and trial not in (reference, self.unedited)
            }
            rows.append(
                {
                    "editor": trial.method,
                    "facts": self.facts,
                    "failure": trial.failure,
                    "columns": {name: asdict(found) for name, found in numbers.items() if found is not None},
                    "absent": reasons_of(trial),
                    "against": None if reference is None else reference.method,
                    "differences": {name: asdict(found) for name, found in differences.items() if found is not None},
                }
            )
        return {"facts": self.facts, "rows": rows, "verdict": self.verdict()}


def is_cost(column: Column) -> bool:
    """Whether a column is about cost, the delay of an update included."""
    return column.argument in (Argument.EDITING, Argument.QUERY) or column.name == names.LAG


def _differ(one: float, other: float, column: Column) -> int:
    if column.quantity == "answer":
        return (one > other) - (one < other)
    one, other = max(one, 0.0), max(other, 0.0)  # by chance, a time less another may be below 0
    apart = abs(one - other) > NOISE.get(column.quantity, 0.0) and max(one, other) >= SEPARATE * min(one, other)
    return 0 if not apart else 1 if one > other else -1


def _by_argument(columns: Sequence[Column]) -> str:
    """``damage (neighbours, untouched) and updates (lag)``."""
    found: dict[Argument, list[str]] = {}
    for column in columns:
        found.setdefault(column.argument, []).append(column.heading.replace(", ", " "))
    parts = [f"{argument.value[0].lower()}{argument.value[1:]} ({', '.join(each)})" for argument, each in found.items()]
    return _joined(parts) or "nothing"


def _joined(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def reasons_of(trial: Trial) -> dict[str, str]:
    """Column -> why it is missing; nothing for a failed trial."""
    if trial.failure:
        return {}
    known = {**trial.absent}
    if trial.peak_bytes is None and trial.method != UNEDITED:
        known[names.PEAK] = "memory cannot be read on this device"
    return {column.name: known[column.name] for column in COLUMNS if column.name in known}


# Tables


def text_of(found: Summary | None, column: Column) -> str:
    """A number with its interval, as in tables: ``90 [80,97]``."""
    if found is None:
        return MISSING

    def number(value: float, digits: int = 0) -> str:
        if column.quantity == "share":
            return f"{100 * value:.0f}"
        if column.quantity == "slope":
            return f"{100 * value:+.0f}"
        return f"{value:.{digits}f}" if column.quantity in ("nats", "ratio") else f"{value:.3g}"

    mean = {
        "bytes": lambda value: size_text(int(value)),
        "memory": lambda value: size_text(int(value)),
        "answer": lambda value: "yes" if value else "no",
        "milliseconds": lambda value: f"{value:.0f}",
        "tokens": lambda value: f"{value:.1f}".removesuffix(".0"),
        "seconds": lambda value: f"{value:.2f}" if value < 10 else f"{value:.0f}",
        "ratio": lambda value: f"× {value:.2f}",
        "nats": lambda value: f"{value:.1f}",
    }.get(column.quantity, number)(found.mean)
    if found.low is None or found.high is None or column.quantity in ("tokens", "bytes"):
        return mean
    digits = 2 if column.quantity == "ratio" else 1
    return f"{mean} [{number(found.low, digits)},{number(found.high, digits)}]"


def argument_table(comparisons: Sequence[EditorComparison], argument: Argument) -> PageTable | None:
    """One row per editor and number of facts; None if no editor has any number."""
    shown = _shown(comparisons, argument)
    if not shown:
        return None
    lines = [["editor", "facts", *(column.heading for column in shown)]]
    for comparison in comparisons:
        for trial in (comparison.unedited, *comparison.able):
            cells = [text_of(number_of(trial, column.name), column) for column in shown]
            if any(cell != MISSING for cell in cells):
                lines.append([trial.method, str(comparison.facts), *cells])
    return PageTable(argument.value, lines, _explained(shown))


def _shown(comparisons: Sequence[EditorComparison], argument: Argument) -> list[Column]:
    """The columns that some editor has a number in."""
    trials = [trial for comparison in comparisons for trial in comparison.able]
    return [
        column
        for column in COLUMNS
        if column.argument is argument and any(number_of(trial, column.name) is not None for trial in trials)
    ]


_SIDES: Final = {"higher": "more is better", "lower": "less is better", "zero": "0 is best"}


def _explained(columns: Sequence[Column]) -> str:
    return "; ".join(f"{column.heading}: {column.meaning} ({_SIDES[column.best]})" for column in columns) + "."


def difference_table(comparison: EditorComparison) -> PageTable | None:
    """Differences to the reference, over the same facts; None without another editor."""
    reference = comparison.reference
    others = [trial for trial in comparison.able if trial is not reference]
    if reference is None or not others:
        return None
    lines = [["column", *(trial.method for trial in others)]]
    for column in COLUMNS:
        found = [comparison.difference(trial, reference, column) for trial in others]
        if any(one is not None for one in found):
            cells = ["" if one is None else text_of(one, column) for one in found]
            lines.append([f"{column.argument.value}: {column.heading}", *cells])
    explained = (
        f"Each editor less {reference.method}, over the same facts, with 95 % intervals; shares in percentage points"
    )
    title = f"Differences to {reference.method} with {counted(comparison.facts, 'fact')}"
    return PageTable(title, lines, f"{explained}.", folded=True)


def absent_lines(comparisons: Sequence[EditorComparison]) -> list[tuple[str, str]]:
    """What was not measured, by reason: (columns of editors, reason)."""
    by_reason: dict[str, dict[str, list[str]]] = {}
    for comparison in comparisons:
        for trial in comparison.able:
            for name, reason in reasons_of(trial).items():
                editors = by_reason.setdefault(reason, {}).setdefault(name, [])
                label = f"{trial.method} with {comparison.facts}"
                editors += [] if label in editors else [label]
    headings = {column.name: f"{column.argument.value}: {column.heading}" for column in COLUMNS}
    every = [f"{trial.method} with {comparison.facts}" for comparison in comparisons for trial in comparison.able]
    lines = []
    for reason, found in by_reason.items():
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, editors in found.items():
            groups.setdefault(tuple(editors), []).append(headings[name])
        for labels, titles in groups.items():
            who = "" if list(labels) == every else f", of {_short(labels, comparisons)}"
            lines.append((", ".join(titles) + who, reason))
    return lines


def _short(labels: Sequence[str], comparisons: Sequence[EditorComparison]) -> str:
    """Editors without their numbers of facts if it is so with all numbers."""
    methods = list(dict.fromkeys(label.rpartition(" with ")[0] for label in labels))
    whole = [
        f"{trial.method} with {comparison.facts}"
        for comparison in comparisons
        for trial in comparison.able
        if trial.method in methods
    ]
    return _joined(methods) if sorted(whole) == sorted(labels) else f"{_joined(labels)} facts"


# The page


def comparison_page(
    comparisons: Sequence[EditorComparison],
    *,
    model: str,
    data: str,
    notes: Sequence[str],
    command: str,
    versions: Mapping[str, str],
) -> str:
    """The comparison as one self-contained HTML page.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    verdicts = [
        PagePart(
            f"Verdict with {counted(comparison.facts, 'fact')}",
            comparison.verdict(),
            tables=[table for table in [difference_table(comparison)] if table is not None],
            notes=[f"{trial.method} failed: {trial.failure}" for trial in comparison.trials if trial.failure],
        )
        for comparison in comparisons
    ]
    arguments = [
        PagePart(argument.value, tables=[table])
        for argument in Argument
        if (table := argument_table(comparisons, argument)) is not None
    ]
    figures = [
        _figure("quality", "What took, what carried over, what stayed", _QUALITY, comparisons),
        _figure("cost", "What it costs", _PRICE, comparisons, log_y=True),
    ]
    shown = [figure for figure in figures if figure is not None]
    pictures = [PagePart("At a glance", figures=shown)] if shown else []
    return trial_page(
        kicker="errata compare",
        heading=f"Editors of {shown_name(model)} on {shown_name(data)}",
        lead=[],
        parts=[*verdicts, *pictures, *arguments],
        absent=absent_lines(comparisons),
        notes=notes,
        command=command,
        versions=versions,
    )


def _figure(
    name: str, caption: str, chosen: Sequence[str], comparisons: Sequence[EditorComparison], *, log_y: bool = False
) -> Figure | None:
    by_name = {column.name: column for column in COLUMNS}
    panels = [panel for each in chosen if (panel := _panel(by_name[each], comparisons, log_y)) is not None]
    return Figure(name, f"{caption}, by the number of facts, with 95 % intervals.", panels) if panels else None


def _panel(column: Column, comparisons: Sequence[EditorComparison], log_y: bool) -> Panel | None:
    """Lines over the number of facts; bars if there is only one number."""
    factor, unit = _UNITS.get(column.quantity, (1.0, ""))
    several = len(comparisons) > 1
    series = []
    for method in dict.fromkeys(trial.method for comparison in comparisons for trial in comparison.able):
        found = [
            (comparison.facts, number)
            for comparison in comparisons
            for trial in comparison.able
            if trial.method == method and (number := number_of(trial, column.name)) is not None
        ]
        if found:
            series.append(
                Series(
                    method,
                    [facts if several else counted(facts, "fact") for facts, _ in found],
                    [factor * number.mean for _, number in found],
                    [None if number.low is None else factor * number.low for _, number in found],
                    [None if number.high is None else factor * number.high for _, number in found],
                )
            )
    if not series:
        return None
    title = f"{column.argument.value}: {column.heading}"
    log_y = log_y and several  # a bar has no height on a logarithmic axis
    return Panel(title, "facts" if several else "", unit, series, "lines" if several else "bars", several, log_y)


_UNITS: Final[Mapping[str, tuple[float, str]]] = {
    "share": (100.0, "%"),
    "seconds": (1.0, "s"),
    "milliseconds": (1.0, "ms"),
    "bytes": (1 / 1024, "KiB"),
}
