"""A recipe's YAML with the line of every key; PyYAML alone would let the last of two equal keys win without a word."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from errata.errors import Fault, FaultsError, InputError

KeyPath: TypeAlias = tuple[Any, ...]  # the keys, and in lists the numbers, that lead to a value


@dataclass(frozen=True, slots=True)
class Marked:
    """What stands in a YAML text.

    Attributes:
        data: its value.
        lines: of each key and list entry, counted from 1. What an alias (``*name``) repeats is only where it is first.
    """

    data: Any
    lines: Mapping[KeyPath, int]


def parse_yaml(text: str, source: str) -> Marked:
    """The value of a text, with its lines; ``source`` is what messages call it.

    Raises:
        InputError: if it is no YAML.
        FaultsError: keys that stand twice in one mapping, each with both lines.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        # Before the value is made, which puts what `<<` merges among a mapping's own keys.
        found = [] if root is None else list(_keys(loader, root, (), set()))
        data = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not, such as 2025-13-01
        raise InputError(f"{source} is not YAML: {error}", remedy="Mend the line that is named") from error
    except RecursionError as error:
        raise InputError(f"{source} is nested too deeply", remedy="See examples/recipe.yaml for the form") from error
    finally:
        loader.dispose()
    lines: dict[KeyPath, int] = {}
    again: dict[KeyPath, int] = {}
    for path, line in found:
        if any(path[:end] in again for end in range(1, len(path))):
            continue  # of a section that stands there twice, the second one's keys say nothing more
        (again if path in lines else lines)[path] = line
    faults = [
        Fault(
            f"{source}: {'.'.join(str(part) for part in path)}",
            f"this key stands there twice, first in line {lines[path]}",
            "Leave one of them",
            line,
        )
        for path, line in again.items()
    ]
    if faults:
        raise FaultsError(source, faults)
    return Marked(data, lines)


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of what stands at a path, or else of the innermost section around it."""
    ends = range(len(path), 0, -1)
    return next((lines[path[:end]] for end in ends if path[:end] in lines), None)


def _keys(loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, seen: set[int]) -> Iterator[tuple[KeyPath, int]]:
    """(path, line) of all keys and entries below a node, in the order of the text."""
    if id(node) in seen:  # an alias: it may even lie within itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            merges = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merges else loader.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # told when the value is made
            below = (*path, key)
            yield below, key_node.start_mark.line + 1
            yield from _keys(loader, value, below, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _keys(loader, value, (*path, index), seen)
