"""Teacher-forced recall, as in the papers: is the right continuation likelier than another, or the likeliest?"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from errata.editors.contract import Answerer
from errata.evaluation.absence import absent_fields
from errata.facts.fact import QUESTION_LISTS, Fact, Question
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.models.likelihood import Pair, TargetScore, check_finite, plan_of, scores_of
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.utils.progress import Report, silent

Untouched = tuple[str, Question]
"""The cluster that a question belongs to, such as its subject, and the question."""
_Entry = TypeVar("_Entry")
_ALWAYS = (
    Metric.EFFICACY_SUCCESS,
    Metric.EFFICACY_ACCURACY,
    Metric.GENERALISATION_SUCCESS,
    Metric.GENERALISATION_ACCURACY,
    Metric.SPECIFICITY_SUCCESS,
    Metric.SPECIFICITY_ACCURACY,
    Metric.SAME_SUBJECT_ACCURACY,
    Metric.UNTOUCHED_ACCURACY,
)
_WITH_TOKENS = (
    Metric.EFFICACY_TOKENS,
    Metric.GENERALISATION_TOKENS,
    Metric.PORTABILITY_ACCURACY,
    Metric.PORTABILITY_TOKENS,
    Metric.UNRELATED_ACCURACY,
    Metric.UNRELATED_TOKENS,
    Metric.UNRELATED_AGREEMENT,
)


def evaluate_facts(
    model: Answerer,
    facts: Sequence[Fact],
    *,
    untouched: Sequence[Untouched] = (),
    tokens: bool = False,
    token_budget: int = TOKEN_BUDGET,
    report: Report = silent,
) -> list[Record]:
    """One record per prompt and metric, for every metric that the facts have the fields for (see ``absent``).

    A success compares mean log-probabilities, strictly: of target and old answer after the fact's own prompt and its
    paraphrases, of answer and target after its neighbours. An accuracy says whether target (or answer) is what the
    model would say, token by token.

    Args:
        untouched: questions about other subjects, whose answers should stay.
        tokens: also record the share of each target's (or answer's) tokens that are the likeliest at their positions:
            zsRE's metrics (MEND; MEMIT, section 5).

    Raises:
        InputError, NonFiniteError: see ``score``; the latter names the facts.
    """
    asked = _questions(facts, untouched, tokens=tokens)
    owners: dict[Pair, str] = {}
    for entry in asked:
        for pair in entry.pairs():
            owners.setdefault(pair, entry.fact)
    scores = _scores(model, list(owners), token_budget=token_budget, report=report)
    check_finite(scores, owners)
    return [record for entry in asked for record in entry.records(scores)]


def tokens_read(model: LanguageModel, facts: Sequence[Fact], *, untouched: Sequence[Untouched] = ()) -> int:
    """How many tokens, padding left out, ``evaluate_facts`` reads."""
    pairs = dict.fromkeys(pair for entry in _questions(facts, untouched) for pair in entry.pairs())
    return sum(len(row) for row in plan_of(model.tokenizer, list(pairs)).rows)


def agreement(
    model: Answerer,
    facts: Sequence[Fact],
    unedited: Callable[[], AbstractContextManager[None]],
    *,
    report: Report = silent,
) -> list[Record]:
    """For each unrelated question, at which share of its answer's places the model would say what it said unedited
    (EasyEdit's locality), given the answer's tokens before.

    Args:
        unedited: within it the model is what it was before the edits.
    """
    pairs: dict[Pair, str] = {asked.pair: fact.id for fact in facts for asked in fact.unrelated}
    with unedited():
        earlier = _scores(model, list(pairs))
    now = _scores(model, list(pairs), report=report)
    for scores in (earlier, now):
        check_finite(scores, pairs)

    def share(pair: Pair) -> float:
        same = [a == b for a, b in zip(earlier[pair].likeliest, now[pair].likeliest, strict=True)]
        return sum(same) / len(same)

    asked = [(fact.id, entry.pair) for fact in facts for entry in fact.unrelated]
    return [Record(fact, Metric.UNRELATED_AGREEMENT, pair[0], share(pair), now[pair].said) for fact, pair in asked]


def _scores(
    model: Answerer, pairs: Sequence[Pair], *, token_budget: int = TOKEN_BUDGET, report: Report = silent
) -> dict[Pair, TargetScore]:
    if isinstance(model, LanguageModel):  # finite or not: ``check_finite`` names the facts
        return scores_of(model, pairs, token_budget=token_budget, report=report)
    return dict(zip(pairs, model.score(pairs, token_budget=token_budget, report=report), strict=True))


def absent(facts: Sequence[Fact], untouched: Sequence[Untouched] = (), *, tokens: bool = False) -> dict[Metric, str]:
    """The metrics that cannot be computed, with the reason. What only some facts lack is computed on the others.

    Args:
        tokens: include the metrics that ``evaluate_facts`` adds with ``tokens``.
    """
    return absent_fields((*_ALWAYS, *_WITH_TOKENS) if tokens else _ALWAYS, facts, untouched)


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


@dataclass(frozen=True, slots=True)
class _Asked:
    """One prompt with what should follow it, what it is compared with if anything, and what the two count for."""

    fact: str
    wanted: Pair
    rival: Pair | None
    accuracy: Metric
    success: Metric | None = None
    tokens: Metric | None = None

    def pairs(self) -> list[Pair]:
        return [pair for pair in (self.wanted, self.rival) if pair is not None]

    def records(self, scores: dict[Pair, TargetScore]) -> list[Record]:
        wanted, prompt = scores[self.wanted], self.wanted[0]
        found = [Record(self.fact, self.accuracy, prompt, float(wanted.correct), wanted.said)]
        if self.success is not None and self.rival is not None:
            likelier = wanted.log_probability > scores[self.rival].log_probability
            found.append(Record(self.fact, self.success, prompt, float(likelier), wanted.said))
        if self.tokens is not None:
            found.append(Record(self.fact, self.tokens, prompt, wanted.share, wanted.said))
        return found


def _questions(facts: Sequence[Fact], untouched: Sequence[Untouched], *, tokens: bool = False) -> list[_Asked]:
    efficacy = (Metric.EFFICACY_ACCURACY, Metric.EFFICACY_SUCCESS, Metric.EFFICACY_TOKENS)
    generalisation = (
        Metric.GENERALISATION_ACCURACY, Metric.GENERALISATION_SUCCESS, Metric.GENERALISATION_TOKENS,
    )  # fmt: skip
    specificity = (Metric.SPECIFICITY_ACCURACY, Metric.SPECIFICITY_SUCCESS)
    portability = (Metric.PORTABILITY_ACCURACY, None, Metric.PORTABILITY_TOKENS)
    unrelated = (Metric.UNRELATED_ACCURACY, None, Metric.UNRELATED_TOKENS)
    asked: list[_Asked] = []
    for fact in facts:
        for prompt, metrics in ((fact.text, efficacy), *((text, generalisation) for text in fact.paraphrases)):
            rival = None if fact.old is None else fact.pair(fact.old, prompt)
            asked.append(_Asked(fact.id, fact.pair(fact.target, prompt), rival, *metrics))
        for near in fact.neighbours:
            instead = replace(near, answer=fact.target)
            asked.append(_Asked(fact.id, near.pair, instead.pair, *specificity))
        asked += [_Asked(fact.id, own.pair, None, Metric.SAME_SUBJECT_ACCURACY) for own in fact.own]
        asked += [_Asked(fact.id, hop.pair, None, *portability) for hop in fact.portability]
        asked += [_Asked(fact.id, other.pair, None, *unrelated) for other in fact.unrelated]
    for cluster, question in untouched:
        asked.append(_Asked(cluster, question.pair, None, Metric.UNTOUCHED_ACCURACY))
    return asked if tokens else [replace(entry, tokens=None) for entry in asked]
