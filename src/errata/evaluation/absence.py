"""Why metrics cannot be measured. An absent metric is reported with its reason, never as 0."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from errata.facts.fact import Fact, Question
from errata.results.metrics import Ability, Metric

NO_FACTS: Final = "there are no facts"
NO_UNTOUCHED: Final = "no questions about other subjects were given"
LACKING: Final[Mapping[Ability, str]] = {
    "likelihood": "has no likelihoods",
    "generation": "generates no text",
    "rolling": "cannot score text without a prompt",
}


def absent_fields(
    metrics: Iterable[Metric], facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]] = ()
) -> dict[Metric, str]:
    """The metrics for which no fact has the fields that their entries need, with the reason.

    A metric that only some facts lack fields for is measured on the others, so it is not absent.

    Args:
        untouched: questions about other subjects, with their clusters.
    """
    reasons = {metric: _reason(metric.entry.needs, facts, untouched) for metric in metrics}
    return {metric: reason for metric, reason in reasons.items() if reason is not None}


def absent_abilities(metrics: Iterable[Metric], abilities: Collection[Ability], name: str) -> dict[Metric, str]:
    """The metrics that need an ability the model does not have, with the reason.

    Args:
        name: of the model or editor, for the reason.
    """
    return {
        metric: f"{name} {LACKING[ability]}"
        for metric in metrics
        if (ability := metric.entry.ability) is not None and ability not in abilities
    }


def _reason(needs: Sequence[str], facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]]) -> str | None:
    if "untouched" in needs:
        return None if untouched else NO_UNTOUCHED
    if not facts:
        return NO_FACTS
    for field in needs:
        if not any(getattr(fact, field) for fact in facts):
            return f"no fact has {field!r}"
    if not any(all(getattr(fact, field) for field in needs) for fact in facts):
        return f"no fact has both {' and '.join(map(repr, needs))}"
    return None
