"""Embedders against their definitions, gates, and thresholds calibrated at the size of the memory that is run."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from errata.editors.calibration import best_threshold, facts_of
from errata.editors.embedders import Hidden, HiddenEmbedder, Lexical, LexicalEmbedder, Sentence
from errata.editors.memory_search import (
    CosineGate,
    MarginGate,
    Memory,
    SearchSettings,
    SubjectGate,
    calibrate,
)
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import encode

from tests.reference.retrieval import balanced_accuracy, lexical_cosine, whitened
from tests.support.editing import FACTS, corpus_texts, read_whole, tiny_language_model, write_corpus
from tests.support.errors import raises_code

TEXTS = [fact.text for fact in FACTS]
QUERIES = [
    "What is the mother tongue of danielle darrieux?",
    "  The (Eiffel) Tower,  stands in ",
    "Io",
    "Etwas ganz anderes: Überfluß",
    "...",
    "",
    *TEXTS,
]


def search(**changes: object) -> SearchSettings:
    return SearchSettings.model_validate(changes)


# Embedders


def test_lexical_cosines_are_those_of_the_definition() -> None:
    index = LexicalEmbedder().index(TEXTS)
    found = index.cosines(QUERIES)
    expected = [[lexical_cosine(TEXTS, place, query) for place in range(len(TEXTS))] for query in QUERIES]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(found[-len(TEXTS) :].diagonal(), torch.ones(len(TEXTS), dtype=torch.float64))
    assert not found[QUERIES.index("...")].any()
    # The weights are those of this memory: in another one the same pair has another cosine.
    other = LexicalEmbedder().index([TEXTS[0]]).cosines([QUERIES[0]])
    assert abs(float(other) - float(found[0, 0])) > 1e-3


@pytest.mark.parametrize("texts", [[], ["?"], ["?", "Io"]])
def test_memories_without_ngrams(texts: list[str]) -> None:
    found = LexicalEmbedder().index(texts).cosines(["Io", "?"])
    assert found.shape == (2, len(texts))
    assert not found.isnan().any()
    assert LexicalEmbedder().index(texts).cosines([]).shape == (0, len(texts))


def states_of(model: LanguageModel, layer: int, text: str, length: int) -> Tensor:
    ids = encode(model.tokenizer, [text])[0].ids[:length]
    states = read_whole(model, ids)[Site.BLOCK, layer].double()
    return states[1:] if len(ids) > 1 else states


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_hidden_cosines_are_those_of_whitened_means(family: str, tmp_path: Path) -> None:
    model = tiny_language_model(family, dtype=torch.float64)
    documents = corpus_texts()[::10]
    corpus = write_corpus(tmp_path / "corpus.txt", documents)
    settings = Hidden(corpus=str(corpus), tokens=1_000_000, ridge=0.01)
    layer = len(model.blocks) // 2
    queries = [query for query in QUERIES if query]
    vectors = whitened(
        [states_of(model, layer, text, 999) for text in [*TEXTS, *queries]],
        [states_of(model, layer, text, 32) for text in documents],
        [states_of(model, layer, text, 256) for text in documents],
        ridge=0.01,
    )
    embedder = settings.embedder(model)
    found = embedder.index(TEXTS).cosines(queries)
    torch.testing.assert_close(found, vectors[len(TEXTS) :] @ vectors[: len(TEXTS)].T, atol=1e-8, rtol=0)
    alone = torch.cat([settings.embedder(model).index(TEXTS).cosines([query]) for query in queries])
    torch.testing.assert_close(alone, found, atol=1e-8, rtol=0)
    # A layer of choice is another embedder; a layer that does not exist is refused.
    other = settings.model_copy(update={"layer": 1}).embedder(model).index(TEXTS).cosines(queries)
    assert float((other - found).abs().max()) > 1e-3
    with raises_code("LAYER_UNKNOWN"):
        settings.model_copy(update={"layer": 99}).embedder(model)


def write_encoder(folder: Path, mode: str = "pooling_mode_mean_tokens") -> tuple[BertModel, PreTrainedTokenizerFast]:
    """A tiny sentence-transformers directory."""
    tokenizer = tiny_language_model("llama").tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, mode: True}))
    names = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    parts = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in names.items()]
    (folder / "modules.json").write_text(json.dumps(parts))
    return model, tokenizer


@pytest.mark.parametrize("mode", ["pooling_mode_mean_tokens", "pooling_mode_cls_token"])
def test_a_sentence_encoder_is_read_from_its_directory(mode: str, tmp_path: Path) -> None:
    encoder, tokenizer = write_encoder(tmp_path, mode)
    queries = QUERIES[:3]
    vectors = []
    for text in [*TEXTS, *queries]:
        with torch.no_grad():
            states = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
        vectors.append(states[0] if "cls" in mode else states.mean(0))
    expected = torch.nn.functional.normalize(torch.stack(vectors), dim=1)
    embedder = Sentence(directory=str(tmp_path)).embedder(tiny_language_model("llama"))
    found = embedder.index(TEXTS).cosines(queries)
    torch.testing.assert_close(found, expected[len(TEXTS) :] @ expected[: len(TEXTS)].T, atol=1e-5, rtol=0)


def test_directories_that_are_no_sentence_encoder_are_refused(tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    with raises_code("ENCODER_UNREADABLE"):
        Sentence(directory=str(tmp_path / "none")).embedder(model)
    write_encoder(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with raises_code("ENCODER_UNREADABLE", InputError, "Dense"):
        Sentence(directory=str(tmp_path)).embedder(model)


def test_no_cosine_exceeds_one_by_rounding() -> None:
    embedder = Hidden(tokens=100).embedder(tiny_language_model("llama"))
    assert isinstance(embedder, HiddenEmbedder)
    texts = corpus_texts()[:100]
    cosines = embedder.index(texts).cosines(texts)
    assert float(cosines.max()) == 1.0  # a threshold above 1 would be no valid setting
    vectors = embedder.vectors(texts)
    assert float((vectors @ vectors.T).max()) > 1.0


# Gates


def hits(settings: SearchSettings, queries: list[str], facts: tuple[Fact, ...] = FACTS) -> list[list[str]]:
    memory = Memory(facts, LexicalEmbedder(), settings)
    return [[facts[place].id for place, _ in found] for found in memory.search(queries)]


def test_the_subject_is_a_whole_word_with_its_capitals() -> None:
    facts = (*FACTS, Fact("moon", "Io", "{} is a moon of", "Saturn"))
    queries = [
        "The capital of Italy was",
        "italy is",
        "Italians speak",
        "Io is near",
        "The region",
        "Italy's capital",
        "",
    ]
    assert hits(search(), queries, facts) == [["capital"], [], [], ["moon"], [], ["capital"], []]


def test_all_named_gates_must_hold_and_the_nearest_come_first() -> None:
    twin = replace(FACTS[3], id="sea", prompt="The sea that is nearest to {} is", target="the Baltic")
    facts = (*FACTS, twin)
    query = "The capital of Italy is now"
    assert hits(search(k_facts=9), [query], facts) == [["capital", "sea"]]
    assert hits(search(), [query], facts) == [["capital"]]
    cosines = Memory(facts, LexicalEmbedder(), search()).cosines([query])[0]
    second = float(cosines.sort().values[-2])
    both = [{"kind": "cosine", "threshold": second + 0.01}, {"kind": "subject"}]
    assert hits(search(gates=both, k_facts=9), [query, "Italy has many rivers and mountains"], facts) == [
        ["capital"],
        [],
    ]
    # Without the subject gate a fact may be hit by words alone.
    assert hits(search(gates=both[:1]), ["The capital of Iceland is"], facts) == [["capital"]]
    assert hits(search(gates=both), ["The capital of Iceland is"], facts) == [[]]
    gap = float(cosines.max()) - second
    for margin, expected in ((gap - 1e-6, ["capital"]), (gap + 1e-6, [])):
        assert hits(search(gates=[{"kind": "margin", "margin": margin}], k_facts=9), [query], facts) == [expected]
    assert hits(search(gates=[{"kind": "margin", "margin": 2.0}]), ["x"], FACTS[:1]) == [[FACTS[0].id]]


def test_of_equally_near_facts_the_later_counts() -> None:
    again = replace(FACTS[0], id="again", target="Greek")
    assert hits(search(), [FACTS[0].text], (FACTS[0], again)) == [["again"]]


def test_several_texts_of_a_fact_the_nearest_counts() -> None:
    fact = replace(FACTS[3], old="Rome")
    query = "The capital of Italy is Lisbon"
    cosines = {
        kind: float(Memory([fact], LexicalEmbedder(), search(embeds=[kind])).cosines([query]))
        for kind in ("prompt", "statement", "old_statement")
    }
    assert cosines["statement"] == pytest.approx(1)
    assert cosines["statement"] > cosines["prompt"]
    assert cosines["old_statement"] != cosines["prompt"]
    memory = Memory([fact, FACTS[0]], LexicalEmbedder(), search(embeds=["prompt", "statement"]))
    assert memory.cosines([query]).shape == (1, 2)
    assert float(memory.cosines([query])[0, 0]) == pytest.approx(1)


# Calibration


def test_the_best_threshold_is_the_best_of_all() -> None:
    generator = random.Random(0)
    for _ in range(200):
        positives = [
            generator.choice([-math.inf, *(n / 10 for n in range(10))]) for _ in range(generator.randint(1, 9))
        ]
        negatives = [generator.choice([-math.inf, *(n / 10 for n in range(9))]) for _ in range(generator.randint(1, 9))]
        threshold, hit_rate, refusal_rate = best_threshold(positives, negatives)
        grid = [-1 + n / 40 for n in range(81)]
        found = balanced_accuracy(threshold, positives, negatives)
        assert found == pytest.approx((hit_rate + refusal_rate) / 2)
        assert found == pytest.approx(max(balanced_accuracy(value, positives, negatives) for value in grid))
        assert threshold not in (*positives, *negatives)  # rounding decides nothing


def test_rates_are_of_the_size_that_is_run() -> None:
    held_out, edited = facts_of("lab"), facts_of("lab")
    settings = search(gates=[{"kind": "cosine"}], embedder={"kind": "lexical"})
    edited = [Fact(f"e{n}", f"Zq{n} Xw{n}", fact.prompt, fact.target) for n, fact in enumerate(edited)]
    found = [calibrate(held_out[:60], edited[:count], LexicalEmbedder(), settings) for count in (1, 30, 150)]
    assert [entry.facts for entry in found] == [1, 30, 150]
    assert len({(entry.positives, entry.negatives) for entry in found}) == 1
    assert found[0].hit_rate + found[0].refusal_rate > found[2].hit_rate + found[2].refusal_rate
    # With 1 fact in memory: each fact alone, by hand.
    positives, negatives = [], []
    for fact in held_out[:60]:
        index = LexicalEmbedder().index([fact.text])
        positives += index.cosines(list(fact.paraphrases))[:, 0].tolist()
        negatives += index.cosines([entry.prompt for entry in (*fact.own, *fact.neighbours)])[:, 0].tolist()
    assert (found[0].threshold, found[0].hit_rate, found[0].refusal_rate) == best_threshold(positives, negatives)


def test_a_paraphrase_that_gets_another_fact_is_no_hit() -> None:
    one = Fact("one", "Ada", "{} was born in", "Rome", paraphrases=("Bob, son of Ada, was born in",),
               own=({"prompt": "Ada plays the", "answer": "harp"},))  # fmt: skip
    two = Fact("two", "Bob", "{}, son of Ada, was born in", "Oslo")
    settings = search(gates=[{"kind": "cosine"}])
    found = calibrate([one], [two, replace(two, id="x", subject="Cid")][:1], LexicalEmbedder(), settings)
    assert (found.facts, found.hit_rate) == (1, 1.0)
    found = calibrate(
        [one, two], [replace(two, id=name, subject=name) for name in ("Cid", "Dan")], LexicalEmbedder(), settings
    )
    assert (found.facts, found.hit_rate) == (2, 0.0)


def test_edited_subjects_are_not_calibrated_on() -> None:
    held_out = facts_of("lab")[:20]
    settings = search(gates=[{"kind": "cosine"}])
    with raises_code("CALIBRATION_IMPOSSIBLE"):
        calibrate(held_out, held_out, LexicalEmbedder(), settings)
    half = calibrate(held_out, held_out[:10], LexicalEmbedder(), settings)
    alone = calibrate(held_out[10:], held_out[:10], LexicalEmbedder(), settings)
    assert half == alone


def test_the_other_gates_are_in_force_while_calibrating() -> None:
    held_out = facts_of("lab")[:40]
    edited = [Fact(f"e{n}", f"Zq{n} Xw{n}", fact.prompt, fact.target) for n, fact in enumerate(held_out)]
    only = calibrate(held_out, edited, LexicalEmbedder(), search(gates=[{"kind": "cosine"}]))
    both = calibrate(held_out, edited, LexicalEmbedder(), search(gates=[{"kind": "cosine"}, {"kind": "subject"}]))
    # Neighbours are about other people: none of them passes, and each paraphrase finds its person.
    assert both.hit_rate + both.refusal_rate > only.hit_rate + only.refusal_rate


def test_settings_know_what_they_need() -> None:
    assert search().needs == frozenset()
    assert search(embeds=["old_statement"]).needs == {"old"}
    settings = search(gates=[{"kind": "cosine"}, {"kind": "subject"}, {"kind": "cosine", "threshold": 0.3}])
    assert settings.open_gates == [CosineGate()]
    assert settings.gates_with(0.5) == (CosineGate(threshold=0.5), SubjectGate(), CosineGate(threshold=0.3))
    assert not search(gates=[{"kind": "margin"}]).open_gates
    assert search(gates=[{"kind": "margin"}]).gates == (MarginGate(),)
    assert search().embedder == Lexical()
