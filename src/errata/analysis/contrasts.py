"""Effects in a factorial whose cells were all asked about the same facts, with intervals by bootstrap over facts.

Whole facts are drawn, in all cells at once, so that what makes a fact hard does not count as doubt about a difference.
The intervals say how far the effects *of these runs* depend on which facts were drawn; they say nothing of how other
runs (other contexts, other orders of facts) would vary, which the analysis of variance in ``variance`` sees in part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from errata.analysis.findings import RESAMPLES, Label, Row
from errata.analysis.variance import joined
from errata.evaluation.intervals import interval_of, resampled_sums

Cell = Mapping[str, str]
"""factor -> level."""
Weights = NDArray[np.float64]
"""(cells,) a contrast: the sum of the cells' responses, each times its weight."""
Sums = Mapping[str, tuple[float, float]]
"""cluster (a fact, a subject, a text) -> the sum of its values and the number of them."""


@dataclass(frozen=True, slots=True)
class Response:
    """What the cells of a design answered, and would have answered had other facts been drawn.

    Attributes:
        cells: in the order of the numbers.
        unit: of the response.
        found: (cells,).
        drawn: (draws, cells) the same with facts drawn again, the same facts in all cells.
        clusters: facts (subjects, texts) that were drawn from.
    """

    name: str
    unit: str
    cells: Sequence[Cell]
    found: NDArray[np.float64]
    drawn: NDArray[np.float64]
    clusters: int

    def row(self, quantity: str, where: Mapping[str, Label], weights: Weights) -> Row:
        """A contrast with its interval."""
        low, high = interval_of(self.drawn @ weights, self.clusters)
        labels = {"response": self.name, **where}
        return Row(quantity, self.unit, labels, float(self.found @ weights), low, high, self.clusters)

    def mean_of(self, **levels: str) -> Weights:
        """The mean of the cells that have these levels."""
        chosen = np.array([all(cell[name] == level for name, level in levels.items()) for cell in self.cells], float)
        if not chosen.any():
            raise ValueError(f"there are no cells with {levels}")
        weights: Weights = chosen / chosen.sum()
        return weights

    def levels(self, factor: str) -> list[str]:
        return list(dict.fromkeys(cell[factor] for cell in self.cells))

    def of(self, cells: Sequence[Cell]) -> Response:
        """The same for some of the cells."""
        places = [self.cells.index(cell) for cell in cells]
        return Response(self.name, self.unit, cells, self.found[places], self.drawn[:, places], self.clusters)


def response_of(
    name: str, unit: str, cells: Sequence[Cell], sums: Sequence[Sequence[Sums]], *, seed: int = 0
) -> Response:
    """The response of each cell: a mean over prompts, or the harmonic mean of several means.

    Args:
        sums: for each cell, for each of the means, what each cluster gave; the same clusters in all cells.

    Raises:
        ValueError: if cells were asked about different things.
    """
    clusters = list(dict.fromkeys(cluster for part in sums[0] for cluster in part))
    places = {cluster: place for place, cluster in enumerate(clusters)}
    means = len(sums[0])
    values, counts = np.zeros((len(cells), means, len(clusters))), np.zeros((means, len(clusters)))
    for index, parts in enumerate(sums):
        for mean, part in enumerate(parts):
            if index == 0:
                counts[mean, [places[cluster] for cluster in part]] = [count for _, count in part.values()]
            elif {cluster: count for cluster, (_, count) in part.items()} != {
                cluster: count for cluster, (_, count) in sums[0][mean].items()
            }:
                raise ValueError(f"the cells were not asked the same of {name!r}")
            values[index, mean, [places[cluster] for cluster in part]] = [value for value, _ in part.values()]
    stacked = np.concatenate([values.reshape(len(cells) * means, -1), counts])
    drawn = resampled_sums(stacked, seed=seed, resamples=RESAMPLES)
    return Response(
        name, unit, cells, _combined(stacked.sum(1)[None], len(cells))[0], _combined(drawn, len(cells)), len(clusters)
    )


def _combined(totals: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """(draws, cells · means + means) sums and counts -> (draws, cells): the harmonic mean of the cell's means."""
    means = totals.shape[1] // (cells + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = totals[:, : cells * means].reshape(-1, cells, means) / totals[:, None, cells * means :]
        harmonic: NDArray[np.float64] = means / (1 / found).sum(2)  # a mean of 0 makes it 0
    return found[:, :, 0] if means == 1 else harmonic


def effects(response: Response, factors: Sequence[str], where: Mapping[str, Label]) -> list[Row]:
    """Means of levels, main effects (a level's mean minus the grand mean), differences between levels, and two-way
    interactions (the mean of two levels together, minus each one's, plus the grand mean)."""
    grand = response.mean_of()
    rows = []
    for factor in factors:
        levels = response.levels(factor)
        mean = {level: response.mean_of(**{factor: level}) for level in levels}
        for level in levels:
            labels = {**where, "factor": factor, "level": level}
            rows.append(response.row("mean", labels, mean[level]))
            rows.append(response.row("main effect", labels, mean[level] - grand))
        for one, other in combinations(levels, 2):
            labels = {**where, "factor": factor, "level": f"{other} minus {one}"}
            rows.append(response.row("difference", labels, mean[other] - mean[one]))
    for first, second in combinations(factors, 2):
        for one, other in product(response.levels(first), response.levels(second)):
            together = response.mean_of(**{first: one, second: other})
            labels = {**where, "factor": joined(first, second), "level": joined(one, other)}
            apart = response.mean_of(**{first: one}) + response.mean_of(**{second: other})
            rows.append(response.row("mean", labels, together))
            rows.append(response.row("interaction", labels, together - apart + grand))
    return rows


def value_of(parts: Sequence[Sums]) -> float:
    """One cell's response, as ``response_of`` computes it."""
    totals = [(sum(value for value, _ in part.values()), sum(count for _, count in part.values())) for part in parts]
    flat = np.array([[value for value, _ in totals] + [count for _, count in totals]], float)
    return float(_combined(flat, 1)[0, 0])
