"""The size of a model, from the shapes of its modules, and whether its weights fit in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from errata.errors import InputError
from errata.models.families import architecture_of, down_projection_weight, expert_weight, experts_of

_GIB: Final = 2**30
_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Shapes of a decoder with equal blocks: enough to estimate the cost of work with it."""

    blocks: int
    width: int  # of the residual stream; the number of W's rows
    mlp_width: int  # the number of W's columns, those of all experts together
    vocabulary: int  # rows of the head
    parameters: int  # of the whole model, tied ones once
    block_products: int  # multiplications per token in one block: entries of its weight matrices
    mlp_products: int  # those of the MLP, where it is a module; else 0
    head_products: int  # entries of the head
    query_width: int  # number of attention heads times their width
    key_width: int  # the same for the heads of keys and values
    experts: int = 1  # into which W's columns are divided; of a dense model 1
    active_experts: int = 1  # those that a token uses

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelSize:
        """The size of a model, with or without weights (on the meta device).

        Raises:
            UnsupportedModelError: if such a model cannot be edited.
        """
        row = architecture_of(model)
        blocks = model.get_submodule(row.blocks)
        assert isinstance(blocks, nn.ModuleList)
        block = blocks[0]
        if row.experts is not None:  # a few of the first blocks may be dense
            block = next((one for one in blocks if experts_of(one, row) is not None), block)
        experts = experts_of(block, row)
        count = 1 if experts is None else len(experts.get_parameter("down_proj"))
        if experts is None:
            rows, columns = down_projection_weight(block.get_submodule(row.down_projection)).shape
        else:
            rows, columns = expert_weight(experts, 0).shape
        head = model.get_submodule(row.head).get_parameter("weight")
        text = model.config.get_text_config(decoder=True)
        heads = int(text.num_attention_heads)
        head_width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
        # A token uses a few of the experts.
        active = 1 if experts is None else int(text.num_experts_per_tok)
        share = active / count
        stacked = [] if experts is None else [part for part in experts.parameters() if part.dim() == 3]
        of_experts = int(share * sum(part.numel() for part in stacked))
        mlp_is_module = row.mlp != row.down_projection
        return cls(
            blocks=len(blocks),
            width=rows,
            mlp_width=count * columns,
            vocabulary=head.shape[0],
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            block_products=_products(block) + of_experts,
            mlp_products=_products(block.get_submodule(row.mlp)) + of_experts if mlp_is_module else 0,
            head_products=head.numel(),
            query_width=heads * head_width,
            key_width=int(getattr(text, "num_key_value_heads", None) or heads) * head_width,
            experts=count,
            active_experts=active,
        )


def _products(module: nn.Module) -> int:
    return sum(
        part.get_parameter("weight").numel() for part in module.modules() if isinstance(part, nn.Linear | Conv1D)
    )


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """The dtype that a configuration names for the weights, else float32."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def weight_bytes(config: PreTrainedConfig, dtype: torch.dtype | None, *, trust_remote_code: bool = False) -> int:
    """Bytes of a model's weights, from its configuration alone.

    Args:
        dtype: of the weights; None for ``stored_dtype``.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() for parameter in empty.parameters()) * (dtype or stored_dtype(config)).itemsize


def check_fits(name: str, needed: int, device: torch.device, *, purpose: str = "for its weights alone") -> None:
    """Raises InputError if a model needs more bytes than a device has available."""
    if needed > (available := available_bytes(device)):
        raise InputError(
            f"{name} needs {needed:,} bytes ({needed / _GIB:.1f} GiB) {purpose}, and {available:,} "
            f"({available / _GIB:.1f} GiB) are available on {device}",
            remedy="Free memory, give a smaller model or --dtype bfloat16, or use a larger machine",
            code="MODEL_TOO_LARGE",
        )


def available_bytes(device: torch.device) -> int:
    """Bytes available on a device now; on the CPU within a container's limit."""
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
