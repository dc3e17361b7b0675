"""SecondMoment: E[k kᵀ] of keys over text; streaming, float64, mergeable, and resumable between chunks of documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from errata.models.copies import checked, receive, send
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import encode, length_batches, pad
from errata.statistics.settings import StatisticsSettings, corpus_too_short, corpus_without_text
from errata.utils.tensors import float64_device, to_float64

# A chunk ends with the document that brings it to this many tokens. Sums can be saved between chunks, so that a killed
# process loses at most one. Changing it changes the last bits of statistics.
CHUNK_TOKENS = 32_768
_DOCUMENTS_AT_ONCE = 64  # documents that are tokenised together
# Keys in one float32 product, and its columns: only blocks of columns on and above the diagonal are multiplied.
_KEYS_AT_ONCE = 4096
_COLUMNS_AT_ONCE = 1024


@dataclass(slots=True)
class SecondMoment:
    """An uncentred second moment; of a mixture of experts the moment of each expert's gated keys."""

    total: Float[Tensor, "d d"] | Float[Tensor, "experts f f"]  # float64, Σ k kᵀ, exactly symmetric
    count: int = 0  # the number of keys that were added

    @classmethod
    def zeros(cls, width: int, device: torch.device | None = None) -> SecondMoment:
        return cls(torch.zeros(width, width, dtype=torch.float64, device=device))

    @classmethod
    def of_layer(cls, model: LanguageModel, layer: int) -> SecondMoment:
        """Without keys, of the shape of a layer's moment, on the device of the sums."""
        shape, device = moment_shape(model, layer), float64_device(model.device)
        return cls(torch.zeros(shape, dtype=torch.float64, device=device))

    def add(self, keys: Float[Tensor, "n d"]) -> None:
        """Add keys, one per row, those of experts side by side.

        Products of at most 4,096 keys are computed in float32 (in float64 for keys in float64) and summed in float64.
        Compared with products in float64 this changes C by about 1e-7 of its norm (``benchmarks/statistics_tokens.py
        --precision``), and takes a third of the time.
        """
        wide = keys if keys.dtype == torch.float64 else keys.float()
        if self.total.dim() == 2:
            _add_products(self.total, wide)
        else:
            # Every token counts for every expert: λC then weighs the same for rarely chosen ones. Keys of other experts
            # than the chosen are zero.
            parts = wide.view(len(wide), *self.total.shape[:2]).unbind(1)
            for total, own in zip(self.total, parts, strict=True):
                _add_products(total, own[own.any(1)])
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


def _add_products(total: Tensor, keys: Tensor) -> None:
    """Add Σ k kᵀ of rows to a symmetric float64 matrix, block by block of columns."""
    width = keys.shape[1]
    for rows in keys.split(_KEYS_AT_ONCE):
        for start in range(0, width, _COLUMNS_AT_ONCE):
            stop = min(start + _COLUMNS_AT_ONCE, width)
            product = to_float64(rows[:, start:stop].T @ rows[:, start:]).to(total.device)
            # A block on the diagonal need not be symmetric to the last bit.
            square = product[:, : stop - start]
            square.copy_(square.triu() + square.triu(1).T)
            total[start:stop, start:] += product
            total[stop:, start:stop] = total[start:stop, stop:].T


def products_flops(width: int, keys: int) -> float:
    """Operations of adding so many keys of a width: blocks below the diagonal are not computed."""
    starts = range(0, width, _COLUMNS_AT_ONCE)
    return sum(2.0 * keys * min(_COLUMNS_AT_ONCE, width - start) * (width - start) for start in starts)


def moment_shape(model: LanguageModel, layer: int) -> tuple[int, ...]:
    """The shape of C: (d_in, d_in), or (experts, f, f)."""
    width = model.weight(*model.places(layer)[0]).shape[1]
    count = model.expert_count(layer)
    return (count, width, width) if count else (width, width)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive documents as rows of tokens.

    Attributes:
        rows: token ids.
        counted: tokens of the rows whose keys count.
        documents: number of documents read up to the end of this chunk, from the beginning of the text.
        missing: tokens or documents, whichever are counted, that are missing after it.
    """

    rows: tuple[tuple[int, ...], ...]
    counted: int
    documents: int
    missing: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Sums over the first documents of a text, from which the rest can be continued.

    Attributes:
        documents: number of documents in the sums.
        missing: tokens or documents, whichever are counted, that are not in the sums yet.
        moments: layer -> sums.
    """

    documents: int
    missing: int
    moments: Mapping[int, SecondMoment]


def chunks_of(
    model: LanguageModel,
    texts: Iterable[str],
    settings: StatisticsSettings,
    *,
    may_be_shorter: bool = False,
    documents: int = 0,
    missing: int | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Iterator[Chunk]:
    """The chunks of a text, which do not depend on where it is continued.

    Args:
        texts: all documents, from the beginning.
        may_be_shorter: whether a shorter text is read to its end instead of being refused.
        documents: number of documents to skip: those of earlier chunks.
        missing: what is missing after them; None: the whole amount.
        chunk_tokens: a chunk ends with the document that brings it to this many tokens.

    Raises:
        InputError: if the texts have fewer tokens or documents than the settings, or none at all.
    """
    tokenizer, special = model.tokenizer, set(model.tokenizer.all_special_ids)
    left = settings.amount if missing is None else missing
    read = documents
    rows: list[tuple[int, ...]] = []
    length = counted = 0
    remaining = islice(iter(texts), documents, None)
    while left > 0:
        some = list(islice(remaining, _DOCUMENTS_AT_ONCE))
        if not some:
            if not may_be_shorter:
                raise corpus_too_short(settings, settings.amount - left)
            if left == settings.amount:
                raise corpus_without_text(settings)
            if rows:
                yield Chunk(tuple(rows), counted, read, left)
            return
        for encoded in encode(tokenizer, some):
            read += 1
            row = encoded.ids[: settings.length]
            counting = [settings.special_tokens or token not in special for token in row]
            while settings.tokens is not None and sum(counting) > left:
                row, counting = row[:-1], counting[:-1]
            if any(counting):
                rows.append(row)
                length += len(row)
                counted += sum(counting)
                left -= sum(counting) if settings.tokens is not None else 1
            if left == 0:
                break
            if length >= chunk_tokens:
                yield Chunk(tuple(rows), counted, read, left)
                rows, length, counted = [], 0, 0
    if rows:
        yield Chunk(tuple(rows), counted, read, left)


def add_chunk(
    model: LanguageModel,
    moments: Mapping[int, SecondMoment],
    chunk: Chunk,
    settings: StatisticsSettings,
    *,
    token_budget: int = 4096,
    on_read: Callable[[int], None] = lambda count: None,
) -> None:
    """Add the keys of a chunk to the sums of several layers, in forward passes that stop at the last of them.

    Args:
        moments: layer -> sums, which are changed.
        on_read: called with the number of tokens that each batch added, or of documents if those are counted.
    """
    batches = [
        [chunk.rows[index] for index in indices]
        for indices in length_batches([len(row) for row in chunk.rows], token_budget=token_budget)
    ]
    count = 1 if model.copies is None else model.copies.count
    by_tokens, special_tokens = settings.tokens is not None, settings.special_tokens
    for rank in range(1, count):
        for batch in batches[rank::count]:
            message = {"do": "rows", "layers": list(moments), "rows": batch, "special_tokens": special_tokens}
            send(rank, message)
            on_read(sum(map(len, batch)) if by_tokens else len(batch))
    for batch in batches[::count]:
        counted = add_rows(model, moments, batch, special_tokens=special_tokens)
        on_read(counted if by_tokens else len(batch))


def add_rows(
    model: LanguageModel,
    moments: Mapping[int, SecondMoment],
    rows: Sequence[Sequence[int]],
    *,
    special_tokens: bool,
) -> int:
    """Add the keys of rows of tokens, in one forward pass; returns the number of keys.

    Args:
        moments: layer -> sums, which are changed.
        special_tokens: whether keys of special tokens count.
    """
    layers = list(moments)
    batch = pad(rows, left=False, device=model.device)
    counted = batch.attention_mask.bool()
    if not special_tokens:
        special = torch.tensor(sorted(set(model.tokenizer.all_special_ids)), device=model.device)
        counted &= ~torch.isin(batch.input_ids, special)
    with model.capture({Site.KEY: layers}) as read, torch.no_grad():
        model.run_captured(batch.inputs())
    for layer in layers:
        moments[layer].add(read[Site.KEY, layer][counted])
    return int(counted.sum())


def key_moments(
    model: LanguageModel,
    layers: Sequence[int],
    texts: Iterable[str],
    settings: StatisticsSettings,
    *,
    may_be_shorter: bool = False,
    token_budget: int = 4096,
    chunk_tokens: int = CHUNK_TOKENS,
    start: Progress | None = None,
    on_chunk: Callable[[Progress], None] = lambda progress: None,
    on_read: Callable[[int], None] = lambda count: None,
) -> dict[int, SecondMoment]:
    """The second moments of the keys of several layers, in one pass that stops at the last of them.

    Args:
        texts: the documents of the settings' corpus, from the beginning.
        settings: the amount of text; the last document is cut if tokens are counted.
        may_be_shorter: whether a shorter text is read to its end instead of being refused.
        chunk_tokens: see ``chunks_of``; it changes only the order in which keys are summed.
        start: sums to continue from, which are changed; the result has the same bits as without an interruption.
        on_chunk: called after each chunk with the sums so far, which must not be changed; never where other processes
            have a part of the sums.
        on_read: called with the number of tokens that each batch added, or of documents if those are counted.

    Raises:
        InputError: if the texts have fewer tokens or documents than the settings, or none at all.
    """
    begun = start or Progress(0, settings.amount, {layer: SecondMoment.of_layer(model, layer) for layer in layers})
    moments = {layer: begun.moments[layer] for layer in layers}
    if settings.amount > begun.missing:
        on_read(settings.amount - begun.missing)
    chunks = chunks_of(
        model,
        texts,
        settings,
        may_be_shorter=may_be_shorter,
        documents=begun.documents,
        missing=begun.missing,
        chunk_tokens=chunk_tokens,
    )
    if model.copies is not None:
        model.copies.update(model)
    for chunk in chunks:
        add_chunk(model, moments, chunk, settings, token_budget=token_budget, on_read=on_read)
        if model.copies is None:
            on_chunk(Progress(chunk.documents, chunk.missing, moments))
    if model.copies is not None:  # added in the order of the processes, whichever is ready first
        for rank in model.copies.others:
            send(rank, {"do": "moments"})
        for rank in model.copies.others:
            reply, totals = receive(rank)
            for name, number in checked(reply)["counts"].items():
                moments[int(name)].total += totals[name].to(moments[int(name)].total.device)
                moments[int(name)].count += number
    return moments
