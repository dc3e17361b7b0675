"""Output of the command line: consoles, progress bars and the option --json."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

import typer
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from errata.errors import InputError
from errata.utils import files
from errata.utils.files import check_file, is_file
from errata.utils.progress import SearchStep
from errata.utils.text import visible


class PlainConsole(Console):
    """A console that removes control characters from texts, which may come from untrusted patches or files."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As in rich; cleaned here already, so that the widths of columns match the displayed text."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """As in rich; cleans everything that did not pass through ``render_str``."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


SECONDS_BETWEEN_LINES = 10.0
SEARCH: Final = "targets at layer {}"  # what a search for targets is called in progress reports


class ProgressShown(Protocol):
    """Progress on standard error: a ``Report`` that also shows the loss of a search for targets."""

    def __call__(self, what: str, done: int, total: int, /) -> None: ...

    def searched(self, step: SearchStep, /) -> None:
        """Show the loss beside the progress of the search, from the next report on."""
        ...


def console() -> Console:
    """A console on standard output; brackets are markup only with ``markup=True``."""
    return PlainConsole(markup=False)


def error_console() -> Console:
    """A console on standard error."""
    return PlainConsole(markup=False, stderr=True)


@contextmanager
def progress(speed_window: float = 30.0) -> Iterator[ProgressShown]:
    """Report progress on standard error: one bar per task, restarted whenever its task starts again.

    If standard error is not a terminal, prints plain lines instead, at most one per task in ``SECONDS_BETWEEN_LINES``.

    Args:
        speed_window: seconds of progress that the remaining time is estimated from; large if single steps take minutes.
    """
    shown = error_console()
    if not shown.is_interactive:
        yield _Lines(shown)
        return
    columns = (  # 80 characters together
        TextColumn("{task.description:<22}"), BarColumn(bar_width=14), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=shown, transient=True, speed_estimate_period=speed_window) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar for each task."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, note="")
        task = self._tasks[what]
        shown_task = self._bars.tasks[self._bars.task_ids.index(task)]
        if done < shown_task.completed or shown_task.finished:
            self._bars.reset(task, total=total)
        # Hide finished tasks.
        self._bars.update(task, completed=done, total=total, visible=done < total)

    def searched(self, step: SearchStep) -> None:
        if (what := SEARCH.format(step.layer)) in self._tasks:
            self._bars.update(self._tasks[what], note=_loss(step))


class _Lines:
    """Progress as plain lines with the remaining time, for logs; short tasks print nothing."""

    def __init__(self, shown: Console) -> None:
        self._shown = shown
        self._started: dict[str, tuple[float, int]] = {}  # start time, and progress at that time
        self._last: dict[str, tuple[int, int]] = {}  # progress and total
        self._last_line: dict[str, float] = {}
        self._notes: dict[str, str] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        last, last_total = self._last.get(what, (0, 0))
        if done < last or last >= last_total:  # new or restarted
            self._started[what], self._last_line[what] = (now, done), now
        self._last[what] = done, total
        if now - self._last_line[what] < SECONDS_BETWEEN_LINES:
            return
        self._last_line[what] = now
        began, before = self._started[what]
        elapsed, advanced = now - began, done - before
        left = f", about {_minutes(elapsed * (total - done) / advanced)} left" if advanced > 0 else ""
        note = f", {self._notes[what]}" if what in self._notes else ""
        text = f"{what}: {100 * done // max(total, 1)} % ({done} of {total}){note}, {_minutes(elapsed)} so far{left}"
        self._shown.print(text, markup=False, highlight=False, soft_wrap=True)

    def searched(self, step: SearchStep) -> None:
        self._notes[SEARCH.format(step.layer)] = _loss(step)


def _loss(step: SearchStep) -> str:
    return f"loss {step.loss:.3g}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def echo(text: str) -> None:
    """Print a text to standard output without markup."""
    console().print(text, highlight=False)


def echo_line(text: str) -> None:
    """As ``echo``, without breaks at the width of the terminal, for a command or a line of a file to be copied."""
    console().print(text, highlight=False, soft_wrap=True)


def warn(text: str, *, style: str | None = None) -> None:
    """Print a note or a warning to standard error without markup."""
    error_console().print(text, style=style, highlight=False)


def plain_table(*heads: str, right: Collection[str] = (), fold: bool = False, no_wrap: bool = False) -> Table:
    """A table with a line below its heads only.

    Args:
        right: heads of right-aligned columns.
        fold: break long words instead of truncating them.
        no_wrap: never break cells.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        justify: Literal["left", "right"] = "right" if head in right else "left"
        table.add_column(head, justify=justify, overflow="fold" if fold else "ellipsis", no_wrap=no_wrap)
    return table


def number_tables(lines: Sequence[Sequence[str]], width: int, *, leading: int = 1) -> list[Table]:
    """A table of numbers such as ``90 [80,97]``, none of which is broken in two.

    If it does not fit, intervals are below their means and the words of heads below each other, and then the columns
    are distributed over several tables.

    Args:
        lines: heads, and the cells of each row.
        width: of the console in characters.
        leading: columns at the left, such as names, that each table has.
    """
    count = len(lines[0]) - leading
    for pieces in range(count + 1):  # 0: one table with whole cells
        size = -(-count // max(pieces, 1))
        parts = [range(start, min(start + size, leading + count)) for start in range(leading, leading + count, size)]
        tables = [_number_table(lines, [*range(leading), *part], leading, stacked=pieces > 0) for part in parts]
        if all(_fits(table, width) for table in tables):
            break
    return tables


def _number_table(lines: Sequence[Sequence[str]], columns: Sequence[int], leading: int, *, stacked: bool) -> Table:
    heads, *rows = ([line[column] for column in columns] for line in lines)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for place, head in enumerate(heads):
        words = head.replace(" ", "\n") if stacked else head
        table.add_column(Text(words), justify="left" if place < leading else "right", no_wrap=True, vertical="top")
    for cells in rows:
        table.add_row(*(Text(cell.replace(" [", "\n[") if stacked else cell) for cell in cells))
    return table


def _fits(table: Table, width: int) -> bool:
    shown = Console(width=10_000)
    return Measurement.get(shown, shown.options, table).maximum <= width


FORMAT = "errata-output-1"
# Formats of result files, which --json may overwrite; other records, such as a stack's, have formats too.
_RESULTS = re.compile(rb'\{\s*"format":\s*"errata-(output|results|tracing)-\d+"')


def _writable(path: Path | None) -> Path | None:
    if path is not None:
        check_file(path)
        if is_file(path) and not _holds_results(path):
            raise InputError(
                f"{path} exists and is not a result file of errata; it would be overwritten",
                remedy="Give another name, or remove the file first",
                code="OUTPUT_EXISTS",
            )
    return path


def _holds_results(path: Path) -> bool:
    """Whether a file is empty or was written by an earlier --json."""
    with path.open("rb") as file:
        start = file.read(200).lstrip()
    return not start or _RESULTS.match(start) is not None


_JSON_HELP = "Also write the results as JSON to FILE, replacing older results; missing directories are created."


JsonOption = Annotated[
    Path | None,
    # The callback runs while options are parsed, before any command starts its work.
    typer.Option("--json", metavar="FILE", callback=_writable, help=_JSON_HELP),
]


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """Write a result file atomically, if a path is given.

    Its first key is the format, by which a later --json recognises that it may replace the file.
    """
    if path is not None:
        whole = {"format": value.get("format", FORMAT), **value}
        files.write_json(path, whole, indent=2)
