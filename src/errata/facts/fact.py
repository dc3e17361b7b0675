"""Facts to be written into a model. Their rules are in ``facts_rules``, the reading of files in ``facts_io``."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, overload

from errata.errors import Fault, FaultsError, InputError
from errata.facts.joining import begins_a_word, word_places
from errata.utils.text import did_you_mean

# ----------------------------------------------------------------------------------------------------
# The rules that a record of a fact keeps, and what is wrong with one that does not: all of it at once.


PLACEHOLDER: Final = "{}"
REQUIRED_FIELDS: Final = ("subject", "prompt", "target")
# Where a text may not have whitespace: what joins prompt and continuation is not written into either of them, and the
# subject's last token has to be a token of the subject, not of the space behind it. A prompt may end in a newline.
_TIGHT_TEXTS: Final[Mapping[str, Literal["nowhere", "end", "both ends"]]] = {
    "id": "nowhere",
    "subject": "both ends",
    "prompt": "end",
    "target": "both ends",
    "old": "both ends",
    "truth": "both ends",
    "answer": "both ends",
    "paraphrases": "end",
    "generation": "end",
    "aliases": "both ends",
    "relation": "both ends",
}
# Other names of fields, which every input takes as well.
ALIASES: Final[Mapping[str, str]] = {"truth": "old"}
# What people write for a field, and is not like it letter by letter.
_OFTEN_WRITTEN: Final[Mapping[str, str]] = {
    **dict.fromkeys(("question", "text", "sentence", "query", "template"), "prompt"),
    **dict.fromkeys(("answer", "new", "object", "new_answer", "target_new", "value", "correct"), "target"),
    **dict.fromkeys(("entity", "topic", "name"), "subject"),
    **dict.fromkeys(("ground_truth", "old_answer", "wrong", "before", "target_true"), "old"),
    **dict.fromkeys(("rephrase", "rephrases", "rephrase_prompt", "rewordings"), "paraphrases"),
}
TEXT_LISTS: Final = ("paraphrases", "aliases", "generation")
QUESTION_LISTS: Final = ("neighbours", "own", "unrelated", "portability", "reversal")
_UNENCODABLE: Final = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Question:
    """A whole prompt, and the answer that should follow it.

    Attributes:
        joiner: "" or " ": what stands between the two; None: see ``joining.joiner_of``.

    Raises:
        FaultsError: if one of the two is empty or has whitespace where they are joined.
    """

    prompt: str
    answer: str
    joiner: str | None = None

    def __post_init__(self) -> None:
        record = {"prompt": self.prompt, "answer": self.answer, "joiner": self.joiner}
        if faults := _question_faults(record, "", "question"):
            raise FaultsError("a question", faults)

    @property
    def pair(self) -> tuple[str, str] | tuple[str, str, str]:
        """Prompt and answer, as ``models.prompts.complete`` takes them."""
        return (self.prompt, self.answer) if self.joiner is None else (self.prompt, self.answer, self.joiner)

    def to_record(self) -> dict[str, str]:
        record = {"prompt": self.prompt, "answer": self.answer}
        return record if self.joiner is None else {**record, "joiner": self.joiner}


def as_questions(entries: Sequence[Question | Mapping[str, str]]) -> tuple[Question, ...]:
    """Questions of what a record may hold in their place; ``record_faults`` has found no fault with it."""
    return tuple(entry if isinstance(entry, Question) else Question(**entry) for entry in entries)


QUESTION_FIELDS: Final = tuple(field.name for field in fields(Question))
_REQUIRED_OF_QUESTIONS: Final = ("prompt", "answer")


def field_faults(record: object, place: str, known: Sequence[str], required: Collection[str]) -> list[Fault]:
    """All that is wrong with one record of the fields of a ``Fact``; none means that a Fact can be made of it.

    Args:
        record: field -> value; lists may be lists or tuples, their questions mappings or ``Question``. None is absent.
        place: where the record stands, for the faults.
        known: the fields of a ``Fact``.
        required: the fields whose absence is a fault.
    """
    if not isinstance(record, Mapping):
        return [Fault(place, f"the record is {_kind(record)}", "Write an object with the fields of one fact")]
    faults = _field_faults(record, known, required, place, "", aliases=ALIASES)
    spaces = record.get("joiner") == ""
    for name in (*known, *ALIASES):
        value = record.get(name)
        if value is None:
            continue
        if name == "joiner":
            faults += _joiner_faults(value, name, place)
        elif name not in (*TEXT_LISTS, *QUESTION_LISTS):
            faults += _text_faults(value, name, name, place, spaces=spaces)
        elif not isinstance(value, list | tuple):
            faults.append(Fault(place, f"'{name}' is {_kind(value)}, not a list", f"Write it as {_example(name)}"))
        elif name in TEXT_LISTS:
            for index, text in enumerate(value):
                faults += _text_faults(text, name, f"{name}[{index}]", place, spaces=spaces)
        else:
            for index, entry in enumerate(value):
                faults += [] if isinstance(entry, Question) else _question_faults(entry, f"{name}[{index}]", place)
    for alias, name in ALIASES.items():
        first, second = record.get(name), record.get(alias)
        if isinstance(first, str) and isinstance(second, str) and first != second:
            what = f"'{name}' {shown(first)} and '{alias}' {shown(second)} differ, but are two names of one name"
            faults.append(Fault(place, what, f"Keep '{name}'"))
    prompt, subject = record.get("prompt"), record.get("subject")
    if isinstance(prompt, str) and prompt.strip() and (what := _misplaced(prompt, subject)):
        faults.append(Fault(place, what, "Write {} once, where the subject stands"))
    return faults


def placed(prompt: str, subject: str) -> str | None:
    """A prompt with ``{}`` as it is; any other with ``{}`` where the subject stands, None if that is not certain."""
    return prompt if PLACEHOLDER in prompt else placed_in_clear_text(prompt, subject)


def placed_in_clear_text(prompt: str, subject: str) -> str | None:
    """The prompt with ``{}`` where the subject stands in clear text; None if that is not certain.

    The subject has to stand there exactly once, letter by letter, and not begin inside a word, as "Io" does in "Fiona".
    (It may end inside one: many languages inflect names.) If it stands there several times, exactly one of them has to
    be a word (or words) of its own: the ``i`` of `"i want it"`.
    """
    starts = _starts(prompt, subject)
    if len(starts) > 1:
        starts = word_places(prompt, subject)
    starts = [start for start in starts if begins_a_word(prompt, start)]
    if len(starts) != 1:
        return None
    return prompt[: starts[0]] + PLACEHOLDER + prompt[starts[0] + len(subject) :]


def _misplaced(prompt: str, subject: object) -> str:
    """Why it is not certain where the subject stands in a prompt; empty if it is."""
    if count := prompt.count(PLACEHOLDER):
        return f"'prompt' holds {{}} {count} times" if count > 1 else ""
    if not isinstance(subject, str) or not subject.strip():
        return "'prompt' has no {}"
    if placed(prompt, subject) is not None:
        return ""
    count = len(_starts(prompt, subject))
    times = {0: "does not stand in it", 1: "stands in it only inside a word"}.get(count, f"stands in it {count} times")
    return f"'prompt' has no {{}}, and the subject {shown(subject)} {times}"


def _starts(text: str, part: str) -> list[int]:
    return [found.start() for found in re.finditer(f"(?={re.escape(part)})", text)] if part else []


def _question_faults(entry: object, path: str, place: str) -> list[Fault]:
    if not isinstance(entry, Mapping):
        return [Fault(place, f"'{path}' is {_kind(entry)}, not an object", f"Write it as {_example('question')}")]
    prefix = f"{path}." if path else ""
    faults = _field_faults(entry, QUESTION_FIELDS, _REQUIRED_OF_QUESTIONS, place, prefix)
    for name in _REQUIRED_OF_QUESTIONS:
        if entry.get(name) is not None:
            faults += _text_faults(entry[name], name, prefix + name, place, spaces=entry.get("joiner") == "")
    if entry.get("joiner") is not None:
        faults += _joiner_faults(entry["joiner"], prefix + "joiner", place)
    return faults


def _joiner_faults(value: object, path: str, place: str) -> list[Fault]:
    if value in ("", " "):
        return []
    what = f"'{path}' is {shown(value)}, neither nothing nor one space"
    return [Fault(place, what, 'Write "" or " ", or leave the field out')]


def _field_faults(
    record: Mapping[object, object],
    known: Sequence[str],
    required: Collection[str],
    place: str,
    prefix: str,
    *,
    aliases: Collection[str] = (),
) -> list[Fault]:
    """Fields that are not known, and required ones that are absent."""
    unknown = [name for name in record if name not in known and name not in aliases]
    faults = [unknown_field(name, known, place, prefix) for name in unknown]
    missing = [name for name in known if name in required and record.get(name) is None]
    return faults + [Fault(place, f"'{prefix}{name}' is missing", "Add it") for name in missing]


def unknown_field(name: object, known: Sequence[str], place: str, prefix: str = "") -> Fault:
    """The fault of a field name that is not one of ``known``, with the nearest of them."""
    key = str(name)[:40].strip().lower() if isinstance(name, str) else ""
    meant = [field for field in (_OFTEN_WRITTEN.get(key, ""),) if field in known]
    nearest = f"Did you mean '{meant[0]}'? " if meant else did_you_mean(key, known)
    where = f" in '{prefix[:-1]}'" if prefix else ""
    return Fault(place, f"the field {shown(name)}{where} is unknown", f"{nearest}The fields are {', '.join(known)}")


def _text_faults(value: object, field: str, path: str, place: str, *, spaces: bool = False) -> list[Fault]:
    """``spaces``: whether a prompt may end in spaces."""
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
    if tight == "end" and value != value.rstrip() and not value.endswith("\n") and not spaces:
        remedy = 'Remove it: what joins a prompt with what follows is added (or say "joiner": "" to keep it)'
        faults.append(Fault(place, f"'{path}' ends in whitespace", remedy))
    elif tight == "both ends" and value != value.strip():
        remedy = "Remove it: what joins a prompt with what follows is added"
        faults.append(Fault(place, f"'{path}' begins or ends with whitespace", remedy))
    return faults


def _example(field: str) -> str:
    question = '{"prompt": "…", "answer": "…"}'
    if field in TEXT_LISTS:
        return '["…", "…"]'
    return question if field == "question" else f"[{question}]"


def _kind(value: object) -> str:
    """What a value is, in the words of JSON."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), f"of type {type(value).__name__}")


def shown(value: object, most: int = 60) -> str:
    """A value as a message may quote it: escaped, so that it can be printed, and not long."""
    if not isinstance(value, str):
        return _kind(value)
    return repr(value if len(value) <= most else value[:most] + "…")


# ----------------------------------------------------------------------------------------------------


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
