"""What the verbs tell people: consoles and progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

from errata.progress import Report
from errata.visible import visible


class PlainConsole(Console):
    """Prints no control characters but its own: text may come from a patch or a file that somebody else has made."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich; here, so that columns are as wide as what they show."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """As rich; for whatever has not come through ``render_str``."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def console() -> Console:
    """For standard output; brackets are markup only where a call says ``markup=True``."""
    return PlainConsole(markup=False)


def error_console() -> Console:
    """The same for standard error."""
    return PlainConsole(markup=False, stderr=True)


@contextmanager
def progress(looked_back: float = 30.0) -> Iterator[Report]:
    """Bars on standard error, one for each thing that is under way; what starts anew starts its bar anew.

    Args:
        looked_back: seconds that the time left is told from; many where pieces of work may take minutes each.
    """
    columns = (
        TextColumn("{task.description:<24}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    shown = error_console()
    silent = not shown.is_interactive  # where nobody looks there would be an empty line, and nothing else
    with Progress(*columns, console=shown, transient=True, disable=silent, speed_estimate_period=looked_back) as bars:
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
