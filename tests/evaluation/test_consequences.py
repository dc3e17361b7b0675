"""Consequences that are made follow from two facts, and only from those that the model knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from errata.evaluation.consequences import described, lab_consequences, two_hops, with_consequences
from errata.facts.fact import Fact, Question
from errata.lab.tasks import lab_facts
from errata.lab.world import CITY_COUNTRY, World
from errata.models.prompts import TargetScore

HOPS = (
    Fact("1", "Lyon", "The city of {} is located in the country of", "Spain", old="France", relation="country"),
    Fact("2", "Milan", "The city of {} is located in the country of", "Spain", old="Italy", relation="country"),
    Fact("3", "Oslo", "The city of {} is located in the country of", "Spain", old="Norway", relation="country"),
)


@dataclass
class Knowing:
    """A model that knows some answers."""

    known: tuple[str, ...]

    def score(self, pairs: Sequence[Any]) -> list[TargetScore]:
        return [TargetScore(0.0, float(pair[1] in self.known), (), "") for pair in pairs]


@pytest.mark.parametrize(
    ("prompt", "phrase"),
    [
        ("The birthplace of Ada is", "the birthplace of Ada"),
        ("The capital of Ada is the city of", "the capital of Ada"),
        ("The author of Ada was", "the author of Ada"),
        ("Ada was born in", "the place where Ada was born"),
        ("Ada is located in the country of", "the country where Ada is located"),
        ("The headquarters of Ada are in the country of", None),  # they are not the country
        ("The home of Ada is in", None),
        ("Ada plays the", None),
        ("The mother of Ada, born near Ada, is", None),
    ],
)
def test_prompts_that_describe_their_answer(prompt: str, phrase: str | None) -> None:
    assert described(prompt, "Ada") == phrase


def test_two_hops_join_an_edit_with_a_known_fact() -> None:
    given = [
        Fact("a", "Ada", "The birthplace of {} is", "Lyon", old="Milan"),
        Fact("b", "Bo", "{} was born in", "Oslo"),  # the model does not know Oslo's country
        Fact("c", "Cy", "The birthplace of {} is", "Lyon", old="Lyon"),  # nothing changes
        Fact("d", "Di", "The birthplace of {} is", "Lyon", portability=[Question("Di lives in", "Rome")]),
        Fact("e", "Ed", "The birthplace of {} is", "Milan"),  # Milan's fact is edited
        Fact("f", "Milan", "The mayor of {} is", "Ada"),
    ]
    made = two_hops(Knowing(("France", "Italy")), given, HOPS)  # type: ignore[arg-type]
    assert [(entry.fact, entry.question.answer, entry.before) for entry in made] == [("a", "France", "Italy")]
    assert made[0].question.prompt == "The birthplace of Ada is located in the country of"
    facts = with_consequences(given, made)
    assert facts[0].portability == (made[0].question,)
    assert facts[1:] == given[1:]


def test_consequences_of_the_lab_follow_its_world() -> None:
    world = World.generate(people=60)
    facts = lab_facts(world, 60, seed=3)
    made = lab_consequences(world, facts)
    by_id = {fact.id: fact for fact in facts}
    births = [entry for entry in made if entry.question.answer == CITY_COUNTRY.get(by_id[entry.fact].target)]
    assert births
    for entry in births:
        assert entry.before == CITY_COUNTRY[by_id[entry.fact].old or ""] != entry.question.answer
        assert by_id[entry.fact].subject in entry.question.prompt
    assert {entry.hop for entry in made} == {"stated", "inferred"}
    people = list(world.people)
    assert all((entry.hop == "stated") == (people.index(by_id[entry.fact].subject) % 2 == 0) for entry in made)
