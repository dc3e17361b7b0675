"""Data of a cell: facts to edit, control questions about other subjects, prose; stored once for all cells."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from errata.errors import InputError
from errata.evaluation.recall import Untouched
from errata.facts.concept import Concept
from errata.facts.fact import Fact, FactSet, Question
from errata.utils.files import reading, write_json, write_text
from errata.utils.locks import in_turn

UNTOUCHED = 300
REMEDY = "Restore it, or start over with another --out"


@dataclass(frozen=True, slots=True)
class BenchmarkData:
    """The data of one data set and one seed.

    Attributes:
        facts: in the order of editing.
        untouched: (cluster, question) about subjects that no fact edits.
        prose: texts for perplexity.
        concepts: facts that change a definition.
        notes: about its origin, for readers of the results.
    """

    facts: FactSet
    untouched: tuple[Untouched, ...]
    prose: tuple[str, ...]
    notes: tuple[str, ...] = ()
    concepts: tuple[Concept, ...] = ()

    def to_record(self) -> dict[str, Any]:
        return {
            "source": self.facts.source,
            "facts": [fact.to_record() for fact in self.facts],
            "untouched": [[cluster, question.to_record()] for cluster, question in self.untouched],
            "prose": list(self.prose),
            "notes": list(self.notes),
            "concepts": [concept.to_record() for concept in self.concepts],
        }


def _text_of(data: BenchmarkData) -> str:
    return json.dumps(data.to_record(), ensure_ascii=False, indent=1) + "\n"


def data_name(data: BenchmarkData) -> str:
    """The name of its file, by the digest of its content."""
    return f"{hashlib.sha256(_text_of(data).encode()).hexdigest()[:16]}.json"


def write_data(data: BenchmarkData, folder: Path) -> Path:
    """Write it under its name, unless the file exists."""
    path = folder / data_name(data)
    if not path.exists():
        write_text(path, _text_of(data))
    return path


def read_data(path: Path) -> BenchmarkData:
    """Raises InputError if it is not what ``write_data`` wrote."""
    with reading(path, remedy=REMEDY, code="BENCH_DATA_DAMAGED"):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] != path.stem:
            raise ValueError("its checksum does not match")
        record = json.loads(content)
        return BenchmarkData(
            FactSet(tuple(Fact(**entry) for entry in record["facts"]), record["source"]),
            tuple((cluster, Question(**question)) for cluster, question in record["untouched"]),
            tuple(record["prose"]),
            tuple(record["notes"]),
            tuple(Concept.of(entry) for entry in record["concepts"]),
        )


def others_untouched(facts: Sequence[Fact], edited: FactSet, *, seed: int) -> tuple[Untouched, ...]:
    """Control questions from a data set's other records, about unedited subjects, with the old answer."""
    subjects = {fact.subject for fact in edited}
    rest = [fact for fact in facts if fact.subject not in subjects and fact.old is not None]
    chosen = random.Random(f"untouched {seed}").sample(rest, min(UNTOUCHED, len(rest)))
    return tuple((fact.subject, Question(fact.text, fact.old or "")) for fact in chosen)


Kind = Literal["weights", "text"]
_CALLED: dict[Kind, str] = {"weights": "the model", "text": "the text for key statistics"}


def pin(bench: Path, kind: Kind, name: str, digest: str) -> None:
    """Check that all cells use the same weights and corpus; the first one records the digest.

    Args:
        bench: the benchmark's directory.
        name: as in the grid.
        digest: of the present content.

    Raises:
        InputError: if it is not what the first cell used.
    """
    path = bench / "pinned" / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    with in_turn(path.with_suffix(".lock"), f"the benchmark {bench}"):
        if not path.exists():
            write_json(path, {"name": name, "digest": digest})
    with reading(path, remedy=REMEDY, code="BENCH_DATA_DAMAGED"):
        known = str(json.loads(path.read_text(encoding="utf-8"))["digest"])
    if known != digest:
        raise InputError(
            f"{_CALLED[kind]} {name!r} ({kind} {digest[:12]}…) differs from the one that other cells of {bench} used "
            f"({known[:12]}…)",
            remedy=REMEDY,
            code="BENCH_INPUT_CHANGED",
        )


def reading_result(path: Path) -> AbstractContextManager[None]:
    """``utils.files.reading`` for a file that ``errata bench`` recreates."""
    return reading(path, remedy="Remove it and resume: errata bench recreates it", code="CELL_FILE_DAMAGED")


def read_json(path: Path) -> Any:
    """Raises InputError if the file, one that ``errata bench`` recreates, is missing or damaged."""
    with reading_result(path):
        return json.loads(path.read_text(encoding="utf-8"))
