"""Start of `errata`: lazy imports, checks before them, and interrupts at any moment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import typer

import errata
from errata.__main__ import main
from errata.analysis import STUDY_TITLES
from errata.analysis.studies import STUDIES
from errata.benchmark import OPTIONAL_MEASUREMENTS
from errata.benchmark.measurements import OPTIONAL
from errata.cli.command import READ, Command, command_line
from errata.cli.main import COMMANDS, command_of, run
from errata.utils.files import reserved

FACTS = Path(__file__).resolve().parents[1] / "examples" / "facts.jsonl"


def test_the_package_imports_without_torch() -> None:
    script = "import errata, sys; sys.exit('torch' in sys.modules or 'Editor' not in dir(errata))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def light(calls: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Run command lines in one process; their statuses, outputs, and whether any imported torch or transformers."""
    script = (
        "import contextlib, io, json, shlex, sys\n"
        "from errata.cli.main import run\n"
        "found = []\n"
        "for call in sys.argv[1:]:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        status = run(shlex.split(call))\n"
        "    heavy = [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "    texts = {'out': out.getvalue(), 'err': err.getvalue()}\n"
        "    found.append({'call': call, 'status': status, 'heavy': heavy, **texts})\n"
        "print(json.dumps(found))\n"
    )
    command = [sys.executable, "-c", script, *calls]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    assert ended.returncode == 0, ended.stderr[-500:]
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    return found


def test_command_lines_without_a_model_import_no_torch(tmp_path: Path) -> None:
    named = [
        *COMMANDS,
        "recipe auto",
        "recipe check",
        "data get",
        "data mine-hard",
        "models list",
        "lab train",
        "lab save",
    ]
    expected = {
        **{f"{name} --typo": 2 for name in named},
        **{f"{name} --help": 0 for name in named},
        **{"--help": 0, "methods": 0, "data list": 0, "revrt": 2},
    }
    for ended in light(list(expected), tmp_path):
        assert not ended["heavy"], ended["call"]
        assert ended["status"] == expected[ended["call"]], ended
        assert ended["out"] or ended["status"] == 2
        if ended["call"] == "revrt":
            assert "Did you mean 'revert'" in ended["err"]


def test_usage_errors_have_a_code_and_a_line_like_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "edti": "errata --help", "--typo": "errata --help", "edit --typo": "errata edit --help",
        "edit --batch-size many": "errata edit --help", "edit --on-conflict ask": "errata edit --help",
        "evaluate": "errata evaluate --help", "recipe chek": "errata recipe --help",
        "recipe check": "errata recipe check --help", "edit --model": "--help",
        "methods one more": "errata methods --help",
    }  # fmt: skip
    for call, remedy in expected.items():
        assert run(call.split()) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("error[USAGE]: ")
        assert remedy in err
        assert err.count("\n") == 1
    for call in ("", "recipe"):  # help, not an error
        assert run(call.split()) == 2
        out, err = capsys.readouterr()
        assert "Commands" in out
        assert not err


MISSING = [
    "edit --facts none.jsonl --untouched none.jsonl --out x.safetensors",
    "edit --facts here.jsonl --method memitt --out x.safetensors",
    "edit --facts here.jsonl --recipe none.yaml --out x.safetensors",
    "edit --facts here.jsonl --corpus none.txt --out x.safetensors",
    "edit --resume none",
    "evaluate --facts none.jsonl",
    "ask --file none.txt",
    "apply none.safetensors --out x",
    "save here.jsonl --results none.json --out x",
    "locate --facts none.jsonl",
    "report none",
    "bench none.yaml --out x",
    "bench --methods memit,memitt --edits 2 --out x",
    "bench --data counterfact=none.json --methods memit --edits 2 --out x",
    "analyse spectrum --facts none.jsonl --out x",
    "demo --methods memitt",
    "recipe check none.yaml",
    "recipe auto --facts none.jsonl --out x.yaml",
    "data check zsre none.json",
]


def test_missing_files_and_unknown_methods_are_reported_without_torch(tmp_path: Path) -> None:
    (tmp_path / "here.jsonl").write_text("")
    for ended in light(MISSING, tmp_path):
        assert (ended["status"], ended["heavy"]) == (2, []), ended
        said = " ".join(ended["err"].split())
        assert "memitt" in said or "none" in said
        assert said.count("none.jsonl") == ended["call"].count("none.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["here.jsonl"]


INVALID = [
    "edit --facts bad.jsonl --out x.safetensors",
    "edit --facts bad.jsonl --method retrieval --out x.safetensors",
    "edit --facts good.jsonl --untouched bad.jsonl --out x.safetensors",
    "evaluate --facts bad.jsonl",
    "advise --facts bad.jsonl",
    "locate --facts bad.jsonl",
    "recipe auto --facts bad.jsonl --out x.yaml",
    "analyse spectrum --facts bad.jsonl --out x",
    "bench --data lab,bad.jsonl --methods memit --edits 2 --out x",
    "bench --data jsonl=bad.jsonl --methods memit --edits 2 --out x",
    "data check jsonl bad.jsonl",
]


def test_faults_of_facts_and_questions_are_reported_without_torch(tmp_path: Path) -> None:
    good = {"subject": "Ann", "prompt": "{} was born in", "target": "Rome"}
    (tmp_path / "good.jsonl").write_text(json.dumps(good), encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, "target": 3}), encoding="utf-8")
    for ended in light(INVALID, tmp_path):
        assert (ended["status"], ended["heavy"]) == (2, []), ended
        assert "bad.jsonl:2" in ended["err"]
    twice = [good, {**good, "target": "Oslo"}]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, twice)), encoding="utf-8")
    both = "edit --facts bad.jsonl --method memitt --untouched none.jsonl --out x.safetensors"
    found = light([both, f"{both} --last-wins"], tmp_path)
    assert not any(ended["heavy"] for ended in found)
    assert ["bad.jsonl" in ended["err"] for ended in found] == [True, False]
    assert all("memitt" in ended["err"] and "none.jsonl" in ended["err"] for ended in found)  # reported together


def test_every_path_is_known_as_input_or_output() -> None:
    written = {"directory", "gguf", "gguf_model", "json", "lora", "out", "run", "svg", "work"}
    for module in {module for entry in COMMANDS.values() for module in entry.modules}:
        for command in command_line(f"errata.cli.{module}").registered_commands:
            paths = {each for each, kind in get_type_hints(command.callback).items() if "Path" in str(kind)}
            assert paths <= READ | written, module


def parameters(command: Any) -> list[dict[str, Any]]:
    """Everything that a command's help and its reading depend on, but for functions, of which there are two copies."""
    return [
        {name: value for name, value in vars(each).items() if not callable(value) and name != "type_descriptor"}
        | {"type": each.type_descriptor.annotation, "callback": each.callback is not None}
        for each in command.params
    ]


def test_command_lines_equal_those_of_the_imported_modules() -> None:
    """Modules are only partly executed to read a command line."""
    for name, entry in COMMANDS.items():
        app = typer.Typer()
        parts = [import_module(f"errata.cli.{module}").app for module in entry.modules]
        app.info = parts[0].info
        app.registered_commands = [command for part in parts for command in part.registered_commands]
        for command in app.registered_commands:
            command.cls = Command
        whole: Any = typer.main.get_group(app)
        whole = whole.commands.get(name, whole)
        part = command_of(name)
        assert (part.help, part.epilog) == (whole.help, whole.epilog), name
        assert parameters(part) == parameters(whole), name
        assert list(getattr(part, "commands", {})) == list(getattr(whole, "commands", {})), name
        for sub, command in getattr(whole, "commands", {}).items():
            assert part.commands[sub].help == command.help, (name, sub)
            assert parameters(part.commands[sub]) == parameters(command), (name, sub)


def test_help_lists_all_measurements_and_studies() -> None:
    assert tuple(part.name for part in OPTIONAL) == OPTIONAL_MEASUREMENTS
    assert {name: study.title for name, study in STUDIES.items()} == STUDY_TITLES
    assert list(STUDIES) == list(STUDY_TITLES)


def test_summaries_are_the_first_sentences_of_help() -> None:
    for name, entry in COMMANDS.items():
        command = command_of(name)
        assert command.help.startswith(entry.summary), name
        commands = getattr(command, "commands", {"": command}).values()
        assert all(isinstance(each, Command) for each in commands), name


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(errata, name) is not None for name in errata.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Editr'"):
        _ = errata.Editr  # type: ignore[attr-defined]


def test_an_interrupt_before_the_command_line_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "errata.cli.main", Interrupted("errata.cli.main"))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted before any work started\n"


def test_an_interrupt_during_the_import_of_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> ModuleType:
        raise KeyboardInterrupt

    monkeypatch.setattr("errata.cli.command.import_module", interrupted)
    assert run(["edit"]) == 130
    assert "interrupted; no partial output" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_during_imports_exit_immediately(name: str) -> None:
    script = (
        "import signal, sys, errata.cli.main as cli, errata.cli.command as command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def imported(name):\n    try:\n        signal.raise_signal(getattr(signal, sys.argv[1]))\n"
        "    except BaseException as error:\n        raise ImportError('could not import') from error\n"
        "command.import_module = imported\ncli.main(['edit'])"
    )
    ended = subprocess.run([sys.executable, "-c", script, name], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "interrupted before any work started\n")


def test_main_runs_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["errata", "methods"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "memit" in capsys.readouterr().out


def test_threads_wait_quietly_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["errata", "methods"])
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if given is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        with pytest.raises(SystemExit):
            main()
        assert os.environ["OMP_WAIT_POLICY"] == expected


def test_a_hangup_interrupts_unless_it_is_ignored(tmp_path: Path) -> None:
    script = (
        "import signal, sys, errata.cli.main as cli\n"
        "from pathlib import Path\n"
        "from errata.utils.files import new_file\n"
        "def run(arguments, on_import):\n    on_import()\n    try:\n"
        "        with new_file(Path(sys.argv[1])) as file:\n"
        "            file.write_text('x'); signal.raise_signal(signal.SIGHUP)\n"
        "    except KeyboardInterrupt:\n        return 130\n    return 0\n"
        "cli.run = run\n"
        "if len(sys.argv) > 2: signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "cli.main([])"
    )
    for more, status, left in (([], 130, []), (["ignored"], 0, ["out"])):
        command = [sys.executable, "-c", script, str(tmp_path / "out"), *more]
        assert subprocess.run(command, check=False).returncode == status
        assert [path.name for path in tmp_path.iterdir()] == left


def test_a_run_and_its_output_cannot_overlap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for run_name, out_name in (("same", "same"), ("out/run", "out"), ("./x/../same", "same")):
        assert run(["edit", "--facts", "none.jsonl", "--run", run_name, "--out", out_name]) == 2
        assert "error[OUTPUT_CONFLICT]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_another_process_is_about_to_write_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(FACTS, tmp_path)
    with reserved(tmp_path / "new" / "one.safetensors"):
        out = str(tmp_path / "new" / "one.safetensors")
        assert run(["edit", "--facts", str(tmp_path / "facts.jsonl"), "--out", out]) == 2
        assert "another process" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]
