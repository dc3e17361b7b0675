"""The lab's world: people with seven facts each, cities in countries, companies with headquarters, from one seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from errata.lab import vocabulary

OBJECTS: Mapping[str, Sequence[str]] = {
    "birthplace": tuple(vocabulary.CITY_COUNTRY),
    "residence": tuple(vocabulary.CITY_COUNTRY),
    "language": vocabulary.LANGUAGES,
    "profession": vocabulary.PROFESSIONS,
    "instrument": vocabulary.INSTRUMENTS,
    "employer": tuple(vocabulary.COMPANY_CITY),
    "sport": vocabulary.SPORTS,
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One true sentence of the world, in parts: ``prompt`` holds one ``{}`` for ``subject``; ``object`` follows it."""

    subject: str
    relation: str
    prompt: str
    object: str

    @property
    def sentence(self) -> str:
        return f"{self.prompt.replace('{}', self.subject, 1)} {self.object}."


@dataclass(frozen=True)
class World:
    """People and what is true of them.

    Attributes:
        seed: the seed that the people were drawn with.
        people: full name -> relation -> object.
    """

    seed: int
    people: Mapping[str, Mapping[str, str]]

    @classmethod
    def generate(cls, people: int = 1000, seed: int = 0) -> World:
        """Draw ``people`` distinct full names and an object for each of the seven relations, uniformly.

        Raises:
            ValueError: if there are fewer possible names than people asked for.
        """
        possible = len(vocabulary.FIRST_NAMES) * len(vocabulary.LAST_NAMES)
        if not 0 < people <= possible:
            raise ValueError(f"people must be between 1 and {possible} (the distinct full names), got {people}")
        generator = random.Random(seed)
        chosen = generator.sample(range(possible), people)
        names = [
            f"{vocabulary.FIRST_NAMES[index % len(vocabulary.FIRST_NAMES)]} "
            f"{vocabulary.LAST_NAMES[index // len(vocabulary.FIRST_NAMES)]}"
            for index in chosen
        ]
        return cls(
            seed=seed,
            people={name: {relation: generator.choice(OBJECTS[relation]) for relation in OBJECTS} for name in names},
        )

    @property
    def relations(self) -> Sequence[str]:
        return tuple(OBJECTS)

    @cached_property
    def holders(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """(relation, object) -> the people of whom it is true, in the world's order."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, facts in self.people.items():
            for relation, value in facts.items():
                found.setdefault((relation, value), []).append(name)
        return {key: tuple(names) for key, names in found.items()}

    def statement(self, subject: str, relation: str, wording: int) -> Statement:
        """The fact ``relation`` of a person in wording number ``wording`` (taken modulo the number of wordings)."""
        wordings = vocabulary.RELATION_WORDINGS[relation]
        return Statement(subject, relation, wordings[wording % len(wordings)], self.people[subject][relation])

    def consequence(self, subject: str, relation: str, wording: int) -> Statement:
        """What follows of a person's facts in two hops: ``birth country`` or ``employer city``."""
        facts = self.people[subject]
        value = {
            "birth country": vocabulary.CITY_COUNTRY[facts["birthplace"]],
            "employer city": vocabulary.COMPANY_CITY[facts["employer"]],
        }[relation]
        wordings = vocabulary.CONSEQUENCE_WORDINGS[relation]
        return Statement(subject, relation, wordings[wording % len(wordings)], value)

    def background(self, wording: int) -> list[Statement]:
        """What holds of cities and companies: the second hop of two-hop questions."""
        cities = [
            Statement(city, "country", vocabulary.CITY_WORDINGS[wording % len(vocabulary.CITY_WORDINGS)], country)
            for city, country in vocabulary.CITY_COUNTRY.items()
        ]
        companies = [
            Statement(
                company, "headquarters", vocabulary.COMPANY_WORDINGS[wording % len(vocabulary.COMPANY_WORDINGS)], city
            )
            for company, city in vocabulary.COMPANY_CITY.items()
        ]
        return cities + companies
