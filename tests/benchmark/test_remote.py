"""Cells on a local Ray cluster of two workers: the same results as in processes of this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from errata.benchmark.collect import collect
from errata.benchmark.workers import RayCluster, work
from errata.errors import InputError
from errata.results.records import Row, read_results
from errata.utils.progress import silent

from tests.support.bench import TinyBench, finish

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="the extra 'ray' is not installed")
PATHS = ":".join(str(Path(path or ".").absolute()) for path in sys.path)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    import ray  # slow, so not while tests are collected

    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", PATHS)
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    yield RayCluster.connect("local", cpus=2)
    ray.shutdown()


def rows_of(summary: Path) -> list[Row]:
    return [row for row in read_results(summary).rows if row["metric"] != "seconds_per_edit"]


def test_two_workers_give_what_one_process_gives(cluster: RayCluster, tmp_path: Path) -> None:
    assert cluster.workers == 2
    bench = TinyBench.of(tmp_path)
    grid = bench.grid(["memit"], edits=4)
    here, there = bench.begin(tmp_path / "here", grid), bench.begin(tmp_path / "there", grid)
    finish(here)
    broken = there.cells[0] / "cell.json"
    whole = broken.read_text(encoding="utf-8")
    broken.write_text(whole.replace('"material": "', '"material": "no-'), encoding="utf-8")
    lines: list[str] = []
    work(there, there.pending(), cluster, jobs=2, report=silent, on_end=lines.append)
    assert sum("4 facts in" in line for line in lines) == 1
    assert sum("failed" in line and "cannot read" in line for line in lines) == 1
    broken.write_text(whole, encoding="utf-8")
    work(there, there.pending(retry=True), cluster, jobs=2, report=silent, on_end=lines.append)
    assert rows_of(collect(there)[0]) == rows_of(collect(here)[0])


def test_a_missing_cluster_is_reported() -> None:
    with pytest.raises(InputError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        RayCluster.connect("127.0.0.1:1")


def test_a_cell_that_begins_when_all_is_stopped_is_cancelled(tmp_path: Path) -> None:
    import ray

    cluster: RayCluster

    def start(cell: str, trust_remote_code: bool) -> str:
        cluster.stop()  # as Ctrl-C between the start and its being noted
        return "task"

    class Cancelled:
        """As Ray: a task is waited for until it has been cancelled."""

        exceptions = ray.exceptions

        def __init__(self) -> None:
            self.cancelled: list[str] = []
            self.waited = 0

        def cancel(self, task: str, *, force: bool) -> None:
            self.cancelled.append(task)

        def wait(self, tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
            self.waited += 1
            assert self.waited < 3, "the cell is waited for"
            return (tasks, []) if self.cancelled else ([], tasks)

        def get(self, task: str) -> int:
            raise ray.exceptions.TaskCancelledError

    there = Cancelled()
    cluster = RayCluster(1, there, start)
    assert cluster.run(tmp_path, silent) == 1
    assert there.cancelled == ["task"]
    assert not (tmp_path / "failure.json").exists()
