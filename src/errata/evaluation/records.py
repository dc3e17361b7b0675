"""Records, one per prompt and metric, and their summaries with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from errata.evaluation.intervals import interval_of, resampled_sums
from errata.evaluation.metrics import SUCCESSES, Metric, in_order

When = Literal["before", "right_after", "during", "after"]
MOMENTS: tuple[When, ...] = get_args(When)


@dataclass(frozen=True, slots=True)
class Record:
    """What one prompt gave for one metric.

    Attributes:
        fact: id of the fact (for untouched questions: of their subject); prompts of one fact are one cluster.
        metric: one of ``Metric``, a variant of one such as ``free_efficacy_exact:chat``, or ``ability:TASK:METRIC``.
        prompt: the whole prompt.
        value: 0 or 1 for successes and accuracies.
        said: what the model held likeliest in the place of the answer.
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
        low: 2.5 % quantile of the bootstrapped mean; None where no interval can be told (a single cluster).
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
    """A summary of each metric that there are records of, and of the score if there are all three successes.

    Intervals are percentiles of the bootstrap over facts, whole facts with all of their prompts being drawn; the
    score (harmonic mean of the three successes) is drawn for all three at once.
    """
    found = []
    for metric in in_order({record.metric for record in records}):
        chosen = [record for record in records if record.metric == metric]
        clusters = _clusters(chosen, [metric])
        found.append(_summary(metric, when, clusters, len(chosen), seed, resamples))
    if {*SUCCESSES} <= {record.metric for record in records}:
        chosen = [record for record in records if record.metric in SUCCESSES]
        found.append(_summary(Metric.SCORE, when, _clusters(chosen, SUCCESSES), len(chosen), seed, resamples))
    order = in_order({summary.metric for summary in found})
    return sorted(found, key=lambda summary: order.index(summary.metric))


def summarise_groups(
    metric: str, when: When, sums: Sequence[float], counts: Sequence[int], *, seed: int = 0, resamples: int = 1000
) -> Summary:
    """The mean of something known in sums over groups, such as seconds of batches of edits; groups are drawn.

    Args:
        sums: the total of each group.
        counts: the number of members of each group; ``n`` is their sum.
    """
    clusters = np.array([sums, counts], dtype=float)
    summary = _summary(metric, when, clusters, sum(counts), seed, resamples)
    return Summary(metric, when, summary.mean, summary.low, summary.high, sum(counts), sum(counts))


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
