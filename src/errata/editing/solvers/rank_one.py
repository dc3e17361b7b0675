"""ROME's solver: ΔW = r (C⁻¹ k̄)ᵀ / (kᵀ C⁻¹ k̄), one fact after another (Meng et al. 2022, eq. 2).

r is the residual v* − W k. ROME takes the bare prompt's key for k here and in r, and the averaged key k̄ for the
direction only, as its published code does; R-ROME (Gupta et al. 2024, arXiv:2403.07175) takes k̄ in all three places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, StrictFloat
from torch import Tensor

from errata.editing.solvers.base import Candidate, LowRank, Solver, cholesky
from errata.errors import EditError

LEAST_AGREEMENT = 0.5  # an update is at most twice the intended one


class RankOne(Solver):
    """ΔW = r (C⁻¹ k̄)ᵀ / (kᵀ C⁻¹ k̄), facts one after another.

    C is factorised once; a fact costs two triangular solves. A fact whose kᵀC⁻¹k̄ with the bare key is less than
    ``least_agreement`` of k̄ᵀC⁻¹k̄ has the averaged key in the denominator too; its update would otherwise be larger than
    intended by the inverse of that share. 0, as published, never does so.
    """

    kind: Literal["rank_one"] = "rank_one"
    denominator: Literal["bare", "averaged"] = Field(description="which key is k")
    moment: Literal["measured", "identity"] = Field(
        "measured", description="C: the measured key statistics, or the identity matrix"
    )
    least_agreement: StrictFloat = Field(
        0.0, ge=0, le=1, description="facts whose bare and averaged key agree less have the averaged one as k"
    )

    facts_at_once = 1

    @property
    def uses_bare_keys(self) -> bool:
        return self.denominator == "bare"

    @property
    def needs_moment(self) -> bool:
        return self.moment == "measured"

    def contradictions(self, *, rounds: bool) -> Iterator[str]:
        if rounds:
            yield "'rank_one' writes facts one after another; rounds are for facts that are solved together"

    @classmethod
    def start(cls, choices: Mapping[str, Any], columns: int) -> Candidate:
        return Candidate({"least_agreement": LEAST_AGREEMENT} if choices["denominator"] == "bare" else {})

    @property
    def unsearched(self) -> Mapping[str, str]:
        if not self.least_agreement:
            return {}
        share = self.least_agreement
        return {"least_agreement": f"{share:g}, so that no update is more than {1 / share:g} times the intended one"}

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
                f"the fact's key does not define a direction to write in (kᵀC⁻¹k̄ = {float(scale):.3g})",
                remedy="Use r_rome, which averages the key in all places, or another layer",
                code="KEY_WITHOUT_DIRECTION",
            )
        return LowRank(residuals, direction.T / scale)

    def agreement(self, keys: Float[Tensor, "d_in u"], bare: Float[Tensor, "d_in u"]) -> Float[Tensor, "u"]:
        """|kᵀC⁻¹k̄| / (‖k‖ ‖k̄‖) of each fact's bare key k and averaged key k̄, norms in C⁻¹ too: 1 if they are parallel.

        Where it is small, ROME divides by a small number (Yang et al. 2024, The Fall of ROME, arXiv:2406.11263).
        """
        if self._factor is not None:
            keys, bare = (torch.linalg.solve_triangular(self._factor, each, upper=False) for each in (keys, bare))
        return (keys * bare).sum(0).abs() / (keys.norm(dim=0) * bare.norm(dim=0))

    def remember(self, keys: Float[Tensor, "d_in u"]) -> RankOneLayer:
        return self
