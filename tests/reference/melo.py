"""MELO's rules of clustering in loops, and one batch's training by whole passes (editors.md, B11)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel

from tests.reference.training import token_rows

Row = tuple[list[float], float, tuple[int, ...], list[int]]  # centre, radius, label, points


def clusters(points: Sequence[Sequence[float]], labels: Sequence[tuple[int, ...]], radius: float) -> list[Row]:
    rows: list[Row] = []
    for number, (point, label) in enumerate(zip(points, labels, strict=True)):
        best, distance = -1, math.inf
        for index, (centre, _, _, _) in enumerate(rows):
            if math.dist(centre, point) < distance:
                best, distance = index, math.dist(centre, point)
        if best < 0 or distance > radius + rows[best][1]:
            rows.append((list(point), radius, label, [number]))
            continue
        centre, _, own, members = rows[best]
        if own == label:
            members = [*members, number]
            centre = [float(value) for value in np.mean([points[member] for member in members], axis=0)]
            largest = max(math.dist(centre, points[member]) for member in members)
            rows[best] = (centre, max(largest, radius), own, members)
            continue
        half = distance / 2 - 1e-5 * radius
        rows[best] = (centre, half, own, [member for member in members if math.dist(centre, points[member]) <= half])
        rows.append((list(point), distance / 2 + 1e-5 * radius, label, [number]))
        rows = [row for row in rows if row[3]]
    return rows


def hit(rows: Sequence[Row], points: Sequence[Sequence[float]], query: Sequence[float]) -> int | None:
    centre, radius, _, members = min(rows, key=lambda row: math.dist(row[0], query))
    if math.dist(centre, query) > radius:
        return None
    return min(members, key=lambda member: math.dist(points[member], query))


def trained(
    model: LanguageModel,
    facts: Sequence[Fact],
    layers: Sequence[int],
    down: Tensor,
    factors: Sequence[float],
    rank: int,
    steps: int,
    rate: float,
    halve_every: int,
) -> Tensor:
    """The change of each adapted matrix, (M, d_out, d), by a loop over facts, from A (M, d, rank) and B = 0."""
    d_out = model.weight(layers[0]).shape[0]
    a = down.clone().requires_grad_(True)
    b = torch.zeros(len(layers), rank, d_out, dtype=down.dtype, requires_grad=True)
    adam = torch.optim.Adam([a, b], lr=rate)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = rate * 0.5 ** (step // halve_every)
        adam.zero_grad()
        for fact in facts:
            prompt, target = token_rows(model, fact)
            handles = [
                model.down_projection(layer).register_forward_hook(
                    lambda module, args, output, m=m: output + factors[m] * (args[0] @ a[m] @ b[m])
                )
                for m, layer in enumerate(layers)
            ]
            logits = model.model(input_ids=torch.tensor([[*prompt, *target[:-1]]])).logits[0].log_softmax(-1)
            for handle in handles:
                handle.remove()
            loss = -sum(logits[len(prompt) - 1 + place, token] for place, token in enumerate(target)) / len(target)
            (loss / len(facts)).backward()
        adam.step()
    return torch.stack([factors[m] * (a[m] @ b[m]).T for m in range(len(layers))]).detach()
