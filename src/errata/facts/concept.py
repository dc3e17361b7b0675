"""A concept whose definition is edited, as in ConceptEdit's records.

Sample record (of JSONL)::

    {"id": "c1", "concept": "publisher", "prompt": "The definition of {} is", "definition": "a company that issues
     books", "new_definition": "a body of standing water", "paraphrases": ["What is a publisher? It is"],
     "instances": ["FrancoAngeli"], "non_instances": ["Lake Como"],
     "unrelated": [{"prompt": "The definition of lake is", "answer": "a body of standing water"}]}

After Wang et al. (2024), "Editing Conceptual Knowledge for Large Language Models", https://arxiv.org/abs/2403.06259.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from errata.errors import Fault, FaultsError
from errata.facts.fact import Fact, Question, as_questions, record_faults, shown, unknown_field

_REQUIRED = ("concept", "prompt", "new_definition")
_NAME_LISTS = ("instances", "non_instances", "instance_prompts")
_LISTS = ("paraphrases", *_NAME_LISTS)
_FACT_FIELDS = {"subject": "concept", "prompt": "prompt", "target": "new_definition", "old": "definition"}


@dataclass(frozen=True, slots=True)
class Concept:
    """One concept that gets a new definition. Every instance is valid.

    Attributes:
        id: a name that is unique in its set.
        concept: the concept's name; the subject of the edit.
        prompt: the wording before a definition, with ``{}`` exactly once, in the place of the concept.
        definition: the current or true definition; None if the file does not have it.
        new_definition: the definition after the edit.
        paraphrases: other wordings, as whole prompts, that ``new_definition`` should follow as well.
        instances: instances of the concept by ``definition``, which are not instances after the edit.
        non_instances: instances by ``new_definition``, taken from the concept that has this definition.
        unrelated: definitions of other concepts, as questions; their answers should not change.
        instance_prompts: whole questions on whether something is an instance by ``definition``, as some files have
            them.

    Raises:
        FaultsError: all fields that are empty, of a wrong type, or break a rule of facts.
    """

    id: str
    concept: str
    prompt: str
    definition: str | None
    new_definition: str
    paraphrases: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()
    non_instances: tuple[str, ...] = ()
    unrelated: tuple[Question, ...] = ()
    instance_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        name = f"concept {shown(self.id)}"
        if faults := concept_faults(values, name):
            raise FaultsError(name, faults)
        for list_name in _LISTS:
            object.__setattr__(self, list_name, tuple(values[list_name] or ()))
        object.__setattr__(self, "unrelated", as_questions(values["unrelated"] or ()))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Concept:
        """The concept of a JSON record.

        Raises:
            FaultsError: if ``concept_faults`` finds any.
        """
        if faults := concept_faults(record, "the record"):
            raise FaultsError("a concept's record", faults)
        return cls(**{"definition": None, **record})

    def to_record(self) -> dict[str, object]:
        """The concept as a JSON record, for ``of``."""
        return {**asdict(self), "unrelated": [entry.to_record() for entry in self.unrelated]}

    @property
    def instance_questions(self) -> tuple[str, ...]:
        """Questions on whether something is an instance, about instances by ``definition``."""
        return (*map(self._question, self.instances), *self.instance_prompts)

    @property
    def non_instance_questions(self) -> tuple[str, ...]:
        """The same about instances by ``new_definition``."""
        return tuple(map(self._question, self.non_instances))

    def _question(self, name: str) -> str:
        return f"Whether {name} belongs to category {self.concept}?"

    @property
    def text(self) -> str:
        """The prompt with the concept in the place of ``{}``."""
        return self.fact().text

    def fact(self) -> Fact:
        """The edit: a fact with the concept as its subject and the new definition as its target."""
        return Fact(
            self.id,
            self.concept,
            self.prompt,
            self.new_definition,
            self.definition,
            paraphrases=self.paraphrases,
            unrelated=self.unrelated,
        )


def concept_faults(record: Mapping[str, object], place: str) -> list[Fault]:
    """All rules that a record of the fields of a ``Concept`` violates."""
    known = tuple(field.name for field in fields(Concept))
    faults = [unknown_field(name, known, place) for name in record if name not in known]
    faults += [
        Fault(place, f"'{name}' is missing", "Add it", code="FACT_MISSING_FIELD")
        for name in ("id", *_REQUIRED)
        if record.get(name) is None
    ]
    # Fields that a fact has too follow the rules of facts.
    names = {"id": "id", "paraphrases": "paraphrases", "unrelated": "unrelated", **_FACT_FIELDS}
    as_fact = {field: record[name] for field, name in names.items() if record.get(name) is not None}
    for fault in record_faults(as_fact, place, required=()):
        what = fault.what
        for field, name in _FACT_FIELDS.items():
            what = what.replace(f"'{field}'", f"'{name}'")
        faults.append(Fault(place, what, fault.remedy, code=fault.code))
    for name in _NAME_LISTS:
        entries = record.get(name)
        if entries is None:
            continue
        if not isinstance(entries, list | tuple):
            faults.append(Fault(place, f"'{name}' is not a list", 'Write it as ["…"]', code="FACT_WRONG_TYPE"))
        elif any(not isinstance(entry, str) or entry.strip() != entry or not entry for entry in entries):
            what = f"an entry of '{name}' is not text, is empty, or has spaces around it"
            faults.append(Fault(place, what, "Write a list of names", code="FACT_WRONG_TYPE"))
    return faults
