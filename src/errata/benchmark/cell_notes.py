"""What a reader of a cell's results should know of how it was worked on, such as that it went on elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from errata.benchmark.cell_spec import damaged, read_json
from errata.output import write_text

_NAME = "notes.json"


def add_notes(cell: Path, notes: Sequence[str]) -> None:
    """Keep them beside the cell's result, each once.

    Raises:
        InputError: if the file is damaged.
    """
    known = notes_of(cell)
    if new := [note for note in dict.fromkeys(notes) if note not in known]:
        write_text(cell / _NAME, json.dumps([*known, *new], ensure_ascii=False) + "\n")


def notes_of(cell: Path) -> tuple[str, ...]:
    """Those that were kept; raises InputError if the file is damaged."""
    path = cell / _NAME
    if not path.is_file():
        return ()
    notes = read_json(path)
    if not isinstance(notes, list):
        raise damaged(path, TypeError("it holds no list"))
    return tuple(map(str, notes))
