"""A grid on disk: which cells there are, and which are done.

grid.json       the grid, the commands, the cells' names in order, checksums of what measurements read; only what is
                measured may change
lock            held while somebody works here
material/       facts and questions of each data set and seed
before/         what unedited models said, shared by cells
pinned/         which weights and which text for key statistics the cells began with
cells/NAME/     one cell each; see ``cell``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.benchmark.answers import is_done, is_edited
from errata.benchmark.cell_spec import CellSpec, damaged, read_json, read_spec
from errata.benchmark.grid import Grid, Measures
from errata.benchmark.measurements import check_parts, input_digests
from errata.errors import Fault, FaultsError, InputError
from errata.patches.patch import now, software_versions
from errata.utils.files import new_directory, reason_of, write_text
from errata.utils.locks import check_no_links, exclusive

FORMAT = "errata-bench-2"


@dataclass(frozen=True, slots=True)
class Undefined:
    """A combination of the grid that means nothing, with the reason."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Campaign:
    """A grid's directory.

    Attributes:
        record: what ``grid.json`` holds.
        cells: the cells' directories, in order.
    """

    directory: Path
    record: Mapping[str, Any]
    cells: tuple[Path, ...]

    @property
    def grid(self) -> Grid:
        return Grid.model_validate(self.record["grid"])

    def spec(self, cell: Path) -> CellSpec:
        return read_spec(cell)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else works here meanwhile.

        Raises:
            InputError: if another process does, or the benchmark holds links.
        """
        check_no_links(self.directory)
        with exclusive(self.directory / "lock", f"the benchmark {self.directory}"):
            yield

    def pending(self, *, retry: bool = False) -> list[Path]:
        """Cells that are neither done nor, unless they are to be tried again, failed."""
        return [cell for cell in self.cells if not self.is_done(cell) and (retry or failure_of(cell) is None)]

    def check_inputs(self) -> None:
        """That measurements would read what they read before, and that nothing would stop them.

        Raises:
            FaultsError: if a file was changed, or settings or packages would stop a measurement.
        """
        measures = self.grid.measures
        check_parts(measures.parts, measures.options)
        self._check_digests(input_digests(measures.parts, measures.options))

    def _check_digests(self, now_there: Mapping[str, Mapping[str, str]]) -> None:
        """That each measurement that has been made would read what it read, and neither more nor less."""
        faults: dict[str, Fault] = {}
        for name, digests in now_there.items():
            known = self.record["inputs"].get(name, digests)
            for path in {**known, **digests}:
                if path not in known:
                    faults[path] = Fault(path, "it was added since the benchmark was begun", "Take it away again")
                elif path not in digests:
                    what = "it was there when the benchmark was begun, and is read no more"
                    faults[path] = Fault(path, what, "Put it back")
                elif known[path] != digests[path]:
                    remedy = "Put it back, or give a file of another name"
                    faults[path] = Fault(path, "it was changed since the benchmark was begun", remedy)
        if faults:
            raise FaultsError(f"what is measured in {self.directory}", list(faults.values()))

    def measures_with(self, more: Measures | None, without: Sequence[str] = ()) -> Measures:
        """What is measured here, and what is to be measured too; nothing is lost by asking for more.

        Args:
            without: measurements that are no longer to be made.

        Raises:
            InputError: if one of those is not measured.
        """
        there, given = self.grid.measures, more or Measures()
        if unknown := [name for name in without if name not in there.parts]:
            made = f"Its further measurements: {', '.join(there.parts)}" if there.parts else "It has none but the basic"
            raise InputError(f"{unknown[0]!r} is not measured in {self.directory}", remedy=made)
        parts = tuple(name for name in dict.fromkeys((*there.parts, *given.parts)) if name not in without)
        options = {name: value for name, value in {**there.options, **given.options}.items() if name not in without}
        return Measures(parts=parts, options=options)

    def measuring(self, more: Measures | None, without: Sequence[str], command: str) -> Campaign:
        """This campaign, in which from now on is measured what ``measures_with`` tells. Call it while it is ``locked``.

        Answers that are no longer wanted stay on disk. Cells in which a measurement failed are tried again.

        Raises:
            InputError, FaultsError: as ``measures_with``, or if a file that measurements read is not what it was;
                nothing has changed then.
        """
        found = open_campaign(self.directory)  # as it is now that nobody else changes it
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
        write_text(self.directory / "grid.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        for cell in found.cells:
            if is_edited(cell, measures):
                (cell / "failure.json").unlink(missing_ok=True)
        return open_campaign(self.directory)

    def is_edited(self, cell: Path) -> bool:
        """Whether a cell is edited, and what is always measured is there: it has results."""
        return is_edited(cell, self.grid.measures)

    def is_done(self, cell: Path) -> bool:
        """Whether a cell is edited, and everything is measured."""
        return is_done(cell, self.grid.measures)


def failure_of(cell: Path) -> str | None:
    """Why a cell failed; None if it did not."""
    path = cell / "failure.json"
    if not path.is_file():
        return None
    try:
        return str(read_json(path)["what"])
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from error


def begin(
    directory: Path,
    grid: Grid,
    specs: Sequence[CellSpec],
    undefined: Sequence[Undefined],
    materials: Callable[[Path], None],
    command: str,
) -> Campaign:
    """A new campaign; or the one that is there, if it is of the same grid but for what is measured: that does not
    change before somebody calls ``Campaign.measuring``.

    Args:
        materials: writes the material of all cells into a folder.

    Raises:
        InputError: if something else is there.
        FaultsError: if a campaign of another grid is there; names what differs.
    """
    if (directory / "grid.json").is_file():
        found = open_campaign(directory)
        given = grid.model_dump(mode="json")
        _check_same(found.record["grid"], given, directory)
        keys = [spec.key for spec in specs]
        if keys != found.record["cells"]:
            raise InputError(
                f"the facts, or a recipe, are not what they were when {directory} was begun",
                remedy="Give another --out, or go on with: errata bench --out alone, which reads nothing anew",
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
        write_text(partial / "grid.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return open_campaign(directory)


def open_campaign(directory: Path) -> Campaign:
    """Raises InputError if there is none, or its record is damaged."""
    path = directory / "grid.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, expected {FORMAT!r}")
        cells = tuple(directory / "cells" / str(key) for key in record["cells"])
        Grid.model_validate(record["grid"])
        if not record["commands"] or not all(isinstance(command, str) for command in record["commands"]):
            raise ValueError("it names no commands")
        for digests in record["inputs"].values():
            dict(digests)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, FileNotFoundError):
            what, remedy = (
                f"{directory} is no directory of a benchmark: there is no grid.json",
                "Give what errata bench made",
            )
        else:
            what, remedy = f"{path} is damaged: {reason_of(error)}", "Put it back as it was, or begin anew"
        raise InputError(what, remedy=remedy) from error
    if lost := [cell.name for cell in cells if not (cell / "cell.json").is_file()]:
        raise InputError(f"{directory} lacks its cells {', '.join(lost)}", remedy="Put them back, or begin anew")
    return Campaign(directory, record, cells)


def _check_same(there: Mapping[str, Any], given: Mapping[str, Any], directory: Path) -> None:
    names = [name for name in given if name != "measures"]
    faults = [
        Fault(name, f"{directory} was begun with {there.get(name)!r:.200}", f"Got {given[name]!r:.200}")
        for name in names
        if there.get(name) != given[name]
    ]
    if faults:
        raise FaultsError(f"the benchmark in {directory}, which is of another grid,", faults)
