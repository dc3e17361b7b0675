"""Teacher-forced recall, the papers' numbers: does the model hold the right continuation likelier, or likeliest?"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from errata.errors import InputError, NonFiniteError
from errata.evaluation.likelihood import Expected, predict
from errata.evaluation.records import Metric, Record
from errata.facts import Fact, Question
from errata.facts_rules import QUESTION_LISTS
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.prompts import complete
from errata.progress import Report, silent

Pair = tuple[str, str]
Untouched = tuple[str, Question]
"""The cluster that a question belongs to, such as its subject, and the question."""
_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True)
class TargetScore:
    """How a model takes a target behind a prompt.

    Attributes:
        log_probability: mean over the target's tokens, each given the prompt and the target's tokens before it.
        correct: whether each of the target's tokens is the likeliest at its place.
        said: the likeliest tokens at these places, as text.
    """

    log_probability: float
    correct: bool
    said: str


def score(
    model: LanguageModel, pairs: Sequence[Pair], *, token_budget: int = TOKEN_BUDGET, report: Report = silent
) -> list[TargetScore]:
    """Score ``(prompt, target)`` pairs; one space joins the two. Equal pairs, and prompts in common, are read once.

    Args:
        token_budget: most padded tokens of one forward pass; the scores do not depend on it.
        report: told the rows read, of how many.

    Raises:
        InputError: if a target has no token of its own, nothing stands before it, or a row is too long for the model.
        NonFiniteError: if a logit is not a number; names the prompts.
    """
    scores = _scores(model, list(dict.fromkeys(pairs)), token_budget, report)
    _check_finite(scores, {pair: pair[0] for pair in scores})
    return [scores[pair] for pair in pairs]


def evaluate_facts(
    model: LanguageModel,
    facts: Sequence[Fact],
    *,
    untouched: Sequence[Untouched] = (),
    token_budget: int = TOKEN_BUDGET,
    report: Report = silent,
) -> list[Record]:
    """One record per prompt and metric, for every metric that the facts have the fields for (see ``absent``).

    A success compares mean log-probabilities, strictly: of target and truth behind the fact's own prompt and its
    paraphrases, of answer and target behind its neighbours. An accuracy says whether target (or answer) is what the
    model would say, token by token.

    Args:
        untouched: questions about other subjects, whose answers should stay.

    Raises:
        InputError, NonFiniteError: see ``score``; the latter names the facts.
    """
    asked = _questions(facts, untouched)
    owners: dict[Pair, str] = {}
    for entry in asked:
        for pair in entry.pairs():
            owners.setdefault(pair, entry.fact)
    scores = _scores(model, list(owners), token_budget, report)
    _check_finite(scores, owners)
    return [record for entry in asked for record in entry.records(scores)]


def tokens_read(model: LanguageModel, facts: Sequence[Fact], *, untouched: Sequence[Untouched] = ()) -> int:
    """How many tokens, padding left out, ``evaluate_facts`` reads."""
    pairs = dict.fromkeys(pair for entry in _questions(facts, untouched) for pair in entry.pairs())
    return sum(len(row) for row in _plan(model.tokenizer, list(pairs)).rows)


def absent(facts: Sequence[Fact], untouched: Sequence[Untouched] = ()) -> dict[Metric, str]:
    """The metrics that cannot be computed, with the reason. What only some facts lack is computed on the others."""
    if not facts:
        missing: dict[Metric, str] = dict.fromkeys(_OF_FACTS, "there are no facts")
    else:
        missing = {}
        if not any(fact.truth for fact in facts):
            missing[Metric.EFFICACY_SUCCESS] = "no fact has a 'truth' to compare with"
        if not any(fact.paraphrases for fact in facts):
            reason = "no fact has 'paraphrases'"
            missing |= {Metric.GENERALISATION_SUCCESS: reason, Metric.GENERALISATION_ACCURACY: reason}
        elif not any(fact.paraphrases and fact.truth for fact in facts):
            missing[Metric.GENERALISATION_SUCCESS] = "no fact with 'paraphrases' has a 'truth' to compare with"
        if not any(fact.neighbours for fact in facts):
            reason = "no fact has 'neighbours'"
            missing |= {Metric.SPECIFICITY_SUCCESS: reason, Metric.SPECIFICITY_ACCURACY: reason}
        if not any(fact.own for fact in facts):
            missing[Metric.SAME_SUBJECT_ACCURACY] = "no fact has 'own' questions about its subject"
    if not untouched:
        missing[Metric.UNTOUCHED_ACCURACY] = "no questions about other subjects were given"
    return missing


def choose_questions(facts: Sequence[Fact], per_fact: int, generator: random.Random) -> list[Fact]:
    """The same facts with at most ``per_fact`` paraphrases, and questions of each kind, drawn at random.

    Bounds what an evaluation reads; the same seed draws the same questions, which keep their order.
    """

    def draw(entries: tuple[_Entry, ...]) -> tuple[_Entry, ...]:
        chosen = sorted(generator.sample(range(len(entries)), min(per_fact, len(entries))))
        return tuple(entries[index] for index in chosen)

    def chosen(fact: Fact) -> Fact:
        drawn: dict[str, Any] = {name: draw(getattr(fact, name)) for name in ("paraphrases", *QUESTION_LISTS)}
        return replace(fact, **drawn)

    return [chosen(fact) for fact in facts]


_OF_FACTS = tuple(
    metric
    for metric in Metric
    if metric.value.startswith(("efficacy", "generalisation", "specificity", "same_subject"))
)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One prompt with what should follow it, what it is compared with if anything, and what the two count for."""

    fact: str
    prompt: str
    wanted: str
    rival: str | None
    accuracy: Metric
    success: Metric | None = None

    def pairs(self) -> list[Pair]:
        return [(self.prompt, text) for text in (self.wanted, self.rival) if text is not None]

    def records(self, scores: dict[Pair, TargetScore]) -> list[Record]:
        wanted = scores[self.prompt, self.wanted]
        found = [Record(self.fact, self.accuracy, self.prompt, float(wanted.correct), wanted.said)]
        if self.success is not None and self.rival is not None:
            likelier = wanted.log_probability > scores[self.prompt, self.rival].log_probability
            found.append(Record(self.fact, self.success, self.prompt, float(likelier), wanted.said))
        return found


def _questions(facts: Sequence[Fact], untouched: Sequence[Untouched]) -> list[_Asked]:
    efficacy = (Metric.EFFICACY_ACCURACY, Metric.EFFICACY_SUCCESS)
    generalisation = (Metric.GENERALISATION_ACCURACY, Metric.GENERALISATION_SUCCESS)
    specificity = (Metric.SPECIFICITY_ACCURACY, Metric.SPECIFICITY_SUCCESS)
    asked: list[_Asked] = []
    for fact in facts:
        asked.append(_Asked(fact.id, fact.text, fact.target, fact.truth, *efficacy))
        asked += [_Asked(fact.id, text, fact.target, fact.truth, *generalisation) for text in fact.paraphrases]
        asked += [_Asked(fact.id, near.prompt, near.answer, fact.target, *specificity) for near in fact.neighbours]
        asked += [_Asked(fact.id, own.prompt, own.answer, None, Metric.SAME_SUBJECT_ACCURACY) for own in fact.own]
    for cluster, question in untouched:
        asked.append(_Asked(cluster, question.prompt, question.answer, None, Metric.UNTOUCHED_ACCURACY))
    return asked


@dataclass(frozen=True, slots=True)
class _Plan:
    """What has to be read for some pairs.

    Attributes:
        rows: token ids; none begins with the whole of another one.
        expected: for each row, the target tokens of all pairs that it serves.
        places: for each pair its row, and (start, stop) of its tokens among those the row is asked for.
    """

    rows: list[tuple[int, ...]]
    expected: list[list[Expected]]
    places: list[tuple[int, int, int]]


def _plan(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> _Plan:
    completions = complete(tokenizer, pairs)
    for (prompt, target), completion in zip(pairs, completions, strict=True):
        if completion.target_start == 0:
            raise InputError(
                f"nothing stands before the target {target!r} of the prompt {prompt!r}", remedy="Give a longer prompt"
            )
    # Nothing is predicted behind a target's last token, so it is not read: two one-token targets of a prompt share
    # a row. In a causal model a row also serves whatever it begins with.
    rows, hosts = _without_prefixes([completion.ids[:-1] for completion in completions])
    plan = _Plan(rows, [[] for _ in rows], [])
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


def _scores(model: LanguageModel, pairs: Sequence[Pair], token_budget: int, report: Report) -> dict[Pair, TargetScore]:
    """Scores of distinct pairs, finite or not."""
    plan = _plan(model.tokenizer, pairs)
    read = 0

    def on_rows(count: int) -> None:
        nonlocal read
        read += count
        report("evaluation", read, len(plan.rows))

    predictions = predict(model, plan.rows, plan.expected, token_budget=token_budget, on_rows=on_rows)
    scores: dict[Pair, TargetScore] = {}
    for pair, (host, start, stop) in zip(pairs, plan.places, strict=True):
        likeliest = predictions[host].likeliest[start:stop]
        correct = all(
            entry.token == token for entry, token in zip(plan.expected[host][start:stop], likeliest, strict=True)
        )
        mean = math.fsum(predictions[host].log_probabilities[start:stop]) / (stop - start)
        scores[pair] = TargetScore(mean, correct, str(model.tokenizer.decode(list(likeliest))).strip())
    return scores


def _check_finite(scores: dict[Pair, TargetScore], names: dict[Pair, str]) -> None:
    bad = [names[pair] for pair, found in scores.items() if not math.isfinite(found.log_probability)]
    if bad:
        raise NonFiniteError("log-probability", facts=list(dict.fromkeys(bad)), layer=None)
