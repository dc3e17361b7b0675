"""A real pretrained model from end to end: loaded, edited once, measured, undone, exported, asked in chat, saved.

The edit is made once for all of these tests. It is kept cheap: few steps, few tokens of statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.benchmark.recipe_search import starting_recipe
from errata.cli.demo import corrections
from errata.editing.methods import method_named
from errata.editors.locate_then_edit import Editor
from errata.evaluation.recall import evaluate_facts
from errata.models.generation import continue_rows
from errata.models.gguf import as_directory
from errata.models.language_model import LanguageModel
from errata.models.likelihood import score
from errata.models.small_models import small_model
from errata.patches.lora_export import Adapter
from errata.patches.patch import Patch
from errata.utils.files import new_directory

pytestmark = [pytest.mark.real, pytest.mark.slow]

DOCS = Path(__file__).resolve().parents[1] / "docs"
PROMPT = "The capital of Australia is the city of"


@dataclass(frozen=True, slots=True)
class Edited:
    """The model with the edit in it, and what it was before."""

    model: LanguageModel
    patch: Patch
    fingerprint: str
    edited_fingerprint: str


@pytest.fixture(scope="module")
def edited(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edited]:
    folder = tmp_path_factory.mktemp("real")
    corpus = folder / "corpus.txt"
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))  # any English will do
    corpus.write_text(text, encoding="utf-8")
    model = LanguageModel.load(smollm2)
    fingerprint = model.fingerprint()
    statistics = {"corpus": str(corpus), "tokens": 10_000, "length": 128}
    row = method_named("memit+blue")
    columns = model.weight(0).shape[1]
    recipe = starting_recipe(str(smollm2), row, (3, 4, 5, 6, 7), columns, statistics, batch_size=10)
    recipe = recipe.with_choices({"target": {**recipe.target.model_dump(), "steps": 15}})
    facts, _ = corrections()
    patch = Editor(model, recipe, cache=folder / "statistics").apply(facts)
    yield Edited(model, patch, fingerprint, model.fingerprint())


def logits_of(model: LanguageModel | torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    module = model.model if isinstance(model, LanguageModel) else model
    with torch.no_grad():
        return module(ids).logits


def ids_of(model: LanguageModel) -> torch.Tensor:
    return model.tokenizer(PROMPT, return_tensors="pt")["input_ids"]


def test_by_its_gguf_file_and_by_its_directory_it_is_the_same_model() -> None:
    file = small_model("smollm2-135m-instruct").here
    if file is None or not file.is_file():
        pytest.skip("the GGUF file is not here: errata models get smollm2-135m-instruct")
    by_file = LanguageModel.load(file)
    assert by_file.fingerprint() == LanguageModel.load(as_directory(file)).fingerprint()
    assert len(by_file.blocks) == 30
    assert by_file.tokenizer.bos_token == "<|im_start|>"
    assert by_file.tokenizer("Hello")["input_ids"][0] != by_file.tokenizer.bos_token_id  # as its metadata say


def test_the_corrections_are_said_and_the_control_questions_still_answered(edited: Edited) -> None:
    facts, controls = corrections()
    records = evaluate_facts(edited.model, facts)
    said = [record.value for record in records if record.metric == "efficacy_accuracy"]
    assert len(said) == 10
    assert sum(said) >= 9
    kept = [one.correct for one in score(edited.model, [(question.prompt, question.answer) for question in controls])]
    assert sum(kept) >= 18


def test_a_patch_is_undone_bit_by_bit_and_gives_the_same_edit_on_fresh_weights(
    edited: Edited, smollm2: Path, tmp_path: Path
) -> None:
    edited.patch.save(tmp_path / "patch.safetensors")
    fresh = LanguageModel.load(smollm2)
    patch = Patch.load(tmp_path / "patch.safetensors")
    patch.apply(fresh)
    assert fresh.fingerprint() == edited.edited_fingerprint != edited.fingerprint
    patch.undo(fresh)
    assert fresh.fingerprint() == edited.fingerprint


def test_as_an_adapter_in_peft_it_gives_the_edited_models_logits(edited: Edited, smollm2: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(smollm2)
    Adapter.of([edited.patch]).write(tmp_path / "adapter", base)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = ids_of(edited.model)
    torch.testing.assert_close(logits_of(adapted, ids), logits_of(edited.model, ids), rtol=1e-4, atol=1e-3)


def test_in_chat_it_answers_what_was_not_edited_as_before(edited: Edited, smollm2: Path) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    row = edited.model.tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=True)
    ids = row if isinstance(row, list) else row["input_ids"]
    assert ids[0] == edited.model.tokenizer.bos_token_id  # the template's own
    (answer,) = continue_rows(edited.model, [ids], new_tokens=16)
    assert "Paris" in answer


def test_saved_and_loaded_by_plain_transformers_it_is_the_edited_model(
    edited: Edited, smollm2: Path, tmp_path: Path
) -> None:
    with new_directory(tmp_path / "saved") as partial:
        edited.model.write_files(partial)
    ids = ids_of(edited.model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits_of(loaded, ids), logits_of(edited.model, ids), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(PROMPT)["input_ids"] == ids[0].tolist()
    assert (tmp_path / "saved" / "config.json").read_bytes() == (smollm2 / "config.json").read_bytes()
    assert LanguageModel.load(tmp_path / "saved").fingerprint() == edited.edited_fingerprint
