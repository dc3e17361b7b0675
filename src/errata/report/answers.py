"""The browsable list of a run's facts: what the model said before, right after and at the end.

From the records it keeps one entry for each cell of the grid and each fact, with the prompts that belong to it, as
short as can be: each text is in a list once and is named by its index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from errata.errors import InputError
from errata.results.metrics import entry_of
from errata.utils.optional import require

ENTRIES_EMBEDDED: Final = 20_000
PROMPTS_EMBEDDED: Final = 60_000  # beside the entries' own; a page of some ten megabytes still opens at once
COLUMNS: Final = (
    "cell", "model", "data", "method", "seed", "when", "edits", "fact", "metric", "prompt", "expected", "value", "said",
)  # fmt: skip
OUTCOMES: Final = (
    "taken", "not taken", "forgotten", "taken later", "kept", "lost", "never known", "gained", "not known",
)  # fmt: skip
# What says whether an edited fact was taken, the best witness first.
_EDITED: Final = (
    "efficacy_accuracy", "free_efficacy_contained", "free_efficacy_exact", "efficacy_tokens", "efficacy_success",
)  # fmt: skip
_UNTOUCHED: Final = ("untouched_accuracy", "unrelated_accuracy")
_MOMENTS: Final = ("before", "right_after", "after")
_REMEDY: Final = "Run the benchmark again in this directory, which writes it anew from the cells that are done"


@dataclass(frozen=True, slots=True)
class Answers:
    """What the page embeds.

    Attributes:
        payload: for JSON. ``strings``; ``cells``: [method, seed, model, data] each as places in ``strings``;
            ``entries``: [cell, fact, metric, prompt, expected, outcome, three moments, other prompts], where a moment
            is [said, value] or null, and another prompt [metric, prompt, expected, three moments]. Metrics are
            given by their headings.
        entries: how many of the run's there are.
        entries_left_out: that the page has no room for.
        prompts_left_out: of entries that are embedded.
    """

    payload: dict[str, Any]
    entries: int
    entries_left_out: int
    prompts_left_out: int


@dataclass(slots=True)
class _Asked:
    """A prompt of one metric, and what was said at each moment."""

    metric: str
    prompt: str
    expected: str | None
    moments: dict[str, tuple[str, float | None]] = field(default_factory=dict)


def read_answers(path: Path, *, entries: int = ENTRIES_EMBEDDED, prompts: int = PROMPTS_EMBEDDED) -> Answers:
    """Read ``records.parquet`` for the page.

    Where not all has room, each cell of the grid keeps the same number of facts, its first.

    Raises:
        InputError: if it cannot be read, or lacks a column.
        MissingExtraError: without pyarrow.
    """
    cells: dict[tuple[str, str, int, str, str], dict[str, dict[tuple[str, str], _Asked]]] = {}
    for cell, model, data, method, seed, when, _, fact, metric, prompt, expected, value, said in _lines(path):
        if when in _MOMENTS:
            of_cell = cells.setdefault((cell, method, seed, model, data), {})
            asked = of_cell.setdefault(fact, {}).setdefault((metric, prompt), _Asked(metric, prompt, expected))
            asked.moments[when] = (said or "", value)
    total = sum(map(len, cells.values()))
    kept = {key: list(facts.values()) for key, facts in cells.items()}
    share = _share([len(facts) for facts in kept.values()], entries)
    texts = _Texts()
    embedded: list[list[Any]] = []
    left_out, room = 0, prompts
    for number, (key, facts) in enumerate(kept.items()):
        names = list(cells[key])
        for name, of_fact in zip(names[:share], facts[:share], strict=True):
            main, others = _main(list(of_fact.values()))
            shown = others[:room]
            room -= len(shown)
            left_out += len(others) - len(shown)
            embedded.append(_entry(texts, number, name, main, shown))
    payload = {
        "strings": texts.found,
        "cells": [
            [texts.place(method), seed, texts.place(model), texts.place(data)] for _, method, seed, model, data in kept
        ],
        "outcomes": list(OUTCOMES),
        "entries": embedded,
    }
    return Answers(payload, total, total - len(embedded), left_out)


class _Texts:
    """Texts by their index in a list without duplicates."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str | None) -> int:
        """-1 for no text."""
        if text is None:
            return -1
        if text not in self._places:
            self._places[text] = len(self.found)
            self.found.append(text)
        return self._places[text]


def _entry(texts: _Texts, cell: int, fact: str, main: _Asked, others: Sequence[_Asked]) -> list[Any]:
    return [
        cell,
        texts.place(fact),
        texts.place(entry_of(main.metric).heading),
        texts.place(main.prompt),
        texts.place(main.expected),
        OUTCOMES.index(outcome(main.metric, {when: value for when, (_, value) in main.moments.items()})),
        _moments(texts, main),
        [
            [*map(texts.place, (entry_of(one.metric).heading, one.prompt, one.expected)), _moments(texts, one)]
            for one in others
        ],
    ]


def _moments(texts: _Texts, asked: _Asked) -> list[Any]:
    return [
        [texts.place(asked.moments[when][0]), _finite(asked.moments[when][1])] if when in asked.moments else None
        for when in _MOMENTS
    ]


def _finite(value: float | None) -> float | None:
    """JSON has no word for what is not finite."""
    return value if value is not None and math.isfinite(value) else None


def outcome(metric: str, values: dict[str, float | None]) -> str:
    """What became of a fact, in one of ``OUTCOMES``: of an edited one whether it was taken and still is, of another
    whether it is still known. Only a value of 1 is a yes.
    """
    known = {when: value == 1 for when, value in values.items() if value is not None}
    if "after" not in known:
        return "not known"
    if metric in _UNTOUCHED:
        names = {(True, True): "kept", (True, False): "lost", (False, False): "never known", (False, True): "gained"}
        return names[known["before"], known["after"]] if "before" in known else "not known"
    if metric not in _EDITED:
        return "not known"
    taken = known.get("right_after", known["after"])
    names = {(True, True): "taken", (True, False): "forgotten", (False, False): "not taken"}
    return names.get((taken, known["after"]), "taken later")


def _main(asked: Sequence[_Asked]) -> tuple[_Asked, list[_Asked]]:
    """The prompt that an entry is about, and the others without what says the same twice: success beside accuracy."""
    ranks = {metric: rank for rank, metric in enumerate((*_EDITED, *_UNTOUCHED))}
    main = min(asked, key=lambda one: ranks.get(one.metric, len(ranks)))
    present = {(one.metric, one.prompt) for one in asked}
    others = []
    for one in asked:
        stem, _, kind = one.metric.rpartition("_")
        twice = kind in ("success", "tokens") and (f"{stem}_accuracy", one.prompt) in present
        if one is not main and not twice:
            others.append(one)
    return main, others


def _share(sizes: Sequence[int], most: int) -> int:
    """How many facts of each cell fit, if each may have as many as the next."""
    low, high = 0, max(sizes, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(size, middle) for size in sizes) <= most:
            low = middle
        else:
            high = middle - 1
    return low


def _lines(path: Path) -> Iterator[tuple[Any, ...]]:
    require("the page's list of facts", "eval", "pyarrow")
    import pyarrow
    import pyarrow.parquet
    from pyarrow import types

    def is_text(kind: pyarrow.DataType) -> bool:
        return bool(
            types.is_string(kind)
            or types.is_large_string(kind)
            or types.is_null(kind)
            or (types.is_dictionary(kind) and is_text(kind.value_type))
        )

    tests = {"seed": types.is_integer, "edits": types.is_integer, "value": types.is_floating}
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            lacking = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if lacking:
                raise InputError(
                    f"{path} lacks the columns {', '.join(lacking)}", remedy=_REMEDY, code="RECORDS_MISSING_COLUMN"
                )
            wrong = [name for name in COLUMNS if not tests.get(name, is_text)(file.schema_arrow.field(name).type)]
            if wrong:
                raise InputError(
                    f"{path} has other types than expected in the columns {', '.join(wrong)}",
                    remedy=_REMEDY,
                    code="RECORDS_WRONG_TYPE",
                )
            for batch in file.iter_batches(columns=list(COLUMNS)):
                yield from zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read as Parquet: {error}", remedy=_REMEDY, code="RECORDS_UNREADABLE"
        ) from error
