"""MEMOIR's masks by sorting, and one fact's gradient descent by whole passes over a dense memory (editors.md, B14)."""

from __future__ import annotations

import torch
from torch import Tensor

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel


def mask(query: Tensor, centre: Tensor, columns: int, order: Tensor) -> list[bool]:
    distances = (query - centre).abs().tolist()
    best = sorted(range(len(distances)), key=lambda place: -distances[place])[:columns]
    chosen = {int(order[place]) for place in best}
    return [place in chosen for place in range(len(distances))]


def memory_after(
    model: LanguageModel, fact: Fact, layer: int, own: Tensor, steps: int, rate: float, clip: float, unit: float
) -> Tensor:
    """(d_out, d_in) from zero, by gradient descent in units of ``unit``."""
    prompt = len(model.tokenizer(fact.text)["input_ids"])
    ids = model.tokenizer(f"{fact.text} {fact.target}")["input_ids"]
    memory = torch.zeros(model.weight(layer).shape, dtype=torch.float64, requires_grad=True)

    def add(module: object, args: tuple[Tensor], output: Tensor) -> Tensor:
        return output + (args[0].double() * own @ (unit * memory).T).to(output.dtype)

    handle = model.down_projection(layer).register_forward_hook(add)
    try:
        for _ in range(steps):
            logits = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            loss = -sum(logits[place - 1, ids[place]] for place in range(prompt, len(ids))) / (len(ids) - prompt)
            (gradient,) = torch.autograd.grad(loss, memory)
            scale = min(1.0, clip / float(gradient.norm()))
            memory = (memory - rate * scale * gradient).detach().requires_grad_(True)
    finally:
        handle.remove()
    return (unit * memory).detach()
