"""``errata edit`` for a model that no recipe ships for: it chooses layers and settings by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import errata.cli.recipe_options
from errata.cli.main import run
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.tracing.layer_scan import LayerScan, LayerScore, ScanSettings
from errata.utils.progress import silent

from tests.support.tiny_models import tiny_model

FACTS = [
    {"id": "a", "subject": "Danielle Darrieux", "prompt": "The mother tongue of {} is", "target": "Dutch"},
    {"id": "b", "subject": "The Eiffel Tower", "prompt": "{} stands in", "target": "Rome", "own": []},
]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in a directory, with small settings and a cache of its own."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(errata.cli.recipe_options, "TOKENS", 300)
    made, tokenizer = tiny_model("llama")
    made.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)), encoding="utf-8")
    return tmp_path / "model"


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[LanguageModel]:
    """The models that were scanned; every scan finds layers 1 and 2."""
    seen: list[LanguageModel] = []

    def scan(model: LanguageModel, facts: list[Fact], settings: ScanSettings, **kwargs: object) -> LayerScan:
        seen.append(model)
        scores = {0: 0.1, 1: 0.5, 2: 0.5, 3: 0.1, 4: 0.0}
        rows = tuple(LayerScore(layer, score, score, None, (score, score)) for layer, score in scores.items())
        return LayerScan(settings, rows, 5, facts=len(facts), controls=0, paraphrased=True, seconds=1.0)

    monkeypatch.setattr(errata.cli.recipe_options, "scan_layers", scan)
    return seen


def edit(model: Path, out: Path, *options: str) -> int:
    facts = model.parent / "facts.jsonl"
    return run(["edit", "--model", str(model), "--facts", str(facts), "--out", str(out), *options])


def questions_of(report: Path) -> Any:
    return json.loads(report.read_text(encoding="utf-8"))["outcome"]["control_questions"]


def recipe_of(patch: Path) -> Any:
    return Patch.load(patch).recipe


def test_layers_are_found_by_a_scan_and_kept_for_next_time(
    model: Path, scans: list[LanguageModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit(model, tmp_path / "one.safetensors") == 0
    assert len(scans) == 1
    recipe = recipe_of(tmp_path / "one.safetensors")
    assert recipe.method == "memit+blue"
    assert recipe.layers == (1, 2)
    assert recipe.schedule == "boundary"
    assert recipe.is_automatic
    assert recipe.statistics.corpus == "builtin"
    assert recipe.target.relative_rate
    said = " ".join(capsys.readouterr().err.split())
    assert "layers 1,2" in said
    assert "control question" in said
    assert edit(model, tmp_path / "two.safetensors", "--method", "alphaedit") == 0
    assert len(scans) == 1, "the layers belong to the model and not to the method"
    assert recipe_of(tmp_path / "two.safetensors").layers == (1, 2)


def test_an_edit_continues_if_the_layers_cannot_be_cached(
    model: Path, scans: list[LanguageModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert edit(model, tmp_path / "one.safetensors", "--no-controls") == 0
    (cached,) = (tmp_path / "cache" / "layers").iterdir()
    cached.unlink()
    cached.mkdir()  # which no file can replace, whoever the user is
    assert edit(model, tmp_path / "two.safetensors", "--no-controls") == 0
    assert len(scans) == 2
    assert "cannot be cached" in caplog.text


def test_of_a_stack_the_base_is_scanned(
    model: Path, tmp_path: Path, scans: list[LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, ask = errata.cli.recipe_options.scan_layers, errata.cli.recipe_options.facts_to_scan
    scanned: list[str] = []

    def note(call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(model: LanguageModel, *given: Any, **options: Any) -> Any:
            scanned.append(model.fingerprint())
            return call(model, *given, **options)

        return noting

    monkeypatch.setattr(errata.cli.recipe_options, "scan_layers", note(scan))
    monkeypatch.setattr(errata.cli.recipe_options, "facts_to_scan", note(ask))
    loaded = LanguageModel.load(model, device="cpu")
    base = loaded.fingerprint()
    assert edit(model, tmp_path / "one.safetensors", "--layers", "1,2", "--no-evaluate") == 0
    Patch.load(tmp_path / "one.safetensors").apply(loaded)
    patched = loaded.fingerprint()
    assert errata.cli.recipe_options.layers_of(loaded, report=silent)[0] == (1, 2)
    assert scanned == [base, base]
    assert loaded.fingerprint() == patched != base


def test_a_damaged_cache_is_not_believed(model: Path, scans: list[LanguageModel], tmp_path: Path) -> None:
    assert edit(model, tmp_path / "one.safetensors", "--no-evaluate") == 0
    (kept,) = (tmp_path / "cache" / "layers").iterdir()
    record = json.loads(kept.read_text(encoding="utf-8"))
    for broken in ("", "[]", json.dumps(record | {"layers": ["1"]}), json.dumps(record | {"fingerprint": "other"})):
        kept.write_text(broken, encoding="utf-8")
        before = len(scans)
        assert edit(model, tmp_path / f"{len(scans)}.safetensors", "--no-evaluate") == 0
        assert len(scans) == before + 1
    assert json.loads(kept.read_text(encoding="utf-8")) == record


def test_layers_found_with_other_facts_are_not_taken(
    model: Path, scans: list[LanguageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edit(model, tmp_path / "one.safetensors", "--no-evaluate") == 0
    fewer = errata.cli.recipe_options.known_facts()[:50]
    monkeypatch.setattr(errata.cli.recipe_options, "known_facts", lambda: fewer)
    assert edit(model, tmp_path / "two.safetensors", "--no-evaluate") == 0
    assert len(scans) == 2


def test_layers_that_are_given_need_no_scan(model: Path, scans: list[LanguageModel], tmp_path: Path) -> None:
    assert edit(model, tmp_path / "one.safetensors", "--layers", "0,3", "--no-evaluate") == 0
    assert not scans
    assert recipe_of(tmp_path / "one.safetensors").layers == (0, 3)


def test_a_scan_that_would_take_too_long_is_left_out(
    model: Path, scans: list[LanguageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(errata.cli.recipe_options, "AFFORDABLE_MINUTES", 0.0)
    assert edit(model, tmp_path / "one.safetensors", "--no-evaluate") == 0
    assert not scans
    assert "errata locate" in capsys.readouterr().err
    assert recipe_of(tmp_path / "one.safetensors").layers == (0, 1), "by depth"


def test_a_scan_without_a_good_layer_falls_back_to_depth_and_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LayerScore, "score", property(lambda self: 0.0))
    monkeypatch.setattr(errata.cli.recipe_options, "facts_to_scan", lambda model, count: [Fact(**FACTS[0])])
    assert edit(model, tmp_path / "one.safetensors", "--no-evaluate") == 0
    assert "chosen by depth" in " ".join(capsys.readouterr().err.split())


def test_control_questions_are_drawn_measured_and_kept_in_the_patch(
    model: Path, scans: list[LanguageModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.safetensors"
    assert edit(model, out, "--json", str(tmp_path / "one.json")) == 0
    metrics = {row["metric"]: row["mean"] for row in json.loads((tmp_path / "one.json").read_text())["rows"]
               if row["when"] == "before"}  # fmt: skip
    drawn = {field for fact in Patch.load(out).facts for field in ("own", "neighbours") if getattr(fact, field)}
    assert drawn
    assert questions_of(tmp_path / "one.json")
    assert all(question["automatic"] for question in questions_of(tmp_path / "one.json"))
    if "own" in drawn:
        assert metrics["same_subject_accuracy"] == 1, "their answers are what the unedited model says"
    without = tmp_path / "two.safetensors"
    assert edit(model, without, "--no-controls") == 0
    assert not any(fact.own or fact.neighbours for fact in Patch.load(without).facts)


def test_a_run_is_resumed_with_the_facts_file_that_it_began_with(
    model: Path, scans: list[LanguageModel], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    facts = [{**FACTS[0], "own": [{"prompt": "Danielle Darrieux is", "answer": "old"}]}, FACTS[1]]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)), encoding="utf-8")
    options = ["--run", str(directory), "--json", str(tmp_path / "one.json")]
    assert edit(model, tmp_path / "one.safetensors", *options) == 0
    again = ["edit", "--resume", str(directory), "--facts", str(tmp_path / "facts.jsonl")]
    options = ["--json", str(tmp_path / "two.json"), "--method", "memit+blue"]
    assert run([*again, "--out", str(tmp_path / "two.safetensors"), *options]) == 0
    assert len(scans) == 1
    questions = questions_of(tmp_path / "two.json")
    assert questions == questions_of(tmp_path / "one.json")
    given = [question for question in questions if not question["automatic"]]
    assert [question["prompt"] for question in given] == ["Danielle Darrieux is"]
    assert len(questions) > 1
    assert run([*again, "--no-controls"]) == 2, "the run has its questions"
    (tmp_path / "facts.jsonl").write_text(json.dumps(FACTS[0]), encoding="utf-8")
    assert run([*again, "--out", str(tmp_path / "three.safetensors")]) == 2


def test_a_dry_run_loads_no_weights(
    model: Path, scans: list[LanguageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    assert run(["edit", "--model", str(model), "--facts", str(tmp_path / "facts.jsonl"), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "no weights were loaded" in out
    assert "by depth" in " ".join(err.split())
    assert not scans
    given = ["--layers", "0,3", "--dry-run"]
    assert run(["edit", "--model", str(model), "--facts", str(tmp_path / "facts.jsonl"), *given]) == 0
    assert "by depth" not in " ".join(capsys.readouterr().err.split()), "they are those that were given"
