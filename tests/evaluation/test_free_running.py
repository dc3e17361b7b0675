"""Free answers: by hand on three tokens, and against one token and one row at a time."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError

from errata.errors import InputError, NonFiniteError
from errata.evaluation.free_running import (
    CONTEXTS,
    WILD,
    FreeSettings,
    absent_free,
    absent_free_locality,
    answer_end,
    answer_freely,
    answer_of,
    evaluate_free,
    evaluate_free_locality,
    expected_answer,
    free_questions,
    locality_answers,
)
from errata.evaluation.judge import Case, Verdict
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel
from errata.models.prompts import encode
from errata.results.metrics import Metric
from errata.results.records import Record, summarise

from tests.reference.generation import continue_slowly
from tests.support.editing import tiny_language_model
from tests.support.three_tokens import set_logits, three_token_model

BARE = FreeSettings(contexts=("bare",))
FACT = Fact(
    "f",
    "Danielle Darrieux",
    "The mother tongue of {} is",
    "English",
    aliases=("the English language",),
    paraphrases=("Danielle Darrieux speaks", "In her films, Danielle Darrieux spoke"),
    portability=(Question("The country that Danielle Darrieux's mother tongue is from is", "England"),),
    neighbours=(Question("The mother tongue of Thomas Joannes Stieltjes is", "Dutch"),),
    unrelated=(Question("The capital of Italy is", "Rome"),),
)
OTHERS = (("u", Question("Big Ben stands in", "London")), ("u", Question("Rome", "Italy")))


class Answering:
    """A judge by a rule; None where it has none."""

    def __init__(self, rule: dict[str, bool]) -> None:
        self.rule = rule
        self.asked: list[Case] = []

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        self.asked += cases
        return [
            Verdict(self.rule[case.question]) if case.question in self.rule else Verdict(None, "HTTP 500")
            for case in cases
        ]


def values(records: list[Record]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(str(record.metric), []).append(record.value)
    return found


# By hand -----------------------------------------------------------------------------------------------------------

# Behind " Rome" comes a newline, behind a newline " Rome", behind "?" comes " Rome".
ROME = [[0.0, 9.0, 0.0], [9.0, 0.0, 0.0], [9.0, 0.0, 0.0]]
TOKENS = [" Rome", "\n", "?"]


def asked_of_three(**fields: object) -> Fact:
    return Fact("f", "??", "{}", **{"target": "Rome", **fields})  # type: ignore[arg-type]


def test_answers_by_hand() -> None:
    model = three_token_model(TOKENS, ROME)
    fact = asked_of_three(
        paraphrases=("???", "? Rome"), portability=(Question("????", "Paris"), Question("?????", "Rome"))
    )
    records = evaluate_free(model, [fact], BARE)
    assert values(records) == {
        "free_efficacy_exact": [1.0],
        "free_efficacy_contained": [1.0],
        "free_generalisation_exact": [1.0, 0.0],
        "free_generalisation_contained": [1.0, 0.0],
        "free_portability_exact": [0.0, 1.0],
        "free_portability_contained": [0.0, 1.0],
    }
    assert [(record.prompt, record.said) for record in records[::2]] == [
        ("??", "Rome"),
        ("???", "Rome"),
        ("? Rome", ""),
        ("????", "Rome"),
        ("?????", "Rome"),
    ]
    assert summarise(records, "after")[0].mean == 1.0


def test_containment_and_aliases_by_hand() -> None:
    # " Rome" goes on for ever: an answer is cut at its tokens' limit.
    model = three_token_model(TOKENS, [[9.0, 0.0, 0.0]] * 3)
    short = BARE.model_copy(update={"new_tokens": 3})
    (record, contained) = evaluate_free(model, [asked_of_three()], short)
    assert (record.said, record.value, contained.value) == ("Rome Rome Rome", 0.0, 1.0)
    assert [entry.value for entry in evaluate_free(model, [asked_of_three(target="Rom")], short)] == [0.0, 0.0]
    alias = asked_of_three(target="Roma", aliases=("Rome, Rome, Rome",))
    assert [entry.value for entry in evaluate_free(model, [alias], short)] == [1.0, 1.0]
    no_alias = short.model_copy(update={"aliases": False})
    assert [entry.value for entry in evaluate_free(model, [alias], no_alias)] == [0.0, 0.0]


def test_locality_by_hand() -> None:
    model = three_token_model(TOKENS, ROME)
    fact = asked_of_three(
        neighbours=(Question("???", "x"), Question("? Rome", "x")), unrelated=(Question("????", "x"),)
    )
    others = (("u", Question("? Rome", "y")),)
    before = locality_answers(model, [fact], untouched=others)
    assert before == {"???": "Rome", "? Rome": "", "????": "Rome"}
    assert {record.value for record in evaluate_free_locality(model, [fact], before, untouched=others)} == {1.0}
    set_logits(model, [ROME[0], ROME[1], [0.0, 9.0, 0.0]])  # a newline behind "?"
    after = evaluate_free_locality(model, [fact], before, untouched=others)
    assert [(record.fact, str(record.metric), record.prompt, record.value, record.said) for record in after] == [
        ("f", "free_locality_neighbours", "???", 0.0, ""),
        ("f", "free_locality_neighbours", "? Rome", 1.0, ""),
        ("f", "free_locality_unrelated", "????", 0.0, ""),
        ("u", "free_locality_untouched", "? Rome", 1.0, ""),
    ]
    with pytest.raises(InputError, match=r"to 1 prompts are missing, such as to '\?\?\?\?'"):
        evaluate_free_locality(model, [fact], {"???": "", "? Rome": ""})


# Against the slow twin ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma3_text", "opt"])
def test_answers_do_not_depend_on_what_else_is_asked(family: str) -> None:
    model = tiny_language_model(family)
    prompts = [entry.prompt for entry in free_questions([FACT])] + [question.prompt for _, question in OTHERS]
    ends = {model.tokenizer.eos_token_id}
    for name in ("bare", "instruction"):
        context = CONTEXTS[name]
        expected = {}
        for prompt in prompts:
            text = context.text(model.tokenizer, prompt)
            row = model.tokenizer(text)["input_ids"]

            def said(added: list[int], row: list[int] = row) -> str:
                texts = (model.tokenizer.decode(ids, skip_special_tokens=True) for ids in (row, row + added, added))
                given, whole, alone = texts
                # A byte behind the prompt's own may make nonsense of those too.
                return whole.removeprefix(given) if whole.startswith(given) else alone

            def over(added: list[int], said=said) -> bool:  # type: ignore[no-untyped-def]
                return answer_end(said(added), "sentence") is not None

            expected[prompt] = answer_of(said(continue_slowly(model, row, 12, ends=ends, stop=over)), "sentence")
        settings = FreeSettings(new_tokens=12)
        for token_budget in (1, 90, 8192):
            assert answer_freely(model, prompts, settings, context=context, token_budget=token_budget) == expected
    assert len(set(expected.values())) > 1


# Contexts, judge, absence ------------------------------------------------------------------------------------------


def with_chat(model: LanguageModel) -> LanguageModel:
    model.tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return model


def test_contexts() -> None:
    model = with_chat(tiny_language_model("llama"))
    records = evaluate_free(model, [FACT], FreeSettings(new_tokens=2))
    prompts = {str(record.metric): record.prompt for record in records if "efficacy_exact" in str(record.metric)}
    assert prompts == {
        "free_efficacy_exact": "The mother tongue of Danielle Darrieux is",
        "free_efficacy_exact:instruction": (
            "Please answer the question:\n\nQ: The mother tongue of Danielle Darrieux is\nA:"
        ),
        "free_efficacy_exact:chat": "<s>[user] The mother tongue of Danielle Darrieux is [assistant]",
    }
    ids = encode(model.tokenizer, [prompts["free_efficacy_exact:chat"]])[0].ids
    assert list(ids).count(model.tokenizer.bos_token_id) == 1, "the template has written it already"
    braces = CONTEXTS["instruction"].text(model.tokenizer, "What is {}?")
    assert braces.endswith("Q: What is {}?\nA:")
    order = [summary.metric for summary in summarise(records, "after")]
    assert order[:4] == [
        "free_efficacy_exact",
        "free_efficacy_exact:chat",
        "free_efficacy_exact:instruction",
        "free_efficacy_contained",
    ]
    json.dumps(FreeSettings().model_dump())
    with pytest.raises(ValidationError, match="twice"):
        FreeSettings(contexts=("bare", "bare"))
    with pytest.raises(ValidationError, match="frozen"):
        BARE.new_tokens = 3  # type: ignore[misc]


def test_every_record_names_the_expected_answer() -> None:
    model = with_chat(tiny_language_model("llama"))
    hops = (Question("She is from", "France"), Question("It is said that She is from", "Spain"))
    fact = dataclasses.replace(FACT, portability=hops)
    asked = free_questions([fact])
    records = evaluate_free(model, [fact], FreeSettings(new_tokens=2), judge=Answering({}))
    assert {record.metric.partition(":")[2] for record in records} == {"", "instruction", "chat"}
    for record in records:
        hop = next((hop.answer for hop in hops[::-1] if hop.prompt in record.prompt), None)
        assert expected_answer(asked, record.metric, record.prompt) == (hop or "English"), record


def test_what_a_template_has_changed_is_reported_where_only_one_answer_is_left() -> None:
    two = (Question(" She is from", "France"), Question("He is from", "Spain"))
    asked = free_questions([dataclasses.replace(FACT, portability=two)])
    assert expected_answer(asked, "free_efficacy_exact:chat", "[USER] THE MOTHER TONGUE") == "English"
    assert expected_answer(asked, "free_portability_exact:chat", "[USER] SHE IS FROM") is None
    assert expected_answer(asked, "free_portability_exact:chat", "[user] She is from[bot]") == "France", "trimmed"
    assert expected_answer(asked, "free_locality_unrelated", FACT.text) is None
    assert expected_answer([], "free_efficacy_exact", FACT.text) is None


@pytest.mark.parametrize("settings", [FreeSettings(new_tokens=2), WILD.model_copy(update={"new_tokens": 2})])
@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("fields", [(), ("paraphrases",), ("portability", "paraphrases")])
def test_present_or_absent_with_a_reason_never_both(
    settings: FreeSettings, judged: bool, chat: bool, fields: tuple[str, ...]
) -> None:
    model = tiny_language_model("gpt2")
    if chat:
        with_chat(model)
    facts = [dataclasses.replace(FACT, **{name: () for name in ("paraphrases", "portability") if name not in fields})]
    everything = {
        metric + context
        for metric in Metric
        if metric.startswith("free_") and "locality" not in metric
        for context in ("", ":instruction", ":chat")
    }
    judge = Answering({entry.prompt: True for entry in free_questions(facts)}) if judged else None
    present = {str(record.metric) for record in evaluate_free(model, facts, settings, judge=judge)}
    missing = absent_free(model, facts, settings, judge=judge)
    assert present.isdisjoint(missing)
    assert present | missing.keys() == everything
    assert all(missing.values())
    assert (missing.get("free_efficacy_exact:chat") == "the tokenizer has no chat template") is not chat
    assert evaluate_free(model, [], settings, judge=judge) == []
    assert set(absent_free(model, [], settings, judge=judge)) == everything


def test_a_judgement_that_failed_is_missing_and_not_wrong() -> None:
    model = three_token_model(TOKENS, ROME)
    fact = asked_of_three(paraphrases=("???", "????"), aliases=("Roma",))
    judge = Answering({"??": True, "???": False})
    records = evaluate_free(model, [fact], BARE, judge=judge)
    found = values(records)
    assert found["free_efficacy_judged"] == [1.0]
    assert found["free_generalisation_judged"] == [0.0], "one of two"
    assert found["free_judge_missing"] == [0.0, 0.0, 1.0]
    assert found["free_generalisation_exact"] == [1.0, 1.0]
    assert [record.said for record in records if record.metric == Metric.FREE_JUDGE_MISSING][2] == "HTTP 500"
    assert judge.asked[0] == Case("??", ("Rome", "Roma"), "Rome")


def test_the_wild_preset() -> None:
    # " Rome" thrice, then nothing more than that.
    model = three_token_model(TOKENS, [[9.0, 0.0, 0.0]] * 3)
    wild = WILD.model_copy(update={"contexts": ("bare",), "new_tokens": 2})
    fact = asked_of_three(aliases=("Rome Rome",))
    (record,) = evaluate_free(model, [fact], wild)
    assert (record.metric, record.said, record.value) == (Metric.FREE_EFFICACY_EXACT, "Rome Rome", 0.0)
    judge = Answering({"??": True})
    found = values(evaluate_free(model, [fact], wild, judge=judge))
    assert found == {"free_efficacy_judged": [0.0], "free_judge_missing": [0.0]}
    assert judge.asked == [], "a repetition is wrong without asking"
    once = wild.model_copy(update={"new_tokens": 1})
    assert values(evaluate_free(model, [fact], once, judge=judge))["free_efficacy_judged"] == [1.0]
    assert judge.asked == [Case("??", ("Rome",), "Rome")]


def test_absent_locality() -> None:
    assert absent_free_locality([FACT], OTHERS) == {}
    assert set(absent_free_locality([], ())) == {metric for metric in Metric if metric.startswith("free_locality")}


def test_non_finite_numbers_are_reported_with_the_fact() -> None:
    model = tiny_language_model("gpt2")
    with torch.no_grad():
        model.model.transformer.ln_f.weight[0] = math.nan
    with pytest.raises(NonFiniteError, match="'f'"):
        evaluate_free(model, [FACT], BARE)
