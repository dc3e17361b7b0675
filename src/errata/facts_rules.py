"""The rules that a record of a fact keeps, and what is wrong with one that does not: all of it at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal

from errata.errors import Fault, FaultsError
from errata.joining import begins_a_word, word_places

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
    for field in (*known, *ALIASES):
        value = record.get(field)
        if value is None:
            continue
        if field == "joiner":
            faults += _joiner_faults(value, field, place)
        elif field not in (*TEXT_LISTS, *QUESTION_LISTS):
            faults += _text_faults(value, field, field, place, spaces=spaces)
        elif not isinstance(value, list | tuple):
            faults.append(Fault(place, f"'{field}' is {_kind(value)}, not a list", f"Write it as {_example(field)}"))
        elif field in TEXT_LISTS:
            for index, text in enumerate(value):
                faults += _text_faults(text, field, f"{field}[{index}]", place, spaces=spaces)
        else:
            for index, entry in enumerate(value):
                faults += [] if isinstance(entry, Question) else _question_faults(entry, f"{field}[{index}]", place)
    for alias, field in ALIASES.items():
        first, second = record.get(field), record.get(alias)
        if isinstance(first, str) and isinstance(second, str) and first != second:
            what = f"'{field}' {shown(first)} and '{alias}' {shown(second)} differ, but are two names of one field"
            faults.append(Fault(place, what, f"Keep '{field}'"))
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
    for field in _REQUIRED_OF_QUESTIONS:
        if entry.get(field) is not None:
            faults += _text_faults(entry[field], field, prefix + field, place, spaces=entry.get("joiner") == "")
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
    close = meant or (difflib.get_close_matches(key, known, n=1) if key else [])
    nearest = f"Did you mean '{close[0]}'? " if close else ""
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
