"""Records, one per prompt and metric; their summaries with bootstrap intervals; and results files in the long form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from errata.errors import InputError
from errata.results.metrics import HARMONIC, POOLED, in_order
from errata.utils.files import read_json, write_json

_DRAWS_AT_ONCE = 1 << 22


def resampled_sums(clusters: NDArray[np.float64], *, seed: int, resamples: int) -> NDArray[np.float64]:
    """Bootstrap: draw as many clusters as there are, with replacement, and sum their quantities.

    Args:
        clusters: (quantities, clusters) each cluster's part of each quantity.

    Returns:
        (resamples, quantities). The same seed draws the same clusters.
    """
    generator = np.random.default_rng(seed)
    count = clusters.shape[1]
    sums = np.empty((resamples, len(clusters)))
    step = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        times_drawn = generator.multinomial(count, np.full(count, 1 / count), size=size)  # (size, clusters)
        sums[start : start + size] = times_drawn @ clusters.T
    return sums


def interval_of(drawn: NDArray[np.float64], clusters: int) -> tuple[float | None, float | None]:
    """The middle 95 % of bootstrapped values; none for a single cluster, whose mean never varies.

    A draw in which a quantity has no prompts at all has no value (NaN) and is left out.
    """
    values = drawn[np.isfinite(drawn)]
    if clusters < 2 or not len(values):
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


When = Literal["before", "right_after", "during", "after"]
MOMENTS: tuple[When, ...] = get_args(When)


@dataclass(frozen=True, slots=True)
class Record:
    """The value of one metric for one prompt.

    Attributes:
        fact: id of the fact (for untouched questions: of their subject); prompts of one fact are one cluster.
        metric: one of ``Metric``, a variant of one such as ``free_efficacy_exact:chat``, or ``ability:TASK:METRIC``.
        prompt: the whole prompt.
        value: 0 or 1 for successes and accuracies.
        said: the model's most likely text in the place of the answer.
    """

    fact: str
    metric: str
    prompt: str
    value: float
    said: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A metric's mean with its 95 % interval.

    Attributes:
        metric: one of ``Metric``.
        when: ``before`` the run, ``right_after`` a fact's own batch, ``during`` the run on a sample of the facts that
            have been edited, or ``after`` the whole run.
        mean: over all prompts.
        low: 2.5 % quantile of the bootstrapped mean; None without an interval (a single cluster).
        high: the 97.5 % quantile.
        n: clusters (facts, subjects, texts) that the mean is over.
        prompts: prompts that the mean is over.
    """

    metric: str
    when: When
    mean: float
    low: float | None
    high: float | None
    n: int
    prompts: int


def summarise(records: Sequence[Record], when: When, *, seed: int = 0, resamples: int = 1000) -> list[Summary]:
    """A summary of each metric that has records, and of those of ``HARMONIC`` and ``POOLED`` whose parts all have them.

    Intervals are percentiles of the bootstrap over facts, each drawn with all of its prompts; a harmonic mean is drawn
    for all of its parts at once.
    """
    found = []
    for metric in in_order({record.metric for record in records}):
        chosen = [record for record in records if record.metric == metric]
        clusters = _clusters(chosen, [metric])
        found.append(_summary(metric, when, clusters, len(chosen), seed, resamples))
    present = {record.metric for record in records}
    for metric, parts in HARMONIC.items():
        if {*parts} <= present:
            chosen = [record for record in records if record.metric in parts]
            found.append(_summary(metric, when, _clusters(chosen, parts), len(chosen), seed, resamples))
    for metric, parts in POOLED.items():
        if {*parts} <= present:
            chosen = [replace(record, metric=metric) for record in records if record.metric in parts]
            found.append(_summary(metric, when, _clusters(chosen, [metric]), len(chosen), seed, resamples))
    order = in_order({summary.metric for summary in found})
    return sorted(found, key=lambda summary: order.index(summary.metric))


def summarise_groups(
    metric: str, when: When, sums: Sequence[float], counts: Sequence[int], *, seed: int = 0, resamples: int = 1000
) -> Summary:
    """The mean of a quantity whose sums over groups are known, such as seconds of batches; groups are resampled.

    Args:
        sums: the total of each group.
        counts: the number of members of each group; ``n`` is their sum.

    Raises:
        ValueError: if there are no groups.
    """
    if not sums:
        raise ValueError(f"{metric} of no groups has no mean")
    clusters = np.array([sums, counts], dtype=float)
    summary = _summary(metric, when, clusters, sum(counts), seed, resamples)
    return Summary(metric, when, summary.mean, summary.low, summary.high, sum(counts), sum(counts))


def paired_difference(
    metric: str, ones: Sequence[Record], others: Sequence[Record], *, seed: int = 0, resamples: int = 1000
) -> Summary | None:
    """The mean of ones − others, with its interval over facts; None without records.

    Args:
        ones, others: a metric's records of the same prompts, in the same order.

    Raises:
        ValueError: if they are not of the same prompts.
    """
    if [(one.fact, one.prompt) for one in ones] != [(other.fact, other.prompt) for other in others]:
        raise ValueError(f"the two runs have different prompts for {metric!r}")
    if not ones:
        return None
    differences = [
        replace(one, metric=metric, value=one.value - other.value) for one, other in zip(ones, others, strict=True)
    ]
    return _summary(metric, "after", _clusters(differences, [metric]), len(differences), seed, resamples)


def _clusters(records: Sequence[Record], metrics: Sequence[str]) -> NDArray[np.float64]:
    """(2 · metrics, facts): for each metric each fact's sum of values, then its number of prompts."""
    facts = {fact: column for column, fact in enumerate(dict.fromkeys(record.fact for record in records))}
    row_of = {metric: 2 * index for index, metric in enumerate(metrics)}
    clusters = np.zeros((2 * len(metrics), len(facts)))
    for record in records:
        row, column = row_of[record.metric], facts[record.fact]
        clusters[row, column] += record.value
        clusters[row + 1, column] += 1
    return clusters


def _summary(
    metric: str, when: When, clusters: NDArray[np.float64], prompts: int, seed: int, resamples: int
) -> Summary:
    count = clusters.shape[1]
    mean = float(_harmonic_means(clusters.sum(1)[None])[0])
    low, high = interval_of(_harmonic_means(resampled_sums(clusters, seed=seed, resamples=resamples)), count)
    return Summary(metric, when, mean, low, high, count, prompts)


def _harmonic_means(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(draws, 2 · metrics) sums and counts -> (draws,) harmonic mean of the metrics' means; of one metric, its mean."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means: NDArray[np.float64] = sums[:, 0::2] / sums[:, 1::2]
        harmonic: NDArray[np.float64] = means.shape[1] / (1 / means).sum(1)  # a mean of 0 makes it 0
    return means[:, 0] if means.shape[1] == 1 else harmonic


FORMAT = "errata-results-1"


class Row(TypedDict):
    """A line of the long form: one per method, metric and moment; of a grid also per model, data and number of edits.

    ``edits`` is how many facts had been edited; ``seeds``, of a check ``during`` the run, how many runs it is of.
    """

    method: str
    metric: str
    when: When
    mean: float
    low: float | None
    high: float | None
    n: int
    model: NotRequired[str]
    data: NotRequired[str]
    edits: NotRequired[int]
    seeds: NotRequired[int]


_OF_GRIDS = {"model", "data", "edits", "seeds"}


def to_long(method: str, summaries: Sequence[Summary]) -> list[Row]:
    """The long form: one row per summary."""
    return [
        Row(
            method=method,
            metric=str(summary.metric),
            when=summary.when,
            mean=summary.mean,
            low=summary.low,
            high=summary.high,
            n=summary.n,
        )
        for summary in summaries
    ]


@dataclass(frozen=True, slots=True)
class Results:
    """The content of a results file: rows, and their metadata (command, recipe, versions, absent metrics)."""

    rows: tuple[Row, ...]
    about: Mapping[str, Any]


def write_results(path: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write a results file, completely or not at all.

    Raises:
        ValueError: if a number is not finite, which JSON cannot express.
    """
    whole = {"format": FORMAT, "rows": list(rows), "about": dict(about)}
    write_json(path, whole, indent=1, allow_nan=False)


def read_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        InputError: if it cannot be read or is not one.
    """
    remedy = "Give a results file that errata wrote"
    whole = read_json(path, path, remedy=remedy, code="JSON_INVALID")
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise InputError(f"{path} is not of the format {FORMAT!r}", remedy=remedy, code="FILE_WRONG_FORMAT")
    rows, about = whole.get("rows"), whole.get("about")
    if not isinstance(rows, list) or not isinstance(about, dict):
        raise InputError(f"{path} lacks 'rows' (a list) or 'about' (an object)", remedy=remedy, code="RESULTS_DAMAGED")
    for index, row in enumerate(rows):
        if not is_row(row):
            what = f"{path}, rows[{index}], is not one of {', '.join(Row.__annotations__)} with a known 'when'"
            raise InputError(what, remedy=remedy, code="RESULTS_DAMAGED")
    return Results(tuple(rows), about)


def is_row(row: object) -> bool:
    """Whether a value is a row of the long form."""

    def number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    return (
        isinstance(row, dict)
        and Row.__annotations__.keys() - _OF_GRIDS <= row.keys() <= Row.__annotations__.keys()
        and all(isinstance(row.get(key, ""), str) for key in ("method", "metric", "model", "data"))
        and all(isinstance(row.get(key, 0), int) for key in ("edits", "seeds"))
        and row["when"] in MOMENTS
        and number(row["mean"])
        and all(row[key] is None or number(row[key]) for key in ("low", "high"))
        and isinstance(row["n"], int)
    )


LabelPair = tuple[int, int]
"""(right label, answered label)."""


def weighted_f1(labels: Sequence[LabelPair]) -> float:
    """Weighted F1, by scikit-learn. An answer that is no label counts as -1, which is never right: it lowers the recall
    of the right label, and its own F1 has no weight.
    """
    from sklearn.metrics import f1_score

    right, answered = zip(*labels, strict=True)
    return float(f1_score(right, answered, average="weighted", zero_division=0))


def confusion_cells(labels: Sequence[LabelPair]) -> tuple[NDArray[np.float64], list[LabelPair]]:
    """(cells, samples) 1 where a sample falls into a cell of the confusion matrix; and the cells that occur."""
    places = sorted(set(labels))
    cells = np.zeros((len(places), len(labels)))
    for column, label in enumerate(labels):
        cells[places.index(label), column] = 1
    return cells, places


def weighted_f1_of_sums(sums: NDArray[np.float64], places: Sequence[LabelPair]) -> NDArray[np.float64]:
    """(draws, cells) counts of the confusion matrix's cells -> (draws,) weighted F1 of each draw."""
    right, answered = (np.array(side) for side in zip(*places, strict=True))
    weighted = np.zeros(len(sums))
    for label in np.unique(right):
        hits = sums[:, (right == label) & (answered == label)].sum(1)
        support, claimed = sums[:, right == label].sum(1), sums[:, answered == label].sum(1)
        both = support + claimed
        weighted += support * np.divide(2 * hits, both, out=np.zeros(len(sums)), where=both > 0)
    result: NDArray[np.float64] = weighted / sums.sum(1)
    return result
