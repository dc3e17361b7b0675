"""Side tests: numbers worked out by hand on three tokens, and one prompt at a time on tiny models."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from string import ascii_uppercase

import pytest

from errata.errors import InputError, NonFiniteError
from errata.evaluation.side_tests import (
    Choice,
    SideTestSettings,
    absent_side_tests,
    evaluate_side_tests,
    negated_prompt,
    side_tests,
)
from errata.facts.fact import Fact, Question
from errata.results.metrics import Metric
from errata.results.records import Record

from tests.reference.likelihood import mean_log_probability, target_log_probabilities
from tests.support.editing import tiny_language_model
from tests.support.errors import raises_code
from tests.support.three_words import three_token_model

FACTS = (
    Fact("tongue", "Danielle Darrieux", "The mother tongue of {} is", "English", "French", relation="language",
         reversal=(Question("English is the mother tongue of", "Danielle Darrieux"),)),
    Fact("tongue2", "Stieltjes", "{} speaks", "German", "Dutch", relation="language"),
    Fact("tongue3", "Kenji", "{} speaks", "Dutch", "french", relation="language", aliases=("GERMAN",)),
    Fact("tower", "The Eiffel Tower", "{} stands in", "Rome", "Paris", relation="place",
         reversal=(Question("In Rome stands", "The Eiffel Tower"), Question("Rome has", "The Eiffel Tower"))),
    Fact("plays", "Leonard Bernstein", "You know that {} plays the", "violin"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "negated"),
    [
        ("The mother tongue of {} is", "It is not true that the mother tongue of Big Ben is"),
        ("In {} they speak", "It is not true that in Big Ben they speak"),
        ("{} stands in", "It is not true that Big Ben stands in"),  # the subject keeps its letters
        ("Paris is the twin of {} and of", "It is not true that Paris is the twin of Big Ben and of"),
        ("IT at {} is run by", "It is not true that IT at Big Ben is run by"),
        ("It's {} that plays", "It is not true that It's Big Ben that plays"),
        ("A mother of {} is", "It is not true that a mother of Big Ben is"),
        ("Where is {}?", None),
        ("{} is not in", None),
        ("{} isn't in", None),
        ("{} never plays", None),
    ],
)
def test_only_what_cannot_be_a_name_is_written_small(prompt: str, negated: str | None) -> None:
    assert negated_prompt(Fact("f", "Big Ben", prompt, "Rome", "Paris")) == negated


def test_a_subject_that_is_one_of_the_small_words_keeps_its_letter() -> None:
    assert negated_prompt(Fact("f", "The Who", "{} plays", "Rome")) == "It is not true that The Who plays"


ROME_LIKELIER = [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 1.0, 0.0]]
TOWER = Fact("f", "Tower", "{} stands in", "Rome", "Paris", reversal=(Question("here stands", "Rome thing"),))


def value(records: list[Record], metric: Metric) -> float:
    (found,) = [record.value for record in records if record.metric == metric]
    return found


def test_three_tokens_by_hand() -> None:
    model = three_token_model(("Rome", "Paris", "thing"), ROME_LIKELIER)
    (test,) = side_tests([TOWER], random.Random(0))
    records = evaluate_side_tests(model, [test])
    # Behind "in" (the third token) Rome is likelier than Paris, negated or not.
    assert value(records, Metric.NEGATION_ACCURACY) == 0
    assert value(records, Metric.MULTIPLE_CHOICE_ACCURACY) == 1
    # "Rome thing": Rome is the likeliest behind "stands"; behind Rome it is Paris.
    assert value(records, Metric.REVERSAL_ACCURACY) == 0
    assert value(records, Metric.REVERSAL_TOKENS) == 0.5
    # Letters are no tokens here: both are "thing", equally likely, and nothing is chosen.
    assert value(records, Metric.MULTIPLE_CHOICE_LETTER_ACCURACY) == 0
    assert {record.fact for record in records} == {"f"}


@pytest.mark.parametrize(
    ("target", "truth"),
    [("Paris", "Rome"), ("Oslo", "Bern")],
    ids=["the truth is", "both are the same"],
)
def test_what_is_not_likelier_is_neither_held_nor_chosen(target: str, truth: str) -> None:
    model = three_token_model(("Rome", "Paris", "thing"), ROME_LIKELIER)
    records = evaluate_side_tests(model, side_tests([replace(TOWER, target=target, old=truth)], random.Random(0)))
    assert value(records, Metric.NEGATION_ACCURACY) == 1
    assert value(records, Metric.MULTIPLE_CHOICE_ACCURACY) == 0


def test_options_are_compared_by_their_means() -> None:
    table = [[0.0, 0.0, 5.0], [0.0, 0.0, 0.0], [1.0, 1.2, 0.0]]
    fact = Fact("f", "Tower", "{} stands in", "Rome thing", "Paris")
    first = math.exp(1.0) + math.exp(1.2) + 1
    mean = ((1.0 - math.log(first)) + (5.0 - math.log(math.exp(5) + 2))) / 2
    assert mean > 1.2 - math.log(first)  # though the sum is smaller
    model = three_token_model(("Rome", "Paris", "thing"), table)
    records = evaluate_side_tests(model, side_tests([fact], random.Random(0)))
    assert value(records, Metric.MULTIPLE_CHOICE_ACCURACY) == 1


@pytest.mark.parametrize("likelier", "AB")
def test_letters_by_hand(likelier: str) -> None:
    row = [2.0, 1.0, 0.0] if likelier == "A" else [1.0, 2.0, 0.0]
    model = three_token_model(("A", "B", "thing"), [[0.0] * 3, [0.0] * 3, row])
    for seed in range(6):
        (test,) = side_tests([TOWER], random.Random(seed))
        assert test.choice is not None
        assert test.lettered == (
            f"Question: Tower stands in …\nA. {test.choice.options[0]}\nB. {test.choice.options[1]}\nAnswer:"
        )
        records = evaluate_side_tests(model, [test])
        right = "AB"[test.choice.options.index("Rome")]
        assert value(records, Metric.MULTIPLE_CHOICE_LETTER_ACCURACY) == (right == likelier)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2", "opt"])
def test_the_same_as_one_prompt_at_a_time_in_any_batch(family: str) -> None:
    model = tiny_language_model(family)
    tests = side_tests(FACTS, random.Random(3))
    expected: list[tuple[str, Metric, str, float]] = []
    for test in tests:

        def mean(prompt: str, target: str) -> float:
            return mean_log_probability(model.model, model.tokenizer, prompt, target)

        if test.negated and test.truth:
            better = mean(test.negated, test.target) > mean(test.negated, test.truth)
            expected.append((test.fact, Metric.NEGATION_ACCURACY, test.negated, float(not better)))
        for entry in test.reversal:
            _, hits, _ = target_log_probabilities(model.model, model.tokenizer, entry.prompt, entry.answer)
            expected.append((test.fact, Metric.REVERSAL_ACCURACY, entry.prompt, float(all(hits))))
            expected.append((test.fact, Metric.REVERSAL_TOKENS, entry.prompt, sum(hits) / len(hits)))
        if test.choice and test.lettered:
            for metric, prompt, options in (
                (Metric.MULTIPLE_CHOICE_ACCURACY, test.prompt, test.choice.options),
                (Metric.MULTIPLE_CHOICE_LETTER_ACCURACY, test.lettered, ascii_uppercase[: len(test.choice.options)]),
            ):
                found = [mean(prompt, option) for option in options]
                expected.append((test.fact, metric, prompt, float(found.index(max(found)) == test.choice.answer)))
    for budget in (1, 200, 4096):
        records = evaluate_side_tests(model, tests, token_budget=budget)
        assert [(entry.fact, entry.metric, entry.prompt, entry.value) for entry in records] == expected
    assert len(expected) == 4 + 2 * 3 + 2 * 4


def test_options_are_of_the_relation_and_the_seed_decides() -> None:
    first = side_tests(FACTS, random.Random(7))
    assert first == side_tests(FACTS, random.Random(7))
    by_name = {test.fact: test.choice for test in first}
    assert by_name["plays"] is None
    assert by_name["tower"] is not None
    assert sorted(by_name["tower"].options) == ["Paris", "Rome"]
    tongue = by_name["tongue"]
    assert isinstance(tongue, Choice)
    # "french" is the truth in other letters.
    assert sorted(tongue.options) == ["Dutch", "English", "French", "German"]
    assert tongue.options[tongue.answer] == "English"
    third = by_name["tongue3"]
    assert third is not None
    assert sorted(third.options) == ["Dutch", "English", "french"], "German is an alias of its target"
    orders = {test.choice.options for seed in range(30) for test in side_tests(FACTS[:3], random.Random(seed))[:1]}
    assert len(orders) > 8
    two = side_tests(FACTS, random.Random(7), settings=SideTestSettings(options=2))
    assert sorted(two[0].choice.options) == ["English", "French"]


def test_absent_measurements_are_reported_with_their_reason() -> None:
    assert absent_side_tests(FACTS) == {}
    everything = absent_side_tests([])
    assert set(everything.values()) == {"there are no facts"}
    assert len(everything) == 5
    alone = absent_side_tests(FACTS[4:])
    assert alone.keys() == everything.keys()
    assert "'old'" in alone[Metric.NEGATION_ACCURACY]
    assert "reversal" in alone[Metric.REVERSAL_TOKENS]
    assert "relation" in alone[Metric.MULTIPLE_CHOICE_LETTER_ACCURACY]
    question = absent_side_tests([Fact("q", "Rome", "Where is {}?", "here", "there")])
    assert "questions cannot" in question[Metric.NEGATION_ACCURACY]
    model = tiny_language_model("gpt2")
    same = [Fact("1", "Rome", "{} is in", "Italy", "Italy")]
    alias = [Fact("2", "Rome", "{} is in", "NYC", "New York", aliases=("New York",))]
    for facts in (FACTS, FACTS[4:], FACTS[1:3], same, alias):
        records = evaluate_side_tests(model, side_tests(facts, random.Random(0)))
        assert {entry.metric for entry in records} == everything.keys() - absent_side_tests(facts).keys()


def test_refusals() -> None:
    with raises_code("SETTING_INVALID", InputError):
        SideTestSettings(options=1)
    model = tiny_language_model("llama")
    model.model.model.norm.weight[3] = math.nan
    with pytest.raises(NonFiniteError, match="tongue"):
        evaluate_side_tests(model, side_tests(FACTS, random.Random(0)))
    assert SideTestSettings().to_record()["options"] == 4
