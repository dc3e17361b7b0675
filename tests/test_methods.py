"""The table of methods, and names with ``+blue``."""

from __future__ import annotations

import re

import pytest

from errata.cli.main import run
from errata.editing.methods import METHODS, method_named
from errata.editing.schedules import SCHEDULES
from errata.editing.shaping import SHAPERS
from errata.editing.solvers import SOLVERS
from errata.editing.target_loss import TARGETS
from errata.editors.registry import EDITORS
from errata.editors.table import EDITOR_NAMES, EDITOR_ROWS, editor_row
from errata.errors import InputError

from tests.support.errors import raises_code


def test_the_published_rows() -> None:
    """The table of methods.md, section 1, Rows."""
    expected = {
        "rome": ("mlp", "memit", "single", "rank_one", None, []),
        "r_rome": ("mlp", "memit", "single", "rank_one", None, []),
        "memit": ("block", "memit", "even", "least_squares", False, []),
        "memit_seq": ("block", "memit", "even", "least_squares", True, []),
        "pmet": ("mlp", "joint", "sqrt", "least_squares", False, []),
        "pmet_seq": ("mlp", "joint", "sqrt", "least_squares", True, []),
        "emmet": ("block", "memit", "single", "equality", None, []),
        "rect": ("block", "memit", "even", "least_squares", False, ["rect"]),
        "prune": ("block", "memit", "even", "least_squares", False, ["prune"]),
        "nse": ("block", "memit", "even", "neurons", True, []),
        "alphaedit": ("block", "memit", "even", "null_space", True, []),
    }
    rows = {
        row.name: (
            row.site,
            row.target["kind"],
            row.schedule,
            row.solver["kind"],
            row.solver.get("history"),
            [entry["kind"] for entry in row.shaping],
        )
        for row in METHODS
    }
    assert rows == expected
    assert len(rows) == len(METHODS)


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_every_row_is_made_of_what_there_is_and_says_where_it_is_from(row: object) -> None:
    method = method_named(row.name)  # type: ignore[attr-defined]
    assert method is row
    assert method.schedule in SCHEDULES
    assert method.solver["kind"] in SOLVERS
    assert method.target["kind"] in TARGETS
    assert {entry["kind"] for entry in method.shaping} <= set(SHAPERS)
    assert method.deviations or method.name == "nse"
    assert re.search(r"arXiv:\d{4}\.\d{5}", method.paper)
    assert method.title


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_blue_changes_the_schedule_and_nothing_else(row: object) -> None:
    plain = method_named(row.name)  # type: ignore[attr-defined]
    blue = method_named(f"{plain.name}+blue")
    assert blue.name == f"{plain.name}+blue"
    assert blue.schedule == "boundary"
    assert blue.title != plain.title
    for field in ("site", "solver", "contexts", "shaping", "rounds", "paper"):
        assert getattr(blue, field) == getattr(plain, field)
    # Everywhere but in nse, whose own targets are found on the unedited weights.
    assert blue.target == {**plain.target, "weights": "current"} if plain.name == "nse" else plain.target
    assert any("second boundary target" in deviation for deviation in blue.deviations)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("memmit", "memit"),
        ("alphaedit+blu", "alphaedit+blue"),
        ("blue+memit", "memit+blue"),
        ("Alpha-Edit", "alphaedit"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        method_named(name)
    assert repr(name) in caught.value.what
    assert f"Did you mean {near!r}?" in caught.value.remedy
    assert "errata methods" in caught.value.remedy
    assert len(caught.value.remedy) < 80  # not all names


@pytest.mark.parametrize("name", ["", "+blue", "memit+blue+blue", "zzzzzz"])
def test_nonsense_is_refused(name: str) -> None:
    with raises_code("METHOD_UNKNOWN", InputError):
        method_named(name)


def test_the_list_is_short_and_one_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods"]) == 0
    listing = capsys.readouterr().out
    names = {*(row.name for row in METHODS), *EDITOR_NAMES}
    assert names <= {line.split()[0] for line in listing.splitlines() if line.split()}
    assert "arXiv" not in listing
    assert run(["methods", "--all"]) == 0
    assert capsys.readouterr().out.count("arXiv") >= len(names)
    assert run(["methods", "kn"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(word in shown for word in ("2104.08696", "old, paraphrases", "changes: weights", "any edit"))
    assert "memit" not in shown
    assert run(["methods", "mend"]) == 0
    shown = capsys.readouterr().out
    assert "errata train-editor mend" in shown
    assert " ".join(shown.split()).count(editor_row("mend").use) == 1
    assert run(["methods", "memit+blue"]) == 0
    assert "2502.03748" in capsys.readouterr().out
    assert run(["methods", "memmit"]) == 2
    assert "METHOD_UNKNOWN" in capsys.readouterr().err


def test_fields_that_editors_need_are_those_of_their_settings() -> None:
    for row in EDITOR_ROWS:
        settings = EDITORS[row.name].settings()
        assert set(row.needs) == settings.needs, row.name  # type: ignore[attr-defined]
