"""The table of methods, and names with ``+blue``."""

from __future__ import annotations

import re

import pytest

from errata.errors import InputError
from errata.methods import METHODS, method_named
from errata.schedules import SCHEDULES
from errata.solvers import SOLVERS


def test_the_published_rows() -> None:
    rows = {row.name: (row.site, row.target, row.schedule, row.solver, row.history) for row in METHODS}
    assert rows["memit"] == ("block", "memit", "even", "least_squares", False)
    assert rows["memit_seq"] == ("block", "memit", "even", "least_squares", True)
    assert rows["alphaedit"] == ("block", "memit", "even", "null_space", True)
    assert len(rows) == len(METHODS)


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_every_row_is_made_of_what_there_is_and_says_where_it_is_from(row: object) -> None:
    method = method_named(row.name)  # type: ignore[attr-defined]
    assert method is row
    assert method.schedule in SCHEDULES
    assert method.solver in SOLVERS
    assert re.search(r"arXiv:\d{4}\.\d{5}", method.paper)
    assert method.title


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_blue_changes_the_schedule_and_nothing_else(row: object) -> None:
    plain = method_named(row.name)  # type: ignore[attr-defined]
    blue = method_named(f"{plain.name}+blue")
    assert blue.name == f"{plain.name}+blue"
    assert blue.schedule == "boundary"
    assert blue.title != plain.title
    for field in ("site", "target", "solver", "history", "paper"):
        assert getattr(blue, field) == getattr(plain, field)


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
    assert all(row.name in caught.value.remedy for row in METHODS)


@pytest.mark.parametrize("name", ["", "+blue", "memit+blue+blue", "zzzzzz"])
def test_nonsense_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="there is no method"):
        method_named(name)
