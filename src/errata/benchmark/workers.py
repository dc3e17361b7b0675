"""The processes that work on a grid's cells, a limited number at a time."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from errata.benchmark.campaign import Campaign, failure_of, forget_failure
from errata.benchmark.cell_files import CellResult, saved_edits
from errata.benchmark.data import read_json
from errata.errors import InputError
from errata.utils.files import write_text
from errata.utils.locks import open_in_place
from errata.utils.optional import require
from errata.utils.progress import Report, silent

PROGRESS = "errata-progress "  # prefix of progress lines among other output


@runtime_checkable
class Runner(Protocol):
    """Runs cells."""

    def run(self, cell: Path, report: Report) -> int:
        """Run one cell, and return its exit status."""
        ...

    def stop(self) -> None:
        """Stop all running cells immediately."""
        ...


def work(
    campaign: Campaign,
    cells: Sequence[Path],
    runner: Runner,
    *,
    jobs: int,
    report: Report,
    on_end: Callable[[str], None],
) -> None:
    """Run cells, ``jobs`` at a time; a failed cell is reported and the rest continue.

    Args:
        report: progress callback, for facts edited and the current step of each cell.
        on_end: called with one line for each cell that has ended.
    """
    facts = campaign.grid.edits
    done = dict.fromkeys(campaign.cells, 0.0)
    done |= {cell: 1.0 for cell in campaign.cells if cell not in cells}

    def overall() -> None:
        report("all cells", round(1000 * sum(done.values())), 1000 * len(done))

    def run(cell: Path) -> int:
        def listen(what: str, count: int, total: int) -> None:
            if what == "facts edited":
                done[cell] = 0.9 * count / max(1, facts)  # the rest is measuring
                overall()
            report(what if jobs == 1 else f"{cell.name[:20]}: {what}", count, total)

        forget_failure(cell)
        status = runner.run(cell, listen)
        if status == 0 or failure_of(cell) is not None:  # a stopped cell must not look finished
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
                    running[pool.submit(run, cell)] = cell
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    cell = running.pop(future)
                    on_end(_outcome(campaign, cell, future.result(), causes))
        except BaseException:
            waiting.clear()
            runner.stop()  # the pool waits for what is running
            raise


@dataclass(slots=True)
class Processes:
    """Runs each cell in its own process on this machine.

    Attributes:
        trust_remote_code: whether code that comes with models may run.
    """

    trust_remote_code: bool = False
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _stopped: bool = False

    def run(self, cell: Path, report: Report) -> int:
        """As ``Runner.run``; also records failures that the process could not record itself."""
        allowed = ["--trust-remote-code"] if self.trust_remote_code else []
        with (
            open_in_place(cell / "errors.txt", "ab") as errors,
            subprocess.Popen(
                [sys.executable, "-m", "errata.benchmark.cell", str(cell), *allowed],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
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
                self._running.discard(process)
        if not self._stopped:
            note_failure(cell, status)
        return status

    def stop(self) -> None:
        self._stopped = True
        for process in list(self._running):
            process.kill()


def note_failure(cell: Path, status: int) -> None:
    """Record the failure of a process that could not do so itself."""
    if status not in (0, 130) and failure_of(cell) is None:
        ended = f"with status {status}" if status >= 0 else f"by signal {-status}"
        ended += " (out of memory?)" if status == -9 else ""
        what = f"its process ended {ended}; see {cell / 'errors.txt'}"
        write_text(cell / "failure.json", json.dumps({"what": what}) + "\n")


def _outcome(campaign: Campaign, cell: Path, status: int, causes: dict[str, str]) -> str:
    """The outcome of a cell in one line. A cause seen before is replaced by the name of the first cell that failed
    with it.

    Args:
        causes: cause -> that cell's name; a new one is added.
    """
    try:
        name = campaign.spec(cell).called
    except InputError:  # this cell fails for it; the others continue
        name = cell.name
    if status != 0:
        cause = failure_of(cell) or "interrupted"
        first = causes.setdefault(cause, name)
        return f"{name}: failed: {cause if first == name else f'for the same reason as {first}'}"
    result = CellResult.read(cell)
    stopped = f", stopped before batch {result.collapsed_at}" if result.collapsed_at else ""
    measured = f"; measured: {', '.join(campaign.grid.measures.parts)}" if campaign.grid.measures.parts else ""
    return f"{name}: {result.edits} facts in {result.seconds:.0f} s{stopped}{measured}"


_SECONDS_BETWEEN = 0.5
_SECONDS_TO_CONNECT = 5.0


def check_ray() -> None:
    """Raises MissingExtraError unless Ray is installed."""
    require("--ray", "ray", "ray")


@dataclass(slots=True)
class RayCluster:
    """Runs cells as remote tasks.

    Attributes:
        workers: cells that run concurrently: one per GPU of the cluster, or per CPU if it has none.
        trust_remote_code: whether code that comes with models may run.
    """

    workers: int
    _ray: Any
    _start: Callable[[str, bool], Any]
    trust_remote_code: bool = False
    _running: set[Any] = field(default_factory=set)
    _stopped: bool = False

    @classmethod
    def connect(cls, address: str, *, cpus: int | None = None, trust_remote_code: bool = False) -> RayCluster:
        """Connect to a cluster, or with ``local`` start one on this machine.

        Args:
            cpus: of a local one; by default all.

        Raises:
            MissingExtraError: without the extra ``ray``.
            InputError: if there is no cluster at the address.
        """
        check_ray()
        import ray

        _check_reachable(address)
        try:
            if not ray.is_initialized():
                where: dict[str, Any] = {"num_cpus": cpus} if address == "local" else {"address": address}
                ray.init(**where, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, error) from error
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        remote = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0)(_run_remotely)
        return cls(gpus or max(1, int(resources.get("CPU", 1))), ray, remote.remote, trust_remote_code)

    def run(self, cell: Path, report: Report) -> int:
        """As ``Runner.run``; progress is read from the cell's ledger."""
        task = self._start(str(cell.absolute()), self.trust_remote_code)
        self._running.add(task)
        try:
            if self._stopped:  # meanwhile
                self._ray.cancel(task, force=True)
            while not self._ray.wait([task], timeout=_SECONDS_BETWEEN)[0]:
                report("facts edited", *progress_of(cell))
            status = int(self._ray.get(task))
        except self._ray.exceptions.RayError as error:
            status = 1
            with open_in_place(cell / "errors.txt", "a") as errors:
                errors.write(f"{error}\n")
        finally:
            self._running.discard(task)
        if not self._stopped:
            note_failure(cell, status)
        return status

    def stop(self) -> None:
        self._stopped = True
        for task in list(self._running):
            self._ray.cancel(task, force=True)


def _check_reachable(address: str) -> None:
    """Fail early where Ray itself would wait for minutes. Names such as ``auto`` and ``local`` are left to Ray.

    Raises:
        InputError: if nothing listens at ``HOST:PORT``, with or without ``ray://``.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> InputError:
    what = f"there is no Ray cluster at {address!r}: {error}"
    return InputError(what, remedy="Start one with `ray start --head`", code="RAY_UNREACHABLE")


def _run_remotely(cell: str, trust_remote_code: bool) -> int:
    """On a worker of the cluster."""
    return Processes(trust_remote_code).run(Path(cell), silent)


def progress_of(cell: Path) -> tuple[int, int]:
    """(facts edited, facts) from the cell's saved batches; the last line of a ledger may be incomplete."""
    ledger = cell / "run" / "ledger.jsonl"
    if ledger.is_file():
        lines = map(json.loads, ledger.read_bytes().split(b"\n")[:-1])
        batches = [entry for entry in lines if entry.get("kind") == "batch"]
    else:
        batches = list(saved_edits(cell / "edits").values())
    return sum(len(batch["facts"]) for batch in batches), int(
        read_json(cell.parent.parent / "grid.json")["grid"]["edits"]
    )
