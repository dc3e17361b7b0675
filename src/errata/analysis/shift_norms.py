"""How far two updates of one layer lie apart that share their keys, and what the theory says of it (methods.md, 2).

Every solver that is linear in the residuals gives ΔW = R Q with a Q of the keys alone, so that the computed residual
R* and the spread one R_L / (n + 1) differ by (R* − R_L / (n + 1)) Q: n is the number of critical layers behind this
one, the "L − l" of the formulas. The paper bounds its norm by (‖R* − R_L‖ + n ‖R_L‖) ‖Q‖; the triangle inequality
gives n / (n + 1) for n, for R* − R_L / (n + 1) = (R* − R_L) + n / (n + 1) · R_L.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from errata.editing.solvers.base import LayerSolver

FROBENIUS: Final = "Frobenius"
SPECTRAL: Final = "spectral"
MIXED: Final = "Frobenius, Q spectral"

# The norms a bound is told in -> those of shift and residuals, and of Q. The paper leaves the norm open; ‖A B‖ is at
# most ‖A‖ ‖B‖ in each of these readings, and ‖A‖_F ‖B‖₂ is the least of those that bound the Frobenius norm.
READINGS: Final[Mapping[str, tuple[str, str]]] = {
    FROBENIUS: (FROBENIUS, FROBENIUS),
    MIXED: (FROBENIUS, SPECTRAL),
    SPECTRAL: (SPECTRAL, SPECTRAL),
}

Number = TypeVar("Number", float, NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class Norms:
    """Of one matrix."""

    frobenius: float
    spectral: float

    @classmethod
    def of(cls, matrix: Float[Tensor, "rows columns"]) -> Norms:
        values = torch.linalg.svdvals(matrix)
        return cls(float(values.norm()), float(values.max()))

    def to_record(self) -> dict[str, float]:
        return {FROBENIUS: self.frobenius, SPECTRAL: self.spectral}


@dataclass(frozen=True, slots=True)
class ShiftNorms:
    """What is kept of a group of facts at one layer.

    Attributes:
        shift: of ΔW_computed − ΔW_spread.
        computed: of ΔW_computed.
        gap: of R* − R_L.
        last: of R_L.
        solution: of Q.
    """

    shift: Norms
    computed: Norms
    gap: Norms
    last: Norms
    solution: Norms


def solution(state: LayerSolver, keys: Float[Tensor, "d_in u"]) -> Float[Tensor, "u d_in"]:
    """Q: what the solver makes of residuals that are the identity, for then ΔW = I Q; float64."""
    identity = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    found = state.solve(keys, identity)
    return found.left @ found.right


def shift_norms(
    computed: Float[Tensor, "d_out u"], last: Float[Tensor, "d_out u"], behind: int, q: Float[Tensor, "u d_in"]
) -> ShiftNorms:
    """The norms of one group at one layer; nothing of size d_out × d_in is formed.

    Args:
        computed: R*, found at the layer.
        last: R_L, found at the last critical layer.
        behind: n, how many critical layers come behind this one.
        q: Q of the layer.
    """
    # Qᵀ = V T with orthonormal columns in V, so that ‖A Q‖ = ‖A Tᵀ Vᵀ‖ = ‖A Tᵀ‖ in both norms.
    folded = torch.linalg.qr(q.T, mode="r").R.T  # Tᵀ, (u, min(u, d_in))
    return ShiftNorms(
        shift=Norms.of((computed - last / (behind + 1)) @ folded),
        computed=Norms.of(computed @ folded),
        gap=Norms.of(computed - last),
        last=Norms.of(last),
        solution=Norms.of(folded),
    )


def bound(gap: Number, last: Number, q: Number, behind: int) -> Number:
    """The paper's: (‖R* − R_L‖ + n ‖R_L‖) ‖Q‖."""
    return (gap + behind * last) * q


def tighter_bound(gap: Number, last: Number, q: Number, behind: int) -> Number:
    """What the triangle inequality gives: (‖R* − R_L‖ + n / (n + 1) · ‖R_L‖) ‖Q‖."""
    return (gap + behind / (behind + 1) * last) * q
