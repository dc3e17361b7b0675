"""Output that appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from errata.errors import ErrataError, InputError, OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# A directory of such a name would be a slip: a file was meant.
_OF_FILES = frozenset(
    ".bin .ckpt .csv .gguf .json .jsonl .npz .pkl .pt .pth .safetensors .svg .tsv .txt .yaml .yml .zip".split()
)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside ``target`` that becomes ``target`` if the block ends well, and vanishes if not.

    Raises:
        InputError: if ``target`` exists and is not an empty directory, or cannot be made.
        OutputError: if the block, or the file system, cannot write what belongs there.
    """
    check_new(target)
    with _told(target, InputError):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    try:
        with _told(target):
            yield partial
            partial.chmod(0o755)
            for file in partial.rglob("*"):  # safetensors writes for the owner alone
                file.chmod(0o755 if file.is_dir() else 0o644)
            if target.exists():
                target.rmdir()
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _told(target: Path, kind: type[ErrataError] = OutputError) -> Iterator[None]:
    """Whatever could not be written on the way to ``target`` is told of ``target``, the name that the user knows.

    Args:
        kind: of the error, unless the disk is full: then the input is not to blame.
    """
    try:
        yield
    except (OSError, SafetensorError, OutputError) as error:
        reason, full = _reason(error)
        remedy = "Give a place that you may write to"
        if full:
            kind, remedy = OutputError, "Make room there, or give a place on another disk"
        raise kind(f"{target} cannot be written: {reason}", remedy=remedy) from error


def is_full(error: Exception) -> bool:
    """Whether a disk, or what one may use of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def _reason(error: OSError | SafetensorError | OutputError) -> tuple[str, bool]:
    """Why something could not be written, in the operating system's words; and whether the disk is full."""
    if isinstance(error, OutputError) and isinstance(error.__cause__, OSError | SafetensorError):
        error = error.__cause__  # which it tells of a name that the user does not know
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
        text = str(error.args[0][0][-1])  # of the first file that could not be copied
    elif isinstance(error, OSError) and error.strerror:
        return error.strerror, is_full(error)
    else:
        text = str(error)
    found = re.search(r"os error (\d+)|\[Errno (\d+)\]", text)  # safetensors has no other place for it
    if found is None:
        return (text.splitlines() or [type(error).__name__])[0], False
    number = int(found[1] or found[2])
    return os.strerror(number), number in _FULL


def check_new(target: Path) -> None:
    """Raises InputError if ``target`` exists and is not an empty directory: nothing is ever overwritten.

    Also if it has the name of a file.
    """
    if target.suffix.lower() in _OF_FILES and not target.is_dir():
        raise InputError(
            f"{target} would be a directory, and ends in {target.suffix} like a file",
            remedy="Give a directory's name",
        )
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already", remedy="Give another name, or remove it first")
    _check_parent(target)


def check_file(target: Path) -> None:
    """Raises InputError if no file can be written at ``target``; an older one there may be replaced."""
    if target.is_dir():
        raise InputError(f"{target} is a directory", remedy="Give the name of a file")
    if target.exists() and not target.is_file():  # such as /dev/stdout, whose place a file would take
        raise InputError(f"{target} is no file that can be replaced", remedy="Give the name of a file")
    _check_parent(target)


def check_new_file(target: Path) -> None:
    """As ``check_file``, and also if anything is there."""
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already", remedy="Give another name, or remove it first")
    _check_parent(target)


def _check_parent(target: Path) -> None:
    """Told before the work, not after it."""
    if target.name == "-":
        raise InputError("'-' is no name of an output, and nothing but text goes to standard output", remedy="Name it")
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{target} cannot be written in {parent}", remedy="Give a directory that you may write to")


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target`` that takes its place if the block ends well, and vanishes if not.

    What is written is on the disk, and not only in a cache, when the block is left.

    Raises:
        OutputError: if it cannot be written; what was there before is left.
    """
    with _told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
        os.close(handle)
    temporary = Path(name)
    try:
        with _told(target):
            yield temporary
            temporary.chmod(0o644)
            _sync(temporary)
            temporary.replace(target)
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a file whole or not at all, over an older one."""
    write_bytes(target, text.encode())


def write_bytes(target: Path, data: bytes) -> None:
    """As ``write_text``."""
    with new_file(target) as temporary:
        temporary.write_bytes(data)


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


def is_there(path: Path) -> bool:
    """Whether anything is there, of whatever kind; see ``is_file``."""
    try:
        return path.exists()
    except OSError:
        return False


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
