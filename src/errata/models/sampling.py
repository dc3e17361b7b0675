"""The choice of the next token among the likeliest, by uniform numbers that belong to a text and not to its batch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def own_uniforms(keys: Sequence[str], count: int, generator: torch.Generator) -> Tensor:
    """(keys, count) float64 in [0, 1): the numbers of a key follow from the generator's state and the key alone.

    Which other keys there are does not matter, so what is sampled for a prompt before and after an edit, or in a
    smaller set, differs by the model only. The second of two equal keys has numbers of its own.

    Args:
        generator: on the CPU; one number is drawn from it.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    seen: Counter[str] = Counter()
    numbers = torch.empty(len(keys), count, dtype=torch.float64)
    for index, key in enumerate(keys):
        digest = hashlib.sha256(f"{seed} {seen[key]} {key}".encode()).digest()
        seen[key] += 1
        own = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        numbers[index] = torch.rand(count, generator=own, dtype=torch.float64)
    return numbers


def inverse_cdf(values: Tensor, uniform: Tensor) -> Tensor:
    """The candidate in whose share of [0, 1) a uniform number lies, the likeliest's share being the first.

    Args:
        values: (rows, k) logits, descending.
        uniform: (rows,) in [0, 1).

    Returns:
        (rows, 1) indices of candidates.
    """
    cumulated = values.double().softmax(-1).cumsum(-1)
    # Rounding may leave the last sum just below 1.
    return (cumulated <= uniform[:, None]).sum(-1, keepdim=True).clamp_max(values.shape[1] - 1)


def likeliest(values: Tensor) -> Tensor:
    """(rows, k) logits, descending -> (rows, 1) index 0: the choice without chance."""
    return torch.zeros(len(values), 1, dtype=torch.long)
