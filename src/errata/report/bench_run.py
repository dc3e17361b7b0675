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
from errata.utils.text import counted


class CellRecord(BaseModel):
    """One cell of the grid: a model, a data set, a method and a seed.

    Attributes:
        seconds: wall time; None if unknown.
        failure: why it failed; None if it did not.
        edits: facts in the model at the end; None if unknown.
        collapsed_at: the batch, from 1, before which the run was stopped because perplexity exceeded the limit after
            it; None if it never did.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    model: str
    data: str
    method: str
    seed: int | None
    status: Literal["done", "failed", "not done"]
    seconds: float | None = None
    failure: str | None = None
    edits: int | None = None
    collapsed_at: int | None = None

    @property
    def stop(self) -> str:
        """Where a collapsed cell was stopped, and how many facts were edited."""
        edited = "" if self.edits is None else f", with {counted(self.edits, 'fact')} edited"
        return f"stopped before batch {self.collapsed_at}{edited}"


class AbsentRecord(BaseModel):
    """Metrics that could not be measured on a data set.

    Attributes:
        model: None in older results, where ``data`` is a data set of any model, or ``MODEL | DATA``.
        metrics: metric -> the reason.
    """

    model_config = ConfigDict(frozen=True)

    model: str | None
    data: str
    metrics: Mapping[str, str]


class About(BaseModel):
    """The metadata in ``summary.json``.

    Attributes:
        command: the command that started the run; the same command resumes it.
        commands: it, and later ones that added measurements, in order; empty in older results.
        versions: each set of software versions that cells were run with.
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
    def failed(self) -> list[CellRecord]:
        """Cells without results."""
        return [cell for cell in self.cells if cell.status == "failed"]

    @property
    def causes(self) -> dict[str, list[str]]:
        """Cause of failure -> the failed cells."""
        return by_cause((cell.id, cell.failure or "no reason given") for cell in self.failed)

    @property
    def collapsed(self) -> list[CellRecord]:
        """Cells that were stopped because perplexity exceeded its limit."""
        return [cell for cell in self.cells if cell.collapsed_at is not None]

    @property
    def unfinished(self) -> list[CellRecord]:
        """Cells that were not finished when the results were written."""
        return [cell for cell in self.cells if cell.status == "not done"]

    @property
    def seconds(self) -> float:
        """The sum of the cells' wall times; see ``seconds_note``."""
        return sum((cell.seconds or 0.0 for cell in self.cells), 0.0)

    @property
    def seconds_note(self) -> str:
        """What ``seconds`` includes.

        Older results name only one command: their times lack earlier, interrupted sessions of a cell, and later ones
        that only added measurements.
        """
        if not self.commands:
            return "total wall time of the last editing session of each run"
        return "total over all runs, without loading, preparation and evaluation of the unedited model"

    @property
    def all_commands(self) -> list[str]:
        """Each command once, the one that started the run first."""
        return list(dict.fromkeys((self.command, *self.commands)))

    @property
    def all_versions(self) -> list[str]:
        """``errata 0.1.0, torch 2.13.0``, for each set of versions."""
        return [", ".join(f"{name} {_joined(version)}" for name, version in one.items()) for one in self.versions]


def by_cause(failures: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """Cause -> the cells that failed for it, so that each cause is reported once.

    Args:
        failures: (a cell's id, why it failed); those without a cause are omitted.
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
# The model and the data share a name, which alone would say neither.
_LAB: Final = "lab"
_LAB_TITLE: Final = "Model lab, facts of its own world"
_REMEDY: Final = "Give the unmodified directory of a finished `errata bench`"


@dataclass(frozen=True, slots=True)
class Absent:
    """Metrics of a model and a data set that could not be measured for the same reason.

    The model is empty if the results do not name it.
    """

    model: str
    data: str
    metrics: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one model on one data set; names are empty if the rows have none."""

    model: str
    data: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Model and data for headings; of a path, only its last part."""
        if self.model == self.data == _LAB:
            return _LAB_TITLE
        return f"Model {shown_name(self.model) or 'unknown'}, data {shown_name(self.data) or 'unknown'}"


def shown_name(name: str) -> str:
    """The name of a model; of a local path, its last part."""
    return Path(name).name or name if Path(name).is_absolute() or name.startswith((".", "~")) else name


@dataclass(frozen=True, slots=True)
class BenchRun:
    """The results of a benchmark.

    Attributes:
        name: of its directory.
        records: the file with one row per prompt.
    """

    name: str
    records: Path
    rows: tuple[Row, ...]
    about: About

    @property
    def methods(self) -> list[str]:
        """The methods' names, in the order in which they first appear."""
        return list(dict.fromkeys(row["method"] for row in self.rows))

    @property
    def headline(self) -> str:
        """A summary in one line: ``4 methods; model gpt2; data counterfact; 3 seeds; 1,000 edits``."""
        cells = self.about.cells
        models = list(dict.fromkeys(shown_name(cell.model) for cell in cells if cell.model))
        data = list(dict.fromkeys(shown_name(cell.data) for cell in cells))
        if models == data == [_LAB]:
            of = [_LAB_TITLE[0].lower() + _LAB_TITLE[1:]]
        else:
            of = [f"model{'s' if len(models) > 1 else ''} {', '.join(models) or 'unknown'}", f"data {', '.join(data)}"]
        methods, seeds = counted(len(self.methods), "method"), counted(len({cell.seed for cell in cells}), "seed")
        parts = [methods, *of, seeds] if cells else [methods]
        if edits := sorted({row["edits"] for row in self.rows if row["when"] == "after" and "edits" in row}):
            parts.append(f"{edits[0]:,} edits" if len(edits) == 1 else f"{edits[0]:,}–{edits[-1]:,} edits")
        return "; ".join(parts)

    def absent(self) -> list[Absent]:
        """Metrics that were not measured, grouped by reason.

        A metric that one method or seed lacks may have been measured for another; it is not absent then.
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
        """The sections that a record refers to; a section without rows if none has any."""
        if record.model is not None:
            of = [each for each in self.sections() if (each.model, each.data) == (record.model, record.data)]
        else:
            of = [each for each in self.sections() if record.data in (each.data, f"{each.model} | {each.data}")]
        return of or [Section(record.model or "", record.data, ())]

    def signs(self, section: Section) -> dict[str, str]:
        """Method -> notes shown next to its name.

        ``seeds 2 of 3``: not all runs are done, and the numbers are of those that are. ``1 of 3 stopped early``:
        perplexity exceeded its limit in some runs.
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
        """Methods with at least one run that stopped before all facts were edited."""
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
        InputError: if this is not a benchmark directory, the benchmark is not finished, or its results are damaged.
        FaultsError: if rows are duplicates.
    """
    if not directory.is_dir():
        raise InputError(f"no directory {str(directory)!r}", remedy=_REMEDY, code="DIRECTORY_NOT_FOUND")
    summary = directory / SUMMARY
    if not summary.exists():
        if (directory / GRID).exists():
            raise InputError(
                f"the benchmark in {directory} is not finished: it has {GRID}, but no {SUMMARY}",
                remedy=f"Resume it with `errata bench --out {directory}`, then create the report",
                code="RUN_NOT_FINISHED",
            )
        raise InputError(
            f"{directory} is not a benchmark directory: it has neither {SUMMARY} nor {GRID}",
            remedy=_REMEDY,
            code="RUN_NOT_A_BENCHMARK",
        )
    results = read_results(summary)
    try:
        about = About.model_validate(results.about)
    except ValidationError as error:
        raise InputError(
            f"invalid 'about' in {summary}: {reason_of(error)}", remedy=_REMEDY, code="RESULTS_DAMAGED"
        ) from error
    if not results.rows and not about.cells:
        raise InputError(f"{summary} has neither rows nor cells", remedy=_REMEDY, code="RESULTS_EMPTY")
    try:
        json.dumps([results.rows, results.about], ensure_ascii=False).encode()  # JSON's \\ud800 cannot be encoded
    except UnicodeEncodeError as error:
        raise InputError(
            f"{summary} contains text that is not valid Unicode: {error}", remedy=_REMEDY, code="RESULTS_DAMAGED"
        ) from error
    _check_once(summary, results.rows)
    return BenchRun(directory.resolve().name, directory / RECORDS, results.rows, about)


def _check_once(summary: Path, rows: tuple[Row, ...]) -> None:
    """Raises FaultsError for duplicate rows: a table cannot show two values of one cell."""
    first: dict[tuple[object, ...], int] = {}
    faults = []
    for index, row in enumerate(rows):
        edits = row.get("edits") if row["when"] == "during" else None
        key = (row.get("model"), row.get("data"), row["method"], row["metric"], row["when"], edits)
        if key in first:
            what = f"duplicates rows[{first[key]}]: {row['method']!r}, {row['metric']!r}, {row['when']!r}"
            faults.append(
                Fault(
                    f"rows[{index}]", what, "Give each variant of a method its own name", code="RESULTS_DUPLICATE_ROW"
                )
            )
        first.setdefault(key, index)
    if faults:
        raise FaultsError(str(summary), faults)
