"""Teacher-forced recall, as in the papers: is the right continuation likelier than another, or the most likely?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from errata.editors.contract import Answerer
from errata.evaluation.absence import absent_fields
from errata.evaluation.scoring import agreement_share, scores_by_pair
from errata.facts.fact import Fact, Question
from errata.models.language_model import TOKEN_BUDGET
from errata.models.prompts import Pair, TargetScore
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.utils.progress import Report, silent

Untouched = tuple[str, Question]
"""The cluster that a question belongs to, such as its subject, and the question."""
_BASIC = (
    Metric.EFFICACY_SUCCESS,
    Metric.EFFICACY_ACCURACY,
    Metric.GENERALISATION_SUCCESS,
    Metric.GENERALISATION_ACCURACY,
    Metric.SPECIFICITY_SUCCESS,
    Metric.SPECIFICITY_ACCURACY,
    Metric.SAME_SUBJECT_ACCURACY,
    Metric.UNTOUCHED_ACCURACY,
)
METRICS = (
    *_BASIC,
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
    paraphrases, of answer and target after its neighbours. An accuracy says whether each token of the
    target (or answer) is the most likely one.

    Args:
        untouched: questions about other subjects, whose answers should stay.
        tokens: also record the share of each target's (or answer's) tokens that are the likeliest at their positions:
            zsRE's metrics (MEND; MEMIT, section 5).

    Raises:
        InputError, NonFiniteError: see ``score``; the latter names the facts.
    """
    questions = _questions(facts, untouched, tokens=tokens)
    owned = ((pair, entry.fact) for entry in questions for pair in entry.pairs())
    scores = scores_by_pair(model, owned, token_budget=token_budget, report=report)
    return [record for entry in questions for record in entry.records(scores)]


def agreement(
    model: Answerer,
    facts: Sequence[Fact],
    unedited: Callable[[], AbstractContextManager[None]],
    *,
    report: Report = silent,
) -> list[Record]:
    """For each unrelated question, the share of its answer's positions at which the edited and the unedited model have
    the same most likely token, given the answer's tokens before (EasyEdit's locality).

    Args:
        unedited: returns a context manager that disables all edits.
    """
    owned = [(entry.pair, fact.id) for fact in facts for entry in fact.unrelated]
    with unedited():
        before = scores_by_pair(model, owned)
    after = scores_by_pair(model, owned, report=report)
    return [
        Record(fact, Metric.UNRELATED_AGREEMENT, pair[0], agreement_share(before[pair], after[pair]), after[pair].said)
        for pair, fact in owned
    ]


def absent(facts: Sequence[Fact], untouched: Sequence[Untouched] = (), *, tokens: bool = False) -> dict[Metric, str]:
    """The metrics that no fact has the fields for, with the reason.

    Args:
        tokens: include the metrics that ``evaluate_facts`` adds with ``tokens``.
    """
    return absent_fields(METRICS if tokens else _BASIC, facts, untouched)


@dataclass(frozen=True, slots=True)
class _Query:
    """A prompt with the expected continuation, the one that it is compared with, if any, and the metrics of both."""

    fact: str
    expected: Pair
    alternative: Pair | None
    accuracy: Metric
    success: Metric | None = None
    tokens: Metric | None = None

    def pairs(self) -> list[Pair]:
        return [pair for pair in (self.expected, self.alternative) if pair is not None]

    def records(self, scores: dict[Pair, TargetScore]) -> list[Record]:
        expected, prompt = scores[self.expected], self.expected[0]
        found = [Record(self.fact, self.accuracy, prompt, float(expected.correct), expected.said)]
        if self.success is not None and self.alternative is not None:
            likelier = expected.log_probability > scores[self.alternative].log_probability
            found.append(Record(self.fact, self.success, prompt, float(likelier), expected.said))
        if self.tokens is not None:
            found.append(Record(self.fact, self.tokens, prompt, expected.share, expected.said))
        return found


def _questions(facts: Sequence[Fact], untouched: Sequence[Untouched], *, tokens: bool = False) -> list[_Query]:
    efficacy = (Metric.EFFICACY_ACCURACY, Metric.EFFICACY_SUCCESS, Metric.EFFICACY_TOKENS)
    generalisation = (
        Metric.GENERALISATION_ACCURACY, Metric.GENERALISATION_SUCCESS, Metric.GENERALISATION_TOKENS,
    )  # fmt: skip
    specificity = (Metric.SPECIFICITY_ACCURACY, Metric.SPECIFICITY_SUCCESS)
    portability = (Metric.PORTABILITY_ACCURACY, None, Metric.PORTABILITY_TOKENS)
    unrelated = (Metric.UNRELATED_ACCURACY, None, Metric.UNRELATED_TOKENS)
    queries: list[_Query] = []
    for fact in facts:
        for prompt, metrics in ((fact.text, efficacy), *((text, generalisation) for text in fact.paraphrases)):
            alternative = None if fact.old is None else fact.pair(fact.old, prompt)
            queries.append(_Query(fact.id, fact.pair(fact.target, prompt), alternative, *metrics))
        for near in fact.neighbours:
            instead = replace(near, answer=fact.target)
            queries.append(_Query(fact.id, near.pair, instead.pair, *specificity))
        queries += [_Query(fact.id, own.pair, None, Metric.SAME_SUBJECT_ACCURACY) for own in fact.own]
        queries += [_Query(fact.id, hop.pair, None, *portability) for hop in fact.portability]
        queries += [_Query(fact.id, other.pair, None, *unrelated) for other in fact.unrelated]
    for cluster, question in untouched:
        queries.append(_Query(cluster, question.pair, None, Metric.UNTOUCHED_ACCURACY))
    return queries if tokens else [replace(entry, tokens=None) for entry in queries]
