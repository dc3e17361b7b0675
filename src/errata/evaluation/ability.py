"""General ability: runs EleutherAI's lm-evaluation-harness on a model and converts its results to records.

A task's number is the harness's own. Samples are stored for bootstrap intervals: a record for each sample where the
number is a mean over samples, and a resampled weighted F1 for the papers' probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from errata.editors.contract import Answerer
from errata.errors import InputError
from errata.evaluation.absence import LACKING
from errata.evaluation.harness import IMPOSSIBLE, check_harness, preserved_random_state, run_tasks, task_names
from errata.evaluation.probes import (
    LIKELIHOOD,
    PROBE_GROUP,
    PROBES,
    UNPARSABLE,
    WEIGHTED_F1,
    add_likelihoods,
    check_probe_lengths,
    probe_tasks,
    read_probes,
)
from errata.models.language_model import TOKEN_BUDGET
from errata.results.records import (
    Record,
    Summary,
    When,
    confusion_cells,
    interval_of,
    resampled_sums,
    summarise,
    weighted_f1,
    weighted_f1_of_sums,
)
from errata.utils.progress import Report, silent

PREFIX = "ability:"


@dataclass(frozen=True, slots=True)
class Sample:
    """One question of a task.

    Attributes:
        id: its index in the task's data.
        prompt: the model's input.
        said: the model's answer: the text, or the log-likelihood of each option.
        values: its value of each metric that is a number per sample.
        labels: for each weighted F1 (right label, answered label).
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
        stderr: standard error of the mean (n - 1 in the variance); None where the number is not a mean over samples.
        n: number of samples.
    """

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Results of one task.

    Attributes:
        group: ``probes`` for the papers' probes, else empty.
        metrics: name -> number. A filter of the harness other than its default follows the name and a comma.
        samples: in the order of the task's data; empty for a group of the harness, whose numbers are its tasks' means.
    """

    group: str
    metrics: Mapping[str, TaskMetric]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class AbilityResults:
    """Results of all tasks.

    Attributes:
        tasks: by name.
        absent: metric, or task as ``ability:TASK``, -> why it was not measured.
    """

    tasks: Mapping[str, TaskResult]
    absent: Mapping[str, str] = field(default_factory=dict)

    def records(self) -> list[Record]:
        """A record per sample and metric, ``ability:TASK:METRIC``, ``fact`` being ``TASK/ID`` of the sample.

        Metrics that are not means over samples (F1, perplexities) have none: their mean would be another number.
        """
        return [
            Record(f"{task}/{sample.id}", f"{PREFIX}{task}:{name}", sample.prompt, sample.values[name], sample.said)
            for task, result in self.tasks.items()
            for name, metric in result.metrics.items()
            if metric.stderr is not None
            for sample in result.samples
        ]

    def labels(self) -> dict[str, dict[str, tuple[int, int]]]:
        """For each weighted F1, by its full name: sample -> (right label, answered label)."""
        return {
            f"{PREFIX}{task}:{name}": {f"{task}/{sample.id}": sample.labels[name] for sample in result.samples}
            for task, result in self.tasks.items()
            for name in result.metrics
            if result.samples and all(name in sample.labels for sample in result.samples)
        }

    def values(self) -> dict[str, tuple[float, int]]:
        """The other numbers, by their full names: (value as the harness reports it, samples). They are not means over
        stored samples (F1, perplexities, numbers of groups), so they cannot be bootstrapped."""
        others = {record.metric for record in self.records()} | self.labels().keys()
        return {
            full: (metric.value, metric.n)
            for task, result in self.tasks.items()
            for name, metric in result.metrics.items()
            if (full := f"{PREFIX}{task}:{name}") not in others
        }

    def summaries(self, when: When, *, seed: int = 0, resamples: int = 1000) -> list[Summary]:
        """Every number with its 95 % interval by bootstrap over samples, if it has one."""
        resampled = {entry.metric: entry for entry in summarise(self.records(), when, seed=seed, resamples=resamples)}
        for full, samples in self.labels().items():
            resampled[full] = summarise_labels(full, when, [samples], seed=seed, resamples=resamples)
        found = []
        for task, result in self.tasks.items():
            for name, metric in result.metrics.items():
                full = f"{PREFIX}{task}:{name}"
                low, high = (resampled[full].low, resampled[full].high) if full in resampled else (None, None)
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
    """Numbers that are not means over samples, of several runs together.

    Args:
        labels: of each run, see ``AbilityResults.labels``.
        values: of each run, see ``AbilityResults.values``.
        known: metrics that some runs have samples of, and that are summarised by them.
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
    metric: str, when: When, runs: Sequence[Mapping[str, tuple[int, int]]], *, seed: int = 0, resamples: int = 1000
) -> Summary:
    """Weighted F1 of the answers of one or several runs together, with a 95 % interval by bootstrap over samples: a
    sample is drawn with the answers of all runs.

    Args:
        runs: for each run sample -> (right label, answered label).
    """
    names = list(dict.fromkeys(name for run in runs for name in run))
    cells, places = confusion_cells([label for run in runs for label in run.values()])
    clusters = np.zeros((len(places), len(names)))
    column_of = {name: column for column, name in enumerate(names)}
    owners = [column_of[name] for run in runs for name in run]
    np.add.at(clusters.T, owners, cells.T)
    resampled = resampled_sums(clusters, seed=seed, resamples=resamples)
    low, high = interval_of(weighted_f1_of_sums(resampled, places), len(names))
    value = weighted_f1([label for run in runs for label in run.values()])
    return Summary(metric, when, value, low, high, len(names), len(owners))


def summarise_values(metric: str, when: When, runs: Sequence[tuple[float, int]]) -> Summary:
    """The mean over runs of a number that is not a mean over samples (``AbilityResults.values``); without an interval.

    Args:
        runs: for each run (value, samples).
    """
    counts = [count for _, count in runs]
    mean = math.fsum(value for value, _ in runs) / len(runs)
    return Summary(metric, when, mean, None, None, max(counts), sum(counts))


@dataclass(frozen=True, slots=True)
class AbilitySettings:
    """Settings of the measurement.

    Attributes:
        tasks: names of the harness's tasks or groups, whose data it downloads, and local YAML files or directories of
            them. If all tasks are local, the network is not used.
        probes: directory of the papers' six probes (``sst2.json`` …); None: no probes.
        probe_items: number of questions of each probe.
        limit: most questions of each task (not of probes); None: all.
        few_shot: number of demonstrations; None: the task's default.
        batch_size: rows of a forward pass where all are as long as the longest; the results do not depend on it.
    """

    tasks: tuple[str, ...] = ()
    probes: Path | None = None
    probe_items: int = 100
    limit: int | None = None
    few_shot: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, least in (("probe_items", 1), ("limit", 1), ("few_shot", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                what = f"{name} must be at least {least}, got {value}"
                raise InputError(what, remedy="Give a larger number", code="SETTING_INVALID")
        if not self.tasks and self.probes is None:
            what, remedy = "neither tasks nor probes were given", "Name tasks, or the directory of the probes"
            raise InputError(what, remedy=remedy, code="ABILITY_NOTHING_TO_RUN")

    def to_record(self) -> dict[str, object]:
        """The settings for results files."""
        return asdict(self) | {"probes": None if self.probes is None else str(self.probes), "tasks": list(self.tasks)}


def measure_ability(
    model: Answerer, settings: AbilitySettings, *, token_budget: int = TOKEN_BUDGET, report: Report = silent
) -> AbilityResults:
    """Run tasks and probes on a model; the model and its tokenizer are not changed.

    Tasks that need an ability which the model lacks, that sample their answers, or that generate more tokens than the
    model accepts are absent, with the reason.

    Args:
        token_budget: most padded tokens of a forward pass of the probes' likelihood variant.

    Raises:
        MissingExtraError: if lm-evaluation-harness is not installed (``errata[eval]``).
        InputError: if a task is unknown, a local one needs the network, or a file of the probes is wrong.
    """
    check_harness()
    tasks: dict[str, TaskResult] = {}
    absent: dict[str, str] = {}
    items = None if settings.probes is None else read_probes(settings.probes, settings.probe_items)
    if items is not None:
        check_probe_lengths(model, items)  # before the tasks' work
    with preserved_random_state():
        if settings.tasks:
            found, absent = _run_possible(model, settings, report)
            tasks |= found
        if items is not None and "generation" not in model.abilities:
            absent |= {f"{PREFIX}{probe.task}": f"{model.name} {LACKING['generation']}" for probe in PROBES}
        elif items is not None:
            raw = run_tasks(model, probe_tasks(items), batch_size=settings.batch_size, report=report)
            if "likelihood" in model.abilities:
                add_likelihoods(model, items, raw, token_budget=token_budget, report=report)
            else:
                reason = f"{model.name} {LACKING['likelihood']}"
                for probe in PROBES:
                    lost = probe.values(items[probe.name][0], UNPARSABLE, suffix=LIKELIHOOD)
                    absent |= {f"{PREFIX}{probe.task}:{name}": reason for name in lost}
            tasks |= _results(raw, group=PROBE_GROUP)
    return AbilityResults(tasks, absent)


def _run_possible(
    model: Answerer, settings: AbilitySettings, report: Report
) -> tuple[dict[str, TaskResult], dict[str, str]]:
    """Results of the tasks that the model can do, and why the others are absent."""

    def run(only: Sequence[str] | None = None) -> dict[str, TaskResult]:
        raw = run_tasks(
            model,
            settings.tasks,
            only=only,
            limit=settings.limit,
            few_shot=settings.few_shot,
            batch_size=settings.batch_size,
            report=report,
        )
        return _results(raw, group="")

    if model.abilities >= LACKING.keys():
        try:
            return run(), {}
        except InputError as error:
            if error.code not in IMPOSSIBLE:
                raise
    # A task that is impossible ends the harness's run, so each one runs alone.
    found: dict[str, TaskResult] = {}
    absent: dict[str, str] = {}
    for name in task_names(settings.tasks):
        try:
            found |= run([name])
        except InputError as error:
            if error.code not in IMPOSSIBLE:
                raise
            absent[f"{PREFIX}{name}"] = error.what
    return found, absent


def _results(raw: Mapping[str, Any], *, group: str) -> dict[str, TaskResult]:
    """The harness's ``results`` and ``samples``, converted; also those of its groups, which have no samples."""
    found: dict[str, TaskResult] = {}
    for task, numbers in raw["results"].items():
        logged = raw["samples"].get(task, [])
        metrics: dict[str, TaskMetric] = {}
        for key, value in numbers.items():
            name, _, chosen = key.partition(",")
            if not chosen or name.endswith("_stderr") or isinstance(value, str | bool):
                continue
            shown = name if chosen == "none" else key
            values = [entry.get(name) for entry in logged if entry["filter"] == chosen]
            count = len(values) if values else sum(len(raw["samples"].get(name, [])) for name in _members(raw, task))
            metrics[shown] = TaskMetric(float(value), _stderr(values, float(value)), count)
        found[task] = TaskResult(group, metrics, _samples(logged))
    return found


def _members(raw: Mapping[str, Any], group: str) -> list[str]:
    """The tasks of a group of the harness, those of its subgroups included."""
    names = raw.get("group_subtasks", {}).get(group, ())
    return [task for name in names for task in _members(raw, name) or [name]]


def _stderr(values: Sequence[object], value: float) -> float | None:
    """Standard error of the mean, if ``value`` is the mean of numbers of samples."""
    numbers = [float(entry) for entry in values if isinstance(entry, int | float | np.number | np.bool_)]
    if len(numbers) != len(values) or len(numbers) < 2 or not all(math.isfinite(entry) for entry in numbers):
        return None
    if not math.isclose(math.fsum(numbers) / len(numbers), value, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return float(np.std(numbers, ddof=1) / math.sqrt(len(numbers)))


def _samples(logged: Sequence[Mapping[str, Any]]) -> tuple[Sample, ...]:
    """One for each question; the values of several filters have several names."""
    found: dict[str, Sample] = {}
    columns: dict[str, tuple[dict[str, float], dict[str, tuple[int, int]]]] = {}
    for entry in logged:
        name = str(entry["doc_id"])
        values, labels = columns.setdefault(name, ({}, {}))
        said = "; ".join(str(answer) for answers in entry["resps"] for answer in answers)
        found.setdefault(name, Sample(name, str(entry["arguments"][0][0]), said, values, labels))
        for metric in entry["metrics"]:
            value, shown = entry[metric], metric if entry["filter"] == "none" else f"{metric},{entry['filter']}"
            if isinstance(value, int | float | np.number | np.bool_):
                values[shown] = float(value)
            elif metric.startswith(WEIGHTED_F1):
                labels[shown] = (int(value[0]), int(value[1]))
    return tuple(found.values())
