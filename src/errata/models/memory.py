"""How much memory there is for weights, and models that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from errata.errors import InputError

_GIB: Final = 2**30
_CGROUP: Final = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Bytes that can be had on a device now; on the CPU also what a container's limit leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (
            (_CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current")
        )
        cached = sum(
            int(line.split()[1])
            for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
            if line.startswith(("inactive_file ", "active_file "))
        )
        return free if limit == "max" else min(free, int(limit) - int(used) + cached)
    except (OSError, ValueError, IndexError):  # no such limit on this system
        return free


def check_fits(name: str, needed: int, device: torch.device, *, purpose: str = "for its weights alone") -> None:
    """Raises InputError if a model needs more bytes than there are on a device."""
    if needed > (available := available_bytes(device)):
        raise InputError(
            f"{name} needs {needed:,} bytes ({needed / _GIB:.1f} GiB) {purpose}, and {available:,} "
            f"({available / _GIB:.1f} GiB) are available on {device}",
            remedy="Free memory, give a smaller model or --dtype bfloat16, or use a larger machine",
        )


def weight_bytes(config: PreTrainedConfig, dtype: torch.dtype | None, *, trust_remote_code: bool = False) -> int:
    """Bytes of a model's weights, calculated from its configuration without loading it.

    Args:
        dtype: of the weights; None for what the configuration names, else float32.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return sum(parameter.numel() for parameter in empty.parameters()) * (dtype or stored).itemsize
