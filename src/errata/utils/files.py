"""Output that appears whole or not at all."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from json import JSONDecodeError
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError
from safetensors import SafetensorError

from errata.errors import ErrataError, InputError, OutputError
from errata.utils.locks import claimed

_FULL = (errno.ENOSPC, errno.EDQUOT)
# A directory of such a name would be a slip: a file was meant.
_OF_FILES = frozenset(
    ".bin .ckpt .csv .gguf .json .jsonl .npz .pkl .pt .pth .safetensors .svg .tsv .txt .yaml .yml .zip".split()
)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside ``target`` that becomes ``target`` if the block ends well, and vanishes if not.

    Modes are those that the umask allows, whatever wrote the files.

    Raises:
        InputError: if ``target`` exists and is not an empty directory, or cannot be made.
        OutputError: if the block, or the file system, cannot write what belongs there.
    """
    check_new(target)
    with _partial(target, InputError) as (partial, mode), _told(target):
        yield partial
        for file in partial.rglob("*"):  # safetensors writes for the owner alone
            if not file.is_symlink():
                file.chmod(mode if file.is_dir() else mode & 0o666)
        if target.exists():
            target.rmdir()
        partial.replace(target)


@contextmanager
def _partial(target: Path, kind: type[ErrataError] = OutputError) -> Iterator[tuple[Path, int]]:
    """A new directory beside ``target`` to prepare it in, and its mode, which is what the umask allows.

    It is removed at the end, and so is at the beginning what killed processes have left of the same target: a lock,
    which ends with its process, tells the one from the other.

    Args:
        kind: of the error if it cannot be made.
    """
    handle = None
    with _told(target, kind):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        partial = target.parent / f".{_short(target.name)}.{secrets.token_hex(4)}.partial"
        try:
            handle = claimed(partial, wait=True)
        except (ImportError, OSError):  # no such locks here: what a killed process leaves is then for people to remove
            partial.mkdir(exist_ok=True)
        mode = stat.S_IMODE(partial.stat().st_mode)
    try:
        yield partial, mode
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _short(name: str) -> str:
    """A name that leaves room for what is put around it: names have at most 255 bytes."""
    return name.encode(errors="surrogateescape")[:200].decode(errors="ignore")


def _remove_abandoned(target: Path) -> None:
    for partial in target.parent.glob(f".{escape(_short(target.name))}.*.partial"):
        with suppress(ImportError, OSError):  # somebody is at work there, or it is no directory of this kind
            handle = claimed(partial, wait=False)
            shutil.rmtree(partial, ignore_errors=True)
            os.close(handle)


def leftovers(directory: Path) -> list[Path]:
    """What killed processes have left in a directory, at any depth, of files that they were writing."""
    found = sorted(directory.rglob(".*.partial"))
    return [path for path in found if not any(other in path.parents for other in found)]


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it; nothing if there is none. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def reserved(target: Path) -> Iterator[None]:
    """Keep other processes from preparing the same new output at the same time; nothing where it is there already.

    The reservation is a locked directory in the nearest directory that exists, so that it ends with its process. Where
    none can be made (the place cannot be written, or knows no locks) there is none.

    Raises:
        InputError: if another process has reserved it.
    """
    path = target.absolute()
    handle = reservation = None
    try:
        if not path.exists() and not path.is_symlink():
            parent = next(folder for folder in path.parents if folder.is_dir())
            name = ".".join(path.relative_to(parent).parts)
            reservation = parent / f".{_short(name)}.reserved.partial"
            handle = claimed(reservation, wait=False)
    except BlockingIOError as error:
        raise InputError(f"another process is about to write {target}", remedy="Wait, or give another name") from error
    except (ImportError, OSError, ValueError):
        pass
    try:
        yield
    finally:
        if handle is not None and reservation is not None:
            shutil.rmtree(reservation, ignore_errors=True)
            os.close(handle)


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


def _check_name(target: Path) -> None:
    """Raises InputError for what no file system takes as a name, such as one that is too long."""
    parent = next((folder for folder in target.absolute().parents if is_there(folder)), Path("/"))
    for path in (*(parent / part for part in target.parts), target):
        try:
            path.lstat()
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) or error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                reason = getattr(error, "strerror", None) or str(error)
                what = f"{str(target)[:80]}{'…' if len(str(target)) > 80 else ''} cannot be written: {reason}"
                raise InputError(what, remedy="Give another name") from error


def check_new(target: Path) -> None:
    """Raises InputError if ``target`` exists and is not an empty directory: nothing is ever overwritten.

    Also if it has the name of a file, or one that no file can have.
    """
    _check_name(target)
    if target.suffix.lower() in _OF_FILES and not target.is_dir():
        raise InputError(
            f"{target} would be a directory, and ends in {target.suffix} like a file",
            remedy="Give a directory's name",
        )
    if target.is_dir() and not any(target.iterdir()):
        _check_replaceable(target)
    elif target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already", remedy="Give another name, or remove it first")
    _check_parent(target)


def _check_replaceable(directory: Path) -> None:
    """Raises InputError for an empty directory whose place the new one could not take."""
    what = ""
    if directory.is_symlink():
        what = "a link to a directory"
    elif directory.samefile(Path()):
        what = "the current directory"
    elif directory.absolute().is_mount():
        what = "a mount point"
    if what:
        raise InputError(
            f"{directory} is {what}, which cannot be replaced by the finished output",
            remedy=f"Give a new name inside it, such as {directory / 'edited'}",
        )


def check_file(target: Path) -> None:
    """Raises InputError if no file can be written at ``target``; an older one there may be replaced."""
    _check_name(target)
    if target.is_dir():
        raise InputError(f"{target} is a directory", remedy="Give the name of a file")
    if target.exists() and not target.is_file():  # such as /dev/stdout, whose place a file would take
        raise InputError(f"{target} is no file that can be replaced", remedy="Give the name of a file")
    _check_parent(target)


def check_new_file(target: Path) -> None:
    """As ``check_file``, and also if anything is there."""
    _check_name(target)
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

    What is written is on the disk, and not only in a cache, when the block is left. Its mode is what the umask allows.

    Raises:
        OutputError: if it cannot be written; what was there before is left.
    """
    with _partial(target) as (partial, mode):
        temporary = partial / target.name
        with _told(target):
            yield temporary
            temporary.chmod(mode & 0o666)
            _sync(temporary)
            temporary.replace(target)
            _sync(target.parent)


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


# ----------------------------------------------------------------------------------------------------
# What was wrong with a record of our own that could not be read, in one line.


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


# ----------------------------------------------------------------------------------------------------
# Where errata keeps what it can make or get again.


def cache_directory(name: str) -> Path:
    """``$ERRATA_CACHE/<name>``, else the same in the user's cache directory. It may not be there yet.

    Raises:
        InputError: if neither is known: the user has no home directory.
    """
    if given := os.environ.get("ERRATA_CACHE"):
        return Path(given) / name
    if known := os.environ.get("XDG_CACHE_HOME"):
        return Path(known) / "errata" / name
    try:
        return Path.home() / ".cache" / "errata" / name
    except RuntimeError as error:
        raise InputError(
            "there is no home directory, and so no cache", remedy="Set ERRATA_CACHE to a directory for it"
        ) from error
