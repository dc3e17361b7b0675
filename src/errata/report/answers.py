"""The searchable list of a benchmark's facts, with the model's answers before, right after and after the run.

There is one entry for each cell of the grid and each fact, with all of its prompts; each text is stored once and
referenced by index.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from errata.errors import InputError
from errata.results.metrics import entry_of
from errata.utils.optional import require

ENTRIES_EMBEDDED: Final = 20_000
PROMPTS_EMBEDDED: Final = 60_000  # in addition to the entries' own prompts
BYTES_EMBEDDED: Final = 700_000  # of all of them; keeps the page below 1 MB
COLUMNS: Final = (
    "cell", "model", "data", "method", "seed", "when", "edits", "fact", "metric", "prompt", "expected", "value", "said",
)  # fmt: skip
OUTCOMES: Final = (
    "recalled", "not recalled", "forgotten", "recalled later", "kept", "lost", "never known", "gained", "not known",
)  # fmt: skip
# The metrics that decide whether an edited fact is recalled, the most direct one first.
_EDITED: Final = (
    "efficacy_accuracy", "free_efficacy_contained", "free_efficacy_exact", "efficacy_tokens", "efficacy_success",
)  # fmt: skip
_UNTOUCHED: Final = ("untouched_accuracy", "unrelated_accuracy")
_MOMENTS: Final = ("before", "right_after", "after")
_REMEDY: Final = "Run the benchmark again in this directory, which rewrites it from the finished cells"


@dataclass(frozen=True, slots=True)
class Answers:
    """The data that the page embeds.

    Attributes:
        payload: for JSON. ``strings``; ``cells``: [method, seed, model, data] each as indices into ``strings``;
            ``entries``: [cell, fact, metric, prompt, expected, outcome, three moments, other prompts], where a moment
            is [said, value] or null, and another prompt [metric, prompt, expected, three moments]. Metrics are
            given by their headings.
        entries: entries in the run.
        entries_left_out: entries omitted from the page.
        prompts_left_out: further prompts of embedded entries that are omitted.
    """

    payload: dict[str, Any]
    entries: int
    entries_left_out: int
    prompts_left_out: int


@dataclass(slots=True)
class _AskedPrompt:
    """A prompt of one metric, with the answer and value at each moment."""

    metric: str
    prompt: str
    expected: str | None
    moments: dict[str, tuple[str, float | None]] = field(default_factory=dict)


def read_answers(
    path: Path, *, entries: int = ENTRIES_EMBEDDED, prompts: int = PROMPTS_EMBEDDED, size: int = BYTES_EMBEDDED
) -> Answers:
    """Read ``records.parquet`` for the page.

    If there are too many facts, each cell keeps its first n facts.

    Args:
        entries: at most so many.
        prompts: at most so many besides the entries' own.
        size: bytes of JSON at most.

    Raises:
        InputError: if it cannot be read, or lacks a column.
        MissingExtraError: without pyarrow.
    """
    cells: _Cells = {}
    for cell, model, data, method, seed, when, _, fact, metric, prompt, expected, value, said in _lines(path):
        if when in _MOMENTS:
            of_cell = cells.setdefault((cell, method, seed, model, data), {})
            asked = of_cell.setdefault(fact, {}).setdefault((metric, prompt), _AskedPrompt(metric, prompt, expected))
            asked.moments[when] = (said or "", value)
    found = _embedded(cells, entries, prompts)
    while (bytes_of := len(json.dumps(found.payload, separators=(",", ":")))) > size and entries > len(cells):
        # Proportionally fewer of both, and a little less, since texts are shared.
        share = 0.9 * size / bytes_of
        shown = found.entries - found.entries_left_out
        entries, prompts = int(share * min(entries, shown)), int(share * prompts)
        found = _embedded(cells, entries, prompts)
    return found


_Cells: TypeAlias = dict[tuple[str, str, int, str, str], dict[str, dict[tuple[str, str], _AskedPrompt]]]
"""(cell, method, seed, model, data) -> fact -> (metric, prompt) -> its answers."""


def _embedded(cells: _Cells, entries: int, prompts: int) -> Answers:
    total = sum(map(len, cells.values()))
    kept = {key: list(facts.values()) for key, facts in cells.items()}
    shown_facts = _facts_per_cell([len(facts) for facts in kept.values()], entries)
    texts = _StringTable()
    embedded: list[list[Any]] = []
    left_out, prompts_left = 0, prompts
    for number, (key, facts) in enumerate(kept.items()):
        names = list(cells[key])
        for name, of_fact in zip(names[:shown_facts], facts[:shown_facts], strict=True):
            main, others = _main_prompt(list(of_fact.values()))
            shown = others[:prompts_left]
            prompts_left -= len(shown)
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


class _StringTable:
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


def _entry(texts: _StringTable, cell: int, fact: str, main: _AskedPrompt, others: Sequence[_AskedPrompt]) -> list[Any]:
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


def _moments(texts: _StringTable, asked: _AskedPrompt) -> list[Any]:
    return [
        [texts.place(asked.moments[when][0]), _finite(asked.moments[when][1])] if when in asked.moments else None
        for when in _MOMENTS
    ]


def _finite(value: float | None) -> float | None:
    """None for NaN and infinity, which JSON cannot represent."""
    return value if value is not None and math.isfinite(value) else None


def outcome(metric: str, values: dict[str, float | None]) -> str:
    """One of ``OUTCOMES``: for an edited fact whether it is recalled, for others whether they are still known.

    Only the value 1 counts as correct.
    """
    known = {when: value == 1 for when, value in values.items() if value is not None}
    if "after" not in known:
        return "not known"
    if metric in _UNTOUCHED:
        names = {(True, True): "kept", (True, False): "lost", (False, False): "never known", (False, True): "gained"}
        return names[known["before"], known["after"]] if "before" in known else "not known"
    if metric not in _EDITED:
        return "not known"
    at_first = known.get("right_after", known["after"])
    names = {(True, True): "recalled", (True, False): "forgotten", (False, False): "not recalled"}
    return names.get((at_first, known["after"]), "recalled later")


def _main_prompt(asked: Sequence[_AskedPrompt]) -> tuple[_AskedPrompt, list[_AskedPrompt]]:
    """The main prompt of an entry, and its other prompts without duplicates (success next to accuracy)."""
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


def _facts_per_cell(sizes: Sequence[int], most: int) -> int:
    """The largest number of facts per cell, equal for all cells, with which at most ``most`` facts are shown."""
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
                    f"{path} has columns of unexpected types: {', '.join(wrong)}",
                    remedy=_REMEDY,
                    code="RECORDS_WRONG_TYPE",
                )
            for batch in file.iter_batches(columns=list(COLUMNS)):
                yield from zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(
            f"{path} cannot be read as Parquet: {error}", remedy=_REMEDY, code="RECORDS_UNREADABLE"
        ) from error
