"""What a search of recipes ends in: a file that says of each number how it was found; and a file without a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from errata.benchmark.recipe_search import Found, laid_over, starting_recipe
from errata.methods import BOUNDARY_SUFFIX, Method, method_named

SEARCHED = "errata recipe auto, on held-out facts of this model"
UNSEARCHED = "errata recipe auto --minutes 0; scale-free defaults, tried on no fact of this model"
# Where nothing is searched: of ‖h‖ / √d, and per column.
DEFAULT_RATE = 0.5
DEFAULT_RIDGES = {"least_squares": ("λ", 1.0), "neurons": ("λ", 1.0), "equality": ("ε", 0.1)}


def unsearched_recipe(
    model: str, row: Method, layers: Sequence[int], columns: int, statistics: Mapping[str, Any]
) -> Found:
    """Scale-free defaults, for want of a search: what suited the embedded model, and λ as published for large ones.

    Args:
        columns: how many W has.
    """
    base = starting_recipe(model, row, layers, statistics, batch_size=100)
    change: dict[str, Any] = {"target": {"learning_rate": DEFAULT_RATE, "relative_rate": True}}
    reasons = {"learning_rate": f"{DEFAULT_RATE:g} · ‖h‖/√d, not searched", "clamp": "as published for MEMIT"}
    if row.solver["kind"] in DEFAULT_RIDGES:
        letter, ridge = DEFAULT_RIDGES[row.solver["kind"]]
        change["solver"] = {"ridge": ridge * columns}
        reasons["solver"] = f"{letter} = {ridge:g} · columns, not searched"
    elif row.solver["kind"] == "null_space":
        reasons["solver"] = "threshold 0.3, L2 20 (in mean eigenvalues of C), not searched"
    return Found(laid_over(base, change), reasons, (), complete=False)


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
        lines += [f"{name}, {number.replace('_', ' ')}: {reason}" for number, reason in end.reasons.items()]
        lines += [] if end.complete or not end.tries else [f"{name}: time was up before all was tried"]
    body: dict[str, Any] = {
        "model": model,
        "source": f"automatic: {SEARCHED if any(end.tries for end in found.values()) else UNSEARCHED}",
        "layers": list(layers),
        **{key: common[key] for key in ("statistics", "batch_size") if key in common},
        "methods": entries,
    }
    head = "".join(f"# {line}\n" for line in ["Found by errata recipe auto, not published by anyone.", *lines])
    return head + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
