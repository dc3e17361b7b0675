"""Cells on a Ray cluster: each a task that starts the same process as on one machine, in a directory they share."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.benchmark.working import Processes, note_failure
from errata.errors import InputError
from errata.extras import require
from errata.in_place import open_in_place
from errata.progress import Report, silent

_SECONDS_BETWEEN = 0.5
_SECONDS_TO_CONNECT = 5.0


def check_ray() -> None:
    """Raises MissingExtraError if Ray is not installed."""
    require("--ray", "ray", "ray")


@dataclass(slots=True)
class RayCluster:
    """Runs cells as remote tasks.

    Attributes:
        workers: how many cells run at the same time: one a CPU of the cluster, or one a GPU where it has some.
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
        """A cluster that is there, or with ``local`` one on this machine.

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
            raise InputError(
                f"there is no Ray cluster at {address!r}: {error}", remedy="Start one with `ray start --head`"
            ) from error
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        remote = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0)(_work_there)
        return cls(gpus or max(1, int(resources.get("CPU", 1))), ray, remote.remote, trust_remote_code)

    def run(self, cell: Path, report: Report) -> int:
        """As ``Runner.run``; the cell's log tells its progress, which a task has no other way to tell."""
        task = self._start(str(cell.absolute()), self.trust_remote_code)
        self._running.add(task)
        try:
            if self._stopped:  # meanwhile
                self._ray.cancel(task, force=True)
            while not self._ray.wait([task], timeout=_SECONDS_BETWEEN)[0]:
                report("facts edited", *_progress_of(cell))
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
    """Ray itself waits for minutes. Names such as ``auto`` and ``local`` are its own business.

    Raises:
        InputError: if nothing listens at ``HOST:PORT``, with or without ``ray://``.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"there is no Ray cluster at {address!r}: {error}", remedy="Start one with `ray start --head`"
        ) from error


def _work_there(cell: str, trust_remote_code: bool) -> int:
    """On a worker of the cluster."""
    return Processes(trust_remote_code).run(Path(cell), silent)


def _progress_of(cell: Path) -> tuple[int, int]:
    """(facts edited, facts) as the cell's run tells; a line of its ledger may be half-written just now."""
    run = cell / "run"
    if not (run / "ledger.jsonl").is_file():
        return 0, 1
    lines = (run / "ledger.jsonl").read_bytes().split(b"\n")[:-1]
    edited = sum(len(entry["facts"]) for entry in map(json.loads, lines) if entry.get("kind") == "batch")
    return edited, (run / "facts.jsonl").read_bytes().count(b"\n")
