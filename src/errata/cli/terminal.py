"""What the verbs tell people: consoles and progress bars."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.text import Text

from errata.errors import InputError
from errata.utils.files import check_file, is_file, write_text
from errata.utils.progress import Report
from errata.utils.text import visible


class PlainConsole(Console):
    """Prints no control characters but its own: text may come from a patch or a file that somebody else has made."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich; here, so that columns are as wide as what they show."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """As rich; for whatever has not come through ``render_str``."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


SECONDS_BETWEEN_LINES = 10.0


def console() -> Console:
    """For standard output; brackets are markup only where a call says ``markup=True``."""
    return PlainConsole(markup=False)


def error_console() -> Console:
    """The same for standard error."""
    return PlainConsole(markup=False, stderr=True)


@contextmanager
def progress(looked_back: float = 30.0) -> Iterator[Report]:
    """Bars on standard error, one for each thing that is under way; what starts anew starts its bar anew. Where nobody
    watches (a pipe, a file), plain lines instead, at most one in ``SECONDS_BETWEEN_LINES`` of each kind of work.

    Args:
        looked_back: seconds that the time left is told from; many where pieces of work may take minutes each.
    """
    shown = error_console()
    if not shown.is_interactive:
        yield _Lines(shown)
        return
    columns = (
        TextColumn("{task.description:<24}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=shown, transient=True, speed_estimate_period=looked_back) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            task = tasks[what]
            finished = bars.tasks[bars.task_ids.index(task)].completed
            if done < finished:
                bars.reset(task, total=total)
            # What is finished gives way to what is not.
            bars.update(task, completed=done, total=total, visible=done < total)

        yield report


class _Lines:
    """Progress as plain lines with the time left, for logs. Work that is done before a first line is due shows none."""

    def __init__(self, shown: Console) -> None:
        self._shown = shown
        self._started: dict[str, tuple[float, int]] = {}  # when a piece of work began, and what was done of it then
        self._last_done: dict[str, int] = {}
        self._last_line: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in self._started or done < self._last_done[what]:  # new, or begun anew
            self._started[what], self._last_line[what] = (now, done), now
        self._last_done[what] = done
        if now - self._last_line[what] < SECONDS_BETWEEN_LINES:
            return
        self._last_line[what] = now
        began, before = self._started[what]
        elapsed, advanced = now - began, done - before
        left = f", about {_minutes(elapsed * (total - done) / advanced)} left" if advanced > 0 else ""
        text = f"{what}: {100 * done // max(total, 1)} % ({done} of {total}), {_minutes(elapsed)} so far{left}"
        self._shown.print(text, markup=False, highlight=False, soft_wrap=True)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def tell(text: str) -> None:
    """Print a text as it is."""
    console().print(text, highlight=False)


def warn(text: str) -> None:
    """The same on standard error."""
    error_console().print(text, highlight=False)


def counted(count: int, what: str) -> str:
    """``1 patch``, ``2 patches``."""
    plural = "es" if what.endswith("ch") else "s"
    return f"{count} {what}{'' if count == 1 else plural}"


FORMAT = "errata-output-1"
# Formats of results, which --json may replace; a stack's or a benchmark's record has a format too, and is none.
_RESULTS = re.compile(rb'\{\s*"format":\s*"errata-(output|results|tracing)-\d+"')


def _writable(path: Path | None) -> Path | None:
    if path is not None:
        check_file(path)
        if is_file(path) and not _holds_results(path):
            raise InputError(
                f"{path} is there, and is not a file of results: it would be lost",
                remedy="Give another name, or remove it first",
            )
    return path


def _holds_results(path: Path) -> bool:
    """Whether a file was written by --json before (commands are repeated), or is empty."""
    with path.open("rb") as file:
        start = file.read(200).lstrip()
    return not start or _RESULTS.match(start) is not None


_JSON_HELP = "Also write the result for machines to FILE, over older results; like --out, its folder is made."


JsonOption = Annotated[
    Path | None,
    # Called while the command line is read: in every verb before its work.
    typer.Option("--json", metavar="FILE", callback=_writable, help=_JSON_HELP),
]


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """Write for machines, whole or not at all; nothing without a path. The first key is the format, by which a later
    --json knows that it may replace the file.
    """
    if path is not None:
        whole = {"format": value.get("format", FORMAT), **value}
        write_text(path, json.dumps(whole, ensure_ascii=False, indent=2) + "\n")
