"""Replaying the blocks above an injection, from the subject's last token on.

A vector δ added at the subject's last token changes nothing before that token and nothing below the injection. So both
are run once: the tokens before it leave their keys and values in a cache, the tokens from it on leave their hidden
states at the injection. Each evaluation then runs only the later blocks on the few remaining tokens. The model's own
``forward`` remains in charge of masks, rotary tables, soft caps and the head: the ``forward`` of the lower blocks is
replaced during the call, the cache is copied for each call, and the head runs only at the positions whose logits are
wanted. See methods.md, section 5, for the requirements of each family.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import pad
from errata.models.size import ModelSize

# The overhead of one more pass, in tokens: all weights are read from memory once more, which takes a CPU as long as 16
# tokens in float32, and operations are started, which takes as long as this many multiplications in each block. With
# faster products it is worth more tokens. An accelerator computes far more tokens in the same time, so there fewer and
# more padded passes are faster.
PASS_PRODUCTS = 15_000_000
READING_COST = 16
PASS_COST = 64
ACCELERATOR_PASS_COST = 2048

# Runs the model up to the wanted activations and returns them, (rows, length, d) each.
_Read: TypeAlias = Callable[[Mapping[Site, list[int]]], Mapping[tuple[Site, int], Tensor]]


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """One text in which a vector is injected."""

    ids: tuple[int, ...]  # all tokens that the model reads
    injection: int  # index of the token at which the vector is added (the subject's last)
    wanted: tuple[int, ...]  # indices of the tokens whose next-token logits are wanted, none before ``injection``
    # the number of first tokens shared with other rows, which are run once for all of them (saves time only)
    stem: int = 0


class Replay:
    """Rows with everything that does not depend on the injected vector, which is computed at construction.

    Args:
        model: the model with its current weights; a ``Replay`` is invalid once they change.
        rows: the texts.
        layer: the block of the injection.
        sites: the places of the injection; see ``injection_at``.

    Attributes:
        origin: (rows, width) the activations at the sites at each row's injected token for δ = 0; side by side if
            there are two sites.
        wanted_row: (wanted,) the row of each of the wanted logits.
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
            self._cache, self._prefix_mask = prefix_cache(model, prefixes, stems)
        self._injection = injection_at(model, layer, sites, self._read)
        self.origin = self._injection.origin
        self.wanted_row = torch.tensor([r for r, row in enumerate(rows) for _ in row.wanted], device=device)
        self._wanted_column = torch.tensor([w - row.injection for row in rows for w in row.wanted], device=device)

    def __len__(self) -> int:
        return len(self._suffix_ids)

    def select(self, rows: Tensor) -> Replay:
        """The replay of some of the rows; the others cost nothing any more.

        Args:
            rows: (n,) ascending indices of rows, which may repeat.
        """
        chosen = copy.copy(self)
        length = int(self._suffix_mask[rows].sum(1).max())
        chosen._suffix_ids, chosen._suffix_mask = self._suffix_ids[rows, :length], self._suffix_mask[rows, :length]
        chosen._position_ids, chosen._prefix_mask = self._position_ids[rows, :length], self._prefix_mask[rows]
        chosen._injection = self._injection.select(rows, length)
        chosen.origin = chosen._injection.origin
        if self._cache is not None:
            chosen._cache = self._fresh_cache()
            # Of the skipped blocks' caches only the length is ever read.
            _change_states(chosen._cache.layers[self.layer :], lambda state: state[rows])
        chosen.wanted_row, wanted = (rows[:, None] == self.wanted_row).nonzero(as_tuple=True)
        chosen._wanted_column = self._wanted_column[wanted]
        return chosen

    def at(self, layer: int, sites: Sequence[Site]) -> Replay:
        """The same rows with the injection in another block; the tokens before it are not read again.

        Args:
            layer, sites: as in ``Replay``; not of a selection, which has lost the blocks below its own.
        """
        chosen = copy.copy(self)
        chosen.layer, chosen._injection = layer, injection_at(self.model, layer, sites, self._read)
        chosen.origin = chosen._injection.origin
        return chosen

    def logits(self, delta: Tensor) -> Tensor:
        """The wanted logits with ``delta`` injected, differentiable in ``delta``.

        Args:
            delta: (rows, width), added at the injected token of each row.

        Returns:
            (wanted, vocabulary), in the order of ``wanted_row``.
        """
        with ExitStack() as stack:
            self._injection.enter(stack, delta)
            inside_last = self._injection.inside and self.layer == len(self.model.blocks) - 1
            if self.model.mlp_is_module and not inside_last:
                stack.enter_context(self._last_mlp_on_wanted_positions())
            return self.model.logits_at(self._inputs(), self.wanted_row, self._wanted_column)

    def states(self, delta: Tensor, site: Site, layers: Sequence[int]) -> dict[int, Tensor]:
        """Activations of later layers at the injected token, with ``delta`` injected; without gradients.

        Args:
            delta: as for ``logits``.
            layers: above the injection.

        Returns:
            layer -> (rows, d).
        """
        with ExitStack() as stack, torch.no_grad():
            self._injection.enter(stack, delta)
            read = stack.enter_context(self.model.capture({site: layers}))
            self.model.run_captured(self._inputs())
        return {layer: read[site, layer][:, 0] for layer in layers}

    def _last_mlp_on_wanted_positions(self) -> AbstractContextManager[None]:
        """Nothing above the last block reads other positions."""
        mlp = self.model.mlp(len(self.model.blocks) - 1)
        return mlp_at(mlp, self.wanted_row * self._suffix_ids.shape[1] + self._wanted_column)

    def _read(self, wanted: Mapping[Site, list[int]]) -> Mapping[tuple[Site, int], Tensor]:
        with self.model.capture(wanted) as read, torch.no_grad():
            self.model.run_captured(self._inputs())
        return read

    def _inputs(self) -> dict[str, Any]:
        return {
            "input_ids": self._suffix_ids,
            "position_ids": self._position_ids,
            # Padding after a row is hidden by causality; see PaddedBatch.inputs.
            "attention_mask": torch.cat([self._prefix_mask, torch.ones_like(self._suffix_mask)], dim=1),
            "past_key_values": None if self._cache is None else self._fresh_cache(),
            "use_cache": self._cache is not None,
        }

    def _fresh_cache(self) -> DynamicCache:
        assert self._cache is not None
        return copy_of(self._cache)


class BucketedReplay:
    """Replays of rows of similar length, used as one: little padding in few passes.

    Args:
        rows: the texts, ascending in the number of tokens from the injection on.
        cost: the overhead of one more pass, in tokens; by default ``pass_cost``.

    Attributes:
        origin: (rows, d) as in ``Replay``.
        wanted_row: (wanted,) as in ``Replay``.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: Sequence[ReplayRow],
        layer: int,
        sites: Sequence[Site],
        cost: int | None = None,
    ) -> None:
        lengths = [len(row.ids) - row.injection for row in rows]
        if lengths != sorted(lengths):
            raise ValueError("rows must ascend in the number of tokens from the injection on")
        cuts = [0, *length_cuts(lengths, cost or pass_cost(model)), len(rows)]
        self._adopt([Replay(model, rows[start:stop], layer, sites) for start, stop in pairwise(cuts)])

    def select(self, rows: Tensor) -> BucketedReplay:
        """As ``Replay.select``; empty parts are dropped."""
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


def pass_cost(model: LanguageModel) -> int:
    """The overhead of one more pass, in tokens."""
    if model.device.type != "cpu":
        return ACCELERATOR_PASS_COST
    return min(PASS_COST, READING_COST + PASS_PRODUCTS // max(1, ModelSize.of(model.model).block_products))


def length_cuts(lengths: Sequence[int], pass_cost: int = PASS_COST) -> list[int]:
    """Where to cut ascending lengths for the least cost of padded tokens and passes (dynamic programming)."""
    # A cut gains something only where the length changes.
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


class Injection(ABC):
    """Where a vector enters a block: holds the activations up to there, and lets a forward pass start there.

    There are two kinds: after the block (at its output, or at W's output if only a norm follows), so that the block
    need not run again; and inside the block, at the outputs of attention and of W, so that it must.
    """

    inside: ClassVar[bool]  # whether the block runs again, at all positions
    # (rows, width) the activations at the injected token without an injection; side by side for two sites
    origin: Float[Tensor, "rows width"]
    _hidden: Tensor | None

    def select(self, rows: Int[Tensor, "n"], length: int) -> Injection:
        """The injection of some rows, cut to the first ``length`` tokens from the injected one on."""
        chosen = copy.copy(self)
        chosen.origin = self.origin[rows]
        chosen._hidden = None if self._hidden is None else self._hidden[rows, :length]
        return chosen

    @abstractmethod
    def enter(self, stack: ExitStack, delta: Float[Tensor, "rows width"]) -> None:
        """Until the stack closes, a forward pass starts at the injection, with ``delta`` added there."""


class AfterBlock(Injection):
    """δ enters at the block's output, or at W's output if only a norm follows."""

    inside = False
    _hidden: Tensor

    def __init__(self, model: LanguageModel, layer: int, site: Site, read: _Read) -> None:
        self._model, self._layer = model, layer
        found = read({Site.BLOCK: [layer]} | ({Site.MLP: [layer]} if site is Site.MLP else {}))
        self._hidden = found[Site.BLOCK, layer]
        self._norm = model.norm_after_mlp(layer) if site is Site.MLP else None
        self.origin = found[site, layer][:, 0]

    def enter(self, stack: ExitStack, delta: Tensor) -> None:
        entered = self._entered(delta)
        skip_below(stack, self._model, self._layer, None)
        wrapped = as_block_output(self._model, entered)
        stack.enter_context(forward_replaced(self._model.blocks[self._layer], lambda *args, **kwargs: wrapped))

    def _entered(self, delta: Tensor) -> Tensor:
        """The block's output (rows, length, d) with delta (rows, d) added at the first position."""
        first = self._hidden[:, 0]
        if self._norm is None:
            first = first + delta.to(first.dtype)
        else:
            # h_out = residual + norm(w_out): replace norm(w_out) by norm(w_out + delta).
            with torch.no_grad():
                residual = first - self._norm(self.origin)
            first = residual + self._norm(self.origin + delta.to(self.origin.dtype))
        return torch.cat([first.unsqueeze(1), self._hidden[:, 1:]], dim=1)


class InsideBlock(Injection):
    """δ is two vectors side by side: one enters at attention's output, one at W's; the block runs again."""

    inside = True

    def __init__(self, model: LanguageModel, layer: int, read: _Read) -> None:
        self._model, self._layer = model, layer
        below = {Site.BLOCK: [layer - 1]} if layer else {}
        found = read({Site.ATTENTION: [layer], Site.MLP: [layer]} | below)
        self._hidden = found[Site.BLOCK, layer - 1] if layer else None
        self.origin = torch.cat([found[site, layer][:, 0] for site in (Site.ATTENTION, Site.MLP)], dim=1)

    def enter(self, stack: ExitStack, delta: Tensor) -> None:
        skip_below(stack, self._model, self._layer, self._hidden)
        parts = (self._model.attention_output(self._layer), self._model.down_projection(self._layer))
        for part, share in zip(parts, delta.chunk(2, dim=1), strict=True):
            stack.callback(part.register_forward_hook(_adding(share)).remove)


def injection_at(model: LanguageModel, layer: int, sites: Sequence[Site], read: _Read) -> Injection:
    """The injection for ``(Site.BLOCK,)``, ``(Site.MLP,)`` or ``(Site.ATTENTION, Site.MLP)``.

    Raises:
        ValueError: for any other sites.
    """
    match tuple(sites):
        case (Site.BLOCK,) | (Site.MLP,):
            return AfterBlock(model, layer, sites[0], read)
        case (Site.ATTENTION, Site.MLP):
            return InsideBlock(model, layer, read)
    raise ValueError(f"no injection is known at the sites {list(sites)}")


def skip_below(stack: ExitStack, model: LanguageModel, layer: int, hidden: Tensor | None) -> None:
    """Until the stack closes, blocks below ``layer`` return their input, and the last of them ``hidden`` if given."""
    for index, block in enumerate(model.blocks[:layer]):
        instead = hidden if index == layer - 1 else None
        stack.enter_context(
            forward_replaced(
                block,
                lambda given, *args, instead=instead, **kwargs: as_block_output(
                    model, given if instead is None else instead
                ),
            )
        )


def as_block_output(model: LanguageModel, hidden: Tensor) -> Tensor | tuple[Tensor, None]:
    """The residual stream as a block of this model returns it."""
    return (hidden, None) if model.architecture.block_returns_tuple else hidden


def _adding(delta: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that adds delta (rows, d) to an output at the first position of every row."""

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # OPT flattens (rows, length) before its second linear layer.
        rows = output.view(len(delta), -1, output.shape[-1])
        first = rows[:, :1] + delta.to(output.dtype).unsqueeze(1)
        return torch.cat([first, rows[:, 1:]], dim=1).view_as(output)

    return add


def mlp_at(mlp: nn.Module, tokens: Int[Tensor, "tokens"]) -> AbstractContextManager[None]:
    """While the context is open, an MLP computes these tokens only and returns 0 for all others.

    It works on each token independently.

    Args:
        tokens: flat indices into the batch, row · length + column.
    """
    forward = mlp.forward

    def at_tokens(hidden: Tensor) -> Tensor | tuple[Tensor, None]:
        flat = hidden.reshape(-1, hidden.shape[-1])
        output = forward(flat[tokens].unsqueeze(0))
        return _spread(torch.zeros_like(flat), [(tokens, output)], hidden)

    return forward_replaced(mlp, at_tokens)


def mlp_learning_at(
    mlp: nn.Module, tokens: Int[Tensor, "tokens"], others: Int[Tensor, "others"]
) -> AbstractContextManager[None]:
    """While the context is open, an MLP computes some tokens with a gradient and others without; see ``mlp_at``."""
    forward = mlp.forward

    def at_tokens(hidden: Tensor) -> Tensor | tuple[Tensor, None]:
        flat = hidden.reshape(-1, hidden.shape[-1])
        outputs: list[tuple[Tensor, Any]] = []
        if len(others):
            with torch.no_grad():
                outputs.append((others, forward(flat[others].unsqueeze(0))))
        outputs.append((tokens, forward(flat[tokens].unsqueeze(0))))
        return _spread(torch.zeros_like(flat), outputs, hidden)

    return forward_replaced(mlp, at_tokens)


def _spread(total: Tensor, outputs: Sequence[tuple[Tensor, Any]], like: Tensor) -> Tensor | tuple[Tensor, None]:
    """An MLP's outputs at some tokens, 0 at the others, as the MLP returns them: some return a tuple (gpt-oss)."""
    is_tuple = False
    for places, output in outputs:
        is_tuple = isinstance(output, tuple)
        total = total.index_copy(0, places, (output[0] if is_tuple else output)[0])
    return (total.view_as(like), None) if is_tuple else total.view_as(like)


def prefix_cache(
    model: LanguageModel, prefixes: Sequence[Sequence[int]], stems: Sequence[int]
) -> tuple[DynamicCache, Tensor]:
    """Keys and values of each prefix, left-padded, so that the next tokens follow directly.

    Every fact is read in the same few contexts, so most of the tokens before a subject are the same for all facts: such
    a shared stem is run once, and the rest of each prefix after it. Tokens must be contiguous, since sliding windows
    count slots, padding included. For the same reason the cache holds all tokens even in models with sliding windows,
    whose masks hide the old ones.

    Args:
        prefixes: token ids, not all of them empty.
        stems: for each prefix, the number of its first tokens to run once for all prefixes that share them.

    Returns:
        the cache, and its mask (prefixes, slots): 1 for a token, 0 for padding.
    """
    device = model.device
    heads = [tuple(prefix[:stem]) for prefix, stem in zip(prefixes, stems, strict=True)]
    tails = [tuple(prefix[stem:]) for prefix, stem in zip(prefixes, stems, strict=True)]
    distinct = [head for head in dict.fromkeys(heads) if head]
    cache = DynamicCache()
    mask = torch.zeros(len(prefixes), 0, dtype=torch.long, device=device)
    if distinct:
        batch = pad(distinct, left=True, device=device)
        _extend(model, cache, batch.input_ids, batch.attention_mask, batch.position_ids)
        # A prefix without a stem gets another one's slots, all of them masked.
        number = {head: index for index, head in enumerate(distinct)}
        row = torch.tensor([number.get(head, 0) for head in heads], device=device)
        has_stem = torch.tensor([bool(head) for head in heads], device=device)
        mask = batch.attention_mask[row] * has_stem[:, None]
        _change_states(cache.layers, lambda state: state[row])
    stem_slots = mask.shape[1]
    tail_lengths = torch.tensor([len(tail) for tail in tails], device=device)
    if any(tails):
        # Right-padded: no token read here follows the padding, so causality hides it.
        batch = pad(tails, left=False, device=device)
        positions = batch.position_ids + mask.sum(1, keepdim=True)
        _extend(model, cache, batch.input_ids, torch.cat([mask, torch.ones_like(batch.input_ids)], 1), positions)
    # Shift each row so that its last token is in the last slot.
    lengths = mask.sum(1) + tail_lengths
    slots = int(lengths.max())
    slot = torch.arange(slots, device=device)
    source = (stem_slots + tail_lengths[:, None] - slots + slot).clamp_min(0)
    if any(tails):
        _change_states(cache.layers, lambda state: torch.take_along_dim(state, source[:, None, :, None], dim=2))
    return cache, (slot >= slots - lengths[:, None]).long()


def cache_rows(cache: DynamicCache, rows: Int[Tensor, "rows"]) -> DynamicCache:
    """A cache of some of the rows, in this order and with repetitions, to append to; the given one is unchanged."""
    chosen = copy_of(cache)
    _change_states(chosen.layers, lambda state: state[rows])
    return chosen


def _extend(model: LanguageModel, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
    # Of the last block only the keys and values are wanted, and its MLP comes after them.
    last = len(model.blocks) - 1
    is_tuple = model.architecture.mlp_returns_tuple
    instead = (lambda hidden: (hidden, None)) if is_tuple else (lambda hidden: hidden)
    skipped = forward_replaced(model.mlp(last), instead) if model.mlp_is_module else nullcontext()
    with torch.no_grad(), skipped:
        model.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )


def copy_of(cache: DynamicCache) -> DynamicCache:
    """A copy to append to. ``copy.copy(cache)`` alone would share the layer objects, which are appended to."""
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    return fresh


def _change_states(layers: Sequence[object], change: Callable[[Tensor], Tensor]) -> None:
    """Replace the keys and values of cache layers by functions of them."""
    for layer in layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys, layer.values = change(layer.keys), change(layer.values)


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Replace a module's ``forward`` while the context is open."""
    own = module.__dict__.get("forward")  # accelerate's hooks live here
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
