"""Whole rows of tokens, replayed from W of a block on, with changed outputs of W: for training W of one or more blocks.

A change of W alters nothing below it, so W's input and the block's output at every position are computed once. Each
evaluation then adds the change of W's output and runs only the later blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from errata.errors import InputError
from errata.models.language_model import TOKEN_BUDGET, LanguageModel, Site
from errata.models.prompts import PaddedBatch, length_batches, pad
from errata.models.replay import (
    as_block_output,
    forward_replaced,
    length_cuts,
    mlp_at,
    mlp_learning_at,
    pass_cost,
    skip_below,
)
from errata.models.weights import ModuleName, Place

GRADIENT_BUDGET = TOKEN_BUDGET // 4  # padded tokens of one forward pass with a gradient
_LOGITS_AT_ONCE = 1 << 26

Change: TypeAlias = Callable[[Tensor], Tensor]
"""From a matrix's input (…, d_in) to the change of its output (…, d_out), at each position independently."""

Changes: TypeAlias = Mapping[int, Change] | Mapping[Place, Change]
"""The changes of W by layer, or of any matrices by their places."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One text with the tokens to learn.

    Attributes:
        ids: the tokens that the model reads.
        wanted: indices into ``ids``; a position may be there several times.
        targets: the token to predict at each of them.
    """

    ids: tuple[int, ...]
    wanted: tuple[int, ...]
    targets: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.wanted or len(self.wanted) != len(self.targets):
            raise ValueError("a row needs at least one target, and one position for each")
        if not all(0 <= position < len(self.ids) for position in self.wanted):
            raise ValueError("every wanted position must be in the row")


class RowReplay:
    """Rows with everything that does not depend on the changes, which is computed at construction.

    Args:
        model: the model with its current weights; a ``RowReplay`` is invalid once they change.
        rows: the texts.
        layers: the blocks whose W is changed.
        modules: of these blocks, the matrices that are changed, if not W. The lowest of the blocks then runs again in
            each evaluation, since its output is that of attention too.

    Raises:
        InputError: if a row is too long for the model.
        UnsupportedModelError: if the model has no such module.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: Sequence[TrainingRow],
        layers: Sequence[int],
        modules: Sequence[ModuleName] = ("down_proj",),
    ) -> None:
        longest = max((len(row.ids) for row in rows), default=0)
        if longest > model.context_length:
            raise InputError(
                f"a prompt with its target has {longest} tokens, but {model.name!r} accepts {model.context_length}",
                remedy="Shorten the prompt",
                code="TEXT_TOO_LONG",
            )
        self.model, self.rows, self.layers = model, tuple(rows), tuple(sorted(set(layers)))
        self.dtype = torch.promote_types(model.dtype, torch.float32)
        self._linear = {Place(layer, name): model.linear(layer, name) for layer in self.layers for name in modules}
        # The block whose output is stored, changed or not; -1 for none.
        self._lowest = self.layers[0] if tuple(modules) == ("down_proj",) else self.layers[0] - 1
        self._states: dict[Site, list[Tensor]] = {}
        if self._lowest < 0:
            return
        self._norm = model.norm_after_mlp(self._lowest)
        wanted = {Site.KEY: [self._lowest], Site.BLOCK: [self._lowest]}
        wanted |= {} if self._norm is None else {Site.MLP: [self._lowest]}
        self._states = {site: [torch.empty(0)] * len(rows) for site in wanted}
        for indices in self._batches([len(row.ids) for row in rows], TOKEN_BUDGET):
            batch = pad([rows[index].ids for index in indices], left=False, device=model.device)
            with ExitStack() as stack:
                found = stack.enter_context(model.capture(wanted))
                _skip_padding(stack, model, batch, range(self._lowest))
                with torch.no_grad():
                    model.run_captured(batch.inputs())
            for (site, _), values in found.items():
                for place, index in enumerate(indices):
                    self._states[site][index] = values[place, : len(rows[index].ids)].clone()

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self, index: int) -> Float[Tensor, "length d_in"]:
        """W's input in the lowest of the layers, at every position of a row."""
        return self._states[Site.KEY][index]

    def passes(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Places in ``indices`` of the rows to evaluate together, within the memory for gradients."""
        vocabulary = int(self.model.model.config.get_text_config(decoder=True).vocab_size)
        lengths = [len(self.rows[index].ids) for index in indices]
        for places in self._batches(lengths, GRADIENT_BUDGET):
            part: list[int] = []
            positions = 0
            for place in places:
                count = len(self.rows[indices[place]].wanted)
                if part and (positions + count) * vocabulary > _LOGITS_AT_ONCE:
                    yield part
                    part, positions = [], 0
                part.append(place)
                positions += count
            yield part

    def _batches(self, lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
        """Places of rows of such similar length that further passes would cost more than the padding."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        cuts = length_cuts([lengths[place] for place in order], pass_cost(self.model))
        for start, stop in pairwise([0, *cuts, len(order)]):
            for part in length_batches([lengths[place] for place in order[start:stop]], token_budget=token_budget):
                yield [order[start + place] for place in part]

    def losses(self, changes: Changes, indices: Sequence[int], *, by_row: bool = False) -> Float[Tensor, "n"]:
        """−log P of each row's targets, mean over its targets, in one pass; in ``dtype``.

        Args:
            changes: differentiable.
            indices: the rows.
            by_row: whether changes differ from row to row, so that they need (rows, length, d_in), padding included.
        """
        return self._losses(changes, indices, by_row=by_row)

    def log_probabilities(self, changes: Changes, indices: Sequence[int]) -> Float[Tensor, "targets vocabulary"]:
        """log P of every token where the rows' targets are predicted, row after row; in ``dtype``, as ``losses``."""
        return self.logits(changes, indices).to(self.dtype).log_softmax(-1)

    def logits(self, changes: Changes, indices: Sequence[int]) -> Float[Tensor, "targets vocabulary"]:
        """As ``log_probabilities``, not normalised and in the model's dtype."""
        return self._logits(changes, indices)

    def gradients(
        self, indices: Sequence[int], *, at_all: bool = False, changes: Mapping[int, Change] | None = None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """W's inputs, and the gradients of the summed losses at W's outputs, where targets are predicted.

        Args:
            at_all: at all tokens of the rows instead.
            changes: under which they are taken; see ``losses``.

        Returns:
            layer -> (inputs (targets, d_in), gradients (targets, d_out)), row after row in the order of ``indices``;
            gradients in ``dtype``.
        """
        rows = [self.rows[index] for index in indices]
        length = max(len(row.ids) for row in rows)
        # A target depends on outputs before the first wanted token too, but no gradient is wanted there: by causality
        # the other gradients do not pass through them.
        starts = [0 if at_all else min(row.wanted) for row in rows]
        learning = [
            place * length + position
            for place, (row, start) in enumerate(zip(rows, starts, strict=True))
            for position in range(start, len(row.ids))
        ]
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def recorder(layer: int) -> Change:
            d_out = self.model.weight(layer).shape[0]

            def record(x: Tensor) -> Tensor:
                zero = torch.zeros(*x.shape[:-1], d_out, dtype=self.dtype, device=x.device, requires_grad=True)
                if torch.is_grad_enabled():  # not for tokens before those of ``learning``
                    seen[layer] = x.detach(), zero
                return zero if changes is None else changes[layer](x).to(self.dtype) + zero

            return record

        tokens = torch.tensor(learning, device=self.model.device)
        with torch.enable_grad():
            loss = self._losses({layer: recorder(layer) for layer in self.layers}, indices, learning=tokens).sum()
        gradients = torch.autograd.grad(loss, [seen[layer][1] for layer in self.layers])
        wanted = [range(len(row.ids)) if at_all else row.wanted for row in rows]
        places = [place * length + position for place, positions in enumerate(wanted) for position in positions]
        place_of = {token: place for place, token in enumerate(learning)}
        among = [place_of[token] for token in places]
        found = {}
        for layer, gradient in zip(self.layers, gradients, strict=True):
            chosen = among if self._is_split(layer) else places
            found[layer] = seen[layer][0].flatten(0, -2)[chosen], gradient.flatten(0, -2)[chosen]
        return found

    def _is_split(self, layer: int) -> bool:
        """Whether, in ``gradients``, the changes of a layer are called with the tokens to learn apart from others."""
        return self.model.mlp_is_module and layer > self._lowest

    def _losses(
        self,
        changes: Changes,
        indices: Sequence[int],
        *,
        by_row: bool = False,
        learning: Tensor | None = None,
    ) -> Tensor:
        """See ``losses`` and ``_logits``."""
        rows, device = [self.rows[index] for index in indices], self.model.device
        logits = self._logits(changes, indices, by_row=by_row, learning=learning).to(self.dtype)
        targets = torch.tensor([token for row in rows for token in row.targets], device=device)
        row = torch.tensor([place for place, row in enumerate(rows) for _ in row.targets], device=device)
        weight = torch.tensor(
            [1 / len(row.targets) for row in rows for _ in row.targets], dtype=self.dtype, device=device
        )
        nll = nn.functional.cross_entropy(logits, targets, reduction="none")
        return torch.zeros(len(rows), dtype=self.dtype, device=device).index_add(0, row, nll * weight)

    def _logits(
        self,
        changes: Changes,
        indices: Sequence[int],
        *,
        by_row: bool = False,
        learning: Tensor | None = None,
    ) -> Tensor:
        """(targets of all rows, vocabulary), in order.

        Args:
            by_row: see ``losses``.
            learning: of ``gradients``: flat indices, ascending, of the tokens with a gradient. Above the lowest layer,
                changes are called with these and, without gradients, with the others.
        """
        model, lowest, last = self.model, self._lowest, len(self.model.blocks) - 1
        rows = [self.rows[index] for index in indices]
        batch = pad([row.ids for row in rows], left=False, device=model.device)
        row = torch.tensor([place for place, row in enumerate(rows) for _ in row.wanted], device=model.device)
        column = torch.tensor([position for row in rows for position in row.wanted], device=model.device)
        by_place = {Place(place) if isinstance(place, int) else place: change for place, change in changes.items()}
        with ExitStack() as stack:
            if lowest >= 0:
                entered = as_block_output(model, self._block_output(by_place.pop(Place(lowest), None), indices))
                skip_below(stack, model, lowest, None)
                stack.enter_context(forward_replaced(model.blocks[lowest], lambda *args, **kwargs: entered))
            for place, change in by_place.items():
                hook = _adding(change, self.dtype)
                stack.callback(self._linear[place].register_forward_hook(hook).remove)
            whole = {place.layer for place in by_place if by_row and place.module == "down_proj"}
            between = [layer for layer in range(lowest + 1, last) if layer not in whole]
            if learning is None:
                _skip_padding(stack, model, batch, between)
            elif model.mlp_is_module:
                others = batch.attention_mask.flatten().index_fill(0, learning, 0).nonzero()[:, 0]
                for layer in between:
                    stack.enter_context(mlp_learning_at(model.mlp(layer), learning, others))
            if last > lowest and last not in whole and model.mlp_is_module:  # nothing above reads other positions
                wanted = (row * batch.input_ids.shape[1] + column).unique()
                read = wanted if learning is None or Place(last) not in by_place else learning
                stack.enter_context(mlp_at(model.mlp(last), read))
            return model.logits_at(batch.inputs(), row, column)

    def _block_output(self, change: Change | None, indices: Sequence[int]) -> Tensor:
        """The lowest changed block's output (rows, length, d)."""
        hidden = self._padded(Site.BLOCK, indices)
        if change is None:
            return hidden
        moved = change(self._padded(Site.KEY, indices)).to(self.dtype)
        if self._norm is None:
            return (hidden.to(self.dtype) + moved).to(hidden.dtype)
        # h_out = residual + norm(y): replace norm(y) by norm(y + change).
        output = self._padded(Site.MLP, indices)
        with torch.no_grad():
            residual = hidden - self._norm(output)
        changed: Tensor = residual + self._norm((output.to(self.dtype) + moved).to(output.dtype))
        return changed

    def _padded(self, site: Site, indices: Sequence[int]) -> Tensor:
        return pad_sequence([self._states[site][index] for index in indices], batch_first=True)


def _skip_padding(stack: ExitStack, model: LanguageModel, batch: PaddedBatch, layers: Iterable[int]) -> None:
    """Until the stack closes, the MLPs of some layers compute no padding, which no token of a row reads."""
    tokens = batch.attention_mask.flatten().nonzero()[:, 0]
    if model.mlp_is_module and len(tokens) < batch.input_ids.numel():
        for layer in layers:
            stack.enter_context(mlp_at(model.mlp(layer), tokens))


def _adding(change: Change, dtype: torch.dtype) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that adds a change to W's output."""

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return (output.to(dtype) + change(args[0]).to(dtype)).to(output.dtype)

    return add
