"""Everything about an edit that does not depend on the batch: contexts, key statistics, their factorisations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from errata.editing.contexts import generate_prefixes
from errata.editing.recipe import Recipe
from errata.editing.schedules import Step
from errata.editing.shaping import TargetShaper
from errata.editing.solvers.base import LayerSolver
from errata.errors import UnsupportedModelError
from errata.models.language_model import LanguageModel, Site
from errata.statistics.moments import moment_shape
from errata.statistics.store import moments_for, packaged_moments
from errata.utils.progress import OnSearch, Report, counter, silent, unwatched
from errata.utils.tensors import float64_device


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """The result of ``prepare``, which depends on the weights and on a recipe's contexts, solver and statistics only.

    Attributes:
        fingerprint: of the weights.
        prefixes: the contexts.
        solvers: layer -> its state, without a history.
    """

    fingerprint: str
    prefixes: tuple[str, ...]
    solvers: Mapping[int, LayerSolver]


@dataclass(frozen=True, slots=True)
class EditContext:
    """The model and the settings of a run, the same for all its batches.

    Attributes:
        prefixes: the contexts.
        steps: of the schedule.
        on_search: called after each step of a search for targets.
    """

    model: LanguageModel
    recipe: Recipe
    prefixes: Sequence[str]
    steps: Sequence[Step]
    report: Report = silent
    on_search: OnSearch = unwatched

    @property
    def site(self) -> Site:
        return target_site(self.model, self.recipe.site)


def prepare(
    model: LanguageModel,
    recipe: Recipe,
    layers: Sequence[int],
    *,
    cache: Path | None = None,
    report: Report = silent,
) -> Prepared:
    """Prepare a model, on its current weights, for edits in some layers.

    Args:
        cache: of key statistics; the user's cache directory if None.

    Raises:
        InputError: if a layer does not exist or the corpus is too short.
        EditError: if the statistics cannot be factorised.
    """
    model.check_layers(list(dict.fromkeys([*recipe.layers, *layers])))
    _check_shaping(model, recipe, layers)
    fingerprint = model.fingerprint()
    prefixes = generate_prefixes(model, recipe.contexts)
    means = _means(model, recipe, layers, cache, report)
    return Prepared(fingerprint, prefixes, {layer: recipe.solver.state_of(means[layer]) for layer in layers})


def target_site(model: LanguageModel, site: str) -> Site:
    """Where targets live: as the recipe says, but with a norm after the MLP at W's output, since only there adding R
    moves it by R.
    """
    return Site.MLP if model.architecture.norm_after_mlp else Site(site)


def _check_shaping(model: LanguageModel, recipe: Recipe, layers: Sequence[int]) -> None:
    """Raises UnsupportedModelError if the recipe shapes whole matrices of a layer that has one for each expert."""
    whole = [shaper for shaper in recipe.shaping if not isinstance(shaper, TargetShaper)]
    if whole and any(model.expert_count(layer) for layer in layers):
        raise UnsupportedModelError(
            f"{recipe.method!r} shapes the change of a whole matrix, and {model.name!r} has one for each expert",
            remedy="Use a method without shaping of changes, such as memit_seq or alphaedit",
            code="MODEL_EXPERTS_APART",
        )


def _means(
    model: LanguageModel, recipe: Recipe, layers: Sequence[int], cache: Path | None, report: Report
) -> dict[int, Tensor]:
    """C of each layer, on the device of the solver; the identity where the solver does not use it."""
    device = float64_device(model.device)
    if not recipe.needs_statistics:
        return {
            layer: torch.eye(shape[-1], dtype=torch.float64, device=device).expand(shape).contiguous()
            for layer, shape in ((layer, moment_shape(model, layer)) for layer in layers)
        }
    on_read = counter(report, "key statistics", recipe.statistics.amount)
    moments = moments_for(model, layers, recipe.statistics, cache=cache, read_only=packaged_moments(), on_read=on_read)
    return {layer: moments[layer].mean.to(device) for layer in layers}
