"""Effects in a factorial whose cells were all asked about the same facts, with intervals by bootstrap over facts.

Whole facts are drawn, in all cells at once, so that what makes a fact hard does not count as doubt about a difference.
The intervals say how far the effects *of these runs* depend on which facts were drawn; they say nothing of how other
runs (other contexts, other orders of facts) would vary, which the analysis of variance in ``variance`` sees in part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from errata.analysis.findings import RESAMPLES, Label, Row
from errata.results.records import interval_of, resampled_sums
from errata.utils.optional import require

# ----------------------------------------------------------------------------------------------------
# Analysis of variance of a complete, balanced factorial: main effects, two-way interactions, a block.
#
# It asks how much of the variation *between runs* goes with a factor: the observations are runs (cells × seeds), and
# the measure of chance is what main effects, two-way interactions and the block leave unexplained. That is another
# question than that of the intervals in ``contrasts``, which draw facts and take the runs as given. statsmodels is
# imported here only, when it is needed.


RESIDUAL = "residual"
# Sums of squares below this share of the values' own size are what rounding leaves of nothing.
_NOTHING = 1e-20


@dataclass(frozen=True, slots=True)
class Term:
    """A line of the table.

    Attributes:
        name: of a factor, of two joined by `` × ``, or ``residual``.
        squares: the sum of squares, in the square of the response's unit.
        share: η², of the total sum of squares.
        degrees: of freedom.
        f: mean square over the residual's; None for the residual, and where nothing is left to compare with.
        p: chance of so large an F if the term had no effect and errors were independent and normal.
    """

    name: str
    squares: float
    share: float
    degrees: int
    f: float | None
    p: float | None


def check_statistics() -> None:
    """Raises MissingExtraError if statsmodels is not installed."""
    require("the analysis of variance", "analysis", "statsmodels")


def joined(one: str, other: str) -> str:
    """The name of an interaction."""
    return f"{one} × {other}"


def analysis_of_variance(
    observations: Sequence[Mapping[str, str]], values: Sequence[float], *, block: str
) -> list[Term]:
    """Sums of squares of all factors and of all pairs of them, and of the block's main effect.

    In a balanced design a term's sum of squares does not depend on the order of the terms: types 1 to 3 are the same.

    Args:
        observations: factor -> level, the block among them; every combination of levels equally often. What has a
            single level is no term.
        values: one for each observation.

    Returns:
        The terms, the residual last; empty if the values do not vary.

    Raises:
        MissingExtraError: without statsmodels.
        ValueError: if the design is not balanced.
    """
    check_statistics()
    _check_balanced(observations)
    mean = math.fsum(values) / len(values)
    total = math.fsum((value - mean) ** 2 for value in values)
    varied = [name for name in observations[0] if len({entry[name] for entry in observations}) > 1]
    if not varied or total <= _NOTHING * max(1.0, math.fsum(value**2 for value in values)):
        return []
    factors = [name for name in varied if name != block]
    names = {f"C({name})": name for name in varied}
    names |= {f"C({one}):C({other})": joined(one, other) for one, other in combinations(factors, 2)}
    import numpy as np
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    table = pd.DataFrame([dict(entry) for entry in observations]).assign(value=list(values))
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing is left over, no F is told
        found = anova_lm(ols(f"value ~ {' + '.join(names)}", table).fit(), typ=1)
    left, free = float(found.loc["Residual", "sum_sq"]), round(float(found.loc["Residual", "df"]))
    comparable = free > 0 and left > 1e-12 * total
    terms = []
    for key, name in names.items():
        squares = float(found.loc[key, "sum_sq"])
        f, p = (float(found.loc[key, column]) for column in ("F", "PR(>F)"))
        degrees = round(float(found.loc[key, "df"]))
        terms.append(Term(name, squares, squares / total, degrees, *((f, p) if comparable else (None, None))))
    return [*terms, Term(RESIDUAL, left, left / total, free, None, None)]


def _check_balanced(observations: Sequence[Mapping[str, str]]) -> None:
    counts: dict[tuple[str, ...], int] = {}
    for entry in observations:
        key = tuple(entry.values())
        counts[key] = counts.get(key, 0) + 1
    combinations_of_levels = math.prod(len({entry[name] for entry in observations}) for name in observations[0])
    if len(counts) != combinations_of_levels or len(set(counts.values())) != 1:
        raise ValueError(f"{len(counts)} of {combinations_of_levels} combinations of levels are there, or not equally")


# ----------------------------------------------------------------------------------------------------


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
