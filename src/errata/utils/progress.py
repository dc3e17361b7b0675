"""Progress callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Report: TypeAlias = Callable[[str, int, int], None]  # (description, done, total)


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that does nothing."""
