"""The runs of tracing: clean, corrupted, and restored in one cell, which starts from the corrupted run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from errata.models.injection import skip_below
from errata.models.language_model import LanguageModel
from errata.models.overriding import forward_replaced
from errata.models.prompts import pad
from errata.tracing.places import Part, Position, Prompt

Array: TypeAlias = NDArray[np.float64]
_Change: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that are run together.

    Attributes:
        inputs: what the model is given; each (rows, length).
        last: index of each row's last token.
        answers: the token that is asked for behind it.
    """

    inputs: Mapping[str, Int[Tensor, "rows length"]]
    last: Int[Tensor, "rows"]
    answers: Int[Tensor, "rows"]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device) -> _Rows:
        batch = pad([prompt.ids for prompt in prompts], left=False, device=device)
        answers = torch.tensor([prompt.answer for prompt in prompts], device=device)
        return cls(batch.inputs(), batch.attention_mask.sum(1) - 1, answers)

    def select(self, rows: Int[Tensor, "n"]) -> _Rows:
        return _Rows({name: values[rows] for name, values in self.inputs.items()}, self.last[rows], self.answers[rows])


@dataclass(frozen=True, slots=True)
class Place:
    """The tokens of a kind in a batch. Tokens are counted through all rows: row · length + index.

    Attributes:
        facts: which of the batch's prompts have such tokens.
        rows: the rows of the corrupted run that are theirs.
        source: the tokens in the clean run, repeated for each draw of noise.
        target: the same tokens in ``rows``.
        onward: in ``rows``, the tokens from the first of the kind on, padding left out: restoring changes no others.
        before: in ``rows``, all others.
        last: in ``rows``, the last token of each.
    """

    facts: list[int]
    rows: Int[Tensor, "rows"]
    source: Int[Tensor, "tokens"]
    target: Int[Tensor, "tokens"]
    onward: Int[Tensor, "onward"]
    before: Int[Tensor, "before"]
    last: Int[Tensor, "rows"]


class Batch:
    """Prompts that are traced together: their clean run and their corrupted one, and cells that start from these.

    Attributes:
        clean: (facts,) probabilities without noise.
        corrupted: (facts,) with it, means over the draws.
    """

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Prompt], noise: Sequence[Float[Tensor, "samples _ d"]]
    ) -> None:
        self.prompts, self._model, self._samples = prompts, model, len(noise[0])
        layers = range(len(model.blocks))
        once = _Rows.of(prompts, model.device)
        self._rows = _Rows.of([prompt for prompt in prompts for _ in range(self._samples)], model.device)
        self._length = once.inputs["input_ids"].shape[1]
        self._clean: dict[tuple[Part, int], Tensor] = {}  # (facts · length, d) each
        readers = [
            (_module(model, part, layer), _flat_into(self._clean, (part, layer))) for part in Part for layer in layers
        ]
        self.clean: Array = _probabilities(model, once, readers)
        whole = noise[0].new_zeros(len(self._rows.last), self._length, noise[0].shape[-1])
        for fact, (prompt, values) in enumerate(zip(prompts, noise, strict=True)):
            whole[fact * self._samples : (fact + 1) * self._samples, list(prompt.subject)] = values
        self._noise = whole.to(model.device, model.dtype)
        self._embedding = model.model.get_submodule(model.architecture.embedding)
        hidden: dict[tuple[Part, int], Tensor] = {}
        keepers = [(_module(model, Part.BLOCK, layer), _flat_into(hidden, (Part.BLOCK, layer))) for layer in layers]
        found = _probabilities(model, self._rows, [(self._embedding, self._corrupt(slice(None))), *keepers])
        self.corrupted: Array = found.reshape(-1, self._samples).mean(1)
        shape = (len(self._rows.last), self._length, -1)
        self._hidden = [hidden[Part.BLOCK, layer].view(shape) for layer in layers]

    def place(self, position: Position) -> Place | None:
        """Where the batch has tokens of a kind; None if it has none."""
        tokens = [prompt.tokens_at(position) for prompt in self.prompts]
        facts = [index for index, found in enumerate(tokens) if found]
        if not facts:
            return None
        count, length, device = self._samples, self._length, self._model.device
        owners = [fact for fact in facts for _ in range(count)]  # of the rows
        rows = [fact * count + sample for fact in facts for sample in range(count)]
        source = [fact * length + token for fact in owners for token in tokens[fact]]
        target = [row * length + token for row, fact in enumerate(owners) for token in tokens[fact]]
        ends = [len(self.prompts[fact].ids) for fact in owners]
        onward = [row * length + at for row, fact in enumerate(owners) for at in range(tokens[fact][0], ends[row])]
        before = sorted(set(range(len(rows) * length)).difference(onward))
        last = [row * length + end - 1 for row, end in enumerate(ends)]
        found = (torch.tensor(values, device=device) for values in (rows, source, target, onward, before, last))
        return Place(facts, *found)

    def restored(self, part: Part, reach: range, place: Place) -> Array:
        """(facts of the place,): means over the draws, with clean values of a part put back in the blocks of reach.

        Args:
            reach: the blocks of a window; a single one for ``Part.BLOCK``.
        """
        model, end = self._model, len(self._model.blocks)
        put_back = {layer: _writing(place.target, self._clean[part, layer][place.source]) for layer in reach}
        start = reach[0] + 1 if part is Part.BLOCK else reach[0]
        hidden = self._hidden[start - 1][place.rows] if start else None
        changes: list[tuple[nn.Module, _Change]] = []
        if part is Part.BLOCK:
            assert hidden is not None
            hidden = put_back[reach[0]](hidden)
        else:
            changes += [(_module(model, part, layer), change) for layer, change in put_back.items()]
        if start == 0:
            changes.append((self._embedding, self._corrupt(place.rows)))
        with ExitStack() as stack:
            if model.mlp_is_module:
                # Two thirds of a block's work is its MLP's, which works on each token by itself. Before the restored
                # tokens the corrupted run has what it would give; behind the last block only the last token is read.
                for layer in range(start, end):
                    tokens = place.last if layer == end - 1 else place.onward
                    stack.enter_context(_mlp_at(model.mlp(layer), tokens))
                    if layer < end - 1 and len(place.before):
                        known = self._hidden[layer][place.rows].flatten(0, 1)[place.before]
                        changes.append((model.blocks[layer], _writing(place.before, known)))
            found = _probabilities(model, self._rows.select(place.rows), changes, start=start, hidden=hidden)
        means: Array = found.reshape(-1, self._samples).mean(1)
        return means

    def _corrupt(self, rows: slice | Tensor) -> _Change:
        noise = self._noise[rows]
        return lambda output: output + noise


def _module(model: LanguageModel, part: Part, layer: int) -> nn.Module:
    row = model.architecture
    paths = {Part.BLOCK: "", Part.MLP: row.mlp, Part.ATTENTION: row.attention_output}
    return model.blocks[layer].get_submodule(paths[part])


def _writing(tokens: Int[Tensor, "tokens"], values: Float[Tensor, "tokens d"]) -> _Change:
    """Lets an output (rows, length, d), or flattened to (rows · length, d) as OPT has it, hold values at tokens."""
    return lambda output: output.reshape(-1, output.shape[-1]).index_copy(0, tokens, values).view_as(output)


def _mlp_at(mlp: nn.Module, tokens: Int[Tensor, "tokens"]) -> AbstractContextManager[None]:
    """Until the context ends, an MLP computes these tokens only and gives 0 for all others."""
    forward = mlp.forward

    def at_tokens(hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        return torch.zeros_like(flat).index_copy(0, tokens, forward(flat[tokens].unsqueeze(0))[0]).view_as(hidden)

    return forward_replaced(mlp, at_tokens)


def _flat_into(found: dict[tuple[Part, int], Tensor], key: tuple[Part, int]) -> _Change:
    """Changes nothing, but keeps an output as (tokens, d) under ``key``."""

    def change(output: Tensor) -> Tensor:
        found[key] = output.reshape(-1, output.shape[-1])
        return output

    return change


def _probabilities(
    model: LanguageModel,
    rows: _Rows,
    changes: Sequence[tuple[nn.Module, _Change]],
    *,
    start: int = 0,
    hidden: Float[Tensor, "rows length d"] | None = None,
) -> Array:
    """(rows,): probabilities of the answers, given changes to what modules put out.

    Args:
        start: the first block to run, on ``hidden``; those below are passed over.
    """
    index = torch.arange(len(rows.last), device=model.device)
    with ExitStack() as stack, torch.no_grad():
        skip_below(stack, model, start, hidden)
        for module, change in changes:
            stack.callback(module.register_forward_hook(_hook(change)).remove)
        # The head reads one place a row only; caps and projections around it stay the model's own business.
        handle = model.head.register_forward_pre_hook(lambda module, args: (args[0][index, rows.last].unsqueeze(0),))
        stack.callback(handle.remove)
        logits: Tensor = model.model(**rows.inputs, use_cache=False).logits[0]
    found: Array = exact(logits).softmax(-1)[index, rows.answers].double().cpu().numpy()
    return found


def _hook(change: _Change) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


def exact(values: Tensor) -> Tensor:
    """At least float32: half precision cannot sum a vocabulary's probabilities."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
