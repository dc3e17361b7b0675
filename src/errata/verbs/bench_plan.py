"""From a grid to its cells: recipes, data sets and models looked at, everything wrong told at once, nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from errata.benchmark.campaign import Undefined
from errata.benchmark.cell_spec import CellSpec
from errata.benchmark.grid import DataEntry, Grid, Variant, variants
from errata.benchmark.material import Material, material_name, write_material
from errata.benchmark.measurements import check_parts, parts_of
from errata.errors import Fault, FaultsError, InputError, told_together
from errata.models.outline import Outline
from errata.recipe import Recipe
from errata.verbs.drawn import WholeSet, material_of, prose_of, whole_set
from errata.verbs.model_options import outline_of, placement
from errata.verbs.models import check_facts
from errata.verbs.numbers import read_numbers


@dataclass(slots=True)
class Plan:
    """What a grid comes to.

    Attributes:
        specs: its cells, in order.
        undefined: combinations that mean nothing.
        materials: file name -> material.
        outlines: model -> its outline.
    """

    specs: list[CellSpec] = field(default_factory=list)
    undefined: list[Undefined] = field(default_factory=list)
    materials: dict[str, Material] = field(default_factory=dict)
    outlines: dict[str, Outline] = field(default_factory=dict)

    def write_materials(self, folder: Path) -> None:
        for name, material in self.materials.items():
            if write_material(material, folder).name != name:
                raise AssertionError(f"the material {name} has changed since it was named")


def plan_of(grid: Grid, *, trust_remote_code: bool = False) -> Plan:
    """Everything that a grid comes to.

    Args:
        trust_remote_code: whether code that comes with models may run, whatever the grid says.

    Raises:
        InputError, FaultsError: whatever is wrong with any model, recipe, data set or measurement of the grid.
    """
    plan = Plan()
    recipes: dict[tuple[str, str], Recipe] = {}
    outlines = plan.outlines
    sets: dict[DataEntry, WholeSet | None] = {}
    prose: tuple[str, ...] | None = None
    with told_together("the grid") as part:
        with part:
            check_parts(grid.measures.parts, grid.measures.options)
        for model in grid.models:
            with part:
                placement(model.device, model.dtype)
                outlines[model.name] = outline_of(model.name, trust_remote_code=trust_remote_code)
            path = None if model.recipe is None else Path(model.recipe)
            for method in grid.methods:
                with part:
                    base = read_numbers(model.name, method, path, batch_size=grid.batch_size, corpus=model.corpus)
                    for variant in variants(grid):
                        if variant.method == method and (recipe := _varied(plan, variant, base)) is not None:
                            recipes[model.name, variant.label] = recipe
        for entry in grid.data:
            with part:
                sets[entry] = whole_set(entry)
        with part:
            prose = None if grid.prose is None else prose_of(grid.prose)
    if not recipes and grid.models and grid.methods:
        reasons = [Fault(entry.label, entry.reason, "") for entry in plan.undefined]
        raise FaultsError("the grid, no combination of which means anything,", reasons)
    for (name, label), recipe in list(recipes.items()):
        try:
            outlines[name].check_layers(recipe.layers)
        except InputError as error:
            raise InputError(f"{label}: {error.what}", remedy=error.remedy) from error
    chosen = {
        (model.name, entry, seed): material_of(model.name, entry, sets[entry], prose, grid.edits, seed)
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
