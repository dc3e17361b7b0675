"""SecondMoment: E[k kᵀ] of keys over text; streaming, float64, mergeable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import InputError
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import encode, length_batches, pad


@dataclass(slots=True)
class SecondMoment:
    """An uncentred second moment.

    Attributes:
        total: (d, d) float64, Σ k kᵀ.
        count: how many keys were added.
    """

    total: Float[Tensor, "d d"]
    count: int = 0

    @classmethod
    def zeros(cls, width: int) -> SecondMoment:
        return cls(torch.zeros(width, width, dtype=torch.float64))

    def add(self, keys: Float[Tensor, "n d"]) -> None:
        """Add keys, one a row; the product is taken in float64."""
        wide = keys.to(self.total)
        self.total.addmm_(wide.T, wide)
        self.count += len(keys)

    def __iadd__(self, other: SecondMoment) -> SecondMoment:
        self.total += other.total.to(self.total)
        self.count += other.count
        return self

    @property
    def mean(self) -> Float[Tensor, "d d"]:
        """C.

        Raises:
            ZeroDivisionError: if nothing was added.
        """
        if self.count == 0:
            raise ZeroDivisionError("the mean of no keys")
        return self.total / self.count


def key_moments(
    model: LanguageModel,
    layers: Sequence[int],
    texts: Iterable[str],
    *,
    tokens: int | None = None,
    documents: int | None = None,
    length: int,
    special_tokens: bool = True,
    token_budget: int = 4096,
    on_read: Callable[[int], None] = lambda count: None,
) -> dict[int, SecondMoment]:
    """The second moments of the keys of several layers, in one pass that stops above the last of them.

    Args:
        texts: documents.
        tokens: reading stops once so many have been added (the last document is cut).
        documents: or once so many documents have been, in place of ``tokens``.
        length: documents are cut at this many tokens, special ones included.
        special_tokens: whether BOS and the like count.
        on_read: told how many tokens each batch added; where documents are counted, how many documents.

    Raises:
        InputError: if the texts hold fewer tokens or documents than asked for.
        ValueError: if not exactly one of ``tokens`` and ``documents`` is given.
    """
    if (tokens is None) == (documents is None):
        raise ValueError(f"one of tokens and documents, got {tokens} and {documents}")
    special = set(model.tokenizer.all_special_ids)
    width = model.weight(layers[0]).shape[1]
    moments = {
        layer: SecondMoment(torch.zeros(width, width, dtype=torch.float64, device=model.device)) for layer in layers
    }
    wanted, unit = (tokens, "tokens") if tokens is not None else (documents or 0, "documents")
    missing = wanted
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
            raise InputError(
                f"the corpus holds {wanted - missing} {unit}, but {wanted} were asked for",
                remedy=f"Give more text or lower statistics.{unit} in the recipe",
                code="CORPUS_TOO_SHORT",
            )
        for encoded in encode(model.tokenizer, chunk):
            row = encoded.ids[:length]
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
