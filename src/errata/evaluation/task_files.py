"""Every file that local tasks of lm-evaluation-harness read: their answers are of these, and of no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from errata.errors import Fault, FaultsError
from errata.evaluation.local_tasks import LOCAL_BUILDERS, FunctionName, TaskLoader, members, texts_in, yaml_files


def task_files(entries: Sequence[str]) -> list[Path]:
    """The task files, those that they include, their data, and the Python files beside those that name a function.

    Args:
        entries: files and directories of task YAML, as ``local_tasks`` takes them.

    Raises:
        FaultsError: for files that cannot be read, and data that are not there.
    """
    faults: list[Fault] = []
    found: dict[Path, None] = {}
    for entry in entries:
        for file in yaml_files(Path(entry)):
            _add(file.resolve(), found, faults)
    if faults:
        raise FaultsError("the local tasks", faults)
    return sorted(found)


def _add(file: Path, found: dict[Path, None], faults: list[Fault]) -> None:
    if file in found:
        return
    found[file] = None
    try:
        config = _config(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        faults.append(Fault(str(file), f"it cannot be read as YAML: {error}", "Mend the file"))
        return
    if any(isinstance(text, FunctionName) for text in texts_in(config)):  # which may import what is beside it
        found |= dict.fromkeys(sorted(file.parent.glob("*.py")))
    for part in _parts(config):
        for name in texts_in(part.get("include")):
            _add((file.parent / name).resolve(), found, faults)
        for text in _data(part):
            files = _matching(Path(text))
            if not files:
                faults.append(Fault(str(file), f"its data file {text!r} is not there", "Put it there, or name another"))
            for path in files:
                below = sorted(path.rglob("*")) if path.is_dir() else [path]
                found |= dict.fromkeys(entry.resolve() for entry in below if entry.is_file())
    if "group" in config:
        wanted = members(config.get("task"))
        for other in yaml_files(file.parent):
            if _name(other) in wanted:
                _add(other.resolve(), found, faults)


def _config(file: Path) -> Mapping[str, Any]:
    config = yaml.load(file.read_text(encoding="utf-8"), Loader=TaskLoader)
    return config if isinstance(config, dict) else {}


def _name(file: Path) -> object:
    """What a file beside a group defines; one that cannot be read defines nothing that the group could name."""
    try:
        config = _config(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return config.get("group") or config.get("task")


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of a file, and those of the tasks that stand in its group."""
    yield config
    inner = config.get("task")
    for entry in inner if isinstance(inner, list) else ():
        if isinstance(entry, Mapping):
            yield from _parts(entry)


def _data(config: Mapping[str, Any]) -> list[str]:
    """Absolute paths, which may hold wildcards; relative ones count from where errata is started."""
    kwargs = config.get("dataset_kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}
    folder = kwargs.get("data_dir")
    base = Path(folder).absolute() if isinstance(folder, str) else Path.cwd()
    found = [str(base / text) for text in texts_in(kwargs.get("data_files")) if "://" not in text]
    if isinstance(folder, str) and not found:
        found.append(str(base))
    source = config.get("dataset_path")
    if isinstance(source, str) and source not in LOCAL_BUILDERS and Path(source).exists():
        found.append(str(Path(source).absolute()))
    return found


def _matching(path: Path) -> list[Path]:
    """What an absolute path means: what is there, or what its wildcards match."""
    return [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
