"""Code that comes with a model runs if the command line allows it, and not because a file of a benchmark says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from errata.benchmark.campaign import open_campaign
from errata.benchmark.cell import open_cell
from errata.benchmark.workers import Processes
from errata.cli.main import run
from errata.errors import InputError
from errata.utils.progress import silent

from tests.support.bench import TinyBench

CODE = """
from pathlib import Path
Path(__file__).parent.joinpath({marker!r}).touch()
Path({folder!r}, {marker!r}).touch()
from transformers import GPT2Config
class Config(GPT2Config):
    pass
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyBench:
    """A tiny model whose code leaves a file in its folder when it runs."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    made = TinyBench.of(tmp_path)
    config = tmp_path / "model" / "config.json"
    record = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**record, "auto_map": {"AutoConfig": "code.Config"}}), encoding="utf-8")
    (tmp_path / "model" / "code.py").write_text(CODE.format(marker="RAN", folder=str(tmp_path)), encoding="utf-8")
    return made


def grid_file(bench: TinyBench, *, trust: bool) -> Path:
    path = bench.folder / "grid.yaml"
    entry = {"name": str(bench.folder / "model"), "trust_remote_code": trust}
    facts = bench.folder / "facts.jsonl"
    facts.write_text('{"subject": "The crowd", "prompt": "{} runs to", "target": "Rome"}\n', encoding="utf-8")
    grid = {"models": [entry], "data": [str(facts)], "methods": ["memit"], "edits": 1, "seeds": 1}
    path.write_text(json.dumps(grid), encoding="utf-8")
    return path


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_grid_cannot_allow_it(bench: TinyBench, dry: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = run(["bench", str(grid_file(bench, trust=True)), "--out", str(bench.folder / "out"), *dry])
    assert status == 2  # a dry run ends later: no recipe ships for this model
    assert dry or "--trust-remote-code" in capsys.readouterr().err
    assert not (bench.folder / "RAN").exists()


@pytest.mark.parametrize("verb", [["bench", "--methods", "memit"], ["edit"], ["analyse", "spectrum"]])
def test_a_dry_run_never_runs_it(bench: TinyBench, verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(bench.folder / "model"), "--dry-run", "--trust-remote-code"]
    assert run([*verb, *options]) == 2
    assert "error[OPTION_CONFLICT]" in capsys.readouterr().err
    assert not (bench.folder / "RAN").exists()


def test_the_command_line_allows_it(bench: TinyBench) -> None:
    run(["bench", str(grid_file(bench, trust=False)), "--out", str(bench.folder / "out"), "--trust-remote-code"])
    assert (bench.folder / "RAN").exists()


@pytest.mark.parametrize("edited", ["grid.json", "cell.json"])
def test_a_copied_benchmark_cannot_allow_it(bench: TinyBench, edited: str) -> None:
    out = bench.folder / "out"
    campaign = bench.begin(out, bench.grid(["memit"], seeds=(0,)))
    cell = campaign.cells[0]
    path = out / edited if edited == "grid.json" else cell / edited
    text = path.read_text(encoding="utf-8").replace('"trust_remote_code":false', '"trust_remote_code":true')
    text = text.replace('"trust_remote_code": false', '"trust_remote_code": true')
    assert "true" in text
    path.write_text(text, encoding="utf-8")
    if edited == "grid.json":
        assert run(["bench", "--out", str(out)]) == 2
        assert not open_campaign(out).is_edited(cell)
    else:
        with pytest.raises(InputError, match="--trust-remote-code"):
            open_cell(cell, silent)
        assert Processes().run(cell, silent) == 1
        assert "--trust-remote-code" in json.loads((cell / "failure.json").read_text(encoding="utf-8"))["what"]
    assert not (bench.folder / "RAN").exists()


def test_a_cell_is_worked_on_where_it_is_allowed(bench: TinyBench, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = bench.begin(bench.folder / "out", bench.grid(["memit"], seeds=(0,)))
    path = campaign.cells[0] / "cell.json"
    text = path.read_text(encoding="utf-8")
    allowed: list[bool] = []

    def load(name: str, *, trust_remote_code: bool, **_: Any) -> NoReturn:
        allowed.append(trust_remote_code)
        raise KeyError

    monkeypatch.setattr("errata.benchmark.cell.load_model", load)
    for needed in (False, True):
        changed = text.replace('"trust_remote_code": false', f'"trust_remote_code": {str(needed).lower()}')
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(KeyError):
            open_cell(campaign.cells[0], silent, trust_remote_code=True)
    assert allowed == [False, True]
