"""The algebra of changes in factors: norms, ranks and angles of ΔW = L·R, without forming it where it is low-rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

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
