"""From the options of ``errata bench`` to its cells: parsing, data, validation before loading, and time estimates."""

from __future__ import annotations

import shlex
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from errata.analysis.cost import SearchRows, search_flops
from errata.benchmark.campaign import Campaign, Undefined
from errata.benchmark.cell_files import CellSpec
from errata.benchmark.collect import CellSummary, read_finished
from errata.benchmark.data import UNTOUCHED, BenchmarkData, data_name, others_untouched, write_data
from errata.benchmark.grid import DataEntry, Grid, ModelEntry, Variant, data_entry, placed_data, variants
from errata.benchmark.measurements import check_measurements, measurements_of
from errata.cli.model_options import (
    PROSE,
    check_facts,
    error_context,
    is_lab,
    outline_of,
    placement,
    shipped_sentences,
)
from errata.cli.recipe_options import read_recipe_for, read_settings_for
from errata.cli.terminal import console, echo, warn
from errata.datasets.reading import DatasetRecords, open_dataset, read_dataset
from errata.datasets.records import Loaded
from errata.datasets.registry import DATASETS
from errata.editing.recipe import Recipe
from errata.editing.recipe_files import read_file
from errata.editors.registry import LOCATE_THEN_EDIT
from errata.editors.table import EDITOR_NAMES, EditorSettings
from errata.errors import Fault, FaultsError, InputError, collect_errors
from errata.facts.fact import Fact, FactSet
from errata.facts.questions import read_questions, text_lines
from errata.models.loading import Outline
from errata.models.size import ModelSize
from errata.report.bench_run import by_cause
from errata.report.page import duration
from errata.report.tables import comparison_tables
from errata.results.records import read_results
from errata.statistics.settings import NAMED_CORPORA
from errata.utils.text import counted, listed


def entries_of(
    text: str | None, entry_of: Callable[[str], Any], grid_file: Any, shared: Mapping[str, Any]
) -> list[Any] | None:
    """The named entries, else those of the grid file, each with the shared options; None without names and options."""
    shared = {name: value for name, value in shared.items() if value is not None}
    if text is not None:
        entries: list[Any] = [entry_of(name) for name in names_in(text)]
    elif shared:
        entries = list(grid_file) if isinstance(grid_file, list) else [grid_file]
    else:
        return None
    return [{**entry, **shared} if isinstance(entry, dict) else entry for entry in entries]


def absolute(path: Path | str) -> str:
    """The absolute path, so that the benchmark can be resumed from another directory."""
    return str(Path(path).absolute())


def absolute_if_given(path: Path | None) -> str | None:
    """The absolute path of an option; None without one."""
    return None if path is None else absolute(path)


def named_data(text: str) -> Any:
    """Expand ``NAME``, ``NAME=FILE`` or the user's own file, with an absolute path."""
    return placed_data(data_entry(text), absolute)


def absolute_corpus(name: str) -> str:
    """The name of a corpus of errata, or the absolute path of a file."""
    return name if name in NAMED_CORPORA else absolute(name)


def measures_of(parts: list[str], **options: dict[str, Any]) -> dict[str, Any] | None:
    """The named measurements and those with options; None without any."""
    given = {
        part: {name: value for name, value in values.items() if value is not None} for part, values in options.items()
    }
    given = {part: values for part, values in given.items() if values}
    names = list(dict.fromkeys([*parts, *given]))
    return {"parts": names, "options": given} if names else None


def judge_of(url: str | None, model: str | None, key: str | None) -> dict[str, Any] | None:
    if url is None:
        if lonely := [name for name, value in (("--judge-model", model), ("--judge-key", key)) if value]:
            raise InputError(
                f"{lonely[0]} needs --judge", remedy="Give the endpoint of the judge", code="OPTION_MISSING"
            )
        return None
    if model is None:
        raise InputError("--judge needs --judge-model", remedy="Give the model of the judge", code="OPTION_MISSING")
    return {"base_url": url, "model": model, "key_variable": key}


def names_in(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def number_or_text(text: str) -> float | str:
    """The number that a text is, or the text, which the check of the grid refuses."""
    try:
        return float(text)
    except ValueError:
        return text


def seeds_named(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(
            f"--seeds {text!r} is neither a number nor a list of numbers",
            remedy="Write 3 or 7,8,9",
            code="SEEDS_INVALID",
        ) from error
    if found == [0] and "," not in text:
        raise InputError("--seeds 0 means zero seeds", remedy="Use '0,' for seed 0", code="SEEDS_INVALID")
    return found[0] if len(found) == 1 and "," not in text else found


LAB = "lab"
FAULTS_SHOWN = 20  # of one data set, so that other errors remain visible
SPARED = 200  # people of the lab's world that are never edited


@dataclass(frozen=True, slots=True)
class WholeSet:
    """A data set, read once: all of its facts, and the records to sample from."""

    loaded: Loaded
    records: DatasetRecords


def whole_set(entry: DataEntry) -> WholeSet | None:
    """Read a whole data set; None for the lab's, which is generated on demand.

    Raises:
        InputError, FaultsError: if it cannot be read, or has no facts.
    """
    if entry.name == LAB:
        return None
    try:
        records = open_dataset(entry.name, entry.path)
        loaded = records.select()
    except FaultsError as error:
        if len(error.faults) <= FAULTS_SHOWN:
            raise
        given = shlex.join([entry.name, *([] if entry.path is None else [entry.path])])
        what = f"{counted(len(error.faults), 'fault')} in {error.subject}; the first one: {error.faults[0]}"
        raise InputError(what, remedy=f"errata data check {given} lists them", code=error.code) from error
    if not loaded.facts:
        raise InputError(
            f"the data set {entry.label!r} has no facts to edit",
            remedy="Use data sets of texts as --prose",
            code="DATASET_WITHOUT_FACTS",
        )
    return WholeSet(loaded, records)


def prose_of(name: str) -> tuple[str, ...]:
    """Texts of a data set (``NAME`` or ``NAME=FILE``), or the lines of a file."""
    dataset, _, path = name.partition("=")
    if dataset in DATASETS:
        if texts := read_dataset(dataset, path or None).texts:
            return texts
        raise InputError(
            f"the data set {dataset!r} has no texts",
            remedy="Give me-ppl, or a file with one text per line",
            code="DATASET_WITHOUT_TEXTS",
        )
    lines = text_lines(Path(name), f"--prose {name}", remedy="Give a file with one text per line")
    if texts := tuple(line for line in lines if line.strip()):
        return texts
    raise InputError(f"--prose {name} is empty", remedy="Give a file with one text per line", code="FILE_EMPTY")


def material_of(
    model: str, entry: DataEntry, whole: WholeSet | None, prose: tuple[str, ...] | None, edits: int, seed: int
) -> BenchmarkData:
    """The facts of a seed, questions about other subjects, and texts for perplexity.

    Args:
        model: decides the default texts.

    Raises:
        InputError: if there are too few facts, or the questions cannot be read.
    """
    given = read_questions(None if entry.untouched is None else Path(entry.untouched))
    if prose is None:
        prose = default_prose(is_lab(model))
    if whole is not None:
        selected = whole.records.select(count=edits, seed=seed)
        untouched = others_untouched(whole.loaded.facts, selected.facts, seed=seed) if given is None else tuple(given)
        return BenchmarkData(selected.facts, untouched, prose, selected.notes, selected.concepts)
    from errata.lab.package import lab_world
    from errata.lab.tasks import lab_facts, untouched_questions

    world = lab_world()
    try:
        made = FactSet(tuple(lab_facts(world, edits, seed=seed, spare=SPARED)), "the lab's world")
    except ValueError as error:
        raise InputError(
            f"too many facts for the lab: {error}", remedy="Use fewer facts", code="TOO_MANY_FACTS"
        ) from error
    subjects = [fact.subject for fact in made]
    asked = untouched_questions(world, subjects, UNTOUCHED, seed=seed) if given is None else given
    return BenchmarkData(made, tuple(asked), prose)


def default_prose(lab: bool) -> tuple[str, ...]:
    """Held-out texts of the lab's world, or the shipped sentences."""
    if not lab:
        return tuple(shipped_sentences())
    from errata.lab.corpus import held_out_prose

    return tuple(held_out_prose(PROSE))


@dataclass(slots=True)
class Plan:
    """The cells and inputs of a grid.

    Attributes:
        specs: its cells, in order.
        undefined: invalid combinations.
        materials: file name -> material.
        outlines: model -> its outline.
    """

    specs: list[CellSpec] = field(default_factory=list)
    undefined: list[Undefined] = field(default_factory=list)
    materials: dict[str, BenchmarkData] = field(default_factory=dict)
    outlines: dict[str, Outline] = field(default_factory=dict)

    def write_materials(self, folder: Path) -> None:
        for name, material in self.materials.items():
            if write_data(material, folder).name != name:
                raise AssertionError(f"the material {name} has changed since it was named")


def plan_of(grid: Grid, *, trust_remote_code: bool = False) -> Plan:
    """Resolve a grid into cells without loading weights.

    Args:
        trust_remote_code: whether code that comes with models may run; overrides the grid.

    Raises:
        InputError, FaultsError: all errors in the models, recipes, data sets and measurements of the grid.
    """
    plan = Plan()
    recipes: dict[tuple[str, str], Recipe | EditorSettings] = {}
    outlines = plan.outlines
    sets: dict[DataEntry, WholeSet | None] = {}
    prose: tuple[str, ...] | None = None
    with collect_errors("the grid") as part:
        with part:
            check_measurements(grid.measures.parts, grid.measures.options)
        for model in grid.models:
            with part:
                placement(model.device, model.dtype)
                outlines[model.name] = outline_of(model.name, trust_remote_code=trust_remote_code)
            path = None if model.recipe is None else Path(model.recipe)
            for method in grid.methods:
                with part:
                    base = _settings_for(model, method, path, grid.batch_size)
                    for variant in variants(grid):
                        if variant.method == method and (recipe := _varied(plan, variant, base)) is not None:
                            recipes[model.name, variant.label] = recipe
        for entry in grid.data:
            with part:
                sets[entry] = whole_set(entry)
        with part:
            prose = None if grid.prose is None else prose_of(grid.prose)
    if not recipes and grid.models and grid.methods:
        raise _all_invalid(plan)
    for (name, label), recipe in list(recipes.items()):
        if isinstance(recipe, Recipe):
            with error_context(f"{label}: "):
                outlines[name].check_layers(recipe.layers)
    chosen = {
        (model.name, entry, seed): material_of(model.name, entry, sets[entry], prose, grid.edits, seed)
        for model in grid.models
        for entry in grid.data
        for seed in grid.seeds
    }
    for (name, _, _), material in chosen.items():
        check_facts(material.facts, outlines[name])
    _add_cells(plan, grid, recipes, chosen)
    if not plan.specs:
        raise _all_invalid(plan)
    return plan


def _all_invalid(plan: Plan) -> FaultsError:
    reasons = [
        Fault(entry.label, entry.reason.removesuffix("."), "", code="COMBINATION_INVALID") for entry in plan.undefined
    ]
    return FaultsError("the grid, all of whose combinations are invalid", reasons)


def unasked(grid: Grid, plan: Plan) -> list[tuple[str, str, str]]:
    """(measurement, data set, reason) for each further measurement that a data set has no questions for."""
    found = []
    for part in measurements_of(grid.measures.parts):
        for label in dict.fromkeys(spec.data.label for spec in plan.specs):
            names = dict.fromkeys(spec.material for spec in plan.specs if spec.data.label == label)
            reasons = [part.impossible(plan.materials[name]) for name in names]
            if reasons[0] is not None and None not in reasons:
                found.append((part.name, label, reasons[0]))
    return found


def _add_cells(
    plan: Plan,
    grid: Grid,
    recipes: Mapping[tuple[str, str], Recipe | EditorSettings],
    chosen: Mapping[tuple[str, DataEntry, int], BenchmarkData],
) -> None:
    """Add cells seed by seed, so that every method has results early."""
    for model in grid.models:
        for entry in grid.data:
            for seed in grid.seeds:
                material = chosen[model.name, entry, seed]
                file = data_name(material)
                plan.materials[file] = material
                for variant in variants(grid):
                    recipe = recipes.get((model.name, variant.label))
                    if recipe is None or _lacks_fields(plan, variant.label, recipe, entry, material.facts):
                        continue
                    editor = LOCATE_THEN_EDIT if isinstance(recipe, Recipe) else variant.method
                    plan.specs.append(
                        CellSpec(
                            model=model,
                            data=entry,
                            label=variant.label,
                            editor=editor,
                            settings=_with_seed(recipe, seed).model_dump(mode="json"),
                            seed=seed,
                            material=file,
                            eval_every=grid.eval_every,
                            sample=grid.sample,
                            collapse=grid.collapse,
                            measures=grid.measures,
                        )
                    )


def _lacks_fields(
    plan: Plan, label: str, recipe: Recipe | EditorSettings, entry: DataEntry, facts: Sequence[Fact]
) -> bool:
    """Whether facts lack a field that the editor requires; recorded in the plan, once for all seeds."""
    needs = frozenset() if isinstance(recipe, Recipe) else recipe.needs
    missing = sorted(name for name in needs if not all(getattr(fact, name) for fact in facts))
    if missing:
        found = Undefined(f"{label} on {entry.label}", f"facts lack {listed(missing)}, which the editor needs")
        if found not in plan.undefined:
            plan.undefined.append(found)
    return bool(missing)


def _settings_for(model: ModelEntry, method: str, path: Path | None, batch_size: int) -> Recipe | EditorSettings:
    """The recipe of a method, or the settings of an editor.

    Args:
        path: of the model's recipe file; an editor that it does not name takes the settings shipped for the model.
    """
    if method not in EDITOR_NAMES:
        return read_recipe_for(
            model.name, method, path, batch_size=batch_size, corpus=model.corpus, statistics=model.statistics
        )
    own = path if path is not None and method in read_file(path).editors else None
    return read_settings_for(method, model.name, own, batch_size=batch_size)


def _with_seed(settings: Recipe | EditorSettings, seed: int) -> Recipe | EditorSettings:
    if isinstance(settings, Recipe):
        return settings.model_copy(update={"contexts": settings.contexts.model_copy(update={"seed": seed})})
    return settings.model_copy(update={"seed": seed})


def _varied(plan: Plan, variant: Variant, base: Recipe | EditorSettings) -> Recipe | EditorSettings | None:
    """The recipe with the variant's choices; None, recorded in the plan, if the combination is invalid."""
    try:
        return variant.applied(base)
    except InputError as error:
        if not variant.choices:
            raise
        plan.undefined.append(Undefined(variant.label, " ".join(str(error).split())))
        return None


_SAMPLE = 50  # facts of a cell whose tokens are counted to estimate those of all facts
_ROWS, _SECONDS = 256, 0.2  # rows of the timed matrix product, and duration of the timing


def time_left(campaign: Campaign, pending: Sequence[Path]) -> str:
    """Remaining time, extrapolated from finished cells with readable results; empty if there are none."""
    seconds = []
    for cell in filter(campaign.is_done, campaign.cells):
        with suppress(InputError):
            seconds.append(CellSummary.of(read_finished(campaign, cell)).seconds)
    if not seconds or not pending:
        return ""
    each = sum(seconds) / len(seconds)
    return (
        f"Finished cells took {duration(each)} on average: about {duration(each * len(pending))} left, one "
        f"cell at a time."
    )


def time_needed(plan: Plan) -> str:
    """Estimated time of all target searches, which dominate the time of locate-then-edit, on this machine."""
    operations = search_operations(plan)
    if not operations:
        return "The time of these editors is not estimated."
    seconds = 0.0
    for spec in {spec.model.name: spec for spec in plan.specs}.values():
        where = placement(spec.model.device, spec.model.dtype)
        outline = plan.outlines[spec.model.name]
        device = where["device"]
        if not isinstance(device, torch.device):  # one of several
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        speed = measured_speed(outline.size, device, where["dtype"] or outline.dtype)
        seconds += operations.get(spec.model.name, 0.0) / speed
    return (
        f"Estimated time of the target searches of all cells, one cell at a time: about {duration(seconds)} "
        f"({sum(operations.values()):.2g} operations at this machine's speed of matrix products). Key statistics and "
        "measurements are not included."
    )


def search_operations(plan: Plan) -> dict[str, float]:
    """Model -> floating-point operations of all target searches in its cells, without early stopping."""
    found: dict[str, float] = {}
    for spec in plan.specs:
        if spec.editor != LOCATE_THEN_EDIT:
            continue
        outline, recipe = plan.outlines[spec.model.name], spec.recipe
        facts = plan.materials[spec.material].facts.facts
        rows = SearchRows.of(outline.tokenizer, facts[:_SAMPLE], recipe.contexts)
        layers = {step.target_layer for step in recipe.steps if step.follows is None}
        flops = sum(search_flops(outline.size, rows, layer, recipe.target.steps) for layer in layers)
        found[spec.model.name] = found.get(spec.model.name, 0.0) + flops * len(facts) / len(facts[:_SAMPLE])
    return found


def measured_speed(size: ModelSize, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second in a matrix product of the size of the model's MLP."""
    rows = torch.ones(_ROWS, size.width, device=device, dtype=dtype)
    matrix = torch.ones(size.width, size.mlp_width, device=device, dtype=dtype)
    (rows @ matrix).sum().item()  # warm-up
    started, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < _SECONDS:
        for _ in range(4):
            product = rows @ matrix
        product[0, 0].item()  # synchronises with the device
        count += 4
    return 2.0 * _ROWS * size.width * size.mlp_width * count / taken


def show_plan(grid: Grid, plan: Plan) -> None:
    """Print the number of cells, and what is skipped."""
    batches = -(-grid.edits // grid.batch_size)
    echo(
        f"{counted(len(plan.specs), 'cell')}: {counted(len(grid.models), 'model')}, "
        f"{counted(len(grid.data), 'data set')}, {counted(len({spec.label for spec in plan.specs}), 'method')}, "
        f"{counted(len(grid.seeds), 'seed')}; each {grid.edits} facts in {counted(batches, 'batch')}"
    )
    reasons: dict[str, list[str]] = {}
    for entry in plan.undefined:
        reasons.setdefault(entry.reason, []).append(entry.label)
    for reason, labels in reasons.items():
        warn(f"skipped, invalid combination: {reason}")
        for label in labels:
            warn(_hanging(label))
    for measurement, data, reason in unasked(grid, plan):
        warn(f"{measurement} cannot be measured on {data}: {reason}")


def list_cells(grid: Grid, plan: Plan) -> None:
    """Print models and data sets with their seeds, followed by one line per method."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = {}
    for spec in plan.specs:
        groups.setdefault((spec.model.name, spec.data.label), {}).setdefault(spec.label, []).append(spec.seed)
    tables: dict[tuple[str, ...], list[str]] = {}  # usually the same for all models and data sets
    for (model, data), labels in groups.items():
        seeds = next(iter(labels.values()))
        which = f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
        tables.setdefault(tuple(labels), []).append(f"{model}, {data}, {which}:")
    for shown, heads in tables.items():
        for head in heads:
            echo(head)
        for line in _lines(grid, shown):
            echo(line)


def show_results(campaign: Campaign, summary: Path, records: Path) -> None:
    """Print the tables, collapsed and failed cells, and the locations of the result files."""
    results = read_results(summary)
    screen = console()
    groups = dict.fromkeys((row["model"], row["data"]) for row in results.rows)
    for model, data in groups:
        rows = [row for row in results.rows if (row["model"], row["data"]) == (model, data)]
        rows = [row for row in rows if row["when"] != "during"]
        for table in comparison_tables(rows, title=f"{model}, {data}", width=screen.width):
            screen.print(table)
            echo("")
    for cell in results.about["cells"]:
        if cell["collapsed_at"]:
            where = f"{cell['method']}, seed {cell['seed']}"
            warn(f"collapse: {where}: stopped before batch {cell['collapsed_at']} after {cell['edits']} facts")
        for note in cell["notes"]:
            warn(f"{cell['id']}: {note}")
    for cause, cells in by_cause((cell["id"], cell["failure"]) for cell in results.about["cells"]).items():
        count = f" ({len(cells)} cells)" if len(cells) > 1 else ""
        warn(f"failed{count}: {', '.join(cells)}: {cause}")
    echo(f"Wrote {summary} and {records}. Create a report with: errata report {campaign.directory}")


def _lines(grid: Grid, labels: Sequence[str]) -> list[str]:
    """Methods with their varied fields in columns; plain labels if the columns are too wide."""
    known = {variant.label: variant for variant in variants(grid)}
    table = [["method", *grid.vary]] if grid.vary else []
    table += [[known[label].method, *known[label].shown.values()] for label in labels]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in table
    ]
    if max(map(len, lines)) <= console().width:
        return lines
    return [_hanging(label) for label in labels]


def _hanging(text: str) -> str:
    """Wrapped at spaces with a hanging indent."""
    return textwrap.fill(
        text,
        console().width,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
