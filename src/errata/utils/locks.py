"""One process at a time: locks that the operating system lets go of when their process ends, however it ended."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from errata.errors import InputError

# ----------------------------------------------------------------------------------------------------
# Files that are changed where they are: locks, logs, ledgers, unfinished downloads.
#
# A directory that somebody else has made may hold a link with the name of such a file. Writing through it would change
# a file anywhere on the machine, so links, and whatever is no regular file, are refused.


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


# ----------------------------------------------------------------------------------------------------


_logger = logging.getLogger(__name__)


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[IO[Any]]:
    """Hold the lock of a file, which is made if it is not there, and stays. Gives the file, open to read and to add to.

    Args:
        wait: until whoever holds it lets go.

    Raises:
        BlockingIOError: if another holds it, and nobody is to wait; ``strerror`` is what stands in the file, by which
            its holder may tell who it is.
        InputError: if it is a link, or no regular file.
        OSError: if the file cannot be opened.
    """
    import fcntl  # not on Windows, where all but runs and benchmarks works

    with open_in_place(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise BlockingIOError(error.errno, file.read().strip() or "unknown", str(path)) from error
        yield file


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Nobody else works on something meanwhile.

    Args:
        path: of its lock.
        what: it is, for people.

    Raises:
        InputError: if another process does.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held(path))
        except BlockingIOError as error:
            raise InputError(f"another process works on {what}", remedy="Wait until it ends, or end it") from error
        yield


@contextmanager
def in_turn(path: Path, what: str) -> Iterator[None]:
    """Processes that want to make the same do it one after another, so that the later ones find it made.

    It saves work and guards nothing: where there are no such locks (Windows), or the file cannot be made, nobody waits,
    so what is made must appear whole or not at all. A process that has to wait logs a warning first.

    Args:
        what: is being made, for that warning.
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(held(path))
            except BlockingIOError:
                _logger.warning("waiting for another process, which is working on %s", what)
                stack.enter_context(held(path, wait=True))
        yield


def claimed(folder: Path, *, wait: bool) -> int:
    """Make a directory, or take one that is there, and lock it.

    Returns:
        An open handle. The lock is released when it is closed, or when the process ends.

    Raises:
        BlockingIOError: if another handle holds the lock, and ``wait`` is false.
        OSError, ImportError: if it cannot be made or locked.
    """
    import fcntl

    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # whoever held it has just removed it
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if folder.exists() and os.path.samestat(os.fstat(handle), folder.lstat()):
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
