"""Solvers: how keys, residuals, second moments and history become a weight change. Pure algebra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from errata.editing.solvers.base import Solver
from errata.editing.solvers.equality import Equality
from errata.editing.solvers.least_squares import LeastSquares
from errata.editing.solvers.neurons import Neurons
from errata.editing.solvers.null_space import NullSpace
from errata.editing.solvers.rank_one import RankOne

SOLVERS: Mapping[str, Callable[..., Solver]] = {
    "least_squares": LeastSquares,
    "null_space": NullSpace,
    "equality": Equality,
    "rank_one": RankOne,
    "neurons": Neurons,
}


def make_solver(kind: str, settings: Mapping[str, Any]) -> Solver:
    """The solver of a recipe's ``solver`` section: its ``kind``, and its other fields as arguments."""
    return SOLVERS[kind](**settings)
