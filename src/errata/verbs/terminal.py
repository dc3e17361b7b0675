"""What the verbs tell people: consoles and progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from errata.progress import Report


def console() -> Console:
    return Console()


def error_console() -> Console:
    return Console(stderr=True)


@contextmanager
def progress(looked_back: float = 30.0) -> Iterator[Report]:
    """Bars on standard error, one for each thing that is told of; what starts anew starts its bar anew.

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
            bars.update(task, completed=done, total=total)

        yield report


def tell(text: str) -> None:
    """Print a text as it is."""
    console().print(text, markup=False, highlight=False)


def warn(text: str) -> None:
    """The same on standard error."""
    error_console().print(text, markup=False, highlight=False)


def counted(count: int, what: str) -> str:
    """``1 patch``, ``2 patches``."""
    plural = "es" if what.endswith("ch") else "s"
    return f"{count} {what}{'' if count == 1 else plural}"
