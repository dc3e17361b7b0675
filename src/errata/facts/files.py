"""Facts from JSON, JSON Lines and CSV files and from records, and back to files. All errors are reported together."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from errata.errors import Fault, FaultsError, InputError, OutputError
from errata.facts.easyedit import Conversion, Conversions, column_records, has_columns, is_convertible
from errata.facts.fact import (
    ALIASES,
    FIELDS,
    MOST_FAULTS,
    QUESTION_LISTS,
    REQUIRED_FIELDS,
    TEXT_LISTS,
    Fact,
    FactSet,
    clashes,
    limited,
    record_faults,
    same_statement,
    unknown_field,
)
from errata.utils.files import file_bytes, is_full, new_file
from errata.utils.json_lists import list_values, unique_fields

# JSON-encoded in CSV cells; the joiner too, since it may be "", and an empty cell is an absent field.
_JSON_FIELDS: Final = (*TEXT_LISTS, *QUESTION_LISTS, "joiner")
_COLUMNS: Final = (*FIELDS, *ALIASES)
# What errata writes into files of facts besides facts: a line about the file, and measurements of a fact. Not read.
HEADER: Final = "header"
ANNOTATIONS: Final = ("hard",)
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r]")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

Check: TypeAlias = Callable[[Sequence[Fact], Sequence[str]], list[Fault]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One record of a source: its place, and either its value or why it could not be read."""

    place: str
    value: object = None
    faults: tuple[Fault, ...] = ()


# (entries, required columns that a table's header lacks)
_Entries: TypeAlias = tuple[Iterable[_Entry], Collection[str]]


def read_facts(path: str | os.PathLike[str], *, last_wins: bool = False, check: Check | None = None) -> FactSet:
    """Read facts from a file.

    Args:
        path: JSON Lines or a JSON list of objects (``.jsonl`` or ``.json``), with the fields of ``Fact`` or in a format
            of EasyEdit, KnowEdit, zsRE or CounterFact (see ``facts.easyedit``); or a table with a header (``.csv``),
            in which list fields are JSON-encoded and an empty cell is an absent field.
        last_wins: of facts with the same subject and prompt use the last.
        check: finds further faults in the valid facts, given them and their places; see ``token_faults``.

    Raises:
        InputError: if the path has another suffix, or cannot be read.
        FaultsError: all errors in the file (the first ``MOST_FAULTS``), with lines and fields.
    """
    path = Path(path)
    entries_of, _ = _format_of(path)
    try:
        data = file_bytes(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = f"cannot read the facts {str(path)!r}: {reason}"
        raise InputError(what, remedy="Give a readable file", code="FACTS_UNREADABLE") from error
    entries, absent = entries_of(data.removeprefix(_BYTE_ORDER_MARK), str(path))
    return _fact_set(entries, str(path), last_wins=last_wins, absent=absent, check=check, convertible=True)


def facts_from_records(
    records: Iterable[Mapping[str, object]], *, source: str = "records", last_wins: bool = False
) -> FactSet:
    """Make facts of mappings with the fields of ``Fact``, by the rules of files.

    Args:
        records: field -> value. Lists may be lists or tuples, their questions mappings or ``Question``.
        source: where they come from, for messages; the record's number from 1 is added.
        last_wins: as in ``read_facts``.

    Raises:
        FaultsError: all errors.
    """
    entries = [_Entry(f"{source}, record {number}", record) for number, record in enumerate(records, start=1)]
    return _fact_set(entries, source, last_wins=last_wins)


def write_facts(facts: Iterable[Fact], path: str | os.PathLike[str]) -> None:
    """Write facts so that ``read_facts`` returns them; the file is written completely or not at all.

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
        what = f"there are no facts to write to {str(path)!r}"
        raise InputError(what, remedy="Give at least one fact", code="FACTS_EMPTY")
    data = text_of(facts).encode()
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with new_file(path) as temporary:
            temporary.write_bytes(data)
    except (OSError, ValueError, OutputError) as error:
        cause = error.__cause__ if isinstance(error, OutputError) and error.__cause__ is not None else error
        what = f"cannot write the facts {str(path)!r}: {getattr(cause, 'strerror', None) or cause}"
        if isinstance(cause, OSError) and is_full(cause):
            raise OutputError(what, remedy="Free disk space", code="DISK_FULL") from error
        raise InputError(what, remedy="Give a file in a writable directory", code="FACTS_NOT_WRITABLE") from error


def escaped(text: str) -> str:
    """A text as a CSV cell that no spreadsheet takes for a formula: one that begins like a formula gets a ``'`` prefix.

    See https://owasp.org/www-community/attacks/CSV_Injection. Texts that begin with such a ``'`` themselves get one
    more, so that ``unescaped`` restores every text.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def unescaped(cell: str) -> str:
    """The text that ``escaped`` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def has_formulas(facts: Iterable[Fact]) -> bool:
    """Whether ``escaped`` changes any text of facts."""
    return any(
        isinstance(value, str) and escaped(value) != value for fact in facts for value in fact.to_entry().values()
    )


def _fact_set(
    entries: Iterable[_Entry],
    source: str,
    *,
    last_wins: bool,
    absent: Collection[str] = (),
    check: Check | None = None,
    convertible: bool = False,
) -> FactSet:
    """Validate all entries, assign missing ids, and build the set.

    Args:
        absent: required fields that a table's header lacks, which was already reported.
        convertible: whether records in other tools' formats are converted.
    """
    required = [name for name in REQUIRED_FIELDS if name not in absent]
    faults: list[Fault] = []
    records: list[tuple[int, str, Mapping[str, Any]]] = []
    conversions = Conversions()
    number = 0
    for number, entry in enumerate(_column_entries(entries) if convertible else entries, start=1):
        if len(faults) > MOST_FAULTS:
            break
        record, found = entry.value, list(entry.faults)
        if convertible and not found and isinstance(record, Mapping) and is_convertible(record):
            converted = Conversion(record, entry.place)
            conversions.add(record, converted)
            record, found = converted.record, converted.faults
        record = _with_text_id(_without_annotations(record))
        found = found or record_faults(record, entry.place, required=required)
        faults += found
        if not found and not absent and isinstance(record, Mapping):
            records.append((number, entry.place, record))
    if not number:
        faults.append(Fault(source, "there are no facts in it", "Give at least one fact", code="FACTS_EMPTY"))

    taken = {record["id"] for _, _, record in records if record.get("id") is not None}
    facts = [Fact(**{**record, "id": record.get("id") or _free_id(number, taken)}) for number, _, record in records]
    places = [place for _, place, _ in records]
    if last_wins:
        indices = sorted({same_statement(fact): index for index, fact in enumerate(facts)}.values())
        facts, places = [facts[index] for index in indices], [places[index] for index in indices]
    if check is not None:
        faults += check(facts, places)
    if faults:
        faults += clashes(facts, places)  # reported now, not after the other faults are corrected
        raise FaultsError(source, limited(faults, source))
    return FactSet(tuple(facts), source, tuple(places), conversions.notes())


def _column_entries(entries: Iterable[_Entry]) -> Iterator[_Entry]:
    """The entries; objects of parallel lists (EasyEdit) are split into records."""
    for entry in entries:
        if entry.faults or not isinstance(entry.value, Mapping) or not has_columns(entry.value):
            yield entry
            continue
        records, fault = column_records(entry.value, entry.place)
        if fault is not None:
            yield _Entry(entry.place, faults=(fault,))
        for index, record in enumerate(records):
            yield _Entry(f"{entry.place}[{index}]", record)


def _without_annotations(record: object) -> object:
    if isinstance(record, Mapping) and any(name in record for name in ANNOTATIONS):
        return {name: value for name, value in record.items() if name not in ANNOTATIONS}
    return record


def _with_text_id(record: object) -> object:
    """The record, with an integer id as text, as in a table."""
    name = record.get("id") if isinstance(record, Mapping) else None
    if isinstance(record, Mapping) and type(name) is int and abs(name) < 2**63:
        return {**record, "id": str(name)}
    return record


def _free_id(number: int, taken: Collection[str]) -> str:
    name = f"fact-{number}"
    while name in taken:
        name += "-unnamed"
    return name


def _json_entries(data: bytes, source: str) -> _Entries:
    """The records of a JSON list, one object over several lines, or one object per non-blank line."""
    if re.match(rb"\s*\[", data):
        return _list_entries(data, source), ()
    if (whole := _one_object(data)) is not None:
        return [_whole_entry(whole, source)], ()
    return _line_entries(data, source), ()


def _list_entries(data: bytes, source: str) -> Iterator[_Entry]:
    if (fault := next((fault for _, fault, _ in _lines(data, source) if fault is not None), None)) is not None:
        yield _Entry(fault.where, faults=(fault,))
        return
    remedy = "The file may be truncated or damaged: get it again, or correct it"
    for index, value, fault in list_values(data.decode(), source, remedy=remedy):
        place = f"{source}[{index}]"
        yield _Entry(place, value) if fault is None else _Entry(place, faults=(fault,))


def _one_object(data: bytes) -> dict[str, Any] | None:
    """The object that the whole file is, over several lines; None if it is not one object."""
    first, _, rest = data.strip().partition(b"\n")
    if not first.startswith(b"{") or not rest:
        return None
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        try:
            value = json.loads(data, object_pairs_hook=unique_fields)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None
    return None


def _whole_entry(value: dict[str, Any], source: str) -> _Entry:
    lists = [name for name, entry in value.items() if isinstance(entry, list) and entry and isinstance(entry[0], dict)]
    if REQUIRED_FIELDS[0] not in value and lists:
        what = f"expected a list of records, got one object with lists under {', '.join(map(repr, lists[:3]))}"
        fault = Fault(source, what, "Save one of these lists as the whole file", code="FACTS_NESTED_LIST")
        return _Entry(source, faults=(fault,))
    return _Entry(source, value)


def _line_entries(data: bytes, source: str) -> Iterator[_Entry]:
    """One entry per non-blank line. Only a line feed ends a line, since a value may contain U+2028."""
    for number, fault, line in _lines(data, source):
        place = f"{source}:{number}"
        if fault is not None:
            yield _Entry(place, faults=(fault,))
        elif line.strip(" \t\r"):
            value, reason = _parse_json(line)
            if isinstance(value, dict) and list(value) == [HEADER]:
                continue
            remedy = "Write one JSON object with the fields of one fact per line"
            yield _Entry(place, value, () if reason is None else (_json_fault(place, "", reason, remedy),))


def _csv_entries(data: bytes, source: str) -> _Entries:
    """One entry per row, at the line where it starts, and one for each other error."""
    broken = (_Entry(fault.where, faults=(fault,)) for _, fault, _ in _lines(data, source) if fault is not None)
    entries = list(itertools.islice(broken, MOST_FAULTS + 1))
    # Invalid UTF-8 is reported above; here its bytes become lone surrogates, so that the other rows can be checked.
    rows = _csv_rows(io.StringIO(data.decode(errors="surrogateescape"), newline="\n"), source)
    place, header = next(rows, (source, []))
    if isinstance(header, Fault):
        return [*entries, _Entry(place, faults=(header,))], REQUIRED_FIELDS
    if any(map(_has_surrogates, header)):
        return entries, REQUIRED_FIELDS
    if len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), None)):
        what = f"the columns are separated by {separator!r}"
        fault = Fault(place, what, "Separate them by commas", code="CSV_SEPARATOR")
        return [_Entry(place, faults=(fault,))], REQUIRED_FIELDS
    faults = [unknown_field(name, FIELDS, place) for name in header if name not in _COLUMNS]
    for name in _COLUMNS:
        if header.count(name) > 1:
            faults.append(Fault(place, f"duplicate column '{name}'", "Remove one", code="FACT_DUPLICATE_FIELD"))
    absent = [name for name in REQUIRED_FIELDS if name not in header] if header else []
    for name in absent:
        what = f"the column '{name}' is missing"
        faults.append(Fault(place, what, "Add it to the header", code="FACT_MISSING_FIELD"))
    if faults:
        entries.append(_Entry(place, faults=tuple(faults)))
    return itertools.chain(entries, _row_entries(rows, header)), absent


def _csv_rows(lines: Iterable[str], source: str) -> Iterator[tuple[str, list[str] | Fault]]:
    """(place, cells) of each row that is not blank; (place, fault) where the rest cannot be read."""
    reader = csv.reader(lines, strict=True)
    while True:
        place = f"{source}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            what = f"invalid CSV; the rest of the file was not checked: {error}"
            remedy = 'Double a quote inside a quoted cell (""), and close each quoted cell'
            code = "CSV_INVALID"
            if "field larger than" in str(error):
                code = "CSV_CELL_TOO_LONG"
                limit = f"{csv.field_size_limit():,}"
                what = f"a cell has more than {limit} characters; the rest of the file was not checked"
                remedy = "Use JSON Lines (.jsonl) for such facts; or close an open quote"
            yield place, Fault(place, what, remedy, code=code)
            return
        if row is None:
            return
        if row:
            yield place, row


def _row_entries(rows: Iterable[tuple[str, list[str] | Fault]], header: Sequence[str]) -> Iterator[_Entry]:
    for place, row in rows:
        if isinstance(row, Fault):
            yield _Entry(place, faults=(row,))
        elif len(row) != len(header):
            what = f"the row has {len(row)} cells, but the header has {len(header)}"
            remedy = "Put double quotes around cells with commas, quotes or line breaks; leave absent ones empty"
            yield _Entry(place, faults=(Fault(place, what, remedy, code="CSV_ROW_LENGTH"),))
        elif not any(map(_has_surrogates, row)):
            yield _row_entry(dict(zip(header, row, strict=True)), place)


def _row_entry(cells: Mapping[str, str], place: str) -> _Entry:
    """A row as a record: an empty cell of an optional field is an absent field, JSON cells are parsed."""
    record: dict[str, object] = {}
    faults: list[Fault] = []
    for name, cell in cells.items():
        if name not in _COLUMNS or (cell == "" and name not in REQUIRED_FIELDS):
            continue
        record[name] = unescaped(cell)
        if name in _JSON_FIELDS:
            record[name], reason = _parse_json(cell)
            if reason is not None:
                remedy = "Write it as JSON, with each double quote doubled for CSV, or use JSONL"
                faults.append(_json_fault(place, f"'{name}' is ", reason, remedy))
    if faults:
        # Other errors of the row; the invalid cells, now None, count as absent.
        required = [name for name in REQUIRED_FIELDS if name in record]
        faults += record_faults(record, place, required=required)
    return _Entry(place, record, tuple(faults))


def _lines(data: bytes, source: str) -> Iterator[tuple[int, Fault | None, str]]:
    """(number from 1, fault of its encoding, text) of each line."""
    for number, line in enumerate(io.BytesIO(data), start=1):
        line = line.removesuffix(b"\n")
        try:
            text, fault = line.decode(), None
        except UnicodeDecodeError as error:
            what = f"byte {error.start + 1} of the line (0x{line[error.start]:02X}) is not UTF-8"
            text, fault = "", Fault(f"{source}:{number}", what, "Save the file as UTF-8", code="ENCODING_INVALID")
        yield number, fault, text


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _parse_json(text: str) -> tuple[Any, str | None]:
    """(value, None), or (None, reason)."""
    try:
        return json.loads(text, object_pairs_hook=unique_fields), None
    except json.JSONDecodeError as error:
        return None, f"column {error.pos + 1}: {error.msg}"
    except ValueError as error:
        return None, str(error)
    except RecursionError:
        return None, "brackets are nested too deeply"


def _json_fault(place: str, field: str, reason: str, remedy: str) -> Fault:
    code = "FACT_DUPLICATE_FIELD" if reason.startswith("duplicate") else "JSON_INVALID"
    return Fault(place, f"{field}invalid JSON: {reason}", remedy, code=code)


def _jsonl_text(facts: FactSet) -> str:
    return "".join(json.dumps(fact.to_entry(), ensure_ascii=False) + "\n" for fact in facts)


def _csv_text(facts: FactSet) -> str:
    """A table with all columns, ``escaped``.

    Raises:
        InputError: if a cell would be longer than Python's CSV reader accepts.
    """
    buffer = io.StringIO(newline="")
    # QUOTE_ALL, since a writer that ends lines with "\n" leaves a carriage return in a value unquoted.
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(FIELDS)
    for fact in facts:
        record = fact.to_entry()
        for name in _JSON_FIELDS:
            if name in record:
                record[name] = json.dumps(record[name], ensure_ascii=False)
        row = [escaped(str(record.get(name, ""))) for name in FIELDS]
        if max(map(len, row)) > csv.field_size_limit():
            what = f"the fact {fact.id!r} is too long for a CSV cell"
            raise InputError(what, remedy="Write JSONL instead", code="CSV_CELL_TOO_LONG")
        writer.writerow(row)
    return buffer.getvalue()


def _format_of(path: Path) -> tuple[Callable[[bytes, str], _Entries], Callable[[FactSet], str]]:
    """(reader, writer) of a path's format."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        return _json_entries, _jsonl_text
    if suffix == ".csv":
        return _csv_entries, _csv_text
    if path.is_dir():
        remedy = "Give a file that ends in .jsonl, .json or .csv"
        raise InputError(f"{path} is a directory, expected a file of facts", remedy=remedy, code="FACTS_UNKNOWN_FORMAT")
    what = f"a file of facts ends in .jsonl, .json or .csv, not {path.suffix!r}: {str(path)!r}"
    raise InputError(what, remedy="Rename or convert the file", code="FACTS_UNKNOWN_FORMAT")
