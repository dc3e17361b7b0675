"""GGUF files as models: equal to what they were made from, kept in the cache, refused where something would be lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from errata.cli.main import run
from errata.errors import InputError, MissingExtraError
from errata.models.gguf import as_directory
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline, source_of

from tests.support.errors import raises_code
from tests.support.gguf_files import write_llama
from tests.support.tiny_models import byte_level_tokenizer, tiny_model

TEXT = "The capital of France is Paris, the capital of Italy is"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def original() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = byte_level_tokenizer(add_bos=False)
    return tiny_model("llama", vocab_size=len(tokenizer))[0], tokenizer


@pytest.fixture
def write(tmp_path: Path, original: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> Callable[..., Path]:
    def written(name: str = "tiny.gguf", **options: object) -> Path:
        path = tmp_path / "files" / name
        path.parent.mkdir(exist_ok=True)
        write_llama(path, *original, **options)
        return path

    return written


def test_a_gguf_file_is_the_model_that_it_was_made_from(
    write: Callable[..., Path], original: tuple[PreTrainedModel, PreTrainedTokenizerFast]
) -> None:
    file = write()
    loaded = LanguageModel.load(file)
    ids = original[1](TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, original[0](ids).logits, rtol=1e-5, atol=1e-5)
    assert loaded.tokenizer(TEXT)["input_ids"] == ids[0].tolist()
    assert loaded.name == str(file)
    assert loaded.dtype == torch.float32


def test_by_its_file_and_by_its_directory_it_has_the_same_weights(write: Callable[..., Path]) -> None:
    file = write()
    assert LanguageModel.load(file).fingerprint() == LanguageModel.load(file.parent).fingerprint()


def test_the_second_time_it_comes_from_the_cache(
    write: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write()
    first = as_directory(file)
    assert first.is_relative_to(cache)
    before = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    monkeypatch.setitem(sys.modules, "gguf", None)  # type: ignore[arg-type]
    moved = file.rename(file.with_name("moved.gguf"))
    assert as_directory(moved) == first  # the content counts, not the name
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == before


def test_without_the_package_the_error_names_the_extra(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write()
    monkeypatch.setitem(sys.modules, "gguf", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=r"errata\[gguf\]"):
        as_directory(file)


def test_digits_are_split_as_the_vocabulary_was_made(write: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(as_directory(write()))
    backend = tokenizer.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in backend.pre_tokenize_str("in 1998\n\n12")] == [
        "in", "Ġ", "1", "9", "9", "8", "ĊĊ", "1", "2",
    ]  # fmt: skip
    encoded = tokenizer("in 1998", return_offsets_mapping=True)
    assert encoded["offset_mapping"][-1] == (6, 7)


def test_what_the_metadata_say_is_kept(write: Callable[..., Path]) -> None:
    directory = as_directory(write(more=lambda writer: writer.add_eot_token_id(3)))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "[user] Hi\n"
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 3]
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 256


def test_an_older_transformers_finds_the_rotary_base_and_a_tokenizer_class_that_it_has(
    write: Callable[..., Path],
) -> None:
    directory = as_directory(write())
    config = json.loads((directory / "config.json").read_text())
    assert config["rope_theta"] == 10000.0
    assert "quantization_config" not in config
    assert config["rms_norm_eps"] == 1e-6
    assert json.loads((directory / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def _rope_factors(writer: GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))


def _linear_scaling(writer: GGUFWriter) -> None:
    writer.add_string("llama.rope.scaling.type", "linear")
    writer.add_float32("llama.rope.scaling.factor", 8.0)


def _unknown_tensor(writer: GGUFWriter) -> None:
    writer.add_tensor("blk.0.attn_q.bias", np.ones(32, np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"more": _rope_factors},
        {"more": _linear_scaling},
        {"more": _unknown_tensor},
        {"more": lambda writer: writer.add_uint16("split.count", 3)},
        {"pre": "a-rule-of-2031"},
    ],
    ids=["rope factors", "rope scaling", "a tensor without a place", "one part of three", "unknown split rules"],
)
def test_what_would_be_lost_is_refused_and_nothing_is_kept(
    write: Callable[..., Path], cache: Path, options: dict[str, object]
) -> None:
    file = write(**options)
    with pytest.raises(InputError, match=file.name) as caught:
        as_directory(file)
    assert caught.value.code in ("GGUF_UNSUPPORTED", "GGUF_UNREADABLE")
    assert [path for path in cache.rglob("*") if path.suffix != ".lock"] == [cache / "converted"]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"GGUF" + bytes(400)])
def test_a_damaged_file_is_an_input_error(write: Callable[..., Path], damage: Callable[[bytes], bytes]) -> None:
    file = write()
    file.write_bytes(damage(file.read_bytes()))
    with raises_code("GGUF_UNREADABLE", InputError, file.name):
        as_directory(file)


def test_what_does_not_fit_is_refused_with_its_size_before_it_is_loaded(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write()
    directory = as_directory(file)
    parameters = Outline.load(str(directory)).size.parameters
    monkeypatch.setattr("errata.models.size.available_bytes", lambda device: 4 * parameters - 1)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    with raises_code("MODEL_TOO_LARGE", InputError, f"{4 * parameters:,} bytes"):
        LanguageModel.load(directory)
    other = write("other.gguf", more=lambda writer: writer.add_name("another"))
    largest = max(parameter.numel() for parameter in Outline.load(str(directory)).empty_model().parameters())
    with raises_code(
        "MODEL_TOO_LARGE", InputError, f"{8 * (parameters + largest):,} bytes"
    ):  # two copies, while it converts
        as_directory(other)


def test_half_the_precision_needs_half_the_memory(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = as_directory(write())
    parameters = Outline.load(str(directory)).size.parameters
    monkeypatch.setattr("errata.models.size.available_bytes", lambda device: 2 * parameters)
    assert LanguageModel.load(directory, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_of_several_files_one_is_chosen_on_the_command_line(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write("first.gguf").parent
    write("second.gguf", more=lambda writer: writer.add_name("another"))
    assert run(["ask", "--model", str(folder), "Hello"]) == 2
    assert "--gguf" in capsys.readouterr().err
    assert run(["ask", "--model", str(folder), "--gguf", "third.gguf", "Hello"]) == 2
    out = tmp_path / "out.json"
    assert run(["ask", "--model", str(folder), "--gguf", "second.gguf", "Hello", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["answers"][0]["model"] == str(folder / "second.gguf")


def test_beside_plain_weights_a_gguf_file_is_not_the_model(write: Callable[..., Path]) -> None:
    file = write()
    (file.parent / "model.safetensors").touch()
    assert source_of(str(file.parent)) == str(file.parent)


def test_files_that_are_no_models_are_called_what_they_are(tmp_path: Path) -> None:
    named = tmp_path / "renamed.gguf"
    named.write_bytes(b"<html>")
    for path in (str(named), __file__):
        with raises_code("MODEL_IS_FILE", InputError, path):
            Outline.load(path)
