"""Replaying the blocks above an injection, from the subject's last token on.

A vector delta added at the subject's last token changes nothing before that token and nothing below the place of
injection. So both are run once: the tokens before it leave their keys and values in a cache, the tokens from it on
leave their hidden states at the injection. Each evaluation then runs only the later blocks over the few remaining
tokens. The model's own ``forward`` stays in charge (masks, rotary tables, caps, heads are its business): the lower
blocks' ``forward`` is replaced for the time of the call, the cache is a fresh copy each time, and the head sees only
the positions whose logits are wanted. See methods.md, section 5, for what each family needs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from errata.models.injection import injection_at
from errata.models.language_model import LanguageModel, Site
from errata.models.overriding import forward_replaced
from errata.models.prefixes import run_prefixes
from errata.models.prompts import pad

# What one more pass costs beside its tokens, in tokens: a few milliseconds of dispatch on any machine. In that time an
# accelerator computes far more tokens than a CPU, so there fewer and more padded passes are faster.
PASS_COST = 64
ACCELERATOR_PASS_COST = 2048


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """One text in which a vector is injected.

    Attributes:
        ids: all tokens that the model is to read.
        injection: index of the token at which the vector is added (the subject's last).
        wanted: indices of the tokens whose next-token logits are wanted, none before ``injection``.
        stem: how many of the first tokens other rows have too, and are run once for all of them (saves time only).
    """

    ids: tuple[int, ...]
    injection: int
    wanted: tuple[int, ...]
    stem: int = 0


class Replay:
    """Everything about a list of rows that does not depend on the injected vector, computed at construction.

    Args:
        model: the model, on its current weights; a ``Replay`` is stale once they change.
        rows: the texts.
        layer: the block at which is injected.
        sites: where vectors enter; see ``injection_at``.

    Attributes:
        origin: (rows, width) what is at the sites at the injected token of every row, delta being 0; side by side if
            there are two.
        wanted_row: (wanted,) the row that each of the wanted logits belongs to.
    """

    def __init__(self, model: LanguageModel, rows: Sequence[ReplayRow], layer: int, sites: Sequence[Site]) -> None:
        for row in rows:
            if not 0 <= row.injection < len(row.ids) or any(w < row.injection for w in row.wanted):
                raise ValueError("wanted logits must not lie before the injection, which must lie in the row")
        self.model, self.layer = model, layer
        device = model.device
        prefixes = [row.ids[: row.injection] for row in rows]
        self._prefix_lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        suffix = pad([row.ids[row.injection :] for row in rows], left=False, device=device)
        self._suffix_ids, self._suffix_mask = suffix.input_ids, suffix.attention_mask
        self._position_ids = suffix.position_ids + self._prefix_lengths[:, None]
        self._cache: DynamicCache | None = None
        self._prefix_mask = torch.zeros(len(rows), 0, dtype=torch.long, device=device)
        # A subject at token 0 of a model without BOS has nothing before it.
        if any(prefixes):
            stems = [min(row.stem, row.injection) for row in rows]
            self._cache, self._prefix_mask = run_prefixes(model, prefixes, stems)
        self._injection = injection_at(model, layer, sites, self._read)
        self.origin = self._injection.origin
        self.wanted_row = torch.tensor([r for r, row in enumerate(rows) for _ in row.wanted], device=device)
        self._wanted_column = torch.tensor([w - row.injection for row in rows for w in row.wanted], device=device)

    def __len__(self) -> int:
        return len(self._suffix_ids)

    def select(self, rows: Tensor) -> Replay:
        """The same for some rows only: what is done with the others no longer costs anything.

        Args:
            rows: (n,) ascending indices of rows.
        """
        chosen = copy.copy(self)
        length = int(self._suffix_mask[rows].sum(1).max())
        chosen._suffix_ids, chosen._suffix_mask = self._suffix_ids[rows, :length], self._suffix_mask[rows, :length]
        chosen._position_ids, chosen._prefix_mask = self._position_ids[rows, :length], self._prefix_mask[rows]
        chosen._injection = self._injection.select(rows, length)
        chosen.origin = chosen._injection.origin
        if self._cache is not None:
            chosen._cache = self._fresh_cache()
            # Of the skipped blocks only the length of the cache is ever read.
            for layer in chosen._cache.layers[self.layer :]:
                assert isinstance(layer, DynamicLayer)
                assert layer.keys is not None
                assert layer.values is not None
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        place = torch.full((len(self),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        kept = place[self.wanted_row] >= 0
        chosen.wanted_row, chosen._wanted_column = place[self.wanted_row[kept]], self._wanted_column[kept]
        return chosen

    def logits(self, delta: Tensor) -> Tensor:
        """The wanted logits with ``delta`` injected, differentiable in ``delta``.

        Args:
            delta: (rows, width) what is added at the injected token of each row.

        Returns:
            (wanted, vocabulary), in the order of ``wanted_row``.
        """
        with ExitStack() as stack:
            self._injection.enter(stack, delta)
            inside_last = self._injection.inside and self.layer == len(self.model.blocks) - 1
            if self.model.mlp_is_module and not inside_last:
                stack.enter_context(self._last_mlp_on_wanted_positions())
            # The head runs on the wanted positions only; caps and projections around it are the model's own.
            handle = self.model.head.register_forward_pre_hook(
                lambda module, args: (args[0][self.wanted_row, self._wanted_column].unsqueeze(0),)
            )
            stack.callback(handle.remove)
            output = self.model.model(**self._inputs())
        return output.logits[0]

    def states(self, delta: Tensor, site: Site, layers: Sequence[int]) -> dict[int, Tensor]:
        """What stands at a site of later layers at the injected token, with ``delta`` injected; without gradients.

        Args:
            delta: as for ``logits``.
            layers: above the injection.

        Returns:
            layer -> (rows, d).
        """
        with ExitStack() as stack, torch.no_grad():
            self._injection.enter(stack, delta)
            read = stack.enter_context(self.model.reading({site: layers}))
            self.model.run_until_read(self._inputs())
        return {layer: read[site, layer][:, 0] for layer in layers}

    def _last_mlp_on_wanted_positions(self) -> AbstractContextManager[None]:
        """Nothing above the last block reads other positions, and an MLP works on each position by itself."""
        mlp = self.model.mlp(len(self.model.blocks) - 1)
        forward = mlp.forward
        row, column = self.wanted_row, self._wanted_column

        def on_wanted(hidden: Tensor) -> Tensor:
            result = torch.zeros_like(hidden)
            result[row, column] = forward(hidden[row, column].unsqueeze(0))[0]
            return result

        return forward_replaced(mlp, on_wanted)

    def _read(self, wanted: Mapping[Site, list[int]]) -> Mapping[tuple[Site, int], Tensor]:
        with self.model.reading(wanted) as read, torch.no_grad():
            self.model.run_until_read(self._inputs())
        return read

    def _inputs(self) -> dict[str, Any]:
        return {
            "input_ids": self._suffix_ids,
            "position_ids": self._position_ids,
            # Padding behind a row is hidden by causality; see PaddedBatch.inputs.
            "attention_mask": torch.cat([self._prefix_mask, torch.ones_like(self._suffix_mask)], dim=1),
            "past_key_values": None if self._cache is None else self._fresh_cache(),
            "use_cache": self._cache is not None,
        }

    def _fresh_cache(self) -> DynamicCache:
        """A copy to append to. ``copy.copy(cache)`` would share the layer objects, which are what is appended to."""
        assert self._cache is not None
        fresh = copy.copy(self._cache)
        fresh.layers = [copy.copy(layer) for layer in self._cache.layers]
        return fresh


class BucketedReplay:
    """Several replays of rows of like length as one: what is padded is small, and so is the number of passes.

    Args:
        rows: the texts, ascending in the number of tokens from the injection on.

    Attributes:
        origin: (rows, d) as in ``Replay``.
        wanted_row: (wanted,) as in ``Replay``.
    """

    def __init__(self, model: LanguageModel, rows: Sequence[ReplayRow], layer: int, sites: Sequence[Site]) -> None:
        lengths = [len(row.ids) - row.injection for row in rows]
        if lengths != sorted(lengths):
            raise ValueError("rows must ascend in the number of tokens from the injection on")
        cost = PASS_COST if model.device.type == "cpu" else ACCELERATOR_PASS_COST
        cuts = [0, *length_cuts(lengths, cost), len(rows)]
        self._adopt([Replay(model, rows[start:stop], layer, sites) for start, stop in pairwise(cuts)])

    def select(self, rows: Tensor) -> BucketedReplay:
        """As ``Replay.select``; parts of which nothing is left are dropped."""
        chosen = copy.copy(self)
        parts: list[Replay] = []
        start = 0
        for part in self._parts:
            inside = rows[(rows >= start) & (rows < start + len(part))] - start
            if len(inside) == len(part):
                parts.append(part)
            elif len(inside):
                parts.append(part.select(inside))
            start += len(part)
        chosen._adopt(parts)
        return chosen

    def logits(self, delta: Tensor) -> Tensor:
        """As ``Replay.logits``."""
        shares = delta.split([len(part) for part in self._parts])
        return torch.cat([part.logits(share) for part, share in zip(self._parts, shares, strict=True)])

    def _adopt(self, parts: list[Replay]) -> None:
        self._parts = parts
        starts = accumulate((len(part) for part in parts[:-1]), initial=0)
        self.origin = torch.cat([part.origin for part in parts])
        self.wanted_row = torch.cat([part.wanted_row + start for part, start in zip(parts, starts, strict=True)])


def length_cuts(lengths: Sequence[int], pass_cost: int = PASS_COST) -> list[int]:
    """Where to cut ascending lengths, so that padded tokens and passes together cost least (dynamic programme)."""
    # Only where the length changes is there anything to gain by a cut.
    edges = [index for index in range(len(lengths)) if index == 0 or lengths[index] != lengths[index - 1]]
    edges.append(len(lengths))
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for stop in range(1, len(edges)):
        longest = lengths[edges[stop] - 1]
        options = []
        for start in range(stop):
            cost, cuts = best[start]
            padded = (edges[stop] - edges[start]) * longest
            options.append((cost + padded + pass_cost, [*cuts, edges[start]] if start else cuts))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]
