"""Helpers shared by several studies: residuals by layer, temporary edits, principal components."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from errata.analysis.study import StudyContext, TaskRecord
from errata.editing.batch import BatchRecord
from errata.editing.methods import BOUNDARY_SUFFIX
from errata.editing.recipe import Recipe
from errata.editing.target_search import Targets, find_targets
from errata.editors.locate_then_edit import Editor
from errata.errors import Fault, FaultsError
from errata.facts.fact import Fact
from errata.models.likelihood import score
from errata.models.weights import Term
from errata.patches.patch import Patch
from errata.utils.optional import require
from errata.utils.progress import SearchStep
from errata.utils.tensors import to_float64

# Residual -> the layer's share of the last layer's residual, by the number of critical layers left.
SPREADS: Final[Mapping[str, Callable[[int], float]]] = {
    "spread": lambda left: 1 / left,
    "sqrt-spread": lambda left: 1 / math.sqrt(left),
}
COMPUTED: Final = "computed"


@dataclass(frozen=True, slots=True)
class LayerTargets:
    """The targets of some facts at each critical layer.

    Attributes:
        layers: ascending.
        found: layer -> targets.
    """

    layers: Sequence[int]
    found: Mapping[int, Targets]

    def residual(self, kind: str, layer: int) -> Float[Tensor, "d u"]:
        """float64. ``spread`` is δ_L / (number of critical layers from this one on), ``sqrt-spread`` the same by its
        root, ``computed`` the layer's own δ (methods.md, section 1, Schedules).
        """
        if kind == COMPUTED:
            return to_float64(self.found[layer].delta)
        left = len(self.layers) - list(self.layers).index(layer)
        return SPREADS[kind](left) * to_float64(self.found[self.layers[-1]].delta)


def search_targets(context: StudyContext, facts: Sequence[Fact], prefixes: Sequence[str]) -> LayerTargets:
    """The targets at every critical layer, on the weights as they are now."""
    return LayerTargets(context.layers, {layer: search_at(context, facts, prefixes, layer) for layer in context.layers})


def search_at(context: StudyContext, facts: Sequence[Fact], prefixes: Sequence[str], layer: int) -> Targets:
    """The targets at one layer, on the weights as they are now.

    Args:
        prefixes: the contexts; used where the recipe searches targets in all of them.
    """

    def on_step(step: SearchStep) -> None:
        context.report(f"targets at layer {layer}", step.done, step.total)

    chosen = prefixes if context.recipe.contexts.targets == "all" else ()
    return find_targets(context.model, facts, chosen, layer, context.site, context.recipe.target, on_step=on_step)


AfterBatch = Callable[[Sequence[Term], Sequence[Term]], None]
"""Called after each batch: the terms of the batch, and all terms of the run so far, shaped where the recipe shapes
whole runs."""

_SPREADING: Final = frozenset({"even", "sqrt"})  # schedules that divide one residual among several layers


def check_methods(context: StudyContext) -> None:
    """Raises FaultsError with all methods of the settings that have no recipe."""
    faults = [
        Fault(
            f"methods: {method}", "no recipe for this model", "Leave it out, or give its recipe", code="RECIPE_MISSING"
        )
        for method in dict.fromkeys(context.settings.methods)
        if method not in context.recipes
    ]
    if faults:
        raise FaultsError("the study's settings", faults)


def runs_of(context: StudyContext) -> list[tuple[int, str]]:
    """Every seed with every method, in the order of the settings.

    Raises:
        FaultsError: see ``check_methods``.
    """
    check_methods(context)
    methods = dict.fromkeys(context.settings.methods)
    return [(seed, method) for seed in dict.fromkeys(context.settings.seeds) for method in methods]


def run_name(seed: int, method: str) -> str:
    """The name of the record that is about a run."""
    return f"seed-{seed}-{method}"


def run_recipe(context: StudyContext, seed: int, method: str) -> Recipe:
    """The method's recipe with the seed's contexts and the study's batch size."""
    recipe = context.recipe_for(seed, context.recipes[method])
    return recipe.model_copy(update={"batch_size": context.settings.batch_size})


@contextmanager
def edited(
    context: StudyContext, seed: int, method: str, after_batch: AfterBatch = lambda written, total: None
) -> Iterator[Patch]:
    """Edit all facts of the seed, in batches; on exit, also after an error, the model is restored bit for bit.

    Contexts and factorised statistics are not kept for other runs: those of several methods would take several times
    d_in² numbers per layer.

    Raises:
        EditError, InputError: see ``Editor.apply``.
    """
    editor = Editor(context.model, run_recipe(context, seed, method), cache=context.cache, report=context.report)
    patch = editor.apply(
        context.materials[seed].facts.facts, on_batch=lambda record: after_batch(record.terms, editor.patch().terms)
    )
    try:
        yield patch
    finally:
        patch.undo(context.model)


def about_run(context: StudyContext, seed: int, method: str) -> dict[str, Any]:
    """The run that a task's result belongs to; as JSON."""
    recipe = run_recipe(context, seed, method)
    return {"seed": seed, "method": method, "schedule": recipe.schedule, "critical": list(recipe.layers)}


def facts_recalled(context: StudyContext, facts: Sequence[Fact]) -> list[int]:
    """1 for each fact whose target tokens are all the most likely ones, else 0."""
    return [int(found.correct) for found in score(context.model, [fact.pair(fact.target) for fact in facts])]


def boundary_pairs(saved: Iterable[TaskRecord]) -> list[tuple[str, str]]:
    """Pairs of methods that differ only in the schedule: (boundary updates, spreading)."""
    schedules = {run["method"]: run["schedule"] for run in saved}
    return [
        (method, base)
        for method, schedule in schedules.items()
        if (base := method.removesuffix(BOUNDARY_SUFFIX)) != method
        and schedule == "boundary"
        and schedules.get(base) in _SPREADING
    ]


def of_method(saved: Mapping[str, TaskRecord], method: str) -> dict[int, TaskRecord]:
    """Seed -> the method's run."""
    return {run["seed"]: run for run in saved.values() if run.get("method") == method}


NO_PAIR: Final = (
    "there is no pair of a method with boundary updates and the same one that spreads, such as memit and memit+blue"
)


@contextmanager
def temporarily_edited(
    editor: Editor, facts: Sequence[Fact], known: Sequence[BatchRecord] = ()
) -> Iterator[list[BatchRecord]]:
    """Edit facts in batches of the recipe's size; on exit the model is restored bit for bit.

    Args:
        known: the first batches, if another editor has computed them already; they are not computed again.

    Yields:
        The records of the other batches.

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


def check_plane() -> None:
    """Raises MissingExtraError unless scikit-learn is installed."""
    require("the two-dimensional picture of hidden states", "analysis", "sklearn")


@dataclass(frozen=True, slots=True)
class Plane:
    """The first two principal components of some vectors.

    Attributes:
        mean: (d,) of the vectors.
        axes: (2, d), unit length; the entry of largest absolute value is positive.
        shares: share of the variance along each axis.
    """

    mean: Float[Tensor, "d"]
    axes: Float[Tensor, "2 d"]
    shares: tuple[float, float]

    def points(self, vectors: Float[Tensor, "n d"]) -> list[tuple[float, float]]:
        """Coordinates of vectors in the plane, in the unit of their entries; the mean is the origin."""
        return [(x, y) for x, y in ((to_float64(vectors) - self.mean) @ self.axes.T).tolist()]


def fit_plane(vectors: Float[Tensor, "n d"]) -> Plane | None:
    """The plane of largest variance; None for fewer than three vectors, a single dimension, or equal vectors.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    check_plane()
    from sklearn.decomposition import PCA

    found = to_float64(vectors)
    # The computed mean of equal vectors may differ from them in the last bits; such a spread counts as none.
    if (
        len(found) < 3
        or found.shape[1] < 2
        or float((found - found[0]).abs().max()) <= 1e-12 * float(found.abs().max())
    ):
        return None
    fitted = PCA(n_components=2, svd_solver="full").fit(found.numpy())
    axes = np.array(fitted.components_)
    axes *= np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])[:, None]
    first, second = fitted.explained_variance_ratio_.tolist()
    return Plane(torch.from_numpy(np.array(fitted.mean_)), torch.from_numpy(axes), (first, second))


def axis_label(number: int, share: float) -> str:
    """Axis label with the explained variance."""
    return f"principal component {number} ({share:.0%} of the variance; units of h)"
