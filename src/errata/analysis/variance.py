"""Analysis of variance of a complete, balanced factorial: main effects, two-way interactions, a block.

It asks how much of the variation *between runs* goes with a factor: the observations are runs (cells × seeds), and the
measure of chance is what main effects, two-way interactions and the block leave unexplained. That is another question
than that of the intervals in ``contrasts``, which draw facts and take the runs as given. statsmodels is imported here
only, when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from errata.extras import require

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
