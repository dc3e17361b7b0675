"""Records of a published JSON file as facts; errors in a truncated or damaged file are located."""

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
    kind_of,
    limited,
    placed_in_clear_text,
    record_faults,
    shown,
)
from errata.utils.files import file_text
from errata.utils.json_lists import list_values
from errata.utils.text import listed

AMBIGUOUS: Final = "the subject occurs in the prompt more than once, or only inside a word; its position is ambiguous"
_DAMAGED: Final = "The file may be truncated or damaged: get it again (`errata data get NAME --again`)"
_MISSING: Final = object()  # an object that was already reported as missing
_CORRECT: Final = "Get the file again, or correct it"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A data set that was read.

    Attributes:
        dataset: its name in the registry, as shown in tables: ``zsre-alt`` is not ``zsre-answers``.
        source: the file that it was read from, for messages.
        facts: may be empty.
        texts: plain texts, for perplexity.
        concepts: those of ``facts`` that change a definition, with the same ids and in the same order.
        notes: which records were left out and why, each a sentence for the user.
    """

    dataset: str
    source: str
    facts: FactSet
    texts: tuple[str, ...] = ()
    concepts: tuple[Concept, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordContents:
    """The content of one record, which is selected or left out as a whole.

    Attributes:
        place: the place of the record, for messages.
        facts: usually one; several are edited one after another.
        together: multi-hop questions whose answers follow from all of ``facts`` together.
    """

    place: str
    facts: tuple[Fact, ...] = ()
    together: tuple[Question, ...] = ()
    concept: Concept | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """The records of a file, in its order, and notes on records that were left out."""

    units: tuple[RecordContents, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """One record as mapped by a data set's loader; the rules of facts are checked afterwards.

    Attributes:
        facts: the fields of ``Fact``, with an id that is unique in the file.
        concept: the fields of ``Concept``.
        left_out: why a valid record yields nothing, by a rule of the data set.
    """

    facts: tuple[Mapping[str, Any], ...] = ()
    together: tuple[Mapping[str, str], ...] = ()
    concept: Mapping[str, Any] | None = None
    text: str | None = None
    left_out: str | None = None


def one_fact(fact: Mapping[str, Any]) -> Draft:
    """The draft of a record with one fact, left out if its prompt is None: the subject's position is ambiguous."""
    return Draft(left_out=AMBIGUOUS) if fact["prompt"] is None else Draft(facts=(fact,))


class Fields:
    """Access to the fields of a record, or of an object within one, that collects all errors.

    Texts are stripped of whitespace at both ends: errata adds the space between prompt and answer, so the space that
    some files have before a target (`" English"`) or after a prompt carries no information.

    Attributes:
        place: the place of the record, for the faults.
        index: the record's position in its file, from 0.
        faults: errors found so far, shared with the objects inside.
    """

    def __init__(self, value: object, place: str, index: int = 0, *, path: str = "", faults: list[Fault] | None = None):
        self.place = place
        self.index = index
        self.faults: list[Fault] = [] if faults is None else faults
        self._path = path
        # A missing or invalid object is one fault, without faults of its fields.
        self._silent = not isinstance(value, Mapping)
        self._values: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        if self._silent and value is not _MISSING:
            name = f"'{path}'" if path else "the record"
            what = f"{name} is {kind_of(value)}, not an object"
            self.faults.append(Fault(place, what, _CORRECT, code="FACT_WRONG_TYPE"))

    def fault(self, what: str, remedy: str, code: str) -> None:
        """Add an error of the record."""
        if not self._silent:
            self.faults.append(Fault(self.place, what, remedy, code=code))

    def has(self, key: str) -> bool:
        """Whether there is a value that is not null."""
        return self._values.get(key) is not None

    def has_list(self, key: str) -> bool:
        """Whether the value is a list."""
        return isinstance(self._values.get(key), list)

    def text(self, key: str) -> str:
        """A text, stripped; a fault, and an empty text, if it is missing, empty or not text."""
        return self._text(self._value(key), self._name(key))

    def text_or_none(self, key: str) -> str | None:
        """A text, stripped; None if it is absent, null or empty."""
        value = self._values.get(key)
        return None if value is None or (isinstance(value, str) and not value.strip()) else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, each stripped; a fault if it is absent, none if it is empty."""
        name = self._name(key)
        entries = enumerate(self._list(key))
        return tuple(
            self._missing(f"{name}[{number}]") if entry is None else self._text(entry, f"{name}[{number}]")
            for number, entry in entries
        )

    def texts_if_any(self, key: str) -> tuple[str, ...]:
        """The same; an absent list counts as empty."""
        return self.texts(key) if self.has(key) else ()

    def question(self, prompt: str, answer: str) -> dict[str, str]:
        """The texts of two fields as a question."""
        return {"prompt": self.text(prompt), "answer": self.text(answer)}

    def part(self, key: str) -> Fields:
        """An object inside."""
        value = self._value(key)
        value = _MISSING if value is None else value
        return Fields(value, self.place, self.index, path=self._name(key), faults=self.faults)

    def parts(self, key: str) -> tuple[Fields, ...]:
        """A list of objects; a fault if it is absent, none if it is empty."""
        name = self._name(key)
        return tuple(
            Fields(entry, self.place, self.index, path=f"{name}[{number}]", faults=self.faults)
            for number, entry in enumerate(self._list(key))
        )

    def name(self, key: str) -> str:
        """An integer or a text, as text: an id."""
        value = self._value(key)
        if value is None:
            return ""
        if type(value) is int and abs(value) < 2**63:
            return str(value)
        if not isinstance(value, str) or not value.strip():
            what = f"'{self._name(key)}' is {shown(value)}, not a number or a name"
            self.fault(what, "Correct the file", "FACT_WRONG_TYPE")
            return ""
        return value.strip()

    def prompt_around(self, prompt: str, subject: str, key: str = "prompt") -> str | None:
        """The prompt with ``{}`` in the place of the subject; None if its position is ambiguous.

        See ``facts.fact.placed_in_clear_text``. A subject that does not occur is a fault; an ambiguous position is not.
        """
        if not prompt or not subject:
            return None
        if subject not in prompt:
            what = f"'{self._name(key)}' {shown(prompt)} does not contain the subject {shown(subject)}"
            self.fault(what, "Correct it", "FACT_SUBJECT_POSITION")
            return None
        return placed_in_clear_text(prompt, subject)

    def _text(self, value: object, name: str) -> str:
        if value is None:
            return ""  # already reported
        if not isinstance(value, str):
            self.fault(f"'{name}' is {kind_of(value)}, not text", "Correct the file", "FACT_WRONG_TYPE")
            return ""
        if not value.strip():
            self.fault(f"'{name}' is empty", "Fill it in", "FACT_EMPTY_FIELD")
        return value.strip()

    def _value(self, key: str) -> Any:
        value = self._values.get(key)
        if value is None:
            self._missing(self._name(key))
        return value

    def _missing(self, name: str) -> str:
        self.fault(f"'{name}' is missing", _CORRECT, "FACT_MISSING_FIELD")
        return ""

    def _list(self, key: str) -> list[object]:
        value = self._value(key)
        if value is not None and not isinstance(value, list):
            what = f"'{self._name(key)}' is {kind_of(value)}, not a list"
            self.fault(what, "Correct the file", "FACT_WRONG_TYPE")
            return []
        return value or []

    def _name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key


OfRecord: TypeAlias = Callable[[Fields], Draft]


def parse_records(path: Path, of_record: OfRecord, *, key: str | None, skip_faulty: bool = False) -> Contents:
    """Read a file of records.

    Args:
        of_record: maps one record.
        key: the field that names a record in messages.
        skip_faulty: leave out invalid records, with a note, instead of rejecting the file.

    Raises:
        InputError: if the file cannot be read or is not UTF-8.
        FaultsError: if it is not a JSON list, or records are invalid: the first faults (``MOST_FAULTS``).
    """
    units: list[RecordContents] = []
    broken: list[Fault] = []
    faults: list[Fault] = []
    faulty: list[str] = []
    rules: dict[str, list[str]] = {}
    ids: dict[str, str] = {}
    for index, value, fault in list_values(_text_of(path), path.name, remedy=_DAMAGED):
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
            found += _duplicate_ids(draft, ids, place)
            if not (found and skip_faulty):  # a record that is skipped uses no id
                for fact in draft.facts:
                    ids.setdefault(str(fact["id"]), place)
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
        rules["invalid, and invalid records are skipped"] = faulty
    if not units and not rules:
        what = f"there are no records in {str(path)!r}"
        raise InputError(what, remedy="Give a file with at least one", code="FACTS_EMPTY")
    return Contents(tuple(units), tuple(left_out(why, places) for why, places in rules.items()))


def first_values(path: Path) -> Iterator[object]:
    """The records of a file, up to the first invalid one; none if it is not a JSON list.

    Raises:
        InputError: if the file cannot be read or is not UTF-8.
    """
    for _, value, fault in list_values(_text_of(path), path.name, remedy=_DAMAGED):
        if fault is not None:
            return
        yield value


def left_out(why: str, places: Sequence[str]) -> str:
    """The note on records that a rule left out."""
    count = "1 record was" if len(places) == 1 else f"{len(places)} records were"
    return f"{count} left out: {why} ({listed(places, 3)})"


def _duplicate_ids(draft: Draft, ids: dict[str, str], place: str) -> list[Fault]:
    """Ids that an earlier record has."""
    return [
        Fault(place, f"its id {shown(name)} is already used in {ids[name]}", "Use unique ids", code="FACT_DUPLICATE_ID")
        for fact in draft.facts
        if (name := str(fact["id"])) in ids
    ]


def _unit(draft: Draft, place: str) -> RecordContents:
    concept = None if draft.concept is None else Concept.of(draft.concept)
    return RecordContents(
        place, tuple(Fact(**fact) for fact in draft.facts), as_questions(draft.together), concept, draft.text
    )


def _text_of(path: Path) -> str:
    try:
        return file_text(path)
    except UnicodeDecodeError as error:
        what = f"{str(path)!r} is not UTF-8 at byte {error.start + 1}"
        raise InputError(what, remedy="Get the file again, or save it as UTF-8", code="ENCODING_INVALID") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = f"cannot read {str(path)!r}: {reason}"
        raise InputError(what, remedy="Give a readable file", code="FACTS_UNREADABLE") from error


def _place(source: str, index: int, value: object, key: str | None) -> str:
    """``counterfact.json[3] (case_id 17)``; positions count from 0."""
    name = value.get(key) if key is not None and isinstance(value, Mapping) else None
    is_name = isinstance(name, str | int) and not isinstance(name, bool)
    return f"{source}[{index}]" + (f" ({key} {shown(name) if isinstance(name, str) else name})" if is_name else "")
