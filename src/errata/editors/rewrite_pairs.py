"""Sentences before and after an edit, from which the rewriting model of ``post_edit`` learns; no other model is needed.

Half of them are changed by the edit. These state the fact, in one of its wordings and with the old object or, now and
then, another wrong one; the lab's world also knows what follows from it. The others answer the record's questions about
anything else, most of them about the same subject, or state the new object already; from the lab there are other facts
of the same person with the old object. Some sentences break off before their end, as an answer does at its last token.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from errata.editors.memory_search import sentence
from errata.editors.training_data import EditorData, TrainingRecord
from errata.errors import InputError
from errata.facts.fact import Fact, Question
from errata.facts.joining import holds_name, joined
from errata.lab.package import lab_world
from errata.lab.world import CONSEQUENCE_WORDINGS, OBJECTS, RELATION_WORDINGS, World

_CONSEQUENCE_OF: Final = {"birthplace": "birth country", "employer": "employer city"}
_OTHER_OBJECT: Final = 0.25  # share of the fact's own sentences with another object than the old one
_CUT: Final = 0.1  # share of sentences that break off


@dataclass(frozen=True, slots=True)
class Replacement:
    """Words of a sentence, and what takes their place."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class SentencePair:
    """A sentence, and how an edit changes it.

    Attributes:
        fact: with its old object.
        text: the sentence before the edit.
        change: None where it stays.
    """

    fact: Fact
    text: str
    change: Replacement | None


_Maker = Callable[[TrainingRecord, Fact, random.Random], SentencePair | None]


def sentence_pairs(data: EditorData, count: int, generator: random.Random) -> list[SentencePair]:
    """Sentences from the records of a split; every second one is of a kind that the edit changes.

    Args:
        data: records without an old object or other questions are left out; each record's target is drawn anew from
            those of its relation.

    Raises:
        InputError: if no record is left.
    """
    records = [record for record in data.records if record.edit.old and (record.loc or record.hard_loc)]
    if not records:
        raise InputError(
            "no training record has both an old object and questions that should keep their answers",
            remedy="Use facts with truth and with own, neighbours or unrelated questions",
            code="EDITOR_DATA_TOO_SMALL",
        )
    targets: dict[str | None, list[str]] = {}
    for record in records:
        targets.setdefault(record.edit.relation, []).append(record.edit.target)
    own = _Own(targets)
    changing: list[_Maker] = [own.changed]
    staying: list[_Maker] = [_same_subject, _same_subject, _same_subject, _other, own.unchanged]
    if data.source == "lab":
        lab = _Lab(lab_world())
        changing.append(lab.consequence)
        staying += [lab.same_object, lab.other_consequence]
    pairs: list[SentencePair] = []
    while len(pairs) < count:
        record = generator.choice(records)
        edit = record.edit
        wordings = [edit.prompt, *(question.prompt for question in record.outer)]
        target = own.another(edit, generator) or edit.target
        fact = replace(edit, target=target, prompt=generator.choice(wordings))
        made = generator.choice(changing if len(pairs) % 2 else staying)(record, fact, generator)
        if made is not None:
            pairs.append(_cut(made, generator) if generator.random() < _CUT else made)
    return pairs


def _cut(pair: SentencePair, generator: random.Random) -> SentencePair:
    """The sentence up to one of its words."""
    words = pair.text.split(" ")
    text = " ".join(words[: generator.randint(1, len(words))]).removesuffix(".")
    return replace(pair, text=text, change=pair.change if pair.change and pair.change.old in text else None)


@dataclass(frozen=True, slots=True)
class _Own:
    """Sentences that state the fact."""

    targets: Mapping[str | None, Sequence[str]]

    def another(self, edit: Fact, generator: random.Random) -> str | None:
        """Another object of the relation; None if it is not known what its objects are."""
        others = [value for value in self.targets[edit.relation] if value not in (edit.old, edit.target)]
        return generator.choice(others) if edit.relation and others else None

    def changed(self, record: TrainingRecord, fact: Fact, generator: random.Random) -> SentencePair:
        old = fact.old or ""
        if generator.random() < _OTHER_OBJECT:
            old = self.another(fact, generator) or old
        return SentencePair(fact, _stated(record, fact, old, generator), Replacement(old, fact.target))

    def unchanged(self, record: TrainingRecord, fact: Fact, generator: random.Random) -> SentencePair:
        return SentencePair(fact, _stated(record, fact, fact.target, generator), None)


def _stated(record: TrainingRecord, fact: Fact, value: str, generator: random.Random) -> str:
    prompts = [record.edit.text, *(question.prompt for question in record.outer)]
    return sentence(joined(generator.choice(prompts), value, fact.joiner))


def _other(record: TrainingRecord, fact: Fact, generator: random.Random) -> SentencePair | None:
    return _staying(fact, [*record.hard_loc, *record.loc], generator)


def _same_subject(record: TrainingRecord, fact: Fact, generator: random.Random) -> SentencePair | None:
    """Another fact about the subject: what answers about it state most, and what is changed wrongly most easily."""
    own = [question for question in record.hard_loc if holds_name(question.prompt, fact.subject)]
    return _staying(fact, own, generator)


def _staying(fact: Fact, questions: Sequence[Question], generator: random.Random) -> SentencePair | None:
    """One of some questions with its answer, but none that may be the fact in other words (zsRE has a fact twice)."""
    others = [
        question
        for question in questions
        if question.answer != fact.old or not holds_name(question.prompt, fact.subject)
    ]
    return SentencePair(fact, sentence(joined(*generator.choice(others).pair)), None) if others else None


@dataclass(frozen=True, slots=True)
class _Lab:
    """Sentences that only the lab's world knows."""

    world: World

    def _said(self, person: str, relation: str, facts: Mapping[str, str], wording: int) -> tuple[str, str]:
        """A sentence about a person with other facts, and its object."""
        changed = World(self.world.seed, {person: facts})
        make = changed.consequence if relation in CONSEQUENCE_WORDINGS else changed.statement
        made = make(person, relation, wording)
        return made.sentence, made.object

    def consequence(self, record: TrainingRecord, fact: Fact, generator: random.Random) -> SentencePair | None:
        relation = fact.relation or ""
        if relation not in _CONSEQUENCE_OF:
            return None
        facts, follows = self.world.people[fact.subject], _CONSEQUENCE_OF[relation]
        wording = generator.randrange(len(CONSEQUENCE_WORDINGS[follows]))
        text, old = self._said(fact.subject, follows, facts, wording)
        _, new = self._said(fact.subject, follows, {**facts, relation: fact.target}, wording)
        return SentencePair(fact, text, Replacement(old, new) if new != old else None)

    def other_consequence(self, record: TrainingRecord, fact: Fact, generator: random.Random) -> SentencePair:
        """What follows from another fact of the same person."""
        relation = generator.choice([name for name in _CONSEQUENCE_OF if name != fact.relation])
        follows = _CONSEQUENCE_OF[relation]
        wording = generator.randrange(len(CONSEQUENCE_WORDINGS[follows]))
        return SentencePair(fact, self._said(fact.subject, follows, self.world.people[fact.subject], wording)[0], None)

    def same_object(self, record: TrainingRecord, fact: Fact, generator: random.Random) -> SentencePair | None:
        """Another fact of the same person with the old object, such as a home in the city of birth."""
        relation = fact.relation or ""
        alike = [name for name in OBJECTS if name != relation and OBJECTS[name] == OBJECTS[relation]]
        if not alike:
            return None
        other = generator.choice(alike)
        facts = {**self.world.people[fact.subject], other: fact.old or ""}
        wording = generator.randrange(len(RELATION_WORDINGS[other]))
        return SentencePair(fact, self._said(fact.subject, other, facts, wording)[0], None)
