"""Trained editors for tiny models, from facts in their vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from errata.editors.trained_editor import TrainedEditor
from errata.editors.trainers import train_editor, trainer_settings
from errata.editors.training_data import SPLITS, EditorData, Split, TrainingRecord
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel

from tests.support.editing import FACTS, tiny_language_model

QUICK: Final[Mapping[str, Mapping[str, Any]]] = {
    "mend": {"layers": [1, 3], "rank": 8, "steps": 8, "check_every": 4, "batch_size": 4, "learning_rate": 0.01},
    "rledit": {"layers": [1, 3], "rank": 8, "steps": 8, "check_every": 4, "batch_size": 2, "turns": 3, "checked": 6},
    "serac": {"hidden": {"tokens": 200}},
    "post_edit": {"steps": 60, "batch_size": 4, "learning_rate": 0.01, "checked": 12},
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


def answered_data() -> dict[Split, EditorData]:
    """The facts that tests edit, with what the tiny llama answers as their old objects: the same in every split."""
    model = tiny_language_model("llama")
    answers = model.continue_texts([fact.text for fact in FACTS], new_tokens=4)
    records = tuple(
        TrainingRecord(replace(fact, old=answer.strip()), (), (Question("I think that", "London"),), ())
        for fact, answer in zip(FACTS, answers, strict=True)
    )
    return {split: EditorData("tiny", split, 0, records) for split in SPLITS}


DATA: Final[Mapping[str, Callable[[], dict[Split, EditorData]]]] = {"post_edit": answered_data}
"""Of what a trainer learns, if not of ``tiny_data``."""


@cache
def tiny_trained(name: str) -> TrainedEditor:
    """A trainer's result for the tiny llama."""
    data = DATA.get(name, tiny_data)()
    return train_editor(name, tiny_language_model("llama"), data, trainer_settings(name, QUICK[name]))


def trained_file(name: str, folder: Path) -> Path:
    """The same as a file."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        tiny_trained(name).save(path)
    return path


def saved_rewriter(folder: Path, fact: Fact, *wordings: str) -> tuple[Path, Path]:
    """A rewriting model trained on sentences of one fact, and the directory with the tiny llama that was trained.

    Args:
        wordings: whole prompts besides the fact's own.
    """
    path, directory = folder / "rewriter.safetensors", folder / "rewriter"
    model = tiny_language_model("llama")
    model.model.save_pretrained(directory)
    model.tokenizer.save_pretrained(directory)
    outer = tuple(Question(wording, fact.target) for wording in wordings)
    records = (TrainingRecord(fact, outer, (Question("I think that", "London"),), ()),)
    data: dict[Split, EditorData] = {split: EditorData("tiny", split, 0, records) for split in SPLITS}
    settings = trainer_settings("post_edit", {**QUICK["post_edit"], "steps": 25})
    train_editor("post_edit", LanguageModel.load(directory, device="cpu"), data, settings).save(path)
    return path, directory
