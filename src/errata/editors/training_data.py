"""The records that trained editors learn from; ``datasets.editor_data`` makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

from errata.facts.fact import Fact, FactSet, Question

Split: TypeAlias = Literal["train", "calibration", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """An edit, and the questions by which it is judged.

    Attributes:
        edit: the fact to edit, without questions.
        outer: the same fact in other wordings, with the new answer.
        loc: questions about anything else, with the answers that should not change.
        hard_loc: the same, about the fact's subject or with its true object, which are easily changed as well.
    """

    edit: Fact
    outer: tuple[Question, ...]
    loc: tuple[Question, ...]
    hard_loc: tuple[Question, ...]

    @property
    def questions(self) -> tuple[Question, ...]:
        return (*self.outer, *self.loc, *self.hard_loc)

    def to_fact(self) -> Fact:
        """The edit with ``outer`` as paraphrases, ``hard_loc`` as neighbours and ``loc`` as unrelated questions."""
        paraphrases = tuple(question.prompt for question in self.outer)
        return replace(self.edit, paraphrases=paraphrases, neighbours=self.hard_loc, unrelated=self.loc)


@dataclass(frozen=True, slots=True)
class EditorData:
    """One split of a source; splits of the same seed share no subject and no prompt.

    Attributes:
        source: the name of a data set, or a file.
        seed: of the split.
        records: in random order.
    """

    source: str
    split: Split
    seed: int
    records: tuple[TrainingRecord, ...]

    def facts(self, count: int | None = None) -> FactSet:
        """The first ``count`` records with different subjects as facts; all such by default."""
        first: dict[str, Fact] = {}
        for record in self.records:
            first.setdefault(record.edit.subject, record.to_fact())
        return FactSet(tuple(first.values())[:count], f"{self.source}, {self.split}")

    def digest(self) -> str:
        """SHA-256 of the records."""
        entries = [
            [record.edit.to_record(), *(_listed(part) for part in (record.outer, record.loc, record.hard_loc))]
            for record in self.records
        ]
        return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _listed(questions: Sequence[Question]) -> list[dict[str, str]]:
    return [question.to_record() for question in questions]
