"""Written texts, their fluency and their consistency: by hand, and against dictionaries."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from errata.errors import FaultsError, InputError, MissingExtraError
from errata.evaluation.texts import (
    TermWeights,
    TextSettings,
    WrittenText,
    absent_consistency,
    absent_fluency,
    corpus_weights,
    evaluate_consistency,
    evaluate_fluency,
    ngram_entropy,
    read_references,
    weighted_entropy,
    write_texts,
)
from errata.facts.fact import Fact
from errata.results.metrics import Metric

from tests.reference.generation import continue_slowly
from tests.reference.texts import cosine, entropy, inverse_frequencies
from tests.support.editing import tiny_language_model
from tests.support.errors import raises_code
from tests.support.three_tokens import three_token_model

PROMPTS = ("Danielle Darrieux was born in", "The mother tongue of Danielle Darrieux", "Danielle Darrieux was born in")
FACT = Fact("f", "Danielle Darrieux", "{} speaks", "English", generation=PROMPTS, relation="language")
OTHER = Fact("g", "Bernstein", "{} plays", "the piano", generation=("Bernstein",), relation="plays")
TEXT = "The cat sat on the mat. The cat sat on the mat, and it didn't move."
CORPUS = [TEXT, "The dog and the cat move.", "Nothing else."]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
def test_a_text_has_so_many_tokens_and_does_not_depend_on_others(family: str) -> None:
    model = tiny_language_model(family)
    settings = TextSettings(tokens=24, seed=5)
    written = write_texts(model, [FACT, OTHER], settings)
    assert [(text.fact, text.prompt) for text in written] == [
        *(("f", prompt) for prompt in PROMPTS),
        ("g", "Bernstein"),
    ]
    assert all(text.text.startswith(text.prompt) for text in written)
    assert written[0].text != written[2].text, "equal prompts of a fact give two texts"
    for token_budget in (1, 60):
        assert write_texts(model, [FACT, OTHER], settings, token_budget=token_budget) == written
    assert write_texts(model, [OTHER], settings) == written[3:]
    assert write_texts(model, [OTHER], TextSettings(tokens=24, seed=6)) != written[3:]
    greedy = write_texts(model, [OTHER], TextSettings(tokens=24, top_k=1))
    row = model.tokenizer("Bernstein")["input_ids"]
    whole = row + continue_slowly(model, row, 24 - len(row))
    assert len(whole) == 24
    assert greedy[0].text == model.tokenizer.decode(whole, skip_special_tokens=True)
    assert write_texts(model, [OTHER], TextSettings(tokens=1))[0].text == "Bernstein", "no room for more"


def test_an_end_of_text_ends_no_text() -> None:
    model = three_token_model(["a", "b", "c"], [[0, 9, 0], [0, 0, 9], [9, 0, 0]])
    model.model.generation_config.eos_token_id = 2
    fact = Fact("f", "a", "{}", "b", generation=("a",))
    assert write_texts(model, [fact], TextSettings(tokens=6, top_k=1))[0].text == "abcabc"


def test_entropy_by_hand() -> None:
    assert ngram_entropy("a b a b".split(), 2) == pytest.approx(math.log2(3) - 2 / 3)  # ab twice, ba once
    assert ngram_entropy("a b c d e".split(), 2) == pytest.approx(2.0)
    assert ngram_entropy("a a a a".split(), 2) == 0.0
    assert [ngram_entropy(["a"], n) for n in (1, 2, 3)] == [0.0, 0.0, 0.0]
    # Four pairs, all different: 2 bits; three threes, all different: log2 3 bits.
    assert weighted_entropy("a b c d e".split()) == pytest.approx(100 * (2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)


def test_fluency_of_texts() -> None:
    from nltk.tokenize import TreebankWordTokenizer  # slow, so not while tests are collected

    texts = [WrittenText("f", "The cat", TEXT), WrittenText("f", "No", "No no no no no")]
    records = evaluate_fluency(texts)
    words = "The cat sat on the mat. The cat sat on the mat , and it did n't move .".split()
    assert TreebankWordTokenizer().tokenize(TEXT) == words
    expected = 100 * (2 / 3 * entropy(words, 2) + 4 / 3 * entropy(words, 3)) / 2
    assert records[0].value == pytest.approx(expected, rel=1e-12)
    assert (records[0].fact, records[0].metric, records[0].prompt, records[0].said) == (
        "f",
        Metric.FLUENCY,
        "The cat",
        TEXT,
    )
    # "No no", then "no no" thrice; "No no no", then "no no no" twice.
    two, three = 0.25 * 2 + 0.75 * math.log2(4 / 3), math.log2(3) - 2 / 3
    assert records[1].value == pytest.approx(100 * (2 / 3 * two + 4 / 3 * three) / 2)
    assert absent_fluency([FACT]) == {}
    assert set(absent_fluency([Fact("a", "b", "{} c", "d")])) == {Metric.FLUENCY}


def test_consistency_of_texts() -> None:
    weights = TermWeights.fit(CORPUS)
    idf = inverse_frequencies(CORPUS)
    assert dict(zip(weights.words, weights.idf.tolist(), strict=True)) == pytest.approx(idf)
    written = [
        WrittenText("f", "p", "The cat and a dog"),
        WrittenText("f", "q", "did move"),
        WrittenText("g", "r", "x"),
    ]
    references = {("language", "English"): ("The dog sat.", "Nothing, nothing!"), ("language", "French"): ("cat",)}
    (record,) = evaluate_consistency(written, [FACT, OTHER], references, weights)
    expected = cosine("The cat and a dog did move", "The dog sat. Nothing, nothing!", idf)
    assert record.value == pytest.approx(100 * expected, rel=1e-9)
    assert 0 < record.value < 100
    assert (record.fact, record.prompt, record.said) == ("f", "p", "The cat and a dog did move")
    # By hand: one word each, the same.
    (same,) = evaluate_consistency([WrittenText("f", "p", "Dog")], [FACT], {("language", "English"): ("dog",)}, weights)
    assert same.value == pytest.approx(100)
    (none,) = evaluate_consistency([WrittenText("f", "p", "xyz")], [FACT], {("language", "English"): ("dog",)}, weights)
    assert none.value == 0
    with raises_code("REFERENCES_WITHOUT_KNOWN_WORDS", FaultsError, "'language'", "'English'"):
        evaluate_consistency(written, [FACT], {("language", "English"): ("unheard",)}, weights)


def test_what_consistency_lacks() -> None:
    references = {("language", "English"): ("text",)}
    assert absent_consistency([FACT, OTHER], references) == {}
    no_relation = Fact("a", "b", "{} c", "d", generation=("b",))
    reasons = [
        absent_consistency([Fact("a", "b", "{} c", "d")], references),
        absent_consistency([FACT], None),
        absent_consistency([no_relation], references),
        absent_consistency([OTHER], references),
    ]
    assert all(set(reason) == {Metric.CONSISTENCY} for reason in reasons)
    assert len({reason[Metric.CONSISTENCY] for reason in reasons}) == 4


def test_weights_from_files(tmp_path: Path) -> None:
    weights = TermWeights.fit(CORPUS)
    weights.write(tmp_path / "weights.json")
    found = TermWeights.read(tmp_path / "weights.json")
    assert found.words == weights.words
    assert found.idf.tolist() == weights.idf.tolist()
    order = list(reversed(range(len(weights.words))))
    index = {weights.words[place]: number for number, place in enumerate(order)}
    (tmp_path / "vocabulary.json").write_text(json.dumps(index), encoding="utf-8")
    np.save(tmp_path / "idf.npy", weights.idf[order])
    published = TermWeights.read_published(tmp_path / "vocabulary.json", tmp_path / "idf.npy")
    assert published.vectors([TEXT])[0].tolist() == pytest.approx(weights.vectors([TEXT])[0][order].tolist())
    (tmp_path / "other.json").write_text('{"words": ["a"]}', encoding="utf-8")
    (tmp_path / "vocabulary.json").write_text('{"a": 0, "b": 2}', encoding="utf-8")
    with raises_code("FILE_WRONG_FORMAT", InputError):
        TermWeights.read(tmp_path / "other.json")
    with raises_code("TERM_WEIGHTS_INVALID", InputError, "none.json"):
        TermWeights.read(tmp_path / "none.json")
    with raises_code("TERM_WEIGHTS_INVALID", InputError):
        TermWeights.read_published(tmp_path / "vocabulary.json", tmp_path / "idf.npy")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    (tmp_path / "vocabulary.json").write_text('{"a": 0}', encoding="utf-8")
    with raises_code("TERM_WEIGHTS_INVALID", InputError):
        TermWeights.read_published(tmp_path / "vocabulary.json", tmp_path / "objects.npy")
    with raises_code("TERM_WEIGHTS_INVALID", InputError):
        TermWeights.read_published(tmp_path / "vocabulary.json", tmp_path / "idf.npy")
    with raises_code("TERM_WEIGHTS_INVALID", InputError):
        TermWeights(("a",), np.array([math.nan]))
    with raises_code("CORPUS_TOO_SMALL", InputError):
        TermWeights.fit(["a b c"])
    (tmp_path / "idf.npy").write_bytes(b"")
    with raises_code("TERM_WEIGHTS_INVALID", InputError):
        TermWeights.read_published(tmp_path / "vocabulary.json", tmp_path / "idf.npy")


def test_the_vocabulary_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    made: list[object] = []

    class Counting(TfidfVectorizer):  # type: ignore[misc]
        def __init__(self, **options: object) -> None:
            made.append(options)
            super().__init__(**options)

    weights = TermWeights.fit(CORPUS)
    expected = weights.vectors([TEXT, "other"]).tolist()
    monkeypatch.setattr("sklearn.feature_extraction.text.TfidfVectorizer", Counting)
    again = TermWeights(weights.words, weights.idf)
    assert [again.vectors([text])[0].tolist() for text in (TEXT, "other")] == expected
    assert len(made) == 1


def test_references_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "references.jsonl"
    lines = [{"relation": "r", "target": "t", "text": text} for text in ("one", "two")]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    assert read_references(path) == {("r", "t"): ("one", "two")}
    path.write_text('{"relation": "r", "target": " ", "txt": "x"}\n[1]\nno\n', encoding="utf-8")
    with pytest.raises(FaultsError) as caught:
        read_references(path)
    message = str(caught.value)
    assert "5 faults" in message
    for part in ("'txt' is unknown", "'target' is missing", "'text' is missing", ":2: the line", ":3: invalid JSON"):
        assert part in message
    path.write_text("[" * 100_000 + "\n", encoding="utf-8")
    with raises_code("JSON_INVALID", FaultsError):
        read_references(path)
    path.write_text("\n", encoding="utf-8")
    with raises_code("REFERENCES_EMPTY", InputError):
        read_references(path)
    with raises_code("FILE_UNREADABLE", InputError, "none.jsonl"):
        read_references(tmp_path / "none.jsonl")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    for work in (lambda: evaluate_fluency([]), lambda: TermWeights.fit(CORPUS)):
        with pytest.raises(MissingExtraError, match=r"errata\[eval\]"):
            work()


def test_weights_of_a_corpus_are_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(CORPUS), encoding="utf-8")
    first = corpus_weights(str(corpus), cache=tmp_path / "cache")
    expected = TermWeights.fit(CORPUS)
    assert first.words == expected.words
    assert first.idf.tolist() == expected.idf.tolist()
    fitted: list[int] = []
    monkeypatch.setattr(TermWeights, "fit", classmethod(lambda cls, documents: fitted.append(1) or expected))
    again = corpus_weights(str(corpus), cache=tmp_path / "cache")
    assert (again.words, again.idf.tolist(), fitted) == (first.words, first.idf.tolist(), [])
    corpus.write_text("\n\n".join([*CORPUS, "another word"]), encoding="utf-8")
    corpus_weights(str(corpus), cache=tmp_path / "cache")
    assert fitted == [1]
