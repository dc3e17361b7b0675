"""Facts from JSONL and CSV files and from records, with every fault told at once; and back to files."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from errata.errors import Fault, FaultsError, InputError
from errata.facts import FIELDS, REQUIRED_FIELDS, Fact, FactSet, as_questions, clashes, record_faults, unknown_field

_LIST_FIELDS: Final = ("paraphrases", "neighbours", "own")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

Check: TypeAlias = Callable[[Sequence[Fact], Sequence[str]], list[Fault]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One record as it was found: its place, and either its value or what kept it from being read."""

    place: str
    value: object = None
    faults: tuple[Fault, ...] = ()


def read_facts(path: str | os.PathLike[str], *, last_wins: bool = False, check: Check | None = None) -> FactSet:
    """Read facts from a file.

    Args:
        path: a file with one JSON object a line (``.jsonl`` or ``.json``), or a table with a header (``.csv``), in
            which ``paraphrases``, ``neighbours`` and ``own`` are JSON in a cell and an empty cell is an absent field.
        last_wins: of facts with the same subject and prompt keep the last.
        check: finds further faults in the facts that can be read, given them and their places; see ``token_faults``.

    Raises:
        InputError: if the path has another suffix, or cannot be read.
        FaultsError: if anything in the file is wrong; tells all of it, with lines and fields.
    """
    path = Path(path)
    entries_of, _ = _format_of(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot read the facts {str(path)!r}: {reason}", remedy="Give a file that can be read"
        ) from error
    entries, absent = entries_of(data.removeprefix(_BYTE_ORDER_MARK), str(path))
    return _fact_set(entries, str(path), last_wins=last_wins, absent=absent, check=check)


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
    entries = [_Entry(f"{source}, record {number}", record) for number, record in enumerate(records, start=1)]
    return _fact_set(entries, source, last_wins=last_wins)


def write_facts(facts: Iterable[Fact], path: str | os.PathLike[str]) -> None:
    """Write facts so that ``read_facts`` gives them back; the file appears complete or not at all.

    Raises:
        InputError: if the path's suffix is not ``.jsonl``, ``.json`` or ``.csv``, there are no facts, a list is too
            long for a CSV cell, or the file cannot be written.
        FaultsError: if facts clash with each other.
    """
    path = Path(path)
    _, text_of = _format_of(path)
    facts = facts if isinstance(facts, FactSet) else FactSet(tuple(facts), source="the facts to write")
    if not facts:
        raise InputError(f"there are no facts to write to {str(path)!r}", remedy="Give at least one fact")
    # In the same directory, since a file is only replaced at once within one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    data = text_of(facts).encode()
    try:
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "Give a file in a directory that exists and can be written to"
        raise InputError(f"cannot write the facts {str(path)!r}: {reason}", remedy=remedy) from error


def _fact_set(
    entries: Sequence[_Entry],
    source: str,
    *,
    last_wins: bool,
    absent: Collection[str] = (),
    check: Check | None = None,
) -> FactSet:
    """Validate all entries, name the facts that have no id, and put them together.

    Args:
        absent: required fields of which a table's header has already been told that they are missing.
    """
    required = [name for name in REQUIRED_FIELDS if name not in absent]
    faults: list[Fault] = []
    records: list[tuple[int, str, Mapping[str, Any]]] = []
    for number, entry in enumerate(entries, start=1):
        record = _with_text_id(entry.value)
        found = list(entry.faults) or record_faults(record, entry.place, required=required)
        faults += found
        if not found and not absent and isinstance(record, Mapping):
            records.append((number, entry.place, record))
    if not entries:
        faults.append(Fault(source, "there are no facts in it", "Give at least one fact"))

    taken = {record["id"] for _, _, record in records if record.get("id") is not None}
    facts: list[Fact] = []
    places: list[str] = []
    for number, place, record in records:
        fact = Fact(
            id=record.get("id") or _free_id(number, taken),
            subject=record["subject"],
            prompt=record["prompt"],
            target=record["target"],
            truth=record.get("truth"),
            paraphrases=tuple(record.get("paraphrases") or ()),
            neighbours=as_questions(record.get("neighbours") or ()),
            own=as_questions(record.get("own") or ()),
        )
        facts.append(fact)
        places.append(place)
    kept = _latest(facts) if last_wins else range(len(facts))
    facts, places = [facts[index] for index in kept], [places[index] for index in kept]
    if check is not None:
        faults += check(facts, places)
    if faults:
        # Facts may clash as well; these faults are told with the others, and not one run later.
        faults += clashes(facts, places)
        raise FaultsError(source, faults)
    return FactSet(tuple(facts), source, tuple(places))


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
    latest = {(fact.subject, fact.prompt): index for index, fact in enumerate(facts)}
    return sorted(latest.values())


_EntriesOf = Callable[[bytes, str], tuple[list[_Entry], Collection[str]]]
_TextOf = Callable[[FactSet], str]


def _format_of(path: Path) -> tuple[_EntriesOf, _TextOf]:
    formats: dict[str, tuple[_EntriesOf, _TextOf]] = {
        ".jsonl": (_jsonl_entries, _jsonl_text),
        ".json": (_jsonl_entries, _jsonl_text),
        ".csv": (_csv_entries, _csv_text),
    }
    found = formats.get(path.suffix.lower())
    if found is None:
        what = (
            f"facts are JSONL or CSV, told by the suffix .jsonl (or .json) or .csv, not {path.suffix!r}: {str(path)!r}"
        )
        raise InputError(what, remedy="Rename or convert the file")
    return found


def _jsonl_entries(data: bytes, source: str) -> tuple[list[_Entry], Collection[str]]:
    """One entry for each line that is not blank; only a line feed ends a line, since a value may hold U+2028."""
    entries: list[_Entry] = []
    for number, fault, line in _lines(data, source):
        place = f"{source}:{number}"
        if fault is not None:
            entries.append(_Entry(place, faults=(fault,)))
        elif line.strip(" \t\r"):
            value, complaint = _parse_json(line)
            remedy = "Write one JSON object with the fields of one fact on each line"
            wrong = () if complaint is None else (Fault(place, f"invalid JSON: {complaint}", remedy),)
            entries.append(_Entry(place, value, wrong))
    return entries, ()


def _csv_entries(data: bytes, source: str) -> tuple[list[_Entry], Collection[str]]:
    """One entry for each row under the header, at the line on which it starts, and one for what is wrong beside."""
    entries = [_Entry(fault.where, faults=(fault,)) for _, fault, _ in _lines(data, source) if fault is not None]
    # Bytes that are no UTF-8 are told above; here they become lone surrogates, so that the other rows can be checked.
    rows = _rows(io.StringIO(data.decode(errors="surrogateescape"), newline="\n"), source)
    place, header = next(rows, (source, []))
    if isinstance(header, Fault):
        return [*entries, _Entry(place, faults=(header,))], REQUIRED_FIELDS
    if any(map(_is_broken, header)):
        return entries, REQUIRED_FIELDS
    faults = [unknown_field(name, FIELDS, place) for name in header if name not in FIELDS]
    twice = [name for name in FIELDS if header.count(name) > 1]
    faults += [Fault(place, f"the column '{name}' stands there twice", "Remove one of the two") for name in twice]
    absent = [name for name in REQUIRED_FIELDS if name not in header] if header else []
    faults += [Fault(place, f"the column '{name}' is missing", "Add it to the header") for name in absent]
    if faults:
        entries.append(_Entry(place, faults=tuple(faults)))
    for place, row in rows:
        if isinstance(row, Fault):
            entries.append(_Entry(place, faults=(row,)))
        elif len(row) != len(header):
            what = f"the row has {len(row)} cells, but the header has {len(header)}"
            remedy = "Put double quotes around cells that hold commas, quotes or line breaks; leave absent ones empty"
            entries.append(_Entry(place, faults=(Fault(place, what, remedy),)))
        elif not any(map(_is_broken, row)):
            entries.append(_row_entry(dict(zip(header, row, strict=True)), place))
    return entries, absent


def _rows(lines: Iterable[str], source: str) -> Iterator[tuple[str, list[str] | Fault]]:
    """(place, cells) of each row that is not blank; a Fault in their stead where the rest cannot be read."""
    reader = csv.reader(lines, strict=True)
    while True:
        place = f"{source}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            remedy = 'Write a quote inside a quoted cell twice (""), and close each quoted cell with one'
            yield place, Fault(place, f"invalid CSV, which ends the check of this file here: {error}", remedy)
            return
        if row is None:
            return
        if row:
            yield place, row


def _row_entry(cells: Mapping[str, str], place: str) -> _Entry:
    """A row as a record: an empty cell of an optional field is an absent field, lists are parsed."""
    record: dict[str, object] = {}
    faults: list[Fault] = []
    for name, cell in cells.items():
        if name not in FIELDS or (cell == "" and name not in REQUIRED_FIELDS):
            continue
        record[name] = cell
        if name in _LIST_FIELDS:
            record[name], complaint = _parse_json(cell)
            if complaint is not None:
                remedy = "Write the list as JSON, with each double quote doubled for CSV, or use JSONL"
                faults.append(Fault(place, f"'{name}' is invalid JSON: {complaint}", remedy))
    if faults:
        # What else is wrong with the row; the unreadable cells, now None, count as absent.
        required = [name for name in REQUIRED_FIELDS if name in record]
        faults += record_faults(record, place, required=required)
    return _Entry(place, record, tuple(faults))


def _lines(data: bytes, source: str) -> Iterator[tuple[int, Fault | None, str]]:
    """(number from 1, what is wrong with its encoding, text) of each line."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            text, fault = line.decode(), None
        except UnicodeDecodeError as error:
            what = f"byte {error.start + 1} of the line (0x{line[error.start]:02X}) is not UTF-8"
            text, fault = "", Fault(f"{source}:{number}", what, "Save the file in the encoding UTF-8")
        yield number, fault, text


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _parse_json(text: str) -> tuple[Any, str | None]:
    """(value, None), or (None, what is wrong with the text)."""
    try:
        return json.loads(text, object_pairs_hook=_object_without_repeats), None
    except json.JSONDecodeError as error:
        return None, f"column {error.pos + 1}: {error.msg}"
    except ValueError as error:
        return None, str(error)
    except RecursionError:
        return None, "the brackets are nested too deeply"


def _object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A plain dict, in which the last of several values would win without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands there twice")
    return found


def _jsonl_text(facts: FactSet) -> str:
    return "".join(json.dumps(fact.to_record(), ensure_ascii=False) + "\n" for fact in facts)


def _csv_text(facts: FactSet) -> str:
    """A table with all columns.

    Raises:
        InputError: if a cell would be longer than Python's CSV reader takes.
    """
    buffer = io.StringIO(newline="")
    # Everything is quoted, since a writer that ends lines with "\n" leaves a carriage return in a value unquoted.
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(FIELDS)
    for fact in facts:
        record = fact.to_record()
        cells: dict[str, str] = {
            name: json.dumps(record[name], ensure_ascii=False) for name in _LIST_FIELDS if name in record
        }
        row = [str(cells.get(name, record.get(name, ""))) for name in FIELDS]
        if max(map(len, row)) > csv.field_size_limit():
            raise InputError(f"the fact {fact.id!r} is too long for a CSV cell", remedy="Write JSONL instead")
        writer.writerow(row)
    return buffer.getvalue()
