"""Schedules as lists of steps, by hand for a few layers and by their rules for any."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.editing.schedules import SCHEDULES, ScheduleName, Step, boundary, even, replay, single, sqrt

layer_lists = st.lists(st.integers(0, 90), min_size=1, max_size=12, unique=True).map(sorted)


def test_even_divides_by_the_layers_left_not_by_their_distance() -> None:
    assert even([3, 4, 9]) == [Step(3, 9, 1 / 3), Step(4, 9, 1 / 2), Step(9, 9, 1.0)]


def test_sqrt_divides_by_the_root() -> None:
    assert sqrt([3, 4, 9]) == [Step(3, 9, 1 / math.sqrt(3)), Step(4, 9, 1 / math.sqrt(2)), Step(9, 9, 1.0)]


def test_boundary_writes_the_ends_each_with_its_own_target() -> None:
    assert boundary([3, 4, 9]) == [Step(3, 3, 1.0), Step(9, 9, 1.0)]
    assert boundary([5]) == [Step(5, 5, 1.0)]


def test_recipes_may_name_every_schedule() -> None:
    assert get_args(ScheduleName) == tuple(SCHEDULES)


def test_replay_takes_several_layers() -> None:
    assert replay([3, 9]) == [Step(3, 3, 1.0), Step(9, 9, 1.0, follows=3)]
    with pytest.raises(ValueError, match="needs several layers"):
        replay([3])


def test_single_takes_one_layer_only() -> None:
    assert single([5]) == [Step(5, 5, 1.0)]
    with pytest.raises(ValueError, match=r"one layer, got \[1, 2\]"):
        single([1, 2])


@given(layers=layer_lists)
def test_even_leaves_nothing_if_each_write_does_all_that_it_is_asked(layers: list[int]) -> None:
    remaining = 1.0
    for step in even(layers):
        remaining -= step.share * remaining
    assert remaining == pytest.approx(0, abs=1e-12)


@given(layers=layer_lists, name=st.sampled_from(["even", "sqrt", "boundary"]))
def test_layers_ascend_and_the_last_one_gets_all(layers: list[int], name: str) -> None:
    steps = SCHEDULES[name](layers)
    written = [step.layer for step in steps]
    assert written == sorted(set(written))
    assert set(written) <= set(layers)
    assert steps[-1] == Step(layers[-1], layers[-1], 1.0)
    assert all(step.target_layer >= step.layer for step in steps)
