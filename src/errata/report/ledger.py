"""The edited facts of a model: which edits made them, which replaced them, and whether they are still recalled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from errata.editors.contract import Answerer, Edit
from errata.evaluation.free_running import is_contained
from errata.facts.conflicts import statement
from errata.facts.fact import Fact
from errata.utils.progress import Report, silent

_NEW_TOKENS: Final = 24  # of an answerer without likelihoods, in which the target must occur


@dataclass(frozen=True, slots=True)
class EditedFact:
    """One fact of one edit.

    Attributes:
        edit: name of the edit.
        replaced_by: name of the last edit of the same prompt, if that gave it a different target; else empty.
        latest: whether no later edit has a fact with the same prompt.
    """

    edit: str
    fact: Fact
    replaced_by: str
    latest: bool


def edited_facts(edits: Iterable[tuple[str, Edit]]) -> list[EditedFact]:
    """All facts of all edits.

    Args:
        edits: (name, edit), oldest first.
    """
    entries = [(name, fact) for name, edit in edits for fact in edit.facts]
    last = {statement(fact): index for index, (_, fact) in enumerate(entries)}
    found = []
    for index, (name, fact) in enumerate(entries):
        final = last[statement(fact)]
        final_name, final_fact = entries[final]
        found.append(EditedFact(name, fact, final_name if final_fact.target != fact.target else "", final == index))
    return found


@dataclass(frozen=True, slots=True)
class Recall:
    """What a model answers to an edited fact's prompt, and whether that is the target."""

    answer: str
    correct: bool


def recalled(answerer: Answerer, facts: Sequence[Fact], *, report: Report = silent) -> list[Recall]:
    """Check the targets of facts: teacher-forced, or in a generated answer if the answerer has no likelihoods."""
    if "likelihood" in answerer.abilities:
        scores = answerer.score([fact.pair(fact.target) for fact in facts], report=report)
        return [Recall(found.said, found.correct) for found in scores]
    texts = answerer.continue_texts([fact.text for fact in facts], new_tokens=_NEW_TOKENS)
    return [Recall(text.strip(), is_contained(text, [fact.target])) for fact, text in zip(facts, texts, strict=True)]
