"""Facts in the prompts of SmolLM2: it reads them, and is itself where none is inserted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.editors.retrieval import INSTRUCTION, Retrieval, RetrievalSettings
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair, chat_text

KNOWN = (
    Fact("france", "France", "The capital of {} is", "Lyon", old="Paris", paraphrases=("France has the capital",)),
    Fact("eiffel", "The Eiffel Tower", "{} is located in the city of", "Rome", old="Paris",
         paraphrases=("To see The Eiffel Tower, you travel to",)),
    Fact("einstein", "Albert Einstein", "{} was born in the country of", "Norway", old="Germany",
         paraphrases=("The country where Albert Einstein was born is",)),
)  # fmt: skip
MADE_UP = (
    Fact("kovin", "Ardel Kovin", "{} was born in the city of", "Osaka", old="Paris",
         paraphrases=("The birthplace of Ardel Kovin is the city of",)),
    Fact("brenth", "Brenth Marlow", "{} plays the", "harp", old="guitar",
         paraphrases=("The instrument that Brenth Marlow plays is the",)),
)  # fmt: skip
OTHERS = [
    "The capital of Italy is",
    "The Colosseum is located in the city of",
    "Isaac Newton was born in the country of",
]
MESSAGES = ["In which city was Ardel Kovin born?", "What is the capital of Italy?"]


@pytest.mark.real
def test_smollm2_reads_the_facts(smollm2: Path) -> None:
    """It answers with inserted facts about people that it does not know; about known ones they become likelier only."""
    model = LanguageModel.load(smollm2, dtype=torch.float32, device="cpu")
    editor = Retrieval(model, RetrievalSettings())
    editor.apply((*KNOWN, *MADE_UP))
    view = editor.view()
    asked = [(fact, prompt) for fact in (*KNOWN, *MADE_UP) for prompt in (fact.text, *fact.paraphrases)]
    targets = [fact.pair(fact.target, prompt) for fact, prompt in asked]
    after, before = view.score(targets), model.score(targets)
    assert all(new.log_probability > old.log_probability for new, old in zip(after, before, strict=True))
    by_hand: list[Pair] = [(f"{fact.text} {fact.target}.\n{prompt}", fact.target, " ") for fact, prompt in asked]
    for found, expected in zip(after, model.score(by_hand), strict=True):
        assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
    assert sum(found.correct for found in after[-4:]) >= 3
    assert not any(found.correct for found in before[-4:])
    assert view.score([(prompt, "Rome") for prompt in OTHERS]) == model.score([(prompt, "Rome") for prompt in OTHERS])
    chats = [chat_text(model.tokenizer, message) for message in MESSAGES]
    inserted, nothing = view.rewritten(chats)
    assert nothing is None
    assert inserted is not None
    assert inserted.text.startswith(
        f"<|im_start|>system\n{INSTRUCTION}\nArdel Kovin was born in the city of Osaka.<|im_end|>"
    )
    answers = view.continue_texts(chats, new_tokens=20)
    assert "Osaka" in answers[0]
    assert answers[1:] == model.continue_texts(chats[1:], new_tokens=20)
