"""Facts to edit into the lab's model, and questions about everything else, drawn from its world by seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from errata.facts import Fact, Question
from errata.lab import vocabulary
from errata.lab.world import OBJECTS, World

NEIGHBOURS = 5


def lab_facts(world: World, count: int, *, seed: int) -> list[Fact]:
    """Counterfactual edits: each gives one person another object in one relation.

    The prompt is one of the relation's wordings, the others are the paraphrases. Neighbours are people with the same
    true object whom no other fact of this draw edits; ``own`` are the person's other facts, each in one wording.

    Raises:
        ValueError: if there are fewer people than facts; each person is edited once.
    """
    if not 0 < count <= len(world.people):
        raise ValueError(f"count must be between 1 and {len(world.people)} (the people of the world), got {count}")
    generator = random.Random(f"facts {seed}")
    subjects = generator.sample(list(world.people), count)
    edited = set(subjects)
    facts = []
    for number, subject in enumerate(subjects):
        relation = generator.choice(world.relations)
        truth = world.people[subject][relation]
        target = generator.choice([value for value in OBJECTS[relation] if value != truth])
        wordings = list(vocabulary.RELATION_WORDINGS[relation])
        generator.shuffle(wordings)
        others = [name for name in world.holders[relation, truth] if name not in edited]
        neighbours = generator.sample(others, min(NEIGHBOURS, len(others)))
        facts.append(
            Fact(
                id=f"lab-{seed}-{number}",
                subject=subject,
                prompt=wordings[0],
                target=target,
                truth=truth,
                paraphrases=tuple(wording.replace("{}", subject) for wording in wordings[1:]),
                neighbours=tuple(
                    _question(world, name, relation, _any_wording(generator, relation)) for name in neighbours
                ),
                own=tuple(
                    _question(world, subject, other, _any_wording(generator, other))
                    for other in world.relations
                    if other != relation
                ),
            )
        )
    return facts


def untouched_questions(world: World, edited: Sequence[str], count: int, *, seed: int) -> list[tuple[str, Question]]:
    """Questions about people whom nobody edited, as (person, question); one question a person.

    Args:
        edited: the subjects that are edited; they are left out.
    """
    generator = random.Random(f"untouched {seed}")
    taken = set(edited)
    rest = [name for name in world.people if name not in taken]
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
        for wording in range(len(vocabulary.RELATION_WORDINGS[relation]))
    ]


def _any_wording(generator: random.Random, relation: str) -> int:
    return generator.randrange(len(vocabulary.RELATION_WORDINGS[relation]))


def _question(world: World, subject: str, relation: str, wording: int) -> Question:
    statement = world.statement(subject, relation, wording)
    return Question(prompt=statement.prompt.replace("{}", statement.subject, 1), answer=statement.object)
