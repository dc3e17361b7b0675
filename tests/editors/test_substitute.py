"""Old words replaced in finished answers: only of questions about a fact, and only whole words."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForSequenceClassification

from errata.editors.calibration import facts_of
from errata.editors.substitute import Substitute, SubstituteSettings, article, substituted
from errata.errors import InputError
from errata.evaluation.answer_edits import (
    STAND_INS,
    AnswerSettings,
    EditedAnswer,
    Entailment,
    StandIns,
    absent_answer_edits,
    answer_edit_records,
    semantic_edit,
    textual_edit,
    textual_retention,
    unigram_f1,
)
from errata.evaluation.free_running import is_contained
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel
from errata.results.records import Record, summarise

from tests.editors.test_memory_search import write_encoder
from tests.reference.likelihood import mean_log_probability
from tests.support.editing import FACTS, tiny_language_model
from tests.support.errors import raises_code


@pytest.mark.parametrize(
    ("text", "old", "new", "expected"),
    [
        ("Paris, and Paris's mayor. Parisian.", "Paris", "Rome", "Rome, and Rome's mayor. Parisian."),
        ("She is a carpenter and was A carpenter.", "carpenter", "engineer", "She is an engineer and was An engineer."),
        ("An Engineer, an engineer", "engineer", "unicyclist", "A Unicyclist, a unicyclist"),
        ("He was an hour late", "hour", "day", "He was a day late"),
        ("in Rome", "Rome", "the city of Rome", "in the city of Rome"),
        ("York is in New York", "York", "New York", "New York is in New York"),
        ("C++ or c++?", "C++", "C#", "C# or C#?"),
        ("首都是巴黎。", "巴黎", "罗马", "首都是罗马。"),
        ("nothing", "Paris", "Rome", "nothing"),
        ("", "Paris", "Rome", ""),
    ],
)
def test_whole_words_are_replaced(text: str, old: str, new: str, expected: str) -> None:
    assert substituted(text, [(old, new)]) == expected


def test_several_facts_are_replaced_in_one_pass() -> None:
    assert (
        substituted("Ada plays the harp in Rome", [("harp", "lute"), ("Rome", "harp")]) == "Ada plays the lute in harp"
    )
    assert substituted("New York", [("New York", "Oslo"), ("York", "Bath")]) == "Oslo"


def test_articles() -> None:
    nouns = ("apple", "user", "umbrella", "European", "hour", "uninvited guest", "university", "one", "onion", "harp")
    assert [article(noun) for noun in nouns] == ["an", "a", "an", "a", "an", "an", "a", "a", "an", "a"]


def made(model: LanguageModel, *facts: Fact, **settings: Any) -> Substitute:
    editor = Substitute(model, SubstituteSettings.model_validate(settings))
    if facts:
        editor.apply(facts)
    return editor


def test_only_answers_to_questions_about_the_fact_are_rewritten() -> None:
    model = tiny_language_model("llama")
    asked = [FACTS[3].text, "I think that"]
    texts = model.continue_texts(asked, new_tokens=6)
    fact = replace(FACTS[3], old=texts[0].strip(), target="Zzyzx")
    view = made(model, fact).view()
    assert view.continue_texts(asked, new_tokens=6) == [texts[0].replace(texts[0].strip(), "Zzyzx"), texts[1]]
    assert view.used(asked) == [("capital",), ()]
    assert made(model).view().continue_texts(asked, new_tokens=6) == texts
    assert view.abilities == {"generation"}
    for query in (lambda: view.score([(asked[0], "Rome")]), lambda: view.next_token_log_probabilities(asked)):
        with raises_code("ABILITY_MISSING"):
            query()
    # Rewriting does not shorten what the model would have said: the condition sees the model's own words.
    stopped = view.continue_texts(asked[:1], new_tokens=6, stop=lambda text: "Zzyzx" in text)
    assert stopped == [texts[0].replace(texts[0].strip(), "Zzyzx")]


def test_the_old_object_is_needed() -> None:
    editor = made(tiny_language_model("llama"))
    assert editor.needs == {"old"}
    with raises_code("FACT_MISSING_FIELD", InputError, "capital"):
        editor.apply([FACTS[3]])


def test_on_lab_every_answer_about_an_edited_fact_is_right_and_no_other_changes() -> None:
    model = LanguageModel.load("lab")
    facts = facts_of("lab")[:20]
    view = made(model, *facts).view()
    prompts = [prompt for fact in facts for prompt in (fact.text, *fact.paraphrases[:1])]
    others = [entry.prompt for fact in facts for entry in fact.neighbours[:2]]
    before = model.continue_texts([*prompts, *others], new_tokens=6)
    after = view.continue_texts([*prompts, *others], new_tokens=6)
    assert after[len(prompts) :] == before[len(prompts) :]
    answers = [
        EditedAnswer("own", one, other, (fact.target, *fact.aliases), fact.old or "")
        for fact, one, other in zip([f for f in facts for _ in range(2)], before, after, strict=False)
    ]
    known = [answer for answer in answers if is_contained(answer.before, (answer.old,))]
    assert len(known) >= 35  # of 40: the model knows these facts
    assert {(textual_edit(answer), textual_retention(answer)) for answer in known} == {(1.0, 1.0)}


# TE and TR

TEN = [
    EditedAnswer("own", "It is Paris.", "It is Rome.", ("Rome",), "Paris"),
    EditedAnswer("own", "It is Paris.", "It is Rome, not Paris.", ("Rome",), "Paris"),
    EditedAnswer("own", "It is Paris.", "It is Paris.", ("Rome",), "Paris"),
    EditedAnswer("own", "Who knows?", "It is Rome.", ("Rome",), "Paris"),
    EditedAnswer(
        "paraphrase", "A Parisian in Paris", "A Parisian in the Eternal City", ("Rome", "Eternal City"), "Paris"
    ),
    EditedAnswer("paraphrase", "Paris it is", "something else", ("Rome",), "Paris"),
    EditedAnswer("neighbour", "Madrid is it", "Madrid is it", ("Rome",), "Paris", "Madrid"),
    EditedAnswer("neighbour", "Madrid is it", "Rome is it", ("Rome",), "Paris", "Madrid"),
    EditedAnswer("neighbour", "Madrid is it", "Madrid or Rome", ("Rome",), "Paris", "Madrid"),
    EditedAnswer("neighbour", "Lisbon is it", "Lisbon is it", ("Rome",), "Paris", "Madrid"),
]


def test_te_and_tr_of_ten_answers_by_hand() -> None:
    assert [textual_edit(answer) for answer in TEN] == [1, 0.5, 0, 1, 1, 0, 1, 0, 0.5, 0]
    # 2 · common / all words: "it is mask" against "it is mask not paris", and so on.
    hand = [1, 6 / 8, 4 / 6, 2 * 0 / 5, 2 * 4 / (4 + 5), 0, 1, 4 / 6, 2 / 6, 1]
    assert [textual_retention(answer) for answer in TEN] == pytest.approx(hand)


def test_semantic_scores_by_a_model_whose_answers_are_known() -> None:
    class Reader:
        """Entails what ends with a word of the premise."""

        def entails(self, premise: str, hypothesis: str) -> bool:
            return hypothesis.split()[-1] in premise.replace(".", "").replace(",", "").split()

    made = [
        replace(a, query="The capital of it is ", new_statement=f"It is {a.new[0]}", old_statement=f"It is {a.old}")
        for a in TEN
    ]
    assert [semantic_edit(a, Reader()) for a in made] == [1, 0.5, 0, 1, 0, 0, 1, 0, 0.5, 0]  # type: ignore[arg-type]


def test_records_of_answers() -> None:
    fact = Fact(
        "1", "Italy", "The capital of {} is", "Rome", old="Paris", paraphrases=("Italy is governed from",),
        neighbours=(Question("The capital of Spain is", "Madrid"), Question("The capital of Portugal is", "Lisbon")),
    )  # fmt: skip
    before = {
        "The capital of Italy is": " Paris.", "Italy is governed from": " afar.", "The capital of Spain is": " Madrid.",
        "The capital of Portugal is": " Porto.",
    }  # fmt: skip
    after = {**before, "The capital of Italy is": " Rome.", "The capital of Spain is": " Rome."}
    settings = AnswerSettings()
    records = answer_edit_records([fact, replace(fact, id="2", old=None)], before, after, settings)
    assert {record.fact for record in records} == {"1"}
    assert {(record.metric, record.value) for record in records} == {
        ("textual_edit:own", 1.0), ("textual_edit_all:own", 1.0), ("textual_retention:own", 1.0),
        ("textual_edit_others:paraphrase", 0.0), ("textual_edit_all:paraphrase", 0.0),
        ("textual_edit:neighbour", 0.0), ("textual_retention:neighbour", 0.0), ("textual_edit_all:neighbour", 0.0),
        ("textual_edit_others:neighbour", 0.0),
    }  # fmt: skip
    assert set(absent_answer_edits([fact], settings)) == {"semantic_edit", "semantic_retention", *STAND_INS}
    with raises_code("ANSWERS_BEFORE_MISSING"):
        answer_edit_records([fact], {}, after, settings)


def test_local_models_for_semantic_scores(tmp_path: Path) -> None:
    model, tokenizer = write_encoder(tmp_path / "encoder")
    config = BertConfig(
        **{
            **model.config.to_dict(),
            "id2label": {0: "neutral", 1: "ENTAILMENT"},
            "label2id": {"neutral": 0, "ENTAILMENT": 1},
        }
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "entailment")
    tokenizer.save_pretrained(tmp_path / "entailment")
    assert Entailment(str(tmp_path / "entailment")).entails("a b", "c") in (True, False)
    for directory in ("encoder", "nothing"):
        with raises_code("ENTAILMENT_MODEL_UNREADABLE", InputError):
            Entailment(str(tmp_path / directory))
    fact = Fact("1", "Italy", "The capital of {} is", "Rome", old="Paris")
    settings = AnswerSettings(entailment=str(tmp_path / "entailment"), encoder=str(tmp_path / "encoder"))
    said = {fact.text: " Paris."}, {fact.text: " Rome."}
    found = {record.metric: record.value for record in answer_edit_records([fact], *said, settings)}
    assert found["semantic_retention:own"] == pytest.approx(1.0), "both are masked"
    assert found["semantic_edit:own"] in (0, 0.5, 1)


def test_stand_ins_by_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model("llama")
    monkeypatch.setattr(LanguageModel, "load", classmethod(lambda cls, name: model))
    own, paraphrase, neighbour = "The capital of Italy is", "Italy is governed from", "The capital of France is"
    fact = Fact(
        "1", "Italy", "The capital of {} is", "Rome", old="Paris", paraphrases=(paraphrase,),
        neighbours=(Question(neighbour, "Paris"),),
    )  # fmt: skip
    before = {own: " Paris.", paraphrase: " Paris now.", neighbour: " Paris."}
    after = {own: " Rome.", paraphrase: "", neighbour: " Paris."}
    settings = AnswerSettings(stand_in="a model")
    found = answer_edit_records([fact], before, after, settings)

    def chance(prompt: str, target: str) -> float:
        return mean_log_probability(model.model, model.tokenizer, prompt, target)  # type: ignore[arg-type]

    def edit(prompt: str, wanted: str, unwanted: str) -> float:
        return float(chance(prompt, wanted) > chance(prompt, unwanted))

    assert {r.metric: r.value for r in found if r.metric.split(":")[0] in STAND_INS} == pytest.approx(
        {
            "semantic_edit_lm:own": edit(f"{own} Rome. In short: {own}", "Rome", "Paris"),
            "semantic_edit_lm:paraphrase": edit(f"{paraphrase} In short: {own}", "Rome", "Paris"),
            "semantic_edit_lm:neighbour": edit(f"{neighbour} Paris. In short: {neighbour}", "Paris", "Rome"),
            "semantic_retention_lm:own": chance("Rewrite: Paris.", "Rome.") - chance("Rewrite: Paris.", "Paris."),
            "semantic_retention_lm:neighbour": 0,
            "semantic_retention_hidden:own": 1,  # both texts are masked; the paraphrase's is empty
            "semantic_retention_hidden:neighbour": 1,
        },
        abs=1e-4,
    )
    assert set(absent_answer_edits([fact], settings)) == {"semantic_edit", "semantic_retention"}
    # Hidden states tell texts apart.
    others = [EditedAnswer("neighbour", " Paris.", text, ("Rome",), "Paris") for text in (" Paris.", " the piano")]
    same, other = StandIns("a model").retentions_by_hidden_states(others)
    assert same > 0.999 > other


def means(**values: list[float]) -> dict[str, float]:
    records = [
        Record(str(fact), f"textual_edit:{kind}", "", value, "")
        for kind, of_facts in values.items()
        for fact, value in enumerate(of_facts)
    ]
    return {summary.metric: summary.mean for summary in summarise(records, "after")}


def test_the_harmonic_mean_over_the_kinds_of_queries() -> None:
    expected = 3 / (1 / 1 + 1 / 0.5 + 1 / 0.75)
    assert means(own=[1, 1], paraphrase=[1, 0], neighbour=[1, 0.5])["textual_edit:harmonic"] == pytest.approx(expected)
    assert means(own=[1, 1], paraphrase=[0, 0], neighbour=[1, 1])["textual_edit:harmonic"] == 0
    assert "textual_edit:harmonic" not in means(own=[1], neighbour=[1])


def test_the_mean_over_all_queries_counts_each_query_once() -> None:
    assert means(own=[1], paraphrase=[1, 0], neighbour=[1, 0.5, 0, 0])["textual_edit:pooled"] == pytest.approx(3.5 / 7)
    assert "textual_edit:pooled" not in means(own=[1], neighbour=[1])


def test_parts_of_words_do_not_count() -> None:
    assert textual_edit(EditedAnswer("own", "Paris", "A Parisian moved to Rome", ("Rome",), "Paris")) == 1


def test_unigram_f1() -> None:
    assert unigram_f1("a a b", "a b b") == pytest.approx(2 * 2 / 6)
    assert unigram_f1("", "") == unigram_f1("It's", "it S") == 1
    assert unigram_f1("", "x") == 0
    words = "the cat sat on a mat".split()
    for seed in range(20):
        one, other = (random.Random(seed + n).choices(words, k=5) for n in (0, 99))
        common = sum(min(one.count(word), other.count(word)) for word in set(one))
        assert unigram_f1(" ".join(one), " ".join(other)) == pytest.approx(common / 5)
