"""``errata doctor``: versions, devices and memory."""

from __future__ import annotations

import os
import sys

import psutil
import torch
import typer
from rich.table import Table

from errata.cli.terminal import JsonOption, console, write_json
from errata.errors import ErrataError
from errata.utils.provenance import software_versions

EXAMPLE = "Example: errata doctor --json doctor.json"

# (title, parameters, MLP width, width, number of critical layers) of models edited in publications.
_SIZES = (
    ("GPT2-XL", 1.56e9, 6400, 1600, 5),
    ("GPT-J-6B", 6.05e9, 16384, 4096, 6),
    ("Llama-3-8B", 8.03e9, 14336, 4096, 5),
    ("Llama-2-13B", 13.0e9, 13824, 5120, 5),
)
app = typer.Typer()


@app.command("doctor", epilog=EXAMPLE)
def doctor(json: JsonOption = None) -> None:
    """Show versions, devices, which model sizes fit in memory, and the state of the embedded model."""
    versions = software_versions()
    devices = _devices()
    lab = _lab_state()
    table = Table(title="errata doctor", show_header=False)
    for name, version in versions.items():
        table.add_row(name, version)
    for device in devices:
        table.add_row(
            str(device["name"]), f"{device['title']}, {device['free_gib']:.1f} GiB free of {device['total_gib']:.1f}"
        )
    table.add_row("threads", str(torch.get_num_threads()))
    table.add_row("embedded model", lab)
    console().print(table)
    fits = Table(title="Memory needed (weights, factorised statistics, 2 GiB for activations)")
    fits.add_column("model")
    for dtype in ("bfloat16", "float32"):
        fits.add_column(dtype, justify="right")
    for device in devices:
        fits.add_column(f"fits {device['name']}")
    rows = []
    for title, parameters, mlp_width, width, layers in _SIZES:
        needs = {
            dtype: _gib(parameters, size, mlp_width, width, layers) for dtype, size in (("bfloat16", 2), ("float32", 4))
        }
        verdicts = {
            str(device["name"]): [dtype for dtype, need in needs.items() if need <= float(device["free_gib"])]
            for device in devices
        }
        fits.add_row(
            title, *(f"{need:.0f} GiB" for need in needs.values()), *(", ".join(v) or "no" for v in verdicts.values())
        )
        rows.append({"model": title, "needs_gib": needs, "fits": verdicts})
    console().print(fits)
    write_json(json, {"versions": versions, "devices": devices, "lab": lab, "fits": rows})


def _gib(parameters: float, size: int, mlp_width: int, width: int, layers: int) -> float:
    """GiB for weights, 2 GiB of activations, and per critical layer a float64 factor and moment and a float32 sum."""
    per_layer = 2 * 8 * mlp_width**2 + (4 + size) * mlp_width * width
    return float((parameters * size + layers * per_layer) / 2**30 + 2)


def _devices() -> list[dict[str, str | float]]:
    memory = psutil.virtual_memory()
    found: list[dict[str, str | float]] = [
        {"name": "cpu", "title": f"{os.cpu_count()} cores, {sys.platform}", "free_gib": memory.available / 2**30,
         "total_gib": memory.total / 2**30}
    ]  # fmt: skip
    for index in range(torch.cuda.device_count()):
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        title = torch.cuda.get_device_name(index)
        found.append(
            {"name": f"cuda:{index}", "title": title, "free_gib": free_bytes / 2**30, "total_gib": total_bytes / 2**30}
        )
    return found


def _lab_state() -> str:
    from errata.lab.package import lab_directory, lab_world

    try:
        directory = lab_directory()
        return f"{len(lab_world().people)} people, {(directory / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
    except ErrataError as error:
        return f"missing: {error}"
