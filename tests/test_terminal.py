"""What is printed: no control character from elsewhere, no failure for what cannot be printed."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from errata.cli.main import run
from errata.cli.show import facts_table
from errata.cli.terminal import PlainConsole, echo, error_console, progress, warn
from errata.utils.progress import SearchStep
from errata.utils.streams import Streams
from errata.utils.text import visible

from tests.support.editing import FACTS

HOSTILE = "\x1b]0;title\x07 \x1b[2J\x9b31m \u202etxt.exe \r\x08 \udce9"
SHOWN = "\\x1b]0;title\\x07 \\x1b[2J\\x9b31m \\u202etxt.exe \\x0d\\x08 \\udce9"


def test_what_steers_a_terminal_is_shown_and_nothing_else_is_changed() -> None:
    assert visible(HOSTILE) == SHOWN
    for text in ("plain", "two\n\tlines", "λ – Ω „…“", "日本語", "עברית", "👩‍🔬"):
        assert visible(text) == text


def as_table(text: str) -> Table:
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    table.add_row(Text(text))
    return table


@pytest.mark.parametrize("make", [str, Text, as_table, lambda text: Text.assemble((text, "bold"))])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_prints_no_foreign_control_characters(make: Any, terminal: bool) -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=terminal, markup=False, width=200, color_system=None)
    console.print(make(HOSTILE + "[link=https://example.org]here[/link]"))
    printed = file.getvalue()
    printed = printed.replace("\x1b[1m", "").replace("\x1b[3m", "").replace("\x1b[0m", "")  # its own
    assert "\x1b" not in printed
    assert not {*"\x07\x08\r\x9b\u202e\udce9"} & {*printed}
    assert "\\x1b[2J" in printed
    assert "[link=https://example.org]here[/link]" in printed.replace("\n", "") or make is as_table


def test_columns_are_as_wide_as_what_they_show() -> None:
    file = io.StringIO()
    PlainConsole(file=file, width=200).print(as_table("\x1b" * 9))
    lines = [line for line in file.getvalue().splitlines() if "│" in line or "┃" in line]
    assert len({len(line) for line in lines}) == 1


def test_errors_and_usage_errors_show_what_steers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(tmp_path / "\x1b[2Jx.safetensors")]) == 2
    assert run(["recipe", "show", "memit", f"--{HOSTILE[:12]}"]) == 2
    assert run([f"{HOSTILE[:12]}"]) == 2
    echo(HOSTILE[:12])
    warn(HOSTILE[:12])
    out, err = capfd.readouterr()
    assert not {*"\x1b\x07"} & {*out, *err}
    assert "\\x1b[2Jx" in err.replace("\n", "")
    assert out.startswith("\\x1b]0;title")


def test_facts_of_a_patch_are_shown_without_control_characters(capfd: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    error_console().print(facts_table([replace(FACTS[0], id=HOSTILE[:12], target="\x1b[31mRome")], None))
    assert "\x1b" not in capfd.readouterr().err


def test_finished_progress_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Progress] = []

    class Kept(Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, **options)
            shown.append(self)

    monkeypatch.setattr("errata.cli.terminal.Progress", Kept)
    monkeypatch.setattr("errata.cli.terminal.error_console", lambda: Console(file=StringIO(), force_terminal=True))
    with progress() as report:
        report("statistics", 5, 5)
        report("targets", 1, 5)
        assert [task.description for task in shown[0].tasks if task.visible] == ["targets"]
        report("statistics", 1, 5)
        assert [task.visible for task in shown[0].tasks] == [True, True]


def test_a_task_that_starts_again_is_timed_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    file, times = StringIO(), iter([0.0, 60.0, 300.0, 360.0])
    monkeypatch.setattr("errata.cli.terminal.time.monotonic", lambda: next(times))
    monkeypatch.setattr("errata.cli.terminal.error_console", lambda: Console(file=file, width=200))
    with progress() as report:
        for done, total in [(0, 5), (5, 5), (10, 100), (40, 100)]:
            report("measuring", done, total)
    assert file.getvalue().splitlines()[-1].endswith("1:00 so far, about 2:00 left")


def test_a_run_shows_batch_facts_loss_and_time_left_in_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr("errata.cli.terminal.error_console", lambda: console)
    with progress() as report:
        report("batches", 1, 20)
        report("facts edited", 1_000, 20_000)
        report("targets at layer 11", 3, 25)
        report.searched(SearchStep(11, 3, 25, loss=2.3456, facts_left=50))
    lines = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", screen.getvalue()).splitlines() if line.strip()]
    assert max(map(len, lines)) <= 80
    for wanted in (
        "batches .* 1/20 .* left",
        "facts edited .* 1000/20000 ",
        r"targets at layer 11 .* 3/25 .*loss 2\.35",
    ):
        assert any(re.search(wanted, line) for line in lines), wanted


def test_a_log_shows_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    log = StringIO()
    monkeypatch.setattr("errata.cli.terminal.error_console", lambda: Console(file=log, width=80))
    monkeypatch.setattr("errata.cli.terminal.SECONDS_BETWEEN_LINES", 0.0)
    with progress() as report:
        report("targets at layer 5", 0, 20)
        report.searched(SearchStep(5, 1, 20, loss=0.5, facts_left=3))
        report("targets at layer 5", 10, 20)
    assert "targets at layer 5: 50 % (10 of 20), loss 0.5, " in log.getvalue()


# The streams ----------------------------------------------------------------------------------------------------------

PRINT = "from errata.cli.main import main; main(['methods', '--json', 'out.json'])"


def methods(folder: Path, command: str, **environment: str) -> tuple[int, str, bool]:
    """(exit status, standard error, whether there is JSON)."""
    script = f'"{sys.executable}" -c "{PRINT}" {command}'
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"], cwd=folder, env={**os.environ, **environment}, stderr=-1,
        stdout=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stderr, (folder / "out.json").is_file()


@pytest.mark.parametrize(
    ("command", "encoding", "status", "said"),
    [
        ("", "ascii", 0, ""),
        ("", "latin-1", 0, ""),
        ("", "cp437", 0, ""),
        ("> /dev/full", "utf-8", 1, "No space left"),
        ("| true", "utf-8", 0, ""),
        (">&-", "utf-8", 0, ""),
        ("2>&-", "utf-8", 0, ""),
    ],
)
def test_what_cannot_be_printed_loses_no_result(
    tmp_path: Path, command: str, encoding: str, status: int, said: str
) -> None:
    found, error, there = methods(tmp_path, command, PYTHONIOENCODING=encoding)
    assert (found, there) == (status, True)
    assert said in error
    assert bool(error) == bool(said)


def test_a_failing_stream_drops_what_comes_later_and_remembers_the_first_failure(tmp_path: Path) -> None:
    streams = Streams()
    with Path("/dev/full").open("w", encoding="ascii") as full, (tmp_path / "good").open("w") as good:
        text, other = streams.steady(full), streams.steady(good)
        text.write("x" * 100_000 + "→")
        text.write("more")
        other.write("kept")
        assert streams.failure is not None
        assert streams.failure.strerror == "No space left on device"
    assert (tmp_path / "good").read_text() == "kept"
    memory = io.StringIO()
    assert streams.steady(memory) is memory
