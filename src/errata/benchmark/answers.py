"""Where what models say is kept: one file a measurement, of the unedited model shared by all cells that would ask the
same of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.benchmark.cell_spec import CellSpec, damaged, read_json
from errata.benchmark.grid import Measures
from errata.benchmark.material import Material
from errata.benchmark.measurements import parts_of
from errata.benchmark.parts import Part
from errata.output import write_text

_BEFORE = "before.json"


def answer_path(folder: Path, part: Part, measures: Measures) -> Path:
    """Where a part's answer is kept; with other options it is another answer."""
    options = measures.options.get(part.name)
    if not options:
        return folder / f"{part.name}.json"
    text = json.dumps(options, sort_keys=True, default=str)
    return folder / f"{part.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


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


def note_before(cell: Path, paths: Mapping[str, Path]) -> None:
    """Write down which answers of the unedited model are the cell's: part -> file."""
    named = {part: f"{path.parent.name}/{path.name}" for part, path in paths.items()}
    write_text(cell / _BEFORE, json.dumps(named, indent=1) + "\n")


def noted_before(cell: Path) -> dict[str, Path]:
    """Part -> file, as ``note_before`` wrote it.

    Raises:
        InputError: if that is damaged.
    """
    noted = read_json(cell / _BEFORE)
    try:
        return {str(part): cell.parent.parent / "before" / str(name) for part, name in noted.items()}
    except AttributeError as error:
        raise damaged(cell / _BEFORE, error) from error


def is_done(directory: Path, measures: Measures) -> bool:
    """Whether a cell has been edited, and asked all that is measured."""
    answers = [answer_path(directory / "after", part, measures) for part in parts_of(measures.parts)]
    return all(path.is_file() for path in (directory / "result.json", *answers))


def kept_in(path: Path) -> Mapping[str, Any]:
    """What a part kept beside its records; raises InputError as ``read_json``."""
    kept: Mapping[str, Any] = read_json(path)["kept"]
    return kept
