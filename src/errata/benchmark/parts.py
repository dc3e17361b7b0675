"""What is asked of a model before and after a run: named parts, each measured by itself and kept by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from errata.benchmark.material import Material
from errata.errors import Fault, FaultsError
from errata.evaluation.perplexity import perplexity
from errata.evaluation.recall import absent, agreement, evaluate_facts
from errata.evaluation.records import Record
from errata.models.language_model import LanguageModel
from errata.progress import Report

State = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class Question:
    """What a part is given.

    Attributes:
        model: as it is before or after the run.
        options: the part's own settings.
        seed: of whatever is drawn.
        before: what the part itself said of the unedited model; None while that is asked.
        unedited: within it the model is the unedited one.
    """

    model: LanguageModel
    material: Material
    options: Mapping[str, Any]
    seed: int
    before: Mapping[str, Any] | None
    unedited: Callable[[], AbstractContextManager[None]]
    report: Report


@dataclass(frozen=True, slots=True)
class Answer:
    """What a part gives.

    Attributes:
        records: one per prompt.
        kept: what the same part needs to know later, as JSON holds it.
    """

    records: Sequence[Record]
    kept: Mapping[str, Any]

    def to_record(self) -> dict[str, Any]:
        return {"records": [asdict(record) for record in self.records], "kept": dict(self.kept)}


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement.

    Attributes:
        name: as ``--measure`` calls it.
        what: one line of help.
        ask: does it.
        absent: metric -> why it cannot be told of a material.
    """

    name: str
    what: str
    ask: Callable[[Question], Answer]
    absent: Callable[[Material, Mapping[str, Any]], Mapping[str, str]] = lambda material, options: {}


def _ask_recall(question: Question) -> Answer:
    material = question.material
    records = evaluate_facts(
        question.model, material.facts, untouched=material.untouched, tokens=True, report=question.report
    )
    if question.before is not None:
        records += agreement(question.model, material.facts, question.unedited)
    return Answer(records, {})


def _absent_recall(material: Material, options: Mapping[str, Any]) -> Mapping[str, str]:
    return {str(metric): reason for metric, reason in absent(material.facts, material.untouched, tokens=True).items()}


def _ask_perplexity(question: Question) -> Answer:
    prose = question.material.prose
    found = perplexity(question.model, prose, report=question.report) if prose else None
    return Answer([], {"perplexity": None if found is None else asdict(found)})


ALWAYS = (
    Part("recall", "efficacy, generalisation, specificity, portability …, teacher-forced", _ask_recall, _absent_recall),
    Part("perplexity", "on prose, as a ratio to the unedited model's", _ask_perplexity),
)
FURTHER: tuple[Part, ...] = ()
PARTS: Mapping[str, Part] = {part.name: part for part in (*ALWAYS, *FURTHER)}


def parts_of(names: Iterable[str]) -> list[Part]:
    """The parts that are always asked, and those that are named.

    Raises:
        FaultsError: for names that there are not.
    """
    chosen = list(dict.fromkeys(name for name in names))
    known = [part.name for part in FURTHER]
    faults = [
        Fault("measures", f"there is no measurement {name!r}", f"Known: {', '.join(known) or 'none'}")
        for name in chosen
        if name not in known
    ]
    if faults:
        raise FaultsError("the measurements", faults)
    return [*ALWAYS, *(PARTS[name] for name in chosen)]
