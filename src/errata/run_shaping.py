"""A shaped copy of a whole run, which stands in the model in the place of what the batches added."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from errata.models.weights import EditedWeights, LowRankTerm, Term
from errata.shaping import RunShaper


def shaped_run(edits: EditedWeights, terms: Sequence[Term], shapers: Sequence[RunShaper]) -> tuple[Term, ...]:
    """One term for each layer that takes the place of its weight's change by the run.

    Args:
        edits: of the model, with the terms in it.
        terms: what the run's batches added, in order; all of them low-rank.
        shapers: in the order in which they shape.
    """
    shaped: list[Term] = []
    for layer in dict.fromkeys(term.layer for term in terms):
        own = [term for term in terms if term.layer == layer]
        assert all(isinstance(term, LowRankTerm) for term in own)  # recipes refuse masks beside these shapers
        left = torch.cat([term.left for term in own if isinstance(term, LowRankTerm)], dim=1)
        right = torch.cat([term.right for term in own if isinstance(term, LowRankTerm)], dim=0)
        original = edits.weight_without(layer, terms)
        for shaper in shapers:
            left, right = shaper.factors(left, right, original)
        shaped.append(LowRankTerm(layer, left, right, replaces=True))
    return tuple(shaped)
