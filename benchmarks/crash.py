"""Compare runs that are killed at random moments and resumed with an undisturbed one, bit for bit.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/crash.py --kills 30 --json docs/crash.json

In each trial one process, ``errata edit … --run RUN``, is ended by SIGKILL at a moment drawn uniformly from the editing
part of the undisturbed run (from the creation of the directory to the last batch's line in the ledger); a second one,
``errata edit --resume RUN``, is killed again in every third trial. The script compares the bytes of the edited model's
weights, the tensors of every batch's patch, the digest of the weights after every batch, and all answers.

A moment is given as a number of ledger lines and the seconds after the last of them, at most until the next line, so
that a change of the machine's speed does not move a kill to another batch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import markdown_table, write_json
from safetensors.torch import load_file

from errata.facts.files import write_facts
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.runs.ledger import read_ledger
from errata.utils.provenance import software_versions
from errata.utils.tensors import tensor_bytes

AGAIN = 3  # every third trial is killed a second time


@dataclass(frozen=True, slots=True)
class Job:
    """An edit from the command line.

    Attributes:
        arguments: of ``errata edit``, without --run, --resume and --out.
        folder: for runs, outputs and logs.
        cache: of key statistics; the user's if None.
    """

    arguments: Sequence[str]
    folder: Path
    cache: Path | None = None

    def start(self, name: str, *, resume: bool = False) -> subprocess.Popen[bytes]:
        """A process that starts or resumes the run ``name``."""
        directory = self.run(name)
        how = ["--resume", str(directory)] if resume else [*self.arguments, "--run", str(directory)]
        out = ["--out", str(self.folder / f"{name}-out"), "--json", str(self.folder / f"{name}.json")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        if self.cache is not None:
            environment["ERRATA_CACHE"] = str(self.cache)
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "errata", "edit", *how, *out]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def finish(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Wait for the process, which must succeed."""
        if process.wait() != 0:
            log = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"`errata edit` ended with {process.returncode} and wrote:\n{log[-3000:]}")

    def run(self, name: str) -> Path:
        return self.folder / name

    def remove_output(self, name: str) -> None:
        for path in (*self.folder.glob(f"{name}-out*"), *self.folder.glob(f".{name}-out*")):
            shutil.rmtree(path)

    def remove(self, name: str) -> None:
        self.remove_output(name)
        shutil.rmtree(self.run(name))
        for suffix in ("log", "json"):
            (self.folder / f"{name}.{suffix}").unlink()


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run that was not killed.

    Attributes:
        ends: seconds from the creation of the directory to each batch's line.
        results: see ``results_of``.
    """

    ends: Sequence[float]
    results: Mapping[str, str]

    @property
    def seconds(self) -> float:
        """Of the editing part."""
        return self.ends[-1]

    def place(self, moment: float) -> tuple[int, float]:
        """(batches before the moment, seconds from the end of the last of them)."""
        before = sum(end <= moment for end in self.ends)
        return before, moment - (self.ends[before - 1] if before else 0.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """A run that was killed.

    Attributes:
        moments: of the kills, in seconds of the undisturbed run's editing part.
        kept: batches with a line in the ledger after each kill.
        found: anything else that each kill left: parts of lines and files, patches without a line.
        different: the results that differ from the undisturbed run's.
    """

    moments: Sequence[float]
    kept: Sequence[int]
    found: Sequence[Sequence[str]]
    different: Sequence[str]


def undisturbed(job: Job, name: str = "undisturbed") -> Undisturbed:
    """Run the job once and time its batches."""
    process = job.start(name)
    began, ends = 0.0, list[float]()
    while process.poll() is None:
        if not began and (job.run(name) / "run.json").is_file():
            began = time.perf_counter()
        if began and (done := _lines(job.run(name))) > len(ends):
            ends += [time.perf_counter() - began] * (done - len(ends))
        time.sleep(0.001)
    job.finish(process, name)
    return Undisturbed(ends, results_of(job, name))


def trial(job: Job, name: str, reference: Undisturbed, moments: Sequence[float]) -> Trial:
    """A run that is killed at each of the moments, and then resumed to its end."""
    kept: list[int] = []
    found: list[list[str]] = []
    for number, moment in enumerate(moments):
        process = job.start(name, resume=number > 0)
        if not _kill(process, job.run(name), *reference.place(moment)):
            job.finish(process, name)  # raises if it failed
        kept.append(_lines(job.run(name)))
        found.append(left_by_crash(job.run(name)))
        job.remove_output(name)  # of a process that was killed, or ended, after the last batch
    process = job.start(name, resume=True)
    job.finish(process, name)
    results = results_of(job, name)
    names = sorted({*results, *reference.results})
    return Trial(moments, kept, found, [key for key in names if results.get(key) != reference.results.get(key)])


def draw_moments(generator: random.Random, number: int, seconds: float) -> list[float]:
    """When trial ``number`` is killed: uniformly in the editing part; a second time in the rest of it."""
    first = generator.uniform(0, seconds)
    return [first, generator.uniform(first, seconds)] if number % AGAIN == AGAIN - 1 else [first]


def left_by_crash(run: Path) -> list[str]:
    """Incomplete lines and files of a run's directory, and patches without a line in the ledger."""
    ledger = read_ledger(run / "ledger.jsonl")
    batches = len(ledger.of("batch"))
    found = ["part of a line"] if ledger.truncated else []
    found += ["part of a file" for _ in run.rglob(".*.partial")]
    if (run / "batches" / f"{batches + 1:04}.safetensors").is_file():
        found.append("patch without its line")
    return found


def results_of(job: Job, name: str) -> dict[str, str]:
    """SHA-256 of everything that must not depend on when, or how often, a run was interrupted."""
    run, out = job.run(name), job.folder / f"{name}-out"
    digests = {
        f"weights {file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.glob("*.safetensors"))
    }
    for file in sorted((run / "batches").glob("*.safetensors")):
        content = hashlib.sha256()
        for key, tensor in sorted(load_file(file).items()):
            content.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            content.update(tensor_bytes(tensor))
        digests[f"patch {file.stem}"] = content.hexdigest()
    for entry in read_ledger(run / "ledger.jsonl").of("batch"):
        digests[f"weights after batch {entry.fields['index'] + 1}"] = str(entry.fields["weights"])
    for file in sorted(run.rglob("*.json")):
        if file.name != "run.json":  # which contains the start time
            digests[f"answers {file.relative_to(run)}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    rows = json.loads((job.folder / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    table = json.dumps([row for row in rows if row["metric"] != "seconds_per_edit"])
    return {**digests, "table": hashlib.sha256(table.encode()).hexdigest()}


def table_of(trials: Sequence[Trial], seconds: float) -> str:
    lines = []
    for entry in trials:
        moments = ", then ".join(f"{moment:.2f}" for moment in entry.moments)
        kept = ", then ".join(map(str, entry.kept))
        found = "; ".join(", ".join(part) or "nothing" for part in entry.found)
        verdict = "identical" if not entry.different else f"DIFFERENT: {', '.join(entry.different[:5])}"
        lines.append([f"{moments} of {seconds:.2f}", kept, found, verdict])
    return markdown_table(["killed at (s)", "batches kept", "found", "the rest"], lines, "rrll")


def _lines(run: Path) -> int:
    """The number of batches with a complete line; also while a process writes there."""
    try:
        data = (run / "ledger.jsonl").read_bytes()
    except FileNotFoundError:
        return 0
    return sum(line.startswith(b'{"kind": "batch"') for line in data.split(b"\n")[:-1])


def _kill(process: subprocess.Popen[bytes], run: Path, batches: int, seconds: float) -> bool:
    """Kill the process some seconds after a number of batches, at the latest with the next batch's line.

    Returns:
        False if it ended before.
    """
    while process.poll() is None and not ((run / "run.json").is_file() and _lines(run) >= batches):
        time.sleep(0.001)
    deadline = time.perf_counter() + seconds
    while process.poll() is None and time.perf_counter() < deadline and _lines(run) <= batches:
        time.sleep(0.001)
    process.kill()
    return process.wait() == -signal.SIGKILL


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill runs at random moments, resume them, compare.")
    parser.add_argument("--kills", type=int, default=30, help="trials without evaluation")
    parser.add_argument("--evaluated", type=int, default=0, help="further trials of a run that measures")
    parser.add_argument("--method", default="alphaedit+blue")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    record: dict[str, object] = {
        "command": "python " + " ".join(sys.argv),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.platform(),
        "method": options.method,
        "batches": options.batches,
        "batch_size": options.batch_size,
        "versions": software_versions(),
    }
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.jsonl"
        write_facts(lab_facts(lab_world(), options.batches * options.batch_size, seed=options.seed), facts)
        plain = ["--model", "lab", "--facts", str(facts), "--method", options.method]
        plain += ["--batch-size", str(options.batch_size)]
        failed = 0
        for mode, count in (("--no-evaluate", options.kills), ("--evaluate", options.evaluated)):
            if count == 0:
                continue
            job = Job([*plain, mode], Path(folder))
            reference = undisturbed(job)
            trials = []
            for number in range(count):
                trials.append(trial(job, "killed", reference, draw_moments(generator, number, reference.seconds)))
                job.remove("killed")
                print(f"{mode}: {number + 1} of {count}", file=sys.stderr, flush=True)
            job.remove("undisturbed")
            failed += sum(bool(entry.different) for entry in trials)
            print(f"\n`{mode}`, {len(reference.ends)} batches of {options.batch_size}, "
                  f"{len(reference.results)} results compared, {record['threads']} threads\n")  # fmt: skip
            print(table_of(trials, reference.seconds), flush=True)
            record[mode.removeprefix("--")] = {
                "seconds": reference.seconds,
                "compared": sorted(reference.results),
                "trials": [asdict(entry) for entry in trials],
            }
    write_json(options.json, record)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
