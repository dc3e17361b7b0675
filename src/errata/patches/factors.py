"""The algebra of changes in factors: norms, ranks and angles of ΔW = L·R, without forming it where it is low-rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import InputError
from errata.models.weights import LowRankTerm, SparseTerm, Term


def shape_of(term: Term) -> torch.Size:
    """(d_out, d_in) of the matrix that a term changes."""
    if isinstance(term, SparseTerm):
        return term.mask.shape
    assert isinstance(term, LowRankTerm)
    return torch.Size((term.left.shape[0], term.right.shape[1]))


def dense(terms: Sequence[Term]) -> Float[Tensor, "d_out d_in"]:
    """ΔW of several terms of one layer, float64."""
    total = torch.zeros(shape_of(terms[0]), dtype=torch.float64)
    for term in terms:
        term.add_to(total)
    return total


def stacked(terms: Sequence[Term]) -> tuple[Float[Tensor, "d_out n"], Float[Tensor, "n d_in"]] | None:
    """All of one layer's terms as one product, float64 on the CPU; None where one of them is sparse."""
    factors = [term for term in terms if isinstance(term, LowRankTerm)]
    if len(factors) < len(terms):
        return None
    left = torch.cat([term.left.double().cpu() for term in factors], dim=1)
    right = torch.cat([term.right.double().cpu() for term in factors], dim=0)
    return left, right


def inner(first: Sequence[Term], second: Sequence[Term]) -> float:
    """⟨A, B⟩ = tr(Aᵀ B) of two changes of one layer."""
    one, other = stacked(first), stacked(second)
    if one is None or other is None:
        return float((dense(first) * dense(second)).sum())
    # ⟨LR, L'R'⟩ = tr(LᵀL' · R'Rᵀ): nothing of size d_out × d_in is formed.
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())


def norm(terms: Sequence[Term]) -> float:
    """Frobenius norm of the whole ΔW of one layer."""
    return max(0.0, inner(terms, terms)) ** 0.5


def singular_values(terms: Sequence[Term]) -> Float[Tensor, "n"]:
    """The singular values of one layer's ΔW, largest first, float64."""
    product = stacked(terms)
    if product is None:
        return torch.linalg.svdvals(dense(terms))
    left, right = product
    # Those of L·R are those of the small matrix between the orthogonal factors of L and Rᵀ.
    return torch.linalg.svdvals(torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T)


def rank(terms: Sequence[Term]) -> int:
    """How many singular values count: those above float32's precision times the largest."""
    values = singular_values(terms)
    if not len(values) or not bool(values[0] > 0):
        return 0
    return int((values > values[0] * torch.finfo(torch.float32).eps * max(shape_of(terms[0]))).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """ΔW of one layer in two factors, and how much of it they leave out.

    Attributes:
        layer: the block.
        left: (d_out, r) float32.
        right: (r, d_in) float32.
        needed: the rank that leaves nothing out.
        kept: share of the sum of ΔW's singular values, 0 to 1.
        error: ‖ΔW − left · right‖ / ‖ΔW‖ (Frobenius), rounding to float32 aside.
    """

    layer: int
    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]
    needed: int
    kept: float = 1.0
    error: float = 0.0

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.left.shape[0], self.right.shape[1]

    def padded(self, rank: int) -> tuple[Float[Tensor, "d_out rank"], Float[Tensor, "rank d_in"]]:
        """The same change in factors of a higher rank: zeros stand behind."""
        more = rank - self.rank
        pad = torch.nn.functional.pad
        return pad(self.left, (0, more)), pad(self.right, (0, 0, 0, more))


@dataclass(frozen=True, slots=True, eq=False)
class Truncated:
    """The best factors of a rank.

    Attributes:
        left: (d_out, r) float32, U √Σ.
        right: (r, d_in) float32, √Σ Vᵀ.
        values: (k,) float64, all singular values of what was approximated, largest first; the first r are kept.
    """

    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]
    values: Float[Tensor, "k"]

    @property
    def kept(self) -> float:
        """Share of the sum of singular values, 0 to 1; 1 for a change that is zero."""
        total = float(self.values.sum())
        return float(self.values[: self.left.shape[1]].sum()) / total if total else 1.0

    @property
    def error(self) -> float:
        """‖ΔW − left · right‖ / ‖ΔW‖ = √(Σ σ² left out / Σ σ²); 0 for a change that is zero."""
        total = float(self.values.norm())
        return float(self.values[self.left.shape[1] :].norm()) / total if total else 0.0


def truncate(left: Float[Tensor, "d_out n"], right: Float[Tensor, "n d_in"], rank: int) -> Truncated:
    """The best approximation of left · right of a rank in the Frobenius norm (Eckart and Young 1936,
    doi:10.1007/BF02288367), in float64 and without forming the product: its singular values are those of the small
    matrix between the orthogonal factors of left and rightᵀ.

    Args:
        rank: r, at least 1; what lies above k = min(d_out, n, d_in) is not used.
    """
    outer, upper = torch.linalg.qr(left.double())
    inner, lower = torch.linalg.qr(right.double().T)
    u, values, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return _cut(outer @ u, values, vh @ inner.T, rank)


def truncate_dense(change: Float[Tensor, "d_out d_in"], rank: int) -> Truncated:
    """As ``truncate``, of a change that has no factors."""
    u, values, vh = torch.linalg.svd(change.double(), full_matrices=False)
    return _cut(u, values, vh, rank)


def needed_rank(terms: Sequence[Term]) -> int:
    """The rank that leaves nothing of these changes of one layer out: that of their factors side by side, and never
    more than min(d_out, d_in).

    Raises:
        InputError: they are changes of matrices of different shapes, or not all of their numbers are finite.
    """
    layer = terms[0].layer
    shapes = {tuple(shape_of(term)) for term in terms}
    if len(shapes) > 1:
        shown = " and ".join(f"{rows} × {columns}" for rows, columns in sorted(shapes))
        raise InputError(
            f"the patches change matrices of {shown} in layer {layer}: they are for different models",
            remedy="Give patches that were made one after another on one model",
            code="PATCH_SHAPE_MISMATCH",
        )
    if not all(bool(torch.isfinite(tensor).all()) for term in terms for tensor in _tensors(term)):
        raise InputError(
            f"the change of layer {layer} holds numbers that are not finite",
            remedy="Make the patch anew",
            code="PATCH_NOT_FINITE",
        )
    ranks = [term.left.shape[1] for term in terms if isinstance(term, LowRankTerm)]
    most = min(*shapes.pop())
    return min(sum(ranks), most) if len(ranks) == len(terms) else most


def factors_of(terms: Sequence[Term], needed: int, rank: int | None) -> Factors:
    """The changes of one layer in one pair of factors.

    Args:
        needed: see ``needed_rank``.
        rank: the most that is allowed; None, or no less than ``needed``, gives all of the change.
    """
    layer = terms[0].layer
    factored = [term for term in terms if isinstance(term, LowRankTerm)]
    if len(factored) < len(terms):
        found = truncate_dense(dense(terms), needed if rank is None else rank)
    else:
        left = torch.cat([term.left for term in factored], dim=1).cpu()
        right = torch.cat([term.right for term in factored], dim=0).cpu()
        if left.shape[1] == needed and (rank is None or rank >= needed):
            return Factors(layer, *levelled(left, right), needed)
        found = truncate(left, right, needed if rank is None else min(rank, needed))
    return Factors(layer, found.left, found.right, needed, found.kept, found.error)


def levelled(
    left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"]
) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]:
    """The same product in float32, every column of left about as long as its row of right.

    MEMIT's residuals are a thousand times as long as its solved keys, and servers load adapters in half precision,
    whose range ends. The scales are powers of two, so not one bit of the product changes.
    """
    lengths, widths = left.double().norm(dim=0), right.double().norm(dim=1)
    both = (lengths > 0) & (widths > 0)
    halves = torch.where(both, (widths / lengths).log2() / 2, 0.0).round()
    scale = torch.exp2(halves).to(left)
    return (left * scale).float(), (right / scale[:, None]).float()


def _cut(u: Float[Tensor, "d_out k"], values: Float[Tensor, "k"], vh: Float[Tensor, "k d_in"], rank: int) -> Truncated:
    root = values[:rank].sqrt()
    return Truncated((u[:, :rank] * root).float(), (root[:, None] * vh[:rank]).float(), values)


def _tensors(term: Term) -> tuple[Tensor, ...]:
    if isinstance(term, SparseTerm):
        return (term.values,)
    assert isinstance(term, LowRankTerm)
    return term.left, term.right
