"""Recipe: every number and choice of an edit, frozen, validated, from and to YAML.

A recipe file belongs to one model and holds what is common to all methods at the top level, and what a method changes
under ``methods``: first the row's own entry, then the one with ``+blue`` (``recipe_files``); never module paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, StrictInt, ValidationError, field_validator, model_validator

from errata.editing.methods import BOUNDARY_SUFFIX, method_named, published_faults
from errata.editing.recipe_files import RecipeFile, merge, parse_file, read_file, shipped_for
from errata.editing.recipe_settings import (
    AnyTargetSettings,
    ContextSettings,
    RoundSettings,
    ShapingSettings,
    fault_of,
    path_of,
)
from errata.editing.solvers import AnySolverSettings
from errata.errors import Fault, FaultsError, InputError
from errata.statistics.settings import NAMED_CORPORA, StatisticsSettings
from errata.utils.settings import Settings
from errata.utils.yaml import Dumper, KeyPath, line_of


class Recipe(Settings):
    """Everything that decides an edit, given model, facts and batch size."""

    model: str = Field(description="the model that the numbers are for")
    method: str = Field(description="a row of `errata methods`, with or without +blue")
    layers: tuple[StrictInt, ...] = Field(min_length=1, description="critical layers, ascending, counted from 0")
    site: Literal["block", "mlp"] = Field(description="where targets live")
    schedule: Literal["even", "sqrt", "boundary", "own", "single", "replay"] = Field(
        description="which layers get which share"
    )
    target: AnyTargetSettings
    contexts: ContextSettings = ContextSettings()
    solver: AnySolverSettings
    shaping: tuple[ShapingSettings, ...] = Field((), description="what is done beside solving")
    rounds: RoundSettings | None = Field(None, description="several passes over a batch; none is one for all facts")
    statistics: StatisticsSettings
    batch_size: StrictInt = Field(25, ge=1, description="facts that are solved together")
    source: str = Field("", description="where the numbers are from")

    @field_validator("layers")
    @classmethod
    def _layers_ascend(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if any(layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
            raise ValueError("layers must be ascending, distinct and not negative")
        return layers

    @model_validator(mode="after")
    def _choices_go_together(self) -> Recipe:
        if reasons := list(_contradictions(self)):
            raise ValueError("; ".join(reasons))
        return self

    @property
    def is_automatic(self) -> bool:
        """Whether no person has published or measured the numbers."""
        return self.source.startswith("automatic")

    @property
    def needs_statistics(self) -> bool:
        """Whether the solver looks at the key statistics at all."""
        return self.solver.needs_moment

    def with_corpus(self, corpus: str | Path) -> Recipe:
        """The recipe with another text to take key statistics over."""
        statistics = self.statistics.model_copy(update={"corpus": str(corpus)})
        return self.model_copy(update={"statistics": statistics})

    def with_choices(self, choices: Mapping[str, Any]) -> Recipe:
        """The recipe with other values of some fields.

        Raises:
            FaultsError: if it then does not hold, each fault with its reason.
        """
        source = {"source": f"{self.source}; changed: {', '.join(choices)}"} if self.source else {}
        try:
            return Recipe.model_validate({**self.model_dump(), **choices, **source})
        except ValidationError as error:
            found = [fault_of("the recipe", item, Recipe.model_fields) for item in error.errors()]
            faults = [replace(fault, where=fault.where.removesuffix(": ")) for fault in found]
            raise FaultsError(f"{self.method} with {', '.join(choices)} of your choice", faults) from error

    def as_published(self) -> Recipe:
        """The recipe with the faults of published code that published numbers depend on; see ``published_faults``.

        Raises:
            InputError: if nothing that it does depends on one.
        """
        data = self.model_dump()
        faulty = Recipe.model_validate(merge(data, published_faults(data)))
        if faulty == self:
            raise InputError(
                f"no published number of {self.method!r} depends on a fault of published code",
                remedy="Leave out --as-published",
                code="NOTHING_AS_PUBLISHED",
            )
        return faulty

    def to_yaml(self) -> str:
        """YAML that ``read_recipe`` reads back to an equal recipe."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path, method: str, *, as_published: bool = False) -> Recipe:
    """The recipe for one method from a YAML file.

    Args:
        as_published: reproduce the faults of published code that published numbers depend on; see
            ``published_faults``.

    Raises:
        InputError: if the file cannot be read as YAML, was written for another method, or the method is not known.
        FaultsError: every wrong or missing key, each with the nearest valid one.
    """
    recipe = _recipe_from(read_file(path), method, as_published=as_published)
    if recipe.statistics.corpus in NAMED_CORPORA:
        return recipe
    # A path in a file is relative to that file, not to the working directory.
    return recipe.with_corpus(corpus_path(recipe.statistics.corpus, Path(path).parent))


def corpus_path(name: str, folder: Path) -> Path:
    """The absolute path of a text for key statistics, counted from ``folder``; ``~`` is the user's home.

    Raises:
        InputError: if it cannot be a path.
    """
    try:
        return (folder / Path(name).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a user that does not exist, a NUL, a name that is too long
        raise InputError(
            f"{name[:200]!r} is no path of a corpus: {error}", remedy="Give a text file", code="CORPUS_PATH_INVALID"
        ) from error


def shipped_recipe(model: str, method: str, *, as_published: bool = False) -> Recipe:
    """The recipe that comes with errata for ``model``; ``as_published`` as in ``read_recipe``.

    Found by the last part of the model's name, in lower case, or by another name that the file lists under ``also``.

    Raises:
        InputError: if there is none, or nobody published the method's numbers for this model; says what there is.
    """
    return _recipe_from(shipped_for(model, method), method, as_published=as_published)


def parse_recipe(text: str, method: str, *, source: str, as_published: bool = False) -> Recipe:
    """As ``read_recipe``, from the text itself; ``source`` is what messages call it."""
    return _recipe_from(parse_file(text, source), method, as_published=as_published)


def _recipe_from(file: RecipeFile, method: str, *, as_published: bool) -> Recipe:
    merged, faults = file.merged(method), file.faults()
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        for item in error.errors():
            fault = fault_of(file.source, item, Recipe.model_fields)
            faults.append(replace(fault, line=file.line(method, tuple(path_of(item)))))
        raise FaultsError(f"the recipe {file.source} for {method}", faults) from error
    if faults:
        raise FaultsError(f"the recipe {file.source}", faults)
    return recipe.as_published() if as_published else recipe


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Combinations of choices that mean nothing, each with its reason."""
    kinds = [shaper.kind for shaper in recipe.shaping]
    if recipe.schedule == "single" and len(recipe.layers) != 1:
        yield f"the schedule 'single' writes one layer, got {list(recipe.layers)}"
    if recipe.schedule == "replay" and len(recipe.layers) == 1:
        yield "the schedule 'replay' carries the first layer's target to later ones, got one layer; take 'single'"
    if recipe.schedule == "replay" and recipe.target.weights == "original":
        yield "the schedule 'replay' reads later targets off the current weights, so its first one is found on them too"
    if recipe.target.kind == "joint" and recipe.site != "mlp":
        yield "the target 'joint' is searched at the MLP's output, so site must be 'mlp'"
    if len(set(kinds)) < len(kinds):
        yield f"duplicate shaping: {', '.join(kinds)}"
    if {"rect", "prune"} <= set(kinds):
        yield "'rect' makes each batch's change sparse and 'prune' the whole run's change dense again: take one of them"
    yield from recipe.solver.contradictions(rounds=recipe.rounds is not None)


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
        raise InputError(
            f"{path} names no method to check it for", remedy="Name one with --method", code="RECIPE_WITHOUT_METHOD"
        )
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
                found = Fault(
                    f"{file.source}: {where}", fault.what, fault.remedy, line_of(file.lines, place), code=fault.code
                )
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
        yield Fault(f"{file.source}: {path}" if path else file.source, fault.what, fault.remedy, line, code=fault.code)
        return
    for name in whose:
        base = name.removesuffix(BOUNDARY_SUFFIX)
        if base == name or base not in whose:
            where = ".".join(part for part in ("methods", name, path) if part)
            line = line_of(file.lines, ("methods", name, *path.split(".")))
            yield Fault(f"{file.source}: {where}", fault.what, fault.remedy, line, code=fault.code)


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
