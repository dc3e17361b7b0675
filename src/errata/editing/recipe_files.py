"""Recipe files: reading them, merging their sections for a method, and finding the shipped ones.

The keys of a recipe are defined in ``recipe``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from errata.editing.methods import BOUNDARY_SUFFIX, method_named
from errata.errors import Fault, InputError
from errata.utils.files import file_text, reason_of
from errata.utils.text import did_you_mean
from errata.utils.yaml import KeyPath, line_of, parse_yaml

FILE_KEYS = ("methods", "method", "also", "shape", "editors")  # of a file as a whole; everything else is a recipe's


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A file as it was read: a YAML mapping whose ``methods``, if there are any, are a mapping too.

    Attributes:
        source: its name in messages.
        data: its content.
        lines: of its keys.
    """

    source: str
    data: Mapping[Any, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    @property
    def entries(self) -> Mapping[Any, Any]:
        """The section ``methods``."""
        return self.data.get("methods") or {}

    @property
    def editors(self) -> Mapping[Any, Any]:
        """The section ``editors``: settings of editors that are not locate-then-edit, by name."""
        found = self.data.get("editors")
        return found if isinstance(found, Mapping) else {}

    @property
    def names(self) -> tuple[str, ...]:
        """The methods that it names: its own if it was written for one, else its entries."""
        return (str(self.data["method"]),) if "method" in self.data else tuple(str(name) for name in self.entries)

    @property
    def covered(self) -> tuple[str, ...]:
        """The methods that it holds numbers for: a row's entry counts for its ``+blue`` too."""
        if "method" in self.data:
            return self.names
        forms = ((name, f"{name.removesuffix(BOUNDARY_SUFFIX)}{BOUNDARY_SUFFIX}") for name in self.names)
        return tuple(dict.fromkeys(form for each in forms for form in each))

    @property
    def also(self) -> tuple[str, ...]:
        """Further names of models that its numbers are taken for, in lower case."""
        return tuple(str(name).lower() for name in self.data.get("also") or ())

    @property
    def shape(self) -> Mapping[str, Any]:
        """The entries of a model's configuration that identify it under any name; empty: by name only."""
        return self.data.get("shape") or {}

    def sections(self, method: str) -> list[tuple[KeyPath, Mapping[Any, Any]]]:
        """The sections that apply to a method, in increasing priority, each with its path in the file."""
        common = {key: value for key, value in self.data.items() if key not in FILE_KEYS}
        names = dict.fromkeys((method.removesuffix(BOUNDARY_SUFFIX), method))
        entries = [(("methods", name), self.entries.get(name)) for name in names]
        return [((), common), *((place, entry) for place, entry in entries if isinstance(entry, Mapping))]

    def section_with(self, method: str, path: KeyPath) -> KeyPath | None:
        """The path in the file of the section that decides a method's value at ``path``; None if no section has one."""
        for place, section in reversed(self.sections(method)):
            value: Any = section
            for part in path:
                if not isinstance(value, Mapping):
                    return place  # a list or a plain value, which is used from here as a whole
                if part not in value:
                    break
                value = value[part]
            else:
                return place
        return None

    def line(self, method: str, path: KeyPath) -> int | None:
        """The line of a method's value at ``path``, or else of the innermost section that would hold it."""
        places = [place for place, _ in reversed(self.sections(method))]
        for end in range(len(path), 0, -1):
            for place in places:
                if (line := self.lines.get((*place, *path[:end]))) is not None:
                    return line
        return line_of(self.lines, places[0]) if path else None

    def merged(self, method: str) -> dict[Any, Any]:
        """The keys of the recipe for a method, unchecked: the row's choices and the file's layers over them.

        Raises:
            InputError: if there is no such method, in the file or here, or the file was written for another one.
        """
        row = method_named(method)
        if self.data.get("method", method) != method:
            method_named(str(self.data["method"]))
            # It holds one solver, one schedule and one history: under another name they would be taken for that one's.
            raise InputError(
                f"{self.source} was written for {self.data['method']!r}, not for {method!r}",
                remedy=f"Use --method {self.data['method']}, or a recipe with an entry per method",
                code="RECIPE_OF_OTHER_METHOD",
            )
        merged: dict[Any, Any] = row.choices()
        for _, section in self.sections(method):
            merged = merge(merged, section)
        if method.endswith(BOUNDARY_SUFFIX):
            merged["schedule"] = row.schedule
        merged["method"] = method
        return merged

    def faults(self) -> list[Fault]:
        """The faults of the file's own keys, the same for every method."""
        found: list[Fault] = []

        def fault(path: KeyPath, what: str, remedy: str, code: str) -> None:
            found.append(Fault(place_of(self.source, path), what, remedy, line_of(self.lines, path), code=code))

        named: list[tuple[KeyPath, Any]] = [(("methods", name), name) for name in self.entries]
        if "method" in self.data:
            named.append((("method",), self.data["method"]))
        for path, name in named:
            try:
                method_named(str(name))
            except InputError as error:
                fault(path, error.what, error.remedy, error.code)
        for name, entry in self.entries.items():
            if entry is not None and not isinstance(entry, Mapping):
                fault(("methods", name), "is not a mapping", "Write 'memit: {solver: {...}}'", "RECIPE_NOT_MAPPING")
        editors = self.data.get("editors")
        if editors is not None and not isinstance(editors, Mapping):
            fault(("editors",), "is not a mapping", "Write 'editors: {retrieval: {...}}'", "RECIPE_NOT_MAPPING")
        for name, entry in self.editors.items():
            if entry is not None and not isinstance(entry, Mapping):
                fault(("editors", name), "is not a mapping", "Write 'retrieval: {...}'", "RECIPE_NOT_MAPPING")
        also = self.data.get("also")
        if also is not None and not (isinstance(also, list) and all(isinstance(name, str) for name in also)):
            fault(("also",), "is not a list of model names", f"Got {also!r:.200}", "RECIPE_VALUE_INVALID")
        shape = self.data.get("shape")
        if shape is not None and not (isinstance(shape, dict) and shape):
            fault(("shape",), "is not a mapping", "Write '{num_hidden_layers: 30, …}'", "RECIPE_NOT_MAPPING")
        return found


def place_of(source: str, path: KeyPath) -> str:
    """A key of a file in words; the file itself for an empty path."""
    return f"{source}: {'.'.join(map(str, path))}" if path else source


def merge(base: Mapping[Any, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """``base`` with the keys of ``over``, sections key by key."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # What belongs to one kind of solver or target says nothing about another.
        other_kind = both and value.get("kind", merged[key].get("kind")) != merged[key].get("kind")
        merged[key] = merge(merged[key], value) if both and not other_kind else value
    return merged


def parse_file(text: str, source: str) -> RecipeFile:
    """A file's text; ``source`` is its name in messages.

    Raises:
        InputError: if it is no YAML, no mapping, or its ``methods`` are none.
        FaultsError: if a mapping has duplicate keys.
    """
    marked = parse_yaml(text, source)
    data = marked.data
    if not isinstance(data, dict):
        raise InputError(
            f"{source} is not a mapping",
            remedy="A recipe is a YAML mapping; see examples/recipe.yaml",
            code="RECIPE_NOT_MAPPING",
        )
    if not isinstance(data.get("methods") or {}, dict):
        where = f"methods in {source} (line {line_of(marked.lines, ('methods',))})"
        raise InputError(
            f"{where} is not a mapping", remedy="Write 'methods: {memit: {...}}'", code="RECIPE_NOT_MAPPING"
        )
    return RecipeFile(source, data, marked.lines)


def read_file(path: str | Path) -> RecipeFile:
    """A file on disk.

    Raises:
        InputError, FaultsError: if it cannot be read, and as ``parse_file``.
    """
    try:
        text = file_text(Path(path))
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        raise InputError(
            f"the recipe {path} cannot be read: {reason}", remedy="Give a UTF-8 YAML file", code="RECIPE_UNREADABLE"
        ) from error
    return parse_file(text, str(path))


def shipped_names() -> tuple[str, ...]:
    """The names of the recipe files that come with errata, each for one model."""
    folder = resources.files("errata") / "recipes"
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def shipped_file(model: str) -> RecipeFile:
    """The file that comes with errata for ``model``: by the last part of its name, or by a name in the file's ``also``.

    Raises:
        InputError: if there is none.
    """
    wanted, names = model.rstrip("/").rsplit("/", 1)[-1].lower(), shipped_names()
    if wanted in names:
        return _shipped(wanted)
    files = [_shipped(name) for name in names]
    for file in files:
        if wanted in file.also:
            return file
    hint = did_you_mean(wanted, [*names, *(other for file in files for other in file.also)])
    raise InputError(
        f"errata ships no recipe for {model!r} (available: {', '.join(names)})",
        remedy=f"{hint}`errata recipe auto --model {model} --minutes 0 --out recipe.yaml` writes one in seconds, for "
        "--recipe recipe.yaml; `errata edit` without --recipe chooses layers and settings automatically",
        code="RECIPE_MISSING",
    )


def shipped_name_for(config: Mapping[str, Any]) -> str | None:
    """The shipped file whose ``shape`` agrees with a model's configuration: such a model has one wherever it lies.

    Args:
        config: of the text model, as its ``config.json`` has it.
    """
    for name in shipped_names():
        shape = _shipped(name).shape
        if shape and all(config.get(key) == value for key, value in shape.items()):
            return name
    return None


def shipped_for(model: str, method: str) -> RecipeFile:
    """As ``shipped_file``, and it has an entry for the method: settings that nobody has published are not guessed.

    Raises:
        InputError: if there is no such method, no file, or no entry; it lists the available ones.
    """
    method_named(method)
    file = shipped_file(model)
    if method in file.names:
        return file
    others = [name for name in shipped_names() if method in _shipped(name).names]
    elsewhere = f"; for {method!r} there are numbers of {', '.join(others)} (`errata recipe show`)" if others else ""
    raise InputError(
        f"errata has no published settings of {method!r} for {model!r}; {file.source} has {', '.join(file.names)}",
        remedy="Use one of these methods, let `errata recipe auto` find settings, or give your own with --recipe "
        f"FILE.yaml{elsewhere}",
        code="RECIPE_MISSING",
    )


@cache
def _shipped(name: str) -> RecipeFile:
    """A recipe file of the package, parsed once in a process: parsing all of them takes seconds."""
    text = (resources.files("errata") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_file(text, f"recipes/{name}.yaml")
