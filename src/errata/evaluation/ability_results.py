"""What general ability's tasks gave: numbers as the harness tells them, and the samples for records and intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from errata.evaluation.intervals import interval_of, resampled_sums
from errata.evaluation.records import Record, Summary, When, summarise
from errata.evaluation.weighted_f1 import confusion_cells, weighted_f1, weighted_f1_of_sums

PREFIX = "ability:"


@dataclass(frozen=True, slots=True)
class Sample:
    """One question of a task.

    Attributes:
        id: its index in the task's data.
        prompt: what the model was given.
        said: what it answered: the text, or the log-likelihood of each option.
        values: its part in each metric that is a number for each sample.
        labels: for each weighted F1 (right label, label that was answered).
    """

    id: str
    prompt: str
    said: str
    values: Mapping[str, float]
    labels: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TaskMetric:
    """A number of a task.

    Attributes:
        value: over all samples, as the task defines it.
        stderr: standard error of the mean (n - 1 in the variance); None where the number is no mean over samples.
        n: samples.
    """

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task gave.

    Attributes:
        group: ``probes`` for the papers' probes, else the empty text.
        metrics: name -> number. A filter of the harness other than its default stands behind the name and a comma.
        samples: in the order of the task's data; empty for a group of the harness, whose numbers are its tasks' means.
    """

    group: str
    metrics: Mapping[str, TaskMetric]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Ability:
    """What all tasks gave, by their names."""

    tasks: Mapping[str, TaskResult]

    def records(self) -> list[Record]:
        """A record per sample and metric, ``ability:TASK:METRIC``, ``fact`` being ``TASK/ID`` of the sample.

        Metrics that are no means over samples (F1, perplexities) have none: their mean would be another number.
        """
        return [
            Record(f"{task}/{sample.id}", f"{PREFIX}{task}:{name}", sample.prompt, sample.values[name], sample.said)
            for task, result in self.tasks.items()
            for name, metric in result.metrics.items()
            if metric.stderr is not None
            for sample in result.samples
        ]

    def labels(self) -> dict[str, dict[str, tuple[int, int]]]:
        """For each weighted F1, by its full name: sample -> (right label, label that was answered)."""
        return {
            f"{PREFIX}{task}:{name}": {f"{task}/{sample.id}": sample.labels[name] for sample in result.samples}
            for task, result in self.tasks.items()
            for name in result.metrics
            if result.samples and all(name in sample.labels for sample in result.samples)
        }

    def values(self) -> dict[str, tuple[float, int]]:
        """The other numbers, by their full names: (value as the harness tells it, samples). They are no means over
        samples that are there (F1, perplexities, numbers of groups), so nothing can be drawn from them."""
        others = {record.metric for record in self.records()} | self.labels().keys()
        return {
            full: (metric.value, metric.n)
            for task, result in self.tasks.items()
            for name, metric in result.metrics.items()
            if (full := f"{PREFIX}{task}:{name}") not in others
        }

    def summaries(self, when: When, *, seed: int = 0, resamples: int = 1000) -> list[Summary]:
        """Every number with its 95 % interval by bootstrap over samples; without one where that cannot be told."""
        labels = self.labels()
        of_means = {entry.metric: entry for entry in summarise(self.records(), when, seed=seed, resamples=resamples)}
        found = []
        for task, result in self.tasks.items():
            for name, metric in result.metrics.items():
                full = f"{PREFIX}{task}:{name}"
                low: float | None = None
                high: float | None = None
                if full in of_means:
                    low, high = of_means[full].low, of_means[full].high
                elif full in labels:
                    of_labels = summarise_labels(full, when, [labels[full]], seed=seed, resamples=resamples)
                    low, high = of_labels.low, of_labels.high
                found.append(Summary(full, when, metric.value, low, high, metric.n, metric.n))
        return found


def summarise_others(
    when: When,
    labels: Sequence[Mapping[str, Mapping[str, tuple[int, int]]]],
    values: Sequence[Mapping[str, tuple[float, int]]],
    known: Set[str],
    *,
    seed: int = 0,
) -> list[Summary]:
    """What is no mean over samples, of several runs together; see ``Ability.labels`` and ``Ability.values``.

    Args:
        labels: of each run.
        values: of each run.
        known: metrics that some runs have samples of, so that they are summarised by these.
    """
    found = [
        summarise_labels(metric, when, [run[metric] for run in labels if metric in run], seed=seed)
        for metric in dict.fromkeys(metric for run in labels for metric in run)
    ]
    known = known | {summary.metric for summary in found}
    return found + [
        summarise_values(metric, when, [run[metric] for run in values if metric in run])
        for metric in dict.fromkeys(metric for run in values for metric in run)
        if metric not in known
    ]


def summarise_labels(
    metric: str,
    when: When,
    runs: Sequence[Mapping[str, tuple[int, int]]],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Summary:
    """Weighted F1 of the answers of one or several runs together, with a 95 % interval by bootstrap over samples: a
    sample is drawn with what all runs answered.

    Args:
        runs: for each run sample -> (right label, label that was answered).
    """
    names = list(dict.fromkeys(name for run in runs for name in run))
    cells, places = confusion_cells([label for run in runs for label in run.values()])
    clusters = np.zeros((len(places), len(names)))
    column_of = {name: column for column, name in enumerate(names)}
    owners = [column_of[name] for run in runs for name in run]
    np.add.at(clusters.T, owners, cells.T)
    drawn = resampled_sums(clusters, seed=seed, resamples=resamples)
    low, high = interval_of(weighted_f1_of_sums(drawn, places), len(names))
    value = weighted_f1([label for run in runs for label in run.values()])
    return Summary(metric, when, value, low, high, len(names), len(owners))


def summarise_values(metric: str, when: When, runs: Sequence[tuple[float, int]]) -> Summary:
    """A number that is no mean over samples (see ``Ability.values``): of several runs their mean, without an interval.

    Args:
        runs: for each run (value, samples).
    """
    counts = [count for _, count in runs]
    mean = math.fsum(value for value, _ in runs) / len(runs)
    return Summary(metric, when, mean, None, None, max(counts), sum(counts))
