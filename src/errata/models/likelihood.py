"""How likely targets are behind prompts, teacher-forced: each token given the right ones before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errata.errors import InputError, NonFiniteError
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.prompts import PaddedBatch, Pair, TargetScore, complete, length_batches, pad
from errata.utils.progress import Report, silent

# ----------------------------------------------------------------------------------------------------
# What a model holds likely at chosen positions of many texts, the head run on those positions only.


# Logits are the one large thing here: at most so many are computed at once (1 GiB in float32) ...
_LOGITS_AT_ONCE = 1 << 28
# ... and turned into log-probabilities in pieces of so many.
_LOGITS_IN_FLOAT = 1 << 24


@dataclass(frozen=True, slots=True)
class Expected:
    """A token that may stand behind the tokens up to ``position`` of a row: what is asked of the model there."""

    position: int
    token: int


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says of a row's expected tokens, in their order.

    Attributes:
        log_probabilities: natural logarithms; not finite if the model's logits are not.
        likeliest: the token that the model holds likeliest at each place.
    """

    log_probabilities: tuple[float, ...]
    likeliest: tuple[int, ...]


def predict(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    expected: Sequence[Sequence[Expected]],
    *,
    token_budget: int = TOKEN_BUDGET,
    on_rows: Callable[[int], None] = lambda count: None,
) -> list[Predictions]:
    """Read every row once and say how likely the expected tokens are; batches and padding change nothing.

    Args:
        rows: token ids; nothing behind the last position that is asked for need be there.
        expected: for each row, what is asked.
        token_budget: most padded tokens of one forward pass (a longer row is read alone).
        on_rows: called with the number of rows after each forward pass.

    Raises:
        InputError: if a row is longer than the model takes.
    """
    _check_lengths(model, rows)
    found: list[Predictions | None] = [None] * len(rows)
    for indices in _batches(model, rows, expected, token_budget):
        batch = pad([rows[index] for index in indices], left=False, device=model.device)
        # A place that several tokens are expected at is computed once.
        places: dict[tuple[int, int], int] = {}
        asked = [
            (places.setdefault((row, entry.position), len(places)), entry.token)
            for row, index in enumerate(indices)
            for entry in expected[index]
        ]
        log_probabilities, likeliest = _read(model, batch, list(places), asked)
        start = 0
        for index in indices:
            stop = start + len(expected[index])
            found[index] = Predictions(tuple(log_probabilities[start:stop]), tuple(likeliest[start:stop]))
            start = stop
        on_rows(len(indices))
    return [predictions for predictions in found if predictions is not None]


def _check_lengths(model: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
    longest = max((len(row) for row in rows), default=0)
    if longest > model.context_length:
        raise InputError(
            f"a text has {longest} tokens, but {model.name!r} takes {model.context_length}",
            remedy="Shorten it, or leave it out",
        )


def _batches(
    model: LanguageModel, rows: Sequence[Sequence[int]], expected: Sequence[Sequence[Expected]], token_budget: int
) -> Iterator[list[int]]:
    """Indices of rows read together: within the budget of tokens, and within what logits may take."""
    vocabulary = int(model.model.config.get_text_config(decoder=True).vocab_size)
    places_at_once = max(1, _LOGITS_AT_ONCE // vocabulary)
    for indices in length_batches([len(row) for row in rows], token_budget=token_budget):
        part: list[int] = []
        places = 0
        for index in indices:
            if part and places + len(expected[index]) > places_at_once:
                yield part
                part, places = [], 0
            part.append(index)
            places += len(expected[index])
        yield part


def _read(
    model: LanguageModel, batch: PaddedBatch, places: Sequence[tuple[int, int]], asked: Sequence[tuple[int, int]]
) -> tuple[list[float], list[int]]:
    """Log-probability and likeliest token for each (index of a place, token) asked, of one forward pass."""
    if not asked:
        return [], []
    rows, columns = torch.tensor(places, device=model.device).unbind(1)
    with torch.no_grad():
        logits = model.logits_at(batch.inputs(), rows, columns)
    place, token = torch.tensor(asked, device=logits.device).unbind(1)
    at_once = max(1, _LOGITS_IN_FLOAT // logits.shape[1])
    normaliser = torch.cat(
        [at_least_float32(logits[start : start + at_once]).logsumexp(-1) for start in range(0, len(logits), at_once)]
    )
    log_probabilities = at_least_float32(logits[place, token]) - normaliser[place]
    return log_probabilities.tolist(), logits.argmax(-1)[place].tolist()


def next_token_log_probabilities(
    model: LanguageModel, rows: Sequence[Sequence[int]], *, token_budget: int = TOKEN_BUDGET
) -> Tensor:
    """The natural logarithms of the probabilities of every token behind each row.

    Returns:
        (rows, vocabulary) on the CPU, at least float32; not finite where the model's logits are not.

    Raises:
        InputError: if a row is longer than the model takes.
    """
    _check_lengths(model, rows)
    found: Tensor | None = None
    asked = [[Expected(len(row) - 1, 0)] for row in rows]
    for indices in _batches(model, rows, asked, token_budget):
        batch = pad([rows[index] for index in indices], left=False, device=model.device)
        with torch.no_grad():
            values = model.logits_at(batch.inputs(), torch.arange(len(indices), device=model.device), batch.last)
        logits = at_least_float32(values)
        if found is None:
            found = torch.empty(len(rows), logits.shape[1], dtype=logits.dtype)
        found[indices] = logits.log_softmax(-1).cpu()
    return torch.empty(0, 0) if found is None else found


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision cannot sum the probabilities of a vocabulary."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


# ----------------------------------------------------------------------------------------------------


__all__ = ["Pair", "TargetScore", "check_finite", "plan_of", "score", "scores_of"]


def score(
    model: LanguageModel, pairs: Sequence[Pair], *, token_budget: int = TOKEN_BUDGET, report: Report = silent
) -> list[TargetScore]:
    """Score targets behind prompts; see ``Pair`` for what joins them. Equal pairs and common prompts are read once.

    Args:
        token_budget: most padded tokens of one forward pass; the scores do not depend on it.
        report: told the rows read, of how many.

    Raises:
        InputError: if a target has no token of its own, nothing stands before it, or a row is too long for the model.
        NonFiniteError: if a logit is not a number; names the prompts.
    """
    scores = scores_of(model, list(dict.fromkeys(pairs)), token_budget=token_budget, report=report)
    check_finite(scores, {pair: pair[0] for pair in scores})
    return [scores[pair] for pair in pairs]


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be read for some pairs.

    Attributes:
        rows: token ids; none begins with the whole of another one.
        expected: for each row, the target tokens of all pairs that it serves.
        places: for each pair its row, and (start, stop) of its tokens among those the row is asked for.
    """

    rows: list[tuple[int, ...]]
    expected: list[list[Expected]]
    places: list[tuple[int, int, int]]


def plan_of(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> Plan:
    completions = complete(tokenizer, pairs)
    for pair, completion in zip(pairs, completions, strict=True):
        if completion.target_start == 0:
            raise InputError(
                f"nothing stands before the target {pair[1]!r} of the prompt {pair[0]!r}", remedy="Give a longer prompt"
            )
    # Nothing is predicted behind a target's last token, so it is not read: two one-token targets of a prompt share
    # a row. In a causal model a row also serves whatever it begins with.
    rows, hosts = _without_prefixes([completion.ids[:-1] for completion in completions])
    plan = Plan(rows, [[] for _ in rows], [])
    for completion, host in zip(completions, hosts, strict=True):
        expected = plan.expected[host]
        start = len(expected)
        expected.extend(
            Expected(index - 1, completion.ids[index]) for index in range(completion.target_start, len(completion.ids))
        )
        plan.places.append((host, start, len(expected)))
    return plan


def _without_prefixes(rows: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The rows that no other row begins with; and for each row given the index of one of them that begins with it."""
    kept: list[tuple[int, ...]] = []
    host: dict[tuple[int, ...], int] = {}
    # In sorted order whatever begins with a row stands right behind it, so going backwards the last one kept decides.
    for row in sorted(set(rows), reverse=True):
        if not kept or kept[-1][: len(row)] != row:
            kept.append(row)
        host[row] = len(kept) - 1
    return kept, [host[row] for row in rows]


def scores_of(
    model: LanguageModel, pairs: Sequence[Pair], *, token_budget: int = TOKEN_BUDGET, report: Report = silent
) -> dict[Pair, TargetScore]:
    """Scores of distinct pairs, finite or not; see ``score``."""
    plan = plan_of(model.tokenizer, pairs)
    read = 0

    def on_rows(count: int) -> None:
        nonlocal read
        read += count
        report("evaluation", read, len(plan.rows))

    predictions = predict(model, plan.rows, plan.expected, token_budget=token_budget, on_rows=on_rows)
    scores: dict[Pair, TargetScore] = {}
    for pair, (host, start, stop) in zip(pairs, plan.places, strict=True):
        likeliest = predictions[host].likeliest[start:stop]
        hits = [entry.token == token for entry, token in zip(plan.expected[host][start:stop], likeliest, strict=True)]
        mean = math.fsum(predictions[host].log_probabilities[start:stop]) / (stop - start)
        said = str(model.tokenizer.decode(list(likeliest))).strip()
        scores[pair] = TargetScore(mean, sum(hits) / len(hits), likeliest, said)
    return scores


def check_finite(scores: Mapping[Pair, TargetScore], names: Mapping[Pair, str]) -> None:
    """Raises NonFiniteError with the names of the pairs whose log-probability is not a number."""
    bad = [names[pair] for pair, found in scores.items() if not math.isfinite(found.log_probability)]
    if bad:
        raise NonFiniteError("log-probability", facts=list(dict.fromkeys(bad)), layer=None)
