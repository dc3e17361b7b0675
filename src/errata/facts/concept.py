"""A concept whose definition is edited: what ConceptEdit's records say, and what is asked about them.

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
_LISTS = ("paraphrases", "instances", "non_instances", "instance_prompts")
_OF_FACTS = {"subject": "concept", "prompt": "prompt", "target": "new_definition", "old": "definition"}


@dataclass(frozen=True, slots=True)
class Concept:
    """One concept that is to get a new definition. An instance is always well-formed.

    Attributes:
        id: a name that is unique in its set.
        concept: the concept's name; the subject of the edit.
        prompt: the wording that a definition follows, with ``{}`` exactly once, where the concept stands.
        definition: what the model says, or what is true; None where a file does not say.
        new_definition: what the model shall say.
        paraphrases: other wordings, as whole prompts, that ``new_definition`` should follow too.
        instances: what belongs to the concept as ``definition`` has it, and after the edit does not.
        non_instances: what belongs to it as ``new_definition`` has it, and did not before the edit: instances of the
            concept that the new definition was taken from.
        instance_prompts: whole questions whether something is an instance as ``definition`` has it, as files hold
            them ready-made.
        unrelated: definitions of other concepts, as questions; what is said to them should stay.

    Raises:
        FaultsError: if a field is empty, of a wrong type, or breaks a rule of facts; tells all faults.
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
        """The concept of a record, as JSON holds it.

        Raises:
            FaultsError: if ``concept_faults`` finds any.
        """
        if faults := concept_faults(record, "the record"):
            raise FaultsError("a concept's record", faults)
        values = dict(record)
        values |= {name: tuple(record.get(name) or ()) for name in _LISTS}
        return cls(**{"definition": None} | values | {"unrelated": as_questions(record.get("unrelated") or ())})

    def to_record(self) -> dict[str, object]:
        """The concept as JSON would hold it, for ``of``."""
        record = asdict(self)
        return {**record, "unrelated": [entry.to_record() for entry in self.unrelated]}

    @property
    def asked_of_instances(self) -> tuple[str, ...]:
        """Questions whether something belongs to the concept that does so as ``definition`` has it."""
        return (
            *(f"Whether {name} belongs to category {self.concept}?" for name in self.instances),
            *self.instance_prompts,
        )

    @property
    def asked_of_non_instances(self) -> tuple[str, ...]:
        """The same of what belongs to it as ``new_definition`` has it."""
        return tuple(self._asked(name) for name in self.non_instances)

    def _asked(self, name: str) -> str:
        return f"Whether {name} belongs to category {self.concept}?"

    @property
    def text(self) -> str:
        """The prompt with the concept in the place of ``{}``."""
        return self.fact().text

    def fact(self) -> Fact:
        """The edit: a fact with the concept for subject and the new definition for target."""
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
    """All that is wrong with one record of the fields of a ``Concept``; none means that one can be made of it."""
    known = tuple(field.name for field in fields(Concept))
    faults = [unknown_field(name, known, place) for name in record if name not in known]
    missing = [name for name in ("id", *_REQUIRED) if record.get(name) is None]
    faults += [Fault(place, f"'{name}' is missing", "Add it") for name in missing]
    # The rules of the fields that a fact has too are those of facts, told with the names of concepts.
    shared = {"id", "paraphrases", "unrelated"}
    as_fact = {name: record[name] for name in shared if record.get(name) is not None}
    as_fact |= {field: record[name] for field, name in _OF_FACTS.items() if record.get(name) is not None}
    for fault in record_faults(as_fact, place, required=()):
        what = fault.what
        for field, name in _OF_FACTS.items():
            what = what.replace(f"'{field}'", f"'{name}'")
        faults.append(Fault(place, what, fault.remedy))
    for name in ("instances", "non_instances", "instance_prompts"):
        entries = record.get(name)
        if entries is None:
            continue
        if not isinstance(entries, list | tuple):
            faults.append(Fault(place, f"'{name}' is not a list", f'Write it as "{name}": ["…"]'))
        elif any(not isinstance(entry, str) or entry.strip() != entry or not entry for entry in entries):
            what = f"an entry of '{name}' is no text, is empty, or has spaces around it"
            faults.append(Fault(place, what, "Write names as texts"))
    return faults
