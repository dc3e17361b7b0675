"""Files of a cell's directory: specification, result, notes, and where measurements are stored.

Measurements of the unedited model are shared by all cells that would measure the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from errata.benchmark.data import REMEDY, BenchmarkData, read_json, reading_result
from errata.benchmark.grid import DataEntry, Measures, ModelEntry
from errata.benchmark.measurements import REQUIRED, Measurement, MeasurementResult, measurements_of
from errata.editing.recipe import Recipe
from errata.editors.registry import LOCATE_THEN_EDIT
from errata.errors import InputError
from errata.utils.files import reading, write_json

_BEFORE = "before.json"


class CellSpec(BaseModel):
    """The specification of a cell; never changes.

    Attributes:
        label: the method with the values of varied fields, as in tables.
        editor: name of the editor.
        settings: its validated settings, as JSON; those of locate-then-edit are a recipe, stored as ``recipe``.
        material: name of the data file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["errata-cell-1"] = "errata-cell-1"
    model: ModelEntry
    data: DataEntry
    label: str
    editor: str = LOCATE_THEN_EDIT
    settings: Mapping[str, Any]
    seed: int
    material: str
    eval_every: int
    sample: int
    collapse: float | None
    measures: Measures

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "recipe" not in data:
            return data
        recipe = Recipe.model_validate(data["recipe"])
        rest = {name: value for name, value in data.items() if name != "recipe"}
        return {**rest, "editor": LOCATE_THEN_EDIT, "settings": recipe.model_dump(mode="json")}

    @model_serializer(mode="wrap")
    def _to_recipe(self, serialise: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        data: dict[str, Any] = serialise(self)
        if self.editor != LOCATE_THEN_EDIT:
            return data
        return {("recipe" if name == "settings" else name): value for name, value in data.items() if name != "editor"}

    @property
    def recipe(self) -> Recipe:
        """The settings of locate-then-edit."""
        return Recipe.model_validate(self.settings)

    @property
    def method(self) -> str:
        return str(self.settings.get("method", self.editor))

    @property
    def batch_size(self) -> int:
        return int(self.settings["batch_size"])

    @property
    def called(self) -> str:
        """Name in messages."""
        return f"{self.model.name}, {self.data.label}, {self.label}, seed {self.seed}"

    @property
    def key(self) -> str:
        """Directory name, unique for the edits; independent of the measurements, which may be extended later."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"measures"}).encode()).hexdigest()[:10]
        words = f"{self.model.name.rstrip('/').rsplit('/', 1)[-1]}-{self.data.name}-{self.method}-{self.seed}"
        return "".join(sign if sign.isalnum() or sign in "+-_." else "-" for sign in words)[:80] + f"-{digest}"


@dataclass(frozen=True, slots=True)
class CellResult:
    """Summary of a cell's editing.

    Attributes:
        seconds: wall time of its batches and of the measurements after each, resumed parts included.
        collapsed_at: the batch, from 1, after which perplexity exceeded the limit; it was rolled back.
        ratio: the perplexity ratio there.
        edits: facts in the model at the end.
    """

    seconds: float
    edits: int
    collapsed_at: int | None
    ratio: float | None

    @classmethod
    def read(cls, cell: Path) -> CellResult:
        """Raises InputError if the cell has no result, or a damaged one."""
        path = cell / "result.json"
        with reading_result(path):
            return cls(**read_json(path))


def read_spec(cell: Path) -> CellSpec:
    """The specification in a cell's directory.

    Raises:
        InputError: if it is missing or damaged.
    """
    path = cell / "cell.json"
    with reading(path, remedy=REMEDY, code="CELL_FILE_DAMAGED"):
        return CellSpec.model_validate_json(path.read_text(encoding="utf-8"))


def result_path(folder: Path, measurement: Measurement, measures: Measures) -> Path:
    """File of a measurement's result; other options, other file."""
    return folder / f"{_name(measurement, measures)}.json"


def before_path(bench: Path, fingerprint: str, measurement: Measurement, spec: CellSpec, data: BenchmarkData) -> Path:
    """File of the unedited model's result.

    Args:
        bench: the benchmark's directory.
        fingerprint: of the model's weights.
    """
    known = {"material": spec.material, "seed": spec.seed, "prose": data.prose}
    words = json.dumps([fingerprint, *([name, known[name]] for name in sorted(measurement.depends))])
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    return result_path(bench / "before" / digest, measurement, spec.measures)


def note_before(cell: Path, path: Path) -> None:
    """Record that a result of the unedited model, in ``path``, belongs to the cell."""
    known = _noted_or_nothing(cell)
    if known.get(path.stem) != path:
        places = {name: f"{file.parent.name}/{file.name}" for name, file in {**known, path.stem: path}.items()}
        write_json(cell / _BEFORE, places, indent=1)


def before_of(cell: Path, measurement: Measurement, measures: Measures) -> Path:
    """File of the unedited model's result, as recorded by ``note_before``.

    Raises:
        InputError: if there is none.
    """
    with reading_result(cell / _BEFORE):
        return noted_before(cell)[_name(measurement, measures)]


def noted_before(cell: Path) -> dict[str, Path]:
    """Name of a result -> file, as ``note_before`` wrote it.

    Raises:
        InputError: if the record is missing or damaged.
    """
    with reading_result(cell / _BEFORE):
        noted = read_json(cell / _BEFORE)
        return {str(name): cell.parent.parent / "before" / str(place) for name, place in noted.items()}


def is_edited(cell: Path, measures: Measures) -> bool:
    """Whether editing and the required measurements are done."""
    return (cell / "result.json").is_file() and {*REQUIRED} <= {*measurements_made(cell, measures)}


def is_done(cell: Path, measures: Measures) -> bool:
    """Whether editing and all measurements are done."""
    return (cell / "result.json").is_file() and measurements_made(cell, measures) == measurements_of(measures.parts)


def measurements_made(cell: Path, measures: Measures) -> list[Measurement]:
    """The measurements with results for both the unedited and the edited model."""
    noted = _noted_or_nothing(cell)
    return [
        measurement
        for measurement in measurements_of(measures.parts)
        if (before := noted.get(_name(measurement, measures))) is not None
        and before.is_file()
        and result_path(cell / "after", measurement, measures).is_file()
    ]


def read_measurement(path: Path, measurement: Measurement) -> MeasurementResult:
    """Raises InputError if it is missing or damaged."""
    with reading_result(path):
        return MeasurementResult.of(read_json(path), measurement.extra)


def _noted_or_nothing(cell: Path) -> dict[str, Path]:
    """Empty if the record is missing or damaged: resuming the cell writes it again."""
    try:
        return noted_before(cell)
    except InputError:
        return {}


def _name(measurement: Measurement, measures: Measures) -> str:
    return measurement.result_name(measures.options.get(measurement.name, {}))


_NOTES = "notes.json"


def add_notes(cell: Path, notes: Sequence[str]) -> None:
    """Add notes to the cell's, without duplicates.

    Raises:
        InputError: if the file is damaged.
    """
    known = notes_of(cell)
    if new := [note for note in dict.fromkeys(notes) if note not in known]:
        write_json(cell / _NOTES, [*known, *new])


def notes_of(cell: Path) -> tuple[str, ...]:
    """The cell's notes; raises InputError if the file is damaged."""
    path = cell / _NOTES
    if not path.is_file():
        return ()
    with reading_result(path):
        notes = read_json(path)
        if not isinstance(notes, list):
            raise TypeError("expected a list")
        return tuple(map(str, notes))


_CHECK_FIELDS = {"records", "perplexity", "weight_norm_ratio", "check", "seconds"}


def saved_edits(folder: Path) -> dict[Path, Mapping[str, Any]]:
    """File -> content of the saved batches of an editor other than locate-then-edit, in order.

    Raises:
        InputError: if a file is damaged.
    """
    found: dict[Path, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("[0-9]*.json")):
        with reading_result(path):
            batch = read_json(path)
            if not {"edit", "facts", "seconds"} <= batch.keys() or not batch["said"].keys() >= _CHECK_FIELDS:
                raise TypeError("fields are missing")
        found[path] = batch
    return found
