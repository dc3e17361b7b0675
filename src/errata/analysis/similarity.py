"""How alike two sets of hidden states are: per prompt, as whole sets (CKA), and as points of a plane (PCA).

scikit-learn is imported here only, where a plane is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from errata.analysis.findings import RESAMPLES
from errata.results.records import interval_of, resampled_sums
from errata.utils.optional import require

# What is left of a squared norm by centring counts as nothing below this share of it: float64's rounding.
_NOTHING = 1e-12


def relative_distances(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """‖h′ − h‖ / ‖h‖ of each row."""
    return (after - before).norm(dim=1) / before.norm(dim=1)


def cosines(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """The cosine between h and h′ of each row."""
    return (before * after).sum(1) / (before.norm(dim=1) * after.norm(dim=1))


def linear_cka(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n e"], times: Float[Tensor, "draws n"] | None = None
) -> Float[Tensor, "draws"]:
    """Linear centred kernel alignment ‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F), of centred columns; NaN where a set has no two
    states that differ.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited" (ICML), section 3.

    Args:
        times: how often each row counts, for each of several draws; once if not given.
    """
    x, y = first.double() - first.double().mean(0), second.double() - second.double().mean(0)
    counts = torch.ones(1, len(x), dtype=torch.float64) if times is None else times
    one, other = x @ x.T, y @ y.T
    both, _ = _alignment(one, other, counts)
    (own, own_whole), (others, others_whole) = _alignment(one, one, counts), _alignment(other, other, counts)
    constant = (own <= _NOTHING * own_whole) | (others <= _NOTHING * others_whole)
    return torch.where(constant, torch.nan, both / (own.clamp_min(0) * others.clamp_min(0)).sqrt())


def _alignment(
    one: Float[Tensor, "n n"], other: Float[Tensor, "n n"], times: Float[Tensor, "draws n"]
) -> tuple[Float[Tensor, "draws"], Float[Tensor, "draws"]]:
    """⟨HKH, HLH⟩ of two Gram matrices, row i being there wᵢ times, and ⟨K, L⟩, of the same order before centring.

    With N = Σ wᵢ: wᵀ(K∘L)w − (2/N) Σ wᵢ (Kw)ᵢ (Lw)ᵢ + (wᵀKw)(wᵀLw)/N². No draw's own matrix is formed.
    """
    total = times.sum(1)
    one_sums, other_sums = times @ one, times @ other
    whole = ((times @ (one * other)) * times).sum(1)
    crossed = (times * one_sums * other_sums).sum(1)
    corners = (one_sums * times).sum(1) * (other_sums * times).sum(1)
    return whole - 2 * crossed / total + corners / total**2, whole


def cka_interval(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n e"], clusters: Sequence[str], *, seed: int = 0
) -> tuple[float, float | None, float | None] | None:
    """``linear_cka`` with its 95 % bootstrap interval over clusters; None where it is undefined.

    A draw with replacement holds prompts several times over, and what is there twice is as alike before as after: all
    draws lie too high, with fewer prompts than dimensions by far more than they differ. So their spread about their own
    mean is laid about the value of all prompts.

    Args:
        clusters: what each row is about; the rows of a cluster are drawn together.

    Returns:
        (value, low, high), within 0 and 1; no interval of a single cluster.
    """
    whole = float(linear_cka(first, second))
    if not np.isfinite(whole):
        return None
    whole = min(whole, 1.0)  # rounding may leave it just above
    names = list(dict.fromkeys(clusters))
    if len(names) < 2:
        return whole, None, None
    times = resampled_sums(np.eye(len(names)), seed=seed, resamples=RESAMPLES)  # (draws, clusters)
    place = {name: index for index, name in enumerate(names)}
    drawn = linear_cka(first, second, torch.from_numpy(times)[:, [place[name] for name in clusters]]).numpy()
    low, high = interval_of(whole + drawn - np.nanmean(drawn), len(names))
    return whole, None if low is None else max(low, 0.0), None if high is None else min(high, 1.0)


def check_plane() -> None:
    """Raises MissingExtraError if planes cannot be fitted here."""
    require("the two-dimensional picture of hidden states", "analysis", "sklearn")


@dataclass(frozen=True, slots=True)
class Plane:
    """The two principal components of some states.

    Attributes:
        mean: (d,) of them.
        axes: (2, d) of unit length; the entry of an axis that is largest in size is positive.
        shares: of the states' variance along each axis.
    """

    mean: Float[Tensor, "d"]
    axes: Float[Tensor, "2 d"]
    shares: tuple[float, float]

    def points(self, states: Float[Tensor, "n d"]) -> list[tuple[float, float]]:
        """Where states lie in the plane, in the unit of their entries."""
        return [(x, y) for x, y in ((states.double() - self.mean) @ self.axes.T).tolist()]


def fit_plane(states: Float[Tensor, "n d"]) -> Plane | None:
    """The plane of most variance; None where fewer than three states, or equal ones, leave it open.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    check_plane()
    from sklearn.decomposition import PCA

    found = states.double()
    if len(found) < 3 or not bool((found - found[0]).any()):
        return None
    fitted = PCA(n_components=2, svd_solver="full").fit(found.numpy())
    axes = np.array(fitted.components_)
    largest = np.abs(axes).argmax(1)
    axes *= np.sign(axes[np.arange(2), largest])[:, None]
    first, second = fitted.explained_variance_ratio_.tolist()
    return Plane(torch.from_numpy(np.array(fitted.mean_)), torch.from_numpy(axes), (first, second))


# ----------------------------------------------------------------------------------------------------
# Vectors in a picture of two dimensions: their principal components. scikit-learn is imported here only.


@dataclass(frozen=True, slots=True)
class Projection:
    """Vectors along the two directions in which they vary most.

    Attributes:
        points: (vectors, 2), in the vectors' own unit, the mean of all vectors at the origin.
        shares: of the vectors' variance, along the first and the second.
    """

    points: Float[NDArray[np.float64], "n 2"]
    shares: tuple[float, float]


def check_projection() -> None:
    """Raises MissingExtraError if nothing can be projected here."""
    require("the projection to two dimensions", "analysis", "sklearn")


def project(vectors: Float[NDArray[np.float64], "n d"]) -> Projection | None:
    """The first two principal components, each with its sign such that its entry of largest absolute value is positive.

    Returns:
        None where there are no two directions to choose: fewer than two dimensions, or vectors that are all the same.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    check_projection()
    from sklearn.decomposition import PCA

    # The mean of equal vectors may differ from them in its last bits: to the eye they are one point.
    spread = float(np.abs(vectors - vectors[:1]).max(initial=0.0))
    if min(vectors.shape) < 2 or spread <= 1e-12 * float(np.abs(vectors).max()):
        return None
    found = PCA(n_components=2, svd_solver="full").fit(vectors)
    largest = np.abs(found.components_).argmax(axis=1)
    signs = np.sign(found.components_[[0, 1], largest])
    points = (vectors - found.mean_) @ (found.components_ * signs[:, None]).T
    first, second = (float(share) for share in found.explained_variance_ratio_)
    return Projection(points, (first, second))


def axis_label(number: int, share: float) -> str:
    """Of a picture's axis, with what is seen along it."""
    return f"principal component {number} ({share:.0%} of the variance; units of h)"
