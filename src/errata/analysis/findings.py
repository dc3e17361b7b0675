"""Findings of a study: numbers with intervals, points, figures, and the verdicts on its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np

from errata.results.records import interval_of, resampled_sums

Label = str | int | float
Verdict = Literal["holds", "does not hold", "undecided"]
Sign = Literal["positive", "negative"]
RESAMPLES = 1000
ENOUGH: Final = 5  # with fewer values the interval's ends are close to their minimum and maximum
VERDICT_RULE: Final = (
    "A claim holds if the whole 95 % interval of its difference is on the claimed side of 0. It does not hold if the "
    "interval is on the other side, or if there is no difference at all. Otherwise, and with fewer than "
    f"{ENOUGH} values (n), it is undecided."
)
_NOISE: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Finding:
    """A number of a study.

    Attributes:
        quantity: its name, as in the study's description.
        unit: of ``mean``, ``low`` and ``high``; ``1`` for a number without a unit.
        where: its labels: layer, residual, method …
        mean: over ``n`` clusters (facts, prompts, groups).
        low: 2.5 % quantile of the bootstrapped mean; None without an interval.
        high: the 97.5 % quantile.
    """

    quantity: str
    unit: str
    where: Mapping[str, Label]
    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class PlanePoint:
    """A vector in a picture of two dimensions."""

    picture: str
    where: Mapping[str, Label]
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim about boundary updates, or about what they replace, and its evidence.

    Attributes:
        text: the claim.
        verdict: by ``VERDICT_RULE``.
        evidence: the numbers.
    """

    text: str
    verdict: Verdict
    evidence: str

    @classmethod
    def on(cls, difference: Finding, text: str, evidence: str, *, claimed: Sign = "positive") -> Claim:
        """A claim about the sign of a difference."""
        return cls(text, verdict_on(difference, claimed=claimed), evidence)


@dataclass(frozen=True, slots=True)
class Series:
    """A line, a group of bars or a cloud of points; ``low`` and ``high`` are empty without intervals.

    In panels of ``lines``, a single ``y`` without ``x`` is a horizontal line.
    """

    label: str
    x: Sequence[Label]
    y: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes, with units in the labels."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    kind: Literal["lines", "bars", "points"] = "lines"
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture.

    Attributes:
        name: of its file.
        caption: understandable on its own.
        shared_axes: whether all panels have the same axes.
    """

    name: str
    caption: str
    panels: Sequence[Panel]
    shared_axes: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a study found; ``undefined`` maps what could not be measured to the reason."""

    rows: Sequence[Finding]
    claims: Sequence[Claim] = ()
    figures: Sequence[Figure] = ()
    points: Sequence[PlanePoint] = ()
    undefined: Mapping[str, str] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Findings:
        """The inverse of ``to_record``; raises KeyError, TypeError for anything else."""
        return cls(
            [Finding(**row) for row in record["rows"]],
            [Claim(**claim) for claim in record["claims"]],
            [_figure(figure) for figure in record["figures"]],
            [PlanePoint(**point) for point in record["points"]],
            dict(record["undefined"]),
        )


def _figure(record: Mapping[str, Any]) -> Figure:
    panels = [
        Panel(**{**panel, "series": tuple(Series(**series) for series in panel["series"])})
        for panel in record["panels"]
    ]
    # Earlier versions did not save ``shared_axes``.
    return Figure(record["name"], record["caption"], tuple(panels), record.get("shared_axes", False))


def mean_row(
    quantity: str, unit: str, where: Mapping[str, Label], values: Sequence[int | float], *, seed: int = 0
) -> Finding:
    """The mean over clusters with its 95 % bootstrap interval; one value per cluster.

    Raises:
        ValueError: without any value.
    """
    if not len(values):
        raise ValueError(f"there are no values of {quantity!r} at {dict(where)}")
    found = np.asarray(values, dtype=np.float64)
    resampled = resampled_sums(found[None], seed=seed, resamples=RESAMPLES)[:, 0] / len(found)
    low, high = interval_of(resampled, len(found))
    return Finding(quantity, unit, dict(where), float(found.mean()), low, high, len(found))


def series_of(rows: Sequence[Finding], label: str, x: str) -> Series:
    """Rows over one of their labels, in their order."""
    return Series(
        label,
        [row.where[x] for row in rows],
        [row.mean for row in rows],
        [row.low for row in rows],
        [row.high for row in rows],
    )


def line_of(rows: Sequence[Finding], label: str, x: str) -> Series:
    """Rows as a line over one of their labels, in ascending order."""
    ordered = sorted(rows, key=lambda row: (isinstance(row.where[x], str), row.where[x]))
    return series_of(ordered, label, x)


def with_interval(row: Finding, digits: int = 3) -> str:
    """``0.512 [0.480, 0.540]``; rounding errors are shown as 0."""
    mean, low, high = (None if value is None else _clean(value) for value in (row.mean, row.low, row.high))
    interval = "" if low is None or high is None else f" [{low:.{digits}g}, {high:.{digits}g}]"
    return f"{mean:.{digits}g}{interval}"


def with_n(row: Finding, digits: int = 3) -> str:
    """``0.512 [0.480, 0.540], n = 100``."""
    return f"{with_interval(row, digits)}, n = {row.n}"


def verdict_on(difference: Finding, *, claimed: Sign) -> Verdict:
    """``VERDICT_RULE`` for the claimed sign of a difference."""
    low, high = difference.low, difference.high
    if low is None or high is None or difference.n < ENOUGH:
        return "undecided"
    if _clean(low) == _clean(high) == 0:
        return "does not hold"
    if low > 0 or high < 0:
        return "holds" if (low > 0) == (claimed == "positive") else "does not hold"
    return "undecided"


def _clean(value: float) -> float:
    """0 for rounding errors of sums."""
    return 0.0 if abs(value) < _NOISE else value
