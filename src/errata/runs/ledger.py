"""A ledger: JSON lines that are only appended, each synced to the disk before the next, each with a checksum.

A line's checksum covers the line before it, so a changed, removed or inserted line is always detected. A crash can
damage only the last line, which is then ignored and reported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.errors import InputError
from errata.utils.files import reading, reason_of
from errata.utils.locks import open_in_place
from errata.utils.provenance import now

START = "0" * 64  # the checksum before the first line


@dataclass(frozen=True, slots=True)
class Entry:
    """One line."""

    kind: str  # of event, such as ``batch``
    time: str  # when it was written, in UTC, ISO 8601
    fields: Mapping[str, Any]
    checksum: str  # SHA-256 of the checksum before and of this line


@dataclass(frozen=True, slots=True)
class Ledger:
    """The content of a file."""

    path: Path
    entries: tuple[Entry, ...]
    valid_bytes: int  # the size of these lines
    truncated: bool  # whether an incomplete line follows them, which a crash has left

    def of(self, kind: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == kind]

    def add(self, kind: str, **fields: Any) -> Ledger:
        """The ledger with one more line, which is synced to the disk; it replaces an incomplete line.

        Raises:
            InputError: if the file has become a link.
            OSError: if it cannot be written; the file is then unchanged.
            ValueError: if a number is not finite.
        """
        last = self.entries[-1].checksum if self.entries else START
        body = {"kind": kind, "time": now(), **fields}
        entry = Entry(kind, body["time"], fields, _checksum(last, body))
        line = json.dumps({**body, "checksum": entry.checksum}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        # Unbuffered, since closing the file after a failure would write the rest of a buffer again.
        with open_in_place(self.path, "r+b", buffering=0) as file:
            file.truncate(self.valid_bytes)
            file.seek(self.valid_bytes)
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(self.valid_bytes)
                raise
        return Ledger(self.path, (*self.entries, entry), self.valid_bytes + len(line), truncated=False)


def new_ledger(path: Path) -> Ledger:
    """Create an empty ledger."""
    path.touch(exist_ok=False)
    return Ledger(path, (), 0, truncated=False)


def read_ledger(path: Path) -> Ledger:
    """Read a ledger without an incomplete last line.

    Raises:
        InputError: if the file cannot be read, or another line is damaged.
    """
    with reading(f"the ledger {path}", remedy="Restore the file", code="LEDGER_UNREADABLE"):
        data = path.read_bytes()
    entries: list[Entry] = []
    valid = 0
    lines = data.split(b"\n")  # of a complete file the last one is empty
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = _read(line, entries[-1].checksum if entries else START)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines) - 1 and not lines[-1]:
                break  # blocks of a file may reach the disk in any order: the line feed did before the line
            what = f"{path}:{number} was changed or damaged ({reason_of(error)})"
            remedy = "Restore the file; the lines before it are intact"
            raise InputError(what, remedy=remedy, code="LEDGER_DAMAGED") from error
        entries.append(entry)
        valid += len(line) + 1
    return Ledger(path, tuple(entries), valid, truncated=valid < len(data))


def _read(line: bytes, last: str) -> Entry:
    body = json.loads(line.decode())
    if not isinstance(body, dict):
        raise ValueError("it is not an object")
    checksum = body.pop("checksum")
    if checksum != _checksum(last, body):
        raise ValueError("its checksum does not match")
    kind, time = str(body.pop("kind")), str(body.pop("time"))
    return Entry(kind, time, body, checksum)


def _checksum(last: str, body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{last}\n{canonical}".encode()).hexdigest()
