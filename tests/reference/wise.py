"""WISE's distances, loss of distances, TIES and training: token by token, entry by entry, by whole passes over a dense
copy of W (editors.md, B7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel


def distance(tokens: Sequence[Tensor], delta: Tensor, largest: int | None) -> Tensor:
    """Of one prompt, from W's inputs in it."""
    lengths = sorted((torch.linalg.vector_norm(delta @ token) for token in tokens), key=float, reverse=True)
    most = lengths[:largest]
    return sum(most, torch.zeros((), dtype=delta.dtype)) / max(len(most), 1)


def activation_loss(
    rows: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    outside: Sequence[Sequence[Tensor]],
    delta: Tensor,
    scale: float,
    limits: tuple[float, float, float],
    largest: int | None,
) -> Tensor:
    """Of one fact.

    Args:
        rows: the tokens inside, and those that are outside.
        outside: the tokens of its outside prompts.
        limits: α, β, γ.
    """
    alpha, beta, gamma = limits
    own = sum((distance(inside, delta, largest) for inside, _ in rows), torch.zeros(())) / (len(rows) * scale)
    loss = torch.clamp(beta - own, min=0)
    rests = [rest for _, rest in rows] if any(rest for _, rest in rows) else []
    for group in (outside, rests):
        for tokens in group:
            other = distance(tokens, delta, largest) / scale
            terms = torch.clamp(other - own + gamma, min=0) + torch.clamp(other - alpha, min=0)
            loss = loss + terms / len(group)
    return loss


def replay_loss(
    stored: Sequence[Sequence[Sequence[Tensor]]],
    current: Sequence[Sequence[Tensor]],
    turns: Sequence[int],
    draws: Sequence[int],
    delta: Tensor,
    limits: tuple[float, float],
    largest: int | None,
) -> list[Tensor]:
    """For each fact of a batch; ``stored`` and ``current`` are the tokens of earlier facts, by memory."""
    losses = []
    for turn, draw in zip(turns, draws, strict=True):
        each = [
            torch.clamp(distance(memory[turn % len(memory)], delta, largest) - limits[0], min=0) for memory in stored
        ]
        held = torch.clamp(limits[1] - distance(current[draw], delta, largest), min=0)
        losses.append(sum(each, torch.zeros(())) / len(each) + held)
    return losses


def nearest(query: Tensor, members: Sequence[Any]) -> Any:
    return min(members, key=lambda member: float((member.query - query).norm()))


def ties(matrices: Sequence[Tensor], density: float) -> list[list[float]]:
    count = int(density * matrices[0].numel())
    trimmed = []
    for matrix in matrices:
        flat = matrix.flatten().tolist()
        large = sorted(range(len(flat)), key=lambda place: -abs(flat[place]))[:count]
        trimmed.append([flat[place] if place in set(large) else 0.0 for place in range(len(flat))])
    merged = []
    for entries in zip(*trimmed, strict=True):
        sign = 1 if sum(entries) > 0 else -1
        agreeing = [entry for entry in entries if entry * sign > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    width = matrices[0].shape[1]
    return [merged[start : start + width] for start in range(0, len(merged), width)]


def memory_after(
    model: LanguageModel,
    facts: Sequence[Fact],
    outside: Sequence[Sequence[Sequence[int]]],
    layer: int,
    mask: Tensor,
    units: tuple[float, float],
    limits: tuple[float, float, float],
    largest: int | None,
    steps: int,
    rate: float,
    *,
    plain: bool = False,
) -> Tensor:
    """ΔW (d_out, d_in) from zero, of facts in their bare prompts.

    Args:
        outside: for each fact the tokens of its outside prompts, BOS left out of distances.
        plain: gradient descent instead of Adam.
    """
    unit, scale = units
    bos = len(model.tokenizer("")["input_ids"])
    change = torch.zeros(model.weight(layer).shape, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([change], lr=rate)
    read: list[Tensor] = []

    def add(module: object, args: tuple[Tensor], output: Tensor) -> Tensor:
        x = args[0].reshape(-1, args[0].shape[-1]).double()
        read.append(x)
        return output + (x @ (unit * change).T).to(output.dtype).reshape(output.shape)

    handle = model.down_projection(layer).register_forward_hook(add)
    try:
        for _ in range(steps):
            loss = torch.zeros((), dtype=torch.float64)
            for fact, others in zip(facts, outside, strict=True):
                stop = len(model.tokenizer(fact.text)["input_ids"])
                ids = model.tokenizer(f"{fact.text} {fact.target}")["input_ids"]
                logits = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                loss = loss - sum(logits[place - 1, ids[place]] for place in range(stop, len(ids))) / (len(ids) - stop)
                first, last = fact.subject_span
                places = model.tokenizer(fact.text, return_offsets_mapping=True)["offset_mapping"]
                own = [
                    [
                        read[-1][place].detach()
                        for place in range(bos, stop)
                        if inside == (_overlaps(places[place], first, last))
                    ]
                    for inside in (True, False)
                ]
                others_read = []
                for prompt in others:
                    model.model(input_ids=torch.tensor([list(prompt)]))
                    others_read.append(list(read[-1][bos:].detach()))
                loss = loss + activation_loss([(own[0], own[1])], others_read, unit * change, scale, limits, largest)
            (gradient,) = torch.autograd.grad(loss, change)
            change.grad = gradient * mask
            if plain:
                change.data -= rate * change.grad
            else:
                adam.step()
    finally:
        handle.remove()
    return (unit * change).detach()


def _overlaps(token: tuple[int, int], first: int, last: int) -> bool:
    return max(token[0], first) < min(token[1], last)
