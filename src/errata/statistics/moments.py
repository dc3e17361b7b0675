"""SecondMoment: E[k kᵀ] of keys over text; streaming, float64, mergeable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import encode, length_batches, pad
from errata.statistics.settings import StatisticsSettings, corpus_too_short, corpus_without_text
from errata.utils.tensors import float64_device, to_float64


@dataclass(slots=True)
class SecondMoment:
    """An uncentred second moment; of a mixture of experts the moment of each expert's gated keys."""

    total: Float[Tensor, "d d"] | Float[Tensor, "experts f f"]  # float64, Σ k kᵀ
    count: int = 0  # the number of keys that were added

    @classmethod
    def zeros(cls, width: int) -> SecondMoment:
        return cls(torch.zeros(width, width, dtype=torch.float64))

    def add(self, keys: Float[Tensor, "n d"]) -> None:
        """Add keys, one per row, those of experts side by side; the product is computed in float64."""
        if self.total.dim() == 3:
            self._add_to_experts(keys)
            return
        wide = to_float64(keys).to(self.total.device)
        self.total.addmm_(wide.T, wide)
        self.count += len(keys)

    def _add_to_experts(self, keys: Float[Tensor, "n d"]) -> None:
        """Every token counts for every expert: λC then weighs the same for rarely chosen ones. Keys of other experts
        than the chosen are zero.
        """
        for total, own in zip(self.total, keys.view(len(keys), *self.total.shape[:2]).unbind(1), strict=True):
            wide = to_float64(own[own.any(1)]).to(total.device)
            total.addmm_(wide.T, wide)
        self.count += len(keys)

    @property
    def mean(self) -> Float[Tensor, "*experts d d"]:
        """C.

        Raises:
            ZeroDivisionError: if no key was added.
        """
        if self.count == 0:
            raise ZeroDivisionError("the mean of no keys")
        return self.total / self.count


def moment_shape(model: LanguageModel, layer: int) -> tuple[int, ...]:
    """The shape of C: (d_in, d_in), or (experts, f, f)."""
    width = model.weight(*model.places(layer)[0]).shape[1]
    count = model.expert_count(layer)
    return (count, width, width) if count else (width, width)


def key_moments(
    model: LanguageModel,
    layers: Sequence[int],
    texts: Iterable[str],
    settings: StatisticsSettings,
    *,
    may_be_shorter: bool = False,
    token_budget: int = 4096,
    on_read: Callable[[int], None] = lambda count: None,
) -> dict[int, SecondMoment]:
    """The second moments of the keys of several layers, in one pass that stops above the last of them.

    Args:
        texts: the documents of the settings' corpus.
        settings: the amount of text; the last document is cut if tokens are counted.
        may_be_shorter: whether a shorter text is read to its end instead of being refused.
        on_read: called with the number of tokens that each batch added, or of documents if those are counted.

    Raises:
        InputError: if the texts have fewer tokens or documents than the settings, or none at all.
    """
    tokens, special_tokens = settings.tokens, settings.special_tokens
    special = set(model.tokenizer.all_special_ids)
    device = float64_device(model.device)
    moments = {
        layer: SecondMoment(torch.zeros(moment_shape(model, layer), dtype=torch.float64, device=device))
        for layer in layers
    }
    missing = settings.amount
    rows: list[tuple[int, ...]] = []

    def flush() -> None:
        for indices in length_batches([len(row) for row in rows], token_budget=token_budget):
            batch = pad([rows[index] for index in indices], left=False, device=model.device)
            counted = batch.attention_mask.bool()
            if not special_tokens:
                counted &= ~torch.isin(batch.input_ids, torch.tensor(sorted(special), device=model.device))
            with model.capture({Site.KEY: layers}) as read, torch.no_grad():
                model.run_captured(batch.inputs())
            for layer in layers:
                moments[layer].add(read[Site.KEY, layer][counted])
            on_read(int(counted.sum()) if tokens is not None else len(indices))
        rows.clear()

    iterator = iter(texts)
    pending = 0
    while missing > 0:
        chunk = [text for _, text in zip(range(256), iterator, strict=False)]
        if not chunk:
            if not may_be_shorter:
                raise corpus_too_short(settings, settings.amount - missing)
            if missing == settings.amount:
                raise corpus_without_text(settings)
            flush()
            break
        for encoded in encode(model.tokenizer, chunk):
            row = encoded.ids[: settings.length]
            counting = [special_tokens or token not in special for token in row]
            while tokens is not None and sum(counting) > missing:
                row, counting = row[:-1], counting[:-1]
            if any(counting):
                rows.append(row)
                missing -= sum(counting) if tokens is not None else 1
                pending += len(row)
            if missing == 0:
                break
        if pending >= 16 * token_budget or missing == 0:
            flush()
            pending = 0
    return moments
