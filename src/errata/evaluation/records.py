"""Records, one per prompt and metric; their summaries with intervals; and the long form for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from errata.errors import InputError
from errata.evaluation.intervals import interval_of, resampled_sums
from errata.output import write_text

FORMAT = "errata-results-1"
When = Literal["before", "right_after", "during", "after"]
MOMENTS: tuple[When, ...] = get_args(When)


class Metric(StrEnum):
    """The metrics' names, in the order in which tables show them."""

    EFFICACY_SUCCESS = "efficacy_success"
    EFFICACY_ACCURACY = "efficacy_accuracy"
    EFFICACY_TOKENS = "efficacy_tokens"
    EFFICACY_ACCURACY_FIRST = "efficacy_accuracy_first"
    EFFICACY_ACCURACY_LAST = "efficacy_accuracy_last"
    GENERALISATION_SUCCESS = "generalisation_success"
    GENERALISATION_ACCURACY = "generalisation_accuracy"
    GENERALISATION_TOKENS = "generalisation_tokens"
    SPECIFICITY_SUCCESS = "specificity_success"
    SPECIFICITY_ACCURACY = "specificity_accuracy"
    SCORE = "score"
    PORTABILITY_ACCURACY = "portability_accuracy"
    PORTABILITY_TOKENS = "portability_tokens"
    SAME_SUBJECT_ACCURACY = "same_subject_accuracy"
    UNRELATED_ACCURACY = "unrelated_accuracy"
    UNRELATED_TOKENS = "unrelated_tokens"
    UNRELATED_AGREEMENT = "unrelated_agreement"
    UNTOUCHED_ACCURACY = "untouched_accuracy"
    FREE_EFFICACY_EXACT = "free_efficacy_exact"
    FREE_EFFICACY_CONTAINED = "free_efficacy_contained"
    FREE_EFFICACY_JUDGED = "free_efficacy_judged"
    FREE_GENERALISATION_EXACT = "free_generalisation_exact"
    FREE_GENERALISATION_CONTAINED = "free_generalisation_contained"
    FREE_GENERALISATION_JUDGED = "free_generalisation_judged"
    FREE_PORTABILITY_EXACT = "free_portability_exact"
    FREE_PORTABILITY_CONTAINED = "free_portability_contained"
    FREE_PORTABILITY_JUDGED = "free_portability_judged"
    FREE_JUDGE_MISSING = "free_judge_missing"
    FREE_LOCALITY_NEIGHBOURS = "free_locality_neighbours"
    FREE_LOCALITY_UNRELATED = "free_locality_unrelated"
    FREE_LOCALITY_UNTOUCHED = "free_locality_untouched"
    FLUENCY = "fluency"
    CONSISTENCY = "consistency"
    DRIFT_KL_NEIGHBOURS = "drift_kl_neighbours"
    DRIFT_KL_UNRELATED = "drift_kl_unrelated"
    DRIFT_KL_UNTOUCHED = "drift_kl_untouched"
    DRIFT_TOP5_NEIGHBOURS = "drift_top5_neighbours"
    DRIFT_TOP5_UNRELATED = "drift_top5_unrelated"
    DRIFT_TOP5_UNTOUCHED = "drift_top5_untouched"
    NEGATION_ACCURACY = "negation_accuracy"
    REVERSAL_ACCURACY = "reversal_accuracy"
    REVERSAL_TOKENS = "reversal_tokens"
    MULTIPLE_CHOICE_ACCURACY = "multiple_choice_accuracy"
    MULTIPLE_CHOICE_LETTER_ACCURACY = "multiple_choice_letter_accuracy"
    CONCEPT_RELIABILITY = "concept_reliability"
    CONCEPT_GENERALISATION = "concept_generalisation"
    CONCEPT_LOCALITY = "concept_locality"
    CONCEPT_LOCALITY_TOKENS = "concept_locality_tokens"
    CONCEPT_INSTANCES = "concept_instances"
    CONCEPT_NON_INSTANCES = "concept_non_instances"
    CONCEPT_INSTANCE_CHANGE = "concept_instance_change"
    CONCEPT_NON_INSTANCE_CHANGE = "concept_non_instance_change"
    CONCEPT_UNREADABLE = "concept_unreadable"
    CONCEPT_CONSISTENCY = "concept_consistency"
    PERPLEXITY_RATIO = "perplexity_ratio"
    WEIGHT_NORM_RATIO = "weight_norm_ratio"
    SECONDS_PER_EDIT = "seconds_per_edit"


NOT_SHARES = frozenset(
    {
        Metric.FLUENCY,
        Metric.CONSISTENCY,
        Metric.DRIFT_KL_NEIGHBOURS,
        Metric.DRIFT_KL_UNRELATED,
        Metric.DRIFT_KL_UNTOUCHED,
        Metric.PERPLEXITY_RATIO,
        Metric.SECONDS_PER_EDIT,
    }
)
"""Metrics whose values are no shares of 1, to be shown as they are and not in per cent."""

SUCCESSES = (Metric.EFFICACY_SUCCESS, Metric.GENERALISATION_SUCCESS, Metric.SPECIFICITY_SUCCESS)


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
    """What a results file holds: rows, and whatever belongs to them (command, recipe, versions, absent metrics)."""

    rows: tuple[Row, ...]
    about: Mapping[str, Any]


def write_results(path: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write a results file, whole or not at all.

    Raises:
        ValueError: if a number is not finite, for which JSON has no word.
    """
    whole = {"format": FORMAT, "rows": list(rows), "about": dict(about)}
    write_text(path, json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        InputError: if it cannot be read or is not one.
    """
    remedy = "Give a results file that errata wrote"
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}", remedy=remedy) from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise InputError(f"{path} is not of the format {FORMAT!r}", remedy=remedy)
    rows, about = whole.get("rows"), whole.get("about")
    if not isinstance(rows, list) or not isinstance(about, dict):
        raise InputError(f"{path} lacks 'rows' (a list) or 'about' (an object)", remedy=remedy)
    for index, row in enumerate(rows):
        if not _is_row(row):
            raise InputError(
                f"{path}, rows[{index}], is not one of {', '.join(Row.__annotations__)} with a known 'when'",
                remedy=remedy,
            )
    return Results(tuple(rows), about)


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


def in_order(metrics: set[str]) -> list[str]:
    """Known metrics as in ``Metric``, each followed by its variants (``metric:variant``), then others by name."""
    known = [str(metric) for metric in Metric]

    def place(metric: str) -> tuple[int, str]:
        base = metric.partition(":")[0]
        return known.index(base) if base in known else len(known), metric

    return sorted(metrics, key=place)


def _is_row(row: object) -> bool:
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
