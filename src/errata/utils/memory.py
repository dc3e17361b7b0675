"""How much memory a piece of work takes at most, and whether it ran out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psutil
import torch

_EVERY: Final = 0.02  # seconds between two readings


@dataclass(slots=True)
class PeakMemory:
    """The result of ``peak_memory``, known after its block.

    Attributes:
        bytes: at most, beyond what was in use at the start; None where it cannot be read.
    """

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure a block's peak memory: of the GPU as its allocator counts it, else of the process, read every 20 ms."""
    found = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    if device.type != "cpu":
        yield found
        return
    process, ended = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def read() -> None:
        nonlocal most
        while not ended.wait(_EVERY):
            most = max(most, process.memory_info().rss)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield found
    finally:
        ended.set()
        reader.join()
    found.bytes = max(most, process.memory_info().rss) - before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch has a class for it on GPUs only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
