"""Where a vector enters a block that is replayed, and how the blocks up to there are skipped.

An injection holds what the model computed up to the place of entry, for every row from the injected token on, and
arranges that a forward pass starts from there. There are two: behind the block (at its output, or at W's output where
only a norm lies between), so that the block itself need not run again; and inside the block, at the outputs of
attention and of W, so that it must.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from errata.models.language_model import LanguageModel, Site
from errata.models.overriding import forward_replaced


@runtime_checkable
class Injection(Protocol):
    """What is injected is one vector per row, or several side by side in one.

    Attributes:
        origin: (rows, width) what stands at the place of entry at the injected token, nothing being injected.
        inside: whether the block runs again, at all positions.
    """

    inside: bool
    origin: Float[Tensor, "rows width"]

    def select(self, rows: Int[Tensor, "n"], length: int) -> Injection:
        """The same for some rows, of which the first ``length`` tokens from the injected one on are left."""
        ...

    def enter(self, stack: ExitStack, delta: Float[Tensor, "rows width"]) -> None:
        """Until the stack closes, let a forward pass start at the place of entry, with ``delta`` added there."""
        ...


class BehindBlock:
    """δ enters at the block's output, or at W's output behind which only a norm follows.

    Args:
        read: runs the model up to what is wanted and returns it, (rows, length, d) each.
    """

    inside = False

    def __init__(
        self,
        model: LanguageModel,
        layer: int,
        site: Site,
        read: Callable[[Mapping[Site, list[int]]], Mapping[tuple[Site, int], Tensor]],
    ) -> None:
        self._model, self._layer = model, layer
        found = read({Site.BLOCK: [layer]} | ({Site.MLP: [layer]} if site is Site.MLP else {}))
        self._hidden = found[Site.BLOCK, layer]
        self._norm = model.norm_after_mlp(layer) if site is Site.MLP else None
        self.origin = found[site, layer][:, 0]

    def select(self, rows: Tensor, length: int) -> BehindBlock:
        chosen = copy.copy(self)
        chosen._hidden, chosen.origin = self._hidden[rows, :length], self.origin[rows]
        return chosen

    def enter(self, stack: ExitStack, delta: Tensor) -> None:
        entered = self._entered(delta)
        skip_below(stack, self._model, self._layer, None)
        wrapped = _as_block_output(self._model, entered)
        stack.enter_context(forward_replaced(self._model.blocks[self._layer], lambda *args, **kwargs: wrapped))

    def _entered(self, delta: Tensor) -> Tensor:
        """The block's output (rows, length, d) with delta (rows, d) entered at the first position."""
        first = self._hidden[:, 0]
        if self._norm is None:
            first = first + delta.to(first.dtype)
        else:
            # h_out = residual + norm(w_out): take norm(w_out) away and put norm(w_out + delta) in its place.
            with torch.no_grad():
                residual = first - self._norm(self.origin)
            first = residual + self._norm(self.origin + delta.to(self.origin.dtype))
        return torch.cat([first.unsqueeze(1), self._hidden[:, 1:]], dim=1)


class InsideBlock:
    """δ is two vectors side by side: one enters at attention's output, one at W's; the block runs again.

    Args:
        read: as for ``BehindBlock``.
    """

    inside = True

    def __init__(
        self,
        model: LanguageModel,
        layer: int,
        read: Callable[[Mapping[Site, list[int]]], Mapping[tuple[Site, int], Tensor]],
    ) -> None:
        self._model, self._layer = model, layer
        below = {Site.BLOCK: [layer - 1]} if layer else {}
        found = read({Site.ATTENTION: [layer], Site.MLP: [layer]} | below)
        self._hidden = found[Site.BLOCK, layer - 1] if layer else None
        self.origin = torch.cat([found[site, layer][:, 0] for site in (Site.ATTENTION, Site.MLP)], dim=1)

    def select(self, rows: Tensor, length: int) -> InsideBlock:
        chosen = copy.copy(self)
        chosen.origin = self.origin[rows]
        chosen._hidden = None if self._hidden is None else self._hidden[rows, :length]
        return chosen

    def enter(self, stack: ExitStack, delta: Tensor) -> None:
        skip_below(stack, self._model, self._layer, self._hidden)
        parts = (self._model.attention_output(self._layer), self._model.down_projection(self._layer))
        for part, share in zip(parts, delta.chunk(2, dim=1), strict=True):
            stack.callback(part.register_forward_hook(_adding(share)).remove)


def injection_at(
    model: LanguageModel,
    layer: int,
    sites: Sequence[Site],
    read: Callable[[Mapping[Site, list[int]]], Mapping[tuple[Site, int], Tensor]],
) -> Injection:
    """The injection for ``(Site.BLOCK,)``, ``(Site.MLP,)`` or ``(Site.ATTENTION, Site.MLP)``.

    Raises:
        ValueError: for any other sites.
    """
    match tuple(sites):
        case (Site.BLOCK,) | (Site.MLP,):
            return BehindBlock(model, layer, sites[0], read)
        case (Site.ATTENTION, Site.MLP):
            return InsideBlock(model, layer, read)
    raise ValueError(f"nothing can be injected at {list(sites)}")


def skip_below(stack: ExitStack, model: LanguageModel, layer: int, hidden: Tensor | None) -> None:
    """Blocks under ``layer`` pass on what they get, the last of them ``hidden`` if there is any."""
    for index, block in enumerate(model.blocks[:layer]):
        instead = hidden if index == layer - 1 else None
        stack.enter_context(
            forward_replaced(
                block,
                lambda given, *args, instead=instead, **kwargs: _as_block_output(
                    model, given if instead is None else instead
                ),
            )
        )


def _as_block_output(model: LanguageModel, hidden: Tensor) -> Tensor | tuple[Tensor, None]:
    return (hidden, None) if model.architecture.block_returns_tuple else hidden


def _adding(delta: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that adds delta (rows, d) to an output at the first position of every row."""

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # OPT flattens (rows, length) before its second linear layer.
        rows = output.view(len(delta), -1, output.shape[-1])
        first = rows[:, :1] + delta.to(output.dtype).unsqueeze(1)
        return torch.cat([first, rows[:, 1:]], dim=1).view_as(output)

    return add
