"""Loading a model that is broken, hostile, or not what its parts say: one line that says so, and no number from it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from errata.cli.main import run
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.facts.files import write_facts
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline
from errata.models.prompts import probe_row

from tests.support.editing import tiny_recipe, write_corpus
from tests.support.errors import raises_code
from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "model"
    model, tokenizer = tiny_model("llama_tied")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def change(path: Path, **entries: Any) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**found, **entries}), encoding="utf-8")


def deep(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text('{"a":' * 100_000 + "1" + "}" * 100_000) and None


def pickled(folder: Path) -> None:
    import pickle

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "done"),)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))


def in_tokenizer(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "tokenizer.json", **entries)


def in_config(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", **entries)


def unknown_merge(folder: Path) -> None:
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(folder / "tokenizer.json", model={**found["model"], "merges": [["zz", "qq"]]})


PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
LATE_PANIC = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
BROKEN: dict[str, Callable[[Path], None]] = {
    "deep configuration": deep("config.json"),
    "deep generation configuration": deep("generation_config.json"),
    "deep tokenizer configuration": deep("tokenizer_config.json"),
    "text for a number": in_config(hidden_size="wide"),
    "no heads": in_config(num_attention_heads=0),
    "unknown dtype": in_config(dtype="nonsense"),
    "a list": lambda folder: (folder / "config.json").write_text("[1]") and None,
    "tokenizer configuration as a list": lambda folder: (folder / "tokenizer_config.json").write_text("[]") and None,
    "an unknown merge": unknown_merge,
    "a panic": in_tokenizer(normalizer=PANIC),
    "a panic when it tokenises": in_tokenizer(post_processor=LATE_PANIC),
    "a pickle": pickled,
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_models_are_reported_in_one_line(model: Path, kind: str) -> None:
    BROKEN[kind](model)
    with pytest.raises(InputError) as caught:
        LanguageModel.load(model, device="cpu")
    assert caught.value.code == "MODEL_NOT_LOADED"
    assert len(str(caught.value).splitlines()) == 1
    assert str(model) in str(caught.value)
    assert not (model / "done").exists()
    with suppress(InputError):  # what can be seen without the weights is seen before them
        Outline.load(str(model))


def test_ctrl_c_is_not_a_broken_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("errata.models.language_model.AutoConfig.from_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        LanguageModel.load(model, device="cpu")


def test_blocks_that_the_configuration_leaves_out_are_refused(model: Path) -> None:
    change(model / "config.json", num_hidden_layers=4)
    with raises_code("MODEL_NOT_LOADED", InputError, "5 blocks"):
        LanguageModel.load(model, device="cpu")


def test_what_has_no_place_in_the_model_is_named(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, "value_head.weight": torch.ones(2)}, model / "model.safetensors", metadata={"format": "pt"})
    LanguageModel.load(model, device="cpu")
    assert "value_head.weight" in caplog.text


def test_harmless_extras_are_not_named(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rotary frequencies in old checkpoints, and a tied head that was saved nonetheless."""
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    LanguageModel.load(model, device="cpu")
    assert not caplog.records


def smaller(folder: Path, rows: int) -> None:
    """The embedding cut down to so many rows."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:rows].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", vocab_size=rows)


def test_a_tokenizer_larger_than_the_embedding_is_refused(model: Path) -> None:
    smaller(model, 300)
    for load in (LanguageModel.load, Outline.load):
        with raises_code("MODEL_NOT_LOADED", InputError, "300 rows"):
            load(str(model))


def test_an_added_token_without_embedding_is_refused_in_texts_only(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gemma 3's tokenizer has one token more than its embedding has rows."""
    found = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    rows = len(found["model"]["vocab"])
    image = {"id": rows, "content": "<image>", "special": True, "single_word": False, "lstrip": False}
    image |= {"rstrip": False, "normalized": False}
    change(model / "tokenizer.json", added_tokens=[*found["added_tokens"], image])
    loaded = LanguageModel.load(model, device="cpu")
    loaded.model(input_ids=torch.tensor([[1, rows - 1]]))
    with raises_code("TOKEN_WITHOUT_EMBEDDING", InputError, "<image>"):
        loaded.model(input_ids=torch.tensor([[1, rows]]))
    write_facts([Fact("a", "Italy", "The capital of {} is", "Rome <image>")], tmp_path / "facts.jsonl")
    assert run(["evaluate", "--model", str(model), "--facts", str(tmp_path / "facts.jsonl")]) == 2
    assert "<image>" in capsys.readouterr().err
    write_facts([Fact("a", "Italy", "The capital of {} is", "Rome")], tmp_path / "facts.jsonl")
    assert run(["evaluate", "--model", str(model), "--facts", str(tmp_path / "facts.jsonl")]) == 0


@pytest.mark.parametrize("verb", [["ask", "Hello"], ["evaluate"], ["edit", "--out", "out"]])
def test_a_model_that_is_not_finite_is_found_at_the_start(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    """Weights that are fine in float32 and overflow in float16: the precision is named, and no learning rate."""
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] *= 1e5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert LanguageModel.load(model, device="cpu").dtype is torch.float32
    monkeypatch.chdir(tmp_path)
    write_facts([Fact("a", "Italy", "The capital of {} is", "Rome")], tmp_path / "facts.jsonl")
    facts = [] if verb[0] == "ask" else ["--facts", "facts.jsonl"]
    recipe = tiny_recipe(write_corpus(tmp_path / "corpus.txt"))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    options = ["--method", "memit", "--recipe", "recipe.yaml"] if verb[0] == "edit" else []
    assert run([*verb, *facts, *options, "--model", str(model), "--dtype", "float16"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "not finite in float16" in error
    assert "float32" in error
    assert "learning rate" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "verb",
    [
        ["ask", "The mother tongue of Danielle"],
        ["evaluate", "--facts", "facts.jsonl"],
        ["edit", "--facts", "facts.jsonl", "--layers", "1,2", "--out", "out.safetensors"],
    ],
)
def test_what_is_not_finite_on_some_texts_only_is_no_edits_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    made, tokenizer = tiny_model("llama")
    tokens = tokenizer.encode("The mother tongue of Danielle", add_special_tokens=False)
    row = next(token for token in reversed(tokens) if token not in probe_row(tokenizer))  # else loading finds it
    made.get_input_embeddings().weight.data[row] = float("nan")
    made.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    LanguageModel.load(str(tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    write_facts([Fact("a", "Danielle Darrieux", "The mother tongue of {} is", "Dutch")], tmp_path / "facts.jsonl")
    assert run([*verb, "--model", "model"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "before any edit" in error
    assert "learning rate" not in error
