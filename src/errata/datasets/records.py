"""A published file, one JSON list of records, read record by record: a cut or damaged one names where it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from errata.errors import Fault, FaultsError, InputError
from errata.facts.concept import Concept, concept_faults
from errata.facts.fact import (
    MOST_FAULTS,
    Fact,
    FactSet,
    Question,
    as_questions,
    fact_of,
    limited,
    placed_in_clear_text,
    record_faults,
    shown,
)
from errata.facts.files import list_values
from errata.utils.files import file_text

# ----------------------------------------------------------------------------------------------------
# The fields of one record of a published file: each is asked for by name, and what is wrong is gathered.
#
# Texts are stripped of whitespace at both ends, everywhere and always: errata joins prompt and continuation with
# exactly one space, so the space that some files put before a target (`" English"`) or behind a prompt carries nothing.
# Nothing else of a text is changed.


_NOTHING: Final[Mapping[str, Any]] = {}


class Fields:
    """A record, or an object within one.

    Attributes:
        index: the record's position in its file, from 0.
        faults: what was found wrong so far, shared with the objects inside.
    """

    def __init__(self, value: object, place: str, index: int = 0, *, path: str = "", faults: list[Fault] | None = None):
        self.place = place
        self.index = index
        self.faults: list[Fault] = [] if faults is None else faults
        self._path = path
        self._silent = False
        self._values: Mapping[str, Any] = _NOTHING
        if isinstance(value, Mapping):
            self._values = value
        else:
            what = f"'{path}'" if path else "the record"
            self.fault(f"{what} is {_kind(value)}, not an object", "Get the file again, or correct it")
            self._silent = True  # what such a record lacks is all told by that

    def fault(self, what: str, remedy: str) -> None:
        """Note what is wrong with the record."""
        if not self._silent:
            self.faults.append(Fault(self.place, what, remedy))

    def has(self, key: str) -> bool:
        """Whether there is a value that is not null."""
        return self._values.get(key) is not None

    def has_list(self, key: str) -> bool:
        """Whether the value is a list."""
        return isinstance(self._values.get(key), list)

    def text(self, key: str) -> str:
        """A text, stripped; a fault, and an empty text, if it is missing, empty or no text."""
        value = self._value(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fault(f"'{self._name(key)}' is {_kind(value)}, not text", "Correct the file")
            return ""
        if not value.strip():
            self.fault(f"'{self._name(key)}' is empty", "Fill it in")
        return value.strip()

    def text_or_none(self, key: str) -> str | None:
        """A text, stripped; None if it is absent, null or empty."""
        value = self._values.get(key)
        return None if value is None or (isinstance(value, str) and not value.strip()) else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, each stripped; an absent one is a fault, an empty one is not."""
        return tuple(
            self._inside(str(number), entry, key).text_itself() for number, entry in enumerate(self._list(key))
        )

    def texts_if_any(self, key: str) -> tuple[str, ...]:
        """The same; an absent list is an empty one."""
        return self.texts(key) if self.has(key) else ()

    def part(self, key: str) -> Fields:
        """An object inside."""
        value = self._value(key)
        if value is None:
            nothing = Fields(_NOTHING, self.place, self.index, faults=self.faults)
            nothing._silent = True
            return nothing
        return Fields(value, self.place, self.index, path=self._name(key), faults=self.faults)

    def parts(self, key: str) -> tuple[Fields, ...]:
        """A list of objects; an absent one is a fault, an empty one is not."""
        name = self._name(key)
        return tuple(
            Fields(entry, self.place, self.index, path=f"{name}[{number}]", faults=self.faults)
            for number, entry in enumerate(self._list(key))
        )

    def parts_if_any(self, key: str) -> tuple[Fields, ...]:
        """The same; an absent list is an empty one."""
        return self.parts(key) if self.has(key) else ()

    def name(self, key: str) -> str:
        """A whole number or a text, as text: an id."""
        value = self._value(key)
        if type(value) is int and abs(value) < 2**63:
            return str(value)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.fault(f"'{self._name(key)}' is {shown(value)}, not a number or a name", "Correct the file")
            return ""
        return "" if value is None else str(value).strip()

    def prompt_around(self, prompt: str, subject: str, key: str = "prompt") -> str | None:
        """The prompt with ``{}`` where the subject stands in clear text; None if that is not certain.

        See ``facts_rules.placed_in_clear_text``. Where the subject stands several times and none of them is certain,
        the record is well-formed but ambiguous: None without a fault. A subject that does not occur is a fault.
        """
        if not prompt or not subject:
            return None
        if subject not in prompt:
            self.fault(f"'{self._name(key)}' {shown(prompt)} does not hold the subject {shown(subject)}", "Correct it")
            return None
        return placed_in_clear_text(prompt, subject)

    def text_itself(self) -> str:
        """What ``texts`` asks of an entry."""
        return self.text("")

    def _value(self, key: str) -> Any:
        value = self._values.get(key)
        if value is None:
            self.fault(f"'{self._name(key)}' is missing", "Get the file again, or correct it")
        return value

    def _list(self, key: str) -> list[object]:
        value = self._value(key)
        if value is not None and not isinstance(value, list):
            self.fault(f"'{self._name(key)}' is {_kind(value)}, not a list", "Correct the file")
            return []
        return value or []

    def _inside(self, number: str, entry: object, key: str) -> Fields:
        """An entry of a list as the value of the empty key, so that its faults name its position."""
        path = f"{self._name(key)}[{number}]"
        return Fields({"": entry}, self.place, self.index, path=path, faults=self.faults)

    def _name(self, key: str) -> str:
        return ".".join(part for part in (self._path, key) if part)


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


# ----------------------------------------------------------------------------------------------------
# What a data set gives: facts, and what is no fact.


@dataclass(frozen=True, slots=True)
class Loaded:
    """A data set that was read.

    Attributes:
        dataset: its name in the registry, which tables show: ``zsre-alt`` is not ``zsre-answers``.
        source: the file that it was read from, for people.
        facts: may be empty.
        texts: plain texts, for perplexity.
        concepts: those of ``facts`` that change a definition, by the same ids and in the same order.
        notes: what was left out by which rule, each a sentence for people.
    """

    dataset: str
    source: str
    facts: FactSet
    texts: tuple[str, ...] = ()
    concepts: tuple[Concept, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """What one record became: what is drawn, or left out, as a whole.

    Attributes:
        place: where the record stands, for people.
        facts: usually one; several are edited one after another.
        together: questions one hop on whose answers follow from all of ``facts`` together.
    """

    place: str
    facts: tuple[Fact, ...] = ()
    together: tuple[Question, ...] = ()
    concept: Concept | None = None
    text: str | None = None


# ----------------------------------------------------------------------------------------------------


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
