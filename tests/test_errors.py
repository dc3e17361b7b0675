"""Errors: codes, and the errors of several inputs reported together."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import errata
from errata.errors import ErrataError, Fault, FaultsError, InputError, collect_errors
from errata.utils.text import did_you_mean, visible


def test_a_single_error_is_raised_unchanged() -> None:
    with pytest.raises(InputError) as error, collect_errors("all") as part:
        for _ in range(2):  # the same error twice counts once
            with part:
                raise InputError("no a", remedy="Give a", code="A_MISSING")
        with part:
            pass
    assert not isinstance(error.value, FaultsError)
    assert (str(error.value), error.value.code) == ("no a. Give a", "A_MISSING")


def test_a_question_needs_no_full_stop() -> None:
    assert str(InputError("no model 'a'. Did you mean 'b'?", remedy="Give one")) == (
        "no model 'a'. Did you mean 'b'? Give one"
    )


def test_several_errors_are_reported_together() -> None:
    with pytest.raises(FaultsError) as error, collect_errors("the input") as part:
        with part:
            raise InputError("no a", remedy="Give a", code="A_MISSING")
        with part:
            raise FaultsError("b", [Fault("b:1", "wrong", "Fix it"), Fault("b:2", "wrong too", "Fix it")])
        raise InputError("no c")  # outside a part: the last
    assert [fault.code for fault in error.value.faults] == ["A_MISSING", "INPUT", "INPUT", "INPUT"]
    assert error.value.code == "SEVERAL"
    assert str(error.value).splitlines()[1:] == [
        "  [A_MISSING] no a. Give a", "  [INPUT] b:1: wrong. Fix it", "  [INPUT] b:2: wrong too. Fix it",
        "  [INPUT] no c.",
    ]  # fmt: skip
    with pytest.raises(FaultsError) as error:
        raise FaultsError("b", [Fault(f"b:{line}", "wrong", "", code="WRONG") for line in (1, 2)])
    assert str(error.value).splitlines() == ["2 faults in b:", "  b:1: wrong", "  b:2: wrong."]


def test_every_error_of_the_source_has_a_code() -> None:
    kinds = {"Fault", "InputError", "ErrataError", "EditError", "OutputError", "UnsupportedModelError"}
    without: list[str] = []
    found = 0
    for path in sorted(Path(errata.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in kinds:
                found += 1
                if not any(keyword.arg in ("code", None) for keyword in node.keywords):  # None: **options
                    without.append(f"{path.name}: {ast.unparse(node)}")
    assert found > 300
    # Only its text is used, with the code USAGE.
    assert without == ["main.py: InputError(message, remedy=remedy)"]


def test_other_errors_are_not_collected() -> None:
    for raised in (KeyboardInterrupt(), ErrataError("the work failed"), KeyError("a")):
        later = []
        with pytest.raises(type(raised)), collect_errors("all") as part:
            with part:
                raise InputError("no a")
            with part:
                raise raised
            later.append("more")
        assert later == []


def test_suggestions_and_control_characters() -> None:
    assert did_you_mean("promt", ["target", "prompt"]) == "Did you mean 'prompt'? "
    assert did_you_mean("", ["target"]) == did_you_mean("zzz", ["target"]) == ""
    assert visible("a\tb\x1b[2J\u202e\udcff") == "a\tb\\x1b[2J\\u202e\\udcff"
