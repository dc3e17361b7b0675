"""UltraEdit and StableEdit, slowly: statistics in two passes over all rows, and a dense d_in × d_in solve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel

from tests.reference.training import token_rows


def rows_of(model: LanguageModel, facts: Sequence[Fact], layer: int) -> tuple[Tensor, Tensor]:
    """W's input, and the gradient of each fact's mean loss at W's output, where target tokens are predicted."""
    inputs, gradients = [], []
    for fact in facts:
        prompt, target = token_rows(model, fact)
        kept: list[Tensor] = []

        def hook(module: object, args: tuple[Tensor, ...], output: Tensor, kept: list[Tensor] = kept) -> Tensor:
            moved = output.clone().requires_grad_()
            kept += [args[0].detach(), moved]
            return moved

        handle = model.down_projection(layer).register_forward_hook(hook)
        logits = model.model(input_ids=torch.tensor([[*prompt, *target[:-1]]]), use_cache=False).logits[0]
        handle.remove()
        places = range(len(prompt) - 1, len(prompt) - 1 + len(target))
        loss = -sum(logits[place].log_softmax(-1)[token] for place, token in zip(places, target, strict=True)) / len(
            target
        )
        (gradient,) = torch.autograd.grad(loss, kept[1])
        inputs += [kept[0].flatten(0, -2)[place] for place in places]
        gradients += [gradient.flatten(0, -2)[place] for place in places]
    return torch.stack(inputs).double(), torch.stack(gradients).double()


def deviations(seen: Tensor, rows: Tensor, *, whitened: bool) -> Tensor:
    count, size = seen.shape
    mean = seen.mean(0)
    if whitened and count > size + 1:
        covariance = (seen - mean).T @ (seen - mean) / (count - size - 1)
        values, vectors = torch.linalg.eigh(covariance)
        return (rows - mean) @ vectors @ torch.diag(values.clamp_min(1e-6) ** -0.5) @ vectors.T
    return (rows - mean) / (((seen - mean) ** 2).sum(0) / (count - 1)).sqrt().add(1e-7)


def change(
    seen: tuple[Tensor, Tensor], inputs: Tensor, gradients: Tensor, *, rate: float, ridge: float, whitened: bool = False
) -> Tensor:
    """ΔW of a batch, given all rows so far (its own included)."""
    h = deviations(seen[0], inputs, whitened=False)
    g = deviations(seen[1], gradients, whitened=whitened)
    v = torch.stack([-rate * (row @ row) * gradient for row, gradient in zip(h, g, strict=True)])
    inner = inputs.T @ inputs + ridge * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return (torch.linalg.inv(inner) @ inputs.T @ v).T
