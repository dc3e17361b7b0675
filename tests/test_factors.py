"""The algebra of changes in factors against the dense matrices themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errata.models.weights import DenseTerm, LowRankTerm, SparseTerm, Term
from errata.patches.factors import dense, inner, norm, rank, singular_values


def some_terms(seed: int, ranks: list[int], *, sparse: bool, full: bool = False) -> list[Term]:
    """Changes of one 6 × 9 matrix."""
    generator = torch.Generator().manual_seed(seed)
    terms: list[Term] = [
        LowRankTerm(3, torch.randn(6, size, generator=generator), torch.randn(size, 9, generator=generator))
        for size in ranks
    ]
    if sparse:
        mask = torch.rand(6, 9, generator=generator) < 0.4
        terms.append(SparseTerm(3, torch.randn(int(mask.sum()), generator=generator), mask))
    if full:
        terms.append(DenseTerm(3, torch.randn(6, 9, generator=generator)))
    return terms


CASES = {"seed": st.integers(0, 10**6), "ranks": st.lists(st.integers(1, 4), min_size=1, max_size=3)}


@given(**CASES, other=st.integers(0, 10**6), sparse=st.tuples(st.booleans(), st.booleans()), full=st.booleans())
def test_inner_products_and_norms_are_those_of_the_matrices(
    seed: int, ranks: list[int], other: int, sparse: tuple[bool, bool], full: bool
) -> None:
    first, second = some_terms(seed, ranks, sparse=sparse[0], full=full), some_terms(other, [2], sparse=sparse[1])
    one, two = dense(first), dense(second)
    assert first[0].shape == one.shape == (6, 9)
    assert inner(first, second) == pytest.approx(float((one * two).sum()), rel=1e-9, abs=1e-9)
    assert norm(first) == pytest.approx(float(one.norm()), rel=1e-9)
    added = sum((term.left.double() @ term.right.double() for term in first if isinstance(term, LowRankTerm)), one * 0)
    for term in first:
        if isinstance(term, SparseTerm):
            added[term.mask] += term.values.double()
        if isinstance(term, DenseTerm):
            added += term.value.double()
    torch.testing.assert_close(one, added)


@given(**CASES, sparse=st.booleans(), full=st.booleans())
def test_singular_values_and_ranks_are_those_of_the_matrix(
    seed: int, ranks: list[int], sparse: bool, full: bool
) -> None:
    terms = some_terms(seed, ranks, sparse=sparse, full=full)
    expected = torch.linalg.svdvals(dense(terms))
    found = singular_values(terms)
    torch.testing.assert_close(found[: len(expected)], expected[: len(found)], rtol=1e-6, atol=1e-9)
    assert not bool((expected[len(found) :] > 1e-6 * expected[0]).any())
    assert rank(terms) == int(torch.linalg.matrix_rank(dense(terms), rtol=1e-6))


def test_what_changes_nothing_has_no_rank() -> None:
    zero = [LowRankTerm(0, torch.zeros(6, 2), torch.ones(2, 9))]
    assert rank(zero) == 0
    assert norm(zero) == 0
    doubled = [LowRankTerm(0, torch.ones(6, 1), torch.ones(1, 9)) for _ in range(3)]
    assert rank(doubled) == 1
