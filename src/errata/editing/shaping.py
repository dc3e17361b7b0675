"""Shaping of targets, of a batch's change, or of a whole run's change (methods.md, section 1, Shaping).

There is a base class for each of the three.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from pydantic import Field, StrictBool, StrictFloat
from torch import Tensor

from errata.utils.settings import Settings, by_kind
from errata.utils.tensors import from_float64, svd_of_product, to_float64


class TargetShaper(Settings, ABC):
    """Shapes δ before the solve."""

    @abstractmethod
    def target(
        self, origin: Float[Tensor, "d u"], delta: Float[Tensor, "d u"], unedited_norm: float
    ) -> Float[Tensor, "d u"]:
        """The shaped δ.

        Args:
            origin: h⁰.
            delta: δ.
            unedited_norm: the mean ‖h‖ of these facts' bare prompts at this layer on the unedited weights.
        """


class BatchShaper(Settings, ABC):
    """Shapes the change of one layer after all layers of a batch have been solved."""

    @abstractmethod
    def mask(
        self, change: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"]
    ) -> Bool[Tensor, "d_out d_in"]:
        """Mask of the entries of a batch's ΔW that are retained.

        Args:
            change: ΔW.
            weight: W at the start of the batch.
        """


class RunShaper(Settings, ABC):
    """Shapes the change of one layer since the first batch, in a copy of the weights that is evaluated and saved."""

    @abstractmethod
    def factors(
        self, left: Float[Tensor, "d_out n"], right: Float[Tensor, "n d_in"], weight: Float[Tensor, "d_out d_in"]
    ) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]:
        """The factors of the run's change as it is evaluated and saved.

        Args:
            left, right: the factors of W_now − W₀.
            weight: W₀.
        """


class Rectify(BatchShaper):
    """RECT: keep the entries with the largest relative change |ΔW / (W + ε)| (Gu et al. 2024, arXiv:2401.04700)."""

    kind: Literal["rect"] = "rect"
    share: StrictFloat = Field(0.4, gt=0, le=1, description="the part of the entries that stays")

    def mask(
        self, change: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"]
    ) -> Bool[Tensor, "d_out d_in"]:
        epsilon = 1e-8
        relative = (change / (weight.to(change) + epsilon)).abs().flatten()
        count = max(1, round(self.share * relative.numel()))
        mask = torch.zeros_like(relative, dtype=torch.bool)
        mask[relative.topk(count, sorted=False).indices] = True
        return mask.view_as(change)


class Prune(RunShaper):
    """PRUNE: large singular values of the whole change are reduced (Ma et al. 2024, arXiv:2405.16821).

    σ ≤ σ_max(W₀) stays; a larger σ becomes ln σ − ln σ_max + σ_max. It is always the whole change against W₀ that is
    pruned, so to prune twice is to prune once, and editing continues from the unpruned weights. With ``on_top``, as in
    the code of the AlphaEdit and BLUE papers' tables, the change counts twice, once pruned.
    """

    kind: Literal["prune"] = "prune"
    on_top: StrictBool = Field(
        False, description="add the pruned change to the edited weights, as some published code does"
    )

    def factors(
        self, left: Float[Tensor, "d_out n"], right: Float[Tensor, "n d_in"], weight: Float[Tensor, "d_out d_in"]
    ) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]:
        # σ_max from the smaller of WWᵀ and WᵀW: ten times faster than singular values.
        wide = to_float64(weight)
        wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
        largest = torch.linalg.eigvalsh(wide @ wide.T)[-1].clamp_min(0).sqrt()
        u, values, vh = svd_of_product(left, right)
        reduced = torch.where(values > largest, (values / largest).log() + largest, values)
        new_left, new_right = (from_float64(factor, left.dtype, left.device) for factor in (u * reduced, vh))
        if self.on_top:
            return torch.cat([left, new_left], dim=1), torch.cat([right, new_right], dim=0)
        return new_left, new_right


class NormCap(TargetShaper):
    """Ours: no target is longer than the unedited model's states are on average, or than its own fact's state was.

    z = h⁰ + δ becomes c·z with c = min(1, max(μ, ‖h⁰‖) / ‖z‖), μ the mean ‖h‖ of the batch's bare prompts at this
    layer on the unedited weights. A fact with δ = 0 keeps its target exactly.
    """

    kind: Literal["norm_cap"] = "norm_cap"

    def target(
        self, origin: Float[Tensor, "d u"], delta: Float[Tensor, "d u"], unedited_norm: float
    ) -> Float[Tensor, "d u"]:
        z = origin + delta
        most = origin.norm(dim=0).clamp_min(unedited_norm)
        norm = z.norm(dim=0)
        # An uncapped δ is returned bit for bit: h⁰ + δ − h⁰ would round it.
        return torch.where(norm > most, z * (most / norm) - origin, delta)


AnyShaper: TypeAlias = Annotated[Rectify | Prune | NormCap, Field(discriminator="kind")]
SHAPERS: Final[Mapping[str, type[TargetShaper | BatchShaper | RunShaper]]] = by_kind(AnyShaper)
