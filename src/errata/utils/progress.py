"""Progress callbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Report: TypeAlias = Callable[[str, int, int], None]  # (description, done, total)


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that does nothing."""


@dataclass(frozen=True, slots=True)
class SearchStep:
    """One step of the search for the targets of a batch.

    Attributes:
        layer: where the targets are.
        done: steps so far, of ``total``; more if the search of many facts is split into groups.
        total: the most steps; a search may end earlier.
        loss: mean over the facts of the group, of the last loss of each.
        facts_left: facts of the group that are still searched.
    """

    layer: int
    done: int
    total: int
    loss: float
    facts_left: int


OnSearch: TypeAlias = Callable[[SearchStep], None]


def unwatched(step: SearchStep) -> None:
    """A callback of a search that does nothing."""


def counter(report: Report, what: str, total: int) -> Callable[[int], None]:
    """A callback that adds up counts of finished items and reports the sum."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        report(what, done, total)

    return add
