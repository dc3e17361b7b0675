"""What was wrong with a record of our own that could not be read, in one line."""

from __future__ import annotations

from pydantic import ValidationError


def reason_of(error: Exception) -> str:
    """What an exception says of a file, in one line: of pydantic's the first fault, with its key and its value."""
    if isinstance(error, FileNotFoundError):
        return "it cannot be found"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"][0].lower() + first["msg"][1:]
        value = "" if first["type"] in ("missing", "json_invalid") else f", got {first['input']!r:.60}"
        return f"{place}: {said}{value}" if place else said
    if isinstance(error, KeyError):
        return f"it has no {error}"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
