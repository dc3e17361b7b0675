"""Replaying the upper blocks of many rows under hooks, for editors that act on activations.

A hook that acts from some token and some block on changes nothing before that token and nothing below that block. Both
are run once, as in ``models.replay``: there a vector is added at one token, here any hooks act on all later tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import pad
from errata.models.replay import cache_rows, copy_of, length_cuts, pass_cost, prefix_cache, skip_below
from errata.models.row_hooks import RowHooks, around


@dataclass(frozen=True, slots=True)
class TailRow:
    """One text of which the upper blocks are replayed."""

    ids: tuple[int, ...]  # all tokens that the model reads
    start: int  # index of the first token at which hooks act
    wanted: tuple[int, ...]  # indices of the tokens whose next-token logits are wanted, none before ``start``


class Tail:
    """Rows from their first changing token and from one block on.

    Args:
        model: the model with its current weights; a ``Tail`` is invalid once they change.
        rows: the texts.
        layer: the lowest block in which hooks act.

    Attributes:
        wanted_row: (wanted,) the row of each of the wanted logits, ascending.
    """

    def __init__(self, model: LanguageModel, rows: Sequence[TailRow], layer: int) -> None:
        for row in rows:
            if not 0 <= row.start < len(row.ids) or any(w < row.start for w in row.wanted):
                raise ValueError("wanted logits must not lie before the start, which must lie in the row")
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids) - rows[index].start)
        lengths = [len(rows[index].ids) - rows[index].start for index in order]
        cuts = [0, *length_cuts(lengths, pass_cost(model)), len(rows)]
        self._parts = [_Part.of(model, rows, order[start:stop], layer) for start, stop in pairwise(cuts)]
        self._order_wanted()

    def logits(self, hooks: RowHooks | None) -> Float[Tensor, "wanted vocabulary"]:
        """The wanted logits under hooks, which see the rows by their index among all rows; gradients flow.

        Returns:
            in the order of ``wanted_row``, and of each row's wanted tokens.
        """
        return torch.cat([part.logits(hooks) for part in self._parts])[self._order]

    def select(self, rows: Sequence[int]) -> Tail:
        """The tail of some rows, which keep their indices; the others cost nothing any more."""
        chosen = copy.copy(self)
        chosen._parts = [part for whole in self._parts if (part := whole.select(set(rows))) is not None]
        chosen._order_wanted()
        return chosen

    def _order_wanted(self) -> None:
        rows = torch.tensor([row for part in self._parts for row in part.wanted_rows], device=self._parts[0].device)
        self._order = rows.argsort(stable=True)
        self.wanted_row: Int[Tensor, "wanted"] = rows[self._order]


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of similar length, padded on the right to one batch."""

    model: LanguageModel
    layer: int
    rows: tuple[int, ...]
    ids: Tensor  # (rows, length) from each row's start on
    position_ids: Tensor  # (rows, length), as the model takes them
    mask: Tensor  # (rows, length), 0 at padding
    prefix_mask: Tensor  # (rows, slots) of the tokens before the start
    cache: DynamicCache | None  # their keys and values
    hidden: Tensor | None  # (rows, length, d) the input of the first replayed block; None if that is the first of all
    wanted: tuple[tuple[int, ...], ...]  # for each row, the columns of its wanted tokens

    @classmethod
    def of(cls, model: LanguageModel, rows: Sequence[TailRow], indices: Sequence[int], layer: int) -> _Part:
        own = [rows[index] for index in indices]
        prefixes = [row.ids[: row.start] for row in own]
        batch = pad([row.ids[row.start :] for row in own], left=False, device=model.device)
        starts = torch.tensor([row.start for row in own], device=model.device)
        cache, prefix_mask = None, torch.zeros(len(own), 0, dtype=torch.long, device=model.device)
        if any(prefixes):
            cache, prefix_mask = prefix_cache(model, prefixes, [0] * len(own))
        part = cls(
            model,
            layer,
            tuple(indices),
            batch.input_ids,
            batch.position_ids + starts[:, None],
            batch.attention_mask,
            prefix_mask,
            cache,
            None,
            tuple(tuple(column - row.start for column in row.wanted) for row in own),
        )
        if layer == 0:
            return part
        with model.capture({Site.BLOCK: [layer - 1]}) as read, torch.no_grad():
            model.run_captured(part._inputs())
        return part._with(hidden=read[Site.BLOCK, layer - 1])

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def wanted_rows(self) -> list[int]:
        return [row for row, columns in zip(self.rows, self.wanted, strict=True) for _ in columns]

    def logits(self, hooks: RowHooks | None) -> Tensor:
        own = torch.tensor([row for row, columns in enumerate(self.wanted) for _ in columns], device=self.device)
        columns = torch.tensor([column for columns in self.wanted for column in columns], device=self.device)
        with ExitStack() as stack:
            skip_below(stack, self.model, self.layer, self.hidden)
            stack.enter_context(around(hooks, self.rows, self.position_ids.masked_fill(self.mask == 0, -1)))
            return self.model.logits_at(self._inputs(), own, columns)

    def select(self, rows: set[int]) -> _Part | None:
        places = [place for place, row in enumerate(self.rows) if row in rows]
        if len(places) == len(self.rows):
            return self
        if not places:
            return None
        index = torch.tensor(places, device=self.device)
        length = int(self.mask[index].sum(1).max())
        return self._with(
            rows=tuple(self.rows[place] for place in places),
            ids=self.ids[index, :length],
            position_ids=self.position_ids[index, :length],
            mask=self.mask[index, :length],
            prefix_mask=self.prefix_mask[index],
            cache=None if self.cache is None else cache_rows(self.cache, index),
            hidden=None if self.hidden is None else self.hidden[index, :length],
            wanted=tuple(self.wanted[place] for place in places),
        )

    def _with(self, **changes: Any) -> _Part:
        return replace(self, **changes)

    def _inputs(self) -> Mapping[str, Any]:
        return {
            "input_ids": self.ids,
            "position_ids": self.position_ids,
            # Padding after a row is hidden by causality; see PaddedBatch.inputs.
            "attention_mask": torch.cat([self.prefix_mask, torch.ones_like(self.mask)], dim=1),
            "past_key_values": None if self.cache is None else copy_of(self.cache),
            "use_cache": self.cache is not None,
        }
