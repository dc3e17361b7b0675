"""The algebra of changes in factors: norms, ranks and angles of ΔW = L·R, without forming it where it is low-rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import InputError
from errata.models.weights import LowRankTerm, ModuleName, Place, Term
from errata.utils.tensors import svd_of_product, to_float64


def dense(terms: Sequence[Term]) -> Float[Tensor, "d_out d_in"]:
    """ΔW of several terms of one matrix, float64."""
    total = torch.zeros(terms[0].shape, dtype=torch.float64)
    for term in terms:
        term.add_to(total)
    return total


def stacked(terms: Sequence[Term]) -> tuple[Float[Tensor, "d_out n"], Float[Tensor, "n d_in"]] | None:
    """All terms of one matrix as one product, float64 on the CPU; None if one of them has no factors."""
    factors = [term for term in terms if isinstance(term, LowRankTerm)]
    if len(factors) < len(terms):
        return None
    left = torch.cat([to_float64(term.left).cpu() for term in factors], dim=1)
    right = torch.cat([to_float64(term.right).cpu() for term in factors], dim=0)
    return left, right


def inner(first: Sequence[Term], second: Sequence[Term]) -> float:
    """⟨A, B⟩ = tr(Aᵀ B) of two changes of one matrix."""
    one, other = stacked(first), stacked(second)
    if one is None or other is None:
        return float((dense(first) * dense(second)).sum())
    # ⟨LR, L'R'⟩ = tr(LᵀL' · R'Rᵀ): nothing of size d_out × d_in is formed.
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())


def norm(terms: Sequence[Term]) -> float:
    """Frobenius norm of the whole ΔW of one matrix."""
    return max(0.0, inner(terms, terms)) ** 0.5


def singular_values(terms: Sequence[Term]) -> Float[Tensor, "n"]:
    """The singular values of one matrix's ΔW, largest first, float64."""
    product = stacked(terms)
    if product is None:
        return torch.linalg.svdvals(dense(terms))
    left, right = product
    # Those of L·R are those of the small matrix between the orthogonal factors of L and Rᵀ.
    return torch.linalg.svdvals(torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T)


def rank(terms: Sequence[Term]) -> int:
    """The number of singular values above float32's precision times the largest."""
    values = singular_values(terms)
    if not len(values) or not bool(values[0] > 0):
        return 0
    return int((values > values[0] * torch.finfo(torch.float32).eps * max(terms[0].shape)).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """ΔW of one matrix in two factors, exactly or approximately."""

    layer: int
    left: Float[Tensor, "d_out r"]  # float32
    right: Float[Tensor, "r d_in"]  # float32
    exact_rank: int  # the rank at which nothing is lost
    retained_share: float = 1.0  # share of the sum of ΔW's singular values, 0 to 1
    error: float = 0.0  # ‖ΔW − left · right‖ / ‖ΔW‖ (Frobenius), rounding to float32 aside
    module: ModuleName = "down_proj"
    expert: int | None = None

    @property
    def place(self) -> Place:
        """The matrix that is changed."""
        return Place(self.layer, self.module, self.expert)

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.left.shape[0], self.right.shape[1]

    def padded(self, rank: int) -> tuple[Float[Tensor, "d_out rank"], Float[Tensor, "rank d_in"]]:
        """The factors padded with zeros to a higher rank."""
        more = rank - self.rank
        pad = torch.nn.functional.pad
        return pad(self.left, (0, more)), pad(self.right, (0, 0, 0, more))


def exact_rank(terms: Sequence[Term]) -> int:
    """The rank at which an approximation of these changes of one matrix loses nothing: that of their factors side by
    side, and at most min(d_out, d_in).

    Raises:
        InputError: if they change matrices of different shapes, or contain a value that is not finite.
    """
    place = terms[0].place
    shapes = {term.shape for term in terms}
    if len(shapes) > 1:
        shown = " and ".join(f"{rows} × {columns}" for rows, columns in sorted(shapes))
        what = f"the patches change matrices of {shown} in {place.title}: they are for different models"
        remedy = "Give patches that were made one after another on one model"
        raise InputError(what, remedy=remedy, code="PATCH_SHAPE_MISMATCH")
    if not all(term.is_finite for term in terms):
        what = f"the change of {place.title} contains values that are not finite"
        raise InputError(what, remedy="Make the patch again", code="PATCH_NOT_FINITE")
    ranks = [term.left.shape[1] for term in terms if isinstance(term, LowRankTerm)]
    most = min(*shapes.pop())
    return min(sum(ranks), most) if len(ranks) == len(terms) else most


def factors_of(terms: Sequence[Term], exact: int, rank: int | None) -> Factors:
    """The changes of one matrix in one pair of factors.

    The best approximation of a rank in the Frobenius norm (Eckart and Young 1936, doi:10.1007/BF02288367) keeps the
    largest singular values. It is computed in float64; left is U √Σ and right √Σ Vᵀ.

    Args:
        exact: see ``exact_rank``.
        rank: the highest that is allowed; None, or ``exact`` and above, loses nothing.
    """
    layer, module, expert = terms[0].place
    factored = [term for term in terms if isinstance(term, LowRankTerm)]
    if len(factored) < len(terms):
        u, values, vh = torch.linalg.svd(dense(terms), full_matrices=False)
    else:
        left = torch.cat([term.left for term in factored], dim=1).cpu()
        right = torch.cat([term.right for term in factored], dim=0).cpu()
        if left.shape[1] == exact and (rank is None or rank >= exact):
            return Factors(layer, *balanced(left, right), exact, module=module, expert=expert)
        u, values, vh = svd_of_product(left, right)
    rank = exact if rank is None else min(rank, exact)
    root = values[:rank].sqrt()
    total, length = float(values.sum()), float(values.norm())
    return Factors(
        layer,
        (u[:, :rank] * root).float(),
        (root[:, None] * vh[:rank]).float(),
        exact,
        float(values[:rank].sum()) / total if total else 1.0,
        float(values[rank:].norm()) / length if length else 0.0,  # √(Σ σ² left out / Σ σ²)
        module,
        expert,
    )


def balanced(
    left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"]
) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]:
    """The same product in float32, every column of left about as long as its row of right.

    MEMIT's residuals are a thousand times as long as its solved keys, and servers load adapters in half precision,
    which has a small range. The scales are powers of two, so no bit of the product changes.
    """
    lengths, widths = to_float64(left).norm(dim=0), to_float64(right).norm(dim=1)
    both = (lengths > 0) & (widths > 0)
    halves = torch.where(both, (widths / lengths).log2() / 2, 0.0).round()
    scale = torch.exp2(halves).to(left)
    return (left * scale).float(), (right / scale[:, None]).float()
