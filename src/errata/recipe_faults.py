"""What pydantic finds wrong in a recipe, in our words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from errata.errors import Fault
from errata.recipe_settings import (
    ContextSettings,
    EqualitySettings,
    JointTargetSettings,
    LeastSquaresSettings,
    NeuronsSettings,
    NormCapSettings,
    NullSpaceSettings,
    PruneSettings,
    RankOneSettings,
    RectifySettings,
    RoundSettings,
    Settings,
    StatisticsSettings,
    TargetSettings,
)

_BY_KIND: Mapping[str, type[Settings]] = {
    "memit": TargetSettings, "joint": JointTargetSettings, "least_squares": LeastSquaresSettings,
    "null_space": NullSpaceSettings, "equality": EqualitySettings, "rank_one": RankOneSettings,
    "neurons": NeuronsSettings, "rect": RectifySettings, "prune": PruneSettings, "norm_cap": NormCapSettings,
}  # fmt: skip
_BY_SECTION: Mapping[str, type[Settings]] = {
    "contexts": ContextSettings, "statistics": StatisticsSettings, "rounds": RoundSettings, **_BY_KIND,
}  # fmt: skip


def path_of(item: Any) -> list[Any]:
    """Where one of pydantic's errors lies: the keys that a file has, without the tags of pydantic's own."""
    return [part for index, part in enumerate(item["loc"]) if index == 0 or part not in _BY_KIND]


def fault_of(source: str, item: Any, top: Iterable[str]) -> Fault:
    """One pydantic error in our words, with the nearest valid key where a key is unknown.

    Args:
        top: the keys of a whole recipe.
    """
    path = [str(part) for part in item["loc"]]
    where = f"{source}: {'.'.join(str(part) for part in path_of(item))}"
    if item["type"] == "value_error":  # our own checks: what they say is a sentence
        remedy = "Change one of them" if not item["loc"] else f"Got {item.get('input')!r:.200}"
        return Fault(where, str(item["ctx"]["error"]), remedy)
    if item["type"] != "extra_forbidden":
        remedy = "Add this key" if item["type"] == "missing" else f"Got {item.get('input')!r:.200}"
        return Fault(where, item["msg"][0].lower() + item["msg"][1:], remedy)
    section = _BY_SECTION.get(path[-2]) if len(path) > 1 else None
    known = list(section.model_fields) if section else [*top, "methods", "also"]
    near = difflib.get_close_matches(path[-1][:40], known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return Fault(where, "unknown key", f"{hint}Known here: {', '.join(known)}")
