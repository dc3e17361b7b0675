"""GRACE's rules of assignment and its training, one query and one fact at a time (editors.md, B6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel

Row = tuple[list[float], float, tuple[int, ...], list[int]]  # centre, radius, label, queries


def book(
    queries: Sequence[Sequence[float]], labels: Sequence[tuple[int, ...]], epsilon: float, *, moving: bool = False
) -> list[Row]:
    rows: list[Row] = []
    for number, (query, label) in enumerate(zip(queries, labels, strict=True)):
        best, distance = -1, math.inf
        for index, (centre, _, _, _) in enumerate(rows):
            apart = math.sqrt(sum((a - b) ** 2 for a, b in zip(centre, query, strict=True)))
            if apart < distance:
                best, distance = index, apart
        if best < 0 or distance > epsilon + rows[best][1]:
            rows.append((list(query), epsilon, label, [number]))
            continue
        centre, radius, own, members = rows[best]
        if own != label:
            rows[best] = (centre, distance / 2 - 1e-5 * epsilon, own, members)
            rows.append((list(query), distance / 2, label, [number]))
            continue
        if distance > radius:
            radius = distance
            if moving:
                centre = [(a + b) / 2 for a, b in zip(centre, query, strict=True)]
        rows[best] = (centre, radius, own, [*members, number])
    return rows


def hit(rows: Sequence[Row], query: Sequence[float]) -> int | None:
    distances = [float(np.linalg.norm(np.asarray(centre) - np.asarray(query))) for centre, _, _, _ in rows]
    best = int(np.argmin(distances))
    return best if distances[best] <= rows[best][1] else None


def trained_vector(
    model: LanguageModel,
    fact: Fact,
    layer: int,
    steps: int,
    rate: float,
    stop: float,
    where: Callable[[int, int], bool],
) -> Tensor:
    """The vector of a fact alone: whole passes, torch's own Adam in units of the start's root mean square.

    Args:
        where: (position, position of the prompt's last token) -> whether the vector is put there.
    """
    prompt = model.tokenizer(fact.text)["input_ids"]
    ids = model.tokenizer(f"{fact.text} {fact.target}")["input_ids"]
    assert ids[: len(prompt)] == prompt
    last = len(prompt) - 1
    own: list[Tensor] = []

    def read(module: object, args: object, output: Tensor) -> None:
        own.append(output.reshape(-1, output.shape[-1])[last].detach())

    module = model.down_projection(layer)
    handle = module.register_forward_hook(read)
    with torch.no_grad():
        model.model(input_ids=torch.tensor([ids]))
    handle.remove()
    start, scale = own[0], rate * float(own[0].norm()) / math.sqrt(len(own[0]))
    moved = torch.zeros_like(start, requires_grad=True)  # in units of the rate
    adam = torch.optim.Adam([moved], lr=1.0, eps=1e-8 * scale)
    for _ in range(steps):
        vector = start + scale * moved

        def put(module: object, args: object, output: Tensor, vector: Tensor = vector) -> Tensor:
            rows = output.reshape(-1, output.shape[-1])
            return torch.stack([vector if where(index, last) else row for index, row in enumerate(rows)]).reshape(
                output.shape
            )

        handle = module.register_forward_hook(put)
        logits = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        handle.remove()
        loss = -sum(logits[index - 1, ids[index]] for index in range(len(prompt), len(ids))) / (len(ids) - len(prompt))
        if float(loss.detach()) < stop:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (start + scale * moved).detach()
