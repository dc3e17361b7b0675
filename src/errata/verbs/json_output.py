"""--json: the result of a verb for machines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.errors import InputError
from errata.output import check_file, is_file, write_text

FORMAT = "errata-output-1"
# Formats of results, which --json may replace; a stack's or a benchmark's record has a format too, and is none.
_RESULTS = re.compile(rb'\{\s*"format":\s*"errata-(output|results|tracing)-\d+"')


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
    """Whether a file was written by --json before (commands are repeated), or is empty."""
    with path.open("rb") as file:
        start = file.read(200).lstrip()
    return not start or _RESULTS.match(start) is not None


_JSON_HELP = "Also write the result for machines to FILE, over older results; like --out, its folder is made."


JsonOption = Annotated[
    Path | None,
    # Called while the command line is read: in every verb before its work.
    typer.Option("--json", metavar="FILE", callback=_writable, help=_JSON_HELP),
]


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """Write for machines, whole or not at all; nothing without a path. The first key is the format, by which a later
    --json knows that it may replace the file.
    """
    if path is not None:
        whole = {"format": value.get("format", FORMAT), **value}
        write_text(path, json.dumps(whole, ensure_ascii=False, indent=2) + "\n")
