"""A recipe's YAML with the line of every key; PyYAML alone would let the last of two equal keys win without a word."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from errata.errors import Fault, FaultsError, InputError

MOST = 20_000  # values, each counted as often as it is referred to
_BITS = 12_000  # of a number; Python writes those of about 14,000 out, and no longer ones
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
    try:
        loader = yaml.SafeLoader(text)  # looks for characters that no YAML may hold
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not YAML: {error}", remedy="Save it as text in UTF-8") from error
    try:
        root = loader.get_single_node()
        # Before the value is made, which puts what `<<` merges among a mapping's own keys.
        found = [] if root is None else list(_keys(loader, root, (), set()))
        data = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not, such as 2025-13-01
        raise InputError(f"{source} is not YAML: {error}", remedy="Mend the line that is named") from error
    except RecursionError as error:
        raise InputError(f"{source} is nested too deeply", remedy="See examples/recipe.yaml for the form") from error
    except (KeyError, IndexError, AttributeError, TypeError) as error:  # what PyYAML makes of '!!int ""' and the like
        reason = f"a value is not of the type that its tag says ({type(error).__name__}: {error})"
        raise InputError(f"{source} is not YAML: {reason}", remedy="Leave tags out") from error
    finally:
        loader.dispose()
    if strange := _strange(data):
        raise InputError(f"{source} {strange}", remedy="See examples/recipe.yaml for the form")
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


def _strange(data: Any) -> str | None:
    """Why a value cannot be that of a recipe, whatever its keys mean; None if it can.

    Whoever walks over it follows every alias, and a few lines of them can stand for more than fits anywhere.
    """
    waiting, count = [data], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST:
            return f"holds more than {MOST} values, or refers to itself"
        if isinstance(value, int) and value.bit_length() > _BITS:
            return "holds a number of thousands of digits"
        if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
            return "holds half of a character, which no text in UTF-8 can hold"
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
    return None


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
