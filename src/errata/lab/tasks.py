"""Facts to edit into the lab's model and control questions, sampled from its world by seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from errata.facts.fact import Fact, Question
from errata.lab.world import CITY_COUNTRY, COMPANY_CITY, CONSEQUENCE_WORDINGS, OBJECTS, RELATION_WORDINGS, World

NEIGHBOURS = 5


def lab_facts(world: World, count: int, *, seed: int, spare: int = 0) -> list[Fact]:
    """Counterfactual edits: each gives one person another object in one relation.

    The prompt is one of the relation's wordings, the others are the paraphrases. Neighbours are people with the same
    true object who are not edited; ``own`` are the person's unedited other facts, each in one wording. Each person is
    edited in one relation, or, if there are more facts than people, in several, in random order.

    Args:
        spare: the number of people who are never edited, for control questions.

    Raises:
        ValueError: if ``count`` is not positive, or exceeds the number of facts in the world.
    """
    people = len(world.people) - spare
    if not 0 < count <= (most := people * len(world.relations)):
        raise ValueError(f"count must be between 1 and {most} (the facts of {people} people), got {count}")
    generator = random.Random(f"facts {seed}")
    subjects = generator.sample(list(world.people), min(count, people))
    edited: dict[str, list[str]] = {subject: [] for subject in subjects}
    order = subjects
    if count > people:
        order = [subjects[number % people] for number in range(count)]
        generator.shuffle(order)
    facts: list[Fact] = []
    own: list[dict[str, Question]] = []  # by relation
    for number, subject in enumerate(order):
        relation = generator.choice([name for name in world.relations if name not in edited[subject]])
        edited[subject].append(relation)
        truth = world.people[subject][relation]
        target = generator.choice([value for value in OBJECTS[relation] if value != truth])
        wordings = list(RELATION_WORDINGS[relation])
        generator.shuffle(wordings)
        others = [name for name in world.holders[relation, truth] if name not in edited]
        neighbours = generator.sample(others, min(NEIGHBOURS, len(others)))
        facts.append(
            Fact(
                id=f"lab-{seed}-{number}",
                subject=subject,
                prompt=wordings[0],
                target=target,
                old=truth,
                paraphrases=tuple(wording.replace("{}", subject) for wording in wordings[1:]),
                neighbours=tuple(
                    _question(world, name, relation, _any_wording(generator, relation)) for name in neighbours
                ),
            )
        )
        others_of_it = [name for name in world.relations if name != relation]
        own.append({name: _question(world, subject, name, _any_wording(generator, name)) for name in others_of_it})
    # Facts that another edit changes are no control questions.
    return [
        replace(fact, own=tuple(question for name, question in found.items() if name not in edited[fact.subject]))
        for fact, found in zip(facts, own, strict=True)
    ]


_SECOND_HOPS = {"birthplace": ("birth country", CITY_COUNTRY), "employer": ("employer city", COMPANY_CITY)}


def consequence_questions(world: World, fact: Fact) -> list[tuple[Question, str, bool]]:
    """The consequences of an edit of a person's fact, in all wordings: (question, answer before, stated).

    ``stated``: whether the corpus states this person's consequences; the model has to infer those of the others. There
    are none for other relations, for other subjects, and where the answer stays the same.
    """
    relation = next((name for name in _SECOND_HOPS if fact.prompt in RELATION_WORDINGS[name]), None)
    if relation is None or fact.subject not in world.people:
        return []
    consequence, answers = _SECOND_HOPS[relation]
    before = answers[world.people[fact.subject][relation]]
    answer = answers.get(fact.target, before)
    if answer == before:
        return []
    stated = list(world.people).index(fact.subject) % 2 == 0
    wordings = CONSEQUENCE_WORDINGS[consequence]
    return [(Question(wording.replace("{}", fact.subject), answer), before, stated) for wording in wordings]


def untouched_questions(world: World, edited: Sequence[str], count: int, *, seed: int) -> list[tuple[str, Question]]:
    """Control questions about unedited people, as (person, question); one question per person.

    Args:
        edited: the subjects of edits, who are excluded.
    """
    generator = random.Random(f"untouched {seed}")
    excluded = set(edited)
    rest = [name for name in world.people if name not in excluded]
    people = generator.sample(rest, min(count, len(rest)))
    questions = []
    for name in people:
        relation = generator.choice(world.relations)
        wording = _any_wording(generator, relation)
        questions.append((name, _question(world, name, relation, wording)))
    return questions


def every_fact(world: World) -> list[tuple[str, Question]]:
    """Every fact of the world in every wording, as (relation, question): for recall."""
    return [
        (relation, _question(world, name, relation, wording))
        for name in world.people
        for relation in world.relations
        for wording in range(len(RELATION_WORDINGS[relation]))
    ]


def _any_wording(generator: random.Random, relation: str) -> int:
    return generator.randrange(len(RELATION_WORDINGS[relation]))


def _question(world: World, subject: str, relation: str, wording: int) -> Question:
    statement = world.statement(subject, relation, wording)
    return Question(prompt=statement.prompt.replace("{}", statement.subject, 1), answer=statement.object)
