"""Which facts are searched together: those of similar length, as many as memory and caches hold.

Facts do not depend on each other, so groups change nothing but the last bits. On a CPU a search is fastest while one
block's activations stay in its cache, so a few hundred tokens are enough; an accelerator takes what its memory holds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from errata.models.language_model import LanguageModel
from errata.models.size import ModelSize, available_bytes

ROWS_AT_ONCE: Final = 1024  # facts × contexts that are replayed together on an accelerator
TOKENS_AT_ONCE: Final = 512  # replayed tokens on a CPU
SHARE_OF_MEMORY: Final = 0.5  # of what is available when a search begins
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FactLength:
    """The longest of a fact's rows.

    Attributes:
        rows: that one evaluation replays.
        held: all of its rows, of which keys and values are held.
        before: tokens before the injection.
        replayed: tokens from there on.
        wanted: logits that are read, of all rows together.
    """

    rows: int
    held: int
    before: int
    replayed: int
    wanted: int


@dataclass(frozen=True, slots=True)
class SearchMemory:
    """Peak memory of a search, in bytes.

    Attributes:
        cache: keys and values of the tokens before the injections, in all blocks.
        activations: those of the replayed blocks that the gradient needs.
        logits: those that are read, their log-probabilities, and the gradients of both.
    """

    cache: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.cache + self.activations + self.logits

    def __add__(self, other: SearchMemory) -> SearchMemory:
        return SearchMemory(self.cache + other.cache, self.activations + other.activations, self.logits + other.logits)


def memory_of_rows(
    size: ModelSize, layer: int, width: int, *, rows: int, slots: int, replayed: int, wanted: int
) -> SearchMemory:
    """What padded rows need while their gradient is taken.

    A block keeps, for each token: the inputs of two norms in float32, queries and attention's output, three vectors
    of a gated MLP (in the last block only where logits are wanted), and keys and values of all tokens seen, repeated
    for each head. (GPT-2's kind of MLP keeps up to nine vectors.)

    Args:
        width: bytes of a number in the model's dtype.
        slots: tokens of each row before the injection, ``replayed`` those from there on, padding included.
        wanted: logits that are read, of all rows together.
    """
    above, tokens = size.blocks - 1 - layer, rows * replayed
    cache = rows * slots * size.blocks * 2 * size.key_width * width
    of_attention = 2 * size.query_width * width * (tokens + rows * (slots + replayed))
    of_mlp = 3 * (size.mlp_width // size.experts * size.active_experts) * width
    activations = above * (8 * size.width * tokens + of_attention + of_mlp * tokens)
    if above and size.mlp_products:
        activations -= of_mlp * (tokens - wanted)
    return SearchMemory(cache, activations, wanted * size.vocabulary * (2 * width + 3 * 4))


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The most that is searched together; a single fact is always searched.

    Attributes:
        rows: facts × contexts.
        tokens: replayed tokens, each row as long as its fact's longest; None for any number.
        memory: bytes; None for any number.
    """

    rows: int
    tokens: int | None = None
    memory: int | None = None

    @classmethod
    def of(cls, model: LanguageModel, row_budget: int | None) -> GroupLimits:
        """The limits for a model on its device, now.

        Args:
            row_budget: the most rows, if the caller has a limit.
        """
        device = model.device
        free = available_bytes(device)
        if device.type == "cuda":  # torch keeps memory that it has freed
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        tokens = TOKENS_AT_ONCE if device.type == "cpu" else None
        return cls(row_budget or ROWS_AT_ONCE, tokens, int(SHARE_OF_MEMORY * free))


def groups_of(
    lengths: Sequence[FactLength], limits: GroupLimits, size: ModelSize | None = None, layer: int = 0, width: int = 4
) -> list[list[int]]:
    """Group facts of similar length within limits.

    Args:
        size, layer, width: as in ``memory_of_rows``; without ``size`` memory is not limited.

    Returns:
        for each group the indices of its facts; all in their order if one group holds all facts.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index].replayed, lengths[index].before))
    groups: list[list[int]] = []
    for index in order:
        together = [*groups[-1], index] if groups else []
        if together and _fit([lengths[each] for each in together], limits, size, layer, width):
            groups[-1] = together
        else:
            groups.append([index])
    return [sorted(groups[0])] if len(groups) == 1 else groups


def halved(groups: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Each group in two parts, those of one fact unchanged."""
    for group in groups:
        middle = (len(group) + 1) // 2
        yield list(group[:middle])
        if group[middle:]:
            yield list(group[middle:])


def _fit(lengths: Sequence[FactLength], limits: GroupLimits, size: ModelSize | None, layer: int, width: int) -> bool:
    rows = sum(length.rows for length in lengths)
    replayed, before = max(length.replayed for length in lengths), max(length.before for length in lengths)
    tokens = sum(length.rows * length.replayed for length in lengths)
    if rows > limits.rows or (limits.tokens is not None and tokens > limits.tokens):
        return False
    if size is None or limits.memory is None:
        return True
    wanted = sum(length.wanted for length in lengths)
    memory = memory_of_rows(size, layer, width, rows=rows, slots=before, replayed=replayed, wanted=wanted)
    others = sum(length.held - length.rows for length in lengths)
    held = memory_of_rows(size, layer, width, rows=others, slots=before, replayed=0, wanted=0).cache
    return memory.total + held <= limits.memory
