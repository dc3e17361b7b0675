"""``errata doctor``: versions, devices and memory."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.table import Table

from errata.analysis.fit import edit_needs, size_of_model
from errata.cli.model_options import TrustOption
from errata.cli.terminal import JsonOption, console, write_json
from errata.errors import ErrataError
from errata.utils.provenance import software_versions
from errata.utils.text import dtype_name

EXAMPLE = (
    "Example: errata doctor --json doctor.json\n\nExample: errata doctor --model meta-llama/Llama-3.1-70B-Instruct"
)

# (title, parameters, MLP width, width, number of critical layers) of models edited in publications.
_SIZES = (
    ("GPT2-XL", 1.56e9, 6400, 1600, 5),
    ("GPT-J-6B", 6.05e9, 16384, 4096, 6),
    ("Llama-3-8B", 8.03e9, 14336, 4096, 5),
    ("Llama-2-13B", 13.0e9, 13824, 5120, 5),
)
app = typer.Typer()


@app.command("doctor", epilog=EXAMPLE)
def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Show what an edit of this model needs in memory and where that fits. Its configuration is enough: a "
            "directory with config.json, or a name on the hub.",
        ),
    ] = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = None,
) -> None:
    """Show versions, devices, which model sizes fit in memory, and the state of the embedded model."""
    if model is not None:
        write_json(json, _fit_of(model, trust_remote_code=trust_remote_code))
        return
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


def _fit_of(name: str, *, trust_remote_code: bool) -> dict[str, Any]:
    """Print what a model needs, and return it in bytes."""
    size = size_of_model(name, trust_remote_code=trust_remote_code)
    needs = {dtype: edit_needs(size, dtype) for dtype in (torch.bfloat16, torch.float32)}
    devices = _devices()
    table = Table(title=f"What an edit of {name} needs (GiB)")
    table.add_column("")
    for dtype in needs:
        table.add_column(dtype_name(dtype), justify="right")
    rows = {"weights": [need.weights for need in needs.values()]}
    for what in next(iter(needs.values())).parts:
        rows[what] = [need.parts[what] for need in needs.values()]
    many = {dtype: edit_needs(size, dtype, facts=100) for dtype in needs}
    rows["in all"] = [need.weights + need.besides for need in needs.values()]
    rows["in all, 100 facts searched at once"] = [need.weights + need.besides for need in many.values()]
    for what, found in rows.items():
        table.add_row(what, *(f"{value / 2**30:,.1f}" for value in found))
    console().print(table)
    fits = Table(title="Where that fits")
    fits.add_column("device")
    fits.add_column("GiB free", justify="right")
    for dtype in needs:
        fits.add_column(dtype_name(dtype))
    verdicts = {}
    for device in devices:
        title, free = str(device["name"]), float(device["free_gib"])
        words = [need.verdict(free * 2**30, is_cpu=title == "cpu") for need in needs.values()]
        verdicts[title] = dict(zip(map(dtype_name, needs), words, strict=True))
        fits.add_row(title, f"{free:.1f}", *words)
    console().print(fits)
    return {
        "model": name,
        "parameters": size.parameters,
        "needs": {
            dtype_name(dtype): {"weights": need.weights, "block": need.block, **need.parts}
            for dtype, need in needs.items()
        },
        "fits": verdicts,
    }


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
