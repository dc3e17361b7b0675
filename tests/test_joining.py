"""The text between a prompt and its answer; a model's own answers are correct by this rule in every script."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from errata.editing.search_prompts import SearchPrompts
from errata.errors import FaultsError, InputError
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact, Question
from errata.facts.files import facts_from_records, read_facts, write_facts
from errata.facts.joining import holds_name, joined, joiner_of, word_places
from errata.facts.tokens import token_faults
from errata.models.language_model import LanguageModel, Site
from errata.models.likelihood import score
from errata.models.prompts import chat_frame, chat_text, complete, encode

from tests.support.errors import raises_code
from tests.support.tiny_models import byte_level_tokenizer, metaspace_tokenizer, tiny_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<user>\n{{ m['content'] | trim }}<end>\n{% endfor %}{{ '<model>\\n' }}"
)


def test_the_joiner_depends_on_script_and_punctuation() -> None:
    for prompt, answer, joiner in (
        ("The capital of France is", "Paris", " "),
        ("파리는", "도시", " "),
        ("Столица Франции —", "Париж", " "),
        ("法国的首都是", "巴黎", ""),
        ("法国的首都：", "巴黎", ""),
        ("法国的首都叫“巴黎”", "吗", ""),
        ("第二次世界大战结束于公元", "1945", ""),
        ("公元1945", "年", ""),
        ("日本の首都は", "東京", ""),
        ("フランスのしゅとは", "パリ", ""),
        ("ประเทศฝรั่งเศสมีเมืองหลวงคือ", "ปารีส", ""),
        ("สงครามสิ้นสุดในปี พ.ศ.", "2488", " "),
        ("ເມືອງຫຼວງແມ່ນ", "ປາຣີ", ""),
        ("រដ្ឋធានីគឺ", "ប៉ារីស", ""),
        ("Q: Which city?\nA:\n", "Paris", ""),
        ("Q: Which city?\nA:", "Paris", " "),
        ("He said “", "Paris", ""),
        ('He said: "', "Paris", ""),
        ('{"capital": "', "Paris", ""),
        ('The word "Paris"', "is", " "),
        ("Die Stadt „Rom“", "ist", " "),
        ("Die Stadt »", "Rom", ""),
        ("La ville «Rome»", "est", " "),
        ("The students'", "books", " "),
        ('A screen of 5"', "is", " "),
        ("Paris (", "France", ""),
        ("日本の首都は「", "東京", ""),
    ):
        assert joiner_of(prompt, answer) == joiner, prompt
        assert joined(prompt, answer) == prompt + joiner + answer
        assert joined(prompt, answer, "") == prompt + answer


def chat_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    tokenizer = {
        "gpt2": lambda: byte_level_tokenizer(False),
        "opt": lambda: byte_level_tokenizer(True),
        "llama": lambda: metaspace_tokenizer(True),
        "gemma2": lambda: metaspace_tokenizer(True, prefix_space=False),
    }[kind]()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


# Text in these scripts, cut where a model continues.
WRITTEN = [
    ("The capital of France is", " Paris"),
    ("法国的首都是", "巴黎"),
    ("日本の首都は", "東京"),
    ("เมืองหลวงคือ", "โรม"),
]


def speaker(kind: str) -> tuple[LanguageModel, list[str]]:
    """A model that has learnt to write some texts, and the prompts at which they are cut, a chat among them."""
    tokenizer = chat_tokenizer(kind)
    model, _ = tiny_model(kind)
    texts = [*WRITTEN, (chat_text(tokenizer, "Which city is the capital of Spain?"), "Madrid")]
    eos = tokenizer.eos_token_id
    rows = [[*encode(tokenizer, [prompt + answer])[0].ids, eos] for prompt, answer in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [eos] * (length - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (length - len(row)) for row in rows])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(120):
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        if loss < 0.2:
            break
    model.eval()
    return LanguageModel(model, tokenizer), [prompt for prompt, _ in texts]


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_a_model_s_own_answers_are_correct(kind: str) -> None:
    """Control: the answer that the model gives greedily scores accuracy 1, in every script and in its chat template."""
    model, prompts = speaker(kind)
    said = [text.strip() for text in model.continue_texts(prompts, new_tokens=24)]
    assert said == [answer.strip() for _, answer in WRITTEN] + ["Madrid"], "or nothing is learnt from this test"
    assert [found.correct for found in score(model, list(zip(prompts, said, strict=True)))] == [True] * len(said)
    fact = Fact("1", "法国", "{}的首都是", "巴黎", unrelated=(Question("日本の首都は", "東京"),))
    assert {record.metric: record.value for record in evaluate_facts(model, [fact], tokens=True)} == {
        "efficacy_accuracy": 1, "efficacy_tokens": 1, "unrelated_accuracy": 1, "unrelated_tokens": 1,
    }  # fmt: skip
    # The search for a target looks at the same tokens: it finds that nothing is left to do.
    rows = SearchPrompts(model, [fact], [], 1, (Site.BLOCK,))
    assert rows.answers(torch.zeros_like(rows.origin), argmax=True).argmax_correct


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "gemma2"])
def test_a_prompt_has_the_same_tokens_with_and_without_its_answer(kind: str) -> None:
    tokenizer = chat_tokenizer(kind)
    for pair in (
        ("The capital of France is", "Paris"),
        ("法国的首都是", "巴黎"),
        ("A question\n\n", "Paris"),
        ("A question\n", "Paris"),
        ("Assistant: ", "Paris", ""),
        ("The word 'spoke", "n", ""),
    ):
        (found,) = complete(tokenizer, [pair])
        (alone,) = encode(tokenizer, [pair[0]])
        assert found.ids[: found.target_start] == alone.ids
        assert tokenizer.decode(found.ids, skip_special_tokens=True).strip() == joined(*pair)
        assert len(found.encoded.offsets) == len(found.ids)
        assert found.encoded.offsets[-1][1] == len(joined(*pair))


@pytest.mark.parametrize("kind", ["opt", "llama", "gemma2"])
def test_a_chat_has_the_special_tokens_of_its_template_and_no_more(kind: str) -> None:
    tokenizer = chat_tokenizer(kind)
    messages = [{"role": "user", "content": "Which city?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode(tokenizer, [chat_text(tokenizer, "Which city?")])[0].ids == tuple(expected)
    assert encode(tokenizer, ["Which city?"])[0].ids[0] == tokenizer.bos_token_id
    # A template without BOS has none, as where the template itself is tokenised.
    tokenizer.chat_template = TEMPLATE.removeprefix("{{ bos_token }}")
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.bos_token_id not in expected
    assert encode(tokenizer, [chat_text(tokenizer, "Which city?")])[0].ids == tuple(expected)
    assert encode(tokenizer, ["Which city?"])[0].ids[0] == tokenizer.bos_token_id


def test_chat_frames_and_templates_that_cannot_be_used() -> None:
    tokenizer = chat_tokenizer("llama")
    before, after = chat_frame(tokenizer)
    assert (before, after) == ("<s><user>\n", "<end>\n<model>\n")
    tokenizer.chat_template = "{{ raise_exception('no user here') }}"
    with raises_code("CHAT_TEMPLATE_UNUSABLE", InputError, "no user here"):
        chat_text(tokenizer, "x")
    assert encode(tokenizer, ["plain text"])[0].ids, "plain text needs no template"
    tokenizer.chat_template = "{{ messages | length }}"
    with raises_code("CHAT_TEMPLATE_UNUSABLE", InputError):
        chat_frame(tokenizer)
    tokenizer.chat_template = None
    with raises_code("CHAT_TEMPLATE_MISSING", InputError):
        chat_text(tokenizer, "x")


def test_a_fact_may_say_what_joins_it(tmp_path: Path) -> None:
    facts = [
        Fact("1", "法国", "{}的首都是", "Paris", joiner=" ", own=(Question("法国在", "Europe", " "),)),
        Fact("2", "France", "Q: The capital of {}?\nA: ", "Rome", joiner="", paraphrases=("A city: ",)),
        Fact("3", "France", "The capital of {}?\n", "Rome"),
    ]
    assert [joined(*fact.pair(fact.target)) for fact in facts] == [
        "法国的首都是 Paris", "Q: The capital of France?\nA: Rome", "The capital of France?\nRome",
    ]  # fmt: skip
    for suffix in ("jsonl", "csv"):
        write_facts(facts, tmp_path / f"facts.{suffix}")
        assert list(read_facts(tmp_path / f"facts.{suffix}")) == facts
    assert "joiner" not in facts[2].to_record()
    for wrong in (
        {"prompt": "The capital of {} is "},
        {"joiner": "  "},
        {"joiner": 3},
        {"own": ({"prompt": "x ", "answer": "y"},)},
        {"own": ({"prompt": "x", "answer": "y", "joiner": "-"},)},
        {"paraphrases": ("x ",)},
    ):
        with pytest.raises(FaultsError):
            facts_from_records([{"subject": "France", "prompt": "{} is", "target": "Rome", **wrong}])


def test_a_fact_s_joiner_counts_in_every_measure() -> None:
    """The fact's own prompt and its paraphrases follow its joiner, its questions their own."""
    model, tokenizer = tiny_model("gpt2")
    lm = LanguageModel(model, tokenizer)
    plain = Fact("1", "France", "{} is", "Rome", truth="Paris", paraphrases=("It is",))
    for joiner in ("", " "):
        fact = Fact("1", "France", "{} is", "Rome", truth="Paris", paraphrases=("It is",), joiner=joiner)
        said = {record.prompt: record.said for record in evaluate_facts(lm, [fact])}
        for prompt in ("France is", "It is"):
            assert said[prompt] == score(lm, [(prompt, "Rome", joiner)])[0].said
    assert [r.value for r in evaluate_facts(lm, [fact])] == [r.value for r in evaluate_facts(lm, [plain])]


def test_lengths_count_what_joins() -> None:
    facts = [Fact("1", "法国", "{}的首都是", "巴黎"), Fact("2", "France", "{} is", "Rome")]
    read: list[str] = []

    def count(text: str) -> int:
        read.append(text)
        return len(text)

    assert token_faults(facts, ["1", "2"], count_tokens=count, limit=100) == []
    assert {"法国的首都是巴黎", "France is Rome"} <= set(read)
    assert not any("是 巴" in text for text in read)


def test_many_quotes_in_a_row() -> None:
    for quote, joiner in (("\u201d", ""), ('"', ""), ("'", ""), ("\u00ab", ""), (")", " "), ("(", "")):
        assert joiner_of(quote * 5000, "x") == joiner, quote
    assert joiner_of("Rome" + "\u201d" * 5000, "x") == " "


def test_names_are_found_as_whole_words() -> None:
    for text, name, found in (
        ("The region is flat", "Io", False),
        ("Who saw io, the moon?", "Io", True),
        ("Fiona sings", "Io", False),
        ("What is IO\u2019s mass", "Io", True),
        ("the U.S. Senate", "U.S.", True),
        ("Ada_2 and Ada2", "Ada", False),
        ("(Ada)", "Ada", True),
        ("the 19th century", "9", False),
        ("cafe\u0301 Rene\u0301", "Ren\u00e9", True),
        ("cafe\u0301s", "s", False),
        ("日本の首都は東京です", "東京", True),
        ("北京是中国的首都", "中国", True),
        ("เมืองหลวงของประเทศไทยคือกรุงเทพ", "ไทย", True),
        ("서울은 한국의 수도", "서울", True),
        ("신서울은", "서울", False),
        ("anything", "", False),
    ):
        assert holds_name(text, name) is found, text


def test_the_places_of_a_name() -> None:
    assert word_places("Io, Fiona and Io's", "Io") == [0, 14]
    assert word_places("io", "Io") == []
