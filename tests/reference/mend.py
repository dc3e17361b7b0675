"""MEND token by token: gradients of the whole model by autograd, and edited weights put into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from errata.editors.mend import Network
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair, complete


def log_probabilities(model: LanguageModel, pair: Pair, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """(target tokens, vocabulary) log P where the target's tokens are predicted, under other weights if given."""
    row = complete(model.tokenizer, [pair])[0]
    ids = torch.tensor([row.ids])
    logits = functional_call(model.model, dict(weights or {}), args=(), kwargs={"input_ids": ids}).logits[0]
    return logits[row.target_start - 1 : -1].log_softmax(-1)


def loss(model: LanguageModel, pair: Pair, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    row = complete(model.tokenizer, [pair])[0]
    found = log_probabilities(model, pair, weights)
    return -torch.stack([found[place, token] for place, token in enumerate(row.target_ids)]).mean()


def name_of_weight(model: LanguageModel, layer: int) -> str:
    pointer = model.weight(layer).data_ptr()
    return next(name for name, value in model.model.named_parameters() if value.data_ptr() == pointer)


def gradient(model: LanguageModel, facts: Sequence[Fact], layer: int) -> Tensor:
    """(d_out, d_in) of the summed losses at W, by autograd at the parameter itself."""
    name = name_of_weight(model, layer)
    value = dict(model.model.named_parameters())[name].detach().requires_grad_()
    total = torch.stack([loss(model, fact.pair(fact.target), {name: value}) for fact in facts]).sum()
    (found,) = torch.autograd.grad(total, value)
    return found if found.shape == model.weight(layer).shape else found.T


def pair_of(network: Network, place: int, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """(x̃, δ̃) of one token."""
    z = (torch.cat([x, delta]) - network.mean) / network.std
    for step in range(len(network.up)):
        inner = network.up[step] @ (network.down[step] @ z) + network.bias[step]
        moved = network.scale[step, place] * inner + network.shift[step, place]
        z = z + torch.where(moved >= 0, moved, torch.zeros_like(moved))
    return z[: len(x)], z[len(x) :]


def change(network: Network, place: int, xs: Tensor, deltas: Tensor) -> Tensor:
    """(d_out, d_in) −α Σ_t δ̃ x̃ᵀ."""
    total = torch.zeros(deltas.shape[1], xs.shape[1], dtype=xs.dtype)
    for x, delta in zip(xs, deltas, strict=True):
        new_x, new_delta = pair_of(network, place, x, delta)
        total = total - torch.exp(network.log_step[place]) * network.unit[place] * torch.outer(new_delta, new_x)
    return total


def edited(model: LanguageModel, network: Network, pairs: Mapping[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The names and values of the edited weights."""
    found = {}
    for place, layer in enumerate(network.layers):
        name = name_of_weight(model, layer)
        value = dict(model.model.named_parameters())[name].detach()
        assert model.weight(layer).is_contiguous()  # not GPT-2's, which is transposed
        found[name] = value + change(network, place, *pairs[layer])
    return found
