"""The processes that work on a grid's cells, so many at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from errata.benchmark.campaign import Campaign, failure_of
from errata.benchmark.cell_spec import read_json
from errata.in_place import open_in_place
from errata.output import write_text
from errata.progress import Report

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
    causes: dict[str, str] = {}
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
                    told(_ended(campaign, cell, future.result(), causes))
        except BaseException:
            waiting.clear()
            runner.stop()  # the pool waits for what is running
            raise


@dataclass(slots=True)
class Processes:
    """Runs each cell in a process of its own on this machine.

    Attributes:
        trust_remote_code: whether code that comes with models may run.
    """

    trust_remote_code: bool = False
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _stopped: bool = False

    def run(self, cell: Path, report: Report) -> int:
        """As ``Runner.run``; a failure is written down also if the process could not do it itself."""
        allowed = ["--trust-remote-code"] if self.trust_remote_code else []
        with open_in_place(cell / "errors.txt", "ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "errata.benchmark.cell_process", str(cell), *allowed],
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


def _ended(campaign: Campaign, cell: Path, status: int, causes: dict[str, str]) -> str:
    """What became of a cell; a cause of failure that was told before is told by the cell that failed by it first.

    Args:
        causes: cause -> that cell's name; a new one is added.
    """
    spec = campaign.spec(cell)
    name = spec.called
    if status != 0:
        cause = failure_of(cell) or "interrupted"
        first = causes.setdefault(cause, name)
        return f"{name}: failed: {cause if first == name else f'for the same reason as {first}'}"
    result = read_json(cell / "result.json")
    stopped = f", stopped before batch {result['collapsed_at']}" if result["collapsed_at"] else ""
    measured = f"; measured: {', '.join(campaign.grid.measures.parts)}" if campaign.grid.measures.parts else ""
    return f"{name}: {result['edits']} facts in {result['seconds']:.0f} s{stopped}{measured}"
