"""Facts from JSON, JSON Lines and CSV files and from records, with all faults told at once; and back to files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from errata.errors import Fault, FaultsError, InputError, OutputError
from errata.facts import MOST_FAULTS, Fact, FactSet, clashes, fact_of, limited, record_faults, same_statement
from errata.facts_columns import is_columns, rows_of
from errata.facts_foreign import Tally, converted, is_foreign
from errata.facts_formats import Entry, csv_entries, csv_text, json_entries, jsonl_text
from errata.facts_rules import REQUIRED_FIELDS
from errata.output import is_full, new_file
from errata.reading import file_bytes

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

Check: TypeAlias = Callable[[Sequence[Fact], Sequence[str]], list[Fault]]


def read_facts(path: str | os.PathLike[str], *, last_wins: bool = False, check: Check | None = None) -> FactSet:
    """Read facts from a file.

    Args:
        path: a file with one JSON object a line, or a JSON list of objects (``.jsonl`` or ``.json``), in the fields of
            ``Fact`` or in the form of EasyEdit, KnowEdit, zsRE or CounterFact (see ``facts_foreign``); one object of
            lists side by side, as EasyEdit's editor takes them (see ``facts_columns``); or a table with a header
            (``.csv``), in which lists are JSON in a cell and an empty cell is an absent field.
        last_wins: of facts with the same subject and prompt keep the last.
        check: finds further faults in the facts that can be read, given them and their places; see ``token_faults``.

    Raises:
        InputError: if the path has another suffix, or cannot be read.
        FaultsError: if anything in the file is wrong; tells the first faults (``MOST_FAULTS``), with lines and fields.
    """
    path = Path(path)
    entries_of, _ = _format_of(path)
    try:
        data = file_bytes(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot read the facts {str(path)!r}: {reason}", remedy="Give a file that can be read"
        ) from error
    entries, absent = entries_of(data.removeprefix(_BYTE_ORDER_MARK), str(path))
    return _fact_set(entries, str(path), last_wins=last_wins, absent=absent, check=check, foreign=True)


def facts_from_records(
    records: Iterable[Mapping[str, object]], *, source: str = "records", last_wins: bool = False
) -> FactSet:
    """Make facts of mappings with the fields of a file's records, by the same rules.

    Args:
        records: field -> value. Lists may be lists or tuples, their questions mappings or ``Question``.
        source: where they are from; the faults tell it, with the record's number from 1.
        last_wins: as in ``read_facts``.

    Raises:
        FaultsError: if anything is wrong; tells all of it.
    """
    entries = [Entry(f"{source}, record {number}", record) for number, record in enumerate(records, start=1)]
    return _fact_set(entries, source, last_wins=last_wins)


def write_facts(facts: Iterable[Fact], path: str | os.PathLike[str]) -> None:
    """Write facts so that ``read_facts`` gives them back; the file appears complete or not at all.

    Raises:
        InputError: if the path's suffix is not ``.jsonl``, ``.json`` or ``.csv``, there are no facts, a list is too
            long for a CSV cell, or the file cannot be written.
        FaultsError: if facts clash with each other.
        OutputError: if the disk is full.
    """
    path = Path(path)
    _, text_of = _format_of(path)
    facts = facts if isinstance(facts, FactSet) else FactSet(tuple(facts), source="the facts to write")
    if not facts:
        raise InputError(f"there are no facts to write to {str(path)!r}", remedy="Give at least one fact")
    data = text_of(facts).encode()
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with new_file(path) as temporary:
            temporary.write_bytes(data)
    except (OSError, ValueError, OutputError) as error:
        cause = error.__cause__ if isinstance(error, OutputError) and error.__cause__ is not None else error
        reason = getattr(cause, "strerror", None) or str(cause)
        if isinstance(cause, OSError) and is_full(cause):
            raise OutputError(f"cannot write the facts {str(path)!r}: {reason}", remedy="Make room there") from error
        remedy = "Give a file in a directory that exists and can be written to"
        raise InputError(f"cannot write the facts {str(path)!r}: {reason}", remedy=remedy) from error


def _fact_set(
    entries: Iterable[Entry],
    source: str,
    *,
    last_wins: bool,
    absent: Collection[str] = (),
    check: Check | None = None,
    foreign: bool = False,
) -> FactSet:
    """Validate all entries, name the facts that have no id, and put them together.

    Args:
        absent: required fields of which a table's header has already been told that they are missing.
        foreign: whether records of other tools' forms are converted.
    """
    required = [name for name in REQUIRED_FIELDS if name not in absent]
    faults: list[Fault] = []
    records: list[tuple[int, str, Mapping[str, Any]]] = []
    tally = Tally()
    number = 0
    for number, entry in enumerate(_rows(entries) if foreign else entries, start=1):
        if len(faults) > MOST_FAULTS:
            break
        record, found = entry.value, list(entry.faults)
        if foreign and not found and isinstance(record, Mapping) and is_foreign(record):
            made = converted(record, entry.place)
            tally.add(record, made)
            record, found = made.record, made.faults
        record = _with_text_id(record)
        found = found or record_faults(record, entry.place, required=required)
        faults += found
        if not found and not absent and isinstance(record, Mapping):
            records.append((number, entry.place, record))
    if not number:
        faults.append(Fault(source, "there are no facts in it", "Give at least one fact"))

    taken = {record["id"] for _, _, record in records if record.get("id") is not None}
    facts: list[Fact] = []
    places: list[str] = []
    for number, place, record in records:
        facts.append(fact_of({**record, "id": record.get("id") or _free_id(number, taken)}))
        places.append(place)
    kept = _latest(facts) if last_wins else range(len(facts))
    facts, places = [facts[index] for index in kept], [places[index] for index in kept]
    if check is not None:
        faults += check(facts, places)
    if faults:
        # Facts may clash as well; these faults are told with the others, and not one run later.
        faults += clashes(facts, places)
        raise FaultsError(source, limited(faults, source))
    return FactSet(tuple(facts), source, tuple(places), tally.notes())


def _rows(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries, those in EasyEdit's form of lists side by side as their records."""
    for entry in entries:
        if not entry.faults and isinstance(entry.value, Mapping) and is_columns(entry.value):
            yield from rows_of(entry.value, entry.place)
        else:
            yield entry


def _with_text_id(record: object) -> object:
    """The record with a whole number as id made text, as a table would have it."""
    name = record.get("id") if isinstance(record, Mapping) else None
    if isinstance(record, Mapping) and type(name) is int and abs(name) < 2**63:
        return {**record, "id": str(name)}
    return record


def _free_id(number: int, taken: Collection[str]) -> str:
    """``fact-<number>``, or that with more behind it where a record claims this id for itself."""
    name = f"fact-{number}"
    while name in taken:
        name += "-unnamed"
    return name


def _latest(facts: Sequence[Fact]) -> list[int]:
    """The indices that are left when each fact takes the place of an earlier one of the same subject and prompt."""
    latest = {same_statement(fact): index for index, fact in enumerate(facts)}
    return sorted(latest.values())


_EntriesOf = Callable[[bytes, str], tuple[Iterable[Entry], Collection[str]]]
_TextOf = Callable[[FactSet], str]


def _format_of(path: Path) -> tuple[_EntriesOf, _TextOf]:
    formats: dict[str, tuple[_EntriesOf, _TextOf]] = {
        ".jsonl": (json_entries, jsonl_text),
        ".json": (json_entries, jsonl_text),
        ".csv": (csv_entries, csv_text),
    }
    found = formats.get(path.suffix.lower())
    if found is None:
        what = (
            f"facts are JSON or CSV, told by the suffix .jsonl (or .json) or .csv, not {path.suffix!r}: {str(path)!r}"
        )
        raise InputError(what, remedy="Rename or convert the file")
    return found
