"""Embedders and thresholds from their definitions, one text and one candidate at a time."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

import torch
from torch import Tensor


def grams(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for word in text.casefold().split():
        while word and unicodedata.category(word[0]).startswith("P"):
            word = word[1:]
        while word and unicodedata.category(word[-1]).startswith("P"):
            word = word[:-1]
        if word:
            padded = f" {word} "
            own = [padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded) - n + 1)]
            found.update(own or [padded])
    return found


def lexical_cosine(memory: list[str], place: int, query: str) -> float:
    """tf·idf over the memory's texts; the n-grams themselves, without hashing."""
    counts = [grams(text) for text in memory]

    def vector(found: Counter[str]) -> dict[str, float]:
        frequency = {gram: sum(gram in other for other in counts) for gram in found}
        return {
            gram: count * (math.log((1 + len(memory)) / (1 + frequency[gram])) + 1) for gram, count in found.items()
        }

    one, other = vector(counts[place]), vector(grams(query))
    lengths = [math.sqrt(sum(value**2 for value in v.values())) for v in (one, other)]
    product = sum(value * other.get(gram, 0.0) for gram, value in one.items())
    return product / (lengths[0] * lengths[1]) if all(lengths) else 0.0


def whitened(states: list[Tensor], neutral: list[Tensor], corpus: list[Tensor], ridge: float) -> Tensor:
    """(texts, d): C^{−1/2}(x̄ − μ), of length 1.

    Args:
        states, neutral, corpus: (tokens, d) float64 of each text, its first token left out.
    """
    keys = torch.cat(corpus)
    moment = sum(torch.outer(key, key) for key in keys) / len(keys)
    values, vectors = torch.linalg.eigh(moment)
    root = vectors @ torch.diag((values + ridge * values.mean()) ** -0.5) @ vectors.T
    centre = torch.stack([found.mean(0) for found in neutral]).mean(0)
    result = torch.stack([root @ (found.mean(0) - centre) for found in states])
    return result / result.norm(dim=1, keepdim=True)


def balanced_accuracy(threshold: float, positives: list[float], negatives: list[float]) -> float:
    hits = sum(value >= threshold for value in positives) / len(positives)
    return (hits + sum(value < threshold for value in negatives) / len(negatives)) / 2
