"""Progress callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Report: TypeAlias = Callable[[str, int, int], None]  # (description, done, total)


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that does nothing."""


def counter(report: Report, what: str, total: int) -> Callable[[int], None]:
    """A callback that adds up counts of finished items and reports the sum."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        report(what, done, total)

    return add
