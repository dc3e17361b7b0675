"""One process at a time: locks that the operating system lets go of when their process ends, however it ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from errata.errors import InputError


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[TextIO]:
    """Hold the lock of a file, which is made if it is not there, and stays. Gives the file, open to read and to add to.

    Args:
        wait: until whoever holds it lets go.

    Raises:
        BlockingIOError: if another holds it, and nobody is to wait; ``strerror`` is what stands in the file, by which
            its holder may tell who it is.
        OSError: if the file cannot be opened.
    """
    import fcntl  # not on Windows, where all but runs and benchmarks works

    with path.open("a+", encoding="utf-8") as file:
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
def in_turn(path: Path) -> Iterator[None]:
    """Processes that want to make the same do it one after another, so that the later ones find it made.

    It saves work and guards nothing: where there are no such locks (Windows), or the file cannot be made, nobody waits,
    so what is made must appear whole or not at all.
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(path, wait=True))
        yield
