"""A cell in a process of its own: ``python -m errata.benchmark.cell_process DIRECTORY [--trust-remote-code]``.

Tells its progress on standard output, one line at a time, and ends itself when whoever started it has gone.
Exit status: 0 done, 1 failed (``failure.json`` says why), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import transformers

from errata.benchmark.cell import work_on
from errata.benchmark.workers import PROGRESS
from errata.errors import ErrataError
from errata.utils.files import write_text

_SECONDS_BETWEEN = 0.2


def main() -> int:
    """Work on the cell that the command line names."""
    directory = Path(sys.argv[1])
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told_at, told = 0.0, ""

    def report(what: str, done: int, total: int) -> None:
        nonlocal told_at, told
        now = time.monotonic()
        if what == told and done < total and now - told_at < _SECONDS_BETWEEN:
            return
        told_at, told = now, what
        print(PROGRESS + json.dumps([what, done, total]), flush=True)

    try:
        work_on(directory, report, trust_remote_code="--trust-remote-code" in sys.argv[2:])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        what = str(error) if isinstance(error, ErrataError) else f"{type(error).__name__}: {error}"
        write_text(directory / "failure.json", json.dumps({"what": what}, ensure_ascii=False) + "\n")
        write_text(directory / "traceback.txt", traceback.format_exc())
        return 1
    return 0


def _end_with_parent() -> None:
    """Standard input ends when the parent does, however it ended; a run stands that (see ``run_directory``)."""
    while os.read(0, 1024):  # not through sys.stdin, whose lock the interpreter wants when it ends
        pass
    os._exit(143)


if __name__ == "__main__":
    sys.exit(main())
