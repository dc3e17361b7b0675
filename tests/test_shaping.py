"""Shapers against slow ones, and what must hold of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from errata.editing.shaping import SHAPERS, BatchShaper, NormCap, Prune, Rectify, RunShaper, TargetShaper

from tests.reference import shaping as slow


def random_matrix(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_rectify_keeps_the_relatively_largest_entries(share: float) -> None:
    change, weight = random_matrix(7, 9, seed=0), random_matrix(7, 9, seed=1)
    mask = Rectify(share=share).mask(change, weight)
    assert int(mask.sum()) == round(share * 63)
    assert torch.equal(torch.where(mask, change, 0.0), slow.rectified(change, weight, share=share))


def test_rectify_keeps_changes_of_zero_weights() -> None:
    change, weight = torch.full((2, 2), 0.1).double(), torch.tensor([[0.0, 1.0], [1.0, 1.0]]).double()
    assert Rectify(share=0.25).mask(change, weight).tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("rank", [1, 4, 12])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_prune_equals_the_dense_one(rank: int, scale: float) -> None:
    left, right = scale * random_matrix(7, rank, seed=0), random_matrix(rank, 9, seed=1)
    weight = random_matrix(7, 9, seed=2)
    new_left, new_right = Prune().factors(left, right, weight)
    torch.testing.assert_close(new_left @ new_right, slow.pruned(left @ right, weight), rtol=1e-9, atol=1e-9)
    assert new_left.shape[1] <= min(rank, 7)


def test_prune_leaves_small_changes_alone_and_is_not_felt_twice() -> None:
    left, right, weight = random_matrix(7, 3, seed=0), random_matrix(3, 9, seed=1), random_matrix(7, 9, seed=2)
    small = 1e-3 * left
    kept_left, kept_right = Prune().factors(small, right, weight)
    torch.testing.assert_close(kept_left @ kept_right, small @ right)
    once = Prune().factors(1e4 * left, right, weight)
    largest = float(torch.linalg.svdvals(weight)[0])
    values = torch.linalg.svdvals(once[0] @ once[1])
    assert float(values[0]) > largest  # pressed, not cut
    assert float(values[0]) < 2 * largest + 10


def test_prune_on_top_counts_the_change_once_pruned_and_once_as_it_is() -> None:
    left, right, weight = 30 * random_matrix(7, 3, seed=0), random_matrix(3, 9, seed=1), random_matrix(7, 9, seed=2)
    top_left, top_right = Prune(on_top=True).factors(left, right, weight)
    expected = left @ right + slow.pruned(left @ right, weight)
    torch.testing.assert_close(top_left @ top_right, expected, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10**6), mean=st.floats(0.1, 10))
def test_norm_cap_equals_the_slow_one_and_lets_no_target_grow(seed: int, mean: float) -> None:
    origin, delta = random_matrix(5, 4, seed=seed), random_matrix(5, 4, seed=seed + 1)
    delta[:, 2] = 0
    capped = NormCap().target(origin, delta, mean)
    expected = torch.stack([slow.capped(origin[:, i], delta[:, i], mean) for i in range(4)], dim=1)
    torch.testing.assert_close(capped, expected, rtol=1e-9, atol=1e-9)
    assert not capped[:, 2].any()
    most = origin.norm(dim=0).clamp_min(mean)
    assert bool(((origin + capped).norm(dim=0) <= most * (1 + 1e-9)).all())


def test_every_shaper_acts_at_one_place() -> None:
    places = (TargetShaper, BatchShaper, RunShaper)
    made = {kind: SHAPERS[kind]() for kind in SHAPERS}
    acts = {kind: [isinstance(shaper, place) for place in places] for kind, shaper in made.items()}
    assert acts == {"rect": [False, True, False], "prune": [False, False, True], "norm_cap": [True, False, False]}
