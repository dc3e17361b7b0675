"""From a grid to its cells: recipes, data sets and models looked at, everything wrong told at once, nothing loaded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from errata.benchmark.campaign import Undefined
from errata.benchmark.cell_spec import CellSpec
from errata.benchmark.grid import DataEntry, Grid, ModelEntry, Variant, variants
from errata.benchmark.material import (
    UNTOUCHED,
    Material,
    material_name,
    others_untouched,
    write_material,
)
from errata.benchmark.measurements import check_parts, parts_of
from errata.datasets.loaded import Loaded
from errata.datasets.read import read_dataset
from errata.datasets.registry import DATASETS
from errata.errors import Fault, FaultsError, InputError, told_together
from errata.facts import FactSet
from errata.models.outline import Outline
from errata.recipe import Recipe
from errata.verbs.console import outline_of, placement
from errata.verbs.models import check_facts, is_lab
from errata.verbs.numbers import read_numbers
from errata.verbs.questions import PROSE, read_questions, shipped_sentences

LAB = "lab"
FAULTS_SHOWN = 20  # of one data set; what else is wrong with the grid would be lost among more
SPARED = 200  # people of the lab's world that no run edits


@dataclass(slots=True)
class Plan:
    """What a grid comes to.

    Attributes:
        specs: its cells, in order.
        undefined: combinations that mean nothing.
        materials: file name -> material.
    """

    specs: list[CellSpec] = field(default_factory=list)
    undefined: list[Undefined] = field(default_factory=list)
    materials: dict[str, Material] = field(default_factory=dict)

    def write_materials(self, folder: Path) -> None:
        for name, material in self.materials.items():
            if write_material(material, folder).name != name:
                raise AssertionError(f"the material {name} has changed since it was named")


def plan_of(grid: Grid) -> Plan:
    """Raises InputError, FaultsError: whatever is wrong with any model, recipe, data set or measurement of the grid."""
    plan = Plan()
    recipes: dict[tuple[str, str], Recipe] = {}
    outlines: dict[str, Outline] = {}
    sets: dict[DataEntry, Loaded | None] = {}
    prose: tuple[str, ...] | None = None
    with told_together("the grid") as part:
        with part:
            check_parts(grid.measures.parts, grid.measures.options)
        for model in grid.models:
            with part:
                placement(model.device, model.dtype)
                outlines[model.name] = outline_of(model.name, trust_remote_code=model.trust_remote_code)
            path = None if model.recipe is None else Path(model.recipe)
            for method in grid.methods:
                with part:
                    base = read_numbers(model.name, method, path, batch_size=grid.batch_size, corpus=model.corpus)
                    for variant in variants(grid):
                        if variant.method == method and (recipe := _varied(plan, variant, base)) is not None:
                            recipes[model.name, variant.label] = recipe
        for entry in grid.data:
            with part:
                sets[entry] = _whole_set(entry)
        with part:
            prose = None if grid.prose is None else _prose(grid.prose)
    if not recipes and grid.models and grid.methods:
        reasons = [Fault(entry.label, entry.reason, "") for entry in plan.undefined]
        raise FaultsError("the grid, no combination of which means anything,", reasons)
    for (name, label), recipe in list(recipes.items()):
        try:
            outlines[name].check_layers(recipe.layers)
        except InputError as error:
            raise InputError(f"{label}: {error.what}", remedy=error.remedy) from error
    chosen = {
        (model.name, entry, seed): _material(model, entry, sets[entry], prose, grid.edits, seed)
        for model in grid.models
        for entry in grid.data
        for seed in grid.seeds
    }
    for (name, _, _), material in chosen.items():
        check_facts(material.facts, outlines[name])
    _add_cells(plan, grid, recipes, chosen)
    return plan


def unasked(grid: Grid, plan: Plan) -> list[tuple[str, str, str]]:
    """(measurement, data set, why) of each further measurement that can ask nothing of any material of a data set."""
    found = []
    for part in parts_of(grid.measures.parts):
        for label in dict.fromkeys(spec.data.label for spec in plan.specs):
            names = dict.fromkeys(spec.material for spec in plan.specs if spec.data.label == label)
            reasons = [part.nothing(plan.materials[name]) for name in names]
            if reasons[0] is not None and None not in reasons:
                found.append((part.name, label, reasons[0]))
    return found


def _add_cells(
    plan: Plan,
    grid: Grid,
    recipes: Mapping[tuple[str, str], Recipe],
    chosen: Mapping[tuple[str, DataEntry, int], Material],
) -> None:
    """Seed after seed, so that every method has some result early."""
    for model in grid.models:
        for entry in grid.data:
            for seed in grid.seeds:
                material = chosen[model.name, entry, seed]
                file = material_name(material)
                plan.materials[file] = material
                for variant in variants(grid):
                    recipe = recipes.get((model.name, variant.label))
                    if recipe is None:
                        continue
                    contexts = recipe.contexts.model_copy(update={"seed": seed})
                    plan.specs.append(
                        CellSpec(
                            model=model,
                            data=entry,
                            label=variant.label,
                            recipe=recipe.model_copy(update={"contexts": contexts}),
                            seed=seed,
                            material=file,
                            eval_every=grid.eval_every,
                            sample=grid.sample,
                            collapse=grid.collapse,
                            measures=grid.measures,
                        )
                    )


def _varied(plan: Plan, variant: Variant, base: Recipe) -> Recipe | None:
    """The recipe with the variant's choices; None, and noted, where they mean nothing for it."""
    try:
        return variant.applied(base)
    except InputError as error:
        if not variant.choices:
            raise
        plan.undefined.append(Undefined(variant.label, " ".join(str(error).split())))
        return None


def _whole_set(entry: DataEntry) -> Loaded | None:
    """All of a data set; None where it is made as it is needed."""
    if entry.name == LAB:
        return None
    try:
        loaded = read_dataset(entry.name, entry.path)
    except FaultsError as error:
        if len(error.faults) <= FAULTS_SHOWN:
            raise
        given = shlex.join([entry.name, *([] if entry.path is None else [entry.path])])
        what = f"{error.subject} has {len(error.faults):,} faults, of which the first is: {error.faults[0]}"
        raise InputError(what, remedy=f"errata data check {given} tells more") from error
    if not loaded.facts:
        raise InputError(f"the data set {entry.label!r} has no facts to edit", remedy="For texts, use --prose")
    return loaded


def _prose(name: str) -> tuple[str, ...]:
    """Texts of a data set (``NAME`` or ``NAME=FILE``), or the lines of a file."""
    dataset, _, path = name.partition("=")
    if dataset in DATASETS:
        if texts := read_dataset(dataset, path or None).texts:
            return texts
        raise InputError(f"the data set {dataset!r} has no texts", remedy="Give me-ppl, or a file with a text a line")
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prose {name} cannot be read: {error}", remedy="Give a file with a text a line") from error
    if texts := tuple(line for line in lines if line.strip()):
        return texts
    raise InputError(f"--prose {name} is empty", remedy="Give a file with a text a line")


def _material(
    model: ModelEntry, entry: DataEntry, whole: Loaded | None, prose: tuple[str, ...] | None, edits: int, seed: int
) -> Material:
    given = read_questions(None if entry.untouched is None else Path(entry.untouched))
    if prose is None:
        prose = _default_prose(is_lab(model.name))
    if whole is not None:
        drawn = read_dataset(entry.name, entry.path, count=edits, seed=seed)
        untouched = others_untouched(whole.facts, drawn.facts, seed=seed) if given is None else tuple(given)
        return Material(drawn.facts, untouched, prose, drawn.notes, drawn.concepts)
    from errata.lab.package import lab_world
    from errata.lab.tasks import lab_facts, untouched_questions

    world = lab_world()
    try:
        made = FactSet(tuple(lab_facts(world, edits, seed=seed, spare=SPARED)), "the lab's world")
    except ValueError as error:
        raise InputError(f"--edits: {error}", remedy="Lower --edits") from error
    subjects = [fact.subject for fact in made]
    asked = untouched_questions(world, subjects, UNTOUCHED, seed=seed) if given is None else given
    return Material(made, tuple(asked), prose)


def _default_prose(lab: bool) -> tuple[str, ...]:
    if not lab:
        return tuple(shipped_sentences())
    from errata.lab.texts import held_out_prose

    return tuple(held_out_prose(PROSE))
