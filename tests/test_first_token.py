"""Facts whose subject is the first token of the text, where models without BOS keep an attention sink."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from errata.editors.locate_then_edit import Editor
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site

from tests.support.editing import FACTS, mean_keys, tiny_language_model, tiny_recipe, write_corpus

FIRST = Fact("first", "The", "{} think that the piano is what she plays in", "Rome")


@pytest.mark.parametrize(("family", "named"), [("qwen2", True), ("llama", False)])
def test_an_edit_names_the_facts_that_begin_their_text(
    family: str, named: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe(write_corpus(tmp_path / "corpus.txt"), target={"steps": 2})
    editor = Editor(tiny_language_model(family), recipe, cache=tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        editor.apply([FIRST, *FACTS[:2]])
    warnings = [record.getMessage() for record in caplog.records if record.name == "errata.editors.locate_then_edit"]
    assert [("first" in text, "tower" in text) for text in warnings] == ([(True, False)] if named else [])


@pytest.mark.real
def test_keys_on_a_real_model_are_not_those_of_its_first_tokens(smollm2: Path) -> None:
    model = LanguageModel.load(smollm2, device="cpu")
    facts = [
        Fact(name, name, "{} is a country on the continent of", "Africa") for name in ("France", "Japan", "Canada")
    ]
    starts = ("Germany", "The", "Water", "Once", "Two", "London")
    rows = [tuple(model.tokenizer(word).input_ids) for word in starts]
    assert {len(row) for row in rows} == {1}
    others = model.capture_last(rows, {Site.KEY: [4, 8]})
    for layer in (4, 8):
        keys = mean_keys(model, facts, ("The world is a large place", "Therefore"), layer)
        cosines = (
            torch.nn.functional.normalize(keys, dim=0).T
            @ torch.nn.functional.normalize(others[Site.KEY, layer].double(), dim=1).T
        )
        assert float(cosines.abs().max()) < 0.3  # 0.47 to 1.00 for the keys of the bare prompts
