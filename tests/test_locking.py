"""Locks: one process at a time, and none outlives its process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from errata.utils.locks import held, in_turn

HOLD = """
import sys, time
from pathlib import Path
from errata.utils.locks import held, in_turn
with held(Path(sys.argv[1])) as file:
    file.write("its holder")
    file.flush()
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="its holder"), held(path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with held(path):
        pass


def test_who_waits_goes_on_when_the_lock_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order: list[str] = []
    started = threading.Event()

    def wait() -> None:
        started.set()
        with held(path, wait=True):
            order.append("second")

    with held(path):
        thread = threading.Thread(target=wait)
        thread.start()
        started.wait()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_who_waits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
