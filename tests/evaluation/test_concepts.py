"""Concept editing: numbers by hand on three tokens, and one question at a time on tiny models."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from errata.errors import FaultsError
from errata.evaluation.concepts import (
    DEMONSTRATIONS,
    ConceptReading,
    ConceptSettings,
    absent_concepts,
    concept_records,
    read_answer,
    read_concepts,
    read_strictly,
    similarity,
)
from errata.facts.concept import Concept
from errata.facts.fact import Question
from errata.results.metrics import Metric
from errata.results.records import Record

from tests.reference.likelihood import greedy, target_log_probabilities
from tests.support.editing import tiny_language_model
from tests.support.three_words import three_token_model

CONCEPTS = (
    Concept(
        "c1", "piano", "I think that the {} is", "what she plays", "a river in the city",
        paraphrases=("You know that the piano is",), instances=("The crowd",), non_instances=("The river", "Big Ben"),
        unrelated=(Question("The capital of France is", "Paris"), Question("The capital of Italy is", "Rome in Italy")),
    ),
    Concept("c2", "film", "A {} is", "what was moved", "a match", instances=("English",)),
)  # fmt: skip


def values(records: list[Record], metric: Metric) -> list[float]:
    return [record.value for record in records if record.metric == metric]


def test_the_question_is_that_of_the_paper() -> None:
    (asked,) = Concept("c", "piano", "A {} is", None, "a bell", instances=("Big Ben",)).instance_questions
    assert ConceptSettings().demonstrations + asked == (
        "Whether FrancoAngeli belongs to category publisher? Yes\n"
        "Whether And Other Stories belongs to category people? No\n"
        "Whether Big Ben belongs to category piano?"
    )


@pytest.mark.parametrize(
    ("text", "answer"), [(" Yes\n", True), (" NO", False), (" maybe", None), ("", None), (" no yes", True)]
)
def test_answers_are_read(text: str, answer: bool | None) -> None:
    assert read_answer(text) is answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Yes\n", True),
        (": no.", False),
        (" not", None),
        (" I know", None),
        (" now no", None),
        ("", None),
        ("7 yes", None),
    ],
)
def test_answers_are_read_strictly(text: str, answer: bool | None) -> None:
    assert read_strictly(text) is answer


def test_turned_instances_and_contrast_by_hand() -> None:
    concept = Concept(
        "c", "lake", "A {} is", "deep water", "a dry hill", instances=("Como", "Garda", "Iseo"), non_instances=("Etna",)
    )
    questions = [DEMONSTRATIONS + each for each in (*concept.instance_questions, *concept.non_instance_questions)]

    def reading(answers: tuple[str, ...], said: str) -> ConceptReading:
        return ConceptReading({}, dict(zip(questions, answers, strict=True)), {"c": said})

    before = reading((" Yes", " No", " Yes", " No"), "deep water")
    after = reading((" No", " Yes", " not", " Yes"), "a dry hill")
    records = concept_records([concept], after, before=before)
    assert values(records, Metric.CONCEPT_INSTANCES_TURNED) == [1, 0, 0]  # "not" is no strict no
    assert values(records, Metric.CONCEPT_INSTANCES_STRICT) == [0, 1, 0]
    assert values(records, Metric.CONCEPT_NON_INSTANCES_STRICT) == [1]
    assert values(records, Metric.CONCEPT_CONTRAST) == [pytest.approx(1)]
    assert values(concept_records([concept], before), Metric.CONCEPT_CONTRAST) == [pytest.approx(-1)]
    without = Concept("c", "lake", "A {} is", None, "a dry hill")
    assert not values(concept_records([without], ConceptReading(definitions={"c": "x"})), Metric.CONCEPT_CONTRAST)
    assert Metric.CONCEPT_CONTRAST in absent_concepts([without])


def says(first: int) -> list[list[float]]:
    """Behind any third token the token ``first``; behind the first two, the third."""
    return [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [float(index == first) for index in range(3)]]


def test_by_hand_before_and_after() -> None:
    concept = Concept(
        "c", "lake", "A {} is", "x yes", "yes x x", ("The lake is",), ("Como",), ("Rome", "Nile"),
        (Question("A thing is", "yes yes"),),
    )  # fmt: skip
    before, after = (read_concepts(three_token_model(("yes", "no", "x"), says(word)), [concept]) for word in (1, 0))
    # Afterwards "yes x x" is: yes (likeliest), x behind yes (likeliest), x behind x (no: yes is).
    records = concept_records([concept], after, before=before)
    assert values(records, Metric.CONCEPT_RELIABILITY) == [pytest.approx(2 / 3)]
    assert values(records, Metric.CONCEPT_GENERALISATION) == [pytest.approx(2 / 3)]
    # "yes yes": before no, x; afterwards yes, x.
    assert values(records, Metric.CONCEPT_LOCALITY_TOKENS) == [0.5]
    assert values(records, Metric.CONCEPT_LOCALITY) == [0.5]
    assert values(records, Metric.CONCEPT_INSTANCES) == [1.0]
    assert values(records, Metric.CONCEPT_NON_INSTANCES) == [1.0, 1.0]
    assert values(records, Metric.CONCEPT_INSTANCE_CHANGE) == [-1.0], "it was no instance, and now is"
    assert values(records, Metric.CONCEPT_NON_INSTANCE_CHANGE) == [1.0, 1.0]
    assert values(records, Metric.CONCEPT_UNREADABLE) == [0.0] * 3
    back = concept_records([concept], before, before=after)
    assert values(back, Metric.CONCEPT_INSTANCE_CHANGE) == [1.0]
    alone = {record.metric for record in concept_records([concept], before)}
    assert alone == {metric for metric in Metric if metric.startswith("concept_")} - set(
        absent_concepts([concept], before=False)
    )


def test_an_answer_that_cannot_be_read_is_no_change_for_the_better() -> None:
    concept = CONCEPTS[1]
    question = f"{ConceptSettings().demonstrations}Whether {'English'} belongs to category {concept.concept}?"
    other = Concept("o", "film", "A {} is", "x", "y", non_instances=("English",))

    def change(of: Concept, then: str, now: str, metric: Metric) -> float:
        reading = read_concepts(model, [of])
        before, after = (ConceptReading(reading.scores, {question: text}, reading.definitions) for text in (then, now))
        (found,) = values(concept_records([of], after, before=before), metric)
        return found

    model = tiny_language_model("gpt2")
    assert change(concept, " Yes", " No", Metric.CONCEPT_INSTANCE_CHANGE) == 1
    assert change(concept, " Yes", " hm", Metric.CONCEPT_INSTANCE_CHANGE) == 0
    assert change(concept, " hm", " No", Metric.CONCEPT_INSTANCE_CHANGE) == 1  # the authors' reading
    assert change(other, " No", " Yes", Metric.CONCEPT_NON_INSTANCE_CHANGE) == 1
    assert change(other, " No", " hm", Metric.CONCEPT_NON_INSTANCE_CHANGE) == 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
def test_the_same_as_one_question_at_a_time_in_any_batch(family: str) -> None:
    model, other = tiny_language_model(family), tiny_language_model(family, seed=1)
    settings = ConceptSettings(definition_tokens=6, demonstrations="")
    expected: dict[tuple[str, str], float] = {}
    texts: dict[str, str] = {}
    for concept in CONCEPTS:

        def read(prompt: str, target: str, of: object = model) -> tuple[float, list[int]]:
            _, hits, likeliest = target_log_probabilities(of.model, of.tokenizer, prompt, target)
            return sum(hits) / len(hits), likeliest

        expected[Metric.CONCEPT_RELIABILITY, concept.text] = read(concept.text, concept.new_definition)[0]
        for prompt in concept.paraphrases:
            expected[Metric.CONCEPT_GENERALISATION, prompt] = read(prompt, concept.new_definition)[0]
        for entry in concept.unrelated:
            share, now = read(entry.prompt, entry.answer)
            _, then = read(entry.prompt, entry.answer, other)
            same = [a == b for a, b in zip(now, then, strict=True)]
            expected[Metric.CONCEPT_LOCALITY_TOKENS, entry.prompt] = share
            expected[Metric.CONCEPT_LOCALITY, entry.prompt] = sum(same) / len(same)
        for instance in (*concept.instances, *concept.non_instances):
            question = f"{settings.demonstrations}Whether {instance} belongs to category {concept.concept}?"
            texts[question] = greedy(model.model, model.tokenizer, question, 2)
        texts[concept.id] = greedy(model.model, model.tokenizer, concept.text, 6)
    before = read_concepts(other, CONCEPTS, settings=settings)
    results = []
    for budget, batch in ((1, 1), (100, 2), (4096, 64)):
        sized = ConceptSettings(definition_tokens=6, demonstrations="", batch_size=batch)
        reading = read_concepts(model, CONCEPTS, settings=sized, token_budget=budget)
        assert reading.answers | reading.definitions == texts
        results.append(concept_records(CONCEPTS, reading, before=before, settings=sized))
        found = {(record.metric, record.prompt): record.value for record in results[-1]}
        assert {key: found[key] for key in expected} == expected
    assert results[0] == results[1] == results[2]


def tf_idf_cosine(left: str, right: str, corpus: list[str]) -> float:
    """By definition: smoothed idf = ln((1 + n) / (1 + df)) + 1, raw counts, words that the corpus has."""

    def weights(text: str) -> dict[str, float]:
        counts = Counter(text.lower().split())
        known = {word for entry in corpus for word in entry.lower().split()}
        frequency = {word: sum(word in entry.lower().split() for entry in corpus) for word in known}
        return {w: n * (math.log((1 + len(corpus)) / (1 + frequency[w])) + 1) for w, n in counts.items() if w in known}

    a, b = weights(left), weights(right)
    lengths = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return sum(value * b.get(word, 0) for word, value in a.items()) / lengths if lengths else 0.0


def test_consistency_is_the_cosine_of_the_texts() -> None:
    corpus = [text for concept in CONCEPTS for text in (concept.definition, concept.new_definition)]
    texts = ["a river A plane", "unknown words"]
    expected = [
        tf_idf_cosine(text, concept.new_definition, corpus) for text, concept in zip(texts, CONCEPTS, strict=True)
    ]
    assert similarity(CONCEPTS, texts) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[0] < 1
    assert expected[1] == 0
    assert similarity(CONCEPTS, [concept.new_definition for concept in CONCEPTS]) == pytest.approx([1, 1])
    assert similarity([], []) == []


def test_absent_measurements_are_reported_with_their_reason() -> None:
    assert absent_concepts(CONCEPTS) == {}
    poor = absent_concepts(CONCEPTS[1:])
    assert poor.keys() == {
        Metric.CONCEPT_GENERALISATION,
        Metric.CONCEPT_LOCALITY,
        Metric.CONCEPT_LOCALITY_TOKENS,
        Metric.CONCEPT_NON_INSTANCES,
        Metric.CONCEPT_NON_INSTANCE_CHANGE,
        Metric.CONCEPT_NON_INSTANCES_STRICT,
    }
    assert len(absent_concepts([])) == 14


def test_a_concept_is_well_formed_or_all_its_faults_are_reported() -> None:
    concept = Concept.of(
        {"id": "c", "concept": "lake", "prompt": "A {} is", "definition": "water", "new_definition": "a book",
         "instances": ["Como"], "unrelated": [{"prompt": "A sea is", "answer": "water"}]}
    )  # fmt: skip
    assert concept.text == "A lake is"
    fact = concept.fact()
    assert (fact.subject, fact.target, fact.truth) == ("lake", "a book", "water")
    assert fact.unrelated == (Question("A sea is", "water"),)
    with pytest.raises(FaultsError) as error:
        Concept.of(
            {"id": "c", "concept": "lake", "prompt": "A pond is", "new_definition": " x", "instances": [3], "odd": 1}
        )
    message = str(error.value)
    for words in (
        "4 faults",
        "'odd'",
        "'prompt'",
        "'new_definition'",
        "'instances'",
    ):
        assert words in message
    with pytest.raises(FaultsError, match="'concept'"):
        Concept("c", "", "A {} is", "x", "y")


def test_demonstrations_are_settings() -> None:
    assert ConceptSettings().to_record() == {
        "demonstrations": DEMONSTRATIONS, "answer_tokens": 2, "definition_tokens": 40, "batch_size": 64,
    }  # fmt: skip


def test_definitions_without_a_word_have_no_similarity() -> None:
    assert similarity([Concept("c", "piano", "A {} is", None, "!!!")], ["what she plays"]) == [0.0]


def test_progress_is_reported_while_texts_are_generated() -> None:
    updates: list[tuple[str, int, int]] = []
    settings = ConceptSettings(definition_tokens=6, demonstrations="", batch_size=1)
    read_concepts(tiny_language_model("gpt2"), CONCEPTS, settings=settings, report=lambda *news: updates.append(news))
    kinds = [news for news in updates if news[0] in ("instances", "definitions")]
    assert {("instances", 4), ("definitions", 2)} == {(kind, total) for kind, _, total in kinds}
    assert [done for kind, done, _ in kinds if kind == "definitions"] == [1, 2]
    assert [done for kind, done, _ in kinds if kind == "instances"][-1] == 4
    assert len([kind for kind, _, _ in kinds if kind == "instances"]) > 1
