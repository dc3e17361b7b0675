"""How likely targets are behind prompts, teacher-forced: each token given the right ones before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from errata.errors import InputError, NonFiniteError
from errata.evaluation.likelihood import Expected, predict
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.prompts import Pair, complete
from errata.progress import Report, silent

__all__ = ["Pair", "TargetScore", "check_finite", "plan_of", "score", "scores_of"]


@dataclass(frozen=True, slots=True)
class TargetScore:
    """How a model takes a target behind a prompt.

    Attributes:
        log_probability: mean over the target's tokens, each given the prompt and the target's tokens before it.
        share: of the target's tokens that are the likeliest at their places.
        likeliest: the likeliest tokens at these places.
        said: the same as text.
    """

    log_probability: float
    share: float
    likeliest: tuple[int, ...]
    said: str

    @property
    def correct(self) -> bool:
        """Whether each of the target's tokens is the likeliest at its place."""
        return self.share == 1


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
