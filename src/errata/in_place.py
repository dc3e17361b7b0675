"""Files that are changed where they are: locks, logs, ledgers, unfinished downloads.

A directory that somebody else has made may hold a link with the name of such a file. Writing through it would change a
file anywhere on the machine, so links, and whatever is no regular file, are refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from errata.errors import InputError

_REMEDY = "Remove it, if you know where it comes from"


def open_in_place(path: Path, mode: str, *, buffering: int = -1) -> IO[Any]:
    """As ``open``, with UTF-8 for text, but only for a regular file that has this one name, or a new one.

    Args:
        mode: one that writes without emptying the file: ``a``, ``a+``, ``ab`` or ``r+b``.

    Raises:
        InputError: if the path is a link, a file with a second name (hard link), or no regular file.
        OSError: as ``open``.
    """
    encoding = None if "b" in mode else "utf-8"
    return open(path, mode, buffering=buffering, encoding=encoding, opener=_regular)


def _regular(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe would wait for somebody who reads it. Windows has neither of the two flags.
    guards = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags | guards, 0o666)
    except OSError as error:
        if what := _what_else(Path(path)):
            raise InputError(f"{path} is {what}; errata writes only to regular files here", remedy=_REMEDY) from error
        raise
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return handle
    os.close(handle)
    what = _what_else(Path(path)) or "a file that has other names too (hard links)"
    raise InputError(f"{path} is {what}; errata writes only to regular files here", remedy=_REMEDY)


def check_no_links(directory: Path) -> None:
    """Before work goes on in a directory that may come from elsewhere: all of it lies inside it.

    Raises:
        InputError: names the first link, device or pipe below it.
    """
    for path in _entries(directory):
        if what := _what_else(path):
            raise InputError(f"{path} is {what}; work cannot go on in {directory} with it", remedy=_REMEDY)


def _entries(directory: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(directory):  # which does not follow links
        for name in (*folders, *files):
            yield Path(folder, name)


def _what_else(path: Path) -> str:
    """What a path is, if neither a regular file nor a directory."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    if stat.S_ISLNK(mode):
        return "a link"
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "a pipe, a socket or a device"
