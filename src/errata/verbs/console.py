"""What the verbs share: consoles, progress bars, and output for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
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

from errata.errors import InputError
from errata.output import write_text
from errata.progress import Report

JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", dir_okay=False, help="Also write the result for machines to FILE."),
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="'lab' (the embedded model), a directory, or a name on the hub.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps … By default a GPU if there is one.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. By default what is stored; lab: float32.")
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def console() -> Console:
    return Console()


def error_console() -> Console:
    return Console(stderr=True)


def parse_dtype(name: str | None) -> torch.dtype | None:
    """Raises InputError for a name that is none of the four."""
    if name is None:
        return None
    if name not in _DTYPES:
        raise InputError(f"there is no dtype {name!r}", remedy=f"Known: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def parse_device(name: str | None) -> torch.device | None:
    """Raises InputError for a device that this machine or this torch does not have."""
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # 'meta' has tensors, but no numbers in them
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"the device {name!r} cannot be used: {first}", remedy="`errata doctor` lists devices"
        ) from error
    return device


@contextmanager
def progress() -> Iterator[Report]:
    """Bars on standard error, one for each thing that is told of; what starts anew starts its bar anew."""
    columns = (
        TextColumn("{task.description:<24}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=error_console(), transient=True) as bars:
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


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """Write for machines, whole or not at all; nothing without a path."""
    if path is not None:
        write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
