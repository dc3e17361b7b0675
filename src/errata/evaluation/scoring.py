"""Scores from an ``Answerer``, with errors that name facts. Answerers know prompts only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from errata.editors.contract import Answerer
from errata.errors import NonFiniteError
from errata.models.language_model import TOKEN_BUDGET
from errata.models.prompts import Pair, TargetScore
from errata.utils.progress import Report, silent


def scores_by_pair(
    answerer: Answerer, owned: Iterable[tuple[Pair, str]], *, token_budget: int = TOKEN_BUDGET, report: Report = silent
) -> dict[Pair, TargetScore]:
    """The score of each distinct pair, in order of first occurrence.

    Args:
        owned: pairs, each with the id of the fact that it belongs to.

    Raises:
        InputError: see ``Answerer.score``.
        NonFiniteError: if a logit is not finite; names the facts.
    """
    owners: dict[Pair, str] = {}
    for pair, owner in owned:
        owners.setdefault(pair, owner)
    with naming_facts((pair[0], owner) for pair, owner in owners.items()):
        scores = answerer.score(list(owners), token_budget=token_budget, report=report)
    return dict(zip(owners, scores, strict=True))


@contextmanager
def naming_facts(owned: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Replace the prompts that a NonFiniteError of the block names by the facts that they belong to.

    Args:
        owned: prompts, each with the id of its fact.
    """
    try:
        yield
    except NonFiniteError as error:
        facts = dict.fromkeys(owner for prompt, owner in owned if prompt in error.facts)
        raise NonFiniteError(error.quantity, facts=list(facts), layer=error.layer) from error


def agreement_share(one: TargetScore, other: TargetScore) -> float:
    """The share of a target's positions at which two models have the same most likely token."""
    same = [a == b for a, b in zip(one.likeliest, other.likeliest, strict=True)]
    return sum(same) / len(same)
