"""How llama.cpp reads a LoRA adapter, slowly: src/llama-adapter.cpp (loading), src/llama-graph.cpp (W k + scale B A k).

Shapes are checked in ggml's order, in which the first dimension is the fastest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFReader


def changes(
    path: Path, architecture: str, model: Mapping[str, tuple[int, int]], scale: float = 1.0
) -> dict[str, np.ndarray]:
    """ΔW of each weight, (d_out, d_in), float64.

    Args:
        architecture: of the base.
        model: name -> (d_in, d_out) of the base's tensors, in ggml's order.

    Raises:
        ValueError: where llama.cpp refuses the file.
    """
    reader = GGUFReader(path)

    def value(key: str) -> object:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    if value("general.type") != "adapter" or value("adapter.type") != "lora":
        raise ValueError("not a LoRA adapter")
    if value("general.architecture") != architecture:
        raise ValueError("another architecture")
    alpha = value("adapter.lora.alpha")
    assert isinstance(alpha, float)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for tensor in reader.tensors:
        name, _, which = tensor.name.rpartition(".")
        if which not in ("lora_a", "lora_b"):
            raise ValueError(f"unexpected suffix {tensor.name}")
        pairs.setdefault(name, {})[which] = tensor.data
    found = {}
    for name, pair in pairs.items():
        a, b = pair["lora_a"], pair["lora_b"]  # numpy lists the dimensions the other way round
        if name not in model:
            raise ValueError(f"no {name} in the base")
        if a.shape[1] != model[name][0] or b.shape[0] != model[name][1] or a.shape[0] != b.shape[1]:
            raise ValueError(f"shapes of {name}")
        rank = b.shape[1]
        total = np.zeros((b.shape[0], a.shape[1]))
        for column in range(rank):
            total += np.outer(b[:, column].astype(np.float64), a[column].astype(np.float64))
        found[name] = (scale * alpha / rank if alpha else scale) * total
    return found
