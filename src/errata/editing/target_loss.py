"""The loss whose least point is the target: the h that makes the model say the new object (Meng et al. 2023, 4.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.editing.recipe_settings import JointTargetSettings, TargetSettings
from errata.editing.target_rows import FactRows
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site


class TargetLoss:
    """ROME's and MEMIT's loss of several facts at once as a function of their deltas at one place (methods.md, 1).

    Attributes:
        dtype: of losses and deltas.
        origin: (facts, d) h⁰.
    """

    def __init__(
        self,
        model: LanguageModel,
        facts: Sequence[Fact],
        prefixes: Sequence[str],
        layer: int,
        site: Site,
        settings: TargetSettings,
    ) -> None:
        self._rows = FactRows(model, facts, prefixes, layer, (site,))
        self._settings = settings
        self.dtype = self._rows.dtype
        self._origin_norm = self.origin.norm(dim=1)

    @property
    def origin(self) -> Float[Tensor, "u d"]:
        return self._rows.origin

    def __call__(self, delta: Float[Tensor, "u d"]) -> Float[Tensor, "u"]:
        """The whole loss of every fact; the first call must be at delta = 0, where P_0 is read."""
        answers, settings = self._rows.answers(delta), self._settings
        decay = delta.norm(dim=1) / self._origin_norm**2
        return answers.surprise + settings.kl_factor * answers.divergence + settings.weight_decay * decay

    def rates(self) -> Float[Tensor, "u 1"]:
        """Adam's step for each fact."""
        return step_sizes(self.origin, self._settings)

    def going_on(self, loss: Float[Tensor, "u"]) -> Bool[Tensor, "u"]:
        """Which facts are not done, given their last loss."""
        return loss >= self._settings.stop_loss

    def clamped(self, delta: Float[Tensor, "u d"]) -> Float[Tensor, "u d"]:
        """Each delta within clamp · ‖h⁰‖."""
        return clamp_norm(delta, self._settings.clamp * self._origin_norm)

    def written(self, vectors: Float[Tensor, "u d"]) -> Float[Tensor, "u d"]:
        """The part of what is searched that W is changed for: here all of it."""
        return vectors

    def select(self, facts: Int[Tensor, "n"]) -> None:
        """Go on with these facts only (ascending indices into the present ones)."""
        self._rows.select(facts)
        self._origin_norm = self._origin_norm[facts]


def step_sizes(origin: Float[Tensor, "u d"], settings: TargetSettings | JointTargetSettings) -> Float[Tensor, "u 1"]:
    """The learning rate, in units of ‖h⁰‖ / √d where it is relative: then it serves models of any scale."""
    if not settings.relative_rate:
        return torch.full_like(origin[:, :1], settings.learning_rate)
    return settings.learning_rate * origin.norm(dim=1, keepdim=True) / math.sqrt(origin.shape[1])


def clamp_norm(vectors: Float[Tensor, "u d"], largest: Float[Tensor, "u"]) -> Float[Tensor, "u d"]:
    """Vectors that are too long, shortened; the others as they are."""
    norm = vectors.norm(dim=1, keepdim=True)
    return torch.where(norm > largest[:, None], vectors * (largest[:, None] / norm), vectors)


# ----------------------------------------------------------------------------------------------------
# PMET's loss: two deltas are searched together, at attention's output and at W's; only the second is written.
#
# Li et al. 2024, "PMET: Precise Model Editing in a Transformer" (AAAI 2024), arXiv:2308.08742, section 4.


class JointLoss:
    """The loss of several facts as a function of both deltas, side by side: (facts, 2·d), attention's first.

    While a target is the likeliest at each of its positions in each context, the next evaluation weighs its
    likelihood less; the fact is done when it holds so and the model has moved little otherwise.

    Attributes:
        dtype: of losses and deltas.
        origin: (facts, 2·d) both h⁰.
    """

    def __init__(
        self,
        model: LanguageModel,
        facts: Sequence[Fact],
        prefixes: Sequence[str],
        layer: int,
        site: Site,
        settings: JointTargetSettings,
    ) -> None:
        self._rows = FactRows(model, facts, prefixes, layer, (Site.ATTENTION, site))
        self._settings = settings
        self.dtype = self._rows.dtype
        self._likelihood_weight = torch.ones_like(self.origin[:, 0])
        self._done = torch.zeros_like(self._likelihood_weight, dtype=torch.bool)

    @property
    def origin(self) -> Float[Tensor, "u width"]:
        return self._rows.origin

    def __call__(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u"]:
        """The whole loss of every fact; the first call must be at delta = 0, where P_0 is read."""
        answers, settings = self._rows.answers(delta, holds=True), self._settings
        assert answers.holds is not None
        decay = sum(
            (part.norm(dim=1) / origin.norm(dim=1) ** 2 for part, origin in self._parts(delta)),
            torch.zeros_like(self._likelihood_weight),
        )
        loss = (
            self._likelihood_weight * answers.surprise
            + settings.kl_factor * answers.divergence
            + settings.weight_decay * decay
        )
        self._done = answers.holds & (answers.divergence.detach() < settings.stop_divergence)
        eased = torch.full_like(self._likelihood_weight, settings.eased_likelihood)
        self._likelihood_weight = torch.where(answers.holds, eased, 1.0)
        return loss

    def rates(self) -> Float[Tensor, "u width"]:
        """Adam's step for each entry of each fact's two vectors."""
        parts = self.origin.chunk(2, dim=1)
        return torch.cat([step_sizes(part, self._settings).expand_as(part) for part in parts], dim=1)

    def going_on(self, loss: Float[Tensor, "u"]) -> Bool[Tensor, "u"]:
        """Which facts are not done, by the last evaluation."""
        return ~self._done & (loss >= self._settings.stop_loss)

    def clamped(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u width"]:
        """Each delta within clamp · ‖its own h⁰‖."""
        clamp = self._settings.clamp
        return torch.cat([clamp_norm(part, clamp * origin.norm(dim=1)) for part, origin in self._parts(delta)], dim=1)

    def written(self, vectors: Float[Tensor, "u width"]) -> Float[Tensor, "u d"]:
        """The half at W's output."""
        return vectors.chunk(2, dim=1)[1]

    def select(self, facts: Int[Tensor, "n"]) -> None:
        """Go on with these facts only (ascending indices into the present ones)."""
        self._rows.select(facts)
        self._likelihood_weight, self._done = self._likelihood_weight[facts], self._done[facts]

    def _parts(self, delta: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(delta.chunk(2, dim=1), self.origin.chunk(2, dim=1), strict=True))
