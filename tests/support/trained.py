"""Trained editors for tiny models, from facts in their vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from errata.editors.trained_editor import TrainedEditor
from errata.editors.trainers import train_editor, trainer_settings
from errata.editors.training_data import SPLITS, EditorData, Split, TrainingRecord
from errata.facts.fact import Fact, Question

from tests.support.editing import tiny_language_model

QUICK: Final[Mapping[str, Mapping[str, Any]]] = {
    "mend": {"layers": [1, 3], "rank": 8, "steps": 8, "check_every": 4, "batch_size": 4, "learning_rate": 0.01},
    "serac": {"hidden": {"tokens": 200}},
}
"""Settings of each trainer with which a test ends soon."""
_NAMES = ("Leonard", "Thomas", "Danielle", "Kenji", "Bernstein", "Stieltjes", "Darrieux", "Watanabe")
_PLACES = ("Paris", "Rome", "London", "Madrid", "Lisbon", "Nagoya", "Bordeaux", "Italy")


def tiny_data() -> dict[Split, EditorData]:
    """Eight records in each split, about different people."""
    found: dict[Split, EditorData] = {}
    for number, split in enumerate(SPLITS):
        people = [f"{name} {_NAMES[(place + number + 1) % 8]}" for place, name in enumerate(_NAMES)]
        records = []
        for place, person in enumerate(people):
            other, new, old = people[place - 1], _PLACES[place], _PLACES[place - 3]
            records.append(
                TrainingRecord(
                    Fact(f"{split} {place}", person, "{} was born in", new, old=old, relation="born"),
                    outer=(Question(f"The city of {person} is", new), Question(f"You know that {person} is of", new)),
                    loc=(Question(f"{other} plays the", "piano"), Question("The river runs through", "London")),
                    hard_loc=(Question(f"{person} plays the", "violin"), Question(f"{other} was born in", old)),
                )
            )
        found[split] = EditorData("tiny", split, 0, tuple(records))
    return found


@cache
def tiny_trained(name: str) -> TrainedEditor:
    """A trainer's result for the tiny llama."""
    return train_editor(name, tiny_language_model("llama"), tiny_data(), trainer_settings(name, QUICK[name]))


def trained_file(name: str, folder: Path) -> Path:
    """The same as a file."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        tiny_trained(name).save(path)
    return path
