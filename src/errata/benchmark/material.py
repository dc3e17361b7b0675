"""What a run edits and asks: the facts of a seed, questions about other subjects, prose; on disk beside the cells."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from errata.errors import InputError
from errata.evaluation.recall import Untouched
from errata.facts.concept import Concept
from errata.facts.fact import Fact, FactSet, Question, fact_of
from errata.utils.files import reason_of, write_text
from errata.utils.locks import in_turn

UNTOUCHED = 300


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that a run of one data set and one seed is about.

    Attributes:
        facts: in the order in which they are edited.
        untouched: (cluster, question) about subjects that no fact edits.
        prose: texts that perplexity is measured on.
        concepts: those of the facts that change a definition.
        notes: what a reader of the results should know of where it is from.
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


def material_text(material: Material) -> str:
    """As JSON, the same for the same material."""
    return json.dumps(material.to_record(), ensure_ascii=False, indent=1) + "\n"


def material_name(material: Material) -> str:
    """The name of its file, by its digest."""
    return f"{hashlib.sha256(material_text(material).encode()).hexdigest()[:16]}.json"


def write_material(material: Material, folder: Path) -> Path:
    """Keep it under its name; what is there already is left."""
    path = folder / material_name(material)
    if not path.exists():
        write_text(path, material_text(material))
    return path


def read_material(path: Path) -> Material:
    """Raises InputError if it is not what ``write_material`` wrote."""
    remedy = "Put the file back as it was, or begin anew with another --out"
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] != path.stem:
            raise ValueError("it was changed or damaged")
        record = json.loads(data)
        return Material(
            FactSet(tuple(fact_of(entry) for entry in record["facts"]), record["source"]),
            tuple((cluster, Question(**question)) for cluster, question in record["untouched"]),
            tuple(record["prose"]),
            tuple(record["notes"]),
            tuple(Concept.of(entry) for entry in record["concepts"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}", remedy=remedy) from error


def others_untouched(facts: Sequence[Fact], edited: FactSet, *, seed: int) -> tuple[Untouched, ...]:
    """Questions of a data set's other records about subjects that are not edited, answered with their old answer."""
    subjects = {fact.subject for fact in edited}
    rest = [fact for fact in facts if fact.subject not in subjects and fact.old is not None]
    chosen = random.Random(f"untouched {seed}").sample(rest, min(UNTOUCHED, len(rest)))
    return tuple((fact.subject, Question(fact.text, fact.old or "")) for fact in chosen)


# ----------------------------------------------------------------------------------------------------
# What the cells of a benchmark have in common and no file of it holds: a model's weights, the text for key statistics.
# The first cell that reads one notes its digest; later cells must find the same.


Kind = Literal["weights", "text"]
_CALLED: dict[Kind, str] = {"weights": "the model", "text": "the text for key statistics"}

_REMEDY = "Put it back as it was, or begin anew with another --out"


def pin(bench: Path, kind: Kind, name: str, digest: str) -> None:
    """Note what is found, or compare it with what an earlier cell has found.

    Args:
        bench: the benchmark's directory.
        name: what the grid calls it.
        digest: of what stands behind the name now.

    Raises:
        InputError: if it is not what the benchmark began with; names what differs.
    """
    path = bench / "pinned" / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    with in_turn(path.with_suffix(".lock"), f"the benchmark {bench}"):
        if not path.exists():
            write_text(path, json.dumps({"name": name, "digest": digest}, ensure_ascii=False) + "\n")
    try:
        known = str(json.loads(path.read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be used: {reason_of(error)}", remedy=_REMEDY) from error
    if known != digest:
        raise InputError(
            f"{_CALLED[kind]} {name!r} ({kind} {digest[:12]}…) is not what other cells of {bench} began with "
            f"({known[:12]}…)",
            remedy=_REMEDY,
        )
