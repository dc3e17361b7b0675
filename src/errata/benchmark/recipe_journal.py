"""The tries of a recipe search as a file, one line a try, so that a search can stop and go on at any time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.errors import InputError
from errata.in_place import open_in_place


@dataclass(frozen=True, slots=True)
class Try:
    """One setting that was tried.

    Attributes:
        number: what was varied: ``learning_rate``, ``solver`` or ``clamp``.
        value: what it was set to, as a change of a recipe.
        told: the same for people.
        score: the larger, the better; minus infinity if the edit failed.
        seconds: how long it took.
    """

    number: str
    value: Mapping[str, Any]
    told: str
    score: float
    seconds: float


def read_journal(path: Path) -> dict[str, Try]:
    """The tries that a file holds; a last line that was cut off is left out.

    Raises:
        InputError: if another line cannot be read.
    """
    if not path.is_file():
        return {}
    # A line may have been cut off inside a character.
    lines = path.read_bytes().decode(errors="replace").split("\n")
    found: dict[str, Try] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            entry = json.loads(line)
            score = -math.inf if entry["score"] is None else float(entry["score"])
            found[entry["key"]] = Try(entry["number"], entry["value"], entry["told"], score, entry["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # no line feed behind it: the search was stopped while it wrote
                break
            raise InputError(
                f"{path}:{number} is no try of a recipe search: {error}", remedy="Remove the line, or the whole file"
            ) from error
    return found


def append_to_journal(path: Path, key: str, tried: Try) -> None:
    """Add one try; a line that was cut off before is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {
        "key": key,
        "number": tried.number,
        "value": tried.value,
        "told": tried.told,
        "score": None if math.isinf(tried.score) else tried.score,
        "seconds": tried.seconds,
    }
    text = json.dumps(entry, ensure_ascii=False) + "\n"
    with open_in_place(path, "ab+") as file:
        file.seek(0)
        kept, line_end, _ = file.read().rpartition(b"\n")
        file.truncate(len(kept + line_end))
        file.write(text.encode())
