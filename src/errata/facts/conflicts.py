"""New facts that contradict facts edited into a model earlier."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from errata.errors import Fault
from errata.facts.fact import Fact, FactSet, shown


class OnConflict(StrEnum):
    """How to handle a new fact that contradicts an earlier one."""

    REFUSE = "refuse"
    REPLACE = "replace"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A new fact whose target differs from that of an earlier fact.

    Attributes:
        fact: the new fact.
        earlier: the latest fact with the same subject and wording.
        patch: name of the patch that wrote ``earlier``.
        undoes: whether the new target is the answer that the earlier fact replaced.
    """

    fact: Fact
    earlier: Fact
    patch: str
    undoes: bool

    def fault(self, place: str) -> Fault:
        new, old = shown(self.fact.target), shown(self.earlier.target)
        if self.undoes:
            what = f"'target' {new} is the answer that {self.patch!r} replaced by {old}; it would undo that edit"
            remedy = "Remove that patch instead (errata revert, errata rebuild), or use --on-conflict replace or keep"
        else:
            what = f"'target' {new} contradicts {old}, which {self.patch!r} wrote"
            remedy = "--on-conflict replace writes the new fact, --on-conflict keep leaves it out"
        return Fault(place, what, remedy, code="FACT_CONFLICT")


def statement(fact: Fact) -> str:
    """The filled prompt, normalised: equal for statements that differ only in case, spaces and Unicode form."""
    return _normalised(fact.text)


def conflicts(new: Sequence[Fact], earlier: Sequence[tuple[str, Fact]]) -> list[Conflict]:
    """The new facts that contradict the latest earlier fact with the same statement.

    Args:
        earlier: (name of the patch, fact), oldest first.
    """
    latest = {statement(fact): (patch, fact) for patch, fact in earlier}
    found = []
    for fact in new:
        patch, before = latest.get(statement(fact), ("", None))
        if before is not None and _normalised(before.target) != _normalised(fact.target):
            undoes = before.old is not None and _normalised(before.old) == _normalised(fact.target)
            found.append(Conflict(fact, before, patch, undoes))
    return found


def without(facts: FactSet, conflicting: Sequence[Conflict]) -> FactSet:
    """The facts without those that contradict earlier ones."""
    removed = {id(conflict.fact) for conflict in conflicting}
    rest = [(fact, place) for fact, place in zip(facts, facts.places, strict=True) if id(fact) not in removed]
    return FactSet(tuple(fact for fact, _ in rest), facts.source, tuple(place for _, place in rest))


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())
