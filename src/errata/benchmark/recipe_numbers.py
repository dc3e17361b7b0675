"""The numbers that a recipe search tries, in units that have no scale, and the recipe that it starts from.

Absolute numbers do not carry over from model to model. What is searched has no scale, or is told in a unit that
is measured on the model first (methods.md, section 3):

- the learning rate in units of ‖h‖ / √d, the size of a state's entries where its target lives;
- the clamp in units of ‖h‖, as everywhere;
- λ and ε in units of the number of W's columns: C and K Kᵀ scale alike, so λ itself has no scale, but the published
  λ grow with the width of the MLP;
- the threshold as the share of C's directions that may be written to, and L2 in units of an ordinary key's energy in
  these directions. With ρ of them a typical key takes 1 / (1 + ρ) of what is written, as it does with λ = ρ · columns
  in least squares. C's mean eigenvalue will not do as a unit: attention sinks and a few other tokens can hold most of
  the trace, and then nearly all directions lie below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from errata.methods import BOUNDARY_SUFFIX, Method, method_named
from errata.recipe import Recipe

LEARNING_RATES = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # of ‖h‖ / √d
CLAMPS = (0.75, 1.5, 4.0)
STEPS = 25
# What a solver's numbers are tried as: (fields of the recipe's solver section, how they are told to people), as
# functions of the number of W's columns.
RIDGES = (2.0, 1.0, 0.5, 0.2, 0.1)  # λ per column: as published 1 (Llama-3-8B, GPT-J) to 3 (GPT2-XL)
EQUALITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.01)  # ε per column; for one layer ε is what λ is in least squares
THRESHOLDS = (
    (0.8, 2.0),
    (0.8, 1.0),
    (0.8, 0.4),
    (0.6, 1.0),
)  # (share of directions, L2 in ordinary keys' energy there)
LEAST_AGREEMENT = 0.5  # of a fact's bare and averaged key, for rome: no update is more than twice as large as meant
TRIES_OF_SOLVER = {
    "null_space": len(THRESHOLDS),
    "least_squares": len(RIDGES),
    "neurons": len(RIDGES),
    "equality": len(EQUALITIES),
}
# Where a search starts, and what stands where nothing is searched.
STARTING_RATE = 0.1
STARTING_RIDGES = {"least_squares": ("λ", 1.0), "neurons": ("λ", 1.0), "equality": ("ε", 1.0)}


def rate_try(rate: float) -> tuple[dict[str, Any], str]:
    """A learning rate as a change of a recipe, and how it is told."""
    return {"target": {"learning_rate": rate, "relative_rate": True}}, f"{rate:g} · ‖h‖/√d"


def clamp_try(clamp: float) -> tuple[dict[str, Any], str]:
    """The same for a clamp."""
    return {"target": {"clamp": clamp}}, f"{clamp:g} · ‖h‖"


def null_space_told(threshold: float, l2: float) -> str:
    """The same for a null space."""
    return f"threshold {threshold:g} of the directions, L2 {l2:g} (in the energy of ordinary keys there)"


def solver_tries(recipe: Recipe, columns: int) -> Iterator[tuple[dict[str, Any], str]]:
    """What is tried for a recipe's solver, in the units of this module."""
    match recipe.solver.kind:
        case "null_space":
            for threshold, l2 in THRESHOLDS:
                yield (
                    {"solver": {"threshold": threshold, "l2": l2, "shares": True}},
                    null_space_told(threshold, l2),
                )
        case "least_squares" | "neurons":
            for ridge in RIDGES:
                yield {"solver": {"ridge": ridge * columns}}, f"λ = {ridge:g} · columns = {ridge * columns:g}"
        case "equality":
            for ridge in EQUALITIES:
                yield {"solver": {"ridge": ridge * columns}}, f"ε = {ridge:g} · columns = {ridge * columns:g}"
        case _:
            yield {}, "the solver has no number"


def starting_recipe(
    model: str, row: Method, layers: Sequence[int], columns: int, statistics: Mapping[str, Any], *, batch_size: int
) -> Recipe:
    """What is common to all tries: the row's choices, and of each number that is searched where its search starts.

    Args:
        columns: how many W has.
    """
    choices = row.choices()
    solver: dict[str, Any] = {}
    match row.solver["kind"]:
        case "null_space":
            threshold, l2 = THRESHOLDS[0]
            solver = {"threshold": threshold, "l2": l2, "shares": True}
        case "rank_one" if row.solver["denominator"] == "bare":
            solver = {"least_agreement": LEAST_AGREEMENT}
        case kind if kind in STARTING_RIDGES:
            solver = {"ridge": STARTING_RIDGES[kind][1] * columns} | ({"share": 1.0} if kind == "neurons" else {})
    rounds = {"rounds": {**row.rounds, "least": 0.0, "most": 1e9}} if row.rounds else {}
    return Recipe.model_validate(
        {
            **choices,
            **rounds,
            "model": model,
            "method": row.name,
            "layers": tuple(layers[-1:] if row.schedule == "single" else layers),
            "target": {
                **choices["target"],
                "learning_rate": STARTING_RATE,
                "relative_rate": True,
                "steps": STEPS,
                "clamp": CLAMPS[0],
            },
            "solver": {**choices["solver"], **solver},
            "statistics": dict(statistics),
            "batch_size": batch_size,
        }
    )


def laid_over(recipe: Recipe, change: Mapping[str, Any]) -> Recipe:
    """The recipe with fields of its sections changed."""
    data = recipe.model_dump()
    return Recipe.model_validate(data | {section: {**data[section], **value} for section, value in change.items()})


def with_boundary(recipe: Recipe, layers: Sequence[int]) -> Recipe:
    """The recipe of the same row with ``+blue``: boundary schedule, and whatever else that changes in the row."""
    row = method_named(recipe.method.removesuffix(BOUNDARY_SUFFIX))
    data = recipe.model_dump() | {"schedule": "boundary", "layers": tuple(layers)}
    return Recipe.model_validate(
        data | {section: {**data[section], **value} for section, value in row.with_boundary.items()}
    )
