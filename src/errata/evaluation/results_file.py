"""The long form of results for machines: one row per method, metric and moment, in a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from errata.errors import InputError
from errata.evaluation.records import MOMENTS, Summary, When
from errata.output import write_text
from errata.reading import reason_of

FORMAT = "errata-results-1"


class Row(TypedDict):
    """A line of the long form: one per method, metric and moment; of a grid also per model, data and number of edits.

    ``edits`` is how many facts had been edited; ``seeds``, of a check ``during`` the run, how many runs it is of.
    """

    method: str
    metric: str
    when: When
    mean: float
    low: float | None
    high: float | None
    n: int
    model: NotRequired[str]
    data: NotRequired[str]
    edits: NotRequired[int]
    seeds: NotRequired[int]


_OF_GRIDS = {"model", "data", "edits", "seeds"}


def to_long(method: str, summaries: Sequence[Summary]) -> list[Row]:
    """The long form: one row per summary."""
    return [
        Row(
            method=method,
            metric=str(summary.metric),
            when=summary.when,
            mean=summary.mean,
            low=summary.low,
            high=summary.high,
            n=summary.n,
        )
        for summary in summaries
    ]


@dataclass(frozen=True, slots=True)
class Results:
    """What a results file holds: rows, and whatever belongs to them (command, recipe, versions, absent metrics)."""

    rows: tuple[Row, ...]
    about: Mapping[str, Any]


def write_results(path: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write a results file, whole or not at all.

    Raises:
        ValueError: if a number is not finite, for which JSON has no word.
    """
    whole = {"format": FORMAT, "rows": list(rows), "about": dict(about)}
    write_text(path, json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        InputError: if it cannot be read or is not one.
    """
    remedy = "Give a results file that errata wrote"
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {reason_of(error)}", remedy=remedy) from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise InputError(f"{path} is not of the format {FORMAT!r}", remedy=remedy)
    rows, about = whole.get("rows"), whole.get("about")
    if not isinstance(rows, list) or not isinstance(about, dict):
        raise InputError(f"{path} lacks 'rows' (a list) or 'about' (an object)", remedy=remedy)
    for index, row in enumerate(rows):
        if not is_row(row):
            raise InputError(
                f"{path}, rows[{index}], is not one of {', '.join(Row.__annotations__)} with a known 'when'",
                remedy=remedy,
            )
    return Results(tuple(rows), about)


def is_row(row: object) -> bool:
    """Whether something that was read is a row of the long form."""

    def number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    return (
        isinstance(row, dict)
        and Row.__annotations__.keys() - _OF_GRIDS <= row.keys() <= Row.__annotations__.keys()
        and all(isinstance(row.get(key, ""), str) for key in ("method", "metric", "model", "data"))
        and all(isinstance(row.get(key, 0), int) for key in ("edits", "seeds"))
        and row["when"] in MOMENTS
        and number(row["mean"])
        and all(row[key] is None or number(row[key]) for key in ("low", "high"))
        and isinstance(row["n"], int)
    )
