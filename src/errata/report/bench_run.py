"""The results of a benchmark's run directory: rows, cells, and what is absent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from errata.errors import Fault, FaultsError, InputError
from errata.results.records import Row, read_results
from errata.utils.files import reason_of


class CellRecord(BaseModel):
    """One cell of the grid: a model, a data set, a method and a seed.

    Attributes:
        seconds: wall time; None where it is not known.
        failure: why it failed; None if it did not.
        edits: facts that are in the model at the end; None where it is not known.
        collapsed_at: the batch, from 1, before which the run was stopped because perplexity was over its limit behind
            it; None if it never was.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    model: str
    data: str
    method: str
    seed: int
    status: Literal["done", "failed", "not done"]
    seconds: float | None = None
    failure: str | None = None
    edits: int | None = None
    collapsed_at: int | None = None


class AbsentRecord(BaseModel):
    """What could not be measured somewhere.

    Attributes:
        model: None in older results, where ``data`` is a data set of any model, or ``MODEL | DATA``.
        metrics: metric -> the reason.
    """

    model_config = ConfigDict(frozen=True)

    model: str | None
    data: str
    metrics: Mapping[str, str]


class About(BaseModel):
    """The metadata beside the rows of ``summary.json``.

    Attributes:
        command: the command that made the run; the same command resumes it.
        commands: it, and those that measured more later, in order; empty in older results.
        versions: of the software, once for each set of versions that cells were worked on with.
        absent: the metrics that could not be measured, with the reason.
    """

    model_config = ConfigDict(frozen=True)

    command: str
    commands: tuple[str, ...] = ()
    cells: tuple[CellRecord, ...]
    created: str = ""
    versions: tuple[Mapping[str, Any], ...] = ()
    grid: Mapping[str, Any] = {}
    recipes: Mapping[str, Any] = {}
    absent: tuple[AbsentRecord, ...] = ()
    notes: tuple[str, ...] = ()

    @field_validator("versions", mode="before")
    @classmethod
    def _of_one_or_several(cls, value: object) -> object:
        return ([value] if value else []) if isinstance(value, Mapping) else value

    @field_validator("absent", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return [{"model": None, "data": name, "metrics": metrics} for name, metrics in value.items()]

    @property
    def all_commands(self) -> list[str]:
        """Each command once, the one that began it first."""
        return list(dict.fromkeys((self.command, *self.commands)))

    @property
    def all_versions(self) -> list[str]:
        """``errata 0.1.0, torch 2.13.0``, for each set of versions."""
        return [", ".join(f"{name} {_joined(version)}" for name, version in one.items()) for one in self.versions]


def by_cause(failures: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """Cause -> the cells that failed by it, so that each cause is said once.

    Args:
        failures: (a cell's id, why it failed); those without a cause are left out.
    """
    found: dict[str, list[str]] = {}
    for cell, cause in failures:
        if cause:
            found.setdefault(cause, []).append(cell)
    return found


def _joined(version: object) -> str:
    return " and ".join(map(str, version)) if isinstance(version, list | tuple) else str(version)


SUMMARY: Final = "summary.json"
RECORDS: Final = "records.parquet"
GRID: Final = "grid.json"
_REMEDY: Final = "Give the directory of a finished `errata bench`, as that has written it"


@dataclass(frozen=True, slots=True)
class Absent:
    """Metrics of a model and a data set that could not be measured for the same reason; the model is empty where the
    results do not name it.
    """

    model: str
    data: str
    metrics: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one model on one data set; names are empty where the rows name none."""

    model: str
    data: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Model and data as headings call them: of a path, only its last part."""
        names = ((self.model, "unknown model"), (self.data, "unknown data"))
        return ", ".join(shown_name(name) or missing for name, missing in names)


def shown_name(name: str) -> str:
    """A model's name on the hub as it is; of a path of this machine, its last part."""
    return Path(name).name or name if Path(name).is_absolute() or name.startswith((".", "~")) else name


@dataclass(frozen=True, slots=True)
class BenchRun:
    """A benchmark's run as it is read.

    Attributes:
        name: what its directory is called.
        records: its file with one row per prompt.
    """

    name: str
    records: Path
    rows: tuple[Row, ...]
    about: About

    @property
    def methods(self) -> list[str]:
        """The methods' names, in the order in which they first appear."""
        return list(dict.fromkeys(row["method"] for row in self.rows))

    def absent(self) -> list[Absent]:
        """What was not measured, the metrics with the same reason together; of a section only what it has no row of,
        as a metric that one method or seed lacks can have been measured for another.
        """
        found = []
        for record in self.about.absent:
            for section in self._sections_of(record):
                measured = {row["metric"] for row in section.rows}
                left = {metric: why for metric, why in record.metrics.items() if metric not in measured}
                for reason in dict.fromkeys(left.values()):
                    metrics = tuple(metric for metric, why in left.items() if why == reason)
                    found.append(Absent(section.model, section.data, metrics, reason))
        return found

    def _sections_of(self, record: AbsentRecord) -> list[Section]:
        """The sections that it is about; one without rows where no row is of it."""
        if record.model is not None:
            of = [each for each in self.sections() if (each.model, each.data) == (record.model, record.data)]
        else:
            of = [each for each in self.sections() if record.data in (each.data, f"{each.model} | {each.data}")]
        return of or [Section(record.model or "", record.data, ())]

    def signs(self, section: Section) -> dict[str, str]:
        """Method -> what its line has to say of its runs: ``seeds 2 of 3`` where not all are done (its numbers are of
        those alone), ``1 of 3 stopped early`` where perplexity went over its limit in some.
        """
        found = {}
        for method, cells in self._cells(section).items():
            done = [cell for cell in cells if cell.status == "done"]
            stopped = sum(cell.collapsed_at is not None for cell in done)
            parts = [f"seeds {len(done)} of {len(cells)}"] if len(done) < len(cells) else []
            parts += [f"{stopped} of {len(done)} stopped early"] if stopped else []
            if parts:
                found[method] = ", ".join(parts)
        return found

    def stopped(self, section: Section) -> set[str]:
        """Methods of which at least one run was stopped before all its facts were edited."""
        return {
            method
            for method, cells in self._cells(section).items()
            if any(cell.status == "done" and cell.collapsed_at is not None for cell in cells)
        }

    def _cells(self, section: Section) -> dict[str, list[CellRecord]]:
        found: dict[str, list[CellRecord]] = {}
        for cell in self.about.cells:
            if (cell.model, cell.data) == (section.model, section.data):
                found.setdefault(cell.method, []).append(cell)
        return found

    def sections(self) -> list[Section]:
        """The rows by model and data set, in the order in which they first appear."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.get("model", ""), row.get("data", "")), []).append(row)
        return [Section(model, data, tuple(rows)) for (model, data), rows in found.items()]


def read_bench_run(directory: Path) -> BenchRun:
    """Read a run's results; the records are not opened.

    Raises:
        InputError: if this is no directory of a benchmark, its run is not finished, or its results are damaged.
        FaultsError: if several rows are of the same thing.
    """
    if not directory.is_dir():
        raise InputError(f"there is no directory {str(directory)!r}", remedy=_REMEDY, code="DIRECTORY_NOT_FOUND")
    summary = directory / SUMMARY
    if not summary.exists():
        if (directory / GRID).exists():
            raise InputError(
                f"the run in {directory} is not finished: it has {GRID}, and no {SUMMARY} yet",
                remedy=f"Resume it with `errata bench --out {directory}`, then ask for the report",
                code="RUN_NOT_FINISHED",
            )
        raise InputError(
            f"{directory} is no run of a benchmark: it has neither {SUMMARY} nor {GRID}",
            remedy=_REMEDY,
            code="RUN_NOT_A_BENCHMARK",
        )
    results = read_results(summary)
    try:
        about = About.model_validate(results.about)
    except ValidationError as error:
        raise InputError(
            f"{summary}, 'about', cannot be used: {reason_of(error)}", remedy=_REMEDY, code="RESULTS_DAMAGED"
        ) from error
    if not results.rows and not about.cells:
        raise InputError(f"{summary} has neither rows nor cells", remedy=_REMEDY, code="RESULTS_EMPTY")
    try:
        json.dumps([results.rows, results.about], ensure_ascii=False).encode()  # JSON's \\ud800 is no text in a file
    except UnicodeEncodeError as error:
        raise InputError(
            f"{summary} has text that is not Unicode: {error}", remedy=_REMEDY, code="RESULTS_DAMAGED"
        ) from error
    _check_once(summary, results.rows)
    return BenchRun(directory.resolve().name, directory / RECORDS, results.rows, about)


def _check_once(summary: Path, rows: tuple[Row, ...]) -> None:
    """No table could show two values of the same thing, and to choose one would be a guess."""
    first: dict[tuple[object, ...], int] = {}
    faults = []
    for index, row in enumerate(rows):
        edits = row.get("edits") if row["when"] == "during" else None
        key = (row.get("model"), row.get("data"), row["method"], row["metric"], row["when"], edits)
        if key in first:
            what = f"it is of the same as rows[{first[key]}]: {row['method']!r}, {row['metric']!r}, {row['when']!r}"
            faults.append(
                Fault(
                    f"rows[{index}]", what, "Give each variant of a method its own name", code="RESULTS_DUPLICATE_ROW"
                )
            )
        first.setdefault(key, index)
    if faults:
        raise FaultsError(str(summary), faults)
