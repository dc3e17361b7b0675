"""ELDER's mixture, codes and code space by nested loops (editors.md, B4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, combinations, product

import torch
from torch import Tensor


def mixture(
    x: Tensor, parameters: Mapping[str, Tensor], module: int, queries: Tensor, chosen: int, factor: float
) -> Tensor:
    """What is added to a module's output: row by row, expert by expert; (rows, length, d) -> (rows, length, d_out)."""
    added = torch.zeros(*x.shape[:2], parameters["B"].shape[-1], dtype=torch.float64)
    for row in range(len(x)):
        logits = [
            float(parameters["G"][module, expert].double() @ queries[row].double() + parameters["c"][module, expert])
            for expert in range(parameters["G"].shape[1])
        ]
        total = sum(math.exp(logit) for logit in logits)
        best = sorted(range(len(logits)), key=lambda expert: -logits[expert])[:chosen]
        for expert in best:
            inner = x[row].double() @ parameters["A"][module, expert].double()
            added[row] += factor * math.exp(logits[expert]) / total * (inner @ parameters["B"][module, expert].double())
    return added


def code(parameters: Mapping[str, Tensor], query: Tensor, chosen: int) -> list[int]:
    """The k-hot bits of all modules, one after another."""
    bits: list[int] = []
    for matrix, bias in zip(parameters["G"].double(), parameters["c"].double(), strict=True):
        logits = (matrix @ query.double() + bias).tolist()
        best = sorted(range(len(logits)), key=lambda expert: -logits[expert])[:chosen]
        bits += [int(expert in best) for expert in range(len(logits))]
    return bits


def distance(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def all_codes(modules: int, experts: int, chosen: int) -> list[list[int]]:
    block = [[int(e in choice) for e in range(experts)] for choice in combinations(range(experts), chosen)]
    return [list(chain(*blocks)) for blocks in product(block, repeat=modules)]
