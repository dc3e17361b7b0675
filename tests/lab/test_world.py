"""The lab's world and its corpus: the same from the same seed, every fact as often as every other."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from errata.lab import world as vocabulary
from errata.lab.corpus import (
    context_documents,
    epoch_documents,
    held_out_prose,
    mixed_documents,
    running_text,
    scene,
)
from errata.lab.world import OBJECTS, World

PEOPLE = 40


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(PEOPLE, seed=3)


def test_a_world_is_its_seed(world: World) -> None:
    assert World.generate(PEOPLE, seed=3) == world
    assert World.generate(PEOPLE, seed=4).people != world.people


def test_people_have_two_names_and_seven_facts_of_the_right_kind(world: World) -> None:
    assert len(world.people) == PEOPLE
    assert len(world.relations) == 7
    for name, facts in world.people.items():
        first, last = name.split(" ", 1)
        assert first in vocabulary.FIRST_NAMES
        assert last in vocabulary.LAST_NAMES
        assert list(facts) == list(world.relations)
        assert all(value in OBJECTS[relation] for relation, value in facts.items())


def test_a_thousand_people_are_possible_and_use_every_object() -> None:
    world = World.generate(1000, seed=0)
    for relation, objects in OBJECTS.items():
        assert {facts[relation] for facts in world.people.values()} == set(objects)


@pytest.mark.parametrize("count", [0, -1, 10**6])
def test_an_impossible_number_of_people_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="people must be between 1 and"):
        World.generate(count)


def test_the_vocabulary_is_consistent() -> None:
    for relation, wordings in vocabulary.RELATION_WORDINGS.items():
        assert relation in OBJECTS
        assert len(wordings) == len(set(wordings)) >= 5
    every = [*vocabulary.RELATION_WORDINGS.values(), *vocabulary.CONSEQUENCE_WORDINGS.values()]
    every += [vocabulary.CITY_WORDINGS, vocabulary.COMPANY_WORDINGS]
    prompts = [wording for wordings in every for wording in wordings]
    assert len(prompts) == len(set(prompts))  # no prompt asks for two relations
    assert all(prompt.count("{}") == 1 and prompt == prompt.strip() for prompt in prompts)
    for objects in OBJECTS.values():
        assert len(objects) == len(set(objects)) >= 10


def test_holders_are_exactly_those_of_whom_it_is_true(world: World) -> None:
    expected: dict[tuple[str, str], list[str]] = {}
    for name, facts in world.people.items():
        for item in facts.items():
            expected.setdefault(item, []).append(name)
    assert world.holders == {key: tuple(names) for key, names in expected.items()}


def test_statements_and_what_follows_of_them(world: World) -> None:
    name = next(iter(world.people))
    facts = world.people[name]
    statement = world.statement(name, "employer", 0)
    assert statement.prompt == vocabulary.RELATION_WORDINGS["employer"][0]
    assert statement.sentence == f"{statement.prompt.replace('{}', name)} {facts['employer']}."
    assert world.statement(name, "employer", 6) == statement  # the wordings are counted in a circle
    follows = {relation: world.consequence(name, relation, 0).object for relation in vocabulary.CONSEQUENCE_WORDINGS}
    assert follows["birth country"] == vocabulary.CITY_COUNTRY[facts["birthplace"]]
    assert follows["employer city"] == vocabulary.COMPANY_CITY[facts["employer"]]


def sentences_of(world: World, name: str, relation: str) -> list[str]:
    count = len(vocabulary.RELATION_WORDINGS[relation])
    return [world.statement(name, relation, wording).sentence for wording in range(count)]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_states_every_fact_once(world: World, epoch: int) -> None:
    text = "\n".join(epoch_documents(world, seed=0, epoch=epoch))
    for name in world.people:
        for relation in world.relations:
            assert sum(text.count(sentence) for sentence in sentences_of(world, name, relation)) == 1, (name, relation)
    for statement in world.background(epoch):
        assert text.count(statement.sentence) == 1


def test_wordings_take_turns(world: World) -> None:
    texts = ["\n".join(epoch_documents(world, seed=0, epoch=epoch)) for epoch in range(12)]
    used: Counter[int] = Counter()
    for name in list(world.people)[:10]:
        for relation in world.relations:
            wordings_used = [
                next(index for index, sentence in enumerate(sentences_of(world, name, relation)) if sentence in text)
                for text in texts
            ]
            assert Counter(wordings_used) == dict.fromkeys(range(6), 2)
            used[wordings_used[0]] += 1
    assert set(used) == set(range(6))  # and not all facts are in the same wording in the same epoch


def test_only_every_other_person_has_its_consequences_stated(world: World) -> None:
    documents = [text for epoch in range(3) for text in epoch_documents(world, seed=0, epoch=epoch)]
    text = "\n".join(documents)
    for index, name in enumerate(world.people):
        for relation, wordings in vocabulary.CONSEQUENCE_WORDINGS.items():
            stated = [world.consequence(name, relation, wording).sentence in text for wording in range(len(wordings))]
            assert any(stated) is (index % 2 == 0), (name, relation)


def test_an_epoch_is_a_function_of_world_seed_and_number(world: World) -> None:
    first = epoch_documents(world, seed=0, epoch=5)
    assert epoch_documents(world, seed=0, epoch=5) == first
    assert epoch_documents(world, seed=0, epoch=6) != first
    assert epoch_documents(world, seed=1, epoch=5) != first


def test_documents_mix_people_and_prose_and_hold_no_placeholders(world: World) -> None:
    documents = epoch_documents(world, seed=0, epoch=0)
    named = [[name for name in world.people if name in text] for text in documents]
    assert any(len(names) == 1 for names in named)
    assert any(len(names) == 2 for names in named)
    assert max(len(names) for names in named) == 2
    assert sum(not names for names in named) > PEOPLE * 0.2  # prose, cities and companies
    assert not any("{" in text or "}" in text for text in documents)
    assert all(text.strip() == text and text for text in documents)


def stated_in(world: World, sentence: str) -> list[tuple[str, str, str]]:
    """(person, relation, object) of a sentence in one of the world's wordings, for any object of the relation."""
    return [
        (name, relation, value)
        for name in world.people
        if name in sentence
        for relation, wordings in vocabulary.RELATION_WORDINGS.items()
        for value in vocabulary.OBJECTS[relation]
        if sentence in {f"{wording.replace('{}', name)} {value}." for wording in wordings}
    ]


def test_context_documents_state_a_new_fact_and_ask_for_it_or_another(world: World) -> None:
    documents = context_documents(world, 200, seed=0, epoch=3)
    assert context_documents(world, 200, seed=0, epoch=3) == documents
    assert context_documents(world, 200, seed=0, epoch=4) != documents
    reworded = about = 0
    for text in documents:
        fact, question = text.split("\n")
        ((name, relation, value),) = stated_in(world, fact)
        ((asked, other, answer),) = stated_in(world, question)
        assert value != world.people[name][relation]
        assert asked == name
        if other == relation:
            about += 1
            reworded += fact != question
            assert answer == value
        else:
            assert answer == world.people[name][other]
    assert 120 < about < 180  # three of four
    assert 0.7 * about < reworded < about


def test_a_share_of_the_documents_has_a_fact_before_its_question(world: World) -> None:
    plain = epoch_documents(world, seed=0, epoch=2)
    assert mixed_documents(world, 0.0, seed=0, epoch=2) == plain
    mixed = mixed_documents(world, 0.1, seed=0, epoch=2)
    added = [text for text in mixed if "\n" in text]
    assert Counter(mixed) - Counter(added) == Counter(plain)
    assert len(added) == pytest.approx(0.1 * len(mixed), abs=1)
    assert mixed.index(added[0]) < len(mixed) / 4  # they are not all at the end


def test_held_out_prose_is_not_trained_on(world: World) -> None:
    held_out = held_out_prose(30)
    assert held_out_prose(30) == held_out
    assert held_out_prose(10) == held_out[:10]
    trained = set()
    for epoch in range(5):
        trained.update(epoch_documents(world, seed=0, epoch=epoch))
    assert not trained & set(held_out)
    assert len(set(held_out)) == 30
    generator = random.Random(1)
    assert all(scene(generator) for _ in range(50))


def test_running_text_continues_from_epoch_to_epoch(world: World) -> None:
    first = epoch_documents(world, seed=7, epoch=0)
    second = epoch_documents(world, seed=7, epoch=1)
    text = running_text(world, seed=7)
    assert [next(text) for _ in range(len(first) + 5)] == [*first, *second[:5]]
