"""Every fault of a recipe file at once: of all methods that it names, each told once and by its place in the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from errata.errors import Fault, FaultsError, InputError
from errata.methods import BOUNDARY_SUFFIX, method_named
from errata.recipe import Recipe
from errata.recipe_faults import fault_of, path_of
from errata.recipe_files import RecipeFile, read_file
from errata.recipe_yaml import KeyPath, line_of


def check_recipe(path: str | Path, method: str | None = None) -> tuple[str, ...]:
    """Check a file for one method, or for every one that it holds numbers for.

    Returns:
        The methods that it was checked for; it holds for all of them.

    Raises:
        InputError: if it cannot be read as YAML, there is no such method, or it names none and none was given.
        FaultsError: every wrong, missing or contradictory key.
    """
    file = read_file(path)
    if method is not None:
        method_named(method)
    names = file.covered if method is None else (method,)
    if not names:
        raise InputError(f"{path} names no method to check it for", remedy="Name one with --method")
    faults = [*file.faults(), *_method_faults(file, [name for name in names if _is_method(name)])]
    if faults:
        raise FaultsError(f"the recipe {path}", faults)
    return names


def _is_method(name: str) -> bool:
    try:
        method_named(name)
    except InputError:
        return False
    return True


def _method_faults(file: RecipeFile, names: Sequence[str]) -> list[Fault]:
    """The faults of the recipes for these methods.

    What stands in the file is told where it stands. What stands nowhere (a missing key, a contradiction) is told of the
    whole file if all that it names suffer from it, else of each method that does, but not of ``+blue`` beside its base.
    """
    placed: dict[tuple[str, str], Fault] = {}
    nowhere: dict[Fault, list[str]] = {}
    for name in names:
        for item in _errors(file, name):
            fault = fault_of(file.source, item, Recipe.model_fields)
            path = path_of(item)
            if (place := _place(file, name, path, missing=item["type"] == "missing")) is not None:
                where = ".".join(str(part) for part in place)
                found = Fault(f"{file.source}: {where}", fault.what, fault.remedy, line_of(file.lines, place))
                placed.setdefault((found.where, found.what), found)
            else:
                nowhere.setdefault(fault, []).append(name)
    named = [name for name in names if name in file.names] or names
    return [*placed.values(), *(told for fault, whose in nowhere.items() for told in _told(file, fault, whose, named))]


def _errors(file: RecipeFile, name: str) -> Sequence[Any]:
    try:
        Recipe.model_validate(file.merged(name))
    except ValidationError as error:
        return error.errors()
    return ()


def _told(file: RecipeFile, fault: Fault, whose: Sequence[str], names: Sequence[str]) -> Iterable[Fault]:
    path = fault.where.removeprefix(f"{file.source}: ")
    if set(names) <= set(whose):
        line = line_of(file.lines, tuple(path.split(".")))
        yield Fault(f"{file.source}: {path}" if path else file.source, fault.what, fault.remedy, line)
        return
    for name in whose:
        base = name.removesuffix(BOUNDARY_SUFFIX)
        if base == name or base not in whose:
            where = ".".join(part for part in ("methods", name, path) if part)
            line = line_of(file.lines, ("methods", name, *path.split(".")))
            yield Fault(f"{file.source}: {where}", fault.what, fault.remedy, line)


def _place(file: RecipeFile, name: str, path: Sequence[Any], *, missing: bool) -> KeyPath | None:
    """The last place in the file that says what counts for the method at ``path``; None if no place does."""
    if missing or not path:
        return None
    for place, layer in reversed(file.layers(name)):
        if _holds(layer, path):
            return (*place, *path)
    return None


def _holds(value: Any, path: Sequence[Any]) -> bool:
    for part in path:
        if not isinstance(value, Mapping):
            return True  # a list or a plain value, which is taken from here as a whole
        if part not in value:
            return False
        value = value[part]
    return True
