"""Local task files of lm-evaluation-harness, read and not run: which tasks they define, and where their data lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from errata.errors import Fault, FaultsError

# Builders of the package `datasets` that read files.
LOCAL_BUILDERS = frozenset({"json", "csv", "parquet", "arrow", "text", "xml"})
_SKIPPED_FOLDERS = frozenset({"__pycache__", ".ipynb_checkpoints"})


@dataclass(frozen=True, slots=True)
class LocalTasks:
    """What was found.

    Attributes:
        folders: where the harness has to look.
        names: groups that stand in no other group, and tasks that stand in none, in the order of the files.
    """

    folders: tuple[Path, ...]
    names: tuple[str, ...]


class FunctionName(str):
    """What a file names by ``!function``: ``MODULE.NAME`` of a Python file beside it."""


class TaskLoader(yaml.SafeLoader):
    """Knows ``!function``, and leaves it a text: ``FunctionName``."""


def _function_name(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> object:
    return FunctionName(loader.construct_scalar(node))


TaskLoader.add_constructor("!function", _function_name)


def local_tasks(entries: Sequence[str]) -> LocalTasks:
    """Read files and directories of task YAML.

    Raises:
        FaultsError: if one does not exist, cannot be read, defines no task, or its data lie on the hub or the web;
            tells all of it.
    """
    faults: list[Fault] = []
    folders: dict[Path, None] = {}
    names: dict[str, None] = {}
    inner: set[str] = set()
    for entry in entries:
        path = Path(entry)
        files = yaml_files(path)
        if not path.exists():
            faults.append(Fault(entry, "there is no such file or directory", "Give a YAML file or a directory"))
            continue
        folders.setdefault((path if path.is_dir() else path.parent).resolve())
        found = 0
        for file in files:
            config = _read(file, faults)
            if config is None:
                continue
            name = config.get("group") or config.get("task")
            if not isinstance(name, str):  # what other files include
                continue
            found += 1
            names.setdefault(name)
            if "group" in config:
                inner |= members(config.get("task"))
            else:
                faults += _network_faults(config, file)
        if not found and not faults:
            faults.append(Fault(entry, "no YAML file there defines a task", "Write 'task: NAME' into one (*.yaml)"))
    if faults:
        raise FaultsError("the local tasks", faults)
    return LocalTasks(tuple(folders), tuple(name for name in names if name not in inner))


def yaml_files(path: Path) -> list[Path]:
    """A file, or those of a directory that may define tasks; none if nothing is there."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*.yaml") if not _SKIPPED_FOLDERS & {*file.parts})
    return [path] if path.is_file() else []


def _read(file: Path, faults: list[Fault], included: tuple[Path, ...] = ()) -> dict[str, Any] | None:
    """A file's settings, those of the files it includes below them; None if there is a fault, which is noted."""
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=TaskLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        faults.append(Fault(str(file), f"it cannot be read as YAML: {error}", "Mend the file"))
        return None
    if not isinstance(config, dict):
        faults.append(Fault(str(file), "it holds no mapping", "Write 'task: NAME' and the task's settings"))
        return None
    merged: dict[str, Any] = {}
    wanted = config.pop("include", ())
    for name in wanted if isinstance(wanted, list) else [wanted] if wanted else []:
        place = (file.parent / str(name)).resolve()
        if place in (*included, file.resolve()):
            faults.append(Fault(str(file), f"it includes {name!r}, which includes it", "Break the circle"))
            return None
        below = _read(place, faults, (*included, file.resolve()))
        if below is None:
            return None
        merged |= below
    return merged | config


def members(entries: object) -> set[str]:
    """The names in a group's list of tasks."""
    found: set[str] = set()
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, str):
            found.add(entry)
        elif isinstance(entry, Mapping):
            found |= {str(entry[key]) for key in ("task", "group") if isinstance(entry.get(key), str)}
            found |= members(entry["task"]) if isinstance(entry.get("task"), list) else set()
    return found


def _network_faults(config: Mapping[str, Any], file: Path) -> list[Fault]:
    """What of a task's data is not on this machine. Data that a function or class makes are its own business."""
    if "custom_dataset" in config or "class" in config:
        return []
    source = config.get("dataset_path")
    remedy = "For local tasks no network is used: give 'dataset_path: json' and 'dataset_kwargs: {data_files: …}'"
    if not isinstance(source, str):
        return [Fault(str(file), "'dataset_path' is missing", remedy)]
    if source not in LOCAL_BUILDERS and not Path(source).exists():
        return [Fault(str(file), f"its data {source!r} are neither a file nor a directory here", remedy)]
    kwargs = config.get("dataset_kwargs")
    far = [text for text in texts_in(kwargs) if "://" in text]
    return [Fault(str(file), f"its data file {text!r} lies elsewhere", remedy) for text in far]


def texts_in(value: object) -> list[str]:
    """All texts in a setting, however deep."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for part in parts for text in texts_in(part)]
