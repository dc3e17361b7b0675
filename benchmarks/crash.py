"""Kill runs at random moments, resume them, and compare what comes out with the run that nobody disturbed, bit by bit.

    python benchmarks/crash.py --kills 30 --json docs/crash.json

Each trial is a process of its own, ended with SIGKILL at a moment drawn uniformly from the time that the undisturbed
run takes once its directory is there; then the same run is resumed in another process until it is done.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file

from errata.ledger import read_ledger
from errata.output import write_text
from errata.patch import software_versions


@dataclass(frozen=True, slots=True)
class Trial:
    """One run that was killed and resumed.

    Attributes:
        moment: seconds after the run's directory was there.
        batches: how many the ledger held when the process was dead.
        left: what else it left there: a part of a line, parts of files, a batch without its line.
        identical: whether the weights after every batch, and the final patch, are those of the undisturbed run.
    """

    moment: float
    batches: int
    left: tuple[str, ...]
    identical: bool


@dataclass(frozen=True, slots=True)
class Command:
    """How a run is begun and resumed.

    Attributes:
        edit: the options of ``errata edit`` but for --run and --out.
        environment: of the processes.
    """

    edit: Sequence[str]
    environment: Mapping[str, str]

    def begin(self, run: Path, out: Path) -> subprocess.Popen[bytes]:
        return self._start([*self.edit, "--run", str(run), "--out", str(out)])

    def resume(self, run: Path, out: Path) -> subprocess.Popen[bytes]:
        return self._start(["--resume", str(run), "--out", str(out)])

    def _start(self, options: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "errata", "edit", *options],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Raises RuntimeError with what the process said, if it did not end well."""
    _, said = process.communicate(timeout=900)
    if process.returncode != 0:
        raise RuntimeError(f"errata ended with {process.returncode}: {said.decode()}")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a file is there; the process must not end before."""
    while not path.exists():
        if process.poll() is not None:
            finish(process)
            raise RuntimeError(f"the process ended without {path}")
        time.sleep(0.002)


def left_behind(run: Path) -> tuple[str, ...]:
    """What a killed process left beside whole batches and whole lines."""
    ledger = read_ledger(run / "ledger.jsonl")
    found = ["part of a line"] if ledger.torn else []
    found += ["part of a file"] * len([*run.rglob(".*.partial")])
    files = len([*(run / "batches").glob("*.safetensors")])
    found += ["batch without its line"] * (files - len(ledger.of("batch")))
    return tuple(found)


def same_run(run: Path, out: Path, other: Path, other_out: Path) -> bool:
    """Whether two runs have the same weights after each batch (by their SHA-256), and the same final patch."""
    digests, others = (
        [entry.about["weights"] for entry in read_ledger(path / "ledger.jsonl").of("batch")] for path in (run, other)
    )
    tensors, expected = load_file(out), load_file(other_out)
    return (
        digests == others
        and tensors.keys() == expected.keys()
        and all(tensors[name].numpy().tobytes() == expected[name].numpy().tobytes() for name in expected)
    )


def kill_and_resume(
    command: Command, folder: Path, kills: int, generator: random.Random, *, tell: bool = False
) -> list[Trial]:
    """One undisturbed run, and ``kills`` that are killed and resumed; all in ``folder``."""
    whole, whole_out = folder / "whole", folder / "whole.safetensors"
    process = command.begin(whole, whole_out)
    wait_for(whole / "run.json", process)
    started = time.perf_counter()
    finish(process)
    duration = time.perf_counter() - started
    trials = []
    for number in range(kills):
        run, out = folder / f"run-{number}", folder / f"run-{number}.safetensors"
        moment = generator.uniform(0, duration)
        process = command.begin(run, out)
        wait_for(run / "run.json", process)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        batches, left = len(read_ledger(run / "ledger.jsonl").of("batch")), left_behind(run)
        if not out.exists():  # it may have been done already
            finish(command.resume(run, out))
        trials.append(Trial(moment, batches, left, same_run(run, out, whole, whole_out)))
        if tell:
            print(number + 1, trials[-1], file=sys.stderr, flush=True)
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill runs at random moments, and resume them.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--method", default="alphaedit+blue", help="with a history, which has to survive too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = folder / "facts.jsonl"
        subprocess.run(
            [sys.executable, "-m", "errata", "lab", "facts", "--count", "20", "--seed", "7", "--out", str(facts)],
            check=True,
        )
        edit = ["--facts", str(facts), "--method", options.method, "--batch-size", "1", "--no-evaluate"]
        environment = {"OMP_NUM_THREADS": str(options.threads), "ERRATA_CACHE": str(folder / "cache")}
        trials = kill_and_resume(
            Command(edit, environment), folder, options.kills, random.Random(options.seed), tell=True
        )
    lines = ["| killed after | batches kept | left beside them | identical |", "|---:|---:|---|---|"]
    lines += [
        f"| {trial.moment:.1f} s | {trial.batches} of 20 | {', '.join(trial.left) or '–'} | "
        f"{'yes' if trial.identical else 'NO'} |"
        for trial in sorted(trials, key=lambda trial: trial.moment)
    ]
    print("\n".join(lines))
    print(f"{sum(trial.identical for trial in trials)} of {len(trials)} bit for bit those of the undisturbed run")
    if options.json is not None:
        record = {
            "command": "python " + " ".join(sys.argv),
            "method": options.method,
            "threads": options.threads,
            "trials": [asdict(trial) for trial in trials],
            "versions": software_versions(),
        }
        write_text(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
