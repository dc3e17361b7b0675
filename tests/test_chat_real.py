"""SmolLM2 in its own chat template: its own reply counts as right there, and after an edit it says the new answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.benchmark.recipe_search import starting_recipe
from errata.editing.methods import method_named
from errata.editors.locate_then_edit import Editor
from errata.evaluation.chat import chat_questions, evaluate_chat
from errata.facts.fact import Fact, Question
from errata.facts.joining import joined
from errata.models.language_model import LanguageModel
from errata.models.likelihood import score
from errata.models.prompts import chat_text, encode

pytestmark = [pytest.mark.real, pytest.mark.slow]

DOCS = Path(__file__).resolve().parents[1] / "docs"
FACT = Fact(
    "france",
    "France",
    "What is the capital of {}?",
    "Rome",
    old="Paris",
    neighbours=(Question("What is the capital of Russia?", "Moscow"),),
)


def test_after_an_edit_the_model_says_the_new_answer_in_its_chat_template(smollm2: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))  # any English will do
    corpus.write_text(text, encoding="utf-8")
    model = LanguageModel.load(smollm2)
    asked = chat_questions([FACT])
    chat = chat_text(model.tokenizer, FACT.text)
    messages = [{"role": "user", "content": FACT.text}]
    read = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode(model.tokenizer, [chat])[0].ids == tuple(read)

    before = evaluate_chat(model, asked)
    assert [record.value for record in before] == [0.0, 1.0], "it answers Paris and Moscow"
    # Control: what the model itself replies is right, token for token, where its reply is joined to the template.
    assert score(model, [(chat, before[0].said)])[0].correct

    statistics = {"corpus": str(corpus), "tokens": 5_000, "length": 128}
    columns = model.weight(0).shape[1]
    recipe = starting_recipe(str(smollm2), method_named("memit"), (4, 5, 6), columns, statistics, batch_size=1)
    contexts = recipe.contexts.model_copy(update={"openers": ("The",)})
    target = recipe.target.model_copy(update={"steps": 15})
    recipe = recipe.model_copy(update={"contexts": contexts, "target": target})
    Editor(model, recipe, cache=tmp_path / "statistics").apply([FACT])
    assert score(model, [FACT.pair(FACT.target)])[0].correct
    (said,) = model.continue_texts([FACT.text], new_tokens=8)
    assert (FACT.text + said).startswith(joined(FACT.text, FACT.target))
    after = evaluate_chat(model, asked)
    assert [record.value for record in after] == [1.0, 1.0], "it replies with Rome, and still with Moscow"
