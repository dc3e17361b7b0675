"""The frame of `errata train-editor`: its file, and what it refuses. The trainers have tests of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field, StrictFloat
from safetensors import safe_open

import errata.cli.train_editor  # noqa: F401  its help names the trainers, so it is read before a toy is among them
from errata.cli.main import run
from errata.datasets.editor_data import editor_splits
from errata.editors import table
from errata.editors.table import TRAINER_NAMES, TrainerRow
from errata.editors.trained_editor import Learnt, TrainedEditor, Trainer, TrainerSettings
from errata.editors.trainers import TRAINERS, train_editor, trainer_settings
from errata.editors.training_data import EditorData
from errata.errors import FaultsError, InputError
from errata.models.language_model import LanguageModel
from errata.utils.progress import Report

from tests.support.editing import tiny_language_model


class ToySettings(TrainerSettings):
    scale: StrictFloat = Field(1.0, description="of the numbers")


def learn(
    model: LanguageModel, train: EditorData, calibration: EditorData, settings: Mapping[str, Any], report: Report
) -> Learnt:
    chosen = ToySettings.model_validate(settings)
    if chosen.scale < 0:
        raise KeyboardInterrupt
    generator = torch.Generator().manual_seed(chosen.seed)
    report("training", 1, 1)
    return Learnt({"numbers": chosen.scale * torch.randn(3, generator=generator)}, {"loss": 0.5})


TOY = Trainer(ToySettings, learn)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    records = [
        {"subject": f"Person {n}", "prompt": "{} plays the", "target": "piano", "paraphrases": [f"On stage Person {n}"]}
        for n in range(20)
    ]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRAINERS, "toy", TOY)  # type: ignore[arg-type]  # a dict
    monkeypatch.setattr(table, "TRAINER_NAMES", ("toy",))
    monkeypatch.setattr(table, "TRAINER_ROWS", (TrainerRow("toy", "numbers", "file: FILE"),))


def test_every_row_has_a_trainer() -> None:
    assert set(TRAINERS) == set(TRAINER_NAMES)
    for name in TRAINERS:
        assert trainer_settings(name, {"seed": 4}).seed == 4


def test_a_file_is_bound_to_its_model_and_trainer(facts: Path, tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    data = editor_splits(str(facts), 0)
    trained = train_editor("toy", model, data, ToySettings(seed=2), trainers={"toy": TOY})
    path = tmp_path / "toy.safetensors"
    trained.save(path)
    loaded = TrainedEditor.load(path, "toy", model)
    assert loaded.digest == trained.digest
    assert torch.equal(loaded.tensors["numbers"], torch.randn(3, generator=torch.Generator().manual_seed(2)))
    assert (loaded.source, loaded.split_seed, loaded.record) == (str(facts), 0, {"loss": 0.5})
    other = train_editor("toy", model, editor_splits(str(facts), 1), ToySettings(seed=2), trainers={"toy": TOY})
    assert other.data_digest != trained.data_digest
    with pytest.raises(InputError) as kind:
        TrainedEditor.load(path, "serac", model)
    assert kind.value.code == "TRAINED_EDITOR_OF_ANOTHER_KIND"
    with pytest.raises(InputError) as weights:
        TrainedEditor.load(path, "toy", tiny_language_model("llama", seed=1))
    assert weights.value.code == "TRAINED_EDITOR_FOR_OTHER_WEIGHTS"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError) as damaged:
        TrainedEditor.load(path, "toy", model)
    assert damaged.value.code == "TRAINED_EDITOR_UNREADABLE"


def test_invalid_settings_are_listed() -> None:
    with pytest.raises(FaultsError) as found:
        trainer_settings("toy", {"scale": "big", "size": 3}, trainers={"toy": TOY})
    assert len(found.value.faults) == 2
    with pytest.raises(InputError) as unknown:
        trainer_settings("toys", {})
    assert unknown.value.code == "TRAINER_UNKNOWN"


@pytest.mark.usefixtures("toy")
def test_the_command_writes_a_whole_file_or_none(
    facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = tmp_path / "toy.safetensors", tmp_path / "toy.json"
    call = ["train-editor", "toy", "--data", str(facts), "--out", str(out), "--json", str(results), "--seed", "2"]
    assert run([*call, "--set", "scale=-1.0"]) == 130
    assert not list(tmp_path.iterdir())
    for wrong in ("scale", "scale=x", "size=3"):
        assert run([*call, "--set", wrong]) == 2
    assert run([*call, "--set", "scale=2.0"]) == 0
    with safe_open(out, framework="pt") as file:
        header = json.loads(file.metadata()["header"])
        assert torch.equal(file.get_tensor("numbers"), 2 * torch.randn(3, generator=torch.Generator().manual_seed(2)))
    record = json.loads(results.read_text(encoding="utf-8"))
    assert (header["name"], header["base"], header["source"]) == ("toy", "lab", str(facts))
    assert header["base_fingerprint"] == record["base_fingerprint"]
    assert record["records"] == {"train": 12, "calibration": 2, "test": 6}
    assert run(call) == 2
    assert "OUTPUT_EXISTS" in capsys.readouterr().err
