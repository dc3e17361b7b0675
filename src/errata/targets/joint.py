"""PMET's loss: two deltas are searched together, at attention's output and at W's; only the second is written.

Li et al. 2024, "PMET: Precise Model Editing in a Transformer" (AAAI 2024), arXiv:2308.08742, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.facts import Fact
from errata.models.language_model import LanguageModel, Site
from errata.recipe_settings import JointTargetSettings
from errata.targets.residual import clamp_norm, step_sizes
from errata.targets.rows import FactRows


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
