"""--json: the result of a verb for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.errors import InputError
from errata.output import check_file, is_file, write_text


def _writable(path: Path | None) -> Path | None:
    if path is not None:
        check_file(path)
        if is_file(path) and not _holds_results(path):
            raise InputError(
                f"{path} is there, and is not a file of results: it would be lost",
                remedy="Give another name, or remove it first",
            )
    return path


def _holds_results(path: Path) -> bool:
    """Whether a file may have been written by --json before: commands are repeated. It is one object, or empty."""
    with path.open("rb") as file:
        if not (start := file.read(64).lstrip()):
            return True
    try:
        return start.startswith(b"{") and isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


_JSON_HELP = "Also write the result for machines to FILE, over older results; like --out, its folder is made."


JsonOption = Annotated[
    Path | None,
    # Called while the command line is read: in every verb before its work.
    typer.Option("--json", metavar="FILE", callback=_writable, help=_JSON_HELP),
]


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """Write for machines, whole or not at all; nothing without a path."""
    if path is not None:
        write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
