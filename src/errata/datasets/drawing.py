"""Which records of a data set are taken, in which order, and what happens to those that clash."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from errata.datasets.concept import Concept
from errata.datasets.json_records import left_out
from errata.datasets.loaded import Unit
from errata.errors import InputError
from errata.facts import Fact, Question, same_statement


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was taken: facts with their places, and what belongs to them."""

    facts: tuple[Fact, ...]
    places: tuple[str, ...]
    concepts: tuple[Concept, ...]
    texts: tuple[str, ...]
    notes: tuple[str, ...]


def draw(units: Sequence[Unit], *, count: int | None, seed: int | None, source: str) -> Drawn:
    """Take records without replacement, until there are ``count`` facts (or texts, in a set without facts).

    Without a seed they come in the file's order; with one, in an order shuffled by ``random.Random(seed)``, the same
    order for every count, so that a smaller draw is the beginning of a larger one. A record is taken whole or not at
    all; one of several facts that no longer fits is passed over.

    Published files repeat and contradict themselves. Of records with the same subject and prompt the first in this
    order is taken; a later one that says the same adds nothing, and one with another target is left out whole. Notes
    tell how many, so nothing of that is silent. Questions that follow from several facts go to the last of those that
    their record added, when all of them are in the model; if it added none, to the last that was there.

    Raises:
        InputError: if ``count`` is not positive, or there is not as much.
    """
    if count is not None and count < 1:
        raise InputError(f"the count must be at least 1, got {count}", remedy="Ask for a positive number of facts")
    order = list(range(len(units)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    taken = _Taken()
    for index in order:
        if count is not None and len(taken) == count:
            break
        taken.add(units[index], room=None if count is None else count - len(taken))
    if count is not None and len(taken) < count:
        raise InputError(
            f"{source} has {len(taken)} that can be taken together, but {count} were asked for",
            remedy="Ask for fewer, or leave the count out for all",
        )
    return taken.drawn()


class _Taken:
    """What has been taken so far."""

    def __init__(self) -> None:
        self._facts: list[Fact] = []
        self._places: list[str] = []
        self._concepts: list[Concept] = []
        self._texts: list[str] = []
        self._stated: dict[tuple[str, str], int] = {}
        self._repeating: list[str] = []
        self._contradicting: list[str] = []

    def __len__(self) -> int:
        return len(self._facts) or len(self._texts)

    def add(self, unit: Unit, *, room: int | None) -> None:
        """Take a record, unless it clashes or is larger than ``room``."""
        if unit.text is not None:
            self._texts.append(unit.text)
        if not unit.facts:
            return
        said: dict[tuple[str, str], str] = {}
        new: list[Fact] = []
        for fact in unit.facts:
            key = same_statement(fact)
            index = self._stated.get(key)
            before = said.get(key) if index is None else self._facts[index].target
            if before is not None and before != fact.target:
                self._contradicting.append(unit.place)
                return
            if before is None:
                said[key] = fact.target
                new.append(fact)
        if room is not None and len(new) > room:
            return
        if not new:
            self._repeating.append(unit.place)
        for fact in new:
            self._stated[same_statement(fact)] = len(self._facts)
            self._facts.append(fact)
            self._places.append(unit.place)
        if unit.concept is not None and new:
            self._concepts.append(unit.concept)
        if unit.together:
            last = max(self._stated[same_statement(fact)] for fact in unit.facts)
            self._facts[last] = _with_portability(self._facts[last], unit.together)

    def drawn(self) -> Drawn:
        notes = []
        if self._repeating:
            notes.append(left_out("an earlier one says the same of the same subject and prompt", self._repeating))
        if self._contradicting:
            why = "an earlier one has another target for the same subject and prompt"
            notes.append(left_out(why, self._contradicting))
        return Drawn(tuple(self._facts), tuple(self._places), tuple(self._concepts), tuple(self._texts), tuple(notes))


def _with_portability(fact: Fact, questions: Sequence[Question]) -> Fact:
    """The fact with further questions, each once."""
    return replace(fact, portability=tuple(dict.fromkeys((*fact.portability, *questions))))
