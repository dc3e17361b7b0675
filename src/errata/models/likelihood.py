"""Teacher-forced likelihood of targets after prompts: each token given the right ones before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from errata.errors import InputError, NonFiniteError
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.prompts import Completion, Pair, TargetScore, complete, length_batches, pad
from errata.models.replay import cache_rows, prefix_cache
from errata.models.row_hooks import PromptHooks, RowHooks, around
from errata.utils.progress import Report, counter, silent

# Logits are the only large tensors here: at most this many are computed at once (1 GiB in float32) ...
_LOGITS_AT_ONCE = 1 << 28
# ... and turned into log-probabilities in pieces of this many.
_LOGITS_IN_FLOAT = 1 << 24
# Tokens that a stem must save at least: its keys and values are copied for each row.
_STEM_COST = 8
# A share of all tokens that stems must save: passes over a cache are slower than plain ones, and on CounterFact, where
# stems save 17 % of the tokens, evaluation takes as long with them or longer (docs/speed.md).
_STEM_SHARE = 1 / 3
# Tokens of a pass on a CPU, at most: the activations of more do not stay in its caches.
_CPU_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class NextToken:
    """A token whose probability after the tokens up to ``position`` of a row is wanted."""

    position: int
    token: int


@dataclass(frozen=True, slots=True)
class Predictions:
    """The probabilities of a row's wanted tokens, in their order."""

    log_probabilities: tuple[float, ...]  # natural logarithms; not finite if the model's logits are not
    likeliest: tuple[int, ...]  # the argmax token at each position


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """The rows to read for some pairs."""

    rows: list[tuple[int, ...]]  # token ids; none is a prefix of another one (with the same prompt)
    wanted: list[list[NextToken]]  # for each row, the target tokens of all pairs that it serves
    # for each pair its row, and (start, stop) of its tokens among the wanted ones of that row
    places: list[tuple[int, int, int]]
    prompts: list[int]  # for each row, the index of a pair that it serves: the only prompt, if prompts are kept apart


def score(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    token_budget: int = TOKEN_BUDGET,
    report: Report = silent,
    hooks: PromptHooks | None = None,
) -> list[TargetScore]:
    """Score targets after prompts; see ``Pair`` for the joiner. Equal pairs and shared prompts are read once.

    Args:
        token_budget: the most padded tokens of one forward pass; the scores do not depend on it.
        report: progress callback, in rows.
        hooks: change the model by prompt; then only pairs of one prompt share a row.

    Raises:
        InputError: if a target has no token or no context before it, or a row is too long for the model.
        NonFiniteError: naming the prompts, if a logit is not finite.
    """
    scores = scores_of(model, list(dict.fromkeys(pairs)), token_budget=token_budget, report=report, hooks=hooks)
    check_finite(scores, {pair: pair[0] for pair in scores})
    return [scores[pair] for pair in pairs]


def scores_of(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    shared: Mapping[str, Sequence[int]] | None = None,
    token_budget: int = TOKEN_BUDGET,
    report: Report = silent,
    hooks: PromptHooks | None = None,
) -> dict[Pair, TargetScore]:
    """Scores of distinct pairs, finite or not; see ``score``.

    Args:
        shared: prompt -> the tokens that it has in common with other prompts, which are run once; the scores do not
            depend on it. Where a prompt begins with fewer of them, only these count. Not with hooks. None: tokens that
            several rows begin with are found here, and run once where that saves enough.
    """
    completions = complete(model.tokenizer, pairs)
    plan = plan_of(pairs, completions, apart=hooks is not None)
    row_hooks = hooks and hooks(
        [pairs[index][0] for index in plan.prompts], [completions[index].prompt for index in plan.prompts]
    )
    stems: Sequence[int] = ()
    if shared is not None:
        stems = _stems(plan, pairs, shared)
    elif hooks is None:
        stems = _worthwhile_stems(plan)
    on_rows = counter(report, "evaluation", len(plan.rows))
    predictions = predict(
        model, plan.rows, plan.wanted, stems=stems, token_budget=token_budget, on_rows=on_rows, hooks=row_hooks
    )
    scores: dict[Pair, TargetScore] = {}
    for pair, (row, start, stop) in zip(pairs, plan.places, strict=True):
        likeliest = predictions[row].likeliest[start:stop]
        hits = [entry.token == token for entry, token in zip(plan.wanted[row][start:stop], likeliest, strict=True)]
        mean = math.fsum(predictions[row].log_probabilities[start:stop]) / (stop - start)
        said = str(model.tokenizer.decode(list(likeliest))).strip()
        scores[pair] = TargetScore(mean, sum(hits) / len(hits), likeliest, said)
    return scores


def check_finite(scores: Mapping[Pair, TargetScore], names: Mapping[Pair, str]) -> None:
    """Raises NonFiniteError with the names of the pairs whose log-probability is not finite."""
    bad = [names[pair] for pair, found in scores.items() if not math.isfinite(found.log_probability)]
    if bad:
        raise NonFiniteError("log-probability", facts=list(dict.fromkeys(bad)), layer=None)


def plan_of(pairs: Sequence[Pair], completions: Sequence[Completion], *, apart: bool = False) -> ScoringPlan:
    """The rows to read for some pairs.

    Args:
        completions: the pairs as tokens.
        apart: whether only pairs of the same prompt may share a row.

    Raises:
        InputError: if a target has no context before it.
    """
    for pair, completion in zip(pairs, completions, strict=True):
        if completion.target_start == 0:
            what = f"there is no token before the target {pair[1]!r} of the prompt {pair[0]!r}"
            raise InputError(what, remedy="Give a longer prompt", code="PROMPT_EMPTY")
    # Nothing is predicted after a target's last token, so it is not read: two one-token targets of a prompt share a
    # row. In a causal model a row also serves all of its prefixes.
    starts = [completion.target_start if apart else 0 for completion in completions]
    read = [completion.ids[:-1] for completion in completions]
    rows, places = _without_prefixes(list(zip(starts, read, strict=True)))
    plan = ScoringPlan(rows, [[] for _ in rows], [], [0] * len(rows))
    for number, (completion, row) in enumerate(zip(completions, places, strict=True)):
        plan.prompts[row] = number
        wanted = plan.wanted[row]
        start = len(wanted)
        wanted.extend(
            NextToken(index - 1, completion.ids[index]) for index in range(completion.target_start, len(completion.ids))
        )
        plan.places.append((row, start, len(wanted)))
    return plan


def _stems(plan: ScoringPlan, pairs: Sequence[Pair], shared: Mapping[str, Sequence[int]]) -> list[int]:
    """For each row, how many of its first tokens are shared: none of them from the first wanted position on."""
    stems = [0] * len(plan.rows)
    for pair, (row, _, _) in zip(pairs, plan.places, strict=True):
        stems[row] = max(stems[row], common_start(plan.rows[row], shared.get(pair[0], ())))
    return [min(stem, _first_wanted(wanted)) for stem, wanted in zip(stems, plan.wanted, strict=True)]


def _first_wanted(wanted: Sequence[NextToken]) -> int:
    return min(entry.position for entry in wanted)


def _worthwhile_stems(plan: ScoringPlan) -> list[int]:
    """See ``stems_of``; none if they save too few tokens of all rows."""
    stems = stems_of(plan.rows, [_first_wanted(wanted) for wanted in plan.wanted])
    distinct = {row[:stem] for row, stem in zip(plan.rows, stems, strict=True)}
    saved = sum(stems) - sum(map(len, distinct))
    return stems if saved >= _STEM_SHARE * sum(map(len, plan.rows)) else []


@dataclass(slots=True)
class _Together:
    """Consecutive rows, in sorted order, that begin alike.

    Attributes:
        start: the first of them.
        common: how many first tokens they have in common.
        saved: tokens saved by the stems of smaller groups within.
        stems: these, as (start, stop, tokens).
    """

    start: int
    common: int
    saved: int = 0
    stems: list[tuple[int, int, int]] = field(default_factory=list)

    def include(self, inner: _Together) -> None:
        self.saved += inner.saved
        self.stems += inner.stems


def stems_of(rows: Sequence[Sequence[int]], most: Sequence[int]) -> list[int]:
    """For each row, how many first tokens to run once for all rows that begin with them: those that save most tokens.

    Each row has one stem at most. The groups of rows that begin alike form a tree, whose best stems follow from those
    of its branches: one stem for all rows of a group, or those of the groups within it.

    Args:
        rows: token ids.
        most: for each row, the most tokens that its stem may have.
    """
    order = sorted(range(len(rows)), key=lambda index: tuple(rows[index]))
    nested = [_Together(0, 0)]
    for stop in range(1, len(order) + 1):
        common = common_start(rows[order[stop - 1]], rows[order[stop]]) if stop < len(order) else 0
        start, last = stop - 1, None
        while nested[-1].common > common:
            last = nested.pop()
            start = last.start
            length = min(last.common, *(most[order[place]] for place in range(start, stop)))
            saved = (stop - start - 1) * length - _STEM_COST
            if saved > last.saved:
                last.saved, last.stems = saved, [(start, stop, length)]
            if nested[-1].common >= common:
                nested[-1].include(last)
                last = None
        if nested[-1].common < common:
            nested.append(_Together(start, common))
            if last is not None:
                nested[-1].include(last)
    stems = [0] * len(rows)
    for start, stop, length in nested[0].stems:
        for place in range(start, stop):
            stems[order[place]] = length
    return stems


def common_start(row: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two rows have in common."""
    pairs = enumerate(zip(row, other, strict=False))
    return next((index for index, (mine, its) in pairs if mine != its), min(len(row), len(other)))


def _without_prefixes(
    rows: Sequence[tuple[int, tuple[int, ...]]],
) -> tuple[list[tuple[int, ...]], list[int]]:
    """The rows that are no prefix of another row; and for each given row the index of one that begins with it.

    Args:
        rows: each with a number; only rows of the same number are compared.
    """
    longest: list[tuple[int, tuple[int, ...]]] = []
    place: dict[tuple[int, tuple[int, ...]], int] = {}
    # In sorted order the rows that begin with a row directly follow it, so backwards the last kept row decides.
    for number, row in sorted(set(rows), reverse=True):
        if not longest or longest[-1][0] != number or longest[-1][1][: len(row)] != row:
            longest.append((number, row))
        place[number, row] = len(longest) - 1
    return [row for _, row in longest], [place[row] for row in rows]


def predict(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[NextToken]],
    *,
    stems: Sequence[int] = (),
    token_budget: int = TOKEN_BUDGET,
    on_rows: Callable[[int], None] = lambda count: None,
    hooks: RowHooks | None = None,
) -> list[Predictions]:
    """Log-probabilities of wanted tokens, reading every row once; batches and padding do not change them.

    Args:
        rows: token ids; tokens after the last wanted position are not needed.
        wanted: for each row, its wanted tokens.
        stems: for each row, the number of its first tokens that other rows may share, none of them from its first
            wanted position on: each distinct stem is run once, and its keys and values serve all rows.
        token_budget: the most padded tokens of one forward pass (a longer row is read alone).
        on_rows: called with the number of rows after each forward pass.
        hooks: for each forward pass; not with stems, which are run for several rows at once.

    Raises:
        InputError: if a row is too long for the model.
        ValueError: if there are both stems and hooks.
    """
    _check_lengths(model, rows)
    found: list[Predictions | None] = [None] * len(rows)
    _check_hooks(hooks, stems)
    for indices, starts, inputs in _passes(model, rows, wanted, stems, token_budget):
        # A position with several wanted tokens is computed once.
        positions: dict[tuple[int, int], int] = {}
        entries = [
            (positions.setdefault((row, entry.position - starts[row]), len(positions)), entry.token)
            for row, index in enumerate(indices)
            for entry in wanted[index]
        ]
        with around(hooks, indices, inputs["position_ids"], [len(rows[index]) for index in indices]):
            log_probabilities, likeliest = _read(model, inputs, list(positions), entries)
        start = 0
        for index in indices:
            stop = start + len(wanted[index])
            found[index] = Predictions(tuple(log_probabilities[start:stop]), tuple(likeliest[start:stop]))
            start = stop
        on_rows(len(indices))
    return [predictions for predictions in found if predictions is not None]


def next_token_log_probabilities(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    stems: Sequence[int] = (),
    token_budget: int = TOKEN_BUDGET,
    hooks: RowHooks | None = None,
) -> Tensor:
    """Natural log-probabilities of every token after each row.

    Args:
        stems: as for ``predict``; each less than its row's length.
        hooks: as for ``predict``.

    Returns:
        (rows, vocabulary) on the CPU, at least float32; not finite where the model's logits are not.

    Raises:
        InputError: if a row is too long for the model.
    """
    _check_lengths(model, rows)
    found: Tensor | None = None
    last = [[NextToken(len(row) - 1, 0)] for row in rows]
    _check_hooks(hooks, stems)
    for indices, starts, inputs in _passes(model, rows, last, stems, token_budget):
        columns = [len(rows[index]) - 1 - start for index, start in zip(indices, starts, strict=True)]
        lengths = [len(rows[index]) for index in indices]
        with torch.no_grad(), around(hooks, indices, inputs["position_ids"], lengths):
            values = model.logits_at(
                inputs, torch.arange(len(indices), device=model.device), torch.tensor(columns, device=model.device)
            )
        logits = at_least_float32(values)
        if found is None:
            found = torch.empty(len(rows), logits.shape[1], dtype=logits.dtype)
        found[indices] = logits.log_softmax(-1).cpu()
    return torch.empty(0, 0) if found is None else found


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision cannot sum the probabilities of a vocabulary."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_lengths(model: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
    longest = max((len(row) for row in rows), default=0)
    if longest > model.context_length:
        what = f"a text has {longest} tokens, but {model.name!r} accepts {model.context_length}"
        raise InputError(what, remedy="Shorten the text or remove it", code="TEXT_TOO_LONG")


def _check_hooks(hooks: RowHooks | None, stems: Sequence[int]) -> None:
    if hooks is not None and any(stems):
        raise ValueError("stems are run for several rows at once, so hooks cannot treat these rows differently")


def _passes(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[NextToken]],
    stems: Sequence[int],
    token_budget: int,
) -> Iterator[tuple[list[int], Sequence[int], dict[str, Any]]]:
    """The forward passes over all rows: indices of rows, the first token read of each, the model's arguments."""
    if model.device.type == "cpu":
        token_budget = min(token_budget, _CPU_TOKENS)
    whole: list[int] = []
    groups: dict[tuple[int, ...], list[int]] = {}  # rows by their stem
    for index, row in enumerate(rows):
        stem = tuple(row[: stems[index]]) if stems else ()
        (groups.setdefault(stem, []) if stem else whole).append(index)
    for places in _batches(
        model, [len(rows[index]) for index in whole], [wanted[index] for index in whole], token_budget
    ):
        indices = [whole[place] for place in places]
        batch = pad([rows[index] for index in indices], left=False, device=model.device)
        yield indices, [0] * len(indices), batch.inputs()
    distinct = list(groups)
    for numbers in length_batches([len(stem) for stem in distinct], token_budget=token_budget):
        cache, mask = prefix_cache(model, [distinct[number] for number in numbers], [0] * len(numbers))
        members = [(place, index) for place, number in enumerate(numbers) for index in groups[distinct[number]]]
        # A row's copy of the cache counts as well: it takes memory, and attention reads it.
        lengths = [mask.shape[1] + len(rows[index]) - stems[index] for _, index in members]
        for places in _batches(model, lengths, [wanted[index] for _, index in members], token_budget):
            indices = [members[place][1] for place in places]
            starts = [stems[index] for index in indices]
            batch = pad(
                [rows[index][start:] for index, start in zip(indices, starts, strict=True)],
                left=False,
                device=model.device,
            )
            stem_rows = torch.tensor([members[place][0] for place in places], device=model.device)
            before = torch.tensor(starts, device=model.device)
            # Padding after a row is hidden by causality; see PaddedBatch.inputs.
            attention = torch.cat([mask[stem_rows], torch.ones_like(batch.attention_mask)], dim=1)
            yield (
                indices,
                starts,
                {
                    "input_ids": batch.input_ids,
                    "attention_mask": attention,
                    "position_ids": batch.position_ids + before[:, None],
                    "past_key_values": cache_rows(cache, stem_rows),
                    "use_cache": True,
                },
            )


def _batches(
    model: LanguageModel, lengths: Sequence[int], wanted: Sequence[Sequence[NextToken]], token_budget: int
) -> Iterator[list[int]]:
    """Indices of rows to read together: within the token budget, and within the memory for logits."""
    vocabulary = int(model.model.config.get_text_config(decoder=True).vocab_size)
    positions_at_once = max(1, _LOGITS_AT_ONCE // vocabulary)
    for indices in length_batches(lengths, token_budget=token_budget):
        part: list[int] = []
        positions = 0
        for index in indices:
            if part and positions + len(wanted[index]) > positions_at_once:
                yield part
                part, positions = [], 0
            part.append(index)
            positions += len(wanted[index])
        yield part


def _read(
    model: LanguageModel,
    inputs: Mapping[str, Any],
    positions: Sequence[tuple[int, int]],
    entries: Sequence[tuple[int, int]],
) -> tuple[list[float], list[int]]:
    """Log-probability and argmax for each entry (index of a position, token), from one forward pass."""
    if not entries:
        return [], []
    rows, columns = torch.tensor(positions, device=model.device).unbind(1)
    with torch.no_grad():
        logits = model.logits_at(inputs, rows, columns)
    position, token = torch.tensor(entries, device=logits.device).unbind(1)
    at_once = max(1, _LOGITS_IN_FLOAT // logits.shape[1])
    normaliser = torch.cat(
        [at_least_float32(logits[start : start + at_once]).logsumexp(-1) for start in range(0, len(logits), at_once)]
    )
    log_probabilities = at_least_float32(logits[position, token]) - normaliser[position]
    return log_probabilities.tolist(), logits.argmax(-1)[position].tolist()
