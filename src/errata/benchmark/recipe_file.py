"""What a search of recipes ends in: a file that says of each number how it was found; and a file without a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from errata.benchmark.recipe_numbers import (
    CLAMPS,
    STARTING_RATE,
    STARTING_RIDGES,
    THRESHOLDS,
    null_space_told,
    starting_recipe,
)
from errata.benchmark.recipe_search import Found
from errata.methods import BOUNDARY_SUFFIX, Method, method_named
from errata.recipe import Recipe
from errata.recipe_yaml import Dumper

SEARCHED = "errata recipe auto, on held-out facts of this model"
UNSEARCHED = "errata recipe auto --minutes 0; scale-free defaults, tried on no fact of this model"


def unsearched_recipe(
    model: str, row: Method, layers: Sequence[int], columns: int, statistics: Mapping[str, Any]
) -> Found:
    """What a search starts from, for want of one: what suited the embedded model, and λ as published for large ones.

    Args:
        columns: how many W has.
    """
    recipe = starting_recipe(model, row, layers, columns, statistics, batch_size=100)
    reasons = {
        "learning_rate": f"{STARTING_RATE:g} · ‖h‖/√d, not searched",
        "clamp": f"{CLAMPS[0]:g} · ‖h‖, as published for MEMIT; not searched",
    }
    if row.solver["kind"] in STARTING_RIDGES:
        letter, ridge = STARTING_RIDGES[row.solver["kind"]]
        reasons["solver"] = f"{letter} = {ridge:g} · columns, not searched"
    elif row.solver["kind"] == "null_space":
        threshold, l2 = THRESHOLDS[0]
        reasons["solver"] = f"{null_space_told(threshold, l2)}, not searched"
    return Found(recipe, reasons, (), complete=False)


def unsearched_reasons(recipe: Recipe) -> dict[str, str]:
    """field -> why its value, for numbers of a row that no search varies."""
    reasons = {}
    if recipe.solver.kind == "neurons":
        reasons["share"] = f"{recipe.solver.share:g}, all neurons; not searched"
    if recipe.solver.kind == "rank_one" and recipe.solver.least_agreement:
        share = f"{recipe.solver.least_agreement:g}"
        reasons["least_agreement"] = (
            f"{share}, so that no fact is written more than {1 / float(share):g} times over; not searched"
        )
    if recipe.rounds is not None:
        reasons["rounds"] = f"{recipe.rounds.count}, each for all facts; not searched"
    return reasons


def layers_by_depth(layers: int) -> tuple[int, ...]:
    """The critical layers at the depth where Llama 3's are: from an eighth to a quarter of the blocks."""
    return tuple(range(layers // 8, max(layers // 8, layers // 4) + 1))


def automatic_file(model: str, layers: Sequence[int], why: str, found: Mapping[str, Found]) -> str:
    """A recipe file, with an entry for each method and its ``+blue``, that says how each number was found.

    Args:
        layers: the critical layers.
        why: how they were found.
        found: row's name -> the end of its search.
    """
    entries: dict[str, Any] = {}
    for name, end in found.items():
        data = end.recipe.model_dump(mode="json")
        entry: dict[str, Any] = {section: data[section] for section in ("target", "solver", "rounds") if data[section]}
        if contexts := end.recipe.model_dump(mode="json", exclude_defaults=True).get("contexts"):
            entry["contexts"] = contexts
        blue: dict[str, Any] = {name: dict(value) for name, value in method_named(name).with_boundary.items()}
        if list(end.recipe.layers) != list(layers):
            entry["layers"], blue["layers"] = list(end.recipe.layers), list(layers)
        entries[name], entries[f"{name}{BOUNDARY_SUFFIX}"] = entry, blue
    common = next(iter(found.values())).recipe.model_dump(mode="json", exclude_defaults=True)
    lines = [f"layers: {why}"]
    for name, end in found.items():
        told = dict(end.reasons) | unsearched_reasons(end.recipe)
        lines += [f"{name}, {number.replace('_', ' ')}: {reason}" for number, reason in told.items()]
        lines += [] if end.complete or not end.tries else [f"{name}: time was up before all was tried"]
    body: dict[str, Any] = {
        "model": model,
        "source": f"automatic: {SEARCHED if any(end.tries for end in found.values()) else UNSEARCHED}",
        "layers": list(layers),
        **{key: common[key] for key in ("statistics", "batch_size") if key in common},
        "methods": entries,
    }
    head = "".join(f"# {line}\n" for line in ["Found by errata recipe auto, not published by anyone.", *lines])
    return head + yaml.dump(
        body, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000
    )
