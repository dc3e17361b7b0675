"""What vLLM asks of a LoRA adapter, restated from its source: vllm/lora/peft_helper.py (``PEFTHelper``),
vllm/lora/lora_model.py (``check_unexpected_modules``), vllm/lora/utils.py (names) and vllm/config/lora.py (ranks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

RANKS = {1, 8, 16, 32, 64, 128, 256, 320, 512}  # the values of --max-lora-rank that its command line takes


def faults(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], linear: Iterable[str]) -> list[str]:
    """Why vLLM would refuse an adapter; nothing if it would not.

    Args:
        config: adapter_config.json.
        tensors: name -> shape in adapter_model.safetensors.
        linear: the last parts of the names of the model's linear layers.
    """
    found = [f"no {name}" for name in ("r", "lora_alpha", "target_modules") if name not in config]
    if found:
        return found
    for feature in ("modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication"):
        if config.get(feature):
            found.append(feature)
    if config.get("bias", "none") != "none":
        found.append("bias")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        found.append("older versions ignore patterns")
    if isinstance(config.get("init_lora_weights", True), str):
        found.append("init_lora_weights")
    if config["r"] not in RANKS:
        found.append(f"rank {config['r']}")
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        parts = name.split(".")
        if parts[:2] != ["base_model", "model"] or parts[-1] != "weight" or parts[-2] not in ("lora_A", "lora_B"):
            found.append(f"name {name}")
            continue
        modules.setdefault(".".join(parts[2:-2]), {})[parts[-2]] = shape
    for module, pair in modules.items():
        if module.rsplit(".", 1)[-1] not in set(linear):
            found.append(f"module {module}")
        if set(pair) != {"lora_A", "lora_B"} or pair["lora_A"][0] != config["r"] or pair["lora_B"][1] != config["r"]:
            found.append(f"pair {module}")
    return found


def scale(config: Mapping[str, Any]) -> float:
    """The factor of B A."""
    return float(config["lora_alpha"] / config["r"])
