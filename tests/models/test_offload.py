"""Models spread by accelerate over memory and disk have the same bits: statistics, edits, scores, undo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from errata.analysis.fit import edit_needs, size_of_model
from errata.cli.main import run
from errata.editors.locate_then_edit import Editor
from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.models.offload import Spread, device_of
from errata.models.size import ModelSize

from tests.support.editing import FACTS, editor_maker
from tests.support.errors import raises_code
from tests.support.tiny_models import tiny_model

ON_DISK = (1, 2, 4)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Callable[..., Editor]]:
    """Makes makers of editors, each with statistics of its own: a cache would hide a difference."""
    return lambda: editor_maker(tmp_path_factory.mktemp("offload"))


def base(folder: Path, family: str) -> Path:
    model, tokenizer = tiny_model(family)
    model.save_pretrained(folder / family)
    tokenizer.save_pretrained(folder / family)
    return folder / family


def spread_over_disk(path: Path) -> LanguageModel:
    """Some blocks on disk, the rest in memory."""
    whole = LanguageModel.load(path, device="cpu")
    parent, _, name = whole.architecture.blocks.rpartition(".")
    plan: dict[str, int | str] = {
        f"{parent}.{child}": "cpu" for child, _ in whole.model.get_submodule(parent).named_children() if child != name
    }
    plan |= {
        f"{whole.architecture.blocks}.{layer}": "disk" if layer in ON_DISK else "cpu"
        for layer in range(len(whole.blocks))
    }
    return LanguageModel.load(path, device=Spread(plan | {"lm_head": "cpu"}))


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "mixtral", "gpt_oss"])
def test_a_spread_model_gives_the_same_bits(
    family: str, make: Callable[[], Callable[..., Editor]], tmp_path: Path
) -> None:
    path = base(tmp_path, family)
    whole, spread = LanguageModel.load(path, device="cpu"), spread_over_disk(path)
    before = whole.fingerprint()
    kept = {int(name.split(".")[2]) for name, tensor in spread.model.named_parameters() if tensor.is_meta}
    assert kept == set(ON_DISK)
    assert spread.fingerprint() == before
    patch, other = (make()(model, "memit_seq").apply(FACTS[:4]) for model in (whole, spread))
    assert spread.fingerprint() == whole.fingerprint() != before
    for ours, theirs in zip(patch.terms, other.terms, strict=True):
        assert ours.place == theirs.place
        assert torch.equal(ours.left, theirs.left)
        assert torch.equal(ours.right, theirs.right)
    pairs = [fact.pair(fact.target) for fact in FACTS]
    assert [score.log_probability for score in spread.score(pairs)] == [
        score.log_probability for score in whole.score(pairs)
    ]
    assert spread.continue_texts(["The capital of"], new_tokens=4) == whole.continue_texts(
        ["The capital of"], new_tokens=4
    )
    spread.save(tmp_path / "edited")
    assert LanguageModel.load(tmp_path / "edited", device="cpu").fingerprint() == whole.fingerprint()
    other.undo(spread)
    assert spread.fingerprint() == before
    assert LanguageModel.load(path, device="cpu").fingerprint() == before  # the files on disk were not touched


def test_limits_send_blocks_to_disk(tmp_path: Path) -> None:
    path = base(tmp_path, "llama")
    model = LanguageModel.load(path, device=device_of("auto,cpu=150KiB"))
    assert any(tensor.is_meta for tensor in model.model.parameters())
    assert model.fingerprint() == LanguageModel.load(path, device="cpu").fingerprint()


def test_errata_evaluate_and_ask_take_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = base(tmp_path, "llama")
    given = ["ask", "--model", str(path), "The capital of"]
    assert run([*given, "--json", str(tmp_path / "whole.json")]) == 0
    limits = ["--device-map", "auto", "--max-memory", "cpu=150KiB", "--json", str(tmp_path / "spread.json")]
    assert run([*given, *limits]) == 0
    assert (tmp_path / "spread.json").read_text() == (tmp_path / "whole.json").read_text()
    capsys.readouterr()
    assert run([*given, "--device", "cpu", "--max-memory", "cpu=1GiB"]) == 2
    assert "MAX_MEMORY_OF_ONE_DEVICE" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["auto,cpu", "auto,disk=1GiB", "auto,0=many", "balanced,cpu=1GiB,"])
def test_limits_that_are_none_are_refused(text: str) -> None:
    with raises_code("MAX_MEMORY_INVALID", InputError):
        device_of(text)


# What fits where, by calculation

_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def test_the_needs_of_a_tiny_model_are_those_of_its_tensors() -> None:
    model, tokenizer = tiny_model("llama")
    needs = edit_needs(ModelSize.of(model), torch.float32, layers=2)
    assert needs.weights == sum(tensor.nbytes for tensor in model.parameters())
    whole = LanguageModel(model, tokenizer)
    width = whole.key_width(0)
    assert list(needs.parts.values())[:2] == [2 * 8 * width * width] * 2
    assert list(needs.parts.values())[2] == 2 * 2 * whole.weight(0).nbytes
    assert abs(needs.block - sum(tensor.nbytes for tensor in whole.blocks[0].parameters())) < 1000


def test_a_model_of_70_billion_is_calculated_from_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_70B))
    size = size_of_model(str(folder))
    assert size.parameters == pytest.approx(70.6e9, rel=0.01)  # as published
    needs = edit_needs(size, torch.bfloat16)
    assert needs.verdict(400 * 2**30, is_cpu=False) == "fits"
    assert needs.verdict(141 * 2**30, is_cpu=False).startswith("--device-map auto: ")
    assert needs.verdict(60 * 2**30, is_cpu=False) == "no"  # statistics and factors alone take more
    assert run(["doctor", "--model", str(folder), "--json", str(tmp_path / "fit.json")]) == 0
    found = json.loads((tmp_path / "fit.json").read_text())
    assert found["needs"]["bfloat16"]["weights"] == 2 * size.parameters
    assert "key statistics" in capsys.readouterr().out
