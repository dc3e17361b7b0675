"""Where what models say is kept: one file a measurement, of the unedited model shared by all cells that would ask the
same of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from errata.benchmark.cell_spec import CellSpec, damaged, read_json
from errata.benchmark.grid import Measures
from errata.benchmark.material import Material
from errata.benchmark.measurements import ALWAYS, Answer, Part, parts_of
from errata.errors import InputError
from errata.utils.files import write_text

_BEFORE = "before.json"


def answer_path(folder: Path, part: Part, measures: Measures) -> Path:
    """Where a part's answer is kept; with other options it is another answer."""
    return folder / f"{_name(part, measures)}.json"


def before_path(bench: Path, fingerprint: str, part: Part, spec: CellSpec, material: Material) -> Path:
    """Where the unedited model's answer is kept.

    Args:
        bench: the benchmark's directory.
        fingerprint: of the model's weights.
    """
    known = {"material": spec.material, "seed": spec.seed, "prose": material.prose}
    words = json.dumps([fingerprint, *([name, known[name]] for name in sorted(part.depends))])
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    return answer_path(bench / "before" / digest, part, spec.measures)


def note_before(cell: Path, path: Path) -> None:
    """Write down that an answer of the unedited model, which is in ``path``, is the cell's."""
    known = _noted_or_nothing(cell)
    if known.get(path.stem) != path:
        places = {name: f"{file.parent.name}/{file.name}" for name, file in {**known, path.stem: path}.items()}
        write_text(cell / _BEFORE, json.dumps(places, indent=1) + "\n")


def before_of(cell: Path, part: Part, measures: Measures) -> Path:
    """Where what the unedited model said of a part is, as the cell has noted it.

    Raises:
        InputError: if it has not.
    """
    try:
        return noted_before(cell)[_name(part, measures)]
    except KeyError as error:
        raise damaged(cell / _BEFORE, error) from error


def noted_before(cell: Path) -> dict[str, Path]:
    """Name of an answer -> file, as ``note_before`` wrote it.

    Raises:
        InputError: if that is missing or damaged.
    """
    noted = read_json(cell / _BEFORE)
    try:
        return {str(name): cell.parent.parent / "before" / str(place) for name, place in noted.items()}
    except AttributeError as error:
        raise damaged(cell / _BEFORE, error) from error


def is_edited(cell: Path, measures: Measures) -> bool:
    """Whether a cell has been edited, and asked what is always measured."""
    return (cell / "result.json").is_file() and {*ALWAYS} <= {*answered(cell, measures)}


def is_done(cell: Path, measures: Measures) -> bool:
    """Whether a cell has been edited, and asked all that is measured."""
    return (cell / "result.json").is_file() and answered(cell, measures) == parts_of(measures.parts)


def answered(cell: Path, measures: Measures) -> list[Part]:
    """The parts of which what the unedited and the edited model say is there."""
    noted = _noted_or_nothing(cell)
    return [
        part
        for part in parts_of(measures.parts)
        if (before := noted.get(_name(part, measures))) is not None
        and before.is_file()
        and answer_path(cell / "after", part, measures).is_file()
    ]


def read_answer(path: Path) -> Answer:
    """Raises InputError if it is missing or damaged."""
    record = read_json(path)
    try:
        return Answer.of(record)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def _noted_or_nothing(cell: Path) -> dict[str, Path]:
    """Nothing where it is missing or damaged: it only says where answers are, and working on the cell tells it anew."""
    try:
        return noted_before(cell)
    except InputError:
        return {}


def _name(part: Part, measures: Measures) -> str:
    return part.answer_name(measures.options.get(part.name, {}))
