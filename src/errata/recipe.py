"""Recipe: every number and choice of an edit, frozen, validated, from and to YAML.

A recipe file belongs to one model and holds what is common to all methods at the top level, and what a method changes
under ``methods``: first the row's own entry, then the one with ``+blue`` (``recipe_files``); never module paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, StrictInt, ValidationError, field_validator, model_validator

from errata.errors import FaultsError, InputError
from errata.methods import published_faults
from errata.recipe_faults import fault_of, path_of
from errata.recipe_files import RecipeFile, merge, parse_file, read_file, shipped_for
from errata.recipe_settings import (
    NAMED_CORPORA,
    AnyTargetSettings,
    ContextSettings,
    RoundSettings,
    Settings,
    ShapingSettings,
    SolverSettings,
    StatisticsSettings,
)
from errata.recipe_yaml import Dumper


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
    solver: SolverSettings
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
        return not (self.solver.kind == "rank_one" and self.solver.moment == "identity")

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
    # A path in a file counts from that file, wherever the user stands.
    return recipe.with_corpus(corpus_path(recipe.statistics.corpus, Path(path).parent))


def corpus_path(name: str, folder: Path) -> Path:
    """The absolute path of a text for key statistics, counted from ``folder``; ``~`` is the user's home.

    Raises:
        InputError: if it cannot be a path.
    """
    try:
        return (folder / Path(name).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a user that does not exist, a NUL, a name that is too long
        raise InputError(f"{name[:200]!r} is no path of a corpus: {error}", remedy="Give a text file") from error


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
        yield f"a shaping stands there twice: {', '.join(kinds)}"
    if {"rect", "prune"} <= set(kinds):
        yield "'rect' makes each batch's change sparse and 'prune' the whole run's change dense again: take one of them"
    if recipe.solver.kind == "rank_one" and recipe.rounds is not None:
        yield "'rank_one' writes facts one after another; rounds are for facts that are solved together"
    if recipe.solver.kind == "null_space" and recipe.solver.shares:
        if recipe.solver.relative:
            yield "'relative' and 'shares' are two units for the solver's threshold and L2: set one of them"
        if recipe.solver.threshold > 1:
            yield f"with 'shares' the threshold is a share of directions, at most 1, got {recipe.solver.threshold:g}"
