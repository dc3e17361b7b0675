"""The interface of solvers: C (once per layer), keys and residuals (per batch) give a weight change in two factors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import EditError
from errata.utils.settings import Settings


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = left · right, never multiplied out here.

    Attributes:
        left: (d_out, u).
        right: (u, d_in).
    """

    left: Float[Tensor, "d_out u"]
    right: Float[Tensor, "u d_in"]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        return self.left @ self.right


@runtime_checkable
class LayerSolver(Protocol):
    """The state of one layer: its factorisations, and the keys of earlier batches where they count."""

    def solve(
        self, keys: Float[Tensor, "d_in u"], residuals: Float[Tensor, "d_out u"], bare: Tensor | None = None
    ) -> LowRank:
        """ΔW for one batch. float64 in, float64 out; the state does not change.

        Args:
            keys: K, averaged over contexts as the recipe says.
            residuals: R.
            bare: (d_in, u) the keys of the bare prompts, for solvers with ``uses_bare_keys``; None: as ``keys``.
        """
        ...

    def remember(self, keys: Float[Tensor, "d_in u"]) -> LayerSolver:
        """A new state with the keys of a written batch; this one does not change, so a run can be rolled back."""
        ...


@runtime_checkable
class Solver(Protocol):
    """A rule for all layers.

    Attributes:
        facts_at_once: the most facts it solves together; None for any number. With 1, facts are written one after
            another, and their order matters.
        history: whether the keys of earlier batches count.
        uses_bare_keys: whether it needs the keys of bare prompts in addition to the averaged ones.
    """

    @property
    def facts_at_once(self) -> int | None: ...

    @property
    def history(self) -> bool: ...

    @property
    def uses_bare_keys(self) -> bool: ...

    def prepare(self, moment: Float[Tensor, "d_in d_in"]) -> LayerSolver:
        """Factorise what depends on the second moment C only. float64."""
        ...


@dataclass(frozen=True, slots=True)
class SolverCost:
    """Memory and operations of one layer, in leading terms.

    Attributes:
        held: d_in × d_in float64 matrices held for each layer.
        temporary: the same, needed while a layer is prepared beside C of every layer.
        prepare: operations of preparing a layer, in d_in³; a Cholesky factor takes a third.
        products: multiplications by a held matrix in each direction, of d_in² operations a column.
        history_solved: whether the keys of earlier batches are solved again with each batch.
        refactors: whether each batch needs a new factor.
    """

    held: int
    temporary: int = 1
    prepare: float = 1 / 3
    products: int = 1
    history_solved: bool = True
    refactors: bool = False


class SolverSettings(Settings):
    """The ``solver`` section of a recipe, one subclass a solver.

    Attributes:
        ridge_field: the field of the ridge of solvers that have a history; empty for others.
    """

    ridge_field: ClassVar[str] = ""

    @property
    def cost(self) -> SolverCost:
        return SolverCost(held=1)

    @property
    def needs_moment(self) -> bool:
        """Whether C is used at all."""
        return True

    def contradictions(self, *, rounds: bool) -> Iterator[str]:
        """Why these settings make no sense.

        Args:
            rounds: whether the recipe goes over a batch in rounds.
        """
        yield from ()


def cholesky(matrix: Float[Tensor, "n n"], what: str) -> Float[Tensor, "n n"]:
    """Lower factor of a positive definite matrix.

    Raises:
        EditError: if the matrix is not positive definite in float64.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0 or not bool(torch.isfinite(factor).all()):
        raise EditError(
            f"{what} is not positive definite ({matrix.shape[0]} × {matrix.shape[0]})",
            remedy="Take the key statistics over more text, so that every direction of the keys occurs, or raise the "
            "ridge",
            code="MATRIX_NOT_POSITIVE_DEFINITE",
        )
    return factor
