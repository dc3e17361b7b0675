"""A grid of experiments: models × data × methods × varied recipe fields × seeds, from YAML or the command line.

Paths in a grid file are relative to that file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, overload

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from errata.datasets.registry import DATASETS, is_own_file, split_file
from errata.editing.recipe import Recipe
from errata.editors.registry import changed_settings
from errata.editors.table import EditorSettings, check_method
from errata.errors import Fault, FaultsError, InputError
from errata.evaluation.harness import paths_in, yaml_files
from errata.statistics.settings import NAMED_CORPORA
from errata.utils.files import is_private, read_text
from errata.utils.settings import Settings
from errata.utils.yaml import line_of, parse_yaml

Placement = Callable[[str], str]


def data_entry(value: Any) -> Any:
    """Expand ``NAME`` or ``NAME=FILE``."""
    if not isinstance(value, str):
        return value
    name, path = split_file(value)
    return {"name": name} if path is None else {"name": name, "path": path}


def model_entry(value: Any) -> Any:
    """Expand a bare name."""
    return {"name": value} if isinstance(value, str) else value


def placed_prose(text: str, place: Placement) -> str:
    """``NAME``, or ``NAME=FILE`` or ``FILE`` with its path changed."""
    name, separator, path = text.partition("=")
    if separator and name in DATASETS:
        return f"{name}={place(path)}"
    return text if text in DATASETS else place(text)


def placed_data(entry: Any, place: Placement) -> Any:
    """An entry of a data set with its paths changed."""
    return _with(entry, {"path": place, "name": lambda name: place(name) if is_own_file(name) else name})


def placed_task(text: str, folder: Path, place: Placement) -> str:
    """A task of the harness, or a file or directory of local ones in ``folder``, with its path changed.

    A directory without task files does not hide the task of the same name.
    """
    path = folder / Path(text).expanduser()
    return place(text) if path.exists() and (paths_in([text]) or yaml_files(path)) else text


def with_absolute_paths(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The data of a grid file, unvalidated, with absolute paths; values of other types are left as they are."""

    def place(text: str) -> str:
        return str((folder / Path(text).expanduser()).resolve())

    def place_if_there(text: str) -> str:
        """For values that may also be a name, of the hub or the harness."""
        return place(text) if (folder / Path(text).expanduser()).exists() else text

    # A directory that happens to have the name of something in errata does not replace it.
    changes = {
        "recipe": place,
        "statistics": place,
        "corpus": lambda name: name if name in NAMED_CORPORA else place_if_there(name),
        "name": lambda name: name if name == "lab" else place_if_there(name),
    }
    found = dict(data)
    _change(found, "prose", lambda text: placed_prose(text, place))
    _each_entry(found, "models", lambda value: _with(model_entry(value), changes))
    _each_entry(found, "data", lambda value: placed_data(_with(data_entry(value), {"untouched": place}), place))
    measures = found.get("measures")
    options = measures.get("options") if isinstance(measures, dict) else None
    if isinstance(measures, dict) and isinstance(options, dict):
        texts = dict.fromkeys(("references", "corpus", "vocabulary", "idf"), place)
        ability = {"probes": place, "tasks": lambda task: placed_task(task, folder, place)}
        own: dict[str, Mapping[str, Placement]] = {"texts": texts, "ability": ability}
        changed = {part: _with(given, own.get(part, {})) for part, given in options.items()}
        found["measures"] = {**measures, "options": changed}
    return found


def _each_entry(data: dict[str, Any], key: str, entry_of: Callable[[Any], Any]) -> None:
    if key in data:
        entries = data[key] if isinstance(data[key], list) else [data[key]]
        data[key] = [entry_of(entry) for entry in entries]


def _with(entry: Any, changes: Mapping[str, Placement]) -> Any:
    if not isinstance(entry, dict):
        return entry
    entry = dict(entry)
    for key, change in changes.items():
        _change(entry, key, change)
    return entry


def _change(data: dict[str, Any], key: str, change: Placement) -> None:
    """Apply to a string, or to the strings of a list."""
    value = data.get(key)
    if isinstance(value, str):
        data[key] = change(value)
    elif isinstance(value, list):
        data[key] = [change(entry) if isinstance(entry, str) else entry for entry in value]


MOST_SEEDS: Final = 10_000


def _count_to_seeds(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value > MOST_SEEDS:
        raise ValueError(f"a single number is a count, at most {MOST_SEEDS}; write one seed as [{value}]")
    return tuple(range(value))


def _without_duplicates(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):  # a run that counts twice would narrow the intervals
        raise ValueError("duplicate seeds")
    return seeds


Seeds = Annotated[
    tuple[Annotated[StrictInt, Field(ge=0, lt=2**63)], ...],
    BeforeValidator(_count_to_seeds),
    AfterValidator(_without_duplicates),
]
"""Different seeds; a single number n is 0 to n − 1."""


class ModelEntry(Settings):
    """A model of the grid; a bare name in YAML is one with the defaults."""

    name: str = Field(description="'lab', a directory, or a name on the hub")
    dtype: str | None = Field(None, description="float32, bfloat16, float16; default: what is stored")
    device: str | None = Field(None, description="cpu, cuda, cuda:1 …; default: a GPU if there is one")
    recipe: str | None = Field(None, description="a YAML recipe; default: the one shipped for the model")
    corpus: str | None = Field(None, description="a text for key statistics; default: the recipe's")
    statistics: str | None = Field(None, description="a file of key statistics, instead of a text")
    trust_remote_code: StrictBool = Field(
        False, description="it needs code that comes with it, which the command line allows"
    )


def check_trusted(models: Iterable[ModelEntry], *, trust_remote_code: bool) -> None:
    """Remote code needs permission on the command line: a grid or a benchmark may come from someone else.

    Args:
        trust_remote_code: whether the command line allows it.

    Raises:
        InputError: if a model needs remote code that is not allowed.
    """
    if not trust_remote_code and (names := [entry.name for entry in models if entry.trust_remote_code]):
        raise InputError(
            f"{', '.join(dict.fromkeys(names))}: trust_remote_code is set in the grid, which cannot allow it",
            remedy="If you trust the model's code, add --trust-remote-code to the command",
            code="REMOTE_CODE_NOT_ALLOWED",
        )


class DataEntry(Settings):
    """A data set of the grid; in YAML also ``NAME`` or ``NAME=FILE``."""

    name: str = Field(description="a data set of `errata data list`, or your own .jsonl or .csv file")
    path: str | None = Field(None, description="its file; default: where `errata data get` put it")
    untouched: str | None = Field(None, description="JSONL of {prompt, answer} about subjects that are not edited")

    @property
    def label(self) -> str:
        """Name in tables."""
        return Path(self.name).name if self.name.endswith((".jsonl", ".csv")) else self.name


class Measures(Settings):
    """Optional measurements before and after a run, besides recall and perplexity."""

    parts: tuple[str, ...] = Field((), description="further measurements: see `errata bench --help`")
    options: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="settings of a measurement, under its name"
    )


class Grid(Settings):
    """An experiment. Every key except ``vary`` is also an option of ``errata bench``."""

    models: tuple[ModelEntry, ...] = Field((ModelEntry(name="lab"),), min_length=1)
    data: tuple[DataEntry, ...] = Field((DataEntry(name="lab"),), min_length=1)
    methods: tuple[str, ...] = Field(min_length=1, description="rows of `errata methods`")
    vary: Mapping[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="recipe fields, such as solver.history, each with the values that it takes"
    )
    seeds: Seeds = Field((0, 1, 2), min_length=1, description="random seeds: of facts, contexts and everything else")
    edits: StrictInt = Field(ge=1, description="number of facts per run")
    batch_size: StrictInt = Field(100, ge=1, description="facts that are solved together")
    eval_every: StrictInt = Field(5, ge=0, description="batches between two checks during a run; 0 for none")
    sample: StrictInt = Field(200, ge=1, description="facts and control questions per check")
    collapse: StrictFloat | None = Field(1.5, gt=1, description="perplexity over the unedited model's that stops a run")
    prose: str | None = Field(None, description="texts for perplexity: me-ppl=FILE, or a file with a text a line")
    measures: Measures = Measures()

    @field_validator("models", "data", mode="before")
    @classmethod
    def _names_are_entries(cls, value: Any, info: ValidationInfo) -> Any:
        entries = value if isinstance(value, list | tuple) else [value]
        entry_of = model_entry if info.field_name == "models" else data_entry
        return tuple(entry_of(entry) for entry in entries)

    @model_validator(mode="after")
    def _nothing_twice(self) -> Grid:
        named: dict[str, list[Any]] = {
            "models": [entry.name for entry in self.models],
            "data": [entry.label for entry in self.data],
            "methods": list(self.methods),
            **{f"vary.{name}": list(values) for name, values in self.vary.items()},
        }
        for name, values in named.items():
            if any(values.count(value) > 1 for value in values):  # they would be indistinguishable in tables
                raise ValueError(f"{name} has duplicates")
            if not values:
                raise ValueError(f"{name} is empty")
        if seeds := [name for name in self.vary if name in ("contexts", "contexts.seed", "seed")]:
            raise ValueError(f"{seeds[0]} is set by the grid's seeds; it cannot be varied as well")
        return self


@dataclass(frozen=True, slots=True)
class Variant:
    """A method with values of varied fields.

    Attributes:
        choices: dotted recipe field -> value.
    """

    method: str
    choices: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Name in tables: ``memit+blue [solver.history=True, layers=4/8]``."""
        if not self.choices:
            return self.method
        return f"{self.method} [{', '.join(f'{name}={value}' for name, value in self.shown.items())}]"

    @property
    def shown(self) -> Mapping[str, str]:
        """The choices as shown in tables."""
        return {name: _shown(value) for name, value in self.choices.items()}

    @overload
    def applied(self, settings: Recipe) -> Recipe: ...

    @overload
    def applied(self, settings: Recipe | EditorSettings) -> Recipe | EditorSettings: ...

    def applied(self, settings: Recipe | EditorSettings) -> Recipe | EditorSettings:
        """The method's recipe, or the editor's settings, with the choices.

        Raises:
            InputError: if there is no such field, or the result would be invalid.
        """
        whole = settings.model_dump()
        changed: dict[str, Any] = {}
        for name, value in self.choices.items():
            section, _, field = name.partition(".")
            if section not in whole or (field and not isinstance(whole[section], dict)):
                raise InputError(
                    f"a recipe of {self.method!r} has no field {name!r}",
                    remedy="See errata recipe show" if isinstance(settings, Recipe) else f"Known: {', '.join(whole)}",
                    code="RECIPE_FIELD_UNKNOWN",
                )
            if not field:
                changed[section] = value
            elif field not in whole[section]:
                raise InputError(
                    f"{section} of {self.method!r} has no {field!r}",
                    remedy=f"Known: {', '.join(whole[section])}",
                    code="RECIPE_FIELD_UNKNOWN",
                )
            else:
                changed[section] = {**changed.get(section, whole[section]), field: value}
        if not changed:
            return settings
        if isinstance(settings, Recipe):
            return settings.with_choices(changed)
        return changed_settings(self.method, settings, changed)


def variants(grid: Grid) -> Iterator[Variant]:
    """Each method with each combination of the varied fields."""
    for method in grid.methods:
        for values in itertools.product(*grid.vary.values()):
            yield Variant(method, dict(zip(grid.vary, values, strict=True)))


def read_grid(path: Path) -> Mapping[str, Any]:
    """The data of a grid file, unvalidated: command-line options may still override its keys.

    Raises:
        InputError, FaultsError: if it is not YAML, or not a mapping.
    """
    text = read_text(path, path, remedy="Give a YAML file; see examples/grid.yaml", code="GRID_UNREADABLE")
    data = parse_yaml(text, str(path)).data
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a mapping", remedy="See examples/grid.yaml", code="GRID_UNREADABLE")
    return with_absolute_paths(data, path.absolute().parent)


def grid_of(data: Mapping[str, Any], source: str, *, text: str = "") -> Grid:
    """Validate a grid.

    Raises:
        FaultsError: with all errors, and their lines if ``text`` is given.
    """
    lines = parse_yaml(text, source).lines if text else {}
    faults = []
    found: Grid | None = None
    try:
        found = Grid.model_validate(data)
    except ValidationError as error:
        items = error.errors()
        for item in items:
            if any(other["loc"][: len(item["loc"])] == item["loc"] and other is not item for other in items):
                continue  # pydantic repeats errors of a list's entries for the list
            where = ".".join(map(str, item["loc"]))
            place = f"{source}: {where}" if where else source
            unknown = item["type"] == "extra_forbidden"
            what = str(item.get("ctx", {}).get("error") or item["msg"])
            if item["type"] not in ("missing", "value_error") and not is_private(item["loc"]):
                what += f", got {item['input']!r:.80}"
            what = {"extra_forbidden": "unknown key", "too_short": "is empty"}.get(item["type"], what)
            remedy = f"Known: {', '.join(Grid.model_fields)}" if unknown and len(item["loc"]) == 1 else ""
            line = line_of(lines, item["loc"])
            faults.append(Fault(place, what[0].lower() + what[1:], remedy, line, code="GRID_INVALID"))
    for method in data.get("methods", ()) if isinstance(data.get("methods"), list | tuple) else ():
        try:
            check_method(str(method))
        except InputError as error:
            faults.append(Fault(f"{source}: methods", error.what, error.remedy, code=error.code))
    if faults or found is None:
        raise FaultsError(source, faults)
    return found


def _shown(value: Any) -> str:
    return "/".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)


# Placeholders for required keys that are missing or invalid.
_STAND_INS: Final[Mapping[str, Any]] = {"methods": ["-"], "edits": 1}
_LISTS: Final[tuple[str, ...]] = ("models", "data", "methods")


def valid_part(data: Mapping[str, Any]) -> Grid | None:
    """The grid without its invalid keys: invalid lists become empty, other keys get their defaults.

    Only for checking the rest, never to be run. None if nothing is certain.
    """
    given = dict(data)
    methods = given.get("methods")
    if isinstance(methods, list | tuple):
        given["methods"] = [name for name in methods if _is_method(name)]
    wrong = {name for name in _LISTS if name in given and not given[name]}
    wrong |= {"methods"} - given.keys()
    for _ in range(2):  # once for the keys, once for the grid without invalid keys
        usable = {name: value for name, value in given.items() if name not in wrong}
        try:
            grid = Grid.model_validate({**_STAND_INS, **usable})
        except ValidationError as error:
            places = [item["loc"] for item in error.errors()]
            if not all(places):
                return None
            wrong |= {str(place[0]) for place in places}
        else:
            return grid.model_copy(update={name: () for name in _LISTS if name in wrong})
    return None


def _is_method(name: object) -> bool:
    try:
        check_method(str(name))
    except InputError:  # reported by ``grid_of``
        return False
    return True
