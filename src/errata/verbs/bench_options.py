"""What the options of ``errata bench`` stand for in a grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.datasets.registry import DATASETS, is_own_file
from errata.errors import InputError


def entries_of(text: str | None, begun: Any, shared: Mapping[str, Any]) -> list[Any] | None:
    """Entries of names by commas, else those of the grid's file, each with what the command line says of all of them;
    None if it says nothing."""
    shared = {name: value for name, value in shared.items() if value is not None}
    if text is not None:
        entries: list[Any] = [named_entry(name) for name in names_in(text)]
    elif shared:
        entries = list(begun) if isinstance(begun, list) else [begun]
    else:
        return None
    return [{**entry, **shared} if isinstance(entry, dict) else entry for entry in entries]


def named_entry(text: str) -> dict[str, Any]:
    """``NAME``, ``NAME=FILE`` or the name of one's own file; files hold wherever the benchmark goes on."""
    name, separator, path = text.partition("=")
    if separator:
        return {"name": name, "path": str(Path(path).absolute())}
    return {"name": str(Path(name).absolute()) if is_own_file(name) else name}


def file_place(text: str) -> str:
    name, separator, path = text.partition("=")
    if separator:
        return f"{name}={Path(path).absolute()}"
    return name if name in DATASETS else str(Path(name).absolute())


def task_place(name: str) -> str:
    """A task's name, or the path of its file."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def corpus_place(name: str | None) -> str | None:
    return name if name in (None, "lab") else str(Path(str(name)).absolute())


def measures_of(parts: list[str], **options: dict[str, Any]) -> dict[str, Any] | None:
    """The parts that are named, and those that an option is for; None without any."""
    given = {
        part: {name: value for name, value in values.items() if value is not None} for part, values in options.items()
    }
    given = {part: values for part, values in given.items() if values}
    names = list(dict.fromkeys([*parts, *given]))
    return {"parts": names, "options": given} if names else None


def judge_of(url: str | None, model: str | None, key: str | None) -> dict[str, Any] | None:
    if url is None:
        if lonely := [name for name, value in (("--judge-model", model), ("--judge-key", key)) if value]:
            raise InputError(f"{lonely[0]} is for a judge, and no --judge is given", remedy="Name its endpoint")
        return None
    if model is None:
        raise InputError("--judge needs --judge-model", remedy="Name the model that shall judge")
    return {"base_url": url, "model": model, "key_variable": key}


def names_in(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def seeds_named(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"--seeds {text!r} is no number, and no list of them", remedy="Write 3, or 7,8,9") from error
    if found == [0] and "," not in text:
        raise InputError("--seeds 0 is no seed at all", remedy="A number alone is how many; seed 0 alone is '0,'")
    return found[0] if len(found) == 1 and "," not in text else found


def place(path: Path | None) -> str | None:
    """A path that holds wherever the benchmark goes on."""
    return None if path is None else str(path.absolute())
