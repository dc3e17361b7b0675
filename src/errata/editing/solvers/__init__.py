"""Solvers: from keys, residuals, second moments and history to a weight change. Pure algebra.

One file a solver: its recipe section with its cost and its contradictions, and its rule. The registry is below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias

from pydantic import Field

from errata.editing.solvers.base import Solver, SolverSettings
from errata.editing.solvers.equality import Equality, EqualitySettings
from errata.editing.solvers.least_squares import LeastSquares, LeastSquaresSettings
from errata.editing.solvers.neurons import Neurons, NeuronsSettings
from errata.editing.solvers.null_space import NullSpace, NullSpaceSettings
from errata.editing.solvers.rank_one import RankOne, RankOneSettings

SOLVERS: Final[Mapping[str, Callable[..., Solver]]] = {
    "least_squares": LeastSquares,
    "null_space": NullSpace,
    "equality": Equality,
    "rank_one": RankOne,
    "neurons": Neurons,
}
AnySolverSettings: TypeAlias = Annotated[
    LeastSquaresSettings | NullSpaceSettings | EqualitySettings | RankOneSettings | NeuronsSettings,
    Field(discriminator="kind"),
]
SETTINGS: Final[Mapping[str, type[SolverSettings]]] = {
    "least_squares": LeastSquaresSettings,
    "null_space": NullSpaceSettings,
    "equality": EqualitySettings,
    "rank_one": RankOneSettings,
    "neurons": NeuronsSettings,
}


def make_solver(kind: str, settings: Mapping[str, Any]) -> Solver:
    """The solver of a recipe's ``solver`` section: its ``kind``, and its other fields as arguments."""
    return SOLVERS[kind](**settings)
