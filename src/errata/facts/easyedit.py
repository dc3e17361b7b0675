"""Records in the formats of EasyEdit, KnowEdit, zsRE, QAEdit, WikiBigEdit and CounterFact, as records of a ``Fact``.

Users bring files in these formats as their own facts, so the reader accepts all common names of each field, and treats
what is missing as absent:

- ``target_new`` (zsRE: ``alt``, else the first of ``answers``) is the target; further accepted answers are aliases.
- ``ground_truth`` is the old answer, unless it is the target itself.
- ``rephrase_prompt`` and ``rephrase`` are paraphrases, as their names say. (In the published file
  ``counterfact-edit`` most are not, which its own loader takes into account.)
- ``locality``: a question that names the subject is ``own``; of the others, one whose answer is the old answer is a
  neighbour, and any other is ``unrelated``.
- ``portability`` is kept as it is, except that questions of ``Subject_Aliasing`` whose answer is the target are
  paraphrases.

Of several accepted answers to a question the first is used. Questions without an answer, which KnowEdit's files
contain, are skipped and counted. Texts are stripped of whitespace at both ends.

EasyEdit's ``editor.edit(prompts=…, target_new=…)`` takes one object of parallel lists instead::

    {"prompts": ["Torre Ombra was built in", "Nils Berg speaks"], "subject": ["Torre Ombra", "Nils Berg"],
     "target_new": ["Lyon", "Welsh"], "ground_truth": ["Turin", "Danish"], "rephrase_prompts": ["…", "…"],
     "locality_inputs": {"neighborhood": {"prompt": ["…", "…"], "ground_truth": ["…", "…"]}},
     "portability_inputs": {"one_hop": {"prompt": ["…", "…"], "ground_truth": ["…", "…"]}}}

There a text means a list of one, and a question whose prompt is null is absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from errata.errors import Fault
from errata.facts.fact import ALIASES, FIELDS, QUESTION_LISTS, REQUIRED_FIELDS, shown
from errata.facts.joining import holds_name
from errata.utils.text import counted, similar

# Names of each field; a dot leads into an object. The first one present is used.
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
# (field of questions, field of their answers)
_LOCALITY_PAIRS: Final = (("locality_prompt", "locality_ground_truth"), ("loc", "loc_ans"))
_PORTABILITY_PAIRS: Final = (("portability_prompt", "portability_ground_truth"), ("mhop", "mhop_ans"))
_LOCALITY: Final = ("locality", "locality_inputs")
_PORTABILITY: Final = ("portability", "portability_inputs")
_QUESTION: Final = ("prompt", "question", "loc", "New Question")
_ANSWER: Final = ("ground_truth", "answer", "answers", "loc_ans", "New Answer", "target")
_EXAMPLE: Final = '{"prompt": "…", "ground_truth": "…"}'
_DEEPEST: Final = 8  # nested objects and lists

# Fields that errata's own format does not have.
_MARKS: Final = frozenset(
    "requested_rewrite target_new ground_truth rephrase_prompt rephrase_prompts rephrase paraphrase_prompts locality "
    "locality_inputs portability_inputs locality_prompt locality_ground_truth src alt loc loc_ans".split()
)
_USED: Final = frozenset(
    {name.partition(".")[0] for names in _NAMES.values() for name in names}
    | {name for pair in (*_LOCALITY_PAIRS, *_PORTABILITY_PAIRS) for name in pair}
    | {*_LOCALITY, *_PORTABILITY, *FIELDS, *ALIASES, "answers", "neighborhood_prompts"}
)
# Well known and not needed; any other unused field is reported.
_IGNORED: Final = frozenset({"attribute_prompts", "pararel_idx", "cond", "pred", "source"})

_REQUIRED_COLUMNS: Final = ("subject", "target_new")
_OPTIONAL_COLUMNS: Final = (
    "ground_truth",
    "rephrase_prompts",
    "locality_inputs",
    "portability_inputs",
    "id",
    "case_id",
)
_COLUMNS: Final = ("prompts", *_REQUIRED_COLUMNS, *_OPTIONAL_COLUMNS)


@dataclass(slots=True)
class Conversions:
    """Counts over the converted records of a file."""

    records: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    two_targets: int = 0

    def add(self, record: Mapping[str, Any], converted: Conversion) -> None:
        self.records += 1
        self.unanswered += converted.unanswered
        self.two_targets += "alt" in record and "answers" in record
        self.unused.update(converted.unused)

    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, each a sentence without a full stop."""
        found: list[str] = []
        if self.records:
            found.append(
                f"{counted(self.records, 'record')} read in the format of EasyEdit, KnowEdit, zsRE or CounterFact"
            )
        if self.two_targets:
            found.append(
                f"{counted(self.two_targets, 'record')} with both 'alt' and 'answers': the target is 'alt', as in "
                "EasyEdit (for the true answers: errata data check zsre-answers FILE --out FACTS.jsonl)"
            )
        if self.unanswered:
            found.append(f"{counted(self.unanswered, 'question')} without an answer skipped")
        if self.unused:
            names = list(self.unused)
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            found.append(f"unused fields: {', '.join(names[:8])}{more}")
        return tuple(found)


def is_convertible(record: Mapping[str, Any]) -> bool:
    """Whether a record has a field of the other formats that errata's own does not have."""
    return not _MARKS.isdisjoint(record)


def has_columns(value: Mapping[str, Any]) -> bool:
    """Whether an object is one of parallel lists, not one record."""
    prompts = value.get("prompts")
    return "prompt" not in value and (isinstance(prompts, list) or (isinstance(prompts, str) and "target_new" in value))


def column_records(value: Mapping[str, Any], place: str) -> tuple[list[dict[str, Any]], Fault | None]:
    """(records, None) of an object of parallel lists, or ([], fault). Other fields go into every record."""
    columns = {name: value[name] for name in _COLUMNS if value.get(name) is not None}
    if absent := [name for name in _REQUIRED_COLUMNS if name not in columns]:
        what = f"'prompts' is given without {' and '.join(map(repr, absent))}"
        return [], Fault(place, what, "Add it, with one entry for each prompt", code="FACT_MISSING_FIELD")
    lengths = dict(_lengths(columns, ""))
    count = lengths["prompts"]
    if other := {path: length for path, length in lengths.items() if length != count}:
        found = ", ".join(f"{path!r} {length:,}" for path, length in list(other.items())[:5])
        what = f"'prompts' has {count:,} entries, but other lists have a different number: {found}"
        remedy = "Give every list one entry for each prompt, in order"
        return [], Fault(place, what, remedy, code="FACT_LIST_LENGTHS")
    constant = {name: entry for name, entry in value.items() if name not in _COLUMNS}
    names = {name: "prompt" if name == "prompts" else name for name in columns}
    return [
        constant | {names[name]: _cell(column, index) for name, column in columns.items()} for index in range(count)
    ], None


def _lengths(value: Any, path: str) -> Iterator[tuple[str, int]]:
    """(path, length) of each list; lists within lists are cells."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _lengths(entry, f"{path}.{name}" if path else str(name))
    elif value is not None:
        yield path, len(value) if isinstance(value, list) else 1


def _cell(column: Any, index: int) -> Any:
    """One record's part of a column, which may be an object of columns."""
    if isinstance(column, Mapping):
        cells = {name: _cell(entry, index) for name, entry in column.items()}
        return {} if "prompt" in column and cells["prompt"] is None else cells
    return column[index] if isinstance(column, list) else column


class Conversion:
    """A record of one of the formats above as a record of a ``Fact``.

    Args:
        place: the record's place, for the faults.

    Attributes:
        record: with the fields of ``Fact``; empty if there are faults.
        unused: fields that were not read.
        unanswered: number of questions without an answer.
    """

    def __init__(self, record: Mapping[str, Any], place: str) -> None:
        self._record = record
        self._place = place
        self.record: dict[str, Any] = {}
        self.faults: list[Fault] = []
        self.unused: list[str] = []
        self.unanswered = 0
        self._check_names()
        fact: dict[str, Any] = {name: self._first(name) for name in ("subject", "prompt")}
        given, answers = self._texts("target"), self._texts_at("answers")
        target = given or answers
        fact["target"] = target[0] if target else None
        fact["aliases"] = [*target[1:], *self._texts("aliases")]
        old = [*self._texts("old"), *(answers if given else [])]
        fact["old"] = next((text for text in old if text != fact["target"]), None)
        fact |= {name: list(dict.fromkeys(self._texts(name))) for name in ("paraphrases", "generation")}
        fact |= {name: self._first(name) for name in ("id", "relation")}
        source = record.get("source")
        if isinstance(source, str) and source.strip() and fact["id"] is not None:
            fact["id"] = f"{source.strip()}-{fact['id']}"  # QAEdit's ids are unique only within a source
        self._check_required(fact)
        self._add_questions(fact)
        # Fields that only errata's own format has, such as the joiner.
        fact |= {name: record[name] for name in FIELDS if name in record and name not in fact}
        if not self.faults:
            self.record = {name: value for name, value in fact.items() if value not in (None, [])}

    def _fault(self, what: str, remedy: str, code: str) -> None:
        self.faults.append(Fault(self._place, what, remedy, code=code))

    def _check_names(self) -> None:
        """A likely misspelling is a fault; any other unknown field is unused."""
        for name in self._record:
            if name in _USED or name in _IGNORED:
                continue
            close = similar(str(name).lower(), sorted(_USED), cutoff=0.85)
            if close and close[0] not in self._record:
                what = f"the field {shown(name)} is unknown"
                self._fault(what, f"Did you mean {close[0]!r}?", "FACT_UNKNOWN_FIELD")
            else:
                self.unused.append(str(name)[:40])

    def _check_required(self, fact: Mapping[str, Any]) -> None:
        for name in REQUIRED_FIELDS:
            if fact[name] is not None:
                continue
            present = [path for path in _NAMES[name] if self._value(path) is not None]
            if self.faults and present:
                continue  # its fault is already reported
            first = present[0] if present else {"target": "target_new"}.get(name, name)
            remedy = f"Accepted names: {', '.join(map(repr, _NAMES[name]))}"
            if name == "target" and "ground_truth" in self._record:
                remedy += " ('ground_truth' is the old answer)"
            if present:
                self._fault(f"'{first}' is empty", remedy, "FACT_EMPTY_FIELD")
            else:
                self._fault(f"'{first}' is missing", remedy, "FACT_MISSING_FIELD")

    def _value(self, path: str) -> Any:
        """The value at a path, or None; CounterFact's targets are objects with their text as ``str``."""
        value: Any = self._record
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if path.startswith("requested_rewrite.target") and isinstance(value, Mapping):
            return value.get("str")
        return value

    def _texts(self, name: str) -> list[str]:
        """The texts under the first of a field's names that is present; a fault if a required field has two values."""
        paths = [path for path in _NAMES[name] if self._value(path) is not None]
        texts = [self._texts_at(path) for path in paths]
        for path, other in zip(paths[1:], texts[1:], strict=True):
            if name in REQUIRED_FIELDS and other and texts[0] and other[0] != texts[0][0]:
                what = f"'{paths[0]}' {shown(texts[0][0])} and '{path}' {shown(other[0])} differ"
                self._fault(what, f"Keep only one of them, as the {name}", "FACT_DUPLICATE_FIELD")
        return texts[0] if texts else []

    def _texts_at(self, path: str) -> list[str]:
        return self._flat(self._value(path), path, "Write a text, or a list of texts")[0]

    def _first(self, name: str) -> str | None:
        return next(iter(self._texts(name)), None)

    def _flat(self, value: Any, path: str, remedy: str) -> tuple[list[str], bool]:
        """(texts in nested lists, stripped, without empty ones; whether all are texts). Numbers count as texts."""
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
                kind = "true or false" if isinstance(entry, bool) else "an object"
                self._fault(f"'{path}' contains {kind}, not text", remedy, "FACT_WRONG_TYPE")
                return texts, False
        return texts, True

    def _add_questions(self, fact: dict[str, Any]) -> None:
        locality = list(self._paired_fields(_LOCALITY_PAIRS))
        portability = list(self._paired_fields(_PORTABILITY_PAIRS))
        paraphrases: list[str] = fact["paraphrases"]
        for name in _LOCALITY:
            locality += [(prompt, answer) for _, prompt, answer in self._nested(self._record.get(name), name)]
        for name in _PORTABILITY:
            for kind, prompt, answer in self._nested(self._record.get(name), name):
                if kind.lower() == "subject_aliasing" and answer == fact["target"]:
                    paraphrases.append(prompt)
                else:
                    portability.append((prompt, answer))
        lists: dict[str, list[tuple[str, str]]] = {name: [] for name in QUESTION_LISTS}
        for name in QUESTION_LISTS:
            if name != "portability":  # read above
                lists[name] += [(prompt, answer) for _, prompt, answer in self._nested(self._record.get(name), name)]
        neighbours = self._texts_at("neighborhood_prompts")
        if fact["old"] is None:
            self.unanswered += len(neighbours)
        else:
            lists["neighbours"] += [(prompt, fact["old"]) for prompt in neighbours]
        for prompt, answer in locality:
            own = holds_name(prompt, fact["subject"] or "")
            lists["own" if own else "neighbours" if answer == fact["old"] else "unrelated"].append((prompt, answer))
        lists["portability"] += portability
        for name, found in lists.items():
            fact[name] = [{"prompt": prompt, "answer": answer} for prompt, answer in dict.fromkeys(found)]
        fact["paraphrases"] = list(dict.fromkeys(paraphrases))

    def _paired_fields(self, fields: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str]]:
        for questions, answers in fields:
            if (prompts := self._record.get(questions)) is None:
                continue
            for prompt, answer in self._paired(prompts, self._record.get(answers), questions, answers):
                # MEMIT adds a question mark to zsRE's locality questions.
                mark = "?" if questions == "loc" and "src" in self._record and not prompt.endswith("?") else ""
                yield prompt + mark, answer

    def _nested(self, value: Any, path: str, kind: str = "", depth: int = 0) -> Iterator[tuple[str, str, str]]:
        """(kind, prompt, answer) of all questions in a value: a question, a list of questions, or an object of either
        by kind. A question's prompt and answer may be lists of equal length.
        """
        if value is None:
            return
        remedy = f"Write questions as {_EXAMPLE}"
        if depth > _DEEPEST:
            self._fault(f"'{path[:60]}' is nested too deeply", remedy, "FACT_NESTED_TOO_DEEPLY")
        elif isinstance(value, list | tuple):
            for index, entry in enumerate(value):
                yield from self._nested(entry, f"{path}[{index}]", kind, depth + 1)
        elif not isinstance(value, Mapping):
            self._fault(f"'{path}' is {shown(value)}, a question without its answer", remedy, "FACT_WRONG_TYPE")
        elif (prompts := next((name for name in _QUESTION if value.get(name) is not None), None)) is not None:
            answers = next((name for name in _ANSWER if value.get(name) is not None), "ground_truth")
            pairs = self._paired(value[prompts], value.get(answers), f"{path}.{prompts}", f"{path}.{answers}")
            yield from ((kind, prompt, answer) for prompt, answer in pairs)
        elif not set(value).isdisjoint(_ANSWER):
            self._fault(f"'{path}' has an answer but no 'prompt'", remedy, "FACT_MISSING_FIELD")
        else:
            for name, entry in value.items():
                yield from self._nested(entry, f"{path}.{name}", str(name), depth + 1)

    def _paired(self, prompts: Any, answers: Any, prompts_path: str, answers_path: str) -> list[tuple[str, str]]:
        """Each prompt with the first of its answers; those without one are counted."""
        remedy = f"Write questions as {_EXAMPLE}"
        texts, _ = self._flat(prompts, prompts_path, remedy)
        answer_lists = answers if len(texts) > 1 and isinstance(answers, list | tuple) else [answers]
        if answers is None:
            answer_lists = [None] * len(texts)
        elif len(texts) > 1 and len(answer_lists) != len(texts):
            what = f"'{prompts_path}' has {len(texts)} prompts, but '{answers_path}' has {len(answer_lists)} answers"
            remedy = "Give one answer, or list of accepted answers, for each prompt"
            self._fault(what, remedy, "FACT_LIST_LENGTHS")
            return []
        pairs: list[tuple[str, str]] = []
        for prompt, accepted in zip(texts, answer_lists, strict=False):
            found, valid = self._flat(accepted, answers_path, remedy)
            if valid and found:
                pairs.append((prompt, found[0]))
            elif valid:
                self.unanswered += 1
        return pairs
