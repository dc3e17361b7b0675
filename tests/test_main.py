"""How `errata` begins: nothing heavy is imported before it is needed, and Ctrl-C is answered from the first moment."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import typer

import errata
from errata.__main__ import main
from errata.analysis.studies import STUDIES
from errata.analysis.titles import TITLES
from errata.benchmark.measurements import FURTHER
from errata.benchmark.part_names import FURTHER_NAMES
from errata.cli import command_of, run
from errata.output import reserved
from errata.verbs.command import Verb
from errata.verbs.command_line import command_line
from errata.verbs.inputs import READ
from errata.verbs.verb_table import VERBS


def test_the_package_imports_without_torch() -> None:
    script = "import errata, sys; sys.exit('torch' in sys.modules or 'Editor' not in dir(errata))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["data", "list"], ["revrt"]])
def test_what_needs_no_model_imports_no_torch(arguments: list[str]) -> None:
    script = "import sys; from errata.cli import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    assert ended.stdout or "Did you mean 'revert'" in ended.stderr


@pytest.mark.parametrize("problem", ["--typo", "--help"])
def test_a_command_line_is_read_without_torch(problem: str) -> None:
    """Of every verb at once: a process each would take minutes."""
    script = (
        "import sys; from errata.cli import run\n"
        "for verb in sys.argv[2:]:\n"
        "    status = run([*verb.split(), sys.argv[1]])\n"
        "    assert status == (2 if sys.argv[1] == '--typo' else 0), (verb, status)\n"
        "    assert 'torch' not in sys.modules and 'transformers' not in sys.modules, verb\n"
    )
    verbs = [*VERBS, "recipe auto", "recipe check", "data get", "models list", "lab train", "lab save"]
    command = [sys.executable, "-c", script, problem, *verbs]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr[-300:] if ended.returncode else "") == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
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
    ],
)
def test_methods_and_files_that_do_not_exist_are_told_without_torch(arguments: str, tmp_path: Path) -> None:
    (tmp_path / "here.jsonl").write_text("")
    script = "import sys; from errata.cli import run; print(run(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", script, *arguments.split()]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.split() == ["2", "False"], ended.stderr
    said = " ".join(ended.stderr.split())
    assert "memitt" in said or "none" in said
    assert said.count("none.jsonl") == arguments.count("none.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["here.jsonl"]


@pytest.mark.parametrize("name", VERBS)
def test_every_path_is_known_as_one_that_is_read_or_one_that_is_written(name: str) -> None:
    written = {"directory", "json", "lora", "out", "run", "svg", "work"}
    for command in command_line(f"errata.verbs.{VERBS[name].module}").registered_commands:
        paths = {each for each, kind in get_type_hints(command.callback).items() if "Path" in str(kind)}
        assert paths <= READ | written


def parameters(command: Any) -> list[dict[str, Any]]:
    """Everything that a command's help and its reading depend on, but for functions, of which there are two copies."""
    return [
        {name: value for name, value in vars(each).items() if not callable(value) and name != "type_descriptor"}
        | {"type": each.type_descriptor.annotation, "callback": each.callback is not None}
        for each in command.params
    ]


@pytest.mark.parametrize("name", VERBS)
def test_a_command_line_is_that_of_its_module(name: str) -> None:
    """Which is only partly executed to read it."""
    app = import_module(f"errata.verbs.{VERBS[name].module}").app
    for command in app.registered_commands:
        command.cls = Verb
    whole: Any = typer.main.get_group(app)
    whole = whole.commands.get(name, whole)
    part = command_of(name)
    assert (part.help, part.epilog) == (whole.help, whole.epilog)
    assert parameters(part) == parameters(whole)
    assert list(getattr(part, "commands", {})) == list(getattr(whole, "commands", {}))
    for sub, command in getattr(whole, "commands", {}).items():
        assert part.commands[sub].help == command.help
        assert parameters(part.commands[sub]) == parameters(command)


def test_help_names_what_there_is() -> None:
    assert tuple(part.name for part in FURTHER) == FURTHER_NAMES
    assert {name: study.title for name, study in STUDIES.items()} == TITLES
    assert list(STUDIES) == list(TITLES)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_listed_with_what_its_own_help_says_first(name: str) -> None:
    command = command_of(name)
    assert command.help.startswith(VERBS[name].summary)
    commands = getattr(command, "commands", {"": command}).values()
    assert all(isinstance(each, Verb) for each in commands), "results for machines take the place of nothing"


@pytest.mark.parametrize("name", errata.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(errata, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Editr'"):
        _ = errata.Editr  # type: ignore[attr-defined]


def test_an_interrupt_before_the_command_line_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "errata.cli", Interrupted("errata.cli"))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted; nothing had begun\n"


def test_an_interrupt_while_a_verb_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> ModuleType:
        raise KeyboardInterrupt

    monkeypatch.setattr("errata.verbs.command.import_module", interrupted)
    assert run(["edit"]) == 130
    assert "interrupted; no output" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_among_imports_is_no_exception_there(name: str) -> None:
    script = (
        "import signal, sys, errata.cli as cli, errata.verbs.command as command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def imported(name):\n    try:\n        signal.raise_signal(getattr(signal, sys.argv[1]))\n"
        "    except BaseException as error:\n        raise ImportError('could not import') from error\n"
        "command.import_module = imported\ncli.main(['edit'])"
    )
    ended = subprocess.run([sys.executable, "-c", script, name], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "interrupted; nothing had begun\n")


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


def test_a_hangup_is_an_interrupt_and_none_where_it_is_ignored(tmp_path: Path) -> None:
    script = (
        "import signal, sys, errata.cli as cli\n"
        "from pathlib import Path\n"
        "from errata.output import new_file\n"
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


@pytest.mark.parametrize(("run_name", "out_name"), [("same", "same"), ("out/run", "out"), ("./x/../same", "same")])
def test_a_run_and_its_output_cannot_be_the_same(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_name: str,
    out_name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["edit", "--facts", "none.jsonl", "--run", run_name, "--out", out_name]) == 2
    assert "--out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_another_process_is_about_to_write_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "facts.jsonl").touch()
    with reserved(tmp_path / "new" / "one.safetensors"):
        out = str(tmp_path / "new" / "one.safetensors")
        assert run(["edit", "--facts", str(tmp_path / "facts.jsonl"), "--out", out]) == 2
        assert "another process" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]
