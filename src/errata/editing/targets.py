"""Where the states of a layer are to go: searched, carried on from an earlier layer, and shaped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from errata.editing.contexts import subject_rows
from errata.editing.keys import current_states
from errata.editing.recipe import Recipe
from errata.editing.schedules import Step
from errata.editing.shaping import Shaper, TargetShaper
from errata.editing.target_search import Targets, optimise_targets
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.replay import Replay, ReplayRow
from errata.models.weights import Term
from errata.utils.progress import Report, silent

# ----------------------------------------------------------------------------------------------------
# Forward replay: the target found at one layer is injected, and one forward pass gives the targets of later ones.


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


# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Aim:
    """What the facts of a batch aim at in one layer: z = states + delta.

    Attributes:
        targets: what the search found; for a layer that follows another one, z and delta are its own.
        delta: (d, facts) float64.
        states: (d, facts) float64, h when the aim was found.
    """

    targets: Targets
    delta: Float[Tensor, "d u"]
    states: Float[Tensor, "d u"]


@dataclass(frozen=True, slots=True)
class AimFinder:
    """Finds aims by a recipe, on the weights as they are when it is asked.

    Attributes:
        prefixes: the contexts.
        shapers: of which those that shape targets are used.
    """

    model: LanguageModel
    recipe: Recipe
    site: Site
    prefixes: Sequence[str]
    shapers: Sequence[Shaper]
    report: Report = silent

    def find(self, facts: Sequence[Fact], step: Step, steps: Sequence[Step], written: Sequence[Term]) -> dict[int, Aim]:
        """The aim of the layer that ``step`` needs, and of all layers that follow it.

        Args:
            written: what the run has changed so far; without it the weights are the original ones.
        """
        layer = step.target_layer
        original = self.recipe.target.weights == "original"
        with self.model.edits.without(written) if original else nullcontext():
            targets = self._search(facts, layer)
            delta = self._shaped(facts, layer, targets.delta.double(), written)
            aims = {layer: self._aim(facts, layer, targets, delta)}
        followers = [other.target_layer for other in steps if other.follows == layer]
        if followers:
            carried = carried_deltas(self.model, facts, delta, layer, followers, self.site)
            for follower, moved in carried.items():
                shaped = self._shaped(facts, follower, moved, written)
                aims[follower] = self._aim(facts, follower, targets, shaped)
        return aims

    def states(self, facts: Sequence[Fact], layer: int) -> Float[Tensor, "d u"]:
        """h as the recipe averages it, on the weights as they are now."""
        return current_states(self.model, facts, layer, self.site, self.prefixes, self.recipe.contexts.states)

    def _search(self, facts: Sequence[Fact], layer: int) -> Targets:
        steps_done = 0

        def on_step(facts_left: int) -> None:
            nonlocal steps_done
            steps_done += 1
            self.report(f"targets at layer {layer}", steps_done, self.recipe.target.steps)

        prefixes = self.prefixes if self.recipe.contexts.targets == "all" else ()
        return optimise_targets(self.model, facts, prefixes, layer, self.site, self.recipe.target, on_step=on_step)

    def _bare(self, facts: Sequence[Fact], layer: int) -> Tensor:
        return current_states(self.model, facts, layer, self.site)

    def _shaped(self, facts: Sequence[Fact], layer: int, delta: Tensor, written: Sequence[Term]) -> Tensor:
        """δ from the bare prompts' states, as the shapers leave it."""
        for shaper in self.shapers:
            if isinstance(shaper, TargetShaper):
                with self.model.edits.without(written):
                    unedited = self._bare(facts, layer)
                delta = shaper.target(self._bare(facts, layer), delta, float(unedited.norm(dim=0).mean()))
        return delta

    def _aim(self, facts: Sequence[Fact], layer: int, targets: Targets, delta: Tensor) -> Aim:
        """The aim z = h⁰ + δ, h⁰ the bare prompts' states, seen from the states as the recipe averages them."""
        states = self.states(facts, layer)
        if not torch.equal(delta, targets.delta.double()):
            z = self._bare(facts, layer) + delta
            targets = replace(targets, z=z.to(targets.z), delta=delta.to(targets.delta))
        if self.recipe.contexts.states != "bare":
            # What is known already (δ = 0) stays, though its averaged state is not its bare one.
            delta = torch.where(delta.any(0), delta + (self._bare(facts, layer) - states), 0.0)
        return Aim(targets, delta, states)
