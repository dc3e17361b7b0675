"""T-Patcher's losses neuron by neuron, and its training of one fact by whole passes (editors.md, B13)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel

from tests.reference.training import token_rows


def gate_losses(
    own: Tensor, memory: Sequence[Tensor], key: Tensor, bias: float, largest: int = 1000
) -> tuple[float, float]:
    """Of one neuron: exp(−a), and the mean of exp(a_mem − a + 3) plus that of exp(a_mem + 3)."""
    a = float(own @ key) + bias
    elsewhere = sorted((float(state @ key) + bias for state in memory), reverse=True)[:largest]
    apart = sum(math.exp(other - a + 3) for other in elsewhere) / len(elsewhere)
    return math.exp(-a), apart + sum(math.exp(other + 3) for other in elsewhere) / len(elsewhere)


def trained(
    model: LanguageModel,
    fact: Fact,
    layer: int,
    reader: torch.nn.Module,
    memory: Tensor,
    values: Tensor,
    *,
    steps: int,
    key_rate: float,
    value_rate: float,
    clip: float,
    weights: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, biases and values of a fact whose target the model does not predict at all.

    Args:
        reader: the module whose input is the MLP's.
        memory: (m, d) states of other text; those of the fact's own row are added here.
        values: (n, d_out) the random start, in units.
        weights: c_a and c_m.
    """
    prompt, target = token_rows(model, fact)
    ids = [*prompt, *target[:-1]]
    wanted = list(range(len(prompt) - 1, len(ids)))
    states, outputs = [], []
    handles = [
        reader.register_forward_pre_hook(lambda module, args: states.append(args[0].reshape(len(ids), -1))),
        model.down_projection(layer).register_forward_hook(
            lambda module, args, output: outputs.append(output.reshape(len(ids), -1))
        ),
    ]
    with torch.no_grad():
        model.model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    x, y = states[0], outputs[0]
    centre = memory.mean(0)
    lengths = [(x[place] - centre).norm() for place in wanted]
    scales = [y[place].square().mean().sqrt() for place in wanted]
    parameters = []
    for number, place in enumerate(wanted):
        u = ((x[place] - centre) / lengths[number]).clone().requires_grad_(True)
        b = torch.zeros((), dtype=x.dtype).requires_grad_(True)
        parameters.append((u, b, values[number].clone().requires_grad_(True)))
    rates = (key_rate / math.sqrt(x.shape[1]), key_rate, value_rate)
    groups = [{"params": [p[kind] for p in parameters], "lr": rates[kind]} for kind in range(3)]
    adam = torch.optim.Adam(groups)

    def neurons() -> list[tuple[Tensor, Tensor, Tensor]]:
        found = []
        for (u, b, w), length, scale in zip(parameters, lengths, scales, strict=True):
            key = u / length
            found.append((key, b - key @ centre, scale * w))
        return found

    for _ in range(steps):
        own = neurons()
        read: list[Tensor] = []
        handles = [
            reader.register_forward_pre_hook(lambda module, args, read=read: read.append(args[0])),
            model.down_projection(layer).register_forward_hook(
                lambda module, args, output, read=read, own=own: (
                    output + sum((read[-1] @ k + b).relu()[..., None] * v for k, b, v in own).reshape(output.shape)
                )
            ),
        ]
        logits = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        loss = -sum(logits[place, token] for place, token in zip(wanted, target, strict=True)) / len(target)
        for number, (key, bias, _) in enumerate(own):
            a = x[wanted[number]] @ key + bias
            others = torch.cat([memory, x[[place for place in range(len(ids)) if place != wanted[number]]]])
            largest = (others @ key + bias).sort(descending=True).values[:1000]
            gate = (largest - a + 3).exp().mean() + (largest + 3).exp().mean()
            loss = loss + (weights[0] * (-a).exp() + weights[1] * gate) / len(own)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in parameters for p in group], clip)
        adam.step()
    keys, biases, final = zip(*neurons(), strict=True)
    return torch.stack(keys).detach(), torch.stack(biases).detach(), torch.stack(final).detach()
