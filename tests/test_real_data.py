"""Real records and a real tokenizer: positions and targets come out right, and nothing of them is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from errata.editing.contexts import in_context, neutral_leads, subject_rows
from errata.facts.fact import Fact
from errata.facts.files import facts_from_records
from errata.models.language_model import LanguageModel
from errata.models.prompts import complete, encode
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import key_moments
from errata.statistics.settings import StatisticsSettings

from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def gpt2_tokenizer(test_data: Path) -> PreTrainedTokenizerFast:
    from tokenizers import ByteLevelBPETokenizer

    folder = test_data / "gpt2_tokenizer"
    bpe = ByteLevelBPETokenizer.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def counterfact(test_data: Path) -> list[Fact]:
    records = json.loads((test_data / "counterfact" / "counterfact_300.json").read_text(encoding="utf-8"))
    rewrites = [(record["case_id"], record["requested_rewrite"], record["paraphrase_prompts"]) for record in records]
    facts = facts_from_records(
        [
            {
                "id": str(case),
                "subject": rewrite["subject"],
                "prompt": rewrite["prompt"],
                "target": rewrite["target_new"]["str"],
                "truth": rewrite["target_true"]["str"],
                "paraphrases": [prompt.rstrip() for prompt in paraphrases],
            }
            for case, rewrite, paraphrases in rewrites
        ],
        source="counterfact_300.json",
    )
    return list(facts)


def test_every_counterfact_subject_is_found_at_its_last_token(
    counterfact: list[Fact], gpt2_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert len(counterfact) == 300
    model, _ = tiny_model("gpt2", vocab_size=len(gpt2_tokenizer))
    language_model = LanguageModel(model, gpt2_tokenizer)
    for prefix in ("", "The weather was fine and everybody"):
        neutral = neutral_leads(gpt2_tokenizer, counterfact)
        rows = subject_rows(language_model, counterfact, [prefix], neutral)
        assert sum(map(bool, neutral)) in range(1, 20)  # few subjects are one token at the very start
        for fact, row, bare_lead in zip(counterfact, rows, neutral, strict=True):
            read = gpt2_tokenizer.decode(row)
            text, lead = in_context(prefix, fact.text, bare_lead)
            assert read == text[: lead + fact.subject_span[1]]


def test_every_counterfact_target_is_cut_off_exactly_after_its_prompt(
    counterfact: list[Fact], gpt2_tokenizer: PreTrainedTokenizerFast
) -> None:
    completions = complete(gpt2_tokenizer, [(fact.text, fact.target) for fact in counterfact])
    prompts = encode(gpt2_tokenizer, [fact.text for fact in counterfact])
    for fact, completion, prompt in zip(counterfact, completions, prompts, strict=True):
        assert gpt2_tokenizer.decode(completion.target_ids) == f" {fact.target}"
        assert completion.ids[: completion.target_start] == prompt.ids


def test_key_statistics_read_real_articles(test_data: Path, gpt2_tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = open_corpus(str(test_data / "wikitext2" / "valid.txt"))
    model, _ = tiny_model("gpt2", vocab_size=len(gpt2_tokenizer))
    settings = StatisticsSettings(corpus=corpus.name, tokens=3000, length=64)
    moments = key_moments(LanguageModel(model, gpt2_tokenizer), [0, 2], corpus.documents(), settings)
    for moment in moments.values():
        assert moment.count == 3000
        assert float(moment.mean.diagonal().min()) > 0
