"""What an edit needs before its first batch and no batch changes: contexts, key statistics, their factorisations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from errata.editing.batch import solve_device
from errata.editing.contexts import generate_prefixes
from errata.editing.recipe import Recipe
from errata.editing.solvers import make_solver
from errata.editing.solvers.base import LayerSolver, Solver
from errata.models.language_model import LanguageModel
from errata.statistics.store import moments_for, packaged_moments
from errata.utils.progress import Report, silent


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """It depends on the weights, the contexts, the solver and the statistics of a recipe, and on nothing else of it.

    Attributes:
        fingerprint: of the weights.
        prefixes: the contexts.
        solvers: layer -> its state without any history.
    """

    fingerprint: str
    prefixes: tuple[str, ...]
    solvers: Mapping[int, LayerSolver]


def prepare(
    model: LanguageModel,
    recipe: Recipe,
    layers: Sequence[int],
    *,
    cache: Path | None = None,
    report: Report = silent,
) -> Prepared:
    """Prepare a model, as it is now, for edits in some layers.

    Args:
        cache: where key statistics are kept; the user's cache directory if None.

    Raises:
        InputError: if a layer does not exist or the corpus is too short.
        EditError: if the statistics cannot be factorised.
    """
    model.check_layers(list(dict.fromkeys([*recipe.layers, *layers])))
    fingerprint = model.fingerprint()
    prefixes = generate_prefixes(model, recipe.contexts)
    solver, means = solver_of(recipe), _means(model, recipe, layers, cache, report)
    return Prepared(fingerprint, prefixes, {layer: solver.prepare(means[layer]) for layer in layers})


def solver_of(recipe: Recipe) -> Solver:
    """The solver with the recipe's numbers."""
    return make_solver(recipe.solver.kind, recipe.solver.model_dump(exclude={"kind"}))


def _means(
    model: LanguageModel, recipe: Recipe, layers: Sequence[int], cache: Path | None, report: Report
) -> dict[int, Tensor]:
    """C of each layer, on the device where is solved; the identity where the solver does not look at it."""
    device = solve_device(model)
    if not recipe.needs_statistics:
        widths = {layer: model.weight(layer).shape[1] for layer in layers}
        return {layer: torch.eye(width, dtype=torch.float64, device=device) for layer, width in widths.items()}
    total = recipe.statistics.amount
    read = 0

    def on_read(count: int) -> None:
        nonlocal read
        read += count
        report("key statistics", read, total)

    moments = moments_for(model, layers, recipe.statistics, cache=cache, read_only=packaged_moments(), on_read=on_read)
    return {layer: moments[layer].mean.to(device) for layer in layers}
