"""Study ``factorial``: what of the boundary gain comes from the residuals' source, and what from the choice of layers.

Published comparisons change several things at once (methods.md, section 2). Here every cell is a run on the same
facts, with the same contexts, target settings and statistics, and cells differ in exactly what their names say. The
residual's source and the set of layers cannot be crossed completely (over one layer nothing is spread), so the design
is two complete factorials that share cells: all sources over both ends and over all layers, and all sets of layers
with computed residuals; each crossed with history, ridge and key contexts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, Final

from errata.analysis.contrasts import Cell
from errata.analysis.edited import edited
from errata.analysis.factorial_findings import findings_of
from errata.analysis.study import AnalysisSettings, Kept, Piece, Study, Workbench
from errata.analysis.titles import TITLES
from errata.analysis.variance import check_statistics
from errata.batch_record import BatchRecord
from errata.benchmark.sequential import Examination, Measurement, examine
from errata.edit import Editor
from errata.errors import Fault, FaultsError
from errata.preparation import Prepared
from errata.recipe import Recipe
from errata.targets.contexts import generate_prefixes

# The residual's source -> the schedule that gives it to all layers of a recipe.
SOURCES: Final[Mapping[str, str]] = {
    "spread": "even",
    "sqrt-spread": "sqrt",
    "computed": "own",
    "replay": "replay",
}
# Solver -> its ridge.
RIDGES: Final[Mapping[str, str]] = {"least_squares": "ridge", "null_space": "l2"}


def layer_sets(layers: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The sets of critical layers that are compared; of two layers, all are the two ends."""
    first, last = layers[0], layers[-1]
    sets = {"first": (first,), "last": (last,), "both": (first, last), "all": tuple(layers)}
    if len(layers) == 2:
        del sets["all"]
    return sets


def designs_of(recipe: Recipe, settings: AnalysisSettings) -> dict[str, dict[str, list[str]]]:
    """The two complete factorials: name -> factor -> levels."""
    sets = layer_sets(recipe.layers)
    contexts = recipe.contexts
    averaged = contexts.keys != "bare" and contexts.openers and contexts.per_opener
    common = {
        "history": ["off", "on"],
        "ridge": [f"{ridge:g}" for ridge in settings.ridges],
        "contexts": ["averaged", "bare"] if averaged else ["bare"],
    }
    return {
        "source": {"source": list(SOURCES), "layers": [name for name in sets if len(sets[name]) > 1], **common},
        "layers": {"source": ["computed"], "layers": list(sets), **common},
    }


def cells_of(designs: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Cell]:
    """All cells of the designs, each once; those that differ in their history alone stand together, with it first."""
    found: list[Cell] = []
    for factors in designs.values():
        for levels in product(*(list(levels) for levels in factors.values())):
            cell = dict(zip(factors, levels, strict=True))
            if cell not in found:
                found.append(cell)
    names = list(next(iter(designs.values())))
    order = [name for name in names if name != "history"]
    known = {name: list(dict.fromkeys(cell[name] for cell in found)) for name in order}
    return sorted(found, key=lambda cell: (*(known[name].index(cell[name]) for name in order), cell["history"] != "on"))


def recipe_of(recipe: Recipe, settings: AnalysisSettings, cell: Cell) -> Recipe:
    """The recipe of a cell: what its levels do not name is as it was.

    Raises:
        FaultsError: if the recipe does not hold with them.
    """
    ridge = RIDGES[recipe.solver.kind]
    solver = recipe.solver.model_dump()
    contexts = recipe.contexts.model_dump()
    return recipe.with_choices(
        {
            "schedule": SOURCES[cell["source"]],
            "layers": layer_sets(recipe.layers)[cell["layers"]],
            "solver": {**solver, ridge: solver[ridge] * float(cell["ridge"]), "history": cell["history"] == "on"},
            "contexts": {**contexts, "keys": "bare"} if cell["contexts"] == "bare" else contexts,
            "batch_size": settings.batch_size,
        }
    )


def name_of(cell: Cell, seed: int) -> str:
    return (
        f"seed-{seed}-{cell['source']}-{cell['layers']}-ridge-{cell['ridge']}-{cell['contexts']}-"
        f"history-{cell['history']}"
    )


@dataclass(slots=True)
class _Shared:
    """What cells have in common, computed once a process.

    Attributes:
        prefixes: seed -> contexts, generated on the unedited model.
        first: the last cell with history, and what its first batch did.
    """

    bench: Workbench
    prefixes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    first: tuple[str, BatchRecord] | None = None

    def prepared(self, cell: Cell, seed: int) -> Prepared:
        """For all critical layers, whatever the cell's sets: neither that nor history nor the seed is in a solver's
        state before the first batch, which is by far the most of what is prepared."""
        bench = self.bench
        if seed not in self.prefixes:
            self.prefixes[seed] = generate_prefixes(bench.model, bench.recipe_for(seed).contexts)
        plain = {**cell, "source": "computed", "layers": "all" if len(bench.layers) > 2 else "both", "history": "on"}
        recipe = recipe_of(bench.recipe, bench.settings, {**plain, "contexts": "bare"})
        return replace(bench.prepared(recipe), prefixes=self.prefixes[seed])

    def measure(self, cell: Cell, seed: int) -> Kept:
        """A run and what the model says behind it."""
        bench = self.bench
        material = bench.materials[seed]
        facts = material.facts.facts
        recipe = recipe_of(bench.recipe_for(seed), bench.settings, cell)
        editor = Editor(bench.model, recipe, cache=bench.cache, report=bench.report, prepared=self.prepared(cell, seed))
        # Before the first batch there is no history, so a run without one begins exactly as the run with it did.
        with_history = name_of({**cell, "history": "on"}, seed)
        known = []
        if cell["history"] == "off" and self.first is not None and self.first[0] == with_history:
            known = [replace(self.first[1], keys={})]
        with edited(editor, facts, known) as made:
            found = examine(bench.model, Examination(facts, material.untouched, material.prose), report=bench.report)
        self.first = (with_history, made[0]) if cell["history"] == "on" else None
        return {"cell": dict(cell), "seed": str(seed), **_kept(found)}

    def measure_before(self, seed: int) -> Kept:
        bench = self.bench
        material = bench.materials[seed]
        asked = Examination(material.facts.facts, material.untouched, material.prose)
        found = examine(bench.model, asked, report=bench.report)
        designs = designs_of(bench.recipe, bench.settings)
        return {"designs": designs, "layers": list(bench.layers), "seed": str(seed), **_kept(found)}


def _kept(found: Measurement) -> dict[str, Any]:
    """What each fact (subject, text) gave: metric -> cluster -> [sum, number of prompts]."""
    sums: dict[str, dict[str, list[float]]] = {}
    for record in found.records:
        entry = sums.setdefault(str(record.metric), {}).setdefault(record.fact, [0.0, 0])
        entry[0] += record.value
        entry[1] += 1
    return {"sums": sums, "perplexity": None if found.perplexity is None else asdict(found.perplexity)}


def _pieces(bench: Workbench) -> list[Piece]:
    shared = _Shared(bench)
    cells = cells_of(designs_of(bench.recipe, bench.settings))
    found = []
    for seed in bench.settings.seeds:
        found.append(Piece(f"seed-{seed}-before", partial(shared.measure_before, seed)))
        found += [Piece(name_of(cell, seed), partial(shared.measure, cell, seed)) for cell in cells]
    return found


def check_factorial(recipe: Recipe, settings: AnalysisSettings) -> None:
    """Raises MissingExtraError without statsmodels, FaultsError for everything that the design cannot be made with."""
    check_statistics()
    faults = []
    if settings.count <= settings.batch_size:
        what = f"{settings.count} facts are one batch of {settings.batch_size}, and history is of earlier batches"
        faults.append(Fault("count", what, "Give more facts, or smaller batches"))
    if len(set(settings.seeds)) < len(settings.seeds):
        faults.append(Fault("seeds", "a seed stands there twice", "Name each once"))
    ridges = [f"{ridge:g}" for ridge in settings.ridges]
    if not ridges or len(set(ridges)) < len(ridges) or any(not ridge > 0 for ridge in settings.ridges):
        what = f"expected different positive factors, got {list(settings.ridges)}"
        faults.append(Fault("ridges", what, "Give for instance 1 and 4"))
    elif recipe.solver.kind not in RIDGES:
        what = f"the solver {recipe.solver.kind!r} has not both a ridge and a history"
        faults.append(Fault("recipe", what, f"Give a recipe with {' or '.join(RIDGES)}, such as that of memit"))
    elif len(recipe.layers) < 2:
        what = "it has one critical layer: nothing is spread, and there are no two ends"
        faults.append(Fault("recipe", what, "Give a recipe with several layers"))
    else:
        reasons: dict[str, None] = {}
        for cell in cells_of(designs_of(recipe, settings)):
            try:
                recipe_of(recipe, settings, cell)
            except FaultsError as error:
                reasons |= dict.fromkeys(fault.what for fault in error.faults)
        faults += [Fault("recipe", reason, "Give a recipe that all cells can be made of") for reason in reasons]
    if faults:
        raise FaultsError("the factorial", faults)


FACTORIAL = Study(
    name="factorial",
    title=TITLES["factorial"],
    shows="Runs that differ in one thing at a time: where residuals come from (spread, √-spread, computed at each "
    "layer, carried forward by replay), which layers are written (first, last, both ends, all), history, ridge and key "
    "contexts. An analysis of variance tells how much of the variation between runs goes with each factor and each "
    "pair of them; effects with intervals tell how large they are; and the gain from (spread, all layers) to "
    "(computed, both ends) is taken apart into source and layers.",
    units="Shares of 1 (accuracies and successes), their harmonic mean (score), natural logarithm of the perplexity "
    "over the unedited model's. Sums of squares in the square of that; shares of variance (η²) of 1. Intervals of "
    "effects are by bootstrap over facts, the same facts in all cells, given these runs; F and p are of cells × seeds "
    "against what main effects, two-way interactions and the seed leave.",
    source="ours: in published tables history, ridge and number of layers change together with the residual",
    uses=("count", "batch_size", "ridges"),
    pieces=_pieces,
    findings=findings_of,
    check=check_factorial,
    defaults={"count": 40, "batch_size": 10, "seeds": (0, 1)},
)
