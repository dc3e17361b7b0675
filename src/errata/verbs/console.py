"""What the verbs share: consoles, progress bars, and output for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

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

from errata.errors import Fault, FaultsError, InputError
from errata.loading import base_of
from errata.models.outline import Outline, is_hub_name
from errata.output import check_file, is_file, write_text
from errata.progress import Report
from errata.run_directory import is_run, open_run


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
    """Whether a file may have been written by --json before: commands are repeated. It is one object, or empty."""
    with path.open("rb") as file:
        if not (start := file.read(64).lstrip()):
            return True
    try:
        return start.startswith(b"{") and isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


_JSON_HELP = "Also write the result for machines to FILE, over older results; like --out, its folder is made."
JsonOption = Annotated[
    Path | None,
    # Called while the command line is read: in every verb before its work.
    typer.Option("--json", metavar="FILE", callback=_writable, help=_JSON_HELP),
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="'lab' (the embedded model), a directory, or a name on the hub.")
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps … By default a GPU if there is one.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. By default what is stored; lab: float32.")
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def console() -> Console:
    return Console()


def error_console() -> Console:
    return Console(stderr=True)


class Placement(TypedDict):
    """Where a model's weights go and in which numbers; None is the model's own choice."""

    device: torch.device | None
    dtype: torch.dtype | None


def placement(device: str | None, dtype: str | None) -> Placement:
    """What --device and --dtype name.

    Raises:
        FaultsError: for a dtype that is none of the four, and a device that this machine or this torch does not have.
    """
    faults = []
    if dtype is not None and dtype not in _DTYPES:
        faults.append(Fault("--dtype", f"there is no dtype {dtype!r}", f"Known: {', '.join(_DTYPES)}"))
    try:
        if device is not None:
            torch.zeros(1, device=torch.device(device)).item()  # 'meta' has tensors, but no numbers in them
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        faults.append(Fault("--device", f"{device!r} cannot be used: {first}", "`errata doctor` lists devices"))
    if faults:
        raise FaultsError("the command line", faults)
    chosen = None if device is None else torch.device(device)
    return Placement(device=chosen, dtype=None if dtype is None else _DTYPES[dtype])


def outline_of(name: str, *, trust_remote_code: bool) -> Outline:
    """A model's outline; says so where the hub is asked for it, which can take a while without a network.

    Of a stack or a run it is its base's.
    """
    note_unfinished(name)
    name = base_of(name)
    if is_hub_name(name):
        note = f"note: there is no directory {name!r} here; looking on the hub (HF_HUB_OFFLINE=1: only among downloads)"
        error_console().print(note, markup=False, highlight=False)
    return Outline.load(name, trust_remote_code=trust_remote_code)


def note_unfinished(name: str) -> None:
    """Says so where a run is taken as it is, and has not come to its end."""
    if is_run(name):
        run = open_run(Path(name))
        if run.batches_done < run.batches:
            warn(
                f"note: the run {name} is unfinished: {run.batches_done} of its {run.batches} batches are done, "
                f"{run.facts_done} of its {len(run.facts)} facts (errata edit --resume {name} goes on with it)"
            )


def outline_here(name: str, *, trust_remote_code: bool) -> Outline | None:
    """A model's outline if it lies on this machine. The hub, which can be slow to say no, is left until all else that
    was given has been looked at: None.
    """
    return None if is_hub_name(base_of(name)) else outline_of(name, trust_remote_code=trust_remote_code)


@contextmanager
def progress() -> Iterator[Report]:
    """Bars on standard error, one for each thing that is told of; what starts anew starts its bar anew."""
    columns = (
        TextColumn("{task.description:<24}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    shown = error_console()
    # Where nobody looks there would be an empty line, and nothing else.
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_interactive) as bars:
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


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """Write for machines, whole or not at all; nothing without a path."""
    if path is not None:
        write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
