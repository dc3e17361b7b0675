"""A grid on disk: its cells, and which of them are done.

grid.json       the grid, the commands, the cells' names in order, checksums of files that measurements read; only the
                list of measurements may change
lock            held by the process that runs the grid
material/       facts and control questions of each data set and seed
before/         measurements of unedited models, shared by cells
pinned/         digests of the weights and corpora that the cells use
cells/NAME/     one cell each; see ``cell``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.benchmark.cell_files import CellSpec, is_done, is_edited, read_spec
from errata.benchmark.data import read_json, reading_result
from errata.benchmark.grid import Grid, Measures
from errata.benchmark.measurements import check_measurements, input_digests
from errata.errors import Fault, FaultsError, InputError
from errata.utils.files import is_there, new_directory, reading, write_json, write_text
from errata.utils.locks import check_no_links, exclusive
from errata.utils.provenance import now, software_versions

FORMAT = "errata-bench-2"


@dataclass(frozen=True, slots=True)
class Undefined:
    """An invalid combination of the grid, with the reason."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Campaign:
    """A grid's directory.

    Attributes:
        record: content of ``grid.json``.
        cells: the cells' directories, in order.
        grid: validated from ``record``.
    """

    directory: Path
    record: Mapping[str, Any]
    cells: tuple[Path, ...]
    grid: Grid

    def spec(self, cell: Path) -> CellSpec:
        return read_spec(cell)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the benchmark's lock.

        Raises:
            InputError: if another process holds it, or the benchmark contains links.
        """
        check_no_links(self.directory)
        with exclusive(self.directory / "lock", f"the benchmark {self.directory}"):
            yield

    def pending(self, *, retry: bool = False) -> list[Path]:
        """Cells that are not done; failed ones only with ``retry``."""
        return [cell for cell in self.cells if not self.is_done(cell) and (retry or failure_of(cell) is None)]

    def check_inputs(self) -> None:
        """Check files, settings and packages of all measurements.

        Raises:
            FaultsError: if a file changed since the benchmark started, or a measurement cannot be made.
        """
        measures = self.grid.measures
        check_measurements(measures.parts, measures.options)
        self._check_digests(input_digests(measures.parts, measures.options))

    def _check_digests(self, present: Mapping[str, Mapping[str, str]]) -> None:
        """Raises FaultsError if the files of measurements made before have changed."""
        faults: dict[str, Fault] = {}
        for name, digests in present.items():
            known = self.record["inputs"].get(name, digests)
            for path in {**known, **digests}:
                if path not in known:
                    change, remedy = "added", "Remove it"
                elif path not in digests:
                    change, remedy = "removed", "Restore it"
                elif known[path] != digests[path]:
                    change, remedy = "changed", "Restore it, or use a file of another name"
                else:
                    continue
                what = f"{change} since the benchmark started"
                faults[path] = Fault(path, what, remedy, code="BENCH_INPUT_CHANGED")
        if faults:
            raise FaultsError(f"the benchmark {self.directory}", list(faults.values()))

    def measures_with(self, more: Measures | None, without: Sequence[str] = ()) -> Measures:
        """The present measurements and ``more``.

        Args:
            without: measurements to drop.

        Raises:
            InputError: if one of those is not among the present ones.
        """
        present, more = self.grid.measures, more or Measures()
        if unknown := [name for name in without if name not in present.parts]:
            names = ", ".join(present.parts)
            remedy = f"Optional ones: {names}" if names else "It has no optional measurements"
            what = f"{self.directory} has no measurement {unknown[0]!r}"
            raise InputError(what, remedy=remedy, code="MEASUREMENT_UNKNOWN")
        parts = tuple(name for name in dict.fromkeys((*present.parts, *more.parts)) if name not in without)
        options = {name: value for name, value in {**present.options, **more.options}.items() if name not in without}
        return Measures(parts=parts, options=options)

    def measuring(self, more: Measures | None, without: Sequence[str], command: str) -> Campaign:
        """Change the measurements to those of ``measures_with``. Call it while ``locked``.

        Results of dropped measurements stay on disk. Cells with failed measurements are tried again.

        Raises:
            InputError, FaultsError: as ``measures_with``, or if files of measurements changed; nothing is changed then.
        """
        found = open_campaign(self.directory)  # read again under the lock
        measures = found.measures_with(more, without)
        if measures.model_dump(mode="json") == found.grid.measures.model_dump(mode="json"):
            return found
        digests = input_digests(measures.parts, measures.options)
        found._check_digests(digests)
        record = {
            **found.record,
            "commands": [*found.record["commands"], command],
            "grid": {**found.record["grid"], "measures": measures.model_dump(mode="json")},
            "inputs": {**digests, **found.record["inputs"]},
        }
        _write_record(self.directory, record)
        for cell in found.cells:
            if is_edited(cell, measures):
                forget_failure(cell)
        return open_campaign(self.directory)

    def is_edited(self, cell: Path) -> bool:
        """Whether a cell has results: editing and the required measurements are done."""
        return is_edited(cell, self.grid.measures)

    def is_done(self, cell: Path) -> bool:
        """Whether editing and all measurements of a cell are done."""
        return is_done(cell, self.grid.measures)


def failure_of(cell: Path) -> str | None:
    """Why a cell failed; None if it did not. A damaged record of a failure is one, too."""
    path = cell / "failure.json"
    if not path.is_file():
        return None
    try:
        with reading_result(path):
            return str(read_json(path)["what"])
    except InputError as error:
        return str(error)


def forget_failure(cell: Path) -> None:
    """Remove what a failed attempt left, before the next one."""
    for name in ("failure.json", "traceback.txt", "errors.txt"):
        (cell / name).unlink(missing_ok=True)


def begin(
    directory: Path,
    grid: Grid,
    specs: Sequence[CellSpec],
    undefined: Sequence[Undefined],
    materials: Callable[[Path], None],
    command: str,
) -> Campaign:
    """A new campaign, or the existing one of the same grid; measurements are changed by ``Campaign.measuring`` only.

    Args:
        materials: writes the data of all cells into a folder.

    Raises:
        InputError: if the directory holds something else.
        FaultsError: if it holds a campaign of another grid; names the differences.
    """
    if (directory / "grid.json").is_file():
        found = open_campaign(directory)
        old, new = found.record["grid"], grid.model_dump(mode="json")
        if faults := mismatches(directory, {**old, "measures": {}}, {**new, "measures": {}}, code="BENCH_MISMATCH"):
            remedy = "Use another --out, or the original grid"
            raise FaultsError(f"the benchmark {directory}", faults, remedy=remedy)
        if [spec.key for spec in specs] != found.record["cells"]:
            raise InputError(
                f"the facts or a recipe changed since {directory} was started",
                remedy="Use another --out, or resume with `errata bench --out` alone, which uses the saved facts",
                code="BENCH_MISMATCH",
            )
        return found
    with new_directory(directory) as partial:
        (partial / "material").mkdir()
        (partial / "before").mkdir()
        materials(partial / "material")
        for spec in specs:
            write_text(partial / "cells" / spec.key / "cell.json", spec.model_dump_json(indent=1) + "\n")
        record = {
            "format": FORMAT,
            "created": now(),
            "commands": [command],
            "grid": grid.model_dump(mode="json"),
            "inputs": input_digests(grid.measures.parts, grid.measures.options),
            "cells": [spec.key for spec in specs],
            "undefined": [{"label": entry.label, "reason": entry.reason} for entry in undefined],
            "versions": software_versions(),
        }
        _write_record(partial, record)
    return open_campaign(directory)


def _write_record(directory: Path, record: Mapping[str, Any]) -> None:
    write_json(directory / "grid.json", record, indent=1)


def open_campaign(directory: Path) -> Campaign:
    """Raises InputError if there is no campaign, or ``grid.json`` is damaged."""
    path = directory / "grid.json"
    if not is_there(path):
        what, remedy = f"{directory} is not a benchmark: it has no grid.json", "Give a directory of errata bench"
        raise InputError(what, remedy=remedy, code="BENCH_MISSING")
    with reading(path, remedy="Restore it, or start over", code="BENCH_DAMAGED"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, expected {FORMAT!r}")
        cells = tuple(directory / "cells" / str(key) for key in record["cells"])
        grid = Grid.model_validate(record["grid"])
        if not record["commands"] or not all(isinstance(command, str) for command in record["commands"]):
            raise ValueError("it has no commands")
        for digests in record["inputs"].values():
            dict(digests)
    if lost := [cell.name for cell in cells if not (cell / "cell.json").is_file()]:
        what = f"{directory} lacks the cells {', '.join(lost)}"
        raise InputError(what, remedy="Restore them, or start over", code="BENCH_DAMAGED")
    return Campaign(directory, record, cells, grid)


def mismatches(directory: Path, old: Any, new: Any, *, code: str, name: str = "") -> list[Fault]:
    """Each difference between two JSON objects: the inputs that a directory was started with, and the present ones.

    Args:
        name: dotted place in them.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            fault
            for key in dict.fromkeys((*old, *new))
            for fault in mismatches(
                directory, old.get(key), new.get(key), code=code, name=f"{name}.{key}" if name else str(key)
            )
        ]
    if old == new:
        return []
    was, now_is = ("nothing" if value is None else f"{value!r:.200}" for value in (old, new))
    return [Fault(name, f"{directory} was started with {was}, got {now_is}", "", code=code)]
