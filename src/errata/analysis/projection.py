"""Vectors in a picture of two dimensions: their principal components. scikit-learn is imported here only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from errata.extras import require


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
