"""Causal tracing: how much of an answer's probability the clean activation of one place restores under noise.

From the effects over known facts a rule, which is ours, proposes the layers that store them.

Meng et al. (2022), "Locating and Editing Factual Associations in GPT", section 2: every prompt is run clean; then with
Gaussian noise on the embeddings of all the subject's tokens; then with the same noise and the clean activation restored
at one place. The difference in the probability of the answer's first token, P(restored) − P(corrupted), is the indirect
effect of that place.

Nothing is computed twice. The clean run happens once, the corrupted one once per noise sample; a restored run starts
where it first differs from the corrupted run, from the hidden states cached there. In MLPs and attention the module's
output is restored, also where a norm lies between it and the residual stream (Gemma): norms work on each token alone,
so restoring a norm's input restores its output.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from errata.errors import ErrataError, InputError
from errata.facts.fact import Fact
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.likelihood import at_least_float32, score
from errata.models.prompts import complete, length_batches, pad, subject_tokens
from errata.models.replay import mlp_at, skip_below
from errata.results.records import interval_of, resampled_sums
from errata.utils.progress import Report, silent
from errata.utils.provenance import software_versions
from errata.utils.text import dtype_name, listed

Array: TypeAlias = NDArray[np.float64]
_Change: TypeAlias = Callable[[Tensor], Tensor]
_QUERIED_AT_ONCE = 256  # facts
FORMAT = "errata-tracing-1"
ENOUGH_FACTS = 10  # with fewer, a mean over facts says little
SHARE = 0.5  # of the largest effect: the threshold for a critical layer
MOST_LAYERS = 6
RULE = (
    "the last critical layer is the last one whose block output, restored at the subject's last token, has at least "
    "half of the largest average indirect effect; the first is the first one whose MLP outputs, restored there over "
    "the window around it, have at least half of the largest of theirs, never after the last; of more than "
    f"{MOST_LAYERS} the last {MOST_LAYERS} are taken; the boundaries are the first and the last"
)
_RESAMPLES = 1000


class Component(StrEnum):
    """What is restored: the block's output at one layer, or MLP or attention outputs over a window of blocks."""

    BLOCK = "block"
    MLP = "mlp"
    ATTENTION = "attention"


class Position(StrEnum):
    """The tokens that are restored together. Tokens before the subject are not changed by the noise."""

    SUBJECT_FIRST = "subject_first"
    SUBJECT_MIDDLE = "subject_middle"
    SUBJECT_LAST = "subject_last"
    NEXT_FIRST = "next_first"
    NEXT_FURTHER = "next_further"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class TracedPrompt:
    """A fact's prompt as tokens."""

    fact: str  # the fact's id
    ids: tuple[int, ...]
    subject: tuple[int, ...]  # indices of the subject's tokens among them, ascending
    answer: int  # the first token of the true answer

    def tokens_at(self, position: Position) -> tuple[int, ...]:
        """Indices of the tokens at a position; may be empty.

        Every token from the subject's first on has one position. A subject of one token has only a last one; a prompt
        that ends with its subject has no later ones; a single token after it is the last one.
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


def prompts_of(model: LanguageModel, facts: Sequence[Fact]) -> list[TracedPrompt]:
    """The facts' prompts with their true answers.

    Raises:
        InputError: if a fact has no old answer, or its subject or old answer has no token.
    """
    pairs = [fact.pair(fact.old) for fact in facts if fact.old is not None]
    if len(pairs) < len(facts):
        lacking = next(fact.id for fact in facts if fact.old is None)
        what = f"fact {lacking!r} has no 'old' answer, and only facts that the model knows can be traced"
        raise InputError(what, remedy="Give every fact its true answer", code="FACT_WITHOUT_OLD")
    prompts = []
    for fact, completion in zip(facts, complete(model.tokenizer, pairs), strict=True):
        prompt = completion.prompt
        subject = tuple(subject_tokens(prompt, *fact.subject_span, fact))
        prompts.append(TracedPrompt(fact.id, prompt.ids, subject, completion.target_ids[0]))
    return prompts


def window_around(layer: int, size: int, layers: int) -> range:
    """``size`` blocks around a layer, cut at both ends of the model; an even window has the layer in its upper half."""
    return range(max(0, layer - size // 2), min(layers, layer + (size + 1) // 2))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that are run together."""

    inputs: Mapping[str, Int[Tensor, "rows length"]]  # the model's arguments; each (rows, length)
    last: Int[Tensor, "rows"]  # index of each row's last token
    answers: Int[Tensor, "rows"]  # the token whose probability after it is wanted

    @classmethod
    def of(cls, prompts: Sequence[TracedPrompt], device: torch.device) -> _Rows:
        batch = pad([prompt.ids for prompt in prompts], left=False, device=device)
        answers = torch.tensor([prompt.answer for prompt in prompts], device=device)
        return cls(batch.inputs(), batch.last, answers)

    def select(self, rows: Int[Tensor, "n"]) -> _Rows:
        return _Rows({name: values[rows] for name, values in self.inputs.items()}, self.last[rows], self.answers[rows])


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """The tokens of a batch at one position, as flat indices: row · length + index."""

    facts: list[int]  # the batch's prompts that have such tokens
    rows: Int[Tensor, "rows"]  # their rows of the corrupted run
    source: Int[Tensor, "tokens"]  # the tokens in the clean run, repeated for each noise sample
    target: Int[Tensor, "tokens"]  # the same tokens in ``rows``
    # in ``rows``, the tokens from the first restored one on, without padding: the only ones that change
    onward: Int[Tensor, "onward"]
    before: Int[Tensor, "before"]  # in ``rows``, all others
    last: Int[Tensor, "rows"]  # in ``rows``, the last token of each


class TracingBatch:
    """Prompts that are traced together: their clean and corrupted runs, from which restored runs start.

    Attributes:
        clean: (facts,) probabilities without noise.
        corrupted: (facts,) probabilities with noise, means over the samples.
    """

    def __init__(
        self, model: LanguageModel, prompts: Sequence[TracedPrompt], noise: Sequence[Float[Tensor, "samples _ d"]]
    ) -> None:
        self.prompts, self._model, self._samples = prompts, model, len(noise[0])
        layers = range(len(model.blocks))
        once = _Rows.of(prompts, model.device)
        self._rows = _Rows.of([prompt for prompt in prompts for _ in range(self._samples)], model.device)
        self._length = once.inputs["input_ids"].shape[1]
        self._clean: dict[tuple[Component, int], Tensor] = {}  # (facts · length, d) each
        readers = [
            (_module(model, component, layer), _record(self._clean, (component, layer)))
            for component in Component
            for layer in layers
        ]
        self.clean: Array = _probabilities(model, once, readers)
        whole = noise[0].new_zeros(len(self._rows.last), self._length, noise[0].shape[-1])
        for fact, (prompt, values) in enumerate(zip(prompts, noise, strict=True)):
            whole[fact * self._samples : (fact + 1) * self._samples, list(prompt.subject)] = values
        self._noise = whole.to(model.device, model.dtype)
        self._embedding = model.model.get_submodule(model.architecture.embedding)
        hidden: dict[tuple[Component, int], Tensor] = {}
        recorders = [
            (_module(model, Component.BLOCK, layer), _record(hidden, (Component.BLOCK, layer))) for layer in layers
        ]
        found = _probabilities(model, self._rows, [(self._embedding, self._corrupt(slice(None))), *recorders])
        self.corrupted: Array = found.reshape(-1, self._samples).mean(1)
        shape = (len(self._rows.last), self._length, -1)
        self._hidden = [hidden[Component.BLOCK, layer].view(shape) for layer in layers]

    def tokens(self, position: Position) -> TokenGroup | None:
        """The batch's tokens at a position; None if it has none."""
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
        return TokenGroup(facts, *found)

    def restored(self, component: Component, window: range, tokens: TokenGroup) -> Array:
        """(facts of the tokens,): mean probabilities over the samples, with clean activations restored in a window.

        Args:
            window: the blocks; a single one for ``Component.BLOCK``.
        """
        model, end = self._model, len(self._model.blocks)
        restore = {layer: _writing(tokens.target, self._clean[component, layer][tokens.source]) for layer in window}
        start = window[0] + 1 if component is Component.BLOCK else window[0]
        hidden = self._hidden[start - 1][tokens.rows] if start else None
        changes: list[tuple[nn.Module, _Change]] = []
        if component is Component.BLOCK:
            assert hidden is not None
            hidden = restore[window[0]](hidden)
        else:
            changes += [(_module(model, component, layer), change) for layer, change in restore.items()]
        if start == 0:
            changes.append((self._embedding, self._corrupt(tokens.rows)))
        with ExitStack() as stack:
            if model.mlp_is_module:
                # Two thirds of a block's work is its MLP, which works on each token independently. Before the restored
                # tokens its outputs are those of the corrupted run; after the last block only the last token is read.
                for layer in range(start, end):
                    needed = tokens.last if layer == end - 1 else tokens.onward
                    stack.enter_context(mlp_at(model.mlp(layer), needed))
                    if layer < end - 1 and len(tokens.before):
                        known = self._hidden[layer][tokens.rows].flatten(0, 1)[tokens.before]
                        changes.append((model.blocks[layer], _writing(tokens.before, known)))
            found = _probabilities(model, self._rows.select(tokens.rows), changes, start=start, hidden=hidden)
        means: Array = found.reshape(-1, self._samples).mean(1)
        return means

    def _corrupt(self, rows: slice | Tensor) -> _Change:
        noise = self._noise[rows]
        return lambda output: output + noise


def _module(model: LanguageModel, component: Component, layer: int) -> nn.Module:
    row = model.architecture
    paths = {Component.BLOCK: "", Component.MLP: row.mlp, Component.ATTENTION: row.attention_output}
    return model.blocks[layer].get_submodule(paths[component])


def _writing(tokens: Int[Tensor, "tokens"], values: Float[Tensor, "tokens d"]) -> _Change:
    """Writes values at tokens of an output (rows, length, d), or (rows · length, d) as in OPT."""
    return lambda output: output.reshape(-1, output.shape[-1]).index_copy(0, tokens, values).view_as(output)


def _record(found: dict[tuple[Component, int], Tensor], key: tuple[Component, int]) -> _Change:
    """Changes nothing, but records an output as (tokens, d) under ``key``."""

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
    """(rows,): probabilities of the answers, with changes applied to the outputs of modules.

    Args:
        start: the first block to run, on ``hidden``; those below are skipped.
    """
    index = torch.arange(len(rows.last), device=model.device)
    with ExitStack() as stack, torch.no_grad():
        skip_below(stack, model, start, hidden)
        for module, change in changes:
            stack.callback(module.register_forward_hook(_hook(change)).remove)
        logits = model.logits_at(rows.inputs, index, rows.last)
    found: Array = at_least_float32(logits).softmax(-1)[index, rows.answers].cpu().double().numpy()
    return found


def _hook(change: _Change) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


@dataclass(frozen=True, slots=True)
class KnownFacts:
    """The facts to trace, with their prompts, and the counts of the selection."""

    facts: tuple[Fact, ...]
    prompts: tuple[TracedPrompt, ...]
    queried: int
    known: int  # the number that the model answered with their old answer, token by token
    # the number of known ones excluded because their prompt ends with the subject: there the same token looks up the
    # fact and predicts the answer, so restoring its last block restores everything
    untraceable: int


def choose_facts(
    model: LanguageModel, facts: Sequence[Fact], count: int, *, seed: int, report: Report = silent
) -> KnownFacts:
    """Query facts in random order until ``count`` known ones are found that can be traced.

    Raises:
        InputError: if a fact has no old answer.
        ErrataError: if no fact is known.
    """
    order = random.Random(f"locate {seed}").sample(range(len(facts)), len(facts))
    chosen: list[tuple[Fact, TracedPrompt]] = []
    queried = known = untraceable = 0
    while queried < len(facts) and len(chosen) < count:
        some = [facts[index] for index in order[queried : queried + _QUERIED_AT_ONCE]]
        prompts = prompts_of(model, some)
        scores = score(model, [fact.pair(fact.old or "") for fact in some])
        right = [pair for pair, found in zip(zip(some, prompts, strict=True), scores, strict=True) if found.correct]
        usable = [(fact, prompt) for fact, prompt in right if prompt.subject[-1] < len(prompt.ids) - 1]
        queried += len(some)
        known += len(right)
        untraceable += len(right) - len(usable)
        chosen += usable
        report("known facts", min(len(chosen), count), count)
    if not chosen:
        reason = f" ({known} are known, but their prompts end with the subject)" if known else ""
        what = f"none of the {queried} facts is both known to the model and traceable{reason}"
        remedy = "Give facts whose 'old' is this model's answer, with words between subject and answer"
        raise ErrataError(what, remedy=remedy, code="FACTS_UNKNOWN")
    found, found_prompts = zip(*chosen[:count], strict=True)
    return KnownFacts(found, found_prompts, queried, known, untraceable)


@dataclass(frozen=True, slots=True)
class Trace:
    """Probabilities of the answers' first tokens, means over the noise samples."""

    clean: Array  # (facts,) without noise
    corrupted: Array  # (facts,) with noise on the subject
    # (component, position) -> (facts, layers) with the same noise and clean activations restored; NaN for a fact
    # without such a token
    restored: Mapping[tuple[Component, Position], Array]
    sigma: float  # standard deviation of the embedding entries of the subjects' tokens, the unit of the noise

    def effects(self, component: Component, position: Position) -> Array:
        """(facts that have such a token, layers): indirect effects, P(restored) − P(corrupted)."""
        found: Array = self.restored[component, position] - self.corrupted[:, None]
        return found[~np.isnan(found).any(axis=1)]


def trace(
    model: LanguageModel,
    prompts: Sequence[TracedPrompt],
    *,
    samples: int,
    window: int,
    generator: torch.Generator,
    noise: float = 3.0,
    positions: Sequence[Position] = tuple(Position),
    report: Report = silent,
) -> Trace:
    """Trace all prompts, batched over prompts × noise samples; a prompt's noise is the same in every restored run.

    Args:
        samples: noise samples per prompt.
        window: blocks whose MLP, or attention, outputs are restored together.
        generator: for the noise, on the CPU; its numbers depend neither on the batches nor on the model's dtype.
        noise: its standard deviation, in standard deviations of the embedding entries of the subjects' tokens.
        positions: the tokens to restore.
        report: progress callback, in layers of all components and batches.

    Raises:
        ErrataError: if a probability is not finite; names the facts.
    """
    layers = len(model.blocks)
    noises, sigma = _noise(model, prompts, samples, noise, generator)
    clean, corrupted = np.zeros(len(prompts)), np.zeros(len(prompts))
    keys = [(component, position) for component in Component for position in positions]
    restored = {key: np.full((len(prompts), layers), np.nan) for key in keys}
    batches = list(length_batches([len(prompt.ids) for prompt in prompts], token_budget=TOKEN_BUDGET // samples))
    done, total = 0, len(batches) * len(Component) * layers
    for chosen in batches:
        batch = TracingBatch(model, [prompts[index] for index in chosen], [noises[index] for index in chosen])
        clean[chosen], corrupted[chosen] = batch.clean, batch.corrupted
        _check_finite(batch.prompts, batch.clean, batch.corrupted)
        groups = {position: group for position in positions if (group := batch.tokens(position)) is not None}
        for component in Component:
            for layer in range(layers):
                blocks = window_around(layer, 1 if component is Component.BLOCK else window, layers)
                for position, group in groups.items():
                    found = batch.restored(component, blocks, group)
                    _check_finite([batch.prompts[index] for index in group.facts], found)
                    restored[component, position][[chosen[index] for index in group.facts], layer] = found
                done += 1
                report("layers traced", done, total)
    return Trace(clean, corrupted, restored, sigma)


def _noise(
    model: LanguageModel, prompts: Sequence[TracedPrompt], samples: int, noise: float, generator: torch.Generator
) -> tuple[list[Float[Tensor, "samples tokens d"]], float]:
    """For each prompt the noise on its subject's tokens; and its unit, the standard deviation of their embeddings."""
    embedding = model.model.get_submodule(model.architecture.embedding)
    tokens = torch.tensor([prompt.ids[index] for prompt in prompts for index in prompt.subject])
    with torch.no_grad():
        # Through the module, not from its weight: Gemma scales its embeddings.
        entries: Tensor = at_least_float32(embedding(tokens.to(model.device)))
    sigma = float(entries.std(correction=0))
    width = entries.shape[1]
    noises = [torch.randn(samples, len(prompt.subject), width, generator=generator) for prompt in prompts]
    return [noise * sigma * values.to(entries.dtype) for values in noises], sigma


def _check_finite(prompts: Sequence[TracedPrompt], *probabilities: Array) -> None:
    finite = np.all(np.isfinite(np.stack(probabilities)), axis=0)
    if bad := [prompt.fact for prompt, fine in zip(prompts, finite, strict=True) if not fine]:
        what = f"the probability of the answer is not finite for {listed([*map(repr, bad)])} with noise on the subject"
        remedy = "Use --dtype float32 or bfloat16, whose range is wider than float16's"
        raise ErrataError(what, remedy=remedy, code="NOT_FINITE")


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Settings of causal tracing."""

    count: int = 100  # the most facts to trace
    samples: int = 10  # noise samples per fact
    window: int = 2  # blocks whose MLP, or attention, outputs are restored together
    noise: float = 3.0  # in standard deviations of the embedding entries of the subjects' tokens
    seed: int = 0  # random seed for the noise, the order of facts, and the bootstrap
    positions: tuple[Position, ...] = tuple(Position)  # the restored tokens; the subject's last selects the layers

    def __post_init__(self) -> None:
        if Position.SUBJECT_LAST not in self.positions:
            raise ValueError("the subject's last token must be restored, since it selects the critical layers")


def default_window(layers: int) -> int:
    """About 20 % of the depth, and at least 2: 2 for 8 blocks, 10 for 48 as in the paper."""
    return min(layers, max(2, round(layers / 5)))


def check_window(window: int, layers: int) -> None:
    """Raises InputError if a window is larger than the model."""
    if not 1 <= window <= layers:
        what = f"a window of {window} blocks does not fit a model of {layers}"
        raise InputError(what, remedy=f"Give 1 to {layers} blocks", code="WINDOW_TOO_LARGE")


class Estimate(TypedDict):
    """A mean over facts with its 95 % bootstrap interval; a single fact has no interval."""

    mean: float
    low: float | None
    high: float | None


class EffectEstimate(Estimate):
    """An average indirect effect: component, token position, layer, and (first, last) block of the window."""

    part: str
    position: str
    layer: int
    window: tuple[int, int]
    n: int


def estimates(values: Array, *, seed: int = 0) -> list[Estimate]:
    """(facts, quantities) -> each quantity's mean with its interval."""
    facts = len(values)
    resampled = resampled_sums(np.ascontiguousarray(values.T), seed=seed, resamples=_RESAMPLES) / facts
    intervals = [interval_of(column, facts) for column in resampled.T]
    return [
        Estimate(mean=float(mean), low=low, high=high)
        for mean, (low, high) in zip(values.mean(0), intervals, strict=True)
    ]


def propose_layers(block: Sequence[float], mlp: Sequence[float]) -> tuple[int, ...]:
    """The critical layers by ``RULE``, ascending; the boundaries are the first and the last.

    Args:
        block: by layer, the average indirect effect of the block's output at the subject's last token.
        mlp: the same of the MLP outputs over a window around the layer.

    Raises:
        ErrataError: if one of the two has no positive effect, or a NaN.
    """
    for name, curve in (("block", block), ("MLP", mlp)):
        if not all(np.isfinite(curve)) or max(curve) <= 0:
            raise ErrataError(
                f"no layers can be proposed: restoring {name} outputs at the subject's last token does not restore "
                f"the answer (largest average indirect effect {max(curve):.3g})",
                remedy="Trace more facts, or other ones; or choose layers by a scan (--scan)",
                code="NO_LAYERS_FOUND",
            )
    last = max(layer for layer, effect in enumerate(block) if effect >= SHARE * max(block))
    first = min(layer for layer, effect in enumerate(mlp) if effect >= SHARE * max(mlp))
    return tuple(range(min(first, last), last + 1))[-MOST_LAYERS:]


@dataclass(frozen=True, slots=True)
class Location:
    """The result of causal tracing."""

    settings: TracingSettings
    chosen: KnownFacts
    traced: Trace
    layers: int  # the number of blocks
    seconds: float

    def curve(self, component: Component) -> list[float]:
        """By layer, the average indirect effect at the subject's last token."""
        return [float(mean) for mean in self.traced.effects(component, Position.SUBJECT_LAST).mean(0)]

    def propose(self) -> tuple[int, ...]:
        """Raises ErrataError: see ``propose_layers``."""
        return propose_layers(self.curve(Component.BLOCK), self.curve(Component.MLP))

    def totals(self) -> dict[str, Estimate]:
        """The answers' probability clean and corrupted, and the difference: the total effect."""
        clean, corrupted = self.traced.clean, self.traced.corrupted
        columns = np.stack([clean, corrupted, clean - corrupted], axis=1)
        found = estimates(columns, seed=self.settings.seed)
        return dict(zip(("clean", "corrupted", "total_effect"), found, strict=True))

    def effects(self) -> list[EffectEstimate]:
        """Every average indirect effect in long form, without positions that no fact has."""
        found: list[EffectEstimate] = []
        for component in Component:
            for position in self.settings.positions:
                effects = self.traced.effects(component, position)
                if not len(effects):
                    continue
                for layer, estimate in enumerate(estimates(effects, seed=self.settings.seed)):
                    blocks = window_around(
                        layer, 1 if component is Component.BLOCK else self.settings.window, self.layers
                    )
                    found.append(
                        EffectEstimate(
                            part=str(component),
                            position=str(position),
                            layer=layer,
                            window=(blocks[0], blocks[-1]),
                            n=len(effects),
                            **estimate,
                        )
                    )
        return found

    def record(self, model: LanguageModel) -> dict[str, Any]:
        """The result as JSON, with everything needed to reproduce it; without a proposal if the rule gives none."""
        try:
            layers = self.propose()
        except ErrataError as error:
            proposed: dict[str, Any] = {"layers": None, "boundaries": None, "refused": error.what}
        else:
            proposed = {"layers": list(layers), "boundaries": [layers[0], layers[-1]]}
        settings = asdict(self.settings)
        found = zip(self.chosen.facts, self.traced.clean, self.traced.corrupted, strict=True)
        return {
            "format": FORMAT,
            "rows": self.effects(),
            "proposal": proposed | {"rule": RULE},
            "about": {
                "model": model.name,
                "fingerprint": model.fingerprint(),
                "layers": self.layers,
                "dtype": dtype_name(model.dtype),
                "device": str(model.device),
                "versions": software_versions(),
                "settings": settings | {"positions": [str(position) for position in self.settings.positions]},
                "sigma": self.traced.sigma,
                "asked": self.chosen.queried,
                "known": self.chosen.known,
                "nothing_behind": self.chosen.untraceable,
                "traced": len(self.chosen.facts),
                "seconds": self.seconds,
                **self.totals(),
                "facts": [
                    fact.to_record() | {"clean": float(clean), "corrupted": float(corrupted)}
                    for fact, clean, corrupted in found
                ],
            },
        }


def locate(
    model: LanguageModel, facts: Sequence[Fact], settings: TracingSettings, *, report: Report = silent
) -> Location:
    """Trace the facts that a model knows.

    Args:
        facts: with their old answers.
        report: progress callback, in known facts and in traced layers.

    Raises:
        InputError: if a fact has no old answer, or the window does not fit the model.
        ErrataError: if no fact is known, or a probability is not finite.
    """
    layers = len(model.blocks)
    check_window(settings.window, layers)
    chosen = choose_facts(model, facts, settings.count, seed=settings.seed, report=report)
    started = time.perf_counter()
    traced = trace(
        model,
        chosen.prompts,
        samples=settings.samples,
        window=settings.window,
        noise=settings.noise,
        positions=settings.positions,
        generator=torch.Generator().manual_seed(settings.seed),
        report=report,
    )
    return Location(settings, chosen, traced, layers, time.perf_counter() - started)
