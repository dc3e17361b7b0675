"""Locks between processes, released by the operating system when their process ends, and safe in-place writing."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from errata.errors import InputError

_REMEDY: Final = "Remove it if it is not needed, or use another directory"
_logger = logging.getLogger(__name__)


def open_in_place(path: Path, mode: str, *, buffering: int = -1) -> IO[Any]:
    """``open`` for files that are modified in place (locks, logs, ledgers, unfinished downloads), with UTF-8 for text.

    Only a regular file with one name is opened, or a new one: in a directory that somebody else created, a link could
    redirect the writing to any file on the machine.

    Args:
        mode: one that writes without truncating: ``a``, ``a+``, ``ab`` or ``r+b``.

    Raises:
        InputError: if the path is a link, a file with a second name (hard link), or not a regular file.
        OSError: as ``open``.
    """
    encoding = None if "b" in mode else "utf-8"
    return open(path, mode, buffering=buffering, encoding=encoding, opener=_open_regular)


def check_no_links(directory: Path) -> None:
    """Raises InputError if a directory contains links, devices or pipes, which lead outside it."""
    for folder, folders, files in os.walk(directory):  # does not follow links
        for name in (*folders, *files):
            path = Path(folder, name)
            if kind := _special_kind(path):
                what = f"{path} is {kind}; {directory} cannot be used with it"
                raise InputError(what, remedy=_REMEDY, code="FILE_NOT_REGULAR")


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[IO[Any]]:
    """Lock a file, which is created if it does not exist, and remains. Yields it, open for reading and appending.

    Args:
        wait: until another process releases the lock.

    Raises:
        BlockingIOError: if another process has the lock, and ``wait`` is false; ``strerror`` is the file's content, in
            which that process may describe itself.
        InputError: if it is a link, or not a regular file.
        OSError: if the file cannot be opened.
    """
    import fcntl  # not on Windows, where everything but runs and benchmarks works

    with open_in_place(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise BlockingIOError(error.errno, file.read().strip() or "unknown", str(path)) from error
        yield file


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Exclude other processes.

    Args:
        path: of the lock.
        what: the thing that is locked, for messages.

    Raises:
        InputError: if another process has the lock.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except BlockingIOError as error:
            message = f"another process is working on {what}"
            raise InputError(message, remedy="Wait until it finishes, or stop it", code="LOCKED") from error
        yield


@contextmanager
def in_turn(path: Path, what: str) -> Iterator[None]:
    """Let processes that would create the same thing wait for each other, so that it is created once.

    This saves work and protects nothing: without locks (Windows), or if the file cannot be created, nobody waits. So
    the result must be written completely or not at all. A process that has to wait logs a warning first.

    Args:
        what: the thing that is created, for that warning.
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(path))
            except BlockingIOError:
                _logger.warning("waiting for another process, which is working on %s", what)
                stack.enter_context(locked(path, wait=True))
        yield


def locked_directory(folder: Path, *, wait: bool) -> int:
    """Create a directory, or use an existing one, and lock it.

    Returns:
        An open handle. The lock is released when it is closed, or when the process ends.

    Raises:
        BlockingIOError: if another handle has the lock, and ``wait`` is false.
        OSError, ImportError: if it cannot be created or locked.
    """
    import fcntl

    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # its former owner has just removed it
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


def _open_regular(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe would wait for a reader. Windows has neither of the two flags.
    guards = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags | guards, 0o666)
    except OSError as error:
        if kind := _special_kind(Path(path)):
            raise _not_regular(path, kind) from error
        raise
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return handle
    os.close(handle)
    raise _not_regular(path, _special_kind(Path(path)) or "a file with other names (hard links)")


def _not_regular(path: str, kind: str) -> InputError:
    what = f"{path} is {kind}; errata writes only to regular files here"
    return InputError(what, remedy=_REMEDY, code="FILE_NOT_REGULAR")


def _special_kind(path: Path) -> str:
    """What a path is, if neither a regular file nor a directory."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    if stat.S_ISLNK(mode):
        return "a link"
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "a pipe, a socket or a device"
