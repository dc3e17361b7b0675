"""The losses of a target search: ROME's and MEMIT's (Meng et al. 2023, section 4.3), and PMET's over two vectors.

Each has its settings, the ``target`` section of a recipe.
"""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Final, Generic, Literal, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor

from errata.editing.search_prompts import InjectedAnswers, SearchPrompts
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.products import bfloat16_is_fast, bfloat16_products
from errata.models.replay import PASS_COST
from errata.utils.settings import NotNegative, Positive, Settings, by_kind

FAST_CONTEXTS: Final = 1  # contexts in each step besides the bare prompt
_logger = logging.getLogger(__name__)


class SearchSettings(Settings, ABC):
    """How target vectors are searched: the ``target`` section of a recipe, one subclass a loss."""

    learning_rate: Positive = Field(description="Adam's step")
    relative_rate: StrictBool = Field(False, description="the learning rate is in units of ‖h⁰‖ / √d, for each fact")
    steps: StrictInt = Field(ge=1, description="evaluations of the loss, one more than the updates")
    kl_factor: NotNegative = Field(0.0625, description="weight of the KL term on '{subject} is a'")
    weight_decay: NotNegative = Field(0.5, description="weight of ‖δ‖ / ‖h⁰‖²")
    clamp: Positive = Field(0.75, description="‖δ‖ is at most clamp · ‖h⁰‖")
    stop_loss: NotNegative = Field(0.05, description="a fact whose whole loss is below this is done")
    weights: Literal["current", "original"] = Field(
        "current", description="on which weights: as they are now, or as they were before the run"
    )
    mode: Literal["exact", "fast"] = Field(
        "exact", description="fast: bfloat16 products, and few contexts at each step (docs/speed.md)"
    )
    products: Literal["own", "bfloat16"] | None = Field(
        None, description="number format of matrix products above the target: the model's own; by default by the mode"
    )

    @abstractmethod
    def loss(
        self, model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, site: Site
    ) -> SearchLoss[Any]:
        """The loss of facts at one layer."""

    @property
    def sampled(self) -> int | None:
        """Contexts in each step besides the bare prompt; None for all."""
        return None

    def rounds_products(self, model: LanguageModel) -> bool:
        """Whether a search multiplies in bfloat16: if the settings say so, and the model is wider and it is faster."""
        wanted = self.products or ("bfloat16" if self.mode == "fast" else "own")
        return wanted == "bfloat16" and model.dtype == torch.float32 and bfloat16_is_fast(model.device)

    def computing(self, model: LanguageModel, layer: int) -> AbstractContextManager[None]:
        """In which a search above ``layer`` multiplies as the settings say; with a warning if that would be slower."""
        if self.rounds_products(model):
            return bfloat16_products(model, layer + 1)
        if (self.products == "bfloat16" or self.mode == "fast") and model.dtype == torch.float32:
            _logger.warning("targets are searched in float32: %s has no fast products in bfloat16", model.device)
        return nullcontext()

    def contradictions(self, site: str) -> Iterator[str]:
        """Why these settings make no sense with targets at ``site``."""
        yield from ()

    @property
    def not_in_cost(self) -> str:
        """The work of a search that ``analysis.cost`` does not count; empty for none."""
        return "targets are searched as in exact mode, though the recipe reads fewer contexts" if self.sampled else ""


class TargetSettings(SearchSettings):
    """How ROME and MEMIT search the target vector (methods.md, section 1, Target)."""

    kind: Literal["memit"] = "memit"
    contexts_per_step: Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="contexts in each step besides the bare prompt, in turn; by default all, in fast mode 1"
    )

    @property
    def sampled(self) -> int | None:
        """Contexts in each step besides the bare prompt; None for all."""
        if self.contexts_per_step is None and self.mode == "fast":
            return FAST_CONTEXTS
        return self.contexts_per_step

    def loss(
        self, model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, site: Site
    ) -> TargetLoss:
        return TargetLoss(model, facts, prefixes, layer, site, self)


class JointTargetSettings(SearchSettings):
    """How PMET searches it: together with a second vector at attention's output, which is not written."""

    kind: Literal["joint"] = "joint"
    eased_likelihood: NotNegative = Field(0.1, description="weight of the likelihood while the target is the argmax")
    stop_divergence: NotNegative = Field(
        0.01, description="a fact whose target is the argmax everywhere is done once its KL is below this"
    )

    def loss(
        self, model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, site: Site
    ) -> JointLoss:
        return JointLoss(model, facts, prefixes, layer, site, self)

    def contradictions(self, site: str) -> Iterator[str]:
        if site != "mlp":
            yield "the target 'joint' is searched at the MLP's output, so site must be 'mlp'"

    @property
    def not_in_cost(self) -> str:
        return "the block that a joint target is injected into runs once more, which is not counted"


AnyTarget: TypeAlias = Annotated[TargetSettings | JointTargetSettings, Field(discriminator="kind")]
TARGETS: Final[Mapping[str, type[SearchSettings]]] = by_kind(AnyTarget)

_Settings = TypeVar("_Settings", bound=SearchSettings)


class SearchLoss(ABC, Generic[_Settings]):
    """A loss of several facts at once as a function of the vector injected for each, or of several side by side; and
    the rules of its search.

    Args:
        site: where the written vector is injected.

    Attributes:
        dtype: of losses and deltas.
        zero: (facts, width) δ = 0, with which the loss was built.
        at_zero: (facts,) the loss there, differentiable if steps take the whole loss; P₀ of the KL term is read in this
            evaluation.
    """

    def __init__(
        self,
        model: LanguageModel,
        facts: Sequence[Fact],
        prefixes: Sequence[str],
        layer: int,
        site: Site,
        settings: _Settings,
    ) -> None:
        cost = PASS_COST if settings.rounds_products(model) and model.device.type == "cpu" else None
        self._prompts = SearchPrompts(model, facts, prefixes, layer, self.sites(site), cost)
        self._settings = settings
        self.dtype = self._prompts.dtype
        self._start()
        self.zero = torch.zeros_like(self.origin, requires_grad=True)
        with torch.set_grad_enabled(settings.sampled is None):
            self.at_zero = self(self.zero)

    @classmethod
    def sites(cls, site: Site) -> tuple[Site, ...]:
        """Where vectors are injected, in the order of their parts; ``site`` is the written one."""
        return (site,)

    @property
    def origin(self) -> Float[Tensor, "u width"]:
        """h⁰."""
        return self._prompts.origin

    @abstractmethod
    def _start(self) -> None:
        """Set the state of the search, before the first evaluation."""

    @abstractmethod
    def __call__(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u"]:
        """The whole loss of every fact."""

    def in_step(self, delta: Float[Tensor, "u width"], step: int) -> tuple[Float[Tensor, "u"], bool]:
        """The loss that is minimised in a step (from 1 on), and whether it is the whole loss or an estimate of it."""
        return self(delta), True

    @torch.no_grad()
    def whole(self, delta: Float[Tensor, "u width"], facts: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The whole loss of some facts."""
        some = copy.copy(self)
        some._prompts = copy.copy(self._prompts)
        some.select(facts)
        return some(delta[facts])

    @abstractmethod
    def rates(self) -> Float[Tensor, "u #width"]:
        """Adam's step for each fact, or for each entry of its vectors."""

    @abstractmethod
    def unfinished(self, loss: Float[Tensor, "u"]) -> Bool[Tensor, "u"]:
        """Whether the search of each fact continues, given its last loss."""

    @abstractmethod
    def clamped(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u width"]:
        """Each delta within clamp · ‖its h⁰‖."""

    @abstractmethod
    def written(self, vectors: Float[Tensor, "u width"]) -> Float[Tensor, "u d"]:
        """The part of the vectors that is written into W."""

    def select(self, facts: Int[Tensor, "n"]) -> None:
        """Reduce to these facts (ascending indices into the present ones)."""
        self._prompts.select(facts)


class TargetLoss(SearchLoss[TargetSettings]):
    """ROME's and MEMIT's loss as a function of one delta a fact (methods.md, section 1)."""

    def _start(self) -> None:
        self._origin_norm = self.origin.norm(dim=1)

    def __call__(self, delta: Float[Tensor, "u d"]) -> Float[Tensor, "u"]:
        return self._of(self._prompts.answers(delta), delta)

    def in_step(self, delta: Float[Tensor, "u d"], step: int) -> tuple[Float[Tensor, "u"], bool]:
        """With ``contexts_per_step``, the bare prompt and the contexts whose turn it is represent all.

        The weight of contexts other than the bare prompt is shared among those of the step, so that the loss is right
        on average.
        """
        number, per_step = self._prompts.prefixes, self._settings.sampled
        if per_step is None or per_step >= number:
            return self(delta), True
        return self._of(self._prompts.answers(delta, contexts=in_turn(number, per_step, step)), delta), False

    def _of(self, answers: InjectedAnswers, delta: Float[Tensor, "u d"]) -> Float[Tensor, "u"]:
        decay = delta.norm(dim=1) / self._origin_norm**2
        return answers.nll + self._settings.kl_factor * answers.kl + self._settings.weight_decay * decay

    def rates(self) -> Float[Tensor, "u 1"]:
        return step_sizes(self.origin, self._settings)

    def unfinished(self, loss: Float[Tensor, "u"]) -> Bool[Tensor, "u"]:
        return loss >= self._settings.stop_loss

    def clamped(self, delta: Float[Tensor, "u d"]) -> Float[Tensor, "u d"]:
        return clamp_norm(delta, self._settings.clamp * self._origin_norm)

    def written(self, vectors: Float[Tensor, "u d"]) -> Float[Tensor, "u d"]:
        return vectors

    def select(self, facts: Int[Tensor, "n"]) -> None:
        super().select(facts)
        self._origin_norm = self._origin_norm[facts]


def in_turn(number: int, per_step: int, step: int) -> list[int]:
    """Which of ``number`` contexts a step takes, from 0: in a random order, then in another one, and so on.

    The same for all facts, so that targets do not depend on the batch. A step that takes its contexts from two orders
    may find one in both, and has one fewer then.
    """
    places = range((step - 1) * per_step, step * per_step)
    orders = {
        number_of: torch.randperm(number, generator=torch.Generator().manual_seed(number_of)).tolist()
        for number_of in {place // number for place in places}
    }
    return sorted({orders[place // number][place % number] for place in places})


def step_sizes(origin: Float[Tensor, "u d"], settings: SearchSettings) -> Float[Tensor, "u 1"]:
    """The learning rate, in units of ‖h⁰‖ / √d where it is relative: then it serves models of any scale."""
    if not settings.relative_rate:
        return torch.full_like(origin[:, :1], settings.learning_rate)
    return settings.learning_rate * origin.norm(dim=1, keepdim=True) / math.sqrt(origin.shape[1])


def clamp_norm(vectors: Float[Tensor, "u d"], largest: Float[Tensor, "u"]) -> Float[Tensor, "u d"]:
    """Vectors shortened to at most ``largest``."""
    norm = vectors.norm(dim=1, keepdim=True)
    return torch.where(norm > largest[:, None], vectors * (largest[:, None] / norm), vectors)


class JointLoss(SearchLoss[JointTargetSettings]):
    """PMET's loss of several facts as a function of two deltas side by side, (facts, 2·d): at attention's output and at
    W's, of which only the second is written (Li et al. 2024, AAAI, arXiv:2308.08742, section 4).

    While a target is the argmax at each of its positions in each context, the next evaluation gives its likelihood less
    weight. The fact is done when in addition the KL divergence is small.
    """

    @classmethod
    def sites(cls, site: Site) -> tuple[Site, ...]:
        return (Site.ATTENTION, site)

    def _start(self) -> None:
        self._likelihood_weight = torch.ones_like(self.origin[:, 0])
        self._done = torch.zeros_like(self._likelihood_weight, dtype=torch.bool)

    def __call__(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u"]:
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
        parts = self.origin.chunk(2, dim=1)
        return torch.cat([step_sizes(part, self._settings).expand_as(part) for part in parts], dim=1)

    def unfinished(self, loss: Float[Tensor, "u"]) -> Bool[Tensor, "u"]:
        return ~self._done & (loss >= self._settings.stop_loss)

    def clamped(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u width"]:
        clamp = self._settings.clamp
        return torch.cat([clamp_norm(part, clamp * origin.norm(dim=1)) for part, origin in self._parts(delta)], dim=1)

    def written(self, vectors: Float[Tensor, "u width"]) -> Float[Tensor, "u d"]:
        """The half at W's output."""
        return vectors.chunk(2, dim=1)[1]

    def select(self, facts: Int[Tensor, "n"]) -> None:
        super().select(facts)
        self._likelihood_weight, self._done = self._likelihood_weight[facts], self._done[facts]

    def _parts(self, delta: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(delta.chunk(2, dim=1), self.origin.chunk(2, dim=1), strict=True))
