"""Facts from JSON, JSON Lines and CSV files and from records, with all faults told at once; and back to files."""

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
    fact_of,
    limited,
    record_faults,
    same_statement,
    unknown_field,
)
from errata.facts.foreign import Tally, converted, is_foreign
from errata.utils.files import file_bytes, is_full, new_file

# ----------------------------------------------------------------------------------------------------
# A JSON list of records, read record by record: of a cut or damaged one it is known where it breaks.


_SPACE: Final = re.compile(r"[ \t\n\r]*")
_CUT: Final = "The file may be cut off or damaged: get it again, or correct it there"


def list_values(text: str, source: str, *, remedy: str = _CUT) -> Iterator[tuple[int, object, Fault | None]]:
    """(index, value, None) of each entry of a JSON list; (index, None, fault) where one is broken.

    After an entry that only repeats a field the next can still be found; after any other fault the rest cannot be read.
    """
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        what = "the file is not a JSON list of records"
        yield 0, None, Fault(source, what + (" but empty" if at == len(text) else ""), remedy)
        return
    at = _after_space(text, at + 1)
    index = 0
    while text[at : at + 1] != "]" or index > 0:  # "[]" has no entries, but "[1,]" lacks one
        try:
            value, fault, at = _entry(text, at, f"{source}[{index}]")
        except (ValueError, RecursionError) as error:
            yield index, None, Fault(f"{source}[{index}]", _reason(error), remedy)
            return
        yield index, value, fault
        at = _after_space(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            end = "the file ends" if at == len(text) else f"{text[at]!r} stands at {_position(text, at)}"
            yield index + 1, None, Fault(source, f"{end} behind record [{index}], where a comma or ']' belongs", remedy)
            return
        at, index = _after_space(text, at + 1), index + 1
    behind = _after_space(text, at + 1)
    if behind < len(text):
        yield index, None, Fault(source, f"more stands behind the list, at {_position(text, behind)}", remedy)


def _entry(text: str, at: int, place: str) -> tuple[object, Fault | None, int]:
    """(value, what is wrong with it, where it ends)."""
    try:
        value, end = json.JSONDecoder(object_pairs_hook=object_without_repeats).raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        _, end = json.JSONDecoder().raw_decode(text, at)
        return None, Fault(place, str(error), "Correct the file"), end
    return value, None, end


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
    return "the brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _position(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"


def object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A plain dict, in which the last of several values would win without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {twice!r} stands there twice")
    return found


# ----------------------------------------------------------------------------------------------------
# The forms of a file of facts, JSON Lines, a JSON list and CSV: from bytes to records with their places and faults, and
# back.


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
    rows = _csv_rows(io.StringIO(data.decode(errors="surrogateescape"), newline="\n"), source)
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


def _csv_rows(lines: Iterable[str], source: str) -> Iterator[tuple[str, list[str] | Fault]]:
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


# ----------------------------------------------------------------------------------------------------
# EasyEdit's other form: one object of lists side by side, as its ``editor.edit(prompts=…, target_new=…)`` takes them::
#
#     {"prompts": ["Torre Ombra was built in", "Nils Berg speaks"], "subject": ["Torre Ombra", "Nils Berg"],
#      "target_new": ["Lyon", "Welsh"], "ground_truth": ["Turin", "Danish"], "rephrase_prompts": ["…", "…"],
#      "locality_inputs": {"neighborhood": {"prompt": ["…", "…"], "ground_truth": ["…", "…"]}},
#      "portability_inputs": {"one_hop": {"prompt": ["…", "…"], "ground_truth": ["…", "…"]}}}
#
# A text stands for a list of one. Where a question's prompt is null, that fact has no such question.


_PROMPTS: Final = "prompts"
_REQUIRED: Final = ("subject", "target_new")
_OPTIONAL: Final = ("ground_truth", "rephrase_prompts", "locality_inputs", "portability_inputs", "id", "case_id")
_PARALLEL_LISTS: Final = (_PROMPTS, *_REQUIRED, *_OPTIONAL)


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
    columns = {name: value[name] for name in _PARALLEL_LISTS if value.get(name) is not None}
    if absent := [name for name in _REQUIRED if name not in columns]:
        what = f"the lists of prompts have no list {' and no list '.join(map(repr, absent))} beside them"
        return [Entry(place, faults=(Fault(place, what, "Add it, with one entry for each prompt"),))]
    lengths = dict(_lengths(columns, ""))
    count = lengths[_PROMPTS]
    if other := {path: length for path, length in lengths.items() if length != count}:
        found = ", ".join(f"{path!r} {length:,}" for path, length in list(other.items())[:5])
        what = f"'{_PROMPTS}' has {count:,} entries, but there are others: {found}"
        return [Entry(place, faults=(Fault(place, what, "Give every list one entry for each prompt, in order"),))]
    constant = {name: entry for name, entry in value.items() if name not in _PARALLEL_LISTS}
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


# ----------------------------------------------------------------------------------------------------


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
