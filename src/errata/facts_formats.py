"""The forms of a file of facts, JSON Lines, a JSON list and CSV: from bytes to records with their places and faults,
and back.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from errata.errors import Fault, InputError
from errata.facts import FIELDS, MOST_FAULTS, Fact, FactSet, record_faults
from errata.facts_json import list_values, object_without_repeats
from errata.facts_rules import ALIASES, QUESTION_LISTS, REQUIRED_FIELDS, TEXT_LISTS, unknown_field

_JSON_FIELDS: Final = (*TEXT_LISTS, *QUESTION_LISTS, "joiner")  # the empty joiner is "": an empty cell is no joiner
_COLUMNS: Final = (*FIELDS, *ALIASES)
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as it was found: its place, and either its value or what kept it from being read."""

    place: str
    value: object = None
    faults: tuple[Fault, ...] = ()


def json_entries(data: bytes, source: str) -> tuple[Iterable[Entry], Collection[str]]:
    """(entries, ()): of a JSON list its records, of JSON Lines one entry for each line that is not blank."""
    if re.match(rb"\s*\[", data):
        return _list_entries(data, source), ()
    if (whole := _one_object(data)) is not None:
        return [_whole_entry(whole, source)], ()
    return _line_entries(data, source), ()


def _list_entries(data: bytes, source: str) -> Iterator[Entry]:
    """The records of a list; what is wrong behind one that breaks cannot be known."""
    if (fault := next((fault for _, fault, _ in _lines(data, source) if fault is not None), None)) is not None:
        yield Entry(fault.where, faults=(fault,))
        return
    for index, value, fault in list_values(data.decode(), source):
        place = f"{source}[{index}]"
        yield Entry(place, value) if fault is None else Entry(place, faults=(fault,))


def _one_object(data: bytes) -> dict[str, Any] | None:
    """The object that a file is as a whole, over several lines; None if it is none."""
    first, _, rest = data.strip().partition(b"\n")
    if not first.startswith(b"{") or not rest:
        return None
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        try:
            value = json.loads(data, object_pairs_hook=object_without_repeats)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None
    return None


def _whole_entry(value: dict[str, Any], source: str) -> Entry:
    """One record; or, where the records are a list within an object, what to do about that."""
    lists = [name for name, entry in value.items() if isinstance(entry, list) and entry and isinstance(entry[0], dict)]
    if REQUIRED_FIELDS[0] not in value and lists:
        what = f"the file is one object, with lists of records as {', '.join(map(repr, lists[:3]))}"
        return Entry(source, faults=(Fault(source, what, "Write one of these lists alone into the file"),))
    return Entry(source, value)


def _line_entries(data: bytes, source: str) -> Iterator[Entry]:
    """One entry for each line that is not blank. Only a line feed ends a line, since a value may hold U+2028."""
    for number, fault, line in _lines(data, source):
        place = f"{source}:{number}"
        if fault is not None:
            yield Entry(place, faults=(fault,))
        elif line.strip(" \t\r"):
            value, complaint = _parse_json(line)
            remedy = "Write one JSON object with the fields of one fact on each line"
            wrong = () if complaint is None else (Fault(place, f"invalid JSON: {complaint}", remedy),)
            yield Entry(place, value, wrong)


def csv_entries(data: bytes, source: str) -> tuple[Iterable[Entry], Collection[str]]:
    """(entries, required columns that the header lacks).

    One entry for each row under the header, at the line on which it starts, and one for what is wrong beside.
    """
    broken = (Entry(fault.where, faults=(fault,)) for _, fault, _ in _lines(data, source) if fault is not None)
    entries = list(itertools.islice(broken, MOST_FAULTS + 1))
    # Bytes that are no UTF-8 are told above; here they become lone surrogates, so that the other rows can be checked.
    rows = _rows(io.StringIO(data.decode(errors="surrogateescape"), newline="\n"), source)
    place, header = next(rows, (source, []))
    if isinstance(header, Fault):
        return [*entries, Entry(place, faults=(header,))], REQUIRED_FIELDS
    if any(map(_is_broken, header)):
        return entries, REQUIRED_FIELDS
    if len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), None)):
        what = f"the columns are separated by {separator!r}"
        return [Entry(place, faults=(Fault(place, what, "Separate them by commas"),))], REQUIRED_FIELDS
    faults = [unknown_field(name, FIELDS, place) for name in header if name not in _COLUMNS]
    twice = [name for name in _COLUMNS if header.count(name) > 1]
    faults += [Fault(place, f"the column '{name}' stands there twice", "Remove one of the two") for name in twice]
    absent = [name for name in REQUIRED_FIELDS if name not in header] if header else []
    faults += [Fault(place, f"the column '{name}' is missing", "Add it to the header") for name in absent]
    if faults:
        entries.append(Entry(place, faults=tuple(faults)))
    return itertools.chain(entries, _row_entries(rows, header)), absent


def _row_entries(rows: Iterable[tuple[str, list[str] | Fault]], header: Sequence[str]) -> Iterator[Entry]:
    for place, row in rows:
        if isinstance(row, Fault):
            yield Entry(place, faults=(row,))
        elif len(row) != len(header):
            what = f"the row has {len(row)} cells, but the header has {len(header)}"
            remedy = "Put double quotes around cells that hold commas, quotes or line breaks; leave absent ones empty"
            yield Entry(place, faults=(Fault(place, what, remedy),))
        elif not any(map(_is_broken, row)):
            yield _row_entry(dict(zip(header, row, strict=True)), place)


def _rows(lines: Iterable[str], source: str) -> Iterator[tuple[str, list[str] | Fault]]:
    """(place, cells) of each row that is not blank; a Fault in their stead where the rest cannot be read."""
    reader = csv.reader(lines, strict=True)
    while True:
        place = f"{source}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            remedy = 'Write a quote inside a quoted cell twice (""), and close each quoted cell with one'
            what = f"invalid CSV, which ends the check of this file here: {error}"
            if "field larger than" in str(error):
                what = f"a cell is longer than {csv.field_size_limit():,} characters, which ends the check here"
                remedy = "Use JSON Lines (.jsonl) for such facts; or a quote is open, then close it"
            yield place, Fault(place, what, remedy)
            return
        if row is None:
            return
        if row:
            yield place, row


def _row_entry(cells: Mapping[str, str], place: str) -> Entry:
    """A row as a record: an empty cell of an optional field is an absent field, lists are parsed."""
    record: dict[str, object] = {}
    faults: list[Fault] = []
    for name, cell in cells.items():
        if name not in _COLUMNS or (cell == "" and name not in REQUIRED_FIELDS):
            continue
        record[name] = unescaped(cell)
        if name in _JSON_FIELDS:
            record[name], complaint = _parse_json(cell)
            if complaint is not None:
                remedy = "Write it as JSON, with each double quote doubled for CSV, or use JSONL"
                faults.append(Fault(place, f"'{name}' is invalid JSON: {complaint}", remedy))
    if faults:
        # What else is wrong with the row; the unreadable cells, now None, count as absent.
        required = [name for name in REQUIRED_FIELDS if name in record]
        faults += record_faults(record, place, required=required)
    return Entry(place, record, tuple(faults))


def _lines(data: bytes, source: str) -> Iterator[tuple[int, Fault | None, str]]:
    """(number from 1, what is wrong with its encoding, text) of each line."""
    for number, line in enumerate(io.BytesIO(data), start=1):
        line = line.removesuffix(b"\n")
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
        return json.loads(text, object_pairs_hook=object_without_repeats), None
    except json.JSONDecodeError as error:
        return None, f"column {error.pos + 1}: {error.msg}"
    except ValueError as error:
        return None, str(error)
    except RecursionError:
        return None, "the brackets are nested too deeply"


def jsonl_text(facts: FactSet) -> str:
    return "".join(json.dumps(fact.to_entry(), ensure_ascii=False) + "\n" for fact in facts)


def escaped(text: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula: one that begins like a formula has a ``'`` before it.

    See https://owasp.org/www-community/attacks/CSV_Injection. Texts that begin with such a ``'`` themselves get one
    more, so that ``unescaped`` gives every text back.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def unescaped(cell: str) -> str:
    """The text that ``escaped`` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def has_formulas(facts: Iterable[Fact]) -> bool:
    """Whether any text of facts is changed by ``escaped``."""
    return any(
        isinstance(value, str) and escaped(value) != value for fact in facts for value in fact.to_entry().values()
    )


def csv_text(facts: FactSet) -> str:
    """A table with all columns; ``escaped`` for spreadsheets.

    Raises:
        InputError: if a cell would be longer than Python's CSV reader takes.
    """
    buffer = io.StringIO(newline="")
    # Everything is quoted, since a writer that ends lines with "\n" leaves a carriage return in a value unquoted.
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(FIELDS)
    for fact in facts:
        record = fact.to_entry()
        cells: dict[str, str] = {
            name: json.dumps(record[name], ensure_ascii=False) for name in _JSON_FIELDS if name in record
        }
        row = [escaped(str(cells.get(name, record.get(name, "")))) for name in FIELDS]
        if max(map(len, row)) > csv.field_size_limit():
            raise InputError(f"the fact {fact.id!r} is too long for a CSV cell", remedy="Write JSONL instead")
        writer.writerow(row)
    return buffer.getvalue()
