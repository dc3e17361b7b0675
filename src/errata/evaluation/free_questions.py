"""Questions that a model answers by itself, and which answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from errata.evaluation.free_settings import CONTEXTS
from errata.evaluation.metrics import Metric
from errata.facts import Fact

MEASURES = ("exact", "contained", "judged")


class FreeKind(StrEnum):
    """What a free question tests."""

    EFFICACY = "efficacy"
    GENERALISATION = "generalisation"
    PORTABILITY = "portability"


@dataclass(frozen=True, slots=True)
class FreeQuestion:
    """A question, the fact that it counts for, and the answers that are right."""

    fact: str
    kind: FreeKind
    prompt: str
    accepted: tuple[str, ...]


def free_questions(facts: Sequence[Fact], *, aliases: bool = True) -> list[FreeQuestion]:
    """The edited prompts, the paraphrases, and the questions one hop on (whose answers have no aliases)."""
    found: list[FreeQuestion] = []
    for fact in facts:
        accepted = (fact.target, *(fact.aliases if aliases else ()))
        found.append(FreeQuestion(fact.id, FreeKind.EFFICACY, fact.text, accepted))
        found += [FreeQuestion(fact.id, FreeKind.GENERALISATION, text, accepted) for text in fact.paraphrases]
        found += [FreeQuestion(fact.id, FreeKind.PORTABILITY, hop.prompt, (hop.answer,)) for hop in fact.portability]
    return found


def expected_answer(asked: Sequence[FreeQuestion], metric: str, prompt: str) -> str | None:
    """What a record of ``evaluate_free`` asked for, of which ``prompt`` is the whole text and not the question alone.

    Args:
        asked: the questions of the record's fact.

    Returns:
        The target, or the question's answer; None for a metric that is not of these, or if the text can be of several
        questions with different answers that nothing tells apart.
    """
    name, _, where = metric.partition(":")
    if name == Metric.FREE_JUDGE_MISSING:
        kinds = set(FreeKind)
    else:
        kinds = {kind for kind in FreeKind if name in {f"free_{kind}_{measure}" for measure in MEASURES}}
    candidates = [entry for entry in asked if entry.kind in kinds]
    context = CONTEXTS.get(where or "bare")
    held = [entry for entry in candidates if context is not None and context.may_be_of(prompt, entry.prompt)]
    if held:  # a question may stand within a longer one; that one is asked
        longest = max(len(entry.prompt) for entry in held)
        candidates = [entry for entry in held if len(entry.prompt) == longest]
    answers = {entry.accepted[0] for entry in candidates}
    return answers.pop() if len(answers) == 1 else None
