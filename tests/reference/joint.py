"""PMET's target of one fact: both deltas by hooks in whole forward passes, all logits, torch's own Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from errata.editing.target_loss import JointTargetSettings
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel

from tests.reference.target import ReferenceTarget, texts_of


class ReferenceJointLoss:
    """The loss of one fact at (δ_attention, δ_mlp); the first call must be at zero: both h⁰ and P₀ are read there."""

    def __init__(
        self, model: LanguageModel, fact: Fact, prefixes: Sequence[str], layer: int, settings: JointTargetSettings
    ) -> None:
        self.model, self.settings = model, settings
        self.parts: list[nn.Module] = [model.attention_output(layer), model.down_projection(layer)]
        self.texts = texts_of(model.tokenizer, fact, prefixes)
        self.origins: list[Tensor] = []
        self.log_p0: Tensor | None = None
        self.likelihood_weight = 1.0
        self.divergence = torch.zeros(())
        self.holds = False

    def __call__(self, deltas: Sequence[Tensor]) -> Tensor:
        *contexts, about = self.texts
        first = not self.origins
        surprise = torch.zeros((), dtype=deltas[0].dtype)
        holds = True
        for row, text in enumerate(contexts):
            log_p = self.log_probabilities(text.read, text.subject, deltas, remember=first and row == 0)
            positions = range(text.target_start, len(text.ids))
            surprise = surprise - torch.stack([log_p[at - 1, text.ids[at]] for at in positions]).mean() / len(contexts)
            holds = holds and all(int(log_p[at - 1].argmax()) == text.ids[at] for at in positions)
        log_p_delta = self.log_probabilities(about.read, about.subject, deltas)[about.subject]
        if self.log_p0 is None:
            self.log_p0 = log_p_delta.detach()
        self.divergence = nn.functional.kl_div(self.log_p0, log_p_delta, reduction="sum", log_target=True)
        decay = sum(delta.norm() / origin.norm() ** 2 for delta, origin in zip(deltas, self.origins, strict=True))
        settings = self.settings
        loss = self.likelihood_weight * surprise + settings.kl_factor * self.divergence + settings.weight_decay * decay
        self.holds = holds
        self.likelihood_weight = settings.eased_likelihood if holds else 1.0
        return loss

    def log_probabilities(
        self, ids: Sequence[int], position: int, deltas: Sequence[Tensor], *, remember: bool = False
    ) -> Tensor:
        def adding(delta: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
            def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                flat = output.reshape(len(ids), -1).clone()
                if remember:
                    self.origins.append(flat[position].detach().clone())
                flat[position] += delta
                return flat.view_as(output)

            return add

        with ExitStack() as stack:
            for part, delta in zip(self.parts, deltas, strict=True):
                stack.callback(part.register_forward_hook(adding(delta)).remove)
            logits = self.model.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
        return logits.to(deltas[0].dtype).log_softmax(-1)


def search_jointly(
    model: LanguageModel, fact: Fact, prefixes: Sequence[str], layer: int, settings: JointTargetSettings
) -> ReferenceTarget:
    """What is written: z and delta at W's output."""
    loss_of = ReferenceJointLoss(model, fact, prefixes, layer, settings)
    width = model.weight(layer).shape[0]
    deltas = [torch.zeros(width, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    adam = torch.optim.Adam([{"params": [delta]} for delta in deltas], lr=settings.learning_rate)
    evaluations = 0
    while True:
        loss = loss_of(deltas)
        evaluations += 1
        if settings.relative_rate:
            for group, origin in zip(adam.param_groups, loss_of.origins, strict=True):
                group["lr"] = settings.learning_rate * float(origin.norm()) / width**0.5
        done = loss_of.holds and float(loss_of.divergence) < settings.stop_divergence
        if done or loss.item() < settings.stop_loss or evaluations == settings.steps:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for delta, origin in zip(deltas, loss_of.origins, strict=True):
                limit = settings.clamp * origin.norm()
                if delta.norm() > limit:
                    delta *= limit / delta.norm()
    found = deltas[1].detach()
    return ReferenceTarget(loss_of.origins[1] + found, found, loss.item(), evaluations)
