"""How `errata` begins: nothing heavy is imported before it is needed, and Ctrl-C is answered from the first moment."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest

import errata
from errata.__main__ import main


def test_the_package_imports_without_torch() -> None:
    script = "import errata, sys; sys.exit('torch' in sys.modules or 'Editor' not in dir(errata))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", errata.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(errata, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Editr'"):
        _ = errata.Editr  # type: ignore[attr-defined]


def test_an_interrupt_while_torch_is_imported(
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
