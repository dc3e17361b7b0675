"""A published file, one JSON list of records, read record by record: a cut or damaged one names where it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from errata.datasets.concept import Concept, concept_faults
from errata.datasets.fields import Fields
from errata.datasets.loaded import Unit
from errata.errors import Fault, FaultsError, InputError
from errata.facts import MOST_FAULTS, Question, fact_of, limited, record_faults
from errata.facts_json import list_values
from errata.facts_rules import as_questions, shown
from errata.reading import file_text

_AGAIN: Final = "The file may be cut off or damaged: get it again (`errata data get NAME --again`)"


@dataclass(frozen=True, slots=True)
class Draft:
    """What a data set's loader makes of one record; whether its facts keep the rules is checked for all sets alike.

    Attributes:
        facts: the fields of ``Fact``, with an id that is unique in the file.
        concept: the fields of ``Concept``.
        left_out: why a well-formed record gives nothing, by a rule of the set.
    """

    facts: tuple[Mapping[str, Any], ...] = ()
    together: tuple[Mapping[str, str], ...] = ()
    concept: Mapping[str, Any] | None = None
    text: str | None = None
    left_out: str | None = None


OfRecord: TypeAlias = Callable[[Fields], Draft]
AMBIGUOUS: Final = (
    "the subject stands in the prompt more than once, or only inside a word: which is meant is not certain"
)


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a file holds: units in its order, and notes on what a rule left out."""

    units: tuple[Unit, ...]
    notes: tuple[str, ...] = ()


def read_records(path: Path, of_record: OfRecord, *, key: str | None, skip_faulty: bool = False) -> Contents:
    """Read a file of records.

    Args:
        of_record: what one record becomes.
        key: the field that names a record, for the faults.
        skip_faulty: leave out records with faults, and say so in a note, instead of refusing the file.

    Raises:
        InputError: if the file cannot be read or is not UTF-8.
        FaultsError: if it is not a JSON list, or records are wrong; tells the first faults (``MOST_FAULTS``).
    """
    units: list[Unit] = []
    broken: list[Fault] = []
    faults: list[Fault] = []
    faulty: list[str] = []
    rules: dict[str, list[str]] = {}
    ids: dict[str, str] = {}
    for index, value, fault in list_values(_text_of(path), path.name, remedy=_AGAIN):
        place = _place(path.name, index, value, key)
        if fault is not None:
            broken.append(fault)
            continue
        fields = Fields(value, place, index)
        draft = of_record(fields)
        found = list(fields.faults)
        if not found and draft.left_out is None:
            found = [fault for fact in draft.facts for fault in record_faults(fact, place)]
            found += [] if draft.concept is None or found else concept_faults(draft.concept, place)
            found += _taken(draft, ids, place)
        if found:
            faults += [] if skip_faulty else found
            faulty.append(place)
            if len(faults) > MOST_FAULTS:
                break
        elif draft.left_out is not None:
            rules.setdefault(draft.left_out, []).append(place)
        else:
            units.append(_unit(draft, place))
    if broken or (faults and not skip_faulty):
        raise FaultsError(str(path), limited([*faults, *broken], path.name))
    if faulty:
        rules["faulty, and such records were to be skipped"] = faulty
    if not units and not rules:
        raise InputError(f"there are no records in {str(path)!r}", remedy="Give a file with at least one")
    return Contents(tuple(units), tuple(left_out(why, places) for why, places in rules.items()))


def first_values(path: Path) -> Iterator[object]:
    """The records of a file as they stand there, up to the first that is broken; none if it is no list of records.

    Raises:
        InputError: if the file cannot be read or is not UTF-8.
    """
    for _, value, fault in list_values(_text_of(path), path.name, remedy=_AGAIN):
        if fault is not None:
            return
        yield value


def left_out(why: str, places: Sequence[str]) -> str:
    """The note on records that a rule left out."""
    named = ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
    count = "1 record was" if len(places) == 1 else f"{len(places)} records were"
    return f"{count} left out: {why} ({named})"


def _taken(draft: Draft, ids: dict[str, str], place: str) -> list[Fault]:
    """Ids that an earlier record has; ``ids`` learns those of this one."""
    names = [str(fact["id"]) for fact in draft.facts]
    faults = [
        Fault(place, f"its id {shown(name)} is already that of {ids[name]}", "Give each record an id of its own")
        for name in names
        if name in ids
    ]
    ids.update({name: place for name in names if name not in ids})
    return faults


def _unit(draft: Draft, place: str) -> Unit:
    together: tuple[Question, ...] = as_questions(draft.together)
    concept = None if draft.concept is None else Concept.of(draft.concept)
    return Unit(place, tuple(map(fact_of, draft.facts)), together, concept, draft.text)


def _text_of(path: Path) -> str:
    try:
        return file_text(path)
    except UnicodeDecodeError as error:
        what = f"{str(path)!r} is not UTF-8 at byte {error.start + 1}"
        raise InputError(what, remedy="Get the file again, or save it in the encoding UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {str(path)!r}: {reason}", remedy="Give a file that can be read") from error


def _place(source: str, index: int, value: object, key: str | None) -> str:
    """``counterfact.json[3] (case_id 17)``: the position counts from 0, as a program would index it."""
    name = value.get(key) if key is not None and isinstance(value, Mapping) else None
    is_name = isinstance(name, str | int) and not isinstance(name, bool)
    return f"{source}[{index}]" + (f" ({key} {shown(name) if isinstance(name, str) else name})" if is_name else "")
