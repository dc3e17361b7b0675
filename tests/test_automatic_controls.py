"""Control questions that are drawn where the user has none."""

from __future__ import annotations

import pytest

from errata.evaluation.controls import (
    OWN_PROMPTS,
    Controls,
    first_phrase,
    known_facts,
    says_something,
    with_automatic_controls,
)
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact, FactSet, Question
from errata.facts.joining import holds_name
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel
from errata.models.likelihood import score
from errata.results.metrics import Metric

from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def lab() -> LanguageModel:
    return LanguageModel.load("lab")


@pytest.fixture(scope="module")
def facts() -> FactSet:
    """Three facts about people of the lab's world, with no questions of any kind."""
    drawn = lab_facts(lab_world(), 3, seed=4)
    return FactSet(tuple(Fact(fact.id, fact.subject, fact.prompt, fact.target, old=fact.old) for fact in drawn))


@pytest.fixture(scope="module")
def drawn(lab: LanguageModel, facts: FactSet) -> Controls:
    return with_automatic_controls(lab, facts, per_fact=2)


def test_the_answers_are_what_the_unedited_model_says(lab: LanguageModel, drawn: Controls) -> None:
    questions = [question for fact in drawn.facts for question in (*fact.own, *fact.neighbours)]
    assert len(questions) == drawn.count > 0
    assert all(found.correct for found in score(lab, [(each.prompt, each.answer) for each in questions]))


def test_there_are_at_most_so_many_of_each_kind_and_they_are_marked(facts: FactSet, drawn: Controls) -> None:
    for fact in drawn.facts:
        for field in ("own", "neighbours"):
            assert len(getattr(fact, field)) <= 2
            assert ((fact.id, field) in drawn.automatic) == bool(getattr(fact, field))
    assert [fact.id for fact in drawn.facts] == [fact.id for fact in facts]
    assert drawn.facts.places == facts.places


def test_other_subjects_are_asked_the_facts_own_prompt_and_the_same_subject_something_else(drawn: Controls) -> None:
    shipped = {fact.subject for fact in known_facts()}
    for fact in drawn.facts:
        before, after = fact.prompt.split("{}")
        subjects = [each.prompt.removeprefix(before).removesuffix(after) for each in fact.neighbours]
        assert set(subjects) <= shipped - {fact.subject}
        assert all(any(each.prompt == text.replace("{}", fact.subject) for text in OWN_PROMPTS) for each in fact.own)


def test_drawn_questions_about_other_subjects_measure_specificity(lab: LanguageModel, drawn: Controls) -> None:
    asked = evaluate_facts(lab, drawn.facts)
    near = [record for record in asked if record.metric == Metric.SPECIFICITY_ACCURACY]
    assert {record.prompt for record in near} == {each.prompt for fact in drawn.facts for each in fact.neighbours}
    assert near
    assert all(record.value == 1 for record in near), "the answers are the model's own"
    assert not [record for record in asked if record.metric == Metric.UNRELATED_ACCURACY]


def test_an_edited_subject_is_never_a_control(lab: LanguageModel) -> None:
    edited = [fact for fact in known_facts() if fact.relation == "capital"]
    facts = FactSet(tuple(Fact(fact.id, fact.subject, fact.prompt, fact.target) for fact in edited))
    asked = [each.prompt for fact in with_automatic_controls(lab, facts).facts for each in fact.neighbours]
    assert asked
    assert not set(asked) & {fact.text for fact in edited}


def test_other_subjects_are_of_the_facts_kind_and_no_question_is_generated_twice(lab: LanguageModel) -> None:
    countries = {fact.subject for fact in known_facts() if fact.relation in ("capital", "language", "continent")}
    facts = FactSet(tuple(Fact(name, name, "The capital of {} is", "Bonn") for name in ("France", "Italy", "Japan")))
    found = with_automatic_controls(lab, facts).facts
    asked = [each.prompt for fact in found for each in fact.neighbours]
    assert asked
    assert {prompt.removeprefix("The capital of ").removesuffix(" is") for prompt in asked} <= countries
    assert len(set(asked)) == len(asked)


def test_no_answer_names_what_the_edit_changes(lab: LanguageModel, drawn: Controls) -> None:
    fact = next(fact for fact in drawn.facts if fact.own)
    word = fact.own[0].answer.split()[0]
    again = Fact(fact.id, fact.subject, fact.prompt, word, old=None)
    for other in with_automatic_controls(lab, FactSet((again,)), per_fact=9).facts:
        assert not any(holds_name(each.answer, word) for each in (*other.own, *other.neighbours))


def test_an_answer_with_a_word_that_only_begins_like_the_target_is_kept(lab: LanguageModel, drawn: Controls) -> None:
    questions = [(fact, question) for fact in drawn.facts for question in fact.own if says_something(question.answer)]
    fact, question = max(questions, key=lambda pair: len(pair[1].answer))
    word = max(question.answer.split(), key=len)
    again = Fact(fact.id, fact.subject, fact.prompt, word[:-1])
    (found,) = with_automatic_controls(lab, FactSet((again,)), per_fact=9).facts
    assert question in found.own


def test_no_answer_names_what_another_fact_of_the_subject_changes(lab: LanguageModel, drawn: Controls) -> None:
    fact = next(fact for fact in drawn.facts if fact.own)
    word = fact.own[0].answer.split()[0]
    one = Fact("one", fact.subject, fact.prompt, "Rome")
    other = Fact("other", fact.subject, "{} was born in", "Bonn", old=word)
    for found in with_automatic_controls(lab, FactSet((one, other)), per_fact=9).facts:
        assert not any(holds_name(each.answer, word) for each in found.own)


def test_a_prompt_that_ends_in_a_space_is_asked_with_it(lab: LanguageModel, facts: FactSet) -> None:
    fact = Fact("a", facts[0].subject, facts[0].prompt + " ", facts[0].target, joiner="")
    found = with_automatic_controls(lab, FactSet((fact,)), per_fact=9).facts[0]
    assert found.neighbours
    assert all(each.prompt.endswith(" ") for each in found.neighbours)
    assert all(entry.correct for entry in score(lab, [each.pair for each in found.neighbours]))


def test_what_the_user_asks_stays_and_nothing_of_its_kind_is_added(lab: LanguageModel, facts: FactSet) -> None:
    given = Question("The river is", "long")
    fact = Fact("a", facts[0].subject, facts[0].prompt, "Rome", neighbours=(given,), own=(given,))
    found = with_automatic_controls(lab, FactSet((fact,)))
    assert found.facts.facts == (fact,)
    assert found.count == 0
    assert not found.automatic


def test_the_same_questions_every_time(lab: LanguageModel, facts: FactSet, drawn: Controls) -> None:
    assert with_automatic_controls(lab, facts, per_fact=2) == drawn


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_a_model_that_says_nothing_sensible_gives_few_questions_and_no_error(family: str, facts: FactSet) -> None:
    found = with_automatic_controls(LanguageModel(*tiny_model(family)), facts)
    assert len(found.facts) == len(facts)


def test_an_answer_is_a_phrase_and_no_filler() -> None:
    assert first_phrase(" Tokyo, and the") == "Tokyo"
    assert first_phrase(" the city of Barcelona and") == "the city of Barcelona"
    assert first_phrase("巴黎。它是") == "巴黎"
    assert [says_something(text) for text in ("Tokyo", "1945", "巴黎", "the capital of the", "")] == [
        True, True, True, False, False,
    ]  # fmt: skip
