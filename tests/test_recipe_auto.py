"""``errata recipe auto`` from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.benchmark import recipe_search
from errata.benchmark import recipe_search as recipe_numbers
from errata.benchmark.recipe_search import Try, append_to_journal
from errata.cli.main import run
from errata.editing.recipe import read_recipe
from errata.models.language_model import LanguageModel
from errata.tracing.layer_scan import LayerScan, LayerScore, ScanSettings

from tests.support.tiny_models import tiny_model


def test_a_short_search_on_the_lab_writes_a_recipe_that_edit_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("errata.cli.recipe.FACTS", 6)
    monkeypatch.setattr(recipe_search, "LEARNING_RATES", (0.5, 1.0))
    monkeypatch.setattr(recipe_search, "CLAMPS", (0.75,))
    monkeypatch.setattr("errata.editing.solvers.least_squares.RIDGES", (0.5,))
    monkeypatch.setattr(recipe_numbers, "STEPS", 4)
    out = tmp_path / "auto.yaml"
    arguments = ["recipe", "auto", "--out", str(out), "--methods", "memit", "--layers", "0,2"]
    assert run([*arguments, "--json", str(tmp_path / "auto.json")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "memit, solver: λ = 0.5 · columns = 512" in said
    assert json.loads((tmp_path / "auto.json").read_text(encoding="utf-8"))["layers"] == [0, 2]
    recipe = read_recipe(out, "memit+blue")
    assert (recipe.layers, recipe.solver.ridge) == ((0, 2), 512)  # type: ignore[union-attr]
    tries = (tmp_path / "auto.yaml.tries.jsonl").read_text(encoding="utf-8")
    first = out.read_text(encoding="utf-8")
    assert run(arguments) == 0  # everything has been tried
    assert (tmp_path / "auto.yaml.tries.jsonl").read_text(encoding="utf-8") == tries
    assert out.read_text(encoding="utf-8") == first


def test_without_minutes_only_the_configuration_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny_model("gpt2")
    model.config.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "auto.yaml"
    arguments = ["recipe", "auto", "--model", str(tmp_path / "model"), "--minutes", "0", "--out", str(out)]
    assert run([*arguments, "--json", str(tmp_path / "auto.json")]) == 0
    recipe = read_recipe(out, "memit")
    assert recipe.solver.ridge == model.transformer.h[0].mlp.c_proj.weight.shape[0]  # type: ignore[union-attr]
    assert recipe.source.startswith("automatic: errata recipe auto --minutes 0")
    found = json.loads((tmp_path / "auto.json").read_text(encoding="utf-8"))
    assert tuple(found["layers"]) == recipe.layers
    # Default settings never replace those of a search.
    out.write_text("searched", encoding="utf-8")
    append_to_journal(tmp_path / "auto.yaml.tries.jsonl", "key", Try("solver", {}, "λ = 1", 0.5, 1.0))
    assert run(arguments) == 2
    assert "[OUTPUT_EXISTS]" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "searched"


def test_without_a_search_the_text_is_the_built_in_one_and_never_the_labs(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    model.config.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "auto.yaml"
    assert run(["recipe", "auto", "--model", str(tmp_path / "model"), "--minutes", "0", "--out", str(out)]) == 0
    assert read_recipe(out, "alphaedit+blue").statistics.corpus == "builtin"


def test_a_search_on_another_model_needs_neither_facts_nor_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers by a scan, facts and text that come with errata; the time counts from the start, so one try is all."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recipe_numbers, "STEPS", 2)
    monkeypatch.setattr("errata.cli.recipe.known_facts", lambda: range(6))
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "auto.yaml"
    arguments = ["recipe", "auto", "--model", str(tmp_path / "model"), "--methods", "memit", "--tokens", "300"]
    monkeypatch.setattr("errata.cli.recipe.scan_model", small_scan)
    assert run([*arguments, "--out", str(out), "--minutes", "0.0001"]) == 1
    said, err = (" ".join(text.split()) for text in capsys.readouterr())
    assert "3 facts" in said
    assert "SEARCH_OUT_OF_TIME" in err
    assert run([*arguments, "--out", str(out), "--minutes", "0.2"]) == 0
    recipe = read_recipe(out, "memit")
    assert recipe.layers == (1, 2)
    assert recipe.statistics.corpus == "builtin"


def test_facts_without_control_questions_get_drawn_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the search would take the strongest setting, whatever it does to everything else."""
    seen: list[recipe_search.RecipeSearch] = []

    def stop(search: recipe_search.RecipeSearch) -> None:
        seen.append(search)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe_search.RecipeSearch, "run", stop)
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    facts = [
        {"id": "a", "subject": "Danielle Darrieux", "prompt": "The mother tongue of {} is", "target": "Dutch"},
        {"id": "b", "subject": "The Eiffel Tower", "prompt": "{} stands in", "target": "Rome"},
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)), encoding="utf-8")
    arguments = ["recipe", "auto", "--model", str(tmp_path / "model"), "--layers", "1,2", "--methods", "memit"]
    arguments += ["--facts", str(tmp_path / "facts.jsonl"), "--out", str(tmp_path / "auto.yaml")]
    assert run(arguments) == 130
    assert any(fact.own or fact.neighbours for fact in seen[0].evaluation_set.facts)
    (tmp_path / "own.jsonl").write_text('{"prompt": "The river is", "answer": "long"}', encoding="utf-8")
    assert run([*arguments, "--untouched", str(tmp_path / "own.jsonl")]) == 130
    assert not any(fact.own or fact.neighbours for fact in seen[1].evaluation_set.facts)


def small_scan(model: LanguageModel, *args: object, **kwargs: object) -> LayerScan:
    """A scan that has found layers 1 and 2 the best."""
    scores = {0: 0.1, 1: 0.5, 2: 0.5, 3: 0.1, 4: 0.0}
    rows = tuple(LayerScore(layer, score, score, None, (score, score)) for layer, score in scores.items())
    return LayerScan(ScanSettings(), rows, 5, facts=3, controls=0, paraphrased=True, seconds=1.0)


def test_an_interrupt_says_where_the_finished_tries_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "auto.yaml"
    journal = tmp_path / "auto.yaml.tries.jsonl"
    finished: list[Try] = []

    def interrupted(search: object) -> None:
        for tried in finished:
            append_to_journal(journal, "key", tried)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe_search.RecipeSearch, "run", interrupted)
    arguments = ["recipe", "auto", "--out", str(out), "--methods", "memit", "--layers", "0,2"]
    assert run(arguments) == 130
    assert "saved" not in capsys.readouterr().err
    finished.append(Try("solver", {}, "λ = 1", 0.5, 1.0))
    assert run(arguments) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert f"1 finished trial saved in {journal}" in said
    assert "interrupted" in said
    assert not out.exists()
