"""Statistics files: made, shown, and used by edits instead of a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from errata.cli.main import run as run_command
from errata.editing.recipe import Recipe, read_recipe
from errata.editors.locate_then_edit import Editor
from errata.errors import FaultsError, InputError
from errata.models.language_model import LanguageModel
from errata.statistics.files import StatisticsFile, read_statistics_file, tokenizer_digest, write_statistics
from errata.statistics.settings import StatisticsSettings
from errata.statistics.store import check_source, moments_for, source_digest, statistics_key

from tests.support.editing import FACTS, tiny_language_model, tiny_recipe, write_corpus
from tests.support.errors import raises_code

LAYERS = (1, 2, 3)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model("llama")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    return write_corpus(folder / "corpus.txt")


@pytest.fixture
def file(model: LanguageModel, corpus: Path, tmp_path: Path) -> Path:
    settings = StatisticsSettings(corpus=str(corpus), tokens=600, length=64)
    moments = moments_for(model, LAYERS, settings, cache=tmp_path / "cache")
    path = tmp_path / "statistics.safetensors"
    write_statistics(path, StatisticsFile(statistics_key(model, settings), "some/llama", str(corpus), moments))
    return path


def test_an_edit_with_a_file_is_the_edit_with_its_text(model: LanguageModel, corpus: Path, file: Path) -> None:
    recipe = tiny_recipe(corpus)
    one, other = tiny_language_model("llama"), tiny_language_model("llama")
    Editor(one, recipe, cache=file.parent / "cache").apply(FACTS)
    Editor(other, recipe.with_statistics(file), cache=file.parent / "unused").apply(FACTS)
    assert not (file.parent / "unused").exists()
    for layer in LAYERS:
        assert torch.equal(one.weight(layer), other.weight(layer))
        assert not torch.equal(one.weight(layer), model.weight(layer))


def test_a_file_says_what_it_is_of_but_not_where_its_text_was(file: Path) -> None:
    content = read_statistics_file(file)
    assert (content.model, content.corpus, content.key.tokens) == ("llama", "corpus.txt", 600)
    assert b"private" not in file.read_bytes()


def test_a_file_is_for_its_weights_and_layers_only(model: LanguageModel, file: Path) -> None:
    settings = StatisticsSettings(file=str(file))
    with raises_code("STATISTICS_LAYER_MISSING", InputError, "1, 2, 3"):
        moments_for(model, [1, 4], settings)
    with raises_code("STATISTICS_LAYER_MISSING", InputError, "4"):
        check_source(settings, [4])
    check_source(settings, LAYERS)
    with raises_code("STATISTICS_OTHER_WEIGHTS", InputError, "llama"):
        moments_for(tiny_language_model("llama", seed=1), [1], settings)
    digest = source_digest(settings)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert source_digest(settings) != digest
    with raises_code("STATISTICS_FILE_UNREADABLE", InputError, file.name):
        moments_for(model, [1], settings)


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_other_files_are_refused(model: LanguageModel, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.safetensors"
    if content is not None:
        path.write_bytes(content)
    settings = StatisticsSettings(file=str(path))
    for read in (lambda: check_source(settings, [1]), lambda: moments_for(model, [1], settings)):
        with raises_code("STATISTICS_FILE_UNREADABLE", InputError, "other.safetensors"):
            read()


def test_the_tokenizer_is_part_of_the_key(model: LanguageModel) -> None:
    other = tiny_language_model("gpt2").tokenizer
    assert tokenizer_digest(model.tokenizer) == tokenizer_digest(tiny_language_model("llama", seed=1).tokenizer)
    assert tokenizer_digest(model.tokenizer) != tokenizer_digest(other)


def test_a_recipe_names_a_file_beside_it_instead_of_a_text(corpus: Path, file: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus).with_statistics("statistics.safetensors")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    read = read_recipe(path, "memit")
    assert read.statistics == StatisticsSettings(file=str(file))
    assert read.files == (str(file),)
    assert read.without_directories().statistics.file == file.name
    assert Recipe.model_validate(read.model_dump()) == read
    with raises_code("OPTION_CONFLICT", InputError):
        read.with_corpus("builtin")


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"file": "a.safetensors", "corpus": "builtin"}, "RECIPE_CONTRADICTION"),
        ({"file": "a.safetensors", "tokens": 5}, "RECIPE_CONTRADICTION"),
        ({"file": "a.safetensors", "length": 5}, "RECIPE_CONTRADICTION"),
        ({"tokens": 5, "length": 5}, "RECIPE_KEY_MISSING"),
        ({"corpus": "builtin", "tokens": 5}, "RECIPE_KEY_MISSING"),
        ({"corpus": "builtin", "length": 5}, "RECIPE_KEY_MISSING"),
    ],
)
def test_a_text_and_a_file_exclude_each_other(
    corpus: Path, tmp_path: Path, settings: dict[str, object], code: str
) -> None:
    whole = tiny_recipe(corpus).model_dump(mode="json") | {"statistics": settings}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(whole), encoding="utf-8")
    with raises_code(code, FaultsError):
        read_recipe(path, "memit")


def test_the_commands_make_show_and_use_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path / "corpus.txt")
    out, record = tmp_path / "lab.safetensors", tmp_path / "made.json"
    common = ["statistics", "make", "--layers", "0,1,2"]
    made = run_command([*common, "--tokens", "2500", "--out", str(out), "--json", str(record)])
    assert made == 0
    content = read_statistics_file(out)
    assert [moment.count for moment in content.moments.values()] == [2500, 2500, 2500]
    assert json.loads(record.read_text())["layers"]["2"] == {"width": 1024, "keys": 2500}
    shown = tmp_path / "shown.json"
    assert run_command(["statistics", "show", str(out), "--json", str(shown)]) == 0
    assert json.loads(shown.read_text())["files"][0]["key"]["tokens"] == 2500
    assert run_command(["statistics", "show", "--json", str(shown)]) == 0  # the cache
    assert len(json.loads(shown.read_text())["files"]) == 3
    assert run_command([*common, "--tokens", "400", "--documents", "3", "--out", str(tmp_path / "b.safetensors")]) == 2
    assert run_command([*common, "--out", str(tmp_path / "b.npz")]) == 2
    facts = tmp_path / "facts.jsonl"
    assert run_command(["lab", "facts", "--count", "2", "--out", str(facts)]) == 0
    edit = ["edit", "--facts", str(facts), "--no-evaluate", "--out", str(tmp_path / "e.safetensors")]
    assert run_command([*edit, "--statistics", str(out), "--corpus", str(corpus)]) == 2
    assert run_command([*edit, "--statistics", str(out), "--layers", "3"]) == 2
    assert run_command([*edit, "--statistics", str(out)]) == 0
    assert run_command([*edit, "--statistics", str(out), "--method", "ft"]) == 2
