"""Runs that studies look at: the facts of a seed edited with a method, and the model afterwards what it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from errata.analysis.study import Kept, Workbench
from errata.edit import Editor
from errata.errors import Fault, FaultsError
from errata.evaluation.scoring import score
from errata.facts import Fact
from errata.methods import BOUNDARY_SUFFIX
from errata.models.weights import Term
from errata.patch import Patch
from errata.recipe import Recipe

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
