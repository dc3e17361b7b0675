"""Runs that studies look at: the facts of a seed edited with a method, and the model afterwards what it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from errata.analysis.study import Kept, Workbench
from errata.editing.batch import BatchRecord, solve_device
from errata.editing.keys import keys_and_bare
from errata.editing.methods import BOUNDARY_SUFFIX
from errata.editing.recipe import Recipe
from errata.editing.solvers.base import LayerSolver
from errata.editors.locate_then_edit import Editor
from errata.errors import Fault, FaultsError
from errata.facts.fact import Fact
from errata.models.likelihood import score
from errata.models.weights import Term
from errata.patches.patch import Patch

AfterBatch = Callable[[Sequence[Term], Sequence[Term]], None]
"""Called with a batch in the model: what the batch wrote, and all that the run has changed so far, shaped where the
recipe shapes whole runs."""

_SPREADING: Final = frozenset({"even", "sqrt"})  # schedules that divide one residual among several layers


def check_methods(bench: Workbench) -> None:
    """Raises FaultsError if a method of the settings has no recipe; names all of them."""
    faults = [
        Fault(f"methods: {method}", "there is no recipe of it for this model", "Leave it out, or give its recipe")
        for method in dict.fromkeys(bench.settings.methods)
        if method not in bench.recipes
    ]
    if faults:
        raise FaultsError("the study's settings", faults)


def runs_of(bench: Workbench) -> list[tuple[int, str]]:
    """Every seed with every method, in the order of the settings.

    Raises:
        FaultsError: see ``check_methods``.
    """
    check_methods(bench)
    methods = dict.fromkeys(bench.settings.methods)
    return [(seed, method) for seed in dict.fromkeys(bench.settings.seeds) for method in methods]


def run_name(seed: int, method: str) -> str:
    """The name of the piece that is about a run."""
    return f"seed-{seed}-{method}"


def run_recipe(bench: Workbench, seed: int, method: str) -> Recipe:
    """The method's recipe with the seed's contexts and the study's batch size."""
    recipe = bench.recipe_for(seed, bench.recipes[method])
    return recipe.model_copy(update={"batch_size": bench.settings.batch_size})


@contextmanager
def edited(
    bench: Workbench, seed: int, method: str, after_batch: AfterBatch = lambda written, total: None
) -> Iterator[Patch]:
    """Within this block all facts of the seed are in the model, edited in batches; behind it, and whatever fails, the
    model is bit for bit what it was.

    What the run prepares (contexts, factorised statistics) ends with it: several methods' would take several times
    d_in² numbers a layer.

    Raises:
        EditError, InputError: see ``Editor.apply``.
    """
    editor = Editor(bench.model, run_recipe(bench, seed, method), cache=bench.cache, report=bench.report)
    patch = editor.apply(
        bench.materials[seed].facts.facts, on_batch=lambda record: after_batch(record.terms, editor.patch().terms)
    )
    try:
        yield patch
    finally:
        patch.undo(bench.model)


def about_run(bench: Workbench, seed: int, method: str) -> dict[str, Any]:
    """What pieces keep of which run they are about; as JSON."""
    recipe = run_recipe(bench, seed, method)
    return {"seed": seed, "method": method, "schedule": recipe.schedule, "critical": list(recipe.layers)}


def facts_said(bench: Workbench, facts: Sequence[Fact]) -> list[int]:
    """1 for each fact that the model would say now, token by token; 0 for the others."""
    return [int(found.correct) for found in score(bench.model, [fact.pair(fact.target) for fact in facts])]


def boundary_pairs(kept: Iterable[Kept]) -> list[tuple[str, str]]:
    """The methods of some runs that differ in nothing but the schedule, as (boundary updates, spreading)."""
    schedules = {run["method"]: run["schedule"] for run in kept}
    return [
        (method, base)
        for method, schedule in schedules.items()
        if (base := method.removesuffix(BOUNDARY_SUFFIX)) != method
        and schedule == "boundary"
        and schedules.get(base) in _SPREADING
    ]


def of_method(kept: Mapping[str, Kept], method: str) -> dict[int, Kept]:
    """Seed -> what was kept of the method's run."""
    return {run["seed"]: run for run in kept.values() if run.get("method") == method}


NO_PAIR: Final = (
    "no method with boundary updates stands beside the one that spreads; name both, such as memit and memit+blue"
)


# ----------------------------------------------------------------------------------------------------
# A model that is edited for a while: for studies that compare many runs on one model in memory.


@contextmanager
def temporarily_edited(
    editor: Editor, facts: Sequence[Fact], known: Sequence[BatchRecord] = ()
) -> Iterator[list[BatchRecord]]:
    """Within it the model holds the facts, in batches of the recipe's size; behind it it is bit for bit what it was.

    Args:
        known: the first batches as another editor made them, if it could not but do there what this one would; they
            are put in and not made again.

    Yields:
        What each batch did that was not known, the keys that later batches keep in place among it.

    Raises:
        EditError, InputError: the model is what it was.
    """
    made: list[BatchRecord] = []
    size = editor.recipe.batch_size
    try:
        if known:
            editor.restore(known)
        for start in range(size * len(known), len(facts), size):
            made.append(editor.apply_batch(facts[start : start + size]))
        editor.show()
        yield made
    finally:
        editor.model.edits.remove(editor.patch().terms)


# ----------------------------------------------------------------------------------------------------
# A run of batches that stands in the model only while it is looked at, with what its solver remembers of it.


@dataclass(slots=True)
class EarlierBatches:
    """Batches by a recipe, with its own schedule; each is written once, however often the run is looked at.

    Attributes:
        facts: of all batches that may be asked for, in order.
        size: facts a batch.
    """

    bench: Workbench
    recipe: Recipe
    facts: Sequence[Fact]
    size: int
    _editor: Editor | None = None
    _states: Mapping[int, LayerSolver] = field(default_factory=dict)

    @contextmanager
    def written(self, count: int) -> Iterator[Mapping[int, LayerSolver]]:
        """Let the model be what the first ``count`` batches make of it, as a next batch would find it.

        Yields:
            layer -> the solver's state at every critical layer, with the history of the batches if its rule counts
            any. A layer that the recipe's schedule does not write remembers what it would if it did.

        Raises:
            ValueError: if more batches have been written already.
            EditError: as ``Editor``; the model is bit for bit what it was.
        """
        editor = self._opened()
        if count < len(editor.records):
            raise ValueError(f"{len(editor.records)} batches are written, {count} were asked for: ask in order")
        edits = self.bench.model.edits
        with edits.transaction():
            edits.add(self.terms)
            while len(editor.records) < count:
                self._write_next(editor)
            yield self._states
            edits.remove(self.terms)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The contexts of the run."""
        return self.bench.prepared(self.recipe).prefixes

    @property
    def terms(self) -> list[Term]:
        """What the batches that have been written changed."""
        return [] if self._editor is None else [term for record in self._editor.records for term in record.terms]

    def _opened(self) -> Editor:
        if self._editor is None:
            prepared = self.bench.prepared(self.recipe)
            bench = self.bench
            self._editor = Editor(bench.model, self.recipe, cache=bench.cache, report=bench.report, prepared=prepared)
            self._states = {layer: prepared.solvers[layer] for layer in bench.layers}
        return self._editor

    def _write_next(self, editor: Editor) -> None:
        start = len(editor.records) * self.size
        facts = self.facts[start : start + self.size]
        record = editor.apply_batch(facts)
        if not editor.solver.history:
            return
        model, layers = self.bench.model, [layer for layer in self._states if layer not in record.keys]
        keys = dict(record.keys)
        if layers:
            device = solve_device(model)
            others = keys_and_bare(model, facts, editor.prefixes, layers, self.recipe.contexts.keys)
            keys |= {layer: mean.to(device) for layer, (mean, _) in others.items()}
        self._states = {layer: state.remember(keys[layer]) for layer, state in self._states.items()}
