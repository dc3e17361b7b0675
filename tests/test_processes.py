"""Several processes under torchrun: the same edit but for rounding, one printer and writer, and a lost process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from errata.cli.main import run
from errata.editing.recipe import shipped_recipe
from errata.patches.patch import Patch
from errata.runs.run import open_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
FACTS = ROOT / "examples" / "facts.jsonl"


def command(folder: Path, out: Path, *more: str) -> list[str]:
    facts = folder / "facts.jsonl"
    facts.write_text("\n".join(FACTS.read_text(encoding="utf-8").splitlines()[:4]) + "\n", encoding="utf-8")
    statistics = {"corpus": "lab", "tokens": 8000, "length": 64}  # none of them are shipped
    recipe = shipped_recipe("lab", "memit").with_choices({"statistics": statistics})
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    common = ["edit", "--facts", str(facts), "--method", "memit", "--recipe", str(folder / "recipe.yaml")]
    return [*common, "--no-evaluate", "--no-controls", "--out", str(out), *more]


def torchrun(arguments: list[str], cache: Path) -> subprocess.Popen[str]:
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "--",
        "errata",
    ]
    environment = os.environ | {"ERRATA_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [*start, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def test_two_processes_give_the_edit_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "one"))
    assert run(command(tmp_path, tmp_path / "one.safetensors")) == 0
    with torchrun(command(tmp_path, tmp_path / "two.safetensors"), tmp_path / "two") as process:
        shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert shown.count("Wrote ") == 1  # by the first process only
    one, two = Patch.load(tmp_path / "one.safetensors"), Patch.load(tmp_path / "two.safetensors")
    assert (one.processes, two.processes) == (1, 2)
    assert one.fingerprint == two.fingerprint
    for ours, theirs in zip(one.terms, two.terms, strict=True):
        expected = ours.left.double() @ ours.right.double()
        found = theirs.left.double() @ theirs.right.double()
        assert float((found - expected).norm() / expected.norm()) < 2e-6
    assert {path.name for path in (tmp_path / "one").rglob("*.safetensors")} == {
        path.name for path in (tmp_path / "two").rglob("*.safetensors")
    }  # statistics were computed, and have the same keys


def test_a_killed_process_is_an_error_after_which_the_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, out = tmp_path / "run", tmp_path / "edited.safetensors"
    arguments = command(tmp_path, out, "--run", str(directory), "--batch-size", "1")
    with torchrun(arguments, tmp_path / "cache") as process:
        deadline = time.monotonic() + 250
        while not list(directory.glob("batches/*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = [child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1"]
        assert len(workers) == 1
        workers[0].send_signal(signal.SIGKILL)
        shown, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "PROCESS_LOST" in shown
    assert not out.exists()
    assert open_run(directory).manifest.processes == 2
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    assert run(["edit", "--resume", str(directory), "--out", str(out)]) == 0
    assert len(Patch.load(out).facts) == 4
    assert all(torch.isfinite(term.left).all() for term in Patch.load(out).terms)
