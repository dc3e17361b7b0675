"""New facts against those that a model has been given before: what contradicts them, and what undoes them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from errata.errors import Fault
from errata.facts.fact import Fact, FactSet, shown


class OnConflict(StrEnum):
    """What to do about a new fact that contradicts an earlier one."""

    REFUSE = "refuse"
    REPLACE = "replace"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A new fact that says another thing than an earlier one.

    Attributes:
        fact: the new one.
        earlier: the latest that says something of the same subject in the same words.
        patch: the name of the patch that brought it.
        undoes: whether the new target is what the earlier fact took the place of.
    """

    fact: Fact
    earlier: Fact
    patch: str
    undoes: bool

    def fault(self, place: str) -> Fault:
        new, old = shown(self.fact.target), shown(self.earlier.target)
        what = f"'target' {new} contradicts {old}, which {self.patch!r} wrote"
        if self.undoes:
            what = f"'target' {new} is what stood there before {self.patch!r} wrote {old}: it would be undone"
        remedy = "Take that patch out instead (errata revert, errata rebuild), or --on-conflict replace or keep"
        if not self.undoes:
            remedy = "--on-conflict replace writes the new one, --on-conflict keep leaves it out"
        return Fault(place, what, remedy)


def statement(fact: Fact) -> str:
    """What two facts must share to speak of the same thing: subject and wording, whatever the case, the spaces and the
    encoding of accents.
    """
    return _same(fact.text)


def conflicts(new: Sequence[Fact], earlier: Sequence[tuple[str, Fact]]) -> list[Conflict]:
    """The new facts that contradict what was written last about the same thing.

    Args:
        earlier: (name of the patch, fact), oldest first.
    """
    latest = {statement(fact): (patch, fact) for patch, fact in earlier}
    found = []
    for fact in new:
        patch, before = latest.get(statement(fact), ("", None))
        if before is not None and _same(before.target) != _same(fact.target):
            undoes = before.old is not None and _same(before.old) == _same(fact.target)
            found.append(Conflict(fact, before, patch, undoes))
    return found


def without(facts: FactSet, clashing: Sequence[Conflict]) -> FactSet:
    """The facts without those that contradict earlier ones."""
    leaving = {id(conflict.fact) for conflict in clashing}
    kept = [index for index, fact in enumerate(facts) if id(fact) not in leaving]
    return FactSet(
        tuple(facts.facts[index] for index in kept), facts.source, tuple(facts.places[index] for index in kept)
    )


def _same(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())
