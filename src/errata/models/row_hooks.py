"""Hooks that treat each row of a batch in its own way: what they know of the rows of a forward pass.

Teacher forcing and generation sort rows into batches, pad them on either side, cache what they have read and drop rows
that are finished. Hooks need the rows in the order in which they are, and where each row's tokens are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from errata.models.prompts import Encoded, PaddedBatch


@dataclass(frozen=True, slots=True)
class RowPass:
    """One forward pass.

    Attributes:
        rows: for each row of the pass, its index among all rows of the call.
        positions: (rows, length) the index of each token in its row's text, from 0; -1 at padding. After the first pass
            of a cached generation there is one token a row.
    """

    rows: tuple[int, ...]
    positions: Int[Tensor, "rows length"]


RowHooks: TypeAlias = Callable[[RowPass], AbstractContextManager[None]]
"""Installs hooks for one forward pass, which runs inside the context."""

PromptHooks: TypeAlias = Callable[[Sequence[str], Sequence[Encoded]], RowHooks]
"""From the prompts of all rows of a call, each as text and as tokens, to the hooks of its passes."""


def positions_of(batch: PaddedBatch) -> Int[Tensor, "rows length"]:
    """The positions of a padded batch's tokens; see ``RowPass``."""
    return batch.position_ids.masked_fill(batch.attention_mask == 0, -1)


def around(
    hooks: RowHooks | None, rows: Sequence[int], positions: Tensor, lengths: Sequence[int] | None = None
) -> AbstractContextManager[None]:
    """The context of one forward pass; an empty one without hooks.

    Args:
        rows, positions: see ``RowPass``.
        lengths: the number of tokens of each row, if rows are padded on the right and positions do not tell padding.
    """
    if hooks is None:
        return nullcontext()
    if lengths is not None:
        stops = torch.tensor(lengths, device=positions.device)[:, None]
        columns = torch.arange(positions.shape[1], device=positions.device)
        positions = positions.masked_fill(columns >= stops, -1)
    return hooks(RowPass(tuple(rows), positions))
