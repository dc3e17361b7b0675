"""Forward replay: the target found at one layer is injected, and one forward pass gives the targets of later ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from errata.facts import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.replay import Replay, ReplayRow
from errata.targets.contexts import subject_rows


def carried_deltas(
    model: LanguageModel,
    facts: Sequence[Fact],
    delta: Float[Tensor, "d u"],
    source: int,
    layers: Sequence[int],
    site: Site,
) -> dict[int, Float[Tensor, "d u"]]:
    """By how much the states of later layers move when ``delta`` is added at layer ``source``, in the bare prompts.

    Args:
        delta: (d, facts) what is added at the subject's last token.
        source: the layer where it is added, at the same site.
        layers: later layers.

    Returns:
        layer -> (d, facts) float64; exactly zero for a fact whose delta is zero.
    """
    rows = [ReplayRow(ids, len(ids) - 1, (len(ids) - 1,)) for ids in subject_rows(model, facts, [""])]
    replay = Replay(model, rows, source, (site,))
    # Both by the same path, so that what does not move differs by nothing.
    moved = replay.states(delta.T, site, layers)
    still = replay.states(torch.zeros_like(delta.T), site, layers)
    return {layer: (moved[layer].double() - still[layer].double()).T for layer in layers}
