"""What was wrong with a record of our own that could not be read, in one line."""

from __future__ import annotations

import codecs
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError
from safetensors import SafetensorError

# What the parser of safetensors says, and what that means for who gave the file.
_SAFETENSORS = {
    "header too small": "it is empty, or hardly begun",
    "header too large": "it is no safetensors file",
    "invalid header start": "it is no safetensors file",
    "invalid UTF-8 in header": "it is no safetensors file",
    "invalid JSON in header": "it is no safetensors file",
    "invalid header length": "its end is missing",
    "incomplete metadata": "its end is missing",
}


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A regular file, to read; a pipe or a device is refused at once, where reading it might never end.

    Raises:
        OSError: if it cannot be read, or is no regular file.
        ValueError: if the path holds a NUL.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    with os.fdopen(handle, "rb") as file:
        yield file


def file_bytes(path: Path) -> bytes:
    """The bytes of a regular file; raises as ``open_file``."""
    with open_file(path) as file:
        return file.read()


def file_text(path: Path) -> str:
    """The same as text in UTF-8, without a byte order mark; line ends are as in the file.

    Raises:
        UnicodeDecodeError: besides, if it is not UTF-8.
    """
    return file_bytes(path).removeprefix(codecs.BOM_UTF8).decode()


def reason_of(error: Exception) -> str:
    """What an exception says of a file, in one line and in our words: of pydantic's the first fault, with its key and
    its value.
    """
    if isinstance(error, FileNotFoundError):
        return "it cannot be found"
    if isinstance(error, NotADirectoryError):
        return "it would lie in a file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, ValidationError):
        return _first_fault(error)
    if isinstance(error, JSONDecodeError):
        return f"it is not JSON (line {error.lineno}, column {error.colno})" if error.doc.strip() else "it is empty"
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, RecursionError):
        return "its brackets are nested too deeply"
    lines = str(error).splitlines()
    said = lines[0] if lines else type(error).__name__
    if isinstance(error, SafetensorError):
        return next((ours for theirs, ours in _SAFETENSORS.items() if theirs in said), said)
    return said


def is_private(place: Sequence[int | str]) -> bool:
    """Whether a value at this place of settings may be a key or a password in the wrong place, and is never shown."""
    return "judge" in place or place[:1] == ("measures",)


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    said = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "json_invalid":
        return f"it is not JSON ({said})" if str(first["input"]).strip() else "it is empty"
    shown = first["type"] not in ("missing", "extra_forbidden") and not is_private(first["loc"])
    value = f", got {first['input']!r:.60}" if shown else ""
    return f"{place}: {said}{value}" if place else said
