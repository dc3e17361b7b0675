"""Searches one fact at a time, between writes that are dense float64 solves into a copy's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from errata.editing.target_loss import TargetSettings
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site

from tests.reference.keys import key, state
from tests.reference.solvers import least_squares
from tests.reference.target import ReferenceLoss, ReferenceTarget, search


def write(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    residuals: Tensor,
    moment: Tensor,
    ridge: float,
) -> None:
    """Add ΔW for residuals (d, facts) to a layer, for good."""
    keys = torch.stack([key(model, fact, prefixes, layer) for fact in facts], dim=1)
    change = least_squares(keys, residuals, moment, ridge=ridge)
    model.set_weight(layer, (model.weight(layer).double() + change).to(model.dtype))


def searched(
    model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, settings: TargetSettings
) -> list[ReferenceTarget]:
    return [search(model, fact, prefixes, layer, Site.BLOCK, settings) for fact in facts]


def first_loss(
    model: LanguageModel, fact: Fact, prefixes: Sequence[str], layer: int, settings: TargetSettings
) -> float:
    nothing = torch.zeros(model.weight(layer).shape[0], dtype=model.dtype)
    return float(ReferenceLoss(model, fact, prefixes, layer, Site.BLOCK, settings)(nothing))


def with_own_targets(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layers: Sequence[int],
    settings: TargetSettings,
    moments: Mapping[int, Tensor],
    ridge: float,
) -> dict[int, tuple[list[ReferenceTarget], list[float]]]:
    """Each layer's targets, found when all before it are written; and the losses that their searches begin with."""
    found = {}
    for layer in layers:
        targets = searched(model, facts, prefixes, layer, settings)
        found[layer] = (targets, [first_loss(model, fact, prefixes, layer, settings) for fact in facts])
        residuals = torch.stack([target.delta.double() for target in targets], dim=1)
        write(model, facts, prefixes, layer, residuals, moments[layer], ridge)
    return found


def behind_spread_writes(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layers: Sequence[int],
    settings: TargetSettings,
    moments: Mapping[int, Tensor],
    ridge: float,
) -> tuple[list[ReferenceTarget], list[float]]:
    """A fresh search at the last layer, the others having had their shares of what was left of its first residual."""
    *earlier, last = layers
    aims = [target.z.double() for target in searched(model, facts, prefixes, last, settings)]
    for index, layer in enumerate(earlier):
        left = [aim - state(model, fact, last, Site.BLOCK) for aim, fact in zip(aims, facts, strict=True)]
        residuals = torch.stack(left, dim=1) / (len(layers) - index)
        write(model, facts, prefixes, layer, residuals, moments[layer], ridge)
    fresh = searched(model, facts, prefixes, last, settings)
    return fresh, [first_loss(model, fact, prefixes, last, settings) for fact in facts]
