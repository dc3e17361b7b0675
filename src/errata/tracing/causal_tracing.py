"""Causal tracing: how much of an answer one place in the model brings back, once noise on the subject has spoilt it.

Meng et al. (2022), "Locating and Editing Factual Associations in GPT", section 2: every prompt is run clean; then with
Gaussian noise on the embeddings of all the subject's tokens; then with the same noise, and with what one place held in
the clean run put back there. The probability of the answer's first token that this brings back, P(restored) −
P(corrupted), is the indirect effect of that place.

Nothing is computed twice. The clean run happens once, the corrupted one once for each draw of noise; a cell starts
where it first differs from the corrupted run, from the hidden states that were kept there. What is restored in MLPs
and attention is the output of the module, also where a norm stands between it and the residual stream (Gemma): norms
work on each token alone, so restoring what goes into one restores what it adds to the stream.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from errata.errors import ErrataError, InputError
from errata.facts.fact import Fact
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.likelihood import at_least_float32, score
from errata.models.prompts import complete, length_batches, pad
from errata.models.replay import forward_replaced, skip_below
from errata.utils.progress import Report, silent

# ----------------------------------------------------------------------------------------------------
# What is restored and where: parts of the model, kinds of tokens, windows of blocks; and facts as tokens.


class Part(StrEnum):
    """What is restored: the block's output at one layer; the others over a window of blocks."""

    BLOCK = "block"
    MLP = "mlp"
    ATTENTION = "attention"


class Position(StrEnum):
    """Which tokens are restored, all of a kind together. Tokens before the subject hold nothing that noise changed."""

    SUBJECT_FIRST = "subject_first"
    SUBJECT_MIDDLE = "subject_middle"
    SUBJECT_LAST = "subject_last"
    NEXT_FIRST = "next_first"
    NEXT_FURTHER = "next_further"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A fact's prompt as tokens.

    Attributes:
        fact: the fact's id.
        ids: the prompt's tokens.
        subject: indices of the subject's tokens among them, ascending.
        answer: the first token of the true answer.
    """

    fact: str
    ids: tuple[int, ...]
    subject: tuple[int, ...]
    answer: int

    def tokens_at(self, position: Position) -> tuple[int, ...]:
        """Indices of the tokens of a kind; empty if there are none.

        Every token from the subject's first on is of one kind. A subject of one token has only a last one; a prompt
        that ends with its subject has nothing behind it; a single token behind it is the last one.
        """
        first, last, end = self.subject[0], self.subject[-1], len(self.ids) - 1
        kinds = {
            Position.SUBJECT_FIRST: range(first, min(first + 1, last)),
            Position.SUBJECT_MIDDLE: range(first + 1, last),
            Position.SUBJECT_LAST: range(last, last + 1),
            Position.NEXT_FIRST: range(last + 1, min(last + 2, end)),
            Position.NEXT_FURTHER: range(last + 2, end),
            Position.LAST: range(max(end, last + 1), end + 1),
        }
        return tuple(kinds[position])


def prompts_of(model: LanguageModel, facts: Sequence[Fact]) -> list[Prompt]:
    """The facts' prompts with their true answers.

    Raises:
        InputError: if a fact has no old answer, or its subject or old answer no token.
    """
    pairs = [fact.pair(fact.old) for fact in facts if fact.old is not None]
    if len(pairs) < len(facts):
        lacking = next(fact.id for fact in facts if fact.old is None)
        raise InputError(
            f"fact {lacking!r} has no 'old' answer, and only what the model knows can be traced",
            remedy="Give every fact its true answer",
        )
    prompts = []
    for fact, completion in zip(facts, complete(model.tokenizer, pairs), strict=True):
        start, end = fact.subject_span
        offsets = completion.encoded.offsets[: completion.target_start]
        held = [index for index, (first, stop) in enumerate(offsets) if max(first, start) < min(stop, end)]
        if not held:
            raise InputError(f"the subject of fact {fact.id!r} has no token", remedy="Give another subject")
        # Without gaps: a space that is a token of its own may have no characters left once offsets are trimmed (OPT).
        subject = tuple(range(held[0], held[-1] + 1))
        prompts.append(Prompt(fact.id, completion.ids[: completion.target_start], subject, completion.target_ids[0]))
    return prompts


def window_around(layer: int, size: int, layers: int) -> range:
    """``size`` blocks around a layer, cut at both ends of the model; an even window has the layer in its upper half."""
    return range(max(0, layer - size // 2), min(layers, layer + (size + 1) // 2))


# ----------------------------------------------------------------------------------------------------
# The runs of tracing: clean, corrupted, and restored in one cell, which starts from the corrupted run.


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
        return cls(batch.inputs(), batch.last, answers)

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
        logits = model.logits_at(rows.inputs, index, rows.last)
    found: Array = at_least_float32(logits).softmax(-1)[index, rows.answers].double().cpu().numpy()
    return found


def _hook(change: _Change) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


# ----------------------------------------------------------------------------------------------------
# Which facts are traced: those that the model knows.


_ASKED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Chosen:
    """The facts to trace, with their prompts, and how they were found.

    Attributes:
        asked: how many facts the model was asked.
        known: how many of them it answered with their old answer, token by token.
        nothing_behind: known ones left out because their prompt ends with the subject: at one token then, the fact
            would be looked up and the answer be read, and restoring the last block there brings back all of it.
    """

    facts: tuple[Fact, ...]
    prompts: tuple[Prompt, ...]
    asked: int
    known: int
    nothing_behind: int


def choose_facts(
    model: LanguageModel, facts: Sequence[Fact], count: int, *, seed: int, report: Report = silent
) -> Chosen:
    """Ask for the old answers of facts in random order, until so many are known that can be traced.

    Raises:
        InputError: if a fact has no old answer.
        ErrataError: if no fact is known.
    """
    order = random.Random(f"locate {seed}").sample(range(len(facts)), len(facts))
    chosen: list[tuple[Fact, Prompt]] = []
    asked = known = nothing_behind = 0
    while asked < len(facts) and len(chosen) < count:
        some = [facts[index] for index in order[asked : asked + _ASKED_AT_ONCE]]
        prompts = prompts_of(model, some)
        scores = score(model, [fact.pair(fact.old or "") for fact in some])
        right = [pair for pair, found in zip(zip(some, prompts, strict=True), scores, strict=True) if found.correct]
        usable = [(fact, prompt) for fact, prompt in right if prompt.subject[-1] < len(prompt.ids) - 1]
        asked, known, nothing_behind = asked + len(some), known + len(right), nothing_behind + len(right) - len(usable)
        chosen += usable
        report("known facts", min(len(chosen), count), count)
    if not chosen:
        behind = f" ({known} are known, but nothing stands behind their subject)" if known else ""
        raise ErrataError(
            f"of {asked} facts the model knows none that can be traced{behind}",
            remedy="Give facts whose 'old' is what this model says, with words between subject and answer",
        )
    kept = chosen[:count]
    traced = tuple(fact for fact, _ in kept), tuple(prompt for _, prompt in kept)
    return Chosen(*traced, asked, known, nothing_behind)


# ----------------------------------------------------------------------------------------------------
# Tracing many facts: the noise, the batches, and the probabilities of every cell.


@dataclass(frozen=True, slots=True)
class Trace:
    """Probabilities of the answers' first tokens, means over the draws of noise.

    Attributes:
        clean: (facts,) undisturbed.
        corrupted: (facts,) with noise on the subject.
        restored: (part, position) -> (facts, layers) with the same noise, and the clean values put back there; NaN for
            a fact that has no such token.
        sigma: standard deviation of the embedding entries of the subjects' tokens, which the noise is a multiple of.
    """

    clean: Array
    corrupted: Array
    restored: Mapping[tuple[Part, Position], Array]
    sigma: float

    def effects(self, part: Part, position: Position) -> Array:
        """(facts that have such a token, layers): indirect effects, P(restored) − P(corrupted)."""
        found: Array = self.restored[part, position] - self.corrupted[:, None]
        return found[~np.isnan(found).any(axis=1)]


def trace(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    window: int,
    generator: torch.Generator,
    noise: float = 3.0,
    positions: Sequence[Position] = tuple(Position),
    report: Report = silent,
) -> Trace:
    """Trace all prompts, batched over prompts × draws of noise; a prompt's noise is the same in every cell.

    Args:
        samples: draws of noise per prompt.
        window: blocks whose MLP, or attention, outputs are restored together.
        generator: of the noise, on the CPU; what it draws depends neither on the batches nor on the model's dtype.
        noise: its standard deviation, in standard deviations of the embedding entries of the subjects' tokens.
        positions: which tokens to restore.
        report: told the layers restored, all parts and batches of prompts counted.

    Raises:
        ErrataError: if a probability is not finite; names the facts.
    """
    layers = len(model.blocks)
    drawn, sigma = _noise(model, prompts, samples, noise, generator)
    clean, corrupted = np.zeros(len(prompts)), np.zeros(len(prompts))
    restored = {(part, position): np.full((len(prompts), layers), np.nan) for part in Part for position in positions}
    batches = list(length_batches([len(prompt.ids) for prompt in prompts], token_budget=TOKEN_BUDGET // samples))
    done, total = 0, len(batches) * len(Part) * layers
    for chosen in batches:
        batch = Batch(model, [prompts[index] for index in chosen], [drawn[index] for index in chosen])
        clean[chosen], corrupted[chosen] = batch.clean, batch.corrupted
        _check_finite(batch.prompts, batch.clean, batch.corrupted)
        places = {position: place for position in positions if (place := batch.place(position)) is not None}
        for part in Part:
            for layer in range(layers):
                reach = window_around(layer, 1 if part is Part.BLOCK else window, layers)
                for position, place in places.items():
                    found = batch.restored(part, reach, place)
                    _check_finite([batch.prompts[index] for index in place.facts], found)
                    restored[part, position][[chosen[index] for index in place.facts], layer] = found
                done += 1
                report("layers traced", done, total)
    return Trace(clean, corrupted, restored, sigma)


def _noise(
    model: LanguageModel, prompts: Sequence[Prompt], samples: int, noise: float, generator: torch.Generator
) -> tuple[list[Float[Tensor, "samples tokens d"]], float]:
    """For each prompt the noise on its subject's tokens; and the standard deviation that it is a multiple of."""
    embedding = model.model.get_submodule(model.architecture.embedding)
    tokens = torch.tensor([prompt.ids[index] for prompt in prompts for index in prompt.subject])
    with torch.no_grad():
        # Through the module, not from its weight: Gemma scales what it looks up.
        entries: Tensor = at_least_float32(embedding(tokens.to(model.device)))
    sigma = float(entries.std(correction=0))
    drawn = [torch.randn(samples, len(prompt.subject), entries.shape[1], generator=generator) for prompt in prompts]
    return [noise * sigma * values.to(entries.dtype) for values in drawn], sigma


def _check_finite(prompts: Sequence[Prompt], *probabilities: Array) -> None:
    finite = np.all(np.isfinite(np.stack(probabilities)), axis=0)
    if bad := [prompt.fact for prompt, fine in zip(prompts, finite, strict=True) if not fine]:
        named = ", ".join(repr(fact) for fact in bad[:5]) + (" …" if len(bad) > 5 else "")
        raise ErrataError(
            f"the probability of the answer is not finite for {named}, where noise is on the subject",
            remedy="Take --dtype float32 or bfloat16, whose range is wider than float16's",
        )
