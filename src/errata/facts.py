"""Facts to be written into a model, and the rules that a well-formed fact keeps. Files are read in ``facts_io``."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal, overload

from errata.errors import Fault, FaultsError, InputError

PLACEHOLDER: Final = "{}"
REQUIRED_FIELDS: Final = ("subject", "prompt", "target")
# Where a text may not have whitespace: prompt and continuation are joined with exactly one space, and the subject's
# last token has to be a token of the subject, not of the space behind it.
_TIGHT_TEXTS: Final[Mapping[str, Literal["nowhere", "end", "both ends"]]] = {
    "id": "nowhere",
    "subject": "both ends",
    "prompt": "end",
    "target": "both ends",
    "truth": "both ends",
    "answer": "both ends",
    "paraphrases": "end",
}
_UNENCODABLE: Final = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Question:
    """A whole prompt, and the answer that should follow it after one space.

    Raises:
        FaultsError: if one of the two is empty or has whitespace where they are joined.
    """

    prompt: str
    answer: str

    def __post_init__(self) -> None:
        if faults := _question_faults({"prompt": self.prompt, "answer": self.answer}, "", "question"):
            raise FaultsError("a question", faults)

    def to_record(self) -> dict[str, str]:
        return {"prompt": self.prompt, "answer": self.answer}


def as_questions(entries: Sequence[Question | Mapping[str, str]]) -> tuple[Question, ...]:
    """Questions of what a record may hold in their place; ``record_faults`` has found no fault with it."""
    return tuple(entry if isinstance(entry, Question) else Question(**entry) for entry in entries)


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact that a model is to hold. An instance is always well-formed.

    Attributes:
        id: a name that is unique in its set.
        subject: what the fact is about; its last token is where an edit is made. May hold braces.
        prompt: the wording, with ``{}`` exactly once, where the subject stands. Other braces are plain text.
        target: what the model shall say after the prompt, without the space before it.
        truth: what it says now, or what is true; None if unknown.
        paraphrases: other wordings, as whole prompts, that ``target`` should follow too.
        neighbours: questions about other subjects whose true object is the same; their answers should stay.
        own: questions about other facts of the same subject; their answers should stay.

    Raises:
        FaultsError: if a field is empty, of a wrong type, or breaks one of the rules above; tells all of them.
    """

    id: str
    subject: str
    prompt: str
    target: str
    truth: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Question, ...] = ()
    own: tuple[Question, ...] = ()

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in FIELDS}
        name = f"fact {shown(self.id)}"
        if faults := record_faults(values, name, required=("id", *REQUIRED_FIELDS)):
            raise FaultsError(name, faults)
        object.__setattr__(self, "paraphrases", tuple(self.paraphrases or ()))
        object.__setattr__(self, "neighbours", as_questions(self.neighbours or ()))
        object.__setattr__(self, "own", as_questions(self.own or ()))

    @property
    def text(self) -> str:
        """The prompt with the subject in the place of ``{}``."""
        before, after = self.prompt.split(PLACEHOLDER)
        return before + self.subject + after

    @property
    def subject_span(self) -> tuple[int, int]:
        """(start, end): where the subject stands in ``text``, in characters, also if it occurs elsewhere too."""
        start = self.prompt.index(PLACEHOLDER)
        return start, start + len(self.subject)

    def to_record(self) -> dict[str, object]:
        """The fact as JSON would hold it; optional fields that are empty are left out."""
        record: dict[str, object] = {name: getattr(self, name) for name in ("id", *REQUIRED_FIELDS)}
        if self.truth is not None:
            record["truth"] = self.truth
        if self.paraphrases:
            record["paraphrases"] = list(self.paraphrases)
        for name, questions in (("neighbours", self.neighbours), ("own", self.own)):
            if questions:
                record[name] = [question.to_record() for question in questions]
        return record


FIELDS: Final = tuple(field.name for field in fields(Fact))
QUESTION_FIELDS: Final = tuple(field.name for field in fields(Question))


@dataclass(frozen=True, slots=True)
class FactSet(Sequence[Fact]):
    """Facts that go together: no two share an id, none says another thing than, or the same as, another.

    Attributes:
        facts: in the order in which they are edited in.
        source: where they are from, for people: a file's name.
        places: for each fact where it stands there, such as ``facts.jsonl:3``; made from the ids if not given.

    Raises:
        FaultsError: if facts clash; tells all clashes.
    """

    facts: tuple[Fact, ...]
    source: str = "facts"
    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", tuple(self.facts))
        places = tuple(self.places) or tuple(f"{self.source}, fact {fact.id!r}" for fact in self.facts)
        if len(places) != len(self.facts):
            raise InputError(f"{len(self.facts)} facts came with {len(places)} places", remedy="Give one place a fact")
        object.__setattr__(self, "places", places)
        if faults := clashes(self.facts, places):
            raise FaultsError(self.source, faults)

    def __len__(self) -> int:
        return len(self.facts)

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> FactSet: ...
    def __getitem__(self, index: int | slice) -> Fact | FactSet:
        if isinstance(index, slice):
            return FactSet(self.facts[index], self.source, self.places[index])
        return self.facts[index]

    def batches(self, size: int) -> Iterator[list[Fact]]:
        """The facts in order, ``size`` at a time; the last batch may be smaller.

        Raises:
            InputError: if ``size`` is not at least 1.
        """
        if size < 1:
            raise InputError(f"the batch size must be at least 1, got {size}", remedy="Give a positive number of facts")
        return (list(self.facts[start : start + size]) for start in range(0, len(self.facts), size))

    def digest(self) -> str:
        """SHA-256 (hex) of the facts' canonical JSON; source and places do not count."""
        records = [fact.to_record() for fact in self.facts]
        canonical = json.dumps(records, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def clashes(facts: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
    """What is wrong between facts: an id, or a subject with its prompt, that was there before."""
    faults: list[Fault] = []
    ids: dict[str, int] = {}
    statements: dict[tuple[str, str], int] = {}
    for index, fact in enumerate(facts):
        stated = statements.setdefault((fact.subject, fact.prompt), index)
        if stated != index and facts[stated].target == fact.target:
            what = f"'subject', 'prompt' and 'target' are those of {places[stated]}"
            faults.append(Fault(places[index], what, "Remove one of the two"))
        elif stated != index:
            what = (
                f"'target' {shown(fact.target)} contradicts {places[stated]}, where the same subject and prompt"
                f" have {shown(facts[stated].target)}"
            )
            remedy = "Keep one of the two, or let the later one win (--last-wins, or last_wins=True)"
            faults.append(Fault(places[index], what, remedy))
        named = ids.setdefault(fact.id, index)
        if named != index and named != stated:
            what = f"'id' {shown(fact.id)} is already that of {places[named]}"
            faults.append(Fault(places[index], what, "Give each fact an id of its own, or none"))
    return faults


def record_faults(record: object, place: str, *, required: Collection[str] = REQUIRED_FIELDS) -> list[Fault]:
    """All that is wrong with one record of the fields of a ``Fact``; none means that a Fact can be made of it.

    Args:
        record: field -> value; lists may be lists or tuples, their questions mappings or ``Question``. None is absent.
        place: where the record stands, for the faults.
        required: the fields whose absence is a fault.
    """
    if not isinstance(record, Mapping):
        return [Fault(place, f"the record is {_kind(record)}", "Write an object with the fields of one fact")]
    faults = _field_faults(record, FIELDS, required, place, "")
    for field in FIELDS:
        value = record.get(field)
        if value is None:
            continue
        if field not in ("paraphrases", "neighbours", "own"):
            faults += _text_faults(value, field, field, place)
        elif not isinstance(value, list | tuple):
            faults.append(Fault(place, f"'{field}' is {_kind(value)}, not a list", f"Write it as {_example(field)}"))
        elif field == "paraphrases":
            for index, text in enumerate(value):
                faults += _text_faults(text, field, f"{field}[{index}]", place)
        else:
            for index, entry in enumerate(value):
                faults += [] if isinstance(entry, Question) else _question_faults(entry, f"{field}[{index}]", place)
    prompt = record.get("prompt")
    if isinstance(prompt, str) and prompt.strip() and (count := prompt.count(PLACEHOLDER)) != 1:
        remedy = "Write {} once, where the subject stands"
        faults.append(Fault(place, f"'prompt' holds {{}} {count} times" if count else "'prompt' has no {}", remedy))
    return faults


def _question_faults(entry: object, path: str, place: str) -> list[Fault]:
    if not isinstance(entry, Mapping):
        return [Fault(place, f"'{path}' is {_kind(entry)}, not an object", f"Write it as {_example('question')}")]
    prefix = f"{path}." if path else ""
    faults = _field_faults(entry, QUESTION_FIELDS, QUESTION_FIELDS, place, prefix)
    for field in QUESTION_FIELDS:
        if entry.get(field) is not None:
            faults += _text_faults(entry[field], field, prefix + field, place)
    return faults


def _field_faults(
    record: Mapping[object, object], known: Sequence[str], required: Collection[str], place: str, prefix: str
) -> list[Fault]:
    """Fields that are not known, and required ones that are absent."""
    faults = [unknown_field(name, known, place, prefix) for name in record if name not in known]
    missing = [name for name in known if name in required and record.get(name) is None]
    return faults + [Fault(place, f"'{prefix}{name}' is missing", "Add it") for name in missing]


def unknown_field(name: object, known: Sequence[str], place: str, prefix: str = "") -> Fault:
    """The fault of a field name that is not one of ``known``, with the nearest of them."""
    close = difflib.get_close_matches(str(name)[:40].strip().lower(), known, n=1) if isinstance(name, str) else []
    nearest = f"Did you mean '{close[0]}'? " if close else ""
    where = f" in '{prefix[:-1]}'" if prefix else ""
    return Fault(place, f"the field {shown(name)}{where} is unknown", f"{nearest}The fields are {', '.join(known)}")


def _text_faults(value: object, field: str, path: str, place: str) -> list[Fault]:
    if not isinstance(value, str):
        return [Fault(place, f"'{path}' is {_kind(value)}, not text", "Put it in double quotes")]
    if not value.strip():
        return [Fault(place, f"'{path}' is empty", "Fill it in")]
    faults: list[Fault] = []
    if (found := _UNENCODABLE.search(value)) is not None:
        what = f"'{path}' holds U+{ord(found[0]):04X} at character {found.start() + 1}, which no text in UTF-8 can hold"
        if found[0] == "\x00":
            what = f"'{path}' holds a NUL (U+0000) at character {found.start() + 1}"
        faults.append(Fault(place, what, "Remove that character"))
    tight = _TIGHT_TEXTS[field]
    if tight == "end" and value != value.rstrip():
        remedy = "Remove it: what follows is joined with one space"
        faults.append(Fault(place, f"'{path}' ends in whitespace", remedy))
    elif tight == "both ends" and value != value.strip():
        remedy = "Remove it: prompt and continuation are joined with one space"
        faults.append(Fault(place, f"'{path}' begins or ends with whitespace", remedy))
    return faults


def _example(field: str) -> str:
    question = '{"prompt": "…", "answer": "…"}'
    return {"question": question, "paraphrases": '["…", "…"]'}.get(field, f"[{question}]")


def _kind(value: object) -> str:
    """What a value is, in the words of JSON."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), f"of type {type(value).__name__}")


def shown(value: object, most: int = 60) -> str:
    """A value as a message may quote it: escaped, so that it can be printed, and not long."""
    if not isinstance(value, str):
        return _kind(value)
    return repr(value if len(value) <= most else value[:most] + "…")
