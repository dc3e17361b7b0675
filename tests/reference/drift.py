"""Drift from its definition: one prompt at a time, probabilities in float64."""

from __future__ import annotations

import math

from errata.models.language_model import LanguageModel

from tests.reference.generation import logits_behind


def distribution(model: LanguageModel, prompt: str) -> list[float]:
    return list(logits_behind(model, model.tokenizer(prompt)["input_ids"]).softmax(-1).tolist())


def divergence(before: list[float], after: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(before, after, strict=True))


def overlap(before: list[float], after: list[float]) -> float:
    tops = [sorted(range(len(row)), key=lambda token: -row[token])[:5] for row in (before, after)]
    return len([token for token in tops[0] if token in tops[1]]) / 5
