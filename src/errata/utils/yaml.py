"""YAML 1.2 with the line of every key, for recipes and grids.

PyYAML alone silently uses the last of duplicate keys, and reads plain values by YAML 1.1: ``1:30`` as 90, ``010`` as 8,
``yes`` and ``off`` as true and false, but ``1e-3`` as text.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import yaml

from errata.errors import Fault, FaultsError, InputError

MOST: Final = 20_000  # values, each counted once per reference
LONGEST: Final = 2_000_000  # characters of a text
_BITS: Final = 12_000  # of a number; Python cannot print numbers of more than about 14,000
_FORM: Final = "See examples/recipe.yaml for the format"
KeyPath: TypeAlias = tuple[Any, ...]  # keys and list indices that lead to a value


@dataclass(frozen=True, slots=True)
class Marked:
    """A parsed YAML text."""

    data: Any
    # the line of each key and list entry, from 1. What an alias (``*name``) repeats has only its first line.
    lines: Mapping[KeyPath, int]


def parse_yaml(text: str, source: str) -> Marked:
    """Parse a text; ``source`` is its name in messages.

    Raises:
        InputError: if it is not valid YAML.
        FaultsError: all duplicate keys, each with both lines.
    """
    if len(text) > LONGEST:
        what = f"{source} has {len(text):,} characters"
        raise InputError(what, remedy=f"Recipes and grids have at most {LONGEST:,}", code="YAML_TOO_LARGE")
    try:
        loader = _Loader(text)  # checks for invalid characters
    except yaml.YAMLError as error:
        raise InputError(
            f"{source} is not YAML: {error}", remedy="Save it as UTF-8 text", code="YAML_INVALID"
        ) from error
    try:
        root = loader.get_single_node()
        if root is not None and _count(root) > MOST:
            # Checked before aliases are followed, since a few lines can expand to more than fits into memory.
            what = f"{source} has more than {MOST} values, or refers to itself"
            raise InputError(what, remedy=_FORM, code="YAML_TOO_LARGE")
        # Before the value is constructed, which adds the keys merged by `<<` to a mapping's own.
        found = [] if root is None else list(_keys(loader, root, (), set()))
        data = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date, such as 2025-13-01
        raise InputError(f"{source} is not YAML: {error}", remedy="Correct that line", code="YAML_INVALID") from error
    except RecursionError as error:
        raise InputError(f"{source} is nested too deeply", remedy=_FORM, code="YAML_TOO_LARGE") from error
    except (KeyError, IndexError, AttributeError, TypeError) as error:  # '!!int ""' and the like
        what = f"{source} is not YAML: a value does not match its tag ({type(error).__name__}: {error})"
        raise InputError(what, remedy="Leave tags out", code="YAML_INVALID") from error
    finally:
        loader.dispose()
    if reason := _invalid_value(data):
        raise InputError(f"{source} has {reason}", remedy=_FORM, code="YAML_INVALID")
    lines: dict[KeyPath, int] = {}
    again: dict[KeyPath, int] = {}
    for path, line in found:
        if any(path[:end] in again for end in range(1, len(path))):
            continue  # the keys of a duplicate section are not duplicates themselves
        (again if path in lines else lines)[path] = line
    faults = [
        Fault(
            f"{source}: {'.'.join(str(part) for part in path)}",
            f"duplicate key, first in line {lines[path]}",
            "Remove one of the two",
            line,
            code="YAML_DUPLICATE_KEY",
        )
        for path, line in again.items()
    ]
    if faults:
        raise FaultsError(source, faults)
    return Marked(data, lines)


def _invalid_value(data: Any) -> str | None:
    """A value that no recipe can have, in words; None if there is none."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int) and value.bit_length() > _BITS:
            return "a number with thousands of digits"
        if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
            return "a lone surrogate, which UTF-8 cannot encode"
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
    return None


def _count(root: yaml.Node) -> int:
    """The number of values below a node, each counted once per reference; more than ``MOST`` if one refers to itself.

    Every node is visited once, so that the time is linear in the length of the text.
    """
    sizes: dict[int, int | None] = {}  # None while the values below are being counted
    waiting = [root]
    while waiting:
        node = waiting[-1]
        below = _below(node)
        if id(node) not in sizes:
            sizes[id(node)] = None
            for entry in below:
                if id(entry) not in sizes:
                    waiting.append(entry)
                elif sizes[id(entry)] is None:
                    return MOST + 1
            continue
        waiting.pop()
        if sizes[id(node)] is None:
            counted = [sizes[id(entry)] for entry in below]
            if None in counted:
                return MOST + 1
            sizes[id(node)] = 1 + sum(size for size in counted if size is not None)
    return sizes[id(root)] or 0


def _below(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


class _Loader(yaml.SafeLoader):
    """Plain values by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), and ``<<`` of 1.1."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  as PyYAML declares it

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node)).lower()
        return float(text.replace(".inf", "inf") if text.endswith(".inf") else "nan" if text == ".nan" else text)


class Dumper(yaml.SafeDumper):
    """Quotes texts that ``parse_yaml``, or a YAML 1.1 reader, would not read as text: ``1e5``, ``0o7``."""


for _tag, _plain, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    for _class in (_Loader, Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(f"^(?:{_plain})$"),
            ["" if sign == "\0" else sign for sign in _first],
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of a path, or else of the innermost section around it."""
    ends = range(len(path), 0, -1)
    return next((lines[path[:end]] for end in ends if path[:end] in lines), None)


def _keys(loader: _Loader, node: yaml.Node, path: KeyPath, seen: set[int]) -> Iterator[tuple[KeyPath, int]]:
    """(path, line) of all keys and entries below a node, in the order of the text."""
    if id(node) in seen:  # an alias: it may even lie within itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            merges = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merges else loader.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # reported when the value is constructed
            below = (*path, key)
            yield below, key_node.start_mark.line + 1
            yield from _keys(loader, value, below, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _keys(loader, value, (*path, index), seen)
