"""ROME's solver: ΔW = r (C⁻¹ k̄)ᵀ / (kᵀ C⁻¹ k̄), one fact after another (Meng et al. 2022, eq. 2).

r is the residual v* − W k. ROME takes the bare prompt's key for k here and in r, and the averaged key k̄ for the
direction only, as its published code does; R-ROME (Gupta et al. 2024, arXiv:2403.07175) takes k̄ in all three places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, StrictFloat
from torch import Tensor

from errata.editing.solvers.base import LowRank, SolverSettings, cholesky
from errata.errors import EditError


class RankOneSettings(SolverSettings):
    """ΔW = r (C⁻¹ k̄)ᵀ / (kᵀ C⁻¹ k̄), facts one after another."""

    kind: Literal["rank_one"]
    denominator: Literal["bare", "averaged"] = Field(description="which key is k")
    moment: Literal["measured", "identity"] = Field("measured", description="what C is")
    least_agreement: StrictFloat = Field(
        0.0, ge=0, le=1, description="facts whose bare and averaged key agree less have the averaged one as k"
    )

    @property
    def needs_moment(self) -> bool:
        return self.moment == "measured"

    def contradictions(self, *, rounds: bool) -> Iterator[str]:
        if rounds:
            yield "'rank_one' writes facts one after another; rounds are for facts that are solved together"


@dataclass(frozen=True, slots=True)
class RankOne:
    """C is factorised once; a fact costs two triangular solves.

    Args:
        denominator: the key k in the denominator: that of the ``bare`` prompt, or the ``averaged`` one.
        least_agreement: a fact whose kᵀC⁻¹k̄ with the bare key is less than this share of k̄ᵀC⁻¹k̄ has the averaged key in
            the denominator too; its update would otherwise be larger than meant by the inverse of that share. 0, as
            published, never does so.
        moment: ``measured`` takes C from the key statistics, ``identity`` the identity matrix.
    """

    denominator: Literal["bare", "averaged"]
    moment: Literal["measured", "identity"] = "measured"
    least_agreement: float = 0.0

    history = False
    facts_at_once = 1

    @property
    def uses_bare_keys(self) -> bool:
        return self.denominator == "bare"

    def prepare(self, moment: Float[Tensor, "d_in d_in"]) -> RankOneLayer:
        factor = cholesky(moment, "the second moment of the keys") if self.moment == "measured" else None
        return RankOneLayer(factor, self)


class RankOneLayer:
    """One layer: the Cholesky factor of C, None if C is the identity. Of earlier facts only the weights remain."""

    def __init__(self, factor: Float[Tensor, "d_in d_in"] | None, settings: RankOne) -> None:
        self._factor, self._settings = factor, settings

    @property
    def uses_bare(self) -> bool:
        return self._settings.uses_bare_keys

    def solve(
        self, keys: Float[Tensor, "d_in u"], residuals: Float[Tensor, "d_out u"], bare: Tensor | None = None
    ) -> LowRank:
        """As ``LayerSolver.solve``.

        Raises:
            ValueError: for several facts, or without the bare key where it is needed.
            EditError: if the two keys are orthogonal in C⁻¹, or the key is zero.
        """
        if keys.shape[1] != 1:
            raise ValueError(f"rank one takes one fact at a time, got {keys.shape[1]}")
        if bare is None and self.uses_bare:
            raise ValueError("the bare prompt's key is needed in the denominator")
        direction = keys if self._factor is None else torch.cholesky_solve(keys, self._factor)  # C⁻¹ k̄, (d_in, 1)
        other = bare if bare is not None and self.uses_bare else keys
        scale = (other.T @ direction).squeeze()
        own = (keys.T @ direction).squeeze()
        if self._settings.least_agreement > 0 and bool(scale < self._settings.least_agreement * own):
            other, scale = keys, own
        if not bool(scale.abs() > 1e-12 * other.norm() * direction.norm()):
            raise EditError(
                f"the fact's key gives no direction to write in (kᵀC⁻¹k̄ = {float(scale):.3g})",
                remedy="Take a method that averages its keys in all places (r_rome), or another layer",
                code="KEY_WITHOUT_DIRECTION",
            )
        return LowRank(residuals, direction.T / scale)

    def remember(self, keys: Float[Tensor, "d_in u"]) -> RankOneLayer:
        return self
