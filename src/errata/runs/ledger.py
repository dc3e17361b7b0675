"""A ledger: lines of JSON that are only ever added, each on the disk before the next, each with a checksum.

A line's checksum covers the line before it, so that a line that was changed, taken out or put in is noticed, wherever
it stands. Of a crash only the last line can suffer; it is left out then, and told.
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
from errata.utils.files import reason_of
from errata.utils.locks import open_in_place
from errata.utils.provenance import now

START = "0" * 64  # what the first line follows


@dataclass(frozen=True, slots=True)
class Entry:
    """One line.

    Attributes:
        kind: what it is about.
        time: when it was written, in UTC, ISO 8601.
        about: what it says.
        checksum: SHA-256 of the line before and of this one.
    """

    kind: str
    time: str
    about: Mapping[str, Any]
    checksum: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a file holds.

    Attributes:
        entries: its lines, in order.
        sound: how many bytes of the file they are.
        torn: whether something stood behind them that is no whole line: a crash cut it off.
    """

    path: Path
    entries: tuple[Entry, ...]
    sound: int
    torn: bool

    def of(self, kind: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == kind]

    def add(self, kind: str, **about: Any) -> Ledger:
        """The ledger with one more line, which is on the disk then; a torn end gives way to it.

        Raises:
            InputError: if the file has become a link.
            OSError: if it cannot be written; the file then holds what it held.
            ValueError: if a number in it is not finite.
        """
        last = self.entries[-1].checksum if self.entries else START
        body = {"kind": kind, "time": now(), **about}
        entry = Entry(kind, body["time"], about, _checksum(last, body))
        line = json.dumps({**body, "checksum": entry.checksum}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        # Without a buffer, which would write what is left in it once more when the file is closed after a failure.
        with open_in_place(self.path, "r+b", buffering=0) as file:
            file.truncate(self.sound)
            file.seek(self.sound)
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(self.sound)
                raise
        return Ledger(self.path, (*self.entries, entry), self.sound + len(line), torn=False)


def new_ledger(path: Path) -> Ledger:
    """An empty one."""
    path.touch(exist_ok=False)
    return Ledger(path, (), 0, torn=False)


def read_ledger(path: Path) -> Ledger:
    """Read a ledger; what a crash left of its last line is left out.

    Raises:
        InputError: if the file cannot be read, or a line but the last one is not what was written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the ledger {path} cannot be read: {error.strerror}",
            remedy="Put the file back as it was",
            code="LEDGER_UNREADABLE",
        ) from error
    entries: list[Entry] = []
    sound = 0
    lines = data.split(b"\n")  # the last of these stands behind the last line feed: nothing, in a whole file
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = _read(line, entries[-1].checksum if entries else START)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines) - 1 and not lines[-1]:
                break  # blocks of a file may reach the disk in any order: the line feed was there before the line
            raise InputError(
                f"{path}:{number} is not the line that was written there ({reason_of(error)})",
                remedy="Put the file back as it was; the lines before it are sound",
                code="LEDGER_DAMAGED",
            ) from error
        entries.append(entry)
        sound += len(line) + 1
    return Ledger(path, tuple(entries), sound, torn=sound < len(data))


def _read(line: bytes, last: str) -> Entry:
    body = json.loads(line.decode())
    if not isinstance(body, dict):
        raise ValueError("it is no object")
    checksum = body.pop("checksum")
    if checksum != _checksum(last, body):
        raise ValueError("its checksum is another one")
    kind, time = str(body.pop("kind")), str(body.pop("time"))
    return Entry(kind, time, body, checksum)


def _checksum(last: str, body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{last}\n{canonical}".encode()).hexdigest()
