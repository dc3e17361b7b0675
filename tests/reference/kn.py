"""Knowledge neurons, slowly: whole forward passes with one layer's activations replaced, and finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.models.language_model import LanguageModel


def probability(model: LanguageModel, ids: Sequence[int], token: int, layer: int, activations: Tensor | None) -> float:
    """P(token) after a text, with the input of a layer's W at the last token replaced."""

    def replace(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        changed = args[0].clone()
        changed.view(len(ids), -1)[-1] = activations
        return (changed,)

    handle = None if activations is None else model.down_projection(layer).register_forward_pre_hook(replace)
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double()
    if handle is not None:
        handle.remove()
    return float(logits.softmax(-1)[token])


def activations(model: LanguageModel, ids: Sequence[int], layer: int) -> Tensor:
    """The input of a layer's W at the last token."""
    seen: list[Tensor] = []
    handle = model.down_projection(layer).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    handle.remove()
    return seen[0].reshape(len(ids), -1)[-1]


def attribution(
    model: LanguageModel, ids: Sequence[int], token: int, layer: int, neuron: int, steps: int, width: float = 1e-4
) -> float:
    """a · 1/m Σ ∂P/∂a at j/m of the layer's activations, each derivative by two forward passes."""
    own = activations(model, ids, layer)
    total = 0.0
    for step in range(1, steps + 1):
        sides = []
        for sign in (1, -1):
            moved = own * step / steps
            moved[neuron] += sign * width
            sides.append(probability(model, ids, token, layer, moved))
        total += (sides[0] - sides[1]) / (2 * width)
    return float(own[neuron]) * total / steps
