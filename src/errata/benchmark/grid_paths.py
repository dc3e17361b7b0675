"""Paths in a grid's file count from that file, wherever the user stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from errata.datasets.registry import DATASETS, is_own_file

_Place = Callable[[str], str]


def entry_of(value: Any) -> Any:
    """``NAME`` or ``NAME=FILE`` as what it stands for."""
    if not isinstance(value, str):
        return value
    name, separator, path = value.partition("=")
    return {"name": name, "path": path} if separator else {"name": name}


def placed(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a grid's file says, unchecked, with absolute paths: what is no text where a path should stand is left."""

    def place(text: str) -> str:
        return str((folder / Path(text).expanduser()).resolve())

    def place_if_there(text: str) -> str:
        """For what may also be a name: of the hub, of the harness, of the lab."""
        return place(text) if (folder / Path(text).expanduser()).exists() else text

    def prose(text: str) -> str:
        name, separator, path = text.partition("=")
        if separator:
            return f"{name}={place(path)}"
        return name if name in DATASETS else place(name)

    def own_file(text: str) -> str:
        return place(text) if is_own_file(text) else text

    found = dict(data)
    _change(found, "prose", prose)
    _each_entry(found, "models", {"recipe": place, "corpus": place_if_there, "name": place_if_there})
    _each_entry(found, "data", {"path": place, "untouched": place, "name": own_file})
    measures = found.get("measures")
    options = measures.get("options") if isinstance(measures, dict) else None
    if isinstance(measures, dict) and isinstance(options, dict):
        texts = dict.fromkeys(("references", "corpus", "vocabulary", "idf"), place)
        own: dict[str, Mapping[str, _Place]] = {"texts": texts, "ability": {"probes": place, "tasks": place_if_there}}
        changed = {part: _with(given, own.get(part, {})) for part, given in options.items()}
        found["measures"] = {**measures, "options": changed}
    return found


def _each_entry(data: dict[str, Any], key: str, changes: Mapping[str, _Place]) -> None:
    if key in data:
        entries = data[key] if isinstance(data[key], list) else [data[key]]
        data[key] = [_with(entry_of(entry), changes) for entry in entries]


def _with(entry: Any, changes: Mapping[str, _Place]) -> Any:
    if not isinstance(entry, dict):
        return entry
    entry = dict(entry)
    for key, change in changes.items():
        _change(entry, key, change)
    return entry


def _change(data: dict[str, Any], key: str, change: _Place) -> None:
    """A text, or the texts of a list."""
    value = data.get(key)
    if isinstance(value, str):
        data[key] = change(value)
    elif isinstance(value, list):
        data[key] = [change(entry) if isinstance(entry, str) else entry for entry in value]
