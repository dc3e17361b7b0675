"""CKA against explicit centred Gram matrices, its invariances and its interval; planes against a decomposition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from errata.analysis.common import fit_plane
from errata.analysis.hidden_shift import cka_interval, cosines, linear_cka, relative_distances
from errata.errors import MissingExtraError

from tests.reference.hidden_shift import cka


def states(seed: int, count: int = 12, width: int = 7) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Two sets that have something in common, far from the origin as hidden states are."""
    first = states(seed) + 20
    return first, first @ states(seed + 1, 7, 5) + noise * states(seed + 2, width=5)


@given(seed=st.integers(0, 10**6), noise=st.floats(0, 10))
def test_cka_is_that_of_centred_gram_matrices(seed: int, noise: float) -> None:
    first, second = mixed(seed, noise)
    assert float(linear_cka(first, second)) == pytest.approx(cka(first, second), rel=1e-9)


@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_cka_knows_no_rotation_no_scale_and_no_shift(seed: int, scale: float) -> None:
    first, second = mixed(seed, 2.0)
    turn = torch.linalg.qr(states(seed + 3, 7, 7)).Q
    assert float(linear_cka(first, first)) == pytest.approx(1, abs=1e-12)
    assert float(linear_cka(first, scale * first @ turn + 5)) == pytest.approx(1, abs=1e-9)
    alike = float(linear_cka(first, second))
    assert float(linear_cka(first @ turn, scale * second)) == pytest.approx(alike, rel=1e-9)
    assert float(linear_cka(second, first)) == pytest.approx(alike, rel=1e-9)
    assert 0 <= alike < 1


def test_a_draw_is_the_set_with_its_rows_repeated() -> None:
    first, second = mixed(0, 3.0)
    times = torch.randint(0, 4, (5, len(first)), generator=torch.Generator().manual_seed(1)).double()
    for draw, found in zip(times, linear_cka(first, second, times).tolist(), strict=True):
        rows = torch.repeat_interleave(torch.arange(len(first)), draw.long())
        assert found == pytest.approx(cka(first[rows], second[rows]), rel=1e-9)


def test_states_that_are_all_one_have_no_alignment() -> None:
    same = states(0)[:1].expand(6, 7)
    assert torch.isnan(linear_cka(same, states(1, 6))).all()
    assert torch.isnan(linear_cka(states(1, 6), same)).all()
    assert cka_interval(states(0, 1), states(1, 1), ["a"]) is None


def test_the_interval_is_about_the_value_also_with_more_dimensions_than_prompts() -> None:
    """Where the bare quantiles of draws with replacement lie above it: they hold prompts twice."""
    first = states(0, 30, 200)
    second = first + states(1, 30, 200)
    names = [str(index) for index in range(30)]
    value, low, high = cka_interval(first, second, names) or (0.0, None, None)
    assert value == pytest.approx(cka(first, second), rel=1e-9)
    assert low is not None
    assert high is not None
    assert low < value < high
    # As wide as the values of other samples of 30 prompts are apart.
    samples = [states(seed, 30, 200) for seed in range(2, 80, 2)]
    others = [float(linear_cka(one, one + states(100 + place, 30, 200))) for place, one in enumerate(samples)]
    spread = float(torch.tensor(others).std())
    assert 2 * spread < high - low < 10 * spread
    assert cka_interval(first, second, names) == (value, low, high)


def test_what_belongs_to_one_cluster_is_drawn_together() -> None:
    first, second = mixed(3, 5.0)
    twice, other = first.repeat(2, 1), second.repeat(2, 1)
    names = [str(index) for index in range(len(first))]
    together, alone = cka_interval(twice, other, names * 2), cka_interval(first, second, names)
    assert together == pytest.approx(alone, rel=1e-9)
    assert cka_interval(first, second, ["one"] * len(first)) == (pytest.approx(cka(first, second)), None, None)


def test_distances_and_cosines_of_right_angles() -> None:
    before, after = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    assert relative_distances(before, after).tolist() == pytest.approx([4 / 3, 2])
    assert cosines(before, after).tolist() == pytest.approx([0.6, -1])


def test_a_plane_is_that_of_the_two_largest_singular_values() -> None:
    found = states(5) * torch.tensor([5.0, 3.0, 1, 1, 1, 1, 1], dtype=torch.float64) + 7
    plane = fit_plane(found)
    assert plane is not None
    centred = found - found.mean(0)
    left, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    for index in range(2):
        sign = float(torch.sign(axes[index][axes[index].abs().argmax()]))
        assert torch.allclose(plane.axes[index], sign * axes[index])
        own = [point[index] for point in plane.points(found)]
        assert own == pytest.approx((sign * left[:, index] * sizes[index]).tolist())
        assert plane.shares[index] == pytest.approx(float(sizes[index] ** 2 / (sizes**2).sum()))
    assert plane.points(found[:1] + plane.axes[1])[0][1] == pytest.approx(plane.points(found)[0][1] + 1)
    turned = fit_plane(found.flip(0))
    assert turned is not None
    assert torch.allclose(turned.axes, plane.axes)


def test_few_states_have_no_plane_and_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undefined = (states(0, 2), states(0)[:1].expand(5, 7), torch.zeros(4, 3), states(0, 4, 1))
    assert [fit_plane(found) for found in undefined] == [None] * 4
    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"errata\[analysis\]"):
        fit_plane(states(0))
