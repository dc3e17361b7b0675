"""Facts in the prompt: by hand on the bare model, bit for bit that model where nothing is inserted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editors.calibration import facts_of
from errata.editors.edit_file import StoredEdit
from errata.editors.retrieval import INSTRUCTION, Retrieval, RetrievalSettings
from errata.errors import InputError
from errata.evaluation.concepts import DEMONSTRATIONS, read_concepts
from errata.facts.concept import Concept
from errata.facts.fact import Fact, Question
from errata.facts.files import write_facts
from errata.models.language_model import LanguageModel
from errata.models.likelihood import scores_of
from errata.models.prompts import Pair, chat_text

from tests.support.editing import FACTS, tiny_language_model
from tests.support.errors import raises_code

ITALY = FACTS[3]
MISSES = ["The river runs through the", "Big Ben stands in"]
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
NO_SYSTEM = CHAT.replace("{% for", "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{% for")


def made(model: LanguageModel, facts: tuple[Fact, ...] = (), **settings: Any) -> Retrieval:
    editor = Retrieval(model, RetrievalSettings.model_validate(settings))
    if facts:
        editor.apply(facts)
    return editor


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model("llama")


def records(count: int) -> list[Fact]:
    """Facts for demonstrations, each about another person."""
    return [
        Fact(
            f"pool-{number}",
            f"Person {number}",
            "The mother tongue of {} is",
            "German",
            old="French",
            paraphrases=(f"Person {number} speaks", f"At home Person {number} speaks"),
            neighbours=({"prompt": f"The mother tongue of Kenji {number} is", "answer": "Dutch"},),
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    write_facts(records(12), path)
    return str(path)


def texts(editor: Retrieval, prompts: list[str], **options: Any) -> list[str | None]:
    return [found and found.text for found in editor.view().rewritten(prompts, **options)]


def close(model: LanguageModel, editor: Retrieval, pairs: list[Pair], by_hand: list[Pair]) -> None:
    """The view's scores and texts are those of the bare model for prompts that are written by hand."""
    view = editor.view()
    for found, expected in zip(view.score(pairs), model.score(by_hand), strict=True):
        assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-6)
        assert found.likeliest == expected.likeliest
    prompts, hands = [pair[0] for pair in pairs], [pair[0] for pair in by_hand]
    torch.testing.assert_close(
        view.next_token_log_probabilities(prompts), model.next_token_log_probabilities(hands), atol=1e-5, rtol=0
    )
    assert view.continue_texts(prompts, new_tokens=5) == model.continue_texts(hands, new_tokens=5)
    uniforms = torch.rand(len(prompts), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampled = {"new_tokens": [5, 2, 0, 4, 5, 3][: len(prompts)], "top_k": 4, "uniforms": uniforms}
    assert view.continue_texts(prompts, **sampled) == model.continue_texts(hands, **sampled)


# Plain


def test_the_fact_is_put_before_the_prompt(model: LanguageModel) -> None:
    editor = made(model, FACTS)
    asked = [
        ITALY.text,
        "Is Rome or Milan the capital of Italy? The answer is",
        "Leonard Bernstein works for",
        *MISSES[:1],
    ]
    by_hand = [
        f"The capital of Italy is Lisbon.\n{asked[0]}",
        f"The capital of Italy is Lisbon.\n{asked[1]}",
        f"You know that Leonard Bernstein plays the violin.\n{asked[2]}",
        asked[3],
    ]
    assert texts(editor, asked) == [*by_hand[:3], None]
    targets = ["Lisbon", "Rome or London", "the city", "river"]
    close(model, editor, list(zip(asked, targets, strict=True)), list(zip(by_hand, targets, strict=True)))
    assert editor.view().used(asked) == [("capital",), ("capital",), ("plays",), ()]
    assert editor.method == "retrieval"


def test_prompts_without_a_hit_are_the_models_bit_for_bit(model: LanguageModel) -> None:
    view = made(model, FACTS[:4]).view()
    pairs: list[Pair] = [(prompt, target) for prompt in MISSES for target in ("London", "the city")]
    hit: list[Pair] = [(fact.text, fact.target) for fact in FACTS[:4]]
    assert view.score(pairs) == model.score(pairs)
    assert view.score([*hit, *pairs])[len(hit) :] == model.score(pairs)
    prompts = [pair[0] for pair in hit]
    found = view.next_token_log_probabilities([*prompts, *MISSES])[len(hit) :]
    assert torch.equal(found, model.next_token_log_probabilities(MISSES))
    assert view.continue_texts([*MISSES, *prompts], new_tokens=6)[:2] == model.continue_texts(MISSES, new_tokens=6)
    empty = made(model).view()
    assert empty.score(hit) == model.score(hit)
    assert empty.used(prompts) == [()] * len(hit)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mistral", "opt"])
def test_only_a_querys_own_tokens_are_read_after_its_fact(family: str) -> None:
    model = tiny_language_model(family)
    editor = made(model, FACTS)
    asked = [
        f"{lead}the capital of Italy is" for lead in ("", "I think that ", "You know that ", "Because of the rain ")
    ]
    pairs: list[Pair] = [(prompt, target) for prompt in asked for target in ("Rome", "Lisbon")]
    by_hand: list[Pair] = [(f"The capital of Italy is Lisbon.\n{prompt}", target) for prompt, target in pairs]
    counts: list[int] = []
    embedding = model.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, args: counts.append(args[0].numel()))
    # Each row whole: ``score`` would find the shared tokens itself.
    expected = list(scores_of(model, by_hand, shared={}, token_budget=1).values())
    rows, whole, counts[:] = len(counts), sum(counts), []
    found = editor.view().score(pairs, token_budget=1)
    handle.remove()
    fact = len(model.tokenizer("The capital of Italy is Lisbon.\n")["input_ids"])
    # Up to two tokens at the fact's end may be others where a query follows.
    assert (rows - 1) * (fact - 2) <= whole - sum(counts) <= (rows - 1) * fact
    for one, other in zip(found, expected, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)


def test_a_single_prompt_is_read_with_its_fact_in_one_pass(model: LanguageModel) -> None:
    """A pass for the fact's tokens alone would cost more than the prompt that it serves."""
    view = made(model, FACTS[:4]).view()
    (text,) = texts(made(model, FACTS[:4]), [ITALY.text])
    counts: list[int] = []
    embedding = model.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, args: counts.append(args[0].numel()))
    found = view.next_token_log_probabilities([ITALY.text])
    said = view.continue_texts([ITALY.text], new_tokens=3, end_at_eos=False)
    view.score([(ITALY.text, "Lisbon")])
    handle.remove()
    whole = len(model.tokenizer(text)["input_ids"])
    assert [counts[0], counts[1:4], len(counts)] == [whole, [whole, 1, 1], 5]
    torch.testing.assert_close(found, model.next_token_log_probabilities([text or ""]), atol=1e-5, rtol=1e-5)
    assert said == model.continue_texts([text or ""], new_tokens=3, end_at_eos=False)


def test_several_facts_the_nearest_last(model: LanguageModel) -> None:
    other = Fact("sea", "Italy", "The sea that is nearest to {} is", "the Baltic.")
    editor = made(model, (other, ITALY), k_facts=2)
    assert texts(editor, ["The capital of Italy is now", "The sea nearest to Italy is"]) == [
        "The sea that is nearest to Italy is the Baltic.\nThe capital of Italy is Lisbon.\nThe capital of Italy is now",
        "The capital of Italy is Lisbon.\nThe sea that is nearest to Italy is the Baltic.\nThe sea nearest to Italy is",
    ]
    assert editor.view().used(["The capital of Italy is now"]) == [("capital", "sea")]


def test_facts_are_joined_by_the_rules_of_joining(model: LanguageModel) -> None:
    facts = (
        Fact("zh", "意大利", "{}的首都是", "里斯本"),
        Fact("none", "Kenji", "{} = ", "42", joiner=""),
    )
    editor = made(model, facts)
    assert texts(editor, ["意大利的首都", "Kenji is"]) == [
        "意大利的首都是里斯本.\n意大利的首都",
        "Kenji = 42.\nKenji is",
    ]
    # A target is joined to the prompt that was asked: after a quote without a space, though the fact ends otherwise.
    pairs: list[Pair] = [
        ('The capital of Italy is "', "Rome"),
        ("意大利的首都是", "Rome"),
        ("The capital of Italy is", "Rome", ""),
    ]
    editor = made(model, (*facts, ITALY))
    by_hand: list[Pair] = [
        (f"The capital of Italy is Lisbon.\n{pairs[0][0]}", "Rome", ""),
        (f"意大利的首都是里斯本.\n{pairs[1][0]}", "Rome", ""),
        (f"The capital of Italy is Lisbon.\n{pairs[2][0]}", "Rome", ""),
    ]
    for found, expected in zip(editor.view().score(pairs), model.score(by_hand), strict=True):
        assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-6)
    view = editor.view()
    assert view.score([(ITALY.text, "Rome")], joiner="") == view.score([(ITALY.text, "Rome", "")])
    assert view.score([(ITALY.text, "Rome")], joiner="") != view.score([(ITALY.text, "Rome")])


def test_in_a_chat_the_facts_are_its_system_message() -> None:
    model = tiny_language_model("llama")
    model.tokenizer.chat_template = CHAT
    editor = made(model, FACTS)
    asked = [
        chat_text(model.tokenizer, "What is the capital of Italy?"),
        chat_text(model.tokenizer, "Who?"),
        ITALY.text,
    ]
    system = f"<|system|>{INSTRUCTION}\nThe capital of Italy is Lisbon.\n"
    by_hand = [f"{system}{asked[0]}", asked[1], f"The capital of Italy is Lisbon.\n{asked[2]}"]
    assert texts(editor, asked) == [by_hand[0], None, by_hand[2]]
    pairs: list[Pair] = [(prompt, "Rome") for prompt in asked]
    close(model, editor, pairs, [(prompt, "Rome") for prompt in by_hand])
    # The gate and the embedder see the message: the words of the template are no part of the question.
    strict = made(model, FACTS, gates=[{"kind": "cosine", "threshold": 0.999}])
    assert strict.view().used([chat_text(model.tokenizer, ITALY.text)]) == [("capital",)]


def test_a_template_without_system_messages_gets_the_facts_in_the_users() -> None:
    model = tiny_language_model("llama")
    model.tokenizer.chat_template = NO_SYSTEM
    asked = chat_text(model.tokenizer, "What is the capital of Italy?")
    expected = f"<|user|>{INSTRUCTION}\nThe capital of Italy is Lisbon.\n\nWhat is the capital of Italy?\n<|assistant|>"
    assert texts(made(model, FACTS), [asked]) == [expected]


def test_the_answer_does_not_decide_what_is_inserted(model: LanguageModel) -> None:
    view = made(model, FACTS, gates=[{"kind": "cosine", "threshold": 0.4}, {"kind": "margin"}]).view()
    base = made(model).view()
    pairs: list[Pair] = [("I think that", target) for target in ("the capital of Italy is Lisbon", "Big Ben", "rain")]
    assert view.used(["I think that"]) == [()]
    assert view.score(pairs) == base.score(pairs)


def test_what_is_too_long_is_an_error_with_the_numbers(model: LanguageModel) -> None:
    most = model.context_length
    view = made(model, FACTS).view()
    prompt = "is the capital of Italy"
    while len(model.tokenizer(prompt)["input_ids"]) < most - 40:
        prompt = f"Rome {prompt}"
    view.continue_texts([prompt], new_tokens=2)
    with raises_code("TEXT_TOO_LONG", InputError, str(most), "capital"):
        view.continue_texts([prompt], new_tokens=40)
    with raises_code("TEXT_TOO_LONG", InputError, str(most)):
        view.score([(prompt, "Rome " * 40 + "x")])
    with raises_code("TEXT_TOO_LONG", InputError, str(most)):
        view.next_token_log_probabilities(["Rome " * 40 + prompt])


# Updates


def test_the_later_of_two_facts_counts_and_its_removal_brings_the_earlier_back(model: LanguageModel) -> None:
    editor = made(model, FACTS)
    before, scores = editor.fingerprint(), editor.view().score([(ITALY.text, "Lisbon"), (ITALY.text, "Oslo")])
    update = replace(ITALY, id="update", prompt="The  Capital of {} is", target="Oslo")
    edit = editor.apply([update])
    assert texts(editor, [ITALY.text]) == [f"The  Capital of Italy is Oslo.\n{ITALY.text}"]
    assert len(editor.facts) == len(FACTS)
    editor.remove(edit)
    assert editor.fingerprint() == before
    assert editor.view().score([(ITALY.text, "Lisbon"), (ITALY.text, "Oslo")]) == scores
    # Another wording is another statement: both are in, and the nearer one is inserted.
    editor.apply([replace(update, prompt="{} has the capital")])
    assert len(editor.facts) == len(FACTS) + 1


def test_an_earlier_edit_can_leave_first(model: LanguageModel) -> None:
    editor = made(model)
    first, second = editor.apply(FACTS[:2]), editor.apply([replace(FACTS[0], id="new", target="Greek"), ITALY])
    editor.remove(first)
    alone = made(model)
    alone.apply([replace(FACTS[0], id="new", target="Greek"), ITALY])
    assert editor.fingerprint() == alone.fingerprint()
    assert editor.facts == alone.facts
    editor.remove(second)
    assert editor.facts == ()


def test_edits_of_other_states_and_settings_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    edit = made(model).apply(FACTS[:2])
    other = made(model, k_facts=2)
    with raises_code("EDIT_FOR_OTHER_WEIGHTS"):
        other.restore(edit)
    with raises_code("EDIT_NOT_APPLIED"):
        other.remove(edit)
    with raises_code("EDIT_OF_ANOTHER_EDITOR"):
        other.restore(replace(edit, method="grace"))
    with raises_code("FACTS_MISSING"):
        other.apply([])
    with raises_code("FACT_DUPLICATE"):
        other.apply([ITALY, ITALY])
    assert other.facts == ()


# Settings that need facts


def test_an_open_threshold_is_calibrated_at_each_size(model: LanguageModel, tmp_path: Path) -> None:
    with raises_code("CALIBRATION_IMPOSSIBLE"):
        made(model, gates=[{"kind": "cosine"}])
    held_out = tmp_path / "held_out.jsonl"
    write_facts(facts_of("lab")[:30], held_out)
    editor = made(model, gates=[{"kind": "cosine"}], calibration=str(held_out))
    assert editor.calibration is None
    assert editor.view().used([ITALY.text]) == [()]
    first = editor.apply(FACTS[:2])
    assert first.state["calibration"]["facts"] == 2
    second = editor.apply(FACTS[2:])
    assert editor.calibration is not None
    assert (editor.calibration.facts, second.state["calibration"]["facts"]) == (6, 6)
    assert editor.view().used([fact.text for fact in FACTS]) == [(fact.id,) for fact in FACTS]
    second.save(tmp_path / "second")
    assert StoredEdit.load(tmp_path / "second").state["calibration"] == second.state["calibration"]
    # With other held-out facts it would be another editor.
    write_facts(facts_of("lab")[:29], held_out)
    other = made(model, gates=[{"kind": "cosine"}], calibration=str(held_out))
    with raises_code("EDIT_FOR_OTHER_WEIGHTS"):
        other.restore(first)
    # A failing calibration leaves everything as it was.
    before = editor.fingerprint()
    with raises_code("CALIBRATION_IMPOSSIBLE"):
        editor.apply([replace(fact, paraphrases=()) for fact in facts_of("lab")[:30]])
    assert editor.fingerprint() == before


def test_gates_that_separate_poorly_are_reported(model: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    facts = [
        replace(fact, id=f"e{number}", subject=f"Zq{number} Xw") for number, fact in enumerate(facts_of("lab")[:60])
    ]
    made(model, tuple(facts), gates=[{"kind": "cosine"}, {"kind": "subject"}], calibration="lab")
    poor = len(caplog.messages)
    made(model, tuple(facts), gates=[{"kind": "cosine"}], calibration="lab")
    assert len(caplog.messages) == poor + 1
    assert "60 facts" in caplog.messages[-1]


def test_needed_fields_are_checked(model: LanguageModel) -> None:
    editor = made(model, embeds=["old_statement"])
    assert editor.needs == {"old"}
    with raises_code("FACT_MISSING_FIELD", InputError, "capital"):
        editor.apply([ITALY, replace(FACTS[0], old="French")])
    editor.apply([replace(FACTS[0], old="French")])


# Demonstrations


def by_hand_ike(order: list[str], *, self_copy: bool = True, fact: bool = True) -> str:
    copy = "New Fact: The capital of Italy is Lisbon\nPrompt: The capital of Italy is Lisbon\n\n"
    last = "New Fact: The capital of Italy is Lisbon\nPrompt: " if fact else "Prompt: "
    return "".join(order) + (copy if self_copy else "") + last


def test_ike_is_the_papers_text(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    near = Fact("near", "France", "The capital of {} is", "Nice", paraphrases=("France has the capital",),
                neighbours=({"prompt": "The capital of Spain is", "answer": "Madrid"},))  # fmt: skip
    write_facts([near], path)
    editor = made(model, (ITALY,), mode="ike", pool=str(path))
    # One demonstration: an eighth of 1 copies, and three update, both rounded down.
    shown = ["New Fact: The capital of France is Nice\nPrompt: The capital of Spain is Madrid\n\n"]
    assert texts(editor, [ITALY.text]) == [by_hand_ike(shown) + ITALY.text]
    pairs: list[Pair] = [(ITALY.text, "Lisbon"), (MISSES[0], "city")]
    close(model, editor, pairs, [(by_hand_ike(shown) + ITALY.text, "Lisbon"), (MISSES[0], "city")])
    assert editor.view().used([ITALY.text]) == [("capital",)]
    assert editor.method == "retrieval_ike"
    bare = made(model, (ITALY,), mode="ike", pool=str(path), self_copy=False)
    assert texts(bare, [ITALY.text]) == [by_hand_ike(shown, self_copy=False) + ITALY.text]
    control = made(model, (ITALY,), mode="demonstrations", pool=str(path), self_copy=False)
    assert texts(control, [ITALY.text]) == [by_hand_ike(shown, self_copy=False, fact=False) + ITALY.text]
    assert control.view().used([ITALY.text]) == [()]


def parts_of(editor: Retrieval, prompt: str = ITALY.text) -> tuple[str, ...]:
    (found,) = editor.view().rewritten([prompt])
    assert found is not None
    return found.parts


def test_demonstrations_are_of_three_kinds_the_nearest_last(pool: str) -> None:
    model = tiny_language_model("llama", max_position_embeddings=2048)
    near = [replace(record, subject="Danielle Darrieus", id=f"near-{n}") for n, record in enumerate(records(1))]
    path = Path(pool).with_name("near.jsonl")
    write_facts([*near, *records(12)], path)
    parts = parts_of(made(model, (FACTS[0],), mode="ike", pool=str(path), demonstrations=8), FACTS[0].text)
    assert len(parts) == 8
    assert "Danielle Darrieus" in parts[-1]
    kinds = {"copy": 0, "update": 0, "retain": 0}
    for part in parts:
        assert part.startswith("New Fact: ")
        assert part.endswith("\n\n")
        fact, prompt = part.removeprefix("New Fact: ").removesuffix("\n\n").split("\nPrompt: ")
        kinds["copy" if fact == prompt else "update" if "speaks German" in prompt else "retain"] += 1
        assert prompt.endswith("Dutch" if "Kenji" in prompt else "German")
    assert kinds == {"copy": 1, "update": 3, "retain": 4}
    again = made(model, (FACTS[0], ITALY), mode="ike", pool=str(path), demonstrations=8)
    assert parts_of(again, FACTS[0].text) == parts  # the fact decides, not what else is edited
    seeded = made(model, (FACTS[0],), mode="ike", pool=str(path), demonstrations=8, seed=1)
    assert parts_of(seeded, FACTS[0].text) != parts
    first = made(model, (FACTS[0],), mode="ike", pool=str(path), demonstrations=8, nearest_last=False)
    assert "Danielle Darrieus" in parts_of(first, FACTS[0].text)[0]
    pair: list[Pair] = [(FACTS[0].text, "English")]
    assert first.view().score(pair)[0].log_probability != pytest.approx(
        made(model, (FACTS[0],), mode="ike", pool=str(path), demonstrations=8).view().score(pair)[0].log_probability
    )


def test_no_demonstration_is_on_an_edited_subject(model: LanguageModel, pool: str) -> None:
    edited = [replace(record, id=f"e{n}", subject=record.subject.upper()) for n, record in enumerate(records(11))]
    editor = made(model, (ITALY, *edited), mode="ike", pool=pool)
    (part,) = parts_of(editor)
    assert "Person 11 " in part
    editor.apply([replace(records(12)[11], id="last")])
    with raises_code("DEMONSTRATIONS_MISSING"):
        editor.view()
    with raises_code("DEMONSTRATIONS_MISSING"):
        made(model, mode="ike")


def test_the_farthest_demonstrations_are_dropped_first(pool: str) -> None:
    whole = parts_of(made(tiny_language_model("llama", max_position_embeddings=2048), (ITALY,), mode="ike", pool=pool))
    model = tiny_language_model("llama")  # for 256 tokens
    for nearest_last in (True, False):
        editor = made(model, (ITALY,), mode="ike", pool=pool, nearest_last=nearest_last)
        view = editor.view()
        (found,) = view.rewritten([ITALY.text], new_tokens=9)
        assert found is not None
        assert 0 < found.dropped < len(whole) == 12
        if nearest_last:
            assert found.text == by_hand_ike(list(whole[found.dropped :])) + ITALY.text
        tokens = len(model.tokenizer(found.text)["input_ids"])
        assert tokens + 8 <= 256
        fuller = replace(found, dropped=found.dropped - 1)
        assert len(model.tokenizer(fuller.text)["input_ids"]) + 8 > 256
        view.continue_texts([ITALY.text], new_tokens=9)
        (scored,) = view.score([(ITALY.text, "Lisbon")])
        assert scored.log_probability < 0
        with raises_code("TEXT_TOO_LONG", InputError, "256", "capital"):
            view.rewritten([ITALY.text], new_tokens=250)


# Oracle


def test_the_oracle_gives_every_question_of_a_fact_that_fact(model: LanguageModel) -> None:
    asked = Question("The capital of Spain is", "Madrid")
    fact = replace(ITALY, paraphrases=("Its capital is",), neighbours=(asked,), generation=("It is a country",),
                   own=(Question("It has the flag", "green"),), unrelated=(Question("The sky is", "blue"),),
                   portability=(Question("Its mayor lives in", "Lisbon"),),
                   reversal=(Question("Lisbon is in", "Italy"),))  # fmt: skip
    editor = made(model, (*FACTS[:2], fact), mode="oracle")
    prompts = [fact.text, "Its capital is", asked.prompt, "It is a country", "It has the flag", "The sky is"]
    prompts += ["Its mayor lives in", "Lisbon is in", f"Please answer the question:\n\nQ: {asked.prompt}\nA:"]
    assert editor.view().used([*prompts, "The capital of Italy, which"]) == [("capital",)] * len(prompts) + [()]
    assert texts(editor, [asked.prompt]) == [f"The capital of Italy is Lisbon.\n{asked.prompt}"]
    assert editor.method == "retrieval_oracle"
    # A question of two facts is that of the fact whose own prompt it is.
    rival = replace(FACTS[0], neighbours=(Question(ITALY.text, "Rome"),))
    for facts in ((fact, rival), (rival, fact)):
        assert made(model, facts, mode="oracle").view().used([ITALY.text]) == [("capital",)]


def test_a_definition_is_put_before_every_question_of_its_concept(model: LanguageModel) -> None:
    publisher = Concept(
        "p",
        "publisher",
        "The definition of {} is",
        "a company",
        "a body of water",
        paraphrases=("What is a publisher? It is",),
        instances=("FrancoAngeli",),
        non_instances=("Lake Como",),
        unrelated=(Question("The definition of rain is", "water"),),
    )
    people = Concept("q", "people", "The definition of {} is", "humans", "a river")
    editor = made(model, (publisher.fact(), people.fact()), mode="definition")
    question = f"{DEMONSTRATIONS}Whether Lake Como belongs to category publisher?"  # names people before
    prompts = [publisher.text, "What is a publisher? It is", "The definition of rain is", question]
    assert texts(editor, prompts) == [f"Definition of publisher: a body of water\n{prompt}" for prompt in prompts]
    assert editor.view().used([people.text, "The sky is"]) == [("q",), ()]
    assert editor.method == "retrieval_definition"
    asked: list[str] = []

    class Listening:
        abilities = frozenset(("likelihood", "generation"))
        tokenizer = model.tokenizer

        def score(self, pairs: Sequence[Pair], **options: Any) -> Any:
            asked.extend(pair[0] for pair in pairs)
            return editor.view().score(pairs, **options)

        def continue_texts(self, prompts: Sequence[str], **options: Any) -> Any:
            asked.extend(prompts)
            return [""] * len(prompts)

    read_concepts(Listening(), [publisher])  # type: ignore[arg-type]
    assert editor.view().used(asked) == [("p",)] * len(asked)


# The embedded model


def test_the_subject_gate_finds_all_paraphrases_of_the_lab() -> None:
    facts = facts_of("lab")[:100]
    editor = made(tiny_language_model("llama"), tuple(facts))
    view = editor.view()
    for fact in facts:
        assert view.used([fact.text, *fact.paraphrases]) == [(fact.id,)] * (1 + len(fact.paraphrases))
        assert view.used([entry.prompt for entry in fact.neighbours]) == [()] * len(fact.neighbours)


def test_the_record_in_the_file_is_complete(model: LanguageModel, pool: str, tmp_path: Path) -> None:
    editor = made(model, mode="ike", pool=pool)
    edit = editor.apply(FACTS)
    edit.save(tmp_path / "edit")
    loaded = StoredEdit.load(tmp_path / "edit")
    assert loaded.method == "retrieval"
    assert RetrievalSettings.model_validate(json.loads(json.dumps(dict(loaded.settings)))) == editor.settings
    assert set(loaded.state["digests"]) == {"pool"}
    other = Retrieval(model, RetrievalSettings.model_validate(loaded.settings))
    other.restore(loaded)
    assert other.fingerprint() == editor.fingerprint()
    assert texts(other, [ITALY.text]) == texts(editor, [ITALY.text])
