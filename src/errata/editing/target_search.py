"""The search of target vectors: Adam on all facts of a batch together, each leaving when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.editing.recipe_settings import AnyTargetSettings
from errata.editing.target_loss import JointLoss, TargetLoss
from errata.errors import NonFiniteError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site


@dataclass(frozen=True, slots=True)
class Targets:
    """What a search found for each fact.

    Attributes:
        z: (d, facts), float32 or the model's dtype where that is wider.
        delta: (d, facts), z minus the state at delta = 0.
        loss: (facts,) the last evaluated loss.
        evaluations: (facts,) how many losses were evaluated.
        first_loss: (facts,) the loss at delta = 0.
        done: (facts,) whether the loss said at the last evaluation that the fact is done; the others ran out of steps.
    """

    z: Float[Tensor, "d u"]
    delta: Float[Tensor, "d u"]
    loss: Float[Tensor, "u"]
    evaluations: Int[Tensor, "u"]
    first_loss: Float[Tensor, "u"]
    done: Bool[Tensor, "u"]


@runtime_checkable
class SearchedLoss(Protocol):
    """A loss of several facts as a function of what is injected for each; ``width`` may be several vectors long."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def origin(self) -> Float[Tensor, "u width"]: ...

    def __call__(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u"]: ...

    def rates(self) -> Float[Tensor, "u #width"]: ...

    def going_on(self, loss: Float[Tensor, "u"]) -> Bool[Tensor, "u"]: ...

    def clamped(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u width"]: ...

    def written(self, vectors: Float[Tensor, "u width"]) -> Float[Tensor, "u d"]: ...

    def select(self, facts: Int[Tensor, "n"]) -> None: ...


LOSSES: Mapping[str, Callable[..., SearchedLoss]] = {"memit": TargetLoss, "joint": JointLoss}


def optimise_targets(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    site: Site,
    settings: AnyTargetSettings,
    *,
    row_budget: int = 1024,
    on_step: Callable[[int], None] = lambda facts_left: None,
) -> Targets:
    """Search the targets of all facts together: Adam is elementwise, so this equals one fact at a time.

    A fact whose loss is below the stop leaves the batch; each delta is clamped by itself.

    Args:
        row_budget: at most so many rows (facts × contexts) are replayed at once; more facts are taken in turn.
        on_step: told after each step how many facts are still being searched.

    Raises:
        NonFiniteError: naming facts and layer, if a loss or a gradient is NaN or infinite.
    """
    size = max(1, row_budget // (len(prefixes) + 2))
    parts = [
        _optimise(model, facts[start : start + size], prefixes, layer, site, settings, on_step)
        for start in range(0, len(facts), size)
    ]
    return joined(parts)


def joined(parts: Sequence[Targets]) -> Targets:
    """The targets of several groups of facts as those of one."""
    return Targets(
        z=torch.cat([part.z for part in parts], dim=1),
        delta=torch.cat([part.delta for part in parts], dim=1),
        loss=torch.cat([part.loss for part in parts]),
        evaluations=torch.cat([part.evaluations for part in parts]),
        first_loss=torch.cat([part.first_loss for part in parts]),
        done=torch.cat([part.done for part in parts]),
    )


def _optimise(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    site: Site,
    settings: AnyTargetSettings,
    on_step: Callable[[int], None],
) -> Targets:
    loss_of = LOSSES[settings.kind](model, facts, prefixes, layer, site, settings)
    origin = loss_of.origin
    final_delta = torch.zeros_like(origin)
    final_loss = torch.zeros(len(facts), dtype=loss_of.dtype, device=origin.device)
    first_loss = torch.zeros_like(final_loss)
    evaluations = torch.zeros(len(facts), dtype=torch.long, device=origin.device)
    done = torch.zeros(len(facts), dtype=torch.bool, device=origin.device)
    active = torch.arange(len(facts), device=origin.device)
    delta = torch.zeros_like(origin)
    first, second = torch.zeros_like(origin), torch.zeros_like(origin)
    for step in range(1, settings.steps + 1):
        delta.requires_grad_(True)
        loss = loss_of(delta)
        final_delta[active], final_loss[active] = delta.detach(), loss.detach()
        if step == 1:
            first_loss = loss.detach().clone()
        evaluations[active] = step
        _check_finite("target loss", loss, facts, active, layer)
        going_on = loss_of.going_on(loss.detach())
        done[active] = ~going_on
        if step == settings.steps or not bool(going_on.any()):
            break
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        _check_finite("gradient of the target loss", gradient[going_on], facts, active[going_on], layer)
        delta = delta.detach()
        if not bool(going_on.all()):
            kept = going_on.nonzero()[:, 0]
            loss_of.select(kept)
            active, delta, gradient, first, second = (x[kept] for x in (active, delta, gradient, first, second))
        first, second, delta = _adam(first, second, delta, gradient, step, loss_of.rates())
        delta = loss_of.clamped(delta)
        on_step(len(active))
    z, found = loss_of.written(origin + final_delta).T, loss_of.written(final_delta).T
    return Targets(z=z, delta=found, loss=final_loss, evaluations=evaluations, first_loss=first_loss, done=done)


def _adam(
    first: Tensor, second: Tensor, value: Tensor, gradient: Tensor, step: int, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam with the usual constants (Kingma & Ba 2015, algorithm 1); all rows are at the same step."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient**2
    denominator = (second / (1 - beta2**step)).sqrt() + epsilon
    return first, second, value - rate * (first / (1 - beta1**step)) / denominator


def _check_finite(quantity: str, values: Tensor, facts: Sequence[Fact], index: Tensor, layer: int) -> None:
    finite = torch.isfinite(values.detach()).view(len(index), -1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(quantity, facts=[facts[i].id for i in index[~finite].tolist()], layer=layer)
