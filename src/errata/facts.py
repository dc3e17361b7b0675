"""Facts to be written into a model. Their rules are in ``facts_rules``, the reading of files in ``facts_io``."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, overload

from errata.errors import Fault, FaultsError, InputError
from errata.facts_rules import (
    PLACEHOLDER,
    QUESTION_LISTS,
    REQUIRED_FIELDS,
    TEXT_LISTS,
    Question,
    as_questions,
    field_faults,
    placed,
    shown,
)

__all__ = ["FIELDS", "Fact", "FactSet", "Question", "clashes", "fact_of", "record_faults"]


@dataclass(frozen=True, slots=True, init=False)
class Fact:
    """One fact that a model is to hold. An instance is always well-formed.

    Attributes:
        id: a name that is unique in its set.
        subject: what the fact is about; its last token is where an edit is made. May hold braces.
        prompt: the wording, with ``{}`` exactly once, where the subject stands. Other braces are plain text. It may
            be given with the subject itself in that place, if it is certain where it stands (``facts_rules.placed``).
        target: what the model shall say after the prompt, without the space before it.
        old: the answer that the target replaces: what the model says now; None if unknown. ``truth`` is a permanent
            alias of it, as an argument and as an attribute.
        paraphrases: other wordings, as whole prompts, that ``target`` should follow too.
        neighbours: questions about other subjects, in the same relation; their answers should stay. In data sets their
            true object is the same as the fact's.
        own: questions about other facts of the same subject; their answers should stay.
        unrelated: questions about anything else (zsRE's locality questions); what is said to them should stay.
        portability: questions one hop on, with the answers that follow from ``target``.
        reversal: questions that ask for the subject, given the target.
        aliases: other ways to write ``target``, right too where the model speaks freely.
        generation: prompts about the subject that the model is to write a text from.
        relation: the name of the relation; facts that share it are compared (references of texts, other options).
        joiner: "" or " ": what stands between ``prompt`` (and each paraphrase) and ``target`` or ``old``; None: see
            ``joining.joiner_of``. Only before "" may a prompt end in spaces.

    Raises:
        FaultsError: if a field is empty, of a wrong type, or breaks one of the rules above, or if ``old`` and
            ``truth`` are both given and differ; tells all of them.
    """

    id: str
    subject: str
    prompt: str
    target: str
    old: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Question, ...] = ()
    own: tuple[Question, ...] = ()
    unrelated: tuple[Question, ...] = ()
    portability: tuple[Question, ...] = ()
    reversal: tuple[Question, ...] = ()
    aliases: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    relation: str | None = None
    joiner: str | None = None

    # Written by hand since ``truth`` is an argument, but not a field.
    def __init__(
        self,
        id: str,  # noqa: A002  the field's name
        subject: str,
        prompt: str,
        target: str,
        old: str | None = None,
        paraphrases: Sequence[str] = (),
        neighbours: Sequence[Question | Mapping[str, str]] = (),
        own: Sequence[Question | Mapping[str, str]] = (),
        unrelated: Sequence[Question | Mapping[str, str]] = (),
        portability: Sequence[Question | Mapping[str, str]] = (),
        reversal: Sequence[Question | Mapping[str, str]] = (),
        aliases: Sequence[str] = (),
        generation: Sequence[str] = (),
        relation: str | None = None,
        joiner: str | None = None,
        *,
        truth: str | None = None,
    ) -> None:
        values: dict[str, Any] = {
            "id": id,
            "subject": subject,
            "prompt": prompt,
            "target": target,
            "old": old,
            "paraphrases": paraphrases,
            "neighbours": neighbours,
            "own": own,
            "unrelated": unrelated,
            "portability": portability,
            "reversal": reversal,
            "aliases": aliases,
            "generation": generation,
            "relation": relation,
            "joiner": joiner,
        }
        name = f"fact {shown(id)}"
        given = values if truth is None else values | {"truth": truth}
        if faults := record_faults(given, name, required=("id", *REQUIRED_FIELDS)):
            raise FaultsError(name, faults)
        values["old"] = truth if old is None else old
        values["prompt"] = placed(prompt, subject)
        values |= {name: tuple(values[name] or ()) for name in TEXT_LISTS}
        values |= {name: as_questions(values[name] or ()) for name in QUESTION_LISTS}
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    @property
    def truth(self) -> str | None:
        """Another name of ``old``."""
        return self.old

    @property
    def text(self) -> str:
        """The prompt with the subject in the place of ``{}``."""
        before, after = self.prompt.split(PLACEHOLDER)
        return before + self.subject + after

    def pair(self, answer: str, prompt: str | None = None) -> tuple[str, str] | tuple[str, str, str]:
        """The fact's prompt, or a paraphrase, with what follows it, as ``models.prompts.complete`` takes them."""
        text = self.text if prompt is None else prompt
        return (text, answer) if self.joiner is None else (text, answer, self.joiner)

    @property
    def subject_span(self) -> tuple[int, int]:
        """(start, end): where the subject stands in ``text``, in characters, also if it occurs elsewhere too."""
        start = self.prompt.index(PLACEHOLDER)
        return start, start + len(self.subject)

    def to_record(self) -> dict[str, object]:
        """The fact as patches, ledgers and results hold it; optional fields that are empty are left out.

        ``old`` has the key ``truth`` there, as always: digests and files of earlier versions depend on it. Files of
        facts are written with ``old``, see ``to_entry``.
        """
        return {_STORED_AS.get(name, name): value for name, value in self.to_entry().items()}

    def to_entry(self) -> dict[str, object]:
        """The fact as a file of facts holds it; optional fields that are empty are left out."""
        entry: dict[str, object] = {name: getattr(self, name) for name in ("id", *REQUIRED_FIELDS)}
        for name in FIELDS[len(entry) :]:
            if (value := getattr(self, name)) not in (None, ()):
                is_list = isinstance(value, tuple)
                entry[name] = [_as_json(part) for part in value] if is_list else value
        return entry


FIELDS: Final = tuple(entry.name for entry in fields(Fact))
_STORED_AS: Final = {"old": "truth"}
MOST_FAULTS: Final = 100  # that are told of one source


@dataclass(frozen=True, slots=True)
class FactSet(Sequence[Fact]):
    """Facts that go together: no two share an id, none says another thing than, or the same as, another.

    Attributes:
        facts: in the order in which they are edited in.
        source: where they are from, for people: a file's name.
        places: for each fact where it stands there, such as ``facts.jsonl:3``; made from the ids if not given.
        notes: what people should know of how the source was read.

    Raises:
        FaultsError: if facts clash; tells all clashes.
    """

    facts: tuple[Fact, ...]
    source: str = "facts"
    places: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", tuple(self.facts))
        places = tuple(self.places) or tuple(f"{self.source}, fact {fact.id!r}" for fact in self.facts)
        if len(places) != len(self.facts):
            raise InputError(f"{len(self.facts)} facts came with {len(places)} places", remedy="Give one place a fact")
        object.__setattr__(self, "places", places)
        if faults := clashes(self.facts, places):
            raise FaultsError(self.source, limited(faults, self.source))

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


def same_statement(fact: Fact) -> tuple[str, str]:
    """What two facts share that speak of the same thing in the same words, however their accents are encoded."""
    return _nfc(fact.subject), _nfc(fact.prompt)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def limited(faults: Sequence[Fault], source: str) -> list[Fault]:
    """The first faults (``MOST_FAULTS``), and a last one that says that there may be more."""
    if len(faults) <= MOST_FAULTS:
        return list(faults)
    what = f"more than {MOST_FAULTS} faults: the rest of it was not checked"
    return [*faults[:MOST_FAULTS], Fault(source, what, "Correct the faults above first")]


def clashes(facts: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
    """What is wrong between facts: an id, or a subject with its prompt, that was there before; ends where there are
    more faults than anybody is told.
    """
    faults: list[Fault] = []
    ids: dict[str, int] = {}
    statements: dict[tuple[str, str], int] = {}
    for index, fact in enumerate(facts):
        if len(faults) > MOST_FAULTS:
            break
        stated = statements.setdefault(same_statement(fact), index)
        if stated != index and _nfc(facts[stated].target) == _nfc(fact.target):
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
    """All that is wrong with one record of the fields of a ``Fact``; see ``facts_rules.field_faults``."""
    return field_faults(record, place, FIELDS, required)


def fact_of(record: Mapping[str, Any]) -> Fact:
    """The fact of a record in which ``record_faults`` has found nothing.

    Raises:
        FaultsError: otherwise.
    """
    return Fact(**record)


def _as_json(entry: str | Question) -> str | dict[str, str]:
    return entry.to_record() if isinstance(entry, Question) else entry
