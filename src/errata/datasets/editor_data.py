"""Training records for editors that are trained themselves, from the lab's world or any data set of facts.

Subjects are divided by seed: 60 % for training, 10 % for calibration and 30 % for tests. No two splits share a subject
or a prompt, and no question of one names a subject of another.
"""

from __future__ import annotations

import os
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

from errata.datasets import counterfact, lab
from errata.datasets.reading import read_dataset
from errata.editors.training_data import SPLITS, EditorData, Split, TrainingRecord
from errata.errors import InputError
from errata.facts.fact import Fact, FactSet, Question
from errata.facts.joining import holds_name
from errata.lab.corpus import scene
from errata.lab.package import lab_world
from errata.lab.world import OBJECTS, RELATION_WORDINGS, Statement, World

_TRAIN_SHARE: Final = 0.6
_CALIBRATION_SHARE: Final = 0.1
_LEAST: Final = 10  # subjects, for one in every split
_UNTOUCHED: Final = 0.2  # share of the lab's people who are in no split
_OWN, _SAME_OBJECT, _LOC = 3, 3, 4  # questions of a record at most
_SENTENCE_END: Final = re.compile(r"[.!?…]['\"”’)]*\s+|\n+")

T = TypeVar("T")
Parts: TypeAlias = dict[Split, list[TrainingRecord]]


def editor_data(source: str, split: Split, seed: int, *, path: str | os.PathLike[str] | None = None) -> EditorData:
    """The records of one split.

    Args:
        source: ``lab``, the name of another data set with facts, or the user's own file of facts.
        seed: of the split and of everything random in the records.
        path: the data set's file; see ``reading.read_dataset``.

    Raises:
        InputError: as ``read_dataset``, or if there are too few subjects.
    """
    return editor_splits(source, seed, path=path)[split]


def editor_splits(source: str, seed: int, *, path: str | os.PathLike[str] | None = None) -> Mapping[Split, EditorData]:
    """All splits of a source; see ``editor_data``."""
    if source == lab.DATASET.name:
        parts = _lab_records(lab_world(), seed)
    else:
        loaded = read_dataset(source, path)
        parts = _records_of(loaded.facts, seed, shortened=_SHORTENED.get(loaded.dataset, _unchanged))
    _separate(parts, seed)
    for split in SPLITS:
        if not parts[split]:
            raise InputError(
                f"{source!r} gives no records for {split}",
                remedy="Give more facts, about different subjects",
                code="EDITOR_DATA_TOO_SMALL",
            )
    return {split: EditorData(source, split, seed, tuple(parts[split])) for split in SPLITS}


# The lab


def _lab_records(world: World, seed: int) -> Parts:
    generator = random.Random(f"editor data {seed}")
    names = list(world.people)
    generator.shuffle(names)
    people = divided(names[round(_UNTOUCHED * len(names)) :], generator)
    background = [statement for wording in range(5) for statement in world.background(wording)]
    places = divided(list(dict.fromkeys(statement.subject for statement in background)), generator)
    return {
        split: _records_of_people(
            world,
            people[split],
            [statement for statement in background if statement.subject in set(places[split])],
            generator,
        )
        for split in SPLITS
    }


def _records_of_people(
    world: World, people: Sequence[str], background: Sequence[Statement], generator: random.Random
) -> list[TrainingRecord]:
    """One record for each person and relation."""
    members = set(people)
    records = []
    for person in people:
        for relation in world.relations:
            truth = world.people[person][relation]
            wordings = list(RELATION_WORDINGS[relation])
            generator.shuffle(wordings)
            target = generator.choice([value for value in OBJECTS[relation] if value != truth])
            edit = Fact(
                id=f"{person}, {relation}", subject=person, prompt=wordings[0], target=target, old=truth,
                relation=relation,
            )  # fmt: skip
            own = generator.sample([name for name in world.relations if name != relation], _OWN)
            holders = [name for name in world.holders[relation, truth] if name in members and name != person]
            same = generator.sample(holders, min(_SAME_OBJECT, len(holders)))
            others = generator.sample([name for name in people if name != person], min(2, len(people) - 1))
            records.append(
                TrainingRecord(
                    edit,
                    outer=tuple(Question(wording.replace("{}", person), target) for wording in wordings[1:]),
                    loc=(
                        *(_true(world, name, generator.choice(world.relations), generator) for name in others),
                        _question(generator.choice(background)),
                        _half_of_a_scene(generator),
                    ),
                    hard_loc=(
                        *(_true(world, person, name, generator) for name in own),
                        *(_true(world, name, relation, generator) for name in same),
                    ),
                )
            )
    generator.shuffle(records)
    return records


def _true(world: World, person: str, relation: str, generator: random.Random) -> Question:
    return _question(world.statement(person, relation, generator.randrange(len(RELATION_WORDINGS[relation]))))


def _question(statement: Statement) -> Question:
    return Question(statement.prompt.replace("{}", statement.subject, 1), statement.object)


def _half_of_a_scene(generator: random.Random) -> Question:
    words = " ".join(scene(generator)).split()
    return Question(" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :]))


# Data sets


def _unchanged(paraphrase: str, subject: str) -> str:
    return paraphrase


def after_the_last_sentence(paraphrase: str, subject: str) -> str:
    """Without the sentences before the one that has the subject; CounterFact puts unrelated ones there."""
    place = paraphrase.rfind(subject)
    ends = [found.end() for found in _SENTENCE_END.finditer(paraphrase) if found.end() <= place]
    return paraphrase[ends[-1] :] if ends else paraphrase


_SHORTENED: Final[Mapping[str, Callable[[str, str], str]]] = {
    counterfact.DATASET.name: after_the_last_sentence,
    counterfact.MULTI.name: after_the_last_sentence,
}


def _records_of(facts: FactSet, seed: int, *, shortened: Callable[[str, str], str]) -> Parts:
    """Facts with at least one other wording; their questions are also those of other facts in the same split."""
    generator = random.Random(f"editor data {seed}")
    worded = [fact for fact in facts if fact.paraphrases]
    by_subject: dict[str, list[Fact]] = {}
    for fact in worded:
        by_subject.setdefault(_normalised(fact.subject), []).append(fact)
    subjects = divided(list(by_subject), generator)
    parts: Parts = {}
    for split in SPLITS:
        members = [fact for subject in subjects[split] for fact in by_subject[subject]]
        generator.shuffle(members)
        parts[split] = _records_of_members(members, shortened, generator)
    return parts


def _records_of_members(
    facts: Sequence[Fact], shortened: Callable[[str, str], str], generator: random.Random
) -> list[TrainingRecord]:
    known = [fact for fact in facts if fact.truth]
    of_subject, of_truth = _grouped(known, _subject), _grouped(known, lambda fact: (fact.relation, fact.truth))
    records = []
    for fact in facts:
        wordings = dict.fromkeys(shortened(text, fact.subject) for text in fact.paraphrases)
        own = [_answered(other) for other in of_subject.get(_subject(fact), []) if other is not fact]
        # Subjects whose true object is the new one: CounterFact's attribute prompts, with known answers.
        same = [_answered(other) for other in of_truth.get((fact.relation, fact.target), []) if fact.relation]
        unrelated = list(fact.unrelated) or _of_other_relations(fact, known, generator)
        records.append(
            TrainingRecord(
                Fact(
                    id=fact.id,
                    subject=fact.subject,
                    prompt=fact.prompt,
                    target=fact.target,
                    old=fact.old,
                    aliases=fact.aliases,
                    relation=fact.relation,
                    joiner=fact.joiner,
                ),
                outer=tuple(Question(text, fact.target, fact.joiner) for text in wordings),
                loc=_some(unrelated, _LOC, generator),
                hard_loc=(
                    *_some([*fact.own, *own], _OWN, generator),
                    *_some([*fact.neighbours, *same], _SAME_OBJECT, generator),
                ),
            )
        )
    return records


def _of_other_relations(fact: Fact, known: Sequence[Fact], generator: random.Random) -> list[Question]:
    some = generator.sample(known, min(4 * _LOC, len(known)))
    return [
        _answered(other)
        for other in some
        if _subject(other) != _subject(fact) and (other.relation is None or other.relation != fact.relation)
    ]


def _answered(fact: Fact) -> Question:
    return Question(fact.text, fact.truth or "", fact.joiner)


def _subject(fact: Fact) -> str:
    return _normalised(fact.subject)


def _grouped(facts: Iterable[Fact], key: Callable[[Fact], T]) -> dict[T, list[Fact]]:
    found: dict[T, list[Fact]] = {}
    for fact in facts:
        found.setdefault(key(fact), []).append(fact)
    return found


def _some(questions: Sequence[Question], most: int, generator: random.Random) -> tuple[Question, ...]:
    return tuple(generator.sample(questions, min(most, len(questions))))


# Splits


def divided(names: Sequence[T], generator: random.Random) -> dict[Split, list[T]]:
    """Names by split, 60, 10 and 30 %, at random.

    Raises:
        InputError: if there are fewer than ten.
    """
    if len(names) < _LEAST:
        raise InputError(
            f"training data of {len(names)} subjects cannot be split",
            remedy=f"Give facts with paraphrases about at least {_LEAST} subjects",
            code="EDITOR_DATA_TOO_SMALL",
        )
    order = list(names)
    generator.shuffle(order)
    first, second = round(_TRAIN_SHARE * len(order)), round((_TRAIN_SHARE + _CALIBRATION_SHARE) * len(order))
    return {"train": order[:first], "calibration": order[first:second], "test": order[second:]}


def _separate(parts: Parts, seed: int) -> None:
    """Leave out what two splits share: prompts stay in one of them, those of edits before others."""
    edited = _owners({split: [record.edit.text for record in records] for split, records in parts.items()}, seed)
    for split, records in parts.items():
        records[:] = [record for record in records if edited[_normalised(record.edit.text)] == split]
    texts = {
        split: [question.prompt for record in records for question in record.questions]
        for split, records in parts.items()
    }
    owners = {**_owners(texts, seed), **edited}
    subjects = _Subjects({_subject(record.edit): split for split, records in parts.items() for record in records})

    def stays(question: Question, split: Split) -> bool:
        return owners[_normalised(question.prompt)] == split and subjects.splits_in(question.prompt) <= {split}

    for split, records in parts.items():
        found = []
        for record in records:
            outer, loc, hard_loc = (
                tuple(question for question in questions if stays(question, split))
                for questions in (record.outer, record.loc, record.hard_loc)
            )
            if outer:
                found.append(TrainingRecord(record.edit, outer, loc, hard_loc))
        records[:] = found


def _owners(texts: Mapping[Split, Iterable[str]], seed: int) -> dict[str, Split]:
    """Normalised text -> the split that keeps it: at random one of those that have it."""
    found: dict[str, list[Split]] = {}
    for split in SPLITS:
        for text in dict.fromkeys(map(_normalised, texts[split])):
            found.setdefault(text, []).append(split)
    return {
        text: splits[0] if len(splits) == 1 else random.Random(f"owner {seed} {text}").choice(splits)
        for text, splits in found.items()
    }


class _Subjects:
    """Finds subjects in texts, by their first words."""

    def __init__(self, split_of: Mapping[str, Split]) -> None:
        self._split_of = split_of
        self._of_word: dict[str, list[str]] = {}
        for subject in split_of:
            self._of_word.setdefault(_words(subject)[0], []).append(subject)

    def splits_in(self, text: str) -> set[Split]:
        text = _normalised(text)
        words = dict.fromkeys(_words(text))
        return {
            self._split_of[subject]
            for word in words
            for subject in self._of_word.get(word, [])
            if subject in text and holds_name(text, subject)
        }


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text) or [text]


def _normalised(text: str) -> str:
    """Equal for texts that differ in case, spaces or Unicode form only."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
