"""General ability: what EleutherAI's lm-evaluation-harness measures on the model in memory, as errata's records.

A task's number is the harness's own. Samples are kept, so that intervals can be bootstrapped over them: a record for
each sample where the number is a mean over samples, and a resampled weighted F1 for the papers' probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errata.errors import InputError
from errata.evaluation.ability_results import Ability, Sample, TaskMetric, TaskResult
from errata.evaluation.harness import check_harness, left_alone, run_tasks
from errata.evaluation.probe_runs import add_likelihoods, check_probe_lengths, probe_tasks
from errata.evaluation.probes import PROBE_GROUP, WEIGHTED_F1, read_probes
from errata.models.language_model import TOKEN_BUDGET, LanguageModel
from errata.progress import Report, silent


@dataclass(frozen=True, slots=True)
class AbilitySettings:
    """What is measured, and how.

    Attributes:
        tasks: names of the harness's tasks or groups, whose data it downloads, and local YAML files or directories of
            them. With local ones only, no network is tried.
        probes: directory of the papers' six probes (``sst2.json`` …); None leaves them out.
        probe_items: questions of each probe.
        limit: at most so many questions of each task (not of probes); None is all.
        few_shot: demonstrations; None is what each task says.
        batch_size: rows of a forward pass; the results do not depend on it.
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
                raise InputError(f"{name} must be at least {least}, got {value}", remedy="Give a larger number")
        if not self.tasks and self.probes is None:
            raise InputError("neither tasks nor probes were given", remedy="Name tasks, or the directory of the probes")

    def to_record(self) -> dict[str, object]:
        """The settings as a results file holds them."""
        return asdict(self) | {"probes": None if self.probes is None else str(self.probes), "tasks": list(self.tasks)}


def measure_ability(
    model: LanguageModel, settings: AbilitySettings, *, token_budget: int = TOKEN_BUDGET, report: Report = silent
) -> Ability:
    """Run tasks and probes on a model; the model and its tokenizer stay as they are.

    Args:
        token_budget: most padded tokens of a forward pass of the probes' likelihood variant.

    Raises:
        MissingExtraError: if lm-evaluation-harness is not installed (``errata[eval]``).
        InputError: if a task is unknown, a local one needs the network, or a file of the probes is wrong.
    """
    check_harness()
    tasks: dict[str, TaskResult] = {}
    items = None if settings.probes is None else read_probes(settings.probes, settings.probe_items)
    if items is not None:
        check_probe_lengths(model, items)  # before the tasks' work
    with left_alone():
        if settings.tasks:
            raw = run_tasks(
                model,
                settings.tasks,
                limit=settings.limit,
                few_shot=settings.few_shot,
                batch_size=settings.batch_size,
                report=report,
            )
            tasks |= _results(raw, group="")
        if items is not None:
            raw = run_tasks(model, probe_tasks(items), batch_size=settings.batch_size, report=report)
            add_likelihoods(model, items, raw, token_budget=token_budget, report=report)
            tasks |= _results(raw, group=PROBE_GROUP)
    return Ability(tasks)


def _results(raw: Mapping[str, Any], *, group: str) -> dict[str, TaskResult]:
    """The harness's ``results`` and ``samples`` as ours; also of its groups, which have no samples."""
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
    """The tasks of a group of the harness, those of groups in it included."""
    found: list[str] = []
    for name in raw.get("group_subtasks", {}).get(group, ()):
        below = _members(raw, name)
        found += below or [name]
    return found


def _stderr(values: Sequence[object], value: float) -> float | None:
    """Standard error of the mean, if ``value`` is the mean of numbers of samples."""
    numbers = [float(entry) for entry in values if isinstance(entry, int | float | np.number | np.bool_)]
    if len(numbers) != len(values) or len(numbers) < 2 or not all(math.isfinite(entry) for entry in numbers):
        return None
    if not math.isclose(math.fsum(numbers) / len(numbers), value, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return float(np.std(numbers, ddof=1) / math.sqrt(len(numbers)))


def _samples(logged: Sequence[Mapping[str, Any]]) -> tuple[Sample, ...]:
    """One for each question; what several filters made of its answer stands under several names."""
    found: dict[str, Sample] = {}
    for entry in logged:
        values: dict[str, float] = {}
        labels: dict[str, tuple[int, int]] = {}
        for name in entry["metrics"]:
            value, shown = entry[name], name if entry["filter"] == "none" else f"{name},{entry['filter']}"
            if isinstance(value, int | float | np.number | np.bool_):
                values[shown] = float(value)
            elif name.startswith(WEIGHTED_F1):
                labels[shown] = (int(value[0]), int(value[1]))
        name = str(entry["doc_id"])
        said = "; ".join(str(answer) for answers in entry["resps"] for answer in answers)
        new = Sample(name, str(entry["arguments"][0][0]), said, values, labels)
        old = found.get(name)
        found[name] = (
            new
            if old is None
            else Sample(name, old.prompt, old.said, {**old.values, **values}, {**old.labels, **labels})
        )
    return tuple(found.values())
