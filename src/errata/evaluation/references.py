"""Texts about subjects of which the same holds as of an edited one: what its own texts are compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from errata.errors import Fault, FaultsError, InputError
from errata.facts import Fact
from errata.reading import file_text, reason_of

References: TypeAlias = Mapping[tuple[str, str], tuple[str, ...]]
"""(relation, object) -> texts about subjects of which that holds."""
_FIELDS = ("relation", "target", "text")


def references_of(fact: Fact, references: References) -> tuple[str, ...]:
    """The texts about subjects with the fact's relation and target; none if it has no relation."""
    return () if fact.relation is None else references.get((fact.relation, fact.target), ())


def read_references(path: Path) -> References:
    """Read reference texts: one JSON object a line, with ``relation``, ``target`` (its object) and ``text``.

    Raises:
        InputError: if the file cannot be read, or there is none in it.
        FaultsError: if anything in it is wrong; tells all of it.
    """
    try:
        lines = file_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise InputError(
            f"the references {path} cannot be read: {reason_of(error)}", remedy="Give a file of UTF-8"
        ) from error
    found: dict[tuple[str, str], list[str]] = {}
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            faults.append(Fault(place, f"invalid JSON: {error}", "Write one JSON object on each line"))
            continue
        wrong = _reference_faults(entry, place)
        faults += wrong
        if not wrong:
            found.setdefault((entry["relation"], entry["target"]), []).append(entry["text"])
    if faults:
        raise FaultsError(str(path), faults)
    if not found:
        raise InputError(f"there are no references in {path}", remedy="Give at least one text")
    return MappingProxyType({key: tuple(texts) for key, texts in found.items()})


def _reference_faults(entry: object, place: str) -> list[Fault]:
    if not isinstance(entry, dict):
        return [Fault(place, "the line is no JSON object", f"Write an object with {', '.join(_FIELDS)}")]
    unknown = [str(name) for name in entry if name not in _FIELDS]
    faults = [Fault(place, f"the field {name!r} is unknown", f"Leave only {', '.join(_FIELDS)}") for name in unknown]
    for name in _FIELDS:
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            faults.append(Fault(place, f"'{name}' is missing, empty or not text", "Write it in double quotes"))
    return faults
