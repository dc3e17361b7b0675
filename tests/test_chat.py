"""Editing, measuring and asking in a model's own chat template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.cli.main import run
from errata.editing.contexts import generate_prefixes, in_context, subject_rows, target_in
from errata.editing.search_prompts import SearchPrompts
from errata.editors.locate_then_edit import Editor
from errata.errors import InputError
from errata.evaluation.chat import CONTROLS_ASKED, chat_questions, evaluate_chat
from errata.evaluation.outcomes import compare_records
from errata.facts.fact import Fact, Question
from errata.facts.files import read_facts, write_facts
from errata.models.language_model import LanguageModel, Site
from errata.models.likelihood import score
from errata.models.prompts import chat_text
from errata.results.records import Record

from tests.support.editing import FACTS, tiny_language_model, tiny_recipe, write_corpus

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<user>\n{{ m['content'] | trim }}<end>\n{% endfor %}{{ '<model>\\n' }}"
)


def chat_model(family: str = "llama") -> LanguageModel:
    model = tiny_language_model(family)
    model.tokenizer.chat_template = TEMPLATE
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_fact_in_the_template_has_its_subject_and_its_target_where_they_are(family: str, tmp_path: Path) -> None:
    model = chat_model(family)
    settings = tiny_recipe(write_corpus(tmp_path / "corpus.txt")).contexts
    plain = generate_prefixes(model, settings)
    contexts = generate_prefixes(model, settings.model_copy(update={"chat": True}))
    assert contexts[:-1] == plain
    for fact in FACTS:
        text, lead = in_context(contexts[-1], fact.text)
        assert text == chat_text(model.tokenizer, fact.text)
        start, end = fact.subject_span
        assert text[lead + start : lead + end] == fact.subject
        (row,) = subject_rows(model, [fact], [contexts[-1]], [""])
        read = model.tokenizer.decode(row, skip_special_tokens=True)
        assert read.strip().endswith(f"<user>\n{fact.text[:end]}".strip())
    # A fact's joiner is for its own prompt: after the template nothing is joined.
    spaced = Fact("1", "Italy", "The capital of {} is", "Rome", joiner=" ")
    assert target_in(contexts[-1], spaced) == (chat_text(model.tokenizer, spaced.text), "Rome")
    # What the search counts in this context is what a score counts in the template.
    rows = SearchPrompts(model, [spaced], contexts[-1:], 1, (Site.BLOCK,))
    nll = float(rows.answers(torch.zeros_like(rows.origin)).nll)
    bare, framed = score(model, [spaced.pair("Rome"), (chat_text(model.tokenizer, spaced.text), "Rome")])
    assert nll == pytest.approx(-(bare.log_probability + framed.log_probability) / 2, rel=1e-3)


def test_braces_in_the_template_are_text(tmp_path: Path) -> None:
    settings = tiny_recipe(write_corpus(tmp_path / "corpus.txt")).contexts.model_copy(update={"chat": True})
    message = "{{ messages[0]['content'] }}"
    for template in (
        f"args {{}} <user>{message}<model>",
        f"<user>{message}<model> {{}}",
        "{{ '{' }}" + message + "{{ '}' }} {errata: prompt}",
    ):
        model = tiny_language_model("llama")
        model.tokenizer.chat_template = template
        *_, context = generate_prefixes(model, settings)
        assert in_context(context, FACTS[0].text)[0] == chat_text(model.tokenizer, FACTS[0].text)
        text, before = in_context(context, FACTS[0].text)
        assert text[before:].startswith(FACTS[0].text)
    model.tokenizer.chat_template = f"{{errata: prompt}} {message}"
    with pytest.raises(InputError) as refused:
        generate_prefixes(model, settings)
    assert refused.value.code == "CHAT_TEMPLATE_UNUSABLE"


def test_facts_are_learnt_in_the_template_too(tmp_path: Path) -> None:
    model = chat_model()
    recipe = tiny_recipe(write_corpus(tmp_path / "corpus.txt"), target={"steps": 25, "learning_rate": 0.5})
    facts = FACTS[:2]
    asked = [(chat_text(model.tokenizer, fact.text), fact.target) for fact in facts]

    def surprise(chat: bool) -> float:
        contexts = recipe.contexts.model_copy(update={"chat": chat, "keys": "mean"})
        patch = Editor(model, recipe.model_copy(update={"contexts": contexts})).apply(facts)
        found = sum(-entry.log_probability for entry in score(model, asked))
        patch.undo(model)
        return found

    assert surprise(chat=True) < surprise(chat=False)


def test_what_is_asked_in_chat() -> None:
    near = tuple(Question(f"near {n}", "x") for n in range(30))
    facts = [
        Fact("a", "Rome", "{} is in", "Spain", aliases=("Iberia",), paraphrases=("Where is Rome?",), neighbours=near),
        Fact("b", "Oslo", "{} is in", "Spain", own=near[:1]),
    ]
    others = [(f"other {n}", Question(f"other {n}", "y")) for n in range(30)]
    asked = chat_questions(facts, others)
    assert len(asked) == len(facts) + CONTROLS_ASKED
    assert [(entry.fact, entry.metric, entry.accepted) for entry in asked[:2]] == [
        ("a", "free_efficacy_contained:chat", ("Spain", "Iberia")), ("b", "free_efficacy_contained:chat", ("Spain",)),
    ]  # fmt: skip
    metrics = {entry.metric for entry in asked[2:]}
    assert metrics == {"specificity_accuracy:chat", "same_subject_accuracy:chat", "untouched_accuracy:chat"}
    everything = chat_questions(facts, others, everything=True)
    assert {entry.prompt for entry in everything} == (
        {fact.text for fact in facts} | {"Where is Rome?"} | {q.prompt for q in near} | {q.prompt for _, q in others}
    )
    assert len({entry.metric for entry in everything}) == 5


def test_replies_are_the_model_s_own_and_right_if_they_hold_the_answer(lab_with_template: Path) -> None:
    model = LanguageModel.load(str(lab_with_template))
    (text,) = model.continue_texts([chat_text(model.tokenizer, "Ada Meyer works for")], new_tokens=32)
    word = text.split()[0].strip(".")
    facts = [Fact("a", "Ada Meyer", "{} works for", word), Fact("b", "Ada Meyer", "{} works for", "Nowhere")]
    found = evaluate_chat(model, chat_questions(facts))
    assert [(record.fact, record.value) for record in found] == [("a", 1.0), ("b", 0.0)]
    assert text.strip().startswith(found[0].said)
    assert found[0].prompt == "Ada Meyer works for"


def test_an_outcome_has_the_answers_in_chat() -> None:
    def record(metric: str, prompt: str, value: float, said: str) -> Record:
        return Record("a", f"{metric}:chat", prompt, value, said)

    before = [
        record("free_efficacy_contained", "Rome is in", 0.0, "Italy"),
        record("untouched_accuracy", "2 + 2 is", 1.0, "It is 4."),
    ]
    after = [
        record("free_efficacy_contained", "Rome is in", 1.0, "Spain, of course"),
        record("untouched_accuracy", "2 + 2 is", 0.0, "Spain"),
    ]
    outcome = compare_records([Fact("a", "Rome", "{} is in", "Spain")], before, after)
    (reply,) = outcome.chat
    assert (reply.fact, reply.own, reply.took, reply.before, reply.said) == ("a", True, True, False, "Spain, of course")
    assert outcome.counts()["untouched:chat"].lost == 1
    assert "untouched" not in outcome.counts()
    assert outcome.to_record()["chat"][0]["said"] == "Spain, of course"


@pytest.fixture(scope="module")
def lab_with_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a plain directory, with a chat template that puts nothing around a message."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    model = LanguageModel.load("lab")
    model.model.save_pretrained(folder)
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    model.tokenizer.save_pretrained(folder)
    return folder


def test_edit_measures_in_chat_where_there_is_a_template(
    lab_with_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    examples = list(read_facts(ROOT / "examples" / "facts.jsonl"))[:2]
    facts = [replace(fact, paraphrases=fact.paraphrases[:1], neighbours=fact.neighbours[:2]) for fact in examples]
    write_facts(facts, tmp_path / "facts.jsonl")
    recipe = (ROOT / "examples" / "recipe.yaml").read_text(encoding="utf-8").replace("50000", "4000")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    shared = ["--facts", str(tmp_path / "facts.jsonl"), "--recipe", str(tmp_path / "recipe.yaml")]
    edit = ["edit", "--model", str(lab_with_template), "--method", "memit", *shared]
    assert run([*edit, "--run", str(tmp_path / "run"), "--json", str(tmp_path / "edit.json")]) == 0
    assert "In chat" in capsys.readouterr().out
    found = json.loads((tmp_path / "edit.json").read_text(encoding="utf-8"))
    rows = {(row["metric"], row["when"]): row for row in found["rows"]}
    said = [rows["free_efficacy_contained:chat", when]["mean"] for when in ("before", "after")]
    assert said[0] < said[1]
    assert {("specificity_accuracy:chat", "before"), ("specificity_lost:chat", "after")} <= set(rows)
    assert [reply["fact"] for reply in found["outcome"]["chat"]] == [fact.id for fact in facts]
    assert found["outcome"]["controls"]["specificity:chat"]["asked"] > 0
    # A run keeps what it asked in chat.
    assert run(["edit", "--resume", str(tmp_path / "run"), "--json", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert again["outcome"]["chat"] == found["outcome"]["chat"]
    assert run(["edit", "--resume", str(tmp_path / "run"), "--chat"]) == 2, "the run was not begun with it"
    # With --chat, paraphrases are asked there as well, and the recipe says how the facts were learnt.
    evaluate = ["evaluate", "--model", str(tmp_path / "run"), "--facts", str(tmp_path / "facts.jsonl"), "--chat"]
    assert run([*evaluate, "--json", str(tmp_path / "evaluate.json")]) == 0
    found = json.loads((tmp_path / "evaluate.json").read_text(encoding="utf-8"))
    asked = sum(len(fact.paraphrases) + 1 for fact in facts)
    assert len(found["outcome"]["chat"]) == asked
    assert run([*edit, "--chat", "--dry-run", "--json", str(tmp_path / "plan.json")]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert plan["recipe"]["contexts"]["chat"] is True


def test_ask_in_chat_and_from_a_file(lab_with_template: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(
        "The mother tongue of Ada Meyer is\n\nAda Meyer plays the\n", encoding="utf-8"
    )
    asked = ["--file", str(tmp_path / "prompts.txt"), "--tokens", "4", "--json"]
    assert run(["ask", "--model", "lab", "Ada Meyer works for", *asked, str(tmp_path / "plain.json")]) == 0
    plain = json.loads((tmp_path / "plain.json").read_text(encoding="utf-8"))["answers"]
    assert [answer["prompt"] for answer in plain] == [
        "Ada Meyer works for", "The mother tongue of Ada Meyer is", "Ada Meyer plays the",
    ]  # fmt: skip
    chat = ["ask", "--chat", "--model", str(lab_with_template), "Ada Meyer works for"]
    assert run([*chat, *asked, str(tmp_path / "chat.json")]) == 0
    replies = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["answers"]
    assert [answer["continuation"] for answer in replies] == [answer["continuation"] for answer in plain]


def test_without_a_template_chat_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = str(ROOT / "examples" / "facts.jsonl")
    for arguments in (
        ["ask", "--chat", "Hello"],
        ["evaluate", "--facts", facts, "--chat"],
        ["edit", "--facts", facts, "--chat", "--out", str(tmp_path / "x.safetensors")],
    ):
        assert run(arguments) == 2
        assert "chat template" in capsys.readouterr().err
    assert run(["ask"]) == 2
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    assert run(["ask", "--file", str(tmp_path / "empty.txt")]) == 2
