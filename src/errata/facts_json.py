"""A JSON list of records, read record by record: of a cut or damaged one it is known where it breaks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from errata.errors import Fault

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_CUT: Final = "The file may be cut off or damaged: get it again, or correct it there"


def list_values(text: str, source: str, *, remedy: str = _CUT) -> Iterator[tuple[int, object, Fault | None]]:
    """(index, value, None) of each entry of a JSON list; (index, None, fault) where one is broken.

    After an entry that only repeats a field the next can still be found; after any other fault the rest cannot be read.
    """
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        what = "the file is not a JSON list of records"
        yield 0, None, Fault(source, what + (" but empty" if at == len(text) else ""), remedy)
        return
    at = _after_space(text, at + 1)
    index = 0
    while text[at : at + 1] != "]" or index > 0:  # "[]" has no entries, but "[1,]" lacks one
        try:
            value, fault, at = _entry(text, at, f"{source}[{index}]")
        except (ValueError, RecursionError) as error:
            yield index, None, Fault(f"{source}[{index}]", _reason(error), remedy)
            return
        yield index, value, fault
        at = _after_space(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            end = "the file ends" if at == len(text) else f"{text[at]!r} stands at {_position(text, at)}"
            yield index + 1, None, Fault(source, f"{end} behind record [{index}], where a comma or ']' belongs", remedy)
            return
        at, index = _after_space(text, at + 1), index + 1
    behind = _after_space(text, at + 1)
    if behind < len(text):
        yield index, None, Fault(source, f"more stands behind the list, at {_position(text, behind)}", remedy)


def _entry(text: str, at: int, place: str) -> tuple[object, Fault | None, int]:
    """(value, what is wrong with it, where it ends)."""
    try:
        value, end = json.JSONDecoder(object_pairs_hook=object_without_repeats).raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        _, end = json.JSONDecoder().raw_decode(text, at)
        return None, Fault(place, str(error), "Correct the file"), end
    return value, None, end


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
    return "the brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _position(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"


def object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A plain dict, in which the last of several values would win without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {twice!r} stands there twice")
    return found
