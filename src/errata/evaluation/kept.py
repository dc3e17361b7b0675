"""The prompts behind which a model should go on as it did before it was edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from errata.facts import Fact, Question


class KeptKind(StrEnum):
    """Whose prompt it is: of a subject with the same true object, of a fact's unrelated questions, of the untouched."""

    NEIGHBOURS = "neighbours"
    UNRELATED = "unrelated"
    UNTOUCHED = "untouched"


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """One of them, and the fact (or the cluster of an untouched question) that it counts for."""

    fact: str
    kind: KeptKind
    prompt: str


def kept_prompts(facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]] = ()) -> list[KeptPrompt]:
    """All of them, in the order of the facts; what follows them is not asked for, so their answers do not matter.

    Args:
        untouched: for each question about another subject its cluster, as in ``recall.evaluate_facts``.
    """
    found: list[KeptPrompt] = []
    for fact in facts:
        found += [KeptPrompt(fact.id, KeptKind.NEIGHBOURS, near.prompt) for near in fact.neighbours]
        found += [KeptPrompt(fact.id, KeptKind.UNRELATED, other.prompt) for other in fact.unrelated]
    return found + [KeptPrompt(cluster, KeptKind.UNTOUCHED, question.prompt) for cluster, question in untouched]


def missing_kinds(facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]] = ()) -> dict[KeptKind, str]:
    """The kinds of which there is no prompt, with the reason."""
    reasons = {
        KeptKind.NEIGHBOURS: "no fact has 'neighbours'",
        KeptKind.UNRELATED: "no fact has 'unrelated' questions",
        KeptKind.UNTOUCHED: "no questions about other subjects were given",
    }
    there = {entry.kind for entry in kept_prompts(facts, untouched)}
    return {kind: reason for kind, reason in reasons.items() if kind not in there}
