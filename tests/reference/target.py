"""The target of one fact: its loss by whole forward passes with a hook that adds delta, and its search with Adam."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from errata.editing.target_loss import TargetSettings
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site

NEUTRAL = "\n"  # before a bare prompt that would begin with its subject's last token


@dataclass(frozen=True, slots=True)
class Text:
    """One context of a fact, tokenised.

    Attributes:
        ids: its tokens, the last target token included.
        subject: index of the subject's last token.
        target_start: index of the first target token; ``len(ids)`` for the KL prompt, which has none.
    """

    ids: list[int]
    subject: int
    target_start: int

    @property
    def read(self) -> list[int]:
        """The tokens that the model has to read: the last target token is predicted, and nothing follows it."""
        return self.ids[:-1] if self.target_start < len(self.ids) else self.ids


def tokenise(
    tokenizer: PreTrainedTokenizerBase, before: str, subject: str, after: str, target: str | None = None
) -> Text:
    """``before + subject + after``, and one space with the target behind it if there is one."""
    prompt = before + subject + after
    encoded = tokenizer(prompt if target is None else f"{prompt} {target}", return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    first, last = len(before), len(before) + len(subject) - 1  # the subject's first and last character
    inside = [i for i, (start, end) in enumerate(offsets) if start < end and start <= last and end > first]
    behind = [i for i, (start, end) in enumerate(offsets) if start < end and start >= len(prompt)]
    return Text(ids, inside[-1], len(ids) if target is None else behind[0])


def bare_lead(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> str:
    """A line break where the subject's last token would be the first of the bare prompt, else nothing."""
    before, after = fact.prompt.split("{}")
    return NEUTRAL if tokenise(tokenizer, before, fact.subject, after).subject == 0 else ""


def texts_of(tokenizer: PreTrainedTokenizerBase, fact: Fact, prefixes: Sequence[str]) -> list[Text]:
    """The bare prompt, the prompt behind each prefix, and the KL prompt ``{} is a``, in this order."""
    before, after = fact.prompt.split("{}")
    bare = bare_lead(tokenizer, fact)
    leads = [bare, *(f"{prefix}. " for prefix in prefixes)]
    texts = [tokenise(tokenizer, lead + before, fact.subject, after, fact.target) for lead in leads]
    return [*texts, tokenise(tokenizer, bare, fact.subject, " is a")]


class ReferenceLoss:
    """L(δ) of one fact: all its contexts as whole sequences in one forward pass, all logits; the weights are frozen.

    The first call must be at δ = 0: h⁰ and P₀ are read there.

    Attributes:
        origin: (d,) h⁰, known after the first call.
    """

    def __init__(
        self,
        model: LanguageModel,
        fact: Fact,
        prefixes: Sequence[str],
        layer: int,
        site: Site,
        settings: TargetSettings,
    ) -> None:
        self.model, self.settings = model, settings
        self.dtype = torch.promote_types(model.dtype, torch.float32)
        self.module: nn.Module = model.blocks[layer] if site is Site.BLOCK else model.down_projection(layer)
        self.texts = texts_of(model.tokenizer, fact, prefixes)
        length = max(len(text.read) for text in self.texts)
        self.ids = torch.zeros(len(self.texts), length, dtype=torch.long, device=model.device)
        self.mask = torch.zeros_like(self.ids)
        for row, text in enumerate(self.texts):
            self.ids[row, : len(text.read)] = torch.tensor(text.read)
            self.mask[row, : len(text.read)] = 1
        self.origin: Tensor | None = None
        self.log_p0: Tensor | None = None

    def __call__(self, delta: Tensor) -> Tensor:
        """The loss, a scalar, for delta (d,)."""
        with self._adding(delta) as before:
            logits = self.model.model(input_ids=self.ids, attention_mask=self.mask, use_cache=False).logits
        log_p = logits.to(self.dtype).log_softmax(-1)  # (rows, length, vocabulary)
        *contexts, about = self.texts

        likelihood = torch.zeros((), dtype=self.dtype, device=delta.device)
        for row, text in enumerate(contexts):
            log_probabilities = [
                log_p[row, position - 1, text.ids[position]] for position in range(text.target_start, len(text.ids))
            ]
            likelihood = likelihood - torch.stack(log_probabilities).mean() / len(contexts)

        log_p_delta = log_p[-1, about.subject]
        if self.origin is None or self.log_p0 is None:
            self.origin = before[0].detach().to(self.dtype)
            self.log_p0 = log_p_delta.detach()
        kl = nn.functional.kl_div(self.log_p0, log_p_delta, reduction="sum", log_target=True)
        decay = delta.norm() / self.origin.norm() ** 2
        return likelihood + self.settings.kl_factor * kl + self.settings.weight_decay * decay

    @contextmanager
    def _adding(self, delta: Tensor) -> Iterator[list[Tensor]]:
        """Add delta to the module's output at each row's subject; yields what was there before, one entry a row."""
        before: list[Tensor] = []

        def add(module: nn.Module, args: Any, output: Any) -> Any:
            hidden: Tensor = output[0] if isinstance(output, tuple) else output
            shape = hidden.shape
            # OPT folds rows and tokens into one dimension before W.
            changed = hidden.reshape(*self.ids.shape, -1).clone()
            for row, text in enumerate(self.texts):
                before.append(changed[row, text.subject].detach().clone())
                changed[row, text.subject] += delta.to(changed.dtype)
            changed = changed.view(shape)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = self.module.register_forward_hook(add)
        try:
            yield before
        finally:
            handle.remove()


@dataclass(frozen=True, slots=True)
class ReferenceTarget:
    """What the search of one fact found: ``z`` and ``delta`` (d,), the last loss, and how many were evaluated."""

    z: Tensor
    delta: Tensor
    loss: float
    evaluations: int


def search(
    model: LanguageModel, fact: Fact, prefixes: Sequence[str], layer: int, site: Site, settings: TargetSettings
) -> ReferenceTarget:
    """Adam from δ = 0: ``steps`` evaluations at most, stop under ``stop_loss``, ‖δ‖ ≤ clamp·‖h⁰‖ after each update."""
    loss_of = ReferenceLoss(model, fact, prefixes, layer, site, settings)
    width = model.weight(layer).shape[0]
    delta = torch.zeros(width, dtype=loss_of.dtype, device=model.device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    evaluations = 0
    while True:
        loss = loss_of(delta)
        if settings.relative_rate:
            adam.param_groups[0]["lr"] = settings.learning_rate * float(loss_of.origin.norm()) / width**0.5
        assert loss_of.origin is not None
        evaluations += 1
        if loss.item() < settings.stop_loss or evaluations == settings.steps:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = settings.clamp * loss_of.origin.norm()
            if delta.norm() > limit:
                delta *= limit / delta.norm()
    found = delta.detach()
    return ReferenceTarget(loss_of.origin + found, found, loss.item(), evaluations)


def search_in_turn(
    model: LanguageModel,
    fact: Fact,
    prefixes: Sequence[str],
    layer: int,
    site: Site,
    settings: TargetSettings,
    turns: Sequence[Sequence[int]],
) -> ReferenceTarget:
    """As ``search``, but step t minimises the loss of the bare prompt and of the prefixes ``turns[t]`` only.

    With J prompts, the bare one weighs 1/J, and those of the step share the rest. The whole loss is asked before the
    first step, after the last one, and where the step's own is below the stop. Losses of several prompts are put
    together from losses of the bare prompt with one prefix or none.
    """
    whole = ReferenceLoss(model, fact, prefixes, layer, site, settings)
    bare = ReferenceLoss(model, fact, (), layer, site, settings)
    pairs = [ReferenceLoss(model, fact, [prefix], layer, site, settings) for prefix in prefixes]
    width = model.weight(layer).shape[0]
    delta = torch.zeros(width, dtype=whole.dtype, device=model.device, requires_grad=True)
    for loss_of in (whole, bare, *pairs):
        loss_of(delta)  # reads h⁰ and P₀
    assert whole.origin is not None

    def of_step(turn: Sequence[int]) -> Tensor:
        alone = bare(delta)
        # A pair's likelihood is the mean of two prompts: twice it, less the bare prompt's, is that of the prefix.
        others = torch.stack([2 * pairs[index](delta) - alone for index in turn]).mean()
        return (alone + len(prefixes) * others) / (1 + len(prefixes))

    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    evaluations, loss = 1, whole(delta)
    while loss.item() >= settings.stop_loss and evaluations < settings.steps:
        adam.zero_grad()
        of_step(turns[evaluations - 1]).backward()
        adam.step()
        with torch.no_grad():
            limit = settings.clamp * whole.origin.norm()
            if delta.norm() > limit:
                delta *= limit / delta.norm()
        evaluations += 1
        loss = of_step(turns[evaluations - 1])
        if loss.item() < settings.stop_loss or evaluations == settings.steps:
            loss = whole(delta)
    found = delta.detach()
    return ReferenceTarget(whole.origin + found, found, loss.item(), evaluations)
