"""Numbers of a comparison as sums over clusters, so that two editors can be compared cluster by cluster.

A number is a function of a few sums over all facts. Drawing facts with replacement gives its interval, and drawing the
same facts for two editors gives the interval of their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from errata.results.records import Record, Summary, interval_of, resampled_sums

Statistic: TypeAlias = Literal["mean", "relative", "calibration", "slope"]
BINS: Final = 10  # of confidences, of equal width
_RESAMPLES: Final = 1000


def _mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (total, count)."""
    found: NDArray[np.float64] = sums[:, 0] / sums[:, 1]
    return found


def _relative(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """One mean over another, of (total, count, total of the other, its count)."""
    found: NDArray[np.float64] = _mean(sums[:, :2]) / _mean(sums[:, 2:])
    return found


def _calibration(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected calibration error, of (confidence less correctness in each bin …, count)."""
    found: NDArray[np.float64] = np.abs(sums[:, :-1]).sum(1) / sums[:, -1]
    return found


def _slope(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the least-squares line, of (count, x, y, x², xy); NaN if all x are equal."""
    count, x, y, xx, xy = sums.T
    spread = count * xx - x**2
    found: NDArray[np.float64] = np.where(spread > 1e-12 * count**2, (count * xy - x * y) / spread, np.nan)
    return found


_STATISTICS: Final[Mapping[Statistic, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "mean": _mean,
    "relative": _relative,
    "calibration": _calibration,
    "slope": _slope,
}


@dataclass(frozen=True, slots=True)
class Tally:
    """A number as sums over clusters.

    Attributes:
        statistic: how the number follows from the sums.
        clusters: names of facts, or of other subjects.
        sums: for each cluster its part of each sum.
    """

    statistic: Statistic
    clusters: tuple[str, ...]
    sums: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, statistic: Statistic, parts: Iterable[tuple[str, Sequence[float]]]) -> Tally:
        """Sum parts by cluster, in order of first occurrence."""
        sums: dict[str, list[float]] = {}
        for cluster, part in parts:
            own = sums.setdefault(cluster, [0.0] * len(part))
            sums[cluster] = [a + b for a, b in zip(own, part, strict=True)]
        return cls(statistic, tuple(sums), tuple(map(tuple, sums.values())))

    @classmethod
    def mean_of(cls, values: Iterable[tuple[str, float]]) -> Tally:
        """The mean of values, each with its cluster."""
        return cls.of("mean", ((cluster, (float(value), 1.0)) for cluster, value in values))

    @classmethod
    def mean_of_records(cls, records: Iterable[Record]) -> Tally:
        return cls.mean_of((record.fact, record.value) for record in records)

    @classmethod
    def calibration_of(cls, answers: Iterable[tuple[str, float, bool]]) -> Tally:
        """Expected calibration error over ``BINS`` bins, of (cluster, confidence, whether it is right)."""

        def part(confidence: float, right: bool) -> list[float]:
            bins = [0.0] * BINS
            bins[min(int(confidence * BINS), BINS - 1)] = confidence - right
            return [*bins, 1.0]

        return cls.of("calibration", ((cluster, part(confidence, right)) for cluster, confidence, right in answers))

    @classmethod
    def slope_of(cls, points: Iterable[tuple[str, float, float]]) -> Tally:
        """The slope of y over x, of (cluster, x, y)."""
        return cls.of("slope", ((cluster, (1.0, x, y, x * x, x * y)) for cluster, x, y in points))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Tally:
        """The inverse of ``asdict``, also after JSON."""
        return cls(record["statistic"], tuple(record["clusters"]), tuple(map(tuple, record["sums"])))

    @property
    def value(self) -> float:
        """The number; NaN if the sums give none."""
        return float(self._of(np.array(self.sums).sum(0)[None])[0]) if self.clusters else float("nan")

    def summary(self, name: str, *, seed: int = 0) -> Summary:
        """The number with its 95 % interval; ``n`` and ``prompts`` are clusters."""
        low, high = interval_of(self._drawn(seed), len(self.clusters))
        return Summary(name, "after", self.value, low, high, len(self.clusters), len(self.clusters))

    def difference(self, other: Tally, name: str, *, magnitude: bool = False, seed: int = 0) -> Summary | None:
        """This number less another's, with the interval over the clusters, which both must share; else None.

        Args:
            magnitude: compare distances from 0.
        """
        if not self.clusters or self.clusters != other.clusters:
            return None
        one, two, mean, base = self._drawn(seed), other._drawn(seed), self.value, other.value
        if magnitude:
            one, two, mean, base = np.abs(one), np.abs(two), abs(mean), abs(base)
        low, high = interval_of(one - two, len(self.clusters))
        return Summary(name, "after", mean - base, low, high, len(self.clusters), len(self.clusters))

    def _drawn(self, seed: int) -> NDArray[np.float64]:
        # Equal clusters and seeds draw the same clusters.
        return self._of(resampled_sums(np.array(self.sums).T, seed=seed, resamples=_RESAMPLES))

    def _of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return _STATISTICS[self.statistic](sums)
