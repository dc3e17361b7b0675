"""Recipe: every number and choice of an edit, frozen, validated, from and to YAML.

A recipe file belongs to one model. Settings common to all methods are at its top level; under ``methods`` are those of
single methods, where an entry for ``+blue`` changes the entry of its base (``recipe_files``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import Field, StrictInt, ValidationError, ValidationInfo, field_validator, model_validator

from errata.editing.contexts import ContextSettings
from errata.editing.methods import BOUNDARY_SUFFIX, METHOD_NAMES, method_named, published_faults
from errata.editing.recipe_files import FILE_KEYS, RecipeFile, merge, parse_file, place_of, read_file, shipped_for
from errata.editing.schedules import SCHEDULES, ScheduleName, Step
from errata.editing.shaping import SHAPERS, AnyShaper, BatchShaper, RunShaper
from errata.editing.solvers import SOLVERS, AnySolver
from errata.editing.target_loss import TARGETS, AnyTarget
from errata.errors import Fault, FaultsError, InputError
from errata.statistics.settings import NAMED_CORPORA, StatisticsSettings
from errata.utils.settings import Layers, NotNegative, Positive, Settings
from errata.utils.text import did_you_mean
from errata.utils.yaml import Dumper, KeyPath, line_of

_MISSING: Final = "RECIPE_KEY_MISSING"


class RoundSettings(Settings):
    """The steps of a batch are repeated, each time for the facts that are still open."""

    count: StrictInt = Field(ge=1, description="rounds")
    least: NotNegative = Field(description="α: a fact is open while ‖z − h‖ is larger than this")
    most: Positive = Field(description="and smaller than this")

    @field_validator("most")
    @classmethod
    def _above_least(cls, most: float, info: ValidationInfo) -> float:
        if most <= info.data.get("least", 0.0):  # no fact could be open, so nothing would be written
            raise ValueError("'most' must be larger than 'least'")
        return most


class Recipe(Settings):
    """Everything that decides an edit, given model, facts and batch size."""

    model: str = Field(description="the model that the settings are for")
    method: str = Field(description="a row of `errata methods`, with or without +blue")
    layers: Layers = Field(description="critical layers, ascending, counted from 0")
    site: Literal["block", "mlp"] = Field(description="where targets live")
    schedule: ScheduleName = Field(description="which layers get which share")
    target: AnyTarget
    contexts: ContextSettings = ContextSettings()
    solver: AnySolver
    shaping: tuple[AnyShaper, ...] = Field((), description="shaping of targets, of each batch's change or of the run's")
    rounds: RoundSettings | None = Field(
        None, description="number of passes over a batch; by default one pass with all facts"
    )
    statistics: StatisticsSettings
    batch_size: StrictInt = Field(25, ge=1, description="facts that are solved together")
    source: str = Field("", description="where the settings are from")

    @model_validator(mode="after")
    def _choices_go_together(self) -> Recipe:
        if reasons := list(_contradictions(self)):
            raise ValueError("; ".join(reasons))
        return self

    @property
    def is_automatic(self) -> bool:
        """Whether the settings were neither published nor measured by anyone."""
        return self.source.startswith("automatic")

    @property
    def seed(self) -> int:
        """Seed of the contexts, the only random part of an edit."""
        return self.contexts.seed

    @property
    def needs_statistics(self) -> bool:
        """Whether the solver uses key statistics."""
        return self.solver.needs_moment

    @property
    def steps(self) -> tuple[Step, ...]:
        """Those of the schedule for the recipe's layers."""
        return tuple(SCHEDULES[self.schedule](self.layers))

    def with_corpus(self, corpus: str | Path) -> Recipe:
        """The recipe with another text to take key statistics over.

        Raises:
            InputError: if it takes them from a file.
        """
        if self.statistics.file is not None:
            raise InputError(
                f"the recipe takes key statistics from the file {self.statistics.file!r}, not from a text",
                remedy="Leave out --corpus, or the recipe's statistics.file",
                code="OPTION_CONFLICT",
            )
        statistics = self.statistics.model_copy(update={"corpus": str(corpus)})
        return self.model_copy(update={"statistics": statistics})

    def with_statistics(self, file: str | Path) -> Recipe:
        """The recipe with key statistics from a file of `errata statistics` instead of from a text."""
        return self.model_copy(update={"statistics": StatisticsSettings(file=str(file))})

    def with_choices(self, choices: Mapping[str, Any]) -> Recipe:
        """The recipe with other values of some fields.

        Raises:
            FaultsError: if it is then invalid, each fault with its reason.
        """
        source = {"source": f"{self.source}; changed: {', '.join(choices)}"} if self.source else {}
        try:
            return Recipe.model_validate({**self.model_dump(), **choices, **source})
        except ValidationError as error:
            faults = [fault_at("the recipe", item)[1] for item in error.errors()]
            raise FaultsError(f"{self.method} with {', '.join(choices)} of your choice", faults) from error

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the texts that it refers to, which may be paths."""
        return (self.statistics.source,)

    def without_directories(self) -> Recipe:
        """The recipe with only the last parts of paths, for publication."""
        name = Path(self.statistics.source).name
        return self.with_corpus(name) if self.statistics.file is None else self.with_statistics(name)

    def as_published(self) -> Recipe:
        """The recipe with known bugs of published code that published numbers depend on; see ``published_faults``.

        Raises:
            InputError: if there is none for this recipe.
        """
        data = self.model_dump()
        faulty = Recipe.model_validate(merge(data, published_faults(data)))
        if faulty == self:
            raise InputError(
                f"--as-published has no effect: no published result of {self.method!r} depends on a bug of its "
                "reference code",
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
    # A path in a file is relative to that file, not to the working directory.
    folder, statistics = Path(path).parent, recipe.statistics
    if statistics.file is not None:
        return recipe.with_statistics(corpus_path(statistics.file, folder))
    return recipe if statistics.corpus in NAMED_CORPORA else recipe.with_corpus(corpus_path(statistics.corpus, folder))


def corpus_path(name: str, folder: Path) -> Path:
    """The absolute path of a text, or a file, for key statistics, counted from ``folder``; ``~`` is the user's home.

    Raises:
        InputError: if it cannot be a path.
    """
    try:
        return (folder / Path(name).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a user that does not exist, a NUL, a name that is too long
        raise InputError(
            f"{name[:200]!r} is not a valid path of a corpus: {error}",
            remedy="Give a text file",
            code="CORPUS_PATH_INVALID",
        ) from error


def shipped_recipe(model: str, method: str, *, as_published: bool = False) -> Recipe:
    """The recipe that comes with errata for ``model``; ``as_published`` as in ``read_recipe``.

    Found by the last part of the model's name, in lower case, or by another name that the file lists under ``also``.

    Raises:
        InputError: if there is none, or nobody published the method's settings for this model; lists those available.
    """
    return _recipe_from(shipped_for(model, method), method, as_published=as_published)


def parse_recipe(text: str, method: str, *, source: str, as_published: bool = False) -> Recipe:
    """As ``read_recipe``, from the text itself; ``source`` is its name in messages."""
    return _recipe_from(parse_file(text, source), method, as_published=as_published)


def _recipe_from(file: RecipeFile, method: str, *, as_published: bool) -> Recipe:
    recipe, found = _validated(file, method)
    faults = [*file.faults(), *(replace(fault, line=file.line(method, path)) for path, fault in found)]
    if recipe is None or faults:
        raise FaultsError(f"the recipe {file.source} for {method}", faults)
    return recipe.as_published() if as_published else recipe


def _validated(file: RecipeFile, method: str) -> tuple[Recipe | None, list[tuple[KeyPath, Fault]]]:
    """The recipe for a method, or else its faults, each with its path in the recipe."""
    try:
        return Recipe.model_validate(file.merged(method)), []
    except ValidationError as error:
        return None, [fault_at(file.source, item) for item in error.errors()]


# Sections by their names, and by the kinds by which pydantic names them in its errors.
_KINDS: Mapping[str, type[Settings]] = {**SOLVERS, **TARGETS, **SHAPERS}
_SECTIONS: Mapping[str, type[Settings]] = {
    "contexts": ContextSettings,
    "statistics": StatisticsSettings,
    "rounds": RoundSettings,
    **_KINDS,
}


def fault_at(source: str, item: Any, *, known: Iterable[str] = ()) -> tuple[KeyPath, Fault]:
    """The path in a recipe of one of pydantic's errors, and the error in our words.

    Args:
        known: the valid keys at the top; by default those of a recipe file.
    """
    # pydantic adds the kind of a section at a fixed place.
    tag = {"solver": 1, "target": 1, "shaping": 2}.get(item["loc"][0]) if item["loc"] else None
    path = tuple(part for index, part in enumerate(item["loc"]) if index != tag)
    where = place_of(source, path)
    got = f"Got {item.get('input')!r:.200}"
    match item["type"]:
        case "value_error":  # one of our own checks, whose message is a sentence
            what, remedy, code = (
                str(item["ctx"]["error"]),
                got if path else "Change one of them",
                "RECIPE_CONTRADICTION",
            )
        case "extra_forbidden":
            section = _SECTIONS.get(str(item["loc"][-2])) if len(item["loc"]) > 1 else None
            valid = list(section.model_fields if section else known or (*Recipe.model_fields, *FILE_KEYS))
            hint = did_you_mean(str(path[-1]), valid, cutoff=0.5)
            what, remedy, code = "unknown key", f"{hint}Known here: {', '.join(valid)}", "RECIPE_KEY_UNKNOWN"
        case kind:
            what = item["msg"][0].lower() + item["msg"][1:]
            remedy, code = ("Add this key", _MISSING) if kind == "missing" else (got, "RECIPE_VALUE_INVALID")
    return path, Fault(where, what, remedy, code=code)


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Invalid combinations of choices, each with its reason."""
    steps: Sequence[Step] = ()
    try:
        steps = recipe.steps
    except ValueError as error:
        yield str(error)
    if any(step.follows is not None for step in steps) and recipe.target.weights == "original":
        yield (
            f"the schedule {recipe.schedule!r} derives later targets from the current weights, so its first target "
            "must be searched on them too"
        )
    yield from recipe.target.contradictions(recipe.site)
    kinds = [shaper.kind for shaper in recipe.shaping]
    if len(set(kinds)) < len(kinds):
        yield f"duplicate shaping: {', '.join(kinds)}"
    masking = [shaper.kind for shaper in recipe.shaping if isinstance(shaper, BatchShaper)]
    dense = [shaper.kind for shaper in recipe.shaping if isinstance(shaper, RunShaper)]
    if masking and dense:
        yield (
            f"{masking[0]!r} makes each batch's change sparse and {dense[0]!r} the whole run's change dense again: "
            "use only one of them"
        )
    yield from recipe.solver.contradictions(rounds=recipe.rounds is not None)


def check_recipe(path: str | Path, method: str | None = None) -> tuple[str, ...]:
    """Check a file for one method, or for all methods that it has settings for.

    Returns:
        The methods that it was checked for; it is valid for all of them. Empty for a file of editors' settings only.

    Raises:
        InputError: if it cannot be read as YAML, there is no such method, or it names no method and none was given.
        FaultsError: every wrong, missing or contradictory key.
    """
    file = read_file(path)
    if method is not None:
        method_named(method)
    names = file.covered if method is None else (method,)
    if not names and "editors" not in file.data:
        raise InputError(
            f"{path} does not name a method", remedy="Name one with --method", code="RECIPE_WITHOUT_METHOD"
        )
    known = [name for name in names if name in METHOD_NAMES]
    faults = [*file.faults(), *(_method_faults(file, known) if known else _faults_of_any_method(file))]
    if faults:
        raise FaultsError(f"the recipe {path}", faults)
    return names


def _faults_of_any_method(file: RecipeFile) -> Iterator[Fault]:
    """The faults of the keys of a file whose methods are all unknown.

    Left out is what depends on the method: missing keys, and the keys of a solver or target without a kind.
    """
    keys = replace(file, data={key: value for key, value in file.data.items() if key not in ("method", "methods")})
    for path, fault in _validated(keys, METHOD_NAMES[0])[1]:
        section = keys.data.get(path[0]) if path else None
        of_the_method = (
            path[:1] in (("solver",), ("target",)) and isinstance(section, Mapping) and "kind" not in section
        )
        if path and fault.code != _MISSING and not of_the_method:
            yield replace(fault, line=line_of(file.lines, path))


def _method_faults(file: RecipeFile, names: Sequence[str]) -> Iterator[Fault]:
    """The faults of the recipes for these methods.

    Faults of a key are reported at that key. Others (a missing key, a contradiction) are reported once for the file if
    all methods have them, else for each method, but not for ``+blue`` if its base has it too.
    """
    found: dict[tuple[Any, ...], tuple[Fault, list[str]]] = {}
    for name in names:
        for path, fault in _validated(file, name)[1]:
            section = file.section_with(name, path) if path and fault.code != _MISSING else None
            found.setdefault((section is None, section, path, fault.what), (fault, []))[1].append(name)
    named = [name for name in names if name in file.names] or names
    for (_, section, path, _), (fault, having) in sorted(found.items(), key=lambda entry: entry[0][0]):
        if section is not None:
            sections: list[KeyPath] = [section]
        elif set(named) <= set(having):
            sections = [()]
        else:
            also = {f"{name}{BOUNDARY_SUFFIX}" for name in having}
            sections = [("methods", name) for name in having if name not in also]
        for each in sections:
            place = (*each, *path)
            yield replace(fault, where=place_of(file.source, place), line=line_of(file.lines, place))
