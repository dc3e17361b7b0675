"""A grid on disk: which cells there are, which are done, and the processes that work on the others.

grid.json       the grid, the command, the cells' names in order; only what is measured may grow
lock            held while somebody works here
material/       facts and questions of each data set and seed
before/         what unedited models said, shared by cells
cells/NAME/     one cell each; see ``cell``
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from errata.benchmark.cell_spec import CellSpec, is_done, read_json
from errata.benchmark.grid import Grid, Measures
from errata.errors import Fault, FaultsError, InputError
from errata.output import new_directory, write_text
from errata.patch import now, software_versions
from errata.progress import Report
from errata.reading import reason_of

FORMAT = "errata-bench-1"
PROGRESS = "errata-progress "  # what a cell's process says else, or a library in it, is not for here


@runtime_checkable
class Runner(Protocol):
    """Where cells are worked on."""

    def run(self, cell: Path, report: Report) -> int:
        """Work on one cell, tell of its progress, and return its exit status."""
        ...

    def stop(self) -> None:
        """End whatever is being worked on, at once."""
        ...


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
        return CellSpec.model_validate_json((cell / "cell.json").read_text(encoding="utf-8"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else works here meanwhile.

        Raises:
            InputError: if another process does.
        """
        import fcntl  # not on Windows, where all but runs works

        with (self.directory / "lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another process works on the benchmark {self.directory}", remedy="Wait until it ends, or end it"
                ) from error
            yield

    def pending(self, *, retry: bool = False) -> list[Path]:
        """Cells that are neither done nor, unless they are to be tried again, failed."""
        return [cell for cell in self.cells if not self.is_done(cell) and (retry or failure_of(cell) is None)]

    def is_done(self, cell: Path) -> bool:
        """Whether a cell is edited, and everything is measured."""
        return is_done(cell, self.grid.measures)


def failure_of(cell: Path) -> str | None:
    """Why a cell failed; None if it did not."""
    path = cell / "failure.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["what"]) if path.is_file() else None


def begin(
    directory: Path,
    grid: Grid,
    specs: Sequence[CellSpec],
    undefined: Sequence[Undefined],
    materials: Callable[[Path], None],
    command: str,
) -> Campaign:
    """A new campaign; or the one that is there, if it is of the same grid.

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
        both = _joined(found.grid.measures, grid.measures)
        if both != found.grid.measures:  # more is measured now
            measures = both.model_dump(mode="json")
            record = {**found.record, "grid": {**given, "measures": measures}, "command": command}
            write_text(directory / "grid.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
            return open_campaign(directory)
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
            "command": command,
            "grid": grid.model_dump(mode="json"),
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
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def work(
    campaign: Campaign, cells: Sequence[Path], runner: Runner, *, jobs: int, report: Report, told: Callable[[str], None]
) -> None:
    """Work on cells, so many at a time; one that fails is told of, and the others go on.

    Args:
        report: told of facts edited, and of what each cell does.
        told: gets a line for each cell that has ended.
    """
    facts = campaign.grid.edits
    done = dict.fromkeys(campaign.cells, 0.0)
    done |= {cell: 1.0 for cell in campaign.cells if cell not in cells}

    def overall() -> None:
        report("all cells", round(1000 * sum(done.values())), 1000 * len(done))

    def one(cell: Path) -> int:
        def listen(what: str, count: int, total: int) -> None:
            if what == "facts edited":
                done[cell] = 0.9 * count / max(1, facts)  # the rest is asking
                overall()
            report(what if jobs == 1 else f"{cell.name[:20]}: {what}", count, total)

        (cell / "failure.json").unlink(missing_ok=True)
        status = runner.run(cell, listen)
        if status == 0 or failure_of(cell) is not None:  # and not because it was stopped: it would seem to be done
            done[cell] = 1.0
            overall()
        return status

    overall()
    waiting = deque(cells)
    with ThreadPoolExecutor(jobs) as pool:
        running: dict[Future[int], Path] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.popleft()
                    running[pool.submit(one, cell)] = cell
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    cell = running.pop(future)
                    told(_ended(campaign, cell, future.result()))
        except BaseException:
            waiting.clear()
            runner.stop()  # the pool waits for what is running
            raise


@dataclass(slots=True)
class Processes:
    """Runs each cell in a process of its own on this machine."""

    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _stopped: bool = False

    def run(self, cell: Path, report: Report) -> int:
        """As ``Runner.run``; a failure is written down also if the process could not do it itself."""
        with (cell / "errors.txt").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "errata.benchmark.cell_process", str(cell)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            self._running.add(process)
            try:
                assert process.stdout is not None
                if self._stopped:  # meanwhile
                    process.kill()
                for line in process.stdout:
                    if line.startswith(PROGRESS):
                        what, count, total = json.loads(line.removeprefix(PROGRESS))
                        report(what, count, total)
                status = process.wait()
            finally:
                process.kill()
                process.wait()
                self._running.discard(process)
        if not self._stopped:
            note_failure(cell, status)
        return status

    def stop(self) -> None:
        self._stopped = True
        for process in list(self._running):
            process.kill()


def note_failure(cell: Path, status: int) -> None:
    """Write down that a process failed which could not do it itself."""
    if status not in (0, 130) and failure_of(cell) is None:
        ended = f"with status {status}" if status >= 0 else f"by signal {-status}"
        ended += " (out of memory?)" if status == -9 else ""
        what = f"its process ended {ended}; see {cell / 'errors.txt'}"
        write_text(cell / "failure.json", json.dumps({"what": what}) + "\n")


def _ended(campaign: Campaign, cell: Path, status: int) -> str:
    spec = campaign.spec(cell)
    name = f"{spec.model.name}, {spec.data.label}, {spec.label}, seed {spec.seed}"
    if status != 0:
        return f"{name}: failed: {failure_of(cell) or 'interrupted'}"
    result = read_json(cell / "result.json")
    stopped = f", stopped before batch {result['collapsed_at']}" if result["collapsed_at"] else ""
    measured = f"; measured: {', '.join(campaign.grid.measures.parts)}" if campaign.grid.measures.parts else ""
    return f"{name}: {result['edits']} facts in {result['seconds']:.0f} s{stopped}{measured}"


def _joined(there: Measures, given: Measures) -> Measures:
    """What was measured, and what is to be measured: nothing is lost by asking for more."""
    parts = tuple(dict.fromkeys((*there.parts, *given.parts)))
    return Measures(parts=parts, options={**there.options, **given.options})


def _check_same(there: Mapping[str, Any], given: Mapping[str, Any], directory: Path) -> None:
    names = [name for name in given if name != "measures"]
    faults = [
        Fault(name, f"{directory} was begun with {there.get(name)!r:.200}", f"Got {given[name]!r:.200}")
        for name in names
        if there.get(name) != given[name]
    ]
    if faults:
        raise FaultsError(f"the benchmark in {directory}, which is of another grid,", faults)
