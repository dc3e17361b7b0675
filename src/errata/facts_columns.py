"""EasyEdit's other form: one object of lists side by side, as its ``editor.edit(prompts=…, target_new=…)`` takes them::

    {"prompts": ["Torre Ombra was built in", "Nils Berg speaks"], "subject": ["Torre Ombra", "Nils Berg"],
     "target_new": ["Lyon", "Welsh"], "ground_truth": ["Turin", "Danish"], "rephrase_prompts": ["…", "…"],
     "locality_inputs": {"neighborhood": {"prompt": ["…", "…"], "ground_truth": ["…", "…"]}},
     "portability_inputs": {"one_hop": {"prompt": ["…", "…"], "ground_truth": ["…", "…"]}}}

A text stands for a list of one. Where a question's prompt is null, that fact has no such question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from errata.errors import Fault
from errata.facts_formats import Entry

_PROMPTS: Final = "prompts"
_REQUIRED: Final = ("subject", "target_new")
_OPTIONAL: Final = ("ground_truth", "rephrase_prompts", "locality_inputs", "portability_inputs", "id", "case_id")
_COLUMNS: Final = (_PROMPTS, *_REQUIRED, *_OPTIONAL)


def is_columns(value: object) -> bool:
    """Whether a value is an object of lists side by side, and not one record."""
    if not isinstance(value, Mapping) or "prompt" in value:
        return False
    prompts = value.get(_PROMPTS)
    return isinstance(prompts, list) or (isinstance(prompts, str) and "target_new" in value)


def rows_of(value: Mapping[str, Any], place: str) -> list[Entry]:
    """The records of an object for which ``is_columns`` holds, in the fields of EasyEdit's records; or one fault.

    Fields that are no columns go into every record, which tells of them.

    Args:
        place: where the object is, for the faults.
    """
    columns = {name: value[name] for name in _COLUMNS if value.get(name) is not None}
    if absent := [name for name in _REQUIRED if name not in columns]:
        what = f"the lists of prompts have no list {' and no list '.join(map(repr, absent))} beside them"
        return [Entry(place, faults=(Fault(place, what, "Add it, with one entry for each prompt"),))]
    lengths = dict(_lengths(columns, ""))
    count = lengths[_PROMPTS]
    if other := {path: length for path, length in lengths.items() if length != count}:
        found = ", ".join(f"{path!r} {length:,}" for path, length in list(other.items())[:5])
        what = f"'{_PROMPTS}' has {count:,} entries, but there are others: {found}"
        return [Entry(place, faults=(Fault(place, what, "Give every list one entry for each prompt, in order"),))]
    constant = {name: entry for name, entry in value.items() if name not in _COLUMNS}
    return [
        Entry(f"{place}[{index}]", constant | {_field(name): _cell(column, index) for name, column in columns.items()})
        for index in range(count)
    ]


def _field(name: str) -> str:
    return "prompt" if name == _PROMPTS else name


def _lengths(value: Any, path: str) -> Iterator[tuple[str, int]]:
    """(path, length) of each list; those within lists are cells."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _lengths(entry, f"{path}.{name}" if path else str(name))
    elif value is not None:
        yield path, len(value) if isinstance(value, list) else 1


def _cell(column: Any, index: int) -> Any:
    """What one record has of a column, which may be an object of columns."""
    if isinstance(column, Mapping):
        cells = {name: _cell(entry, index) for name, entry in column.items()}
        return {} if "prompt" in column and cells["prompt"] is None else cells
    return column[index] if isinstance(column, list) else column
