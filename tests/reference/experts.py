"""A mixture of experts written out: one token, one expert at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def routed(block: nn.Module, config: Any, x: Tensor) -> dict[int, tuple[float, Tensor]]:
    """Expert -> its gate and its key for the MLP's input of one token.

    Args:
        x: (d,).
    """
    mlp: Any = block.get_submodule("mlp")
    if config.model_type == "gpt_oss":
        scores = [float(weight @ x + bias) for weight, bias in zip(mlp.router.weight, mlp.router.bias, strict=True)]
        chosen = sorted(range(len(scores)), key=lambda expert: -scores[expert])[: config.num_experts_per_tok]
        total = sum(math.exp(scores[expert]) for expert in chosen)
        gates = {expert: math.exp(scores[expert]) / total for expert in chosen}
    else:
        scores = [math.exp(float(weight @ x)) for weight in mlp.gate.weight]
        probabilities = [score / sum(scores) for score in scores]
        chosen = sorted(range(len(scores)), key=lambda expert: -scores[expert])[: config.num_experts_per_tok]
        renormalised = config.model_type == "mixtral" or config.norm_topk_prob
        total = sum(probabilities[expert] for expert in chosen) if renormalised else 1.0
        gates = {expert: probabilities[expert] / total for expert in chosen}
    return {expert: (gate, expert_key(mlp.experts, config, expert, x)) for expert, gate in gates.items()}


def expert_key(experts: Any, config: Any, expert: int, x: Tensor) -> Tensor:
    """k_e, the input of one expert's down-projection."""
    if config.model_type == "gpt_oss":
        inner = x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate, up = inner[0::2].clamp(max=experts.limit), inner[1::2].clamp(-experts.limit, experts.limit)
        return ((up + 1) * gate * torch.sigmoid(experts.alpha * gate)).detach()
    width = experts.gate_up_proj.shape[1] // 2
    gate, up = experts.gate_up_proj[expert, :width] @ x, experts.gate_up_proj[expert, width:] @ x
    return (gate * torch.sigmoid(gate) * up).detach()


def stacked_key(block: nn.Module, config: Any, x: Tensor) -> Tensor:
    """κ = [g_1 k_1; …; g_E k_E], zero for experts that were not chosen."""
    found = routed(block, config, x)
    width = len(next(iter(found.values()))[1])
    count = len(block.get_submodule("mlp").experts.down_proj)
    parts = [found[expert][0] * found[expert][1] if expert in found else x.new_zeros(width) for expert in range(count)]
    return torch.cat(parts)


def expert_moments(keys: Tensor, experts: int) -> Tensor:
    """C_e = mean over all tokens of (g k)(g k)ᵀ, zero where a token did not choose e.

    Args:
        keys: (tokens, experts · f).
    """
    blocks = keys.view(len(keys), experts, -1)
    return torch.stack([sum(torch.outer(key, key) for key in blocks[:, e]) / len(keys) for e in range(experts)])


def block_diagonal(moments: Tensor) -> Tensor:
    return torch.block_diag(*moments)
