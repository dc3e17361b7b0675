"""Solvers: from keys, residuals, second moments and history to a weight change. Pure algebra.

One file a solver: its settings, its cost, its search space and its rule on one class, and the state of one layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

from pydantic import Field

from errata.editing.solvers.base import Solver
from errata.editing.solvers.equality import Equality
from errata.editing.solvers.least_squares import LeastSquares
from errata.editing.solvers.neurons import Neurons
from errata.editing.solvers.null_space import NullSpace
from errata.editing.solvers.rank_one import RankOne
from errata.utils.settings import by_kind

AnySolver: TypeAlias = Annotated[
    LeastSquares | NullSpace | Equality | RankOne | Neurons,
    Field(discriminator="kind"),
]
SOLVERS: Final[Mapping[str, type[Solver]]] = by_kind(AnySolver)
