"""Records of EasyEdit, KnowEdit, zsRE, QAEdit, WikiBigEdit and CounterFact, as records of a ``Fact``.

People bring files in these forms as their own facts, so the reading is generous: of each field all common names are
known, and whatever is not given is absent. What becomes of a record:

- ``target_new`` (zsRE: ``alt``, or else the first of ``answers``) is the target; further accepted answers are aliases.
- ``ground_truth`` is the old answer, as far as it is not the target itself.
- ``rephrase_prompt`` and ``rephrase`` are paraphrases: here a record means what its names say. (In the published file
  ``counterfact-edit`` they are mostly none, and its own loader knows that.)
- ``locality``: a question that names the subject is ``own``; of the others, one whose answer is the old answer is a
  neighbour, and any other is ``unrelated``.
- ``portability`` stays what it is, but questions of ``Subject_Aliasing`` whose answer is the target are paraphrases.

Of several accepted answers to a question the first is taken. Questions without an answer, which KnowEdit's files hold,
are left out and counted. Texts are stripped of whitespace at both ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from errata.errors import Fault
from errata.facts.fact import ALIASES, FIELDS, QUESTION_LISTS, REQUIRED_FIELDS, shown
from errata.facts.joining import holds_name
from errata.utils.text import similar

# Where each field may stand; a dot leads into an object. What comes first counts.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("id", "case_id"),
    "subject": ("subject", "concept", "requested_rewrite.subject"),
    "prompt": ("prompt", "src", "text", "update", "requested_rewrite.prompt"),
    "target": ("target", "target_new", "alt", "labels", "ans", "requested_rewrite.target_new"),
    "old": ("old", "truth", "ground_truth", "requested_rewrite.target_true"),
    "paraphrases": ("paraphrases", "rephrase_prompt", "rephrase_prompts", "rephrase", "paraphrase_prompts"),
    "aliases": ("aliases",),
    "generation": ("generation", "generation_prompts"),
    "relation": ("relation", "relation_id", "requested_rewrite.relation_id"),
}
# Questions in one field with their answers in another.
_PAIRS: Final = (
    ("locality_prompt", "locality_ground_truth"),
    ("loc", "loc_ans"),
    ("portability_prompt", "portability_ground_truth"),
    ("mhop", "mhop_ans"),
)
_OF_PORTABILITY: Final = ("portability_prompt", "mhop")
_LOCALITY: Final = ("locality", "locality_inputs")
_PORTABILITY: Final = ("portability", "portability_inputs")
_QUESTION: Final = ("prompt", "question", "loc", "New Question")
_ANSWER: Final = ("ground_truth", "answer", "answers", "loc_ans", "New Answer", "target")
_ALIASED: Final = "subject_aliasing"
_FORM: Final = '{"prompt": "…", "ground_truth": "…"}'
_DEEPEST: Final = 8  # objects and lists within each other

_MARKS: Final = frozenset(
    "requested_rewrite target_new ground_truth rephrase_prompt rephrase_prompts rephrase paraphrase_prompts locality "
    "locality_inputs portability_inputs locality_prompt locality_ground_truth src alt loc loc_ans".split()
)
_KNOWN: Final = frozenset(
    {name.partition(".")[0] for names in _NAMES.values() for name in names}
    | {name for pair in _PAIRS for name in pair}
    | {*_LOCALITY, *_PORTABILITY, *FIELDS, *ALIASES, "answers", "neighborhood_prompts"}
)
# Well known, and without a use here; anything else that is not used is told.
_UNUSED: Final = frozenset({"attribute_prompts", "pararel_idx", "cond", "pred", "source"})


@dataclass(slots=True)
class Converted:
    """A record in errata's own fields.

    Attributes:
        record: empty where there are faults.
        unused: fields that were not read.
        unanswered: how many questions had no answer.
    """

    record: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unanswered: int = 0


def is_foreign(record: object) -> bool:
    """Whether a record has a field that errata's own form does not know, and one of the other forms does."""
    return isinstance(record, Mapping) and not _MARKS.isdisjoint(record)


def converted(record: Mapping[str, Any], place: str) -> Converted:
    """A record of one of the forms above as one of a ``Fact``; ``place`` is where it stands, for the faults."""
    return _Conversion(record, place).converted


class _Conversion:
    def __init__(self, record: Mapping[str, Any], place: str) -> None:
        self._record = record
        self._place = place
        self.converted = Converted()
        self._names()
        made: dict[str, Any] = {name: self._first(name) for name in ("subject", "prompt")}
        given, answers = self._texts("target"), self._texts_at("answers")
        target = given or answers
        made["target"] = target[0] if target else None
        made["aliases"] = [*target[1:], *self._texts("aliases")]
        old = [*self._texts("old"), *(answers if given else [])]
        made["old"] = next((text for text in old if text != made["target"]), None)
        made |= {name: list(dict.fromkeys(self._texts(name))) for name in ("paraphrases", "generation")}
        made |= {name: self._first(name) for name in ("id", "relation")}
        source = record.get("source")
        if isinstance(source, str) and source.strip() and made["id"] is not None:
            made["id"] = f"{source.strip()}-{made['id']}"  # QAEdit counts within each of its sources
        self._required(made)
        self._questions(made)
        # What only errata's own form has, such as the joiner.
        made |= {name: record[name] for name in FIELDS if name in record and name not in made}
        if not self.converted.faults:
            self.converted.record = {name: value for name, value in made.items() if value not in (None, [])}

    def _fault(self, what: str, remedy: str) -> None:
        self.converted.faults.append(Fault(self._place, what, remedy))

    # ---- fields

    def _names(self) -> None:
        """Fields that are not known: a likely slip is a fault, any other is told as unused."""
        for name in self._record:
            if name in _KNOWN or name in _UNUSED:
                continue
            close = similar(str(name).lower(), sorted(_KNOWN), cutoff=0.85)
            if close and close[0] not in self._record:
                self._fault(f"the field {shown(name)} is unknown", f"Did you mean {close[0]!r}?")
            else:
                self.converted.unused.append(str(name)[:40])

    def _required(self, made: Mapping[str, Any]) -> None:
        for name in REQUIRED_FIELDS:
            if made[name] is not None:
                continue
            at = [path for path in _NAMES[name] if self._value(path) is not None]
            if self.converted.faults and at:
                continue  # it is there, and what is wrong with it has been said
            accepted = ", ".join(repr(path) for path in _NAMES[name])
            first = at[0] if at else {"target": "target_new"}.get(name, name)
            remedy = f"It is read from any of {accepted}"
            if name == "target" and "ground_truth" in self._record:
                remedy += " ('ground_truth' is the old answer)"
            self._fault(f"'{first}' is {'empty' if at else 'missing'}", remedy)

    def _value(self, path: str) -> Any:
        """What stands at a path, or None; CounterFact's targets are objects with their text as ``str``."""
        value: Any = self._record
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if path.startswith("requested_rewrite.target") and isinstance(value, Mapping):
            return value.get("str")
        return value

    def _texts(self, name: str) -> list[str]:
        """The texts of the first of a field's names that is there."""
        path = next((path for path in _NAMES[name] if self._value(path) is not None), None)
        return [] if path is None else self._texts_at(path)

    def _texts_at(self, path: str) -> list[str]:
        texts, strange = _flat(self._value(path))
        if strange is not None:
            self._fault(f"'{path}' holds {strange}, not text", "Write a text, or a list of texts")
        return texts

    def _first(self, name: str) -> str | None:
        return next(iter(self._texts(name)), None)

    # ---- questions

    def _questions(self, made: dict[str, Any]) -> None:
        locality: list[tuple[str, str]] = []
        portability: list[tuple[str, str]] = []
        paraphrases: list[str] = made["paraphrases"]
        for asked, answered in _PAIRS:
            if (asked_there := self._record.get(asked)) is None:
                continue
            found = self._paired(asked_there, self._record.get(answered), asked, answered)
            if asked == "loc" and "src" in self._record:  # zsRE's, which MEMIT asks with a question mark
                found = [(text if text.endswith("?") else f"{text}?", answer) for text, answer in found]
            (portability if asked in _OF_PORTABILITY else locality).extend(found)
        for name in _LOCALITY:
            locality += [(prompt, answer) for _, prompt, answer in self._asked(self._record.get(name), name)]
        for name in _PORTABILITY:
            for kind, prompt, answer in self._asked(self._record.get(name), name):
                if kind.lower() == _ALIASED and answer == made["target"]:
                    paraphrases.append(prompt)
                else:
                    portability.append((prompt, answer))
        lists: dict[str, list[tuple[str, str]]] = {name: [] for name in QUESTION_LISTS}
        for name in QUESTION_LISTS:
            if name != "portability":  # which was read above
                lists[name] += [(prompt, answer) for _, prompt, answer in self._asked(self._record.get(name), name)]
        neighbours = self._texts_at("neighborhood_prompts")
        if made["old"] is None:
            self.converted.unanswered += len(neighbours)
        else:
            lists["neighbours"] += [(prompt, made["old"]) for prompt in neighbours]
        subject = made["subject"] or ""
        for prompt, answer in locality:
            own = holds_name(prompt, subject)
            lists["own" if own else "neighbours" if answer == made["old"] else "unrelated"].append((prompt, answer))
        lists["portability"] += portability
        for name, found in lists.items():
            made[name] = [{"prompt": prompt, "answer": answer} for prompt, answer in dict.fromkeys(found)]
        made["paraphrases"] = list(dict.fromkeys(paraphrases))

    def _asked(self, value: Any, path: str, kind: str = "", depth: int = 0) -> Iterator[tuple[str, str, str]]:
        """(kind, prompt, answer) of all questions in a value: a question, a list of such, or an object of either by
        kind; prompts and answers may be lists of equal length.
        """
        if value is None:
            return
        if depth > _DEEPEST:
            self._fault(f"'{path[:60]}' is nested too deeply", f"Write questions as {_FORM}")
        elif isinstance(value, list | tuple):
            for index, entry in enumerate(value):
                yield from self._asked(entry, f"{path}[{index}]", kind, depth + 1)
        elif not isinstance(value, Mapping):
            self._fault(f"'{path}' is {shown(value)}, a question without its answer", f"Write it as {_FORM}")
        elif (asked := next((name for name in _QUESTION if value.get(name) is not None), None)) is not None:
            answered = next((name for name in _ANSWER if value.get(name) is not None), "ground_truth")
            pairs = self._paired(value[asked], value.get(answered), f"{path}.{asked}", f"{path}.{answered}")
            yield from ((kind, prompt, answer) for prompt, answer in pairs)
        elif not set(value).isdisjoint(_ANSWER):
            self._fault(f"'{path}' has an answer and no 'prompt'", f"Write it as {_FORM}")
        else:
            for name, entry in value.items():
                yield from self._asked(entry, f"{path}.{name}", str(name), depth + 1)

    def _paired(self, asked: Any, answered: Any, asked_at: str, answered_at: str) -> list[tuple[str, str]]:
        """Each prompt with the first of its answers; what has none is counted."""
        prompts, strange = _flat(asked)
        if strange is not None:
            self._fault(f"'{asked_at}' holds {strange}, not text", f"Write questions as {_FORM}")
        each = answered if len(prompts) > 1 and isinstance(answered, list | tuple) else [answered]
        if answered is not None and len(prompts) > 1 and len(each) != len(prompts):
            what = f"'{asked_at}' has {len(prompts)} prompts, and '{answered_at}' has answers to {len(each)}"
            self._fault(what, "Give one answer, or list of accepted answers, for each prompt")
            return []
        pairs: list[tuple[str, str]] = []
        for prompt, accepted in zip(prompts, each if answered is not None else [None] * len(prompts), strict=False):
            texts, strange = _flat(accepted)
            if strange is not None:
                self._fault(f"'{answered_at}' holds {strange}, not text", f"Write questions as {_FORM}")
            elif texts:
                pairs.append((prompt, texts[0]))
            else:
                self.converted.unanswered += 1
        return pairs


def _flat(value: Any) -> tuple[list[str], str | None]:
    """(the texts in nested lists, stripped, without empty ones; what else was in them). Numbers count as texts."""
    texts: list[str] = []
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list | tuple):
            waiting.extend(reversed(entry))
        elif isinstance(entry, str):
            texts += [entry.strip()] if entry.strip() else []
        elif isinstance(entry, int | float) and not isinstance(entry, bool):
            texts.append(str(entry))
        elif entry is not None:
            return texts, "true or false" if isinstance(entry, bool) else "an object"
    return texts, None


@dataclass(slots=True)
class Tally:
    """What people should know of the converted records of a file."""

    records: int = 0
    unused: dict[str, int] = field(default_factory=dict)
    unanswered: int = 0
    of_two: int = 0

    def add(self, record: Mapping[str, Any], made: Converted) -> None:
        self.records += 1
        self.unanswered += made.unanswered
        self.of_two += "alt" in record and "answers" in record
        for name in made.unused:
            self.unused[name] = self.unused.get(name, 0) + 1

    def notes(self) -> tuple[str, ...]:
        """Each a sentence without a full stop."""
        found: list[str] = []
        if self.records:
            form = "read as EasyEdit, KnowEdit, zsRE and CounterFact mean their fields"
            found.append(f"{_counted(self.records, 'record')} {form}")
        if self.of_two:
            found.append(
                f"{_counted(self.of_two, 'record')} with both 'alt' and 'answers': the target is 'alt', as in EasyEdit "
                "(for the true answers: errata data check zsre-answers FILE --out FACTS.jsonl)"
            )
        if self.unanswered:
            found.append(f"{_counted(self.unanswered, 'question')} without an answer left out")
        if self.unused:
            names = list(self.unused)
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            found.append(f"fields without a use here: {', '.join(names[:8])}{more}")
        return tuple(found)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
