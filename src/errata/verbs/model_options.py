"""What verbs share that load a model: their options, and what these name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict

import torch
import typer

from errata.errors import Fault, FaultsError
from errata.loading import base_of
from errata.models.gguf import converted_directory
from errata.models.outline import Outline, gguf_of, is_hub_name
from errata.run_directory import is_run, open_run
from errata.verbs.terminal import error_console, warn

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="'lab' (the embedded model), a directory, a GGUF file, a name of `errata models list`, or one on the hub.",
    ),
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps … By default a GPU if there is one.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16. By default what is stored; lab: float32. An edited model is written in it."
    ),
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


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
    note_conversion(name)
    return Outline.load(name, trust_remote_code=trust_remote_code)


def note_conversion(name: str) -> None:
    """Say so where a GGUF file is about to be converted, which takes its time once."""
    file = gguf_of(name)
    if file is not None and not (target := converted_directory(file)).is_dir():
        warn(f"note: converting {file.name} to plain float32 weights, once; they are kept in {target}")


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
