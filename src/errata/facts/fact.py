"""Facts, sets of facts, and the rules that their records must follow."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final, overload

from errata.errors import Fault, FaultsError, InputError
from errata.facts.joining import begins_a_word, occurrences, word_places
from errata.utils.text import did_you_mean, excerpt

PLACEHOLDER: Final = "{}"
REQUIRED_FIELDS: Final = ("subject", "prompt", "target")
TEXT_LISTS: Final = ("paraphrases", "aliases", "generation")
QUESTION_LISTS: Final = ("neighbours", "own", "unrelated", "portability", "reversal")
ALIASES: Final[Mapping[str, str]] = {"truth": "old"}  # other names of fields, accepted in every input
MOST_FAULTS: Final = 100  # reported for one source

# Prompts may begin with whitespace and end in a newline. All other texts but ids have none at either end: what joins a
# prompt with its continuation is added, and the subject's last token must not be that of a space.
_PROMPTS: Final = ("prompt", "paraphrases", "generation")
_SYNONYMS: Final[Mapping[str, str]] = {  # frequent names of fields that are not similar to the right one
    **dict.fromkeys(("question", "text", "sentence", "query", "template"), "prompt"),
    **dict.fromkeys(("answer", "new", "object", "new_answer", "target_new", "value", "correct"), "target"),
    **dict.fromkeys(("entity", "topic", "name"), "subject"),
    **dict.fromkeys(("ground_truth", "old_answer", "wrong", "before", "target_true"), "old"),
    **dict.fromkeys(("rephrase", "rephrases", "rephrase_prompt", "rewordings"), "paraphrases"),
}
_UNENCODABLE: Final = re.compile("[\x00\ud800-\udfff]")
_STORED_AS: Final = {"old": "truth"}
_QUESTION_EXAMPLE: Final = '{"prompt": "…", "answer": "…"}'


@dataclass(frozen=True, slots=True)
class Question:
    """A whole prompt and the answer that should follow it.

    Attributes:
        joiner: text between the two, "" or " "; None: see ``joining.joiner_of``.

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


@dataclass(frozen=True, slots=True, init=False)
class Fact:
    """One fact to edit into a model. Every instance is valid.

    Attributes:
        id: a name that is unique in its set.
        subject: the entity of the fact; edits are made at its last token. May contain braces.
        prompt: the wording, with ``{}`` exactly once, in the place of the subject. Other braces are plain text. The
            argument may contain the subject itself instead of ``{}``, if its position is unambiguous (``placed``).
        target: the answer that the model should give after the prompt, without the space before it.
        old: the answer that ``target`` replaces; None if unknown. ``truth`` is a permanent alias of it, as an argument
            and as an attribute.
        paraphrases: other wordings, as whole prompts, that ``target`` should follow as well.
        neighbours: questions about other subjects, in the same relation; their answers should not change. In data sets
            their true object is the same as the fact's.
        own: same-subject facts, as questions; their answers should not change.
        unrelated: questions about anything else (zsRE's locality questions); their answers should not change.
        portability: multi-hop questions whose answers follow from ``target``.
        reversal: questions that ask for the subject, given the target.
        aliases: other spellings of ``target``, accepted in free generation.
        generation: prompts about the subject from which the model generates a text.
        relation: name of the relation; facts that share it are compared (reference texts, alternative answers).
        joiner: text between ``prompt`` (and each paraphrase) and ``target`` or ``old``, "" or " "; None: see
            ``joining.joiner_of``. A prompt may end in spaces only before "".

    Raises:
        FaultsError: all violated rules: empty fields, wrong types, misplaced whitespace, an ambiguous position of the
            subject, or ``old`` and ``truth`` that differ.
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

    # Written by hand because ``truth`` is an argument but not a field.
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
        given = dict(locals())
        record = {name: given[name] for name in (*FIELDS, *ALIASES)}
        name = f"fact {shown(id)}"
        if faults := record_faults(record, name, required=("id", *REQUIRED_FIELDS)):
            raise FaultsError(name, faults)
        record["old"] = truth if old is None else old
        record["prompt"] = placed(prompt, subject)
        record |= {name: tuple(record[name] or ()) for name in TEXT_LISTS}
        record |= {name: as_questions(record[name] or ()) for name in QUESTION_LISTS}
        for name in FIELDS:
            object.__setattr__(self, name, record[name])

    @property
    def truth(self) -> str | None:
        """Alias of ``old``."""
        return self.old

    @property
    def text(self) -> str:
        """The prompt with the subject in the place of ``{}``."""
        before, after = self.prompt.split(PLACEHOLDER)
        return before + self.subject + after

    def pair(self, answer: str, prompt: str | None = None) -> tuple[str, str] | tuple[str, str, str]:
        """The fact's prompt, or a paraphrase, with an answer, as ``models.prompts.complete`` takes them."""
        text = self.text if prompt is None else prompt
        return (text, answer) if self.joiner is None else (text, answer, self.joiner)

    @property
    def subject_span(self) -> tuple[int, int]:
        """(start, end) of the subject in ``text``, in characters, also if it occurs elsewhere too."""
        start = self.prompt.index(PLACEHOLDER)
        return start, start + len(self.subject)

    def to_record(self) -> dict[str, object]:
        """The fact as stored in patches, ledgers and results, without empty optional fields.

        The key of ``old`` is ``truth`` there, since digests and files of earlier versions depend on it. Files of facts
        use ``old``, see ``to_entry``.
        """
        return {_STORED_AS.get(name, name): value for name, value in self.to_entry().items()}

    def to_entry(self) -> dict[str, object]:
        """The fact as stored in a file of facts, without empty optional fields."""
        entry: dict[str, object] = {name: getattr(self, name) for name in ("id", *REQUIRED_FIELDS)}
        for name in FIELDS[len(entry) :]:
            value = getattr(self, name)
            if isinstance(value, tuple):
                value = [part.to_record() if isinstance(part, Question) else part for part in value]
            if value not in (None, []):
                entry[name] = value
        return entry


FIELDS: Final = tuple(entry.name for entry in fields(Fact))
QUESTION_FIELDS: Final = tuple(entry.name for entry in fields(Question))


@dataclass(frozen=True, slots=True)
class FactSet(Sequence[Fact]):
    """Facts that do not clash: ids are unique, and so are statements (subject with prompt).

    Attributes:
        facts: in the order in which they are edited.
        source: where they come from, for messages: a file's name.
        places: the place of each fact in the source, such as ``facts.jsonl:3``; derived from the ids by default.
        notes: remarks for the user on how the source was read.

    Raises:
        FaultsError: all clashes.
    """

    facts: tuple[Fact, ...]
    source: str = "facts"
    places: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", tuple(self.facts))
        places = tuple(self.places) or tuple(f"{self.source}, fact {fact.id!r}" for fact in self.facts)
        if len(places) != len(self.facts):
            what = f"{len(self.facts)} facts have {len(places)} places, expected one each"
            raise InputError(what, remedy="Give one place per fact", code="FACT_PLACES_MISMATCH")
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
            InputError: if ``size`` is less than 1.
        """
        if size < 1:
            what = f"the batch size must be at least 1, got {size}"
            raise InputError(what, remedy="Give a positive number of facts", code="BATCH_SIZE_INVALID")
        return (list(self.facts[start : start + size]) for start in range(0, len(self.facts), size))

    def digest(self) -> str:
        """SHA-256 (hex) of the facts' canonical JSON, without source and places."""
        records = [fact.to_record() for fact in self.facts]
        canonical = json.dumps(records, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def as_questions(entries: Sequence[Question | Mapping[str, str]]) -> tuple[Question, ...]:
    """Questions from the entries of a valid record."""
    return tuple(entry if isinstance(entry, Question) else Question(**entry) for entry in entries)


def same_statement(fact: Fact) -> tuple[str, str]:
    """Subject and prompt in Unicode's normal form C: equal for facts that make a statement in the same words."""
    return _nfc(fact.subject), _nfc(fact.prompt)


def limited(faults: Sequence[Fault], source: str) -> list[Fault]:
    """The first faults (``MOST_FAULTS``), and one that reports that there may be more."""
    if len(faults) <= MOST_FAULTS:
        return list(faults)
    what = f"more than {MOST_FAULTS} faults: the rest was not checked"
    return [*faults[:MOST_FAULTS], Fault(source, what, "Correct the faults above first", code="FAULTS_TRUNCATED")]


def clashes(facts: Sequence[Fact], places: Sequence[str]) -> list[Fault]:
    """Duplicate ids and statements, up to one more than ``MOST_FAULTS``."""
    faults: list[Fault] = []
    ids: dict[str, int] = {}
    statements: dict[tuple[str, str], int] = {}
    for index, fact in enumerate(facts):
        if len(faults) > MOST_FAULTS:
            break
        stated = statements.setdefault(same_statement(fact), index)
        if stated != index and _nfc(facts[stated].target) == _nfc(fact.target):
            what = f"'subject', 'prompt' and 'target' are the same as in {places[stated]}"
            faults.append(Fault(places[index], what, "Remove one of the two", code="FACT_DUPLICATE"))
        elif stated != index:
            what = (
                f"'target' {shown(fact.target)} contradicts {places[stated]}, where the same subject and prompt"
                f" have {shown(facts[stated].target)}"
            )
            remedy = "Remove one of the two, or let the later one win (--last-wins, or last_wins=True)"
            faults.append(Fault(places[index], what, remedy, code="FACT_CONTRADICTION"))
        same_id = ids.setdefault(fact.id, index)
        if same_id not in (index, stated):
            what = f"'id' {shown(fact.id)} is already used in {places[same_id]}"
            faults.append(Fault(places[index], what, "Use unique ids, or none", code="FACT_DUPLICATE_ID"))
    return faults


def check_fields(facts: FactSet, names: Collection[str], method: str) -> None:
    """Raises FaultsError, naming the places of the facts, if optional fields are missing that a method needs."""
    faults = [
        Fault(place, f"missing field {name!r}, which {method!r} needs", f"Add {name!r}", code="FACT_MISSING_FIELD")
        for fact, place in zip(facts, facts.places, strict=True)
        for name in sorted(names)
        if not getattr(fact, name)
    ]
    if faults:
        raise FaultsError(facts.source, limited(faults, facts.source))


def record_faults(record: object, place: str, *, required: Collection[str] = REQUIRED_FIELDS) -> list[Fault]:
    """All rules that a record of the fields of a ``Fact`` violates; if there are none, ``Fact(**record)`` succeeds.

    Args:
        record: field -> value; lists may be lists or tuples, their questions mappings or ``Question``. None is absent.
        place: the place of the record, for the faults.
        required: fields that must be present.
    """
    if not isinstance(record, Mapping):
        remedy = "Write an object with the fields of one fact"
        return [Fault(place, f"the record is {kind_of(record)}", remedy, code="FACT_WRONG_TYPE")]
    faults = _name_faults(record, FIELDS, required, place, "", aliases=ALIASES)
    spaces = record.get("joiner") == ""
    for name in (*FIELDS, *ALIASES):
        value = record.get(name)
        if value is None:
            continue
        if name == "joiner":
            faults += _joiner_faults(value, name, place)
        elif name not in (*TEXT_LISTS, *QUESTION_LISTS):
            faults += _text_faults(value, name, name, place, spaces=spaces)
        elif not isinstance(value, list | tuple):
            remedy = 'Write it as ["…", "…"]' if name in TEXT_LISTS else f"Write it as [{_QUESTION_EXAMPLE}]"
            faults.append(Fault(place, f"'{name}' is {kind_of(value)}, not a list", remedy, code="FACT_WRONG_TYPE"))
        elif name in TEXT_LISTS:
            for index, text in enumerate(value):
                faults += _text_faults(text, name, f"{name}[{index}]", place, spaces=spaces)
        else:
            for index, entry in enumerate(value):
                faults += [] if isinstance(entry, Question) else _question_faults(entry, f"{name}[{index}]", place)
    for alias, name in ALIASES.items():
        first, second = record.get(name), record.get(alias)
        if isinstance(first, str) and isinstance(second, str) and first != second:
            what = f"'{name}' {shown(first)} and its alias '{alias}' {shown(second)} differ"
            faults.append(Fault(place, what, f"Remove '{alias}'", code="FACT_DUPLICATE_FIELD"))
    prompt = record.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        faults += _position_faults(prompt, record.get("subject"), place)
    return faults


def placed(prompt: str, subject: str) -> str | None:
    """A prompt with ``{}`` unchanged; any other with ``{}`` in the place of the subject, None if that is ambiguous.

    The ``{}`` of a subject that has one itself is no placeholder: "C{} is a" of the subject "C{}" is "{} is a".
    """
    if PLACEHOLDER not in prompt:
        return placed_in_clear_text(prompt, subject)
    return (PLACEHOLDER in subject and placed_in_clear_text(prompt, subject)) or prompt


def placed_in_clear_text(prompt: str, subject: str) -> str | None:
    """The prompt with ``{}`` in the place of the subject; None if its position is ambiguous.

    The subject has to occur exactly once, with the same letters, and not begin inside a word, as "Io" does in "Fiona".
    (It may end inside one: many languages inflect names.) If it occurs several times, exactly one occurrence has to be
    a whole word (or words), like the ``i`` of `"i want it"`.
    """
    starts = occurrences(prompt, subject)
    if len(starts) > 1:
        starts = word_places(prompt, subject)
    starts = [start for start in starts if begins_a_word(prompt, start)]
    if len(starts) != 1:
        return None
    return prompt[: starts[0]] + PLACEHOLDER + prompt[starts[0] + len(subject) :]


def unknown_field(name: object, known: Sequence[str], place: str, prefix: str = "") -> Fault:
    """The fault of a field name that is not one of ``known``, with the most similar of them."""
    key = name.strip().lower() if isinstance(name, str) else ""
    synonym = _SYNONYMS.get(key)
    hint = f"Did you mean {synonym!r}? " if synonym in known else did_you_mean(key, known)
    where = f" in '{prefix[:-1]}'" if prefix else ""
    remedy = f"{hint}The fields are {', '.join(known)}"
    return Fault(place, f"the field {shown(name)}{where} is unknown", remedy, code="FACT_UNKNOWN_FIELD")


def kind_of(value: object) -> str:
    """A value's type in the words of JSON."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), f"of type {type(value).__name__}")


def shown(value: object, most: int = 60) -> str:
    """A value as quoted in messages: escaped, and not long."""
    if not isinstance(value, str):
        return kind_of(value)
    return repr(excerpt(value, most))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _position_faults(prompt: str, subject: object, place: str) -> list[Fault]:
    """Why the subject's position in a prompt is ambiguous, if it is."""
    remedy, code = "Write {} once, in the place of the subject", "FACT_SUBJECT_POSITION"
    if count := prompt.count(PLACEHOLDER):
        return [Fault(place, f"'prompt' has {{}} {count} times", remedy, code=code)] if count > 1 else []
    if not isinstance(subject, str) or not subject.strip():
        return [Fault(place, "'prompt' has no {}", remedy, code=code)]
    if placed(prompt, subject) is not None:
        return []
    count = len(occurrences(prompt, subject))
    times = {0: "does not occur in it", 1: "occurs only inside a word"}.get(count, f"occurs {count} times")
    return [Fault(place, f"'prompt' has no {{}}, and the subject {shown(subject)} {times}", remedy, code=code)]


def _question_faults(entry: object, path: str, place: str) -> list[Fault]:
    if not isinstance(entry, Mapping):
        what, remedy = f"'{path}' is {kind_of(entry)}, not an object", f"Write it as {_QUESTION_EXAMPLE}"
        return [Fault(place, what, remedy, code="FACT_WRONG_TYPE")]
    prefix = f"{path}." if path else ""
    faults = _name_faults(entry, QUESTION_FIELDS, ("prompt", "answer"), place, prefix)
    for name in ("prompt", "answer"):
        if entry.get(name) is not None:
            faults += _text_faults(entry[name], name, prefix + name, place, spaces=entry.get("joiner") == "")
    if entry.get("joiner") is not None:
        faults += _joiner_faults(entry["joiner"], prefix + "joiner", place)
    return faults


def _joiner_faults(value: object, path: str, place: str) -> list[Fault]:
    if value in ("", " "):
        return []
    what = f"'{path}' is {shown(value)}, neither empty nor one space"
    return [Fault(place, what, 'Write "" or " ", or leave the field out', code="FACT_INVALID_JOINER")]


def _name_faults(
    record: Mapping[object, object],
    known: Sequence[str],
    required: Collection[str],
    place: str,
    prefix: str,
    *,
    aliases: Collection[str] = (),
) -> list[Fault]:
    """Unknown fields, and required ones that are missing."""
    faults = [unknown_field(name, known, place, prefix) for name in record if name not in known and name not in aliases]
    missing = [name for name in known if name in required and record.get(name) is None]
    return faults + [
        Fault(place, f"'{prefix}{name}' is missing", "Add it", code="FACT_MISSING_FIELD") for name in missing
    ]


def _text_faults(value: object, name: str, path: str, place: str, *, spaces: bool = False) -> list[Fault]:
    """``spaces``: whether a prompt may end in spaces."""
    if not isinstance(value, str):
        what = f"'{path}' is {kind_of(value)}, not text"
        return [Fault(place, what, "Put it in double quotes", code="FACT_WRONG_TYPE")]
    if not value.strip():
        return [Fault(place, f"'{path}' is empty", "Fill it in", code="FACT_EMPTY_FIELD")]
    faults: list[Fault] = []
    if (found := _UNENCODABLE.search(value)) is not None:
        character = "a NUL (U+0000)" if found[0] == "\x00" else f"U+{ord(found[0]):04X}, which UTF-8 cannot encode,"
        what = f"'{path}' has {character} at character {found.start() + 1}"
        faults.append(Fault(place, what, "Remove that character", code="FACT_INVALID_CHARACTER"))
    remedy = "Remove it: the space between prompt and answer is added"
    if name in _PROMPTS:
        if value != value.rstrip() and not value.endswith("\n") and not spaces:
            remedy += ' (or set "joiner": "" to keep it)'
            faults.append(Fault(place, f"'{path}' ends in whitespace", remedy, code="FACT_WHITESPACE"))
    elif name != "id" and value != value.strip():
        faults.append(Fault(place, f"'{path}' begins or ends with whitespace", remedy, code="FACT_WHITESPACE"))
    return faults
