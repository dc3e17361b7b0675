"""Keys of a mixture of experts.

The MLP's output is Σ_e g_e W_e k_e, a sum over the experts that the router chose, with gates g_e and keys k_e. That is
[W_1 … W_E] κ with κ = [g_1 k_1; …; g_E k_E], zero for experts that were not chosen: one matrix and one key, of which an
edit uses that the blocks of κ belong to separate weights (``errata.editing.solvers.experts``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn


def gated_keys(
    experts: nn.Module,
    parameters: Mapping[str, Tensor],
    hidden: Float[Tensor, "tokens d"],
    chosen: Int[Tensor, "tokens k"],
    gates: Float[Tensor, "tokens k"],
) -> Float[Tensor, "tokens width"]:
    """κ of each token, the keys of all experts side by side, whatever kernel the model runs.

    Args:
        experts: the module of all experts (transformers 5).
        parameters: its parameters by name, which need not be in the module now.
        hidden, chosen, gates: its arguments: the MLP's inputs, and the router's choice for each token.
    """
    up, down = parameters["gate_up_proj"], parameters["down_proj"]
    bias = parameters["gate_up_proj_bias"] if experts.has_bias else None
    count, width = down.shape[0], down.shape[1] if experts.is_transposed else down.shape[2]
    hidden, chosen, gates = (each.reshape(-1, each.shape[-1]) for each in (hidden, chosen, gates))
    found = hidden.new_zeros(len(hidden), count, width)
    for expert in chosen.unique().tolist():
        if expert >= count:  # the mark of experts that another process computes
            continue
        token, place = (chosen == expert).nonzero(as_tuple=True)
        inner = hidden[token] @ (up[expert] if experts.is_transposed else up[expert].T)
        if bias is not None:
            inner = inner + bias[expert]
        apply_gate: Any = experts._apply_gate
        found[token, expert] = (apply_gate(inner) * gates[token, place, None]).to(found.dtype)
    return found.flatten(1)
