"""The losses of a target search: ROME's and MEMIT's (Meng et al. 2023, section 4.3), and PMET's over two vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.editing.recipe_settings import JointTargetSettings, TargetSettings
from errata.editing.search_prompts import SearchPrompts
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site


class TargetLoss:
    """ROME's and MEMIT's loss of several facts at once as a function of their deltas at one place (methods.md, 1).

    Attributes:
        dtype: of losses and deltas.
        origin: (facts, d) h⁰.
        zero: (facts, d) δ = 0, with which the loss was built.
        at_zero: (facts,) the loss there, differentiable; P₀ of the KL term is read in this evaluation.
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
        self._prompts = SearchPrompts(model, facts, prefixes, layer, (site,))
        self._settings = settings
        self.dtype = self._prompts.dtype
        self._origin_norm = self.origin.norm(dim=1)
        self.zero = torch.zeros_like(self.origin, requires_grad=True)
        self.at_zero = self(self.zero)

    @property
    def origin(self) -> Float[Tensor, "u d"]:
        return self._prompts.origin

    def __call__(self, delta: Float[Tensor, "u d"]) -> Float[Tensor, "u"]:
        """The whole loss of every fact."""
        answers, settings = self._prompts.answers(delta), self._settings
        decay = delta.norm(dim=1) / self._origin_norm**2
        return answers.nll + settings.kl_factor * answers.kl + settings.weight_decay * decay

    def rates(self) -> Float[Tensor, "u 1"]:
        """Adam's step for each fact."""
        return step_sizes(self.origin, self._settings)

    def unfinished(self, loss: Float[Tensor, "u"]) -> Bool[Tensor, "u"]:
        """Whether the search of each fact continues, given its last loss."""
        return loss >= self._settings.stop_loss

    def clamped(self, delta: Float[Tensor, "u d"]) -> Float[Tensor, "u d"]:
        """Each delta within clamp · ‖h⁰‖."""
        return clamp_norm(delta, self._settings.clamp * self._origin_norm)

    def written(self, vectors: Float[Tensor, "u d"]) -> Float[Tensor, "u d"]:
        """The part of the vectors that is written into W: all of it."""
        return vectors

    def select(self, facts: Int[Tensor, "n"]) -> None:
        """Reduce to these facts (ascending indices into the present ones)."""
        self._prompts.select(facts)
        self._origin_norm = self._origin_norm[facts]


def step_sizes(origin: Float[Tensor, "u d"], settings: TargetSettings | JointTargetSettings) -> Float[Tensor, "u 1"]:
    """The learning rate, in units of ‖h⁰‖ / √d where it is relative: then it serves models of any scale."""
    if not settings.relative_rate:
        return torch.full_like(origin[:, :1], settings.learning_rate)
    return settings.learning_rate * origin.norm(dim=1, keepdim=True) / math.sqrt(origin.shape[1])


def clamp_norm(vectors: Float[Tensor, "u d"], largest: Float[Tensor, "u"]) -> Float[Tensor, "u d"]:
    """Vectors shortened to at most ``largest``."""
    norm = vectors.norm(dim=1, keepdim=True)
    return torch.where(norm > largest[:, None], vectors * (largest[:, None] / norm), vectors)


class JointLoss:
    """PMET's loss of several facts as a function of two deltas side by side, (facts, 2·d): at attention's output and at
    W's, of which only the second is written (Li et al. 2024, AAAI, arXiv:2308.08742, section 4).

    While a target is the argmax at each of its positions in each context, the next evaluation gives its likelihood less
    weight. The fact is done when in addition the KL divergence is small.

    Attributes:
        dtype: of losses and deltas.
        origin: (facts, 2·d) both h⁰.
        zero, at_zero: as in ``TargetLoss``.
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
        self._prompts = SearchPrompts(model, facts, prefixes, layer, (Site.ATTENTION, site))
        self._settings = settings
        self.dtype = self._prompts.dtype
        self._likelihood_weight = torch.ones_like(self.origin[:, 0])
        self._done = torch.zeros_like(self._likelihood_weight, dtype=torch.bool)
        self.zero = torch.zeros_like(self.origin, requires_grad=True)
        self.at_zero = self(self.zero)

    @property
    def origin(self) -> Float[Tensor, "u width"]:
        return self._prompts.origin

    def __call__(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u"]:
        """The whole loss of every fact."""
        answers, settings = self._prompts.answers(delta, argmax=True), self._settings
        assert answers.argmax_correct is not None
        decay = sum(
            (part.norm(dim=1) / origin.norm(dim=1) ** 2 for part, origin in self._parts(delta)),
            torch.zeros_like(self._likelihood_weight),
        )
        loss = self._likelihood_weight * answers.nll + settings.kl_factor * answers.kl + settings.weight_decay * decay
        self._done = answers.argmax_correct & (answers.kl.detach() < settings.stop_divergence)
        eased = torch.full_like(self._likelihood_weight, settings.eased_likelihood)
        self._likelihood_weight = torch.where(answers.argmax_correct, eased, 1.0)
        return loss

    def rates(self) -> Float[Tensor, "u width"]:
        """Adam's step for each entry of each fact's two vectors."""
        parts = self.origin.chunk(2, dim=1)
        return torch.cat([step_sizes(part, self._settings).expand_as(part) for part in parts], dim=1)

    def unfinished(self, loss: Float[Tensor, "u"]) -> Bool[Tensor, "u"]:
        """Whether the search of each fact continues, by the last evaluation."""
        return ~self._done & (loss >= self._settings.stop_loss)

    def clamped(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u width"]:
        """Each delta within clamp · ‖its own h⁰‖."""
        clamp = self._settings.clamp
        return torch.cat([clamp_norm(part, clamp * origin.norm(dim=1)) for part, origin in self._parts(delta)], dim=1)

    def written(self, vectors: Float[Tensor, "u width"]) -> Float[Tensor, "u d"]:
        """The half at W's output."""
        return vectors.chunk(2, dim=1)[1]

    def select(self, facts: Int[Tensor, "n"]) -> None:
        """Reduce to these facts (ascending indices into the present ones)."""
        self._prompts.select(facts)
        self._likelihood_weight, self._done = self._likelihood_weight[facts], self._done[facts]

    def _parts(self, delta: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(delta.chunk(2, dim=1), self.origin.chunk(2, dim=1), strict=True))
