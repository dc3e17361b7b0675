"""The features, the regression and the AUC of ``editors.scope`` by their definitions, pair by pair."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from errata.facts.fact import Fact


def features(query: str, fact: Fact, lexical: float, hidden: float) -> list[float]:
    words, own = re.findall(r"\w+", query.lower()), re.findall(r"\w+", fact.text.lower())
    relation = set(re.findall(r"\w+", fact.prompt.replace("{}", "").lower()))
    named = re.search(rf"(?<!\w){re.escape(fact.subject)}(?!\w)", query) is not None
    shared = sum(word in words for word in relation) / len(relation) if relation else 0
    return [lexical, hidden, float(named), shared, abs(len(own) - len(words)) / max(len(own), len(words))]


def balanced_loss(w: Tensor, positives: Tensor, negatives: Tensor, ridge: float) -> Tensor:
    """Of weights and a bias (the last), for rows that are standardised already."""
    loss = ridge * w[:-1].square().sum() / 2
    for rows, sign in ((positives, 1.0), (negatives, -1.0)):
        for row in rows:
            loss = loss + 0.5 / len(rows) * torch.log1p(torch.exp(-sign * (row @ w[:-1] + w[-1])))
    return loss


def regression(positives: Tensor, negatives: Tensor, ridge: float, steps: int = 150) -> Tensor:
    """Weights and bias of standardised features, by gradient descent."""
    rows = torch.cat([positives, negatives])
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    parts = [(part - mean) / scale for part in (positives, negatives)]
    w = torch.zeros(rows.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(balanced_loss(w, parts[0], parts[1], ridge), w)
        w = (w - gradient).detach().requires_grad_()
    return w.detach()


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    return math.fsum(wins) / len(wins)
