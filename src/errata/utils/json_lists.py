"""A JSON list read entry by entry, so that errors in a truncated or damaged file are located."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from errata.errors import Fault

_SPACE: Final = re.compile(r"[ \t\n\r]*")


def list_values(text: str, source: str, *, remedy: str) -> Iterator[tuple[int, object, Fault | None]]:
    """(index, value, None) of each entry of a JSON list; (index, None, fault) where one is invalid.

    After an entry whose only error is a duplicate field, reading continues; after any other error it ends.

    Args:
        remedy: for a truncated or damaged file.
    """

    def invalid(place: str, what: str) -> Fault:
        return Fault(place, what, remedy, code="JSON_INVALID")

    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        empty = at == len(text)
        yield 0, None, invalid(source, "the file is empty" if empty else "the file is not a JSON list of records")
        return
    at = _after_space(text, at + 1)
    index = 0
    while text[at : at + 1] != "]" or index > 0:  # "[]" has no entries, but "[1,]" lacks one
        try:
            value, fault, at = _entry(text, at, f"{source}[{index}]")
        except (ValueError, RecursionError) as error:
            yield index, None, invalid(f"{source}[{index}]", json_error(error))
            return
        yield index, value, fault
        at = _after_space(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            found = "the file ends" if at == len(text) else f"there is {text[at]!r} at {_position(text, at)}"
            yield index + 1, None, invalid(source, f"{found} after record [{index}], expected a comma or ']'")
            return
        at, index = _after_space(text, at + 1), index + 1
    end = _after_space(text, at + 1)
    if end < len(text):
        yield index, None, invalid(source, f"there is more text after the list, at {_position(text, end)}")


def unique_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An ``object_pairs_hook`` that rejects duplicate fields, of which json would silently use the last.

    Raises:
        ValueError: names the first duplicate.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"duplicate field {duplicate!r}")
    return found


def json_error(error: Exception) -> str:
    """What is wrong with a JSON text of several lines."""
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
    return "brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)


def _entry(text: str, at: int, place: str) -> tuple[object, Fault | None, int]:
    """(value, its fault, where it ends)."""
    try:
        value, end = json.JSONDecoder(object_pairs_hook=unique_fields).raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        _, end = json.JSONDecoder().raw_decode(text, at)
        return None, Fault(place, str(error), "Correct the file", code="FACT_DUPLICATE_FIELD"), end
    return value, None, end


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _position(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"
