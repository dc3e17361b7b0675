"""Locks exclude other processes, and end with their process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from errata.utils.locks import in_turn, locked

HOLD = """
import sys, time
from pathlib import Path
from errata.utils.locks import in_turn, locked
with locked(Path(sys.argv[1])) as file:
    file.write("its holder")
    file.flush()
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_owner_is_named_and_a_killed_one_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="its holder"), locked(path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(path):
        pass


def test_a_waiting_process_continues_when_the_lock_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order: list[str] = []
    started = threading.Event()

    def wait() -> None:
        started.set()
        with locked(path, wait=True):
            order.append("second")

    with locked(path):
        thread = threading.Thread(target=wait)
        thread.start()
        started.wait()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_waiting_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock"

    def wait() -> None:
        with in_turn(path, "key statistics"):
            pass

    with in_turn(path, "key statistics"):
        assert not caplog.records
        thread = threading.Thread(target=wait)
        thread.start()
        while thread.is_alive() and not caplog.records:
            time.sleep(0.01)
    thread.join()
    assert "key statistics" in caplog.text
