"""What a cell of a grid is, and how it ended."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from errata.benchmark.grid import DataEntry, Measures, ModelEntry
from errata.editing.recipe import Recipe
from errata.errors import InputError
from errata.utils.files import reason_of


class CellSpec(BaseModel):
    """What a cell is; never changes.

    Attributes:
        label: the method with the values of varied fields, as tables call it.
        material: the file of facts and questions, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["errata-cell-1"] = "errata-cell-1"
    model: ModelEntry
    data: DataEntry
    label: str
    recipe: Recipe
    seed: int
    material: str
    eval_every: int
    sample: int
    collapse: float | None
    measures: Measures

    @property
    def called(self) -> str:
        """What people are told of it."""
        return f"{self.model.name}, {self.data.label}, {self.label}, seed {self.seed}"

    @property
    def key(self) -> str:
        """A name of its own, the same for the same edits; what is measured of them may grow later."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"measures"}).encode()).hexdigest()[:10]
        words = f"{self.model.name.rstrip('/').rsplit('/', 1)[-1]}-{self.data.name}-{self.recipe.method}-{self.seed}"
        return "".join(sign if sign.isalnum() or sign in "+-_." else "-" for sign in words)[:80] + f"-{digest}"


@dataclass(frozen=True, slots=True)
class CellResult:
    """How a cell ended.

    Attributes:
        seconds: wall time of its batches and of what was asked behind each, of all sittings.
        collapsed_at: the batch, from 1, behind which perplexity was over the limit; it was taken out again.
        ratio: the perplexity ratio there.
        edits: facts that are in the model at the end.
    """

    seconds: float
    edits: int
    collapsed_at: int | None
    ratio: float | None


def result_of(directory: Path) -> CellResult | None:
    """How a cell ended; None if it has not.

    Raises:
        InputError: if the file is damaged.
    """
    path = directory / "result.json"
    if not path.is_file():
        return None
    try:
        return CellResult(**read_json(path))
    except TypeError as error:
        raise damaged(path, error) from error


def read_spec(cell: Path) -> CellSpec:
    """The record of a cell's directory.

    Raises:
        InputError: if it is missing or damaged.
    """
    path = cell / "cell.json"
    try:
        return CellSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error


def read_json(path: Path) -> Any:
    """Raises InputError if a file that a cell wrote is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> InputError:
    """What is said of a file that a cell wrote, and that is not what it was."""
    return InputError(
        f"{path} cannot be used: {reason_of(error)}", remedy="Remove it, and go on: errata bench makes it again"
    )
