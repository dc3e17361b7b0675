"""Output that is written completely or not at all, and input from regular files only."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import ValidationError
from safetensors import SafetensorError

from errata.errors import ErrataError, InputError, OutputError
from errata.utils.locks import locked_directory

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
# A directory with such a suffix would be a mistake: a file was meant.
_FILE_SUFFIXES: Final = frozenset(
    ".bin .ckpt .csv .gguf .json .jsonl .npz .pkl .pt .pth .safetensors .svg .tsv .txt .yaml .yml .zip".split()
)
_NOT_SAFETENSORS: Final = "it is not a safetensors file"
_SAFETENSORS: Final = {  # messages of its parser
    "header too small": "it is empty or truncated",
    "header too large": _NOT_SAFETENSORS,
    "invalid header start": _NOT_SAFETENSORS,
    "invalid UTF-8 in header": _NOT_SAFETENSORS,
    "invalid JSON in header": _NOT_SAFETENSORS,
    "invalid header length": "it is truncated",
    "incomplete metadata": "it is truncated",
}


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside ``target`` that is renamed to ``target`` on success, and removed on failure.

    File modes are those that the umask allows, whatever wrote the files.

    Raises:
        InputError: if ``target`` exists and is not an empty directory, or cannot be created.
        OutputError: if the block, or the file system, fails to write.
    """
    check_new(target)
    with _partial(target, InputError) as (partial, mode), _write_errors(target):
        yield partial
        for file in partial.rglob("*"):  # safetensors writes files that only their owner can read
            if not file.is_symlink():
                file.chmod(mode if file.is_dir() else mode & 0o666)
        if target.exists():
            target.rmdir()
        partial.replace(target)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target`` that replaces it on success, and is removed on failure.

    The content is synced to the disk. Its mode is what the umask allows.

    Raises:
        OutputError: if it cannot be written; an older file remains.
    """
    with _partial(target) as (partial, mode):
        temporary = partial / target.name
        with _write_errors(target):
            yield temporary
            temporary.chmod(mode & 0o666)
            _sync(temporary)
            temporary.replace(target)
            _sync(target.parent)


def write_text(target: Path, text: str) -> None:
    """Write a file completely or not at all, replacing an older one."""
    write_bytes(target, text.encode())


def write_bytes(target: Path, data: bytes) -> None:
    """As ``write_text``."""
    with new_file(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: Path, value: object, *, indent: int | None = None, allow_nan: bool = True) -> None:
    """As ``write_text``, for a value as UTF-8 JSON with a line end.

    Args:
        indent, allow_nan: as ``json.dumps``.
    """
    write_text(target, json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=allow_nan) + "\n")


@contextmanager
def reserved(target: Path) -> Iterator[None]:
    """Prevent other processes from preparing the same new output; no effect if it exists already.

    The reservation is a locked directory in the nearest existing directory, so that it ends with its process. Where
    none can be created (a read-only place, no locks) there is none.

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
            handle = locked_directory(reservation, wait=False)
    except BlockingIOError as error:
        what = f"another process is about to write {target}"
        raise InputError(what, remedy="Wait, or use another name", code="OUTPUT_RESERVED") from error
    except (ImportError, OSError, ValueError):
        pass
    try:
        yield
    finally:
        if handle is not None and reservation is not None:
            shutil.rmtree(reservation, ignore_errors=True)
            os.close(handle)


def check_new(target: Path) -> None:
    """Raises InputError if ``target`` exists and is not an empty directory, or has the suffix of a file or an invalid
    name: nothing is overwritten.
    """
    _check_name(target)
    if target.suffix.lower() in _FILE_SUFFIXES and not target.is_dir():
        what = f"{target} would be a directory, but ends in {target.suffix} like a file"
        raise InputError(
            what,
            remedy="Give the name of a directory, or of a patch, NAME.safetensors, where a command writes one",
            code="OUTPUT_NOT_A_DIRECTORY",
        )
    if target.is_dir() and not any(target.iterdir()):
        _check_replaceable(target)
        _check_parent(target)
    else:
        check_new_file(target)


def check_file(target: Path) -> None:
    """Raises InputError if no file can be written at ``target``; an older one may be replaced."""
    _check_name(target)
    if target.is_dir():
        raise InputError(f"{target} is a directory", remedy="Use a file's name", code="OUTPUT_NOT_A_FILE")
    if target.exists() and not target.is_file():  # such as /dev/stdout, which a file would replace
        what = f"{target} is not a regular file"
        raise InputError(what, remedy="Use a file's name", code="OUTPUT_NOT_A_FILE")
    _check_parent(target)


def check_new_file(target: Path) -> None:
    """As ``check_file``, and also if anything exists there."""
    _check_name(target)
    if target.exists() or target.is_symlink():
        remedy = "Use another name, or remove it first"
        raise InputError(f"{target} exists already", remedy=remedy, code="OUTPUT_EXISTS")
    _check_parent(target)


def leftovers(directory: Path) -> list[Path]:
    """Unfinished files of killed processes in a directory, at any depth."""
    found = sorted(directory.rglob(".*.partial"))
    return [path for path in found if not any(other in path.parents for other in found)]


def remove(path: Path) -> None:
    """Remove a file, or a directory with its content, if it exists. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_file(path: Path) -> bool:
    """Whether a file exists; False for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_there(path: Path) -> bool:
    """Whether anything exists there, of whatever kind; see ``is_file``."""
    try:
        return path.exists()
    except OSError:
        return False


def is_full(error: Exception) -> bool:
    """Whether an error means that the disk, or the user's quota of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading. A pipe or a device is refused, since reading it might never end.

    Raises:
        OSError: if it cannot be read, or is not a regular file.
        ValueError: if the path contains a NUL.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
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
    """The UTF-8 text of a regular file without a byte order mark; line ends are unchanged.

    Raises:
        OSError, ValueError: as ``open_file``.
        UnicodeDecodeError: if it is not UTF-8.
    """
    return file_bytes(path).removeprefix(codecs.BOM_UTF8).decode()


def read_text(path: Path, subject: object, *, remedy: str, code: str) -> str:
    """As ``file_text``, for a file that the user gave.

    Args:
        subject, remedy, code: as for ``reading``.

    Raises:
        InputError: if it cannot be read.
    """
    with reading(subject, remedy=remedy, code=code):
        return file_text(path)


def read_json(path: Path, subject: object, *, remedy: str, code: str) -> Any:
    """As ``read_text``, for the value of a JSON file."""
    with reading(subject, remedy=remedy, code=code):
        return json.loads(file_text(path))


@contextmanager
def reading(subject: object, *, remedy: str, code: str) -> Iterator[None]:
    """Report the errors of a block that reads a file and may use its content: it is unreadable or damaged.

    Args:
        subject: the file's path, or its name in the message, such as ``the facts 'capitals.csv'``.
        remedy, code: of the error.

    Raises:
        InputError: if the file is missing or unreadable, or its content has another form. One that the block raises
            is passed on.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"cannot read {subject}: {reason_of(error)}", remedy=remedy, code=code) from error


def reason_of(error: Exception) -> str:
    """Why a file could not be read, in one line; of pydantic's errors the first, with its key and value."""
    if isinstance(error, FileNotFoundError):
        return "it cannot be found"
    if isinstance(error, NotADirectoryError):
        return "its parent is a file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, ValidationError):
        return _first_fault(error)
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON (line {error.lineno}, column {error.colno})" if error.doc.strip() else "it is empty"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start + 1} is invalid)"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, RecursionError):
        return "its brackets are nested too deeply"
    lines = str(error).splitlines()
    message = lines[0] if lines else type(error).__name__
    if isinstance(error, SafetensorError):
        return next((plain for original, plain in _SAFETENSORS.items() if original in message), message)
    return message


def is_private(place: Sequence[int | str]) -> bool:
    """Whether a value at this place of settings may be a misplaced key or password, which is never shown."""
    return "judge" in place or place[:1] == ("measures",)


def cache_directory(name: str) -> Path:
    """``$ERRATA_CACHE/<name>``, else the same in the user's cache directory. It may not exist yet.

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
        what = "no place for the cache: there is no home directory"
        raise InputError(what, remedy="Set ERRATA_CACHE to a directory", code="CACHE_UNKNOWN") from error


@contextmanager
def _partial(target: Path, kind: type[ErrataError] = OutputError) -> Iterator[tuple[Path, int]]:
    """A temporary directory beside ``target``, and its mode, which is what the umask allows. It is removed at the end.

    Temporary directories of killed processes for the same target are removed first: those of running ones are locked.

    Args:
        kind: of the error if it cannot be created.
    """
    handle = None
    with _write_errors(target, kind):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        partial = target.parent / f".{_short(target.name)}.{secrets.token_hex(4)}.partial"
        try:
            handle = locked_directory(partial, wait=True)
        except (ImportError, OSError):  # no locks here: leftovers of killed processes remain
            partial.mkdir(exist_ok=True)
        mode = stat.S_IMODE(partial.stat().st_mode)
    try:
        yield partial, mode
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _short(name: str) -> str:
    """A name short enough to be extended: file names have at most 255 bytes."""
    return name.encode(errors="surrogateescape")[:200].decode(errors="ignore")


def _remove_abandoned(target: Path) -> None:
    for partial in target.parent.glob(f".{escape(_short(target.name))}.*.partial"):
        with suppress(ImportError, OSError):  # in use, or not a directory
            handle = locked_directory(partial, wait=False)
            shutil.rmtree(partial, ignore_errors=True)
            os.close(handle)


@contextmanager
def _write_errors(target: Path, kind: type[ErrataError] = OutputError) -> Iterator[None]:
    """Report all failures to write as errors of ``target``, the name that the user knows.

    Args:
        kind: of the error, unless the disk is full, which is not an error of the input.
    """
    try:
        yield
    except (OSError, SafetensorError, OutputError) as error:
        reason, full = _write_reason(error)
        what = f"{target} cannot be written: {reason}"
        if full:
            raise OutputError(what, remedy="Free disk space, or use another disk", code="DISK_FULL") from error
        raise kind(
            what, remedy="Use a location for which you have write permission", code="OUTPUT_NOT_WRITABLE"
        ) from error


def _write_reason(error: OSError | SafetensorError | OutputError) -> tuple[str, bool]:
    """(the operating system's reason why something could not be written, whether the disk is full)."""
    if isinstance(error, OutputError) and isinstance(error.__cause__, OSError | SafetensorError):
        error = error.__cause__  # the error itself names a temporary file
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
        text = str(error.args[0][0][-1])  # of the first file that could not be copied
    elif isinstance(error, OSError) and error.strerror:
        return error.strerror, is_full(error)
    else:
        text = str(error)
    found = re.search(r"os error (\d+)|\[Errno (\d+)\]", text)  # safetensors has the number only in its message
    if found is None:
        return (text.splitlines() or [type(error).__name__])[0], False
    number = int(found[1] or found[2])
    return os.strerror(number), number in _FULL


def _check_name(target: Path) -> None:
    """Raises InputError for a name that no file can have, such as one that is too long."""
    parent = next((folder for folder in target.absolute().parents if is_there(folder)), Path("/"))
    for path in (*(parent / part for part in target.parts), target):
        try:
            path.lstat()
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) or error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                reason = getattr(error, "strerror", None) or str(error)
                what = f"{str(target)[:80]}{'…' if len(str(target)) > 80 else ''} cannot be written: {reason}"
                raise InputError(what, remedy="Use another name", code="OUTPUT_NAME_INVALID") from error


def _check_replaceable(directory: Path) -> None:
    """Raises InputError for an empty directory that the new one cannot replace."""
    kind = ""
    if directory.is_symlink():
        kind = "a link to a directory"
    elif directory.samefile(Path()):
        kind = "the current directory"
    elif directory.absolute().is_mount():
        kind = "a mount point"
    if kind:
        what = f"{directory} is {kind}, which the finished output cannot replace"
        remedy = f"Use a new name inside it, such as {directory / 'edited'}"
        raise InputError(what, remedy=remedy, code="OUTPUT_NOT_REPLACEABLE")


def _check_parent(target: Path) -> None:
    if target.name == "-":
        remedy = "Give a file's or directory's name"
        raise InputError("writing to stdout ('-') is not supported here", remedy=remedy, code="OUTPUT_STDOUT")
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        what = f"{target} cannot be written in {parent}"
        raise InputError(what, remedy="Use a directory that you may write to", code="OUTPUT_NOT_WRITABLE")


def _sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    posix = hasattr(os, "O_DIRECTORY")
    if not posix and path.is_dir():  # Windows opens no directories, and syncs only files that are open for writing
        return
    handle = os.open(path, os.O_RDONLY if posix else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "json_invalid":
        return f"it is not JSON ({message})" if str(first["input"]).strip() else "it is empty"
    shown = first["type"] not in ("missing", "extra_forbidden") and not is_private(first["loc"])
    value = f", got {first['input']!r:.60}" if shown else ""
    return f"{place}: {message}{value}" if place else message
