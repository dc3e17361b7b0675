"""What a data set gives: facts, and what is no fact."""

from __future__ import annotations

from dataclasses import dataclass

from errata.datasets.concept import Concept
from errata.facts import Fact, FactSet, Question


@dataclass(frozen=True, slots=True)
class Loaded:
    """A data set that was read.

    Attributes:
        dataset: its name in the registry, which tables show: ``zsre-alt`` is not ``zsre-answers``.
        source: the file that it was read from, for people.
        facts: may be empty.
        texts: plain texts, for perplexity.
        concepts: those of ``facts`` that change a definition, by the same ids and in the same order.
        notes: what was left out by which rule, each a sentence for people.
    """

    dataset: str
    source: str
    facts: FactSet
    texts: tuple[str, ...] = ()
    concepts: tuple[Concept, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """What one record became: what is drawn, or left out, as a whole.

    Attributes:
        place: where the record stands, for people.
        facts: usually one; several are edited one after another.
        together: questions one hop on whose answers follow from all of ``facts`` together.
    """

    place: str
    facts: tuple[Fact, ...] = ()
    together: tuple[Question, ...] = ()
    concept: Concept | None = None
    text: str | None = None
