"""Study ``steps``: how many steps a target takes at each layer, and how many once earlier layers have been written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from errata.analysis.residuals import search_at
from errata.analysis.steps_findings import EVEN, UNEDITED, findings_of
from errata.analysis.study import AnalysisSettings, Kept, Piece, Study, Workbench
from errata.analysis.titles import TITLES
from errata.batch_record import BatchRecord
from errata.edit import Editor
from errata.errors import InputError, told_together
from errata.facts import Fact
from errata.methods import BOUNDARY_PAPER
from errata.preparation import solver_of
from errata.recipe import Recipe
from errata.schedules import SCHEDULES, Step
from errata.targets.search import Targets

_OWN_TARGETS: Final = ("boundary", "own")  # schedules in which each layer that is written has its own target


def summary(targets: Targets) -> dict[str, list[Any]]:
    """What a search says of each fact, as JSON.

    ``known``: it was done at δ = 0 (with the usual loss: the first loss is under the stop); ``converged``: it was done
    within the steps that there were.
    """
    state = (targets.z.double() - targets.delta.double()).norm(dim=0)
    return {
        "evaluations": targets.evaluations.tolist(),
        "converged": targets.done.tolist(),
        "known": (targets.done & (targets.evaluations == 1)).tolist(),
        "first loss": targets.first_loss.tolist(),
        "final loss": targets.loss.tolist(),
        "norm": (targets.delta.double().norm(dim=0) / state).tolist(),
    }


@contextmanager
def written(bench: Workbench, recipe: Recipe, plan: Sequence[Step], facts: Sequence[Fact]) -> Iterator[BatchRecord]:
    """Facts in the model as one batch by these steps; behind the block the model is bit for bit what it was."""
    editor = Editor(
        bench.model, recipe, cache=bench.cache, report=bench.report, prepared=bench.prepared(recipe), plan=plan
    )
    record = editor.apply_batch(facts)
    try:
        yield record
    finally:
        bench.model.edits.remove(record.terms)


def _measure(bench: Workbench, seed: int, start: int) -> Kept:
    facts = bench.materials[seed].facts.facts[start : start + bench.settings.batch_size]
    recipe = bench.recipe_for(seed)
    # Whatever the method, the question is how much is left to do on the weights as they are.
    recipe = recipe.model_copy(update={"target": recipe.target.model_copy(update={"weights": "current"})})
    prefixes = bench.prepared(recipe).prefixes
    first, last = bench.layers[0], bench.layers[-1]
    unedited: dict[int, Targets] = {}
    found: dict[str, dict[str, Any]] = {UNEDITED: {}}
    for schedule in _OWN_TARGETS:
        with written(bench, recipe, SCHEDULES[schedule](bench.layers), facts) as record:
            found[schedule] = {str(layer): summary(targets) for layer, targets in record.targets.items()}
            unedited[first] = record.targets[first]
    with written(bench, recipe, SCHEDULES[EVEN](bench.layers)[:-1], facts) as record:
        found[EVEN] = {str(last): summary(search_at(bench, facts, prefixes, last))}
        unedited[last] = record.targets[last]
    if solver_of(recipe).facts_at_once is not None:
        unedited = {}  # only what comes before any write of a batch was searched on unedited weights
    for layer in bench.layers:
        targets = unedited.get(layer)
        found[UNEDITED][str(layer)] = summary(targets or search_at(bench, facts, prefixes, layer))
    return {"steps": found}


def _pieces(bench: Workbench) -> list[Piece]:
    return [
        Piece(f"seed-{seed}-batch-{number}", partial(_measure, bench, seed, start))
        for seed in bench.settings.seeds
        for number, start in enumerate(range(0, len(bench.materials[seed].facts.facts), bench.settings.batch_size))
    ]


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    with told_together("the recipe") as part:
        with part:
            if len(recipe.layers) < 2:
                raise InputError(
                    f"with one critical layer ({recipe.layers[0]}) none is written before another",
                    remedy="Take a recipe with two layers or more",
                )
        with part:
            if any(entry.kind == "norm_cap" for entry in recipe.shaping):
                raise InputError(
                    "'norm_cap' changes what searches find, and this study is about the searches",
                    remedy="Leave it out of shaping",
                )


STEPS = Study(
    name="steps",
    title=TITLES["steps"],
    shows="The search of a target at each critical layer: how many losses it evaluates until the fact is done, which "
    "facts are done within the recipe's steps, which need no change at all, the loss that it begins (δ = 0) and ends "
    "with, and how long δ becomes. On unedited weights; with the schedules 'boundary' and 'own', on the weights as "
    "they are when the search comes to a layer, the earlier layers of the same batch being written with residuals of "
    "their own; and, for 'even', afresh at the last layer when the earlier ones have had their shares of its first "
    "residual. Every batch is written into the unedited model.",
    units="Evaluations of the loss, at most the recipe's steps, with which facts that are not done count; shares of "
    "facts; losses in nats (the mean over contexts and the target's tokens of −log P, and the recipe's terms of KL and "
    "decay); ‖δ‖ in units of the fact's ‖h⁰‖.",
    source=f"optimisation steps per layer in {BOUNDARY_PAPER}; the comparison with spreading is ours",
    uses=("count", "batch_size"),
    pieces=_pieces,
    findings=findings_of,
    check=_check,
)
