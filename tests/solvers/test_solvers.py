"""Factored solvers against dense float64 solves, and what must hold of any solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from errata.editing.solvers import SOLVERS, AnySolver
from errata.editing.solvers.base import LowRank, Solver
from errata.editing.solvers.equality import Equality
from errata.editing.solvers.least_squares import LeastSquares
from errata.editing.solvers.neurons import Neurons, chosen_neurons
from errata.editing.solvers.null_space import NullSpace
from errata.editing.solvers.rank_one import RankOne
from errata.errors import EditError

from tests.reference import solvers as dense
from tests.support.errors import raises_code

D_IN, D_OUT = 14, 9
RIDGE, THRESHOLD, L2 = 0.3, 0.05, 0.7
RELATIVE = 1e-9


def random_matrix(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_moment(width: int = D_IN, *, seed: int = 1) -> Tensor:
    """A second moment with eigenvalues from 1e-3 to 1e2, as spread as those of keys are; about half under 0.05."""
    vectors, _ = torch.linalg.qr(random_matrix(width, width, seed=seed))
    return (vectors * torch.logspace(-3, 2, width, dtype=torch.float64)) @ vectors.T


def assert_near(ours: Tensor, expected: Tensor, relative: float = RELATIVE) -> None:
    assert ours.dtype == torch.float64
    error = float((ours - expected).norm() / expected.norm())
    assert error < relative


@dataclass(frozen=True)
class Case:
    """A solver, and its dense reference as a function of K, R, C and the keys of earlier batches."""

    solver: Solver
    reference: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    history: bool


CASES = {
    "least_squares": Case(
        LeastSquares(ridge=RIDGE, history=False),
        lambda k, r, c, earlier: dense.least_squares(k, r, c, ridge=RIDGE),
        history=False,
    ),
    "least_squares with history": Case(
        LeastSquares(ridge=RIDGE, history=True),
        lambda k, r, c, earlier: dense.least_squares(k, r, c, ridge=RIDGE, earlier=earlier),
        history=True,
    ),
    "null_space": Case(
        NullSpace(threshold=THRESHOLD, l2=L2, history=True),
        lambda k, r, c, earlier: dense.null_space(k, r, c, threshold=THRESHOLD, l2=L2, earlier=earlier),
        history=True,
    ),
    "null_space without history": Case(
        NullSpace(threshold=THRESHOLD, l2=L2, history=False),
        lambda k, r, c, earlier: dense.null_space(k, r, c, threshold=THRESHOLD, l2=L2),
        history=False,
    ),
}
CASES |= {
    "equality": Case(
        Equality(ridge=0.2, ridge_of_one=0.05),
        lambda k, r, c, earlier: dense.equality(k, r, c, ridge=0.05 if k.shape[1] == 1 else 0.2),
        history=False,
    ),
    "neurons": Case(
        Neurons(ridge=RIDGE, share=0.6, history=True),
        lambda k, r, c, earlier: dense.neurons(k, r, c, ridge=RIDGE, share=0.6, earlier=earlier),
        history=True,
    ),
    "all neurons": Case(
        Neurons(ridge=RIDGE, share=1.0, history=True),
        lambda k, r, c, earlier: dense.least_squares(k, r, c, ridge=RIDGE, earlier=earlier),
        history=True,
    ),
}
HISTORIES = [name for name, case in CASES.items() if case.history]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_one_batch_equals_the_dense_solve(case: Case, subtests: pytest.Subtests) -> None:
    moment = random_moment()
    for facts in (1, 5, D_IN, D_IN + 7):
        with subtests.test(f"{facts} facts"):
            keys, residuals = random_matrix(D_IN, facts, seed=2), random_matrix(D_OUT, facts, seed=3)
            change = case.solver.prepare(moment).solve(keys, residuals)
            assert change.left.shape == (D_OUT, facts)
            assert change.right.shape == (facts, D_IN)
            assert_near(change.dense(), case.reference(keys, residuals, moment, None))


def test_sequential_batches_equal_the_dense_solves(case: Case, subtests: pytest.Subtests) -> None:
    # Few facts (the keys stay stacked), many (they are folded in between, in one batch at once, and again and again).
    for sizes in ((2, 1, 3), (5, 9, 4, 13), (30, 2, 3), (1, 40, 1), (3,) * 12):
        with subtests.test(str(sizes)):
            check_batches(case, sizes)


def check_batches(case: Case, sizes: Sequence[int]) -> None:
    moment = random_moment()
    state = case.solver.prepare(moment)
    earlier = torch.zeros(D_IN, 0, dtype=torch.float64)
    for index, size in enumerate(sizes):
        keys, residuals = random_matrix(D_IN, size, seed=10 + index), random_matrix(D_OUT, size, seed=50 + index)
        assert_near(state.solve(keys, residuals).dense(), case.reference(keys, residuals, moment, earlier))
        # What is remembered are the keys after the batch was written, which are not those it was solved with.
        written = keys + 0.1 * random_matrix(D_IN, size, seed=90 + index)
        state = state.remember(written)
        earlier = torch.cat([earlier, written], dim=1)


@pytest.mark.parametrize("name", HISTORIES)
def test_history_matters(name: str) -> None:
    """The changes that history makes are far above the tolerance of the tests above."""
    keys, residuals = random_matrix(D_IN, 3, seed=2), random_matrix(D_OUT, 3, seed=3)
    state = CASES[name].solver.prepare(random_moment())
    alone = state.solve(keys, residuals).dense()
    later = state.remember(random_matrix(D_IN, 3, seed=4)).solve(keys, residuals).dense()
    assert float((later - alone).norm() / alone.norm()) > 0.01


def test_without_history_nothing_is_remembered() -> None:
    keys, residuals = random_matrix(D_IN, 3, seed=2), random_matrix(D_OUT, 3, seed=3)
    for name in sorted(set(CASES) - set(HISTORIES)):
        state = CASES[name].solver.prepare(random_moment())
        later = state.remember(random_matrix(D_IN, 40, seed=4))
        assert torch.equal(state.solve(keys, residuals).dense(), later.solve(keys, residuals).dense())


def test_remembering_leaves_the_old_state_alone(case: Case) -> None:
    """A run can go back: from one state, several futures."""
    keys, residuals = random_matrix(D_IN, 3, seed=2), random_matrix(D_OUT, 3, seed=3)
    states, solved = [case.solver.prepare(random_moment())], []
    for index in range(6):  # over the fold of both solvers
        solved.append(states[-1].solve(keys, residuals).dense())
        states.append(states[-1].remember(random_matrix(D_IN, 4, seed=20 + index)))
    for state, change in zip(states, solved, strict=False):
        state.remember(random_matrix(D_IN, 50, seed=60))
        assert torch.equal(state.solve(keys, residuals).dense(), change)


def test_solving_changes_neither_the_state_nor_what_it_is_given(case: Case) -> None:
    moment, keys, residuals = random_moment(), random_matrix(D_IN, 5, seed=2), random_matrix(D_OUT, 5, seed=3)
    given = (moment.clone(), keys.clone(), residuals.clone())
    state = case.solver.prepare(moment).remember(keys)
    first = state.solve(keys, residuals).dense()
    state.solve(random_matrix(D_IN, 40, seed=5), random_matrix(D_OUT, 40, seed=6))
    assert torch.equal(state.solve(keys, residuals).dense(), first)
    assert all(torch.equal(now, then) for now, then in zip((moment, keys, residuals), given, strict=True))


def test_no_residual_no_change(case: Case) -> None:
    change = case.solver.prepare(random_moment()).solve(random_matrix(D_IN, 4, seed=2), torch.zeros(D_OUT, 4).double())
    assert not change.dense().any()


def test_with_a_vanishing_ridge_the_keys_reach_their_targets() -> None:
    keys, residuals = random_matrix(D_IN, 4, seed=2), random_matrix(D_OUT, 4, seed=3)
    change = LeastSquares(ridge=1e-9, history=False).prepare(random_moment()).solve(keys, residuals).dense()
    torch.testing.assert_close(change @ keys, residuals, rtol=1e-5, atol=1e-5)
    nearly_all = NullSpace(threshold=1e3, l2=1e-9, history=True).prepare(random_moment()).solve(keys, residuals).dense()
    torch.testing.assert_close(nearly_all @ keys, residuals, rtol=1e-5, atol=1e-5)


# Properties --------------------------------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K, R, C and the keys of an earlier batch, of any small size."""
    d_in, d_out = draw(st.integers(2, 16)), draw(st.integers(1, 8))
    facts, before, seed = draw(st.integers(1, 20)), draw(st.integers(0, 20)), draw(st.integers(0, 10_000))
    return (
        random_matrix(d_in, facts, seed=seed),
        random_matrix(d_out, facts, seed=seed + 1),
        random_moment(d_in, seed=seed + 2),
        random_matrix(d_in, before, seed=seed + 3),
    )


Problem = tuple[Tensor, Tensor, Tensor, Tensor]


@given(problem=problems())
def test_any_problem_equals_the_dense_solve(problem: Problem) -> None:
    keys, residuals, moment, earlier = problem
    for case in CASES.values():
        change = case.solver.prepare(moment).remember(earlier).solve(keys, residuals).dense()
        assert_near(change, case.reference(keys, residuals, moment, earlier), 1e-8)


@given(problem=problems())
def test_null_space_updates_stay_in_the_null_space(problem: Problem) -> None:
    """ΔW (I − P) = 0, and so ordinary keys are moved by at most √threshold: tr(ΔW C ΔWᵀ) ≤ threshold · ‖ΔW‖²."""
    keys, residuals, moment, earlier = problem
    change = (
        NullSpace(threshold=THRESHOLD, l2=L2, history=True)
        .prepare(moment)
        .remember(earlier)
        .solve(keys, residuals)
        .dense()
    )
    outside = torch.eye(len(moment)).double() - dense.null_space_projector(moment, THRESHOLD)
    size = float(change.norm())
    assert size > 0
    assert float((change @ outside).norm()) <= 1e-10 * size
    assert float((change @ moment @ change.T).trace()) <= THRESHOLD * size**2 * (1 + 1e-9)


@given(problem=problems(), order=st.randoms(use_true_random=False))
def test_the_order_of_facts_does_not_matter(problem: Problem, order: object) -> None:
    keys, residuals, moment, earlier = problem
    shuffled = list(range(keys.shape[1]))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    for case in CASES.values():
        state = case.solver.prepare(moment).remember(earlier)
        change = state.solve(keys, residuals).dense()
        assert_near(state.solve(keys[:, shuffled], residuals[:, shuffled]).dense(), change, 1e-8)


@given(problem=problems(), scale=st.floats(-3, 3).filter(lambda value: abs(value) > 1e-3))
def test_updates_are_linear_in_the_residual(problem: Problem, scale: float) -> None:
    keys, residuals, moment, _ = problem
    for case in CASES.values():
        state = case.solver.prepare(moment)
        assert_near(state.solve(keys, scale * residuals).dense(), scale * state.solve(keys, residuals).dense())


# Errors and the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", [(1.0, 1.0, 0.0), (1.0, 1.0, -1.0), (1.0, 1.0, float("nan"))])
def test_a_second_moment_that_is_not_positive_definite_is_refused(spectrum: tuple[float, ...]) -> None:
    moment = torch.diag(torch.tensor(spectrum, dtype=torch.float64))
    with raises_code("MATRIX_NOT_POSITIVE_DEFINITE", EditError, "the second moment of the keys"):
        LeastSquares(ridge=RIDGE, history=False).prepare(moment)


def test_an_empty_null_space_is_refused_and_the_least_eigenvalue_reported() -> None:
    with raises_code("NULL_SPACE_EMPTY", EditError, " 0.0001 ", " 0.001)"):
        NullSpace(threshold=1e-4, l2=1.0, history=True).prepare(random_moment())


def test_solvers_are_made_from_a_recipes_settings() -> None:
    assert set(SOLVERS) == {"least_squares", "null_space", "equality", "rank_one", "neurons"}
    assert all(SOLVERS[kind].model_fields["kind"].default == kind for kind in SOLVERS)
    assert TypeAdapter(AnySolver).validate_python({"kind": "rank_one", "denominator": "bare"}) == RankOne(
        denominator="bare"
    )


def test_factors_multiply_to_the_update() -> None:
    left, right = random_matrix(3, 2, seed=0), random_matrix(2, 4, seed=1)
    torch.testing.assert_close(LowRank(left, right).dense(), left @ right)


def test_relative_numbers_are_in_units_of_the_mean_eigenvalue() -> None:
    """So that scaling C, and the keys with it, scales ΔW by the inverse root and changes nothing else."""
    moment, keys, residuals = random_moment(), random_matrix(D_IN, 4, seed=3), random_matrix(D_OUT, 4, seed=4)
    unit = float(moment.diagonal().mean())
    relative = (
        NullSpace(threshold=0.02, l2=0.3, relative=True, history=True).prepare(moment).solve(keys, residuals).dense()
    )
    absolute = (
        NullSpace(threshold=0.02 * unit, l2=0.3 * unit, history=True).prepare(moment).solve(keys, residuals).dense()
    )
    assert_near(relative, absolute)
    scaled = (
        NullSpace(threshold=0.02, l2=0.3, relative=True, history=True)
        .prepare(100 * moment)
        .solve(10 * keys, residuals)
        .dense()
    )
    assert_near(10 * scaled, relative)


# Equality, rank one, neurons ------------------------------------------------------------------------------------------


@given(facts=st.integers(1, D_IN - 1), seed=st.integers(0, 10**6))
def test_without_a_ridge_the_equality_holds_exactly(facts: int, seed: int) -> None:
    keys, residuals = random_matrix(D_IN, facts, seed=seed), random_matrix(D_OUT, facts, seed=seed + 1)
    change = Equality(ridge=0.0).prepare(random_moment()).solve(keys, residuals).dense()
    assert_near(change @ keys, residuals, 1e-6)


def test_no_other_change_that_meets_the_equality_costs_ordinary_keys_less() -> None:
    moment, keys, residuals = random_moment(), random_matrix(D_IN, 4, seed=2), random_matrix(D_OUT, 4, seed=3)
    change = Equality(ridge=0.0).prepare(moment).solve(keys, residuals).dense()
    cost = float(torch.trace(change @ moment @ change.T))
    # What does not touch the keys: rows in the orthogonal complement of K.
    free = torch.linalg.svd(keys.T)[2][4:]
    for seed in range(5):
        other = change + 1e-2 * random_matrix(D_OUT, len(free), seed=seed) @ free
        assert_near(other @ keys, residuals, 1e-6)
        assert float(torch.trace(other @ moment @ other.T)) > cost


@pytest.mark.parametrize("denominator", ["bare", "averaged"])
@pytest.mark.parametrize("kind", ["measured", "identity"])
def test_rank_one_equals_its_formula(denominator: str, kind: str) -> None:
    moment, key, bare = random_moment(), random_matrix(D_IN, 1, seed=2), random_matrix(D_IN, 1, seed=3)
    residual = random_matrix(D_OUT, 1, seed=4)
    solver = RankOne(denominator=denominator, moment=kind)  # type: ignore[arg-type]
    change = solver.prepare(moment).solve(key, residual, bare)
    matrix = torch.eye(D_IN, dtype=torch.float64) if kind == "identity" else moment
    other = bare if denominator == "bare" else key
    assert_near(change.dense(), dense.rank_one(key[:, 0], other[:, 0], residual[:, 0], matrix))
    assert_near(change.dense() @ other, residual)  # the key of the denominator is the one that is met
    assert solver.uses_bare_keys is (denominator == "bare")


def test_rank_one_takes_the_averaged_key_where_the_bare_one_hardly_agrees_with_it() -> None:
    key, other = random_matrix(D_IN, 1, seed=2), random_matrix(D_IN, 1, seed=4)
    residual, moment = random_matrix(D_OUT, 1, seed=3), random_moment()
    inverse = torch.linalg.inv(moment)
    own = (key.T @ inverse @ key).squeeze()
    # A bare key of any wanted agreement: what other has along key is taken out, and a share of key put in.
    other = other - key * (other.T @ inverse @ key) / own
    for share, least, averaged in ((0.05, 0.5, True), (-0.2, 0.5, True), (0.6, 0.5, False), (0.05, 0.0, False)):
        bare = other + share * key
        change = RankOne(denominator="bare", least_agreement=least).prepare(moment).solve(key, residual, bare).dense()
        bare_or_averaged = key if averaged else bare
        assert_near(change, dense.rank_one(key[:, 0], bare_or_averaged[:, 0], residual[:, 0], moment))


def test_rank_one_takes_one_fact_and_refuses_a_key_without_direction() -> None:
    layer = RankOne(denominator="averaged").prepare(random_moment())
    with pytest.raises(ValueError, match="one fact at a time"):
        layer.solve(random_matrix(D_IN, 2, seed=0), random_matrix(D_OUT, 2, seed=1))
    with raises_code("KEY_WITHOUT_DIRECTION", EditError):
        layer.solve(torch.zeros(D_IN, 1).double(), random_matrix(D_OUT, 1, seed=1))


def test_neurons_are_those_with_the_largest_sums_and_others_stay() -> None:
    keys = torch.tensor([[1.0, -1.0], [0.0, 5.0], [-3.0, 0.0], [0.1, 0.1]]).double()
    # Sums 2, 5, 3, 0.2 of 10.2.
    assert chosen_neurons(keys, 0.5).tolist() == [1]
    assert chosen_neurons(keys, 0.79).tolist() == [1, 2]
    assert chosen_neurons(keys, 0.99).tolist() == [0, 1, 2]
    assert chosen_neurons(keys, 1.0).tolist() == [0, 1, 2, 3]
    assert chosen_neurons(keys, 0.01).tolist() == [1]  # never none
    change = (
        Neurons(ridge=1.0, share=0.5, history=True)
        .prepare(torch.eye(4).double())
        .solve(keys, random_matrix(3, 2, seed=0))
        .dense()
    )
    assert change[:, 1].abs().min() > 0
    assert not change[:, [0, 2, 3]].any()


def test_a_null_space_in_shares_is_that_of_the_same_directions_with_l2_in_their_energy() -> None:
    keys, residuals, moment = random_matrix(D_IN, 5, seed=2), random_matrix(D_OUT, 5, seed=3), random_moment()
    values = torch.linalg.eigvalsh(moment)
    count = round(0.6 * D_IN)
    threshold, l2 = float(values[count - 1 : count + 1].mean()), 2.0 * float(values[:count].sum())
    change = NullSpace(threshold=0.6, l2=2.0, shares=True, history=True).prepare(moment).solve(keys, residuals).dense()
    assert_near(change, dense.null_space(keys, residuals, moment, threshold=threshold, l2=l2))
    # Neither the scale of the keys nor one very large eigenvalue, such as an attention sink's, changes anything.
    scaled = (
        NullSpace(threshold=0.6, l2=2.0, shares=True, history=True)
        .prepare(9 * moment)
        .solve(3 * keys, residuals)
        .dense()
    )
    assert_near(3 * scaled, change)
    largest = torch.linalg.eigh(moment).eigenvectors[:, -1:]
    with_sink = moment + 1e4 * values[-1] * largest @ largest.T
    assert_near(
        NullSpace(threshold=0.6, l2=2.0, shares=True, history=True).prepare(with_sink).solve(keys, residuals).dense(),
        change,
        1e-6,
    )


def test_a_share_of_no_direction_is_refused() -> None:
    with raises_code("NULL_SPACE_EMPTY", EditError):
        NullSpace(threshold=1e-9, l2=1.0, shares=True, history=True).prepare(random_moment())
