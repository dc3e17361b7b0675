"""What a solver is: given C (once per layer) and keys and residuals (per batch), a weight change in two factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import EditError


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
    """The state of one layer: what was factorised once, and the keys of earlier batches where they count."""

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
        """The state with the keys of a batch that has been written; this one stays as it is, so a run can go back."""
        ...


@runtime_checkable
class Solver(Protocol):
    """A rule for all layers.

    Attributes:
        facts_at_once: how many facts it solves together at most; None for any number. With 1, facts are written one
            after another, and their order matters.
        history: whether the keys of earlier batches count.
        uses_bare_keys: whether it wants the keys of bare prompts beside the averaged ones.
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
        )
    return factor
