"""Output that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from errata.errors import InputError


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside ``target`` that becomes ``target`` if the block ends well, and vanishes if not.

    Raises:
        InputError: if ``target`` exists and is not an empty directory, or cannot be made.
    """
    check_new(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error}", remedy="Give a directory that you may write to"
        ) from error
    try:
        yield partial
        partial.chmod(0o755)
        for file in partial.rglob("*"):  # safetensors writes for the owner alone
            file.chmod(0o755 if file.is_dir() else 0o644)
        if target.exists():
            target.rmdir()
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new(target: Path) -> None:
    """Raises InputError if ``target`` exists and is not an empty directory: nothing is ever overwritten."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already", remedy="Give another name, or remove it first")
    _check_parent(target)


def check_file(target: Path) -> None:
    """Raises InputError if no file can be written at ``target``; an older one there may be replaced."""
    if target.is_dir():
        raise InputError(f"{target} is a directory", remedy="Give the name of a file")
    _check_parent(target)


def check_new_file(target: Path) -> None:
    """As ``check_file``, and also if anything is there."""
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already", remedy="Give another name, or remove it first")
    _check_parent(target)


def _check_parent(target: Path) -> None:
    """Told before the work, not after it."""
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{target} cannot be written in {parent}", remedy="Give a directory that you may write to")


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target`` that takes its place if the block ends well, and vanishes if not.

    What is written is on the disk, and not only in a cache, when the block is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a file whole or not at all, over an older one."""
    with new_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    """Let the operating system write a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_file(path: Path) -> bool:
    """Whether a file is there; where a name is none that a file can have, there is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
