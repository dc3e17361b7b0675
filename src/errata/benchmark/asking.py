"""How each measurement of a benchmark is made, with its settings; ``measurements`` lists them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from errata.benchmark.parts import Answer, Inquiry
from errata.benchmark.verdicts import KeptJudge
from errata.errors import InputError, told_together
from errata.evaluation.ability import AbilitySettings, measure_ability
from errata.evaluation.concepts import ConceptReading, ConceptSettings, absent_concepts, concept_records, read_concepts
from errata.evaluation.consistency import absent_consistency, evaluate_consistency
from errata.evaluation.drift import absent_drift, evaluate_drift
from errata.evaluation.fluency import absent_fluency, check_fluency, evaluate_fluency
from errata.evaluation.free_running import (
    absent_free,
    absent_free_locality,
    evaluate_free,
    evaluate_free_locality,
    locality_answers,
)
from errata.evaluation.free_settings import WILD, FreeSettings
from errata.evaluation.harness import check_harness, check_tasks, paths_in
from errata.evaluation.judge import HttpJudge, JudgeSettings
from errata.evaluation.perplexity import perplexity
from errata.evaluation.probes import PROBES, read_probes
from errata.evaluation.recall import absent, agreement, evaluate_facts
from errata.evaluation.references import read_references
from errata.evaluation.scoring import Pair, TargetScore
from errata.evaluation.side_tests import SideTestSettings, absent_side_tests, evaluate_side_tests, side_tests
from errata.evaluation.task_files import task_files
from errata.evaluation.term_weights import TermWeights, check_consistency, corpus_weights
from errata.evaluation.texts import TextSettings, write_texts
from errata.reading import reason_of
from errata.statistics.corpus import open_corpus

_Settings = TypeVar("_Settings", bound=BaseModel)


def ask_recall(inquiry: Inquiry) -> Answer:
    facts, untouched = inquiry.material.facts, inquiry.material.untouched
    records = evaluate_facts(inquiry.model, facts, untouched=untouched, tokens=True, report=inquiry.report)
    if inquiry.before is not None:
        records += agreement(inquiry.model, facts, inquiry.unedited)
    reasons = {str(metric): reason for metric, reason in absent(facts, untouched, tokens=True).items()}
    return Answer(records, absent=reasons)


def ask_perplexity(inquiry: Inquiry) -> Answer:
    prose = inquiry.material.prose
    found = perplexity(inquiry.model, prose, report=inquiry.report) if prose else None
    return Answer([], {"perplexity": None if found is None else asdict(found)})


class FreeOptions(BaseModel):
    """Settings of ``free``: ours or the paper's (``wild``), and a judge if there is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wild: bool = False
    settings: FreeSettings | None = None
    judge: JudgeSettings | None = None

    @property
    def chosen(self) -> FreeSettings:
        return WILD if self.wild else self.settings or FreeSettings()


def ask_free(inquiry: Inquiry) -> Answer:
    options = _settings(FreeOptions, inquiry.options)
    model, material, report = inquiry.model, inquiry.material, inquiry.report
    judge: HttpJudge | KeptJudge | None = None
    if options.judge is not None:
        judge = HttpJudge(options.judge, report=report)
        if inquiry.aside is not None:
            judge = KeptJudge(judge, inquiry.aside.with_suffix(".verdicts.json"))
    records = evaluate_free(model, material.facts, options.chosen, judge=judge, report=report)
    missing: dict[str, str] = dict(absent_free(model, material.facts, options.chosen, judge=judge))
    missing |= {str(metric): why for metric, why in absent_free_locality(material.facts, material.untouched).items()}
    if inquiry.before is None:
        answers = locality_answers(model, material.facts, options.chosen, untouched=material.untouched, report=report)
        return Answer(records, {"answers": answers}, missing)
    records += evaluate_free_locality(
        model, material.facts, inquiry.before["answers"], options.chosen, untouched=material.untouched, report=report
    )
    return Answer(records, absent=missing)


def check_free(options: Mapping[str, Any]) -> None:
    judge = _settings(FreeOptions, options).judge
    if judge is not None:
        HttpJudge(judge).check()


class TextOptions(BaseModel):
    """Settings of ``texts``: how they are written, and what they are compared with.

    Attributes:
        references: JSONL of ``relation``, ``target``, ``text``; without it there is no consistency.
        corpus: a text whose documents, a blank line between them, the words' weights are taken of.
        vocabulary, idf: instead of it the two files that are published with ROME.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    writing: TextSettings = TextSettings()
    references: Path | None = None
    corpus: Path | None = None
    vocabulary: Path | None = None
    idf: Path | None = None

    def weights(self) -> TermWeights:
        """Raises InputError if they cannot be read or fitted."""
        self.check_weights()
        if self.corpus is not None:
            return corpus_weights(str(self.corpus))
        return TermWeights.read_published(self.vocabulary or Path(), self.idf or Path())

    def check_weights(self) -> None:
        """Raises InputError if neither, or not both files, are given, or they cannot be read; fits nothing."""
        if self.corpus is not None:
            open_corpus(str(self.corpus))
        elif self.vocabulary is not None and self.idf is not None:
            TermWeights.read_published(self.vocabulary, self.idf)
        else:
            raise InputError(
                "consistency needs the weights of words", remedy="Give a corpus, or ROME's vocabulary and idf files"
            )


def ask_texts(inquiry: Inquiry) -> Answer:
    options = _settings(TextOptions, inquiry.options)
    writing = options.writing.model_copy(update={"seed": options.writing.seed + inquiry.seed})
    facts = inquiry.material.facts
    texts = write_texts(inquiry.model, facts, writing, report=inquiry.report)
    references = None if options.references is None else read_references(options.references)
    missing = absent_fluency(facts) | absent_consistency(facts, references)
    records = evaluate_fluency(texts)
    if references is not None and not absent_consistency(facts, references):
        records += evaluate_consistency(texts, facts, references, options.weights())
    return Answer(records, absent={str(metric): why for metric, why in missing.items()})


def check_texts(options: Mapping[str, Any]) -> None:
    check_fluency()
    chosen = _settings(TextOptions, options)
    if chosen.references is not None:
        check_consistency()
        read_references(chosen.references)
        chosen.check_weights()


def files_of_texts(options: Mapping[str, Any]) -> list[Path]:
    chosen = _settings(TextOptions, options)
    found = (chosen.references, chosen.corpus, chosen.vocabulary, chosen.idf)
    return [path for path in found if path is not None]


def ask_drift(inquiry: Inquiry) -> Answer:
    material = inquiry.material
    missing = {str(metric): why for metric, why in absent_drift(material.facts, material.untouched).items()}
    records = evaluate_drift(
        inquiry.model, material.facts, inquiry.unedited, untouched=material.untouched, report=inquiry.report
    )
    return Answer(records, absent=missing)


def ask_side(inquiry: Inquiry) -> Answer:
    settings = _dataclass(SideTestSettings, inquiry.options)
    facts = inquiry.material.facts
    generator = random.Random(f"side tests {settings.seed} {inquiry.seed}")
    tests = side_tests(facts, generator, settings=settings)
    records = evaluate_side_tests(inquiry.model, tests, report=inquiry.report)
    return Answer(records, absent={str(metric): why for metric, why in absent_side_tests(facts).items()})


def check_side(options: Mapping[str, Any]) -> None:
    _dataclass(SideTestSettings, options)


def ask_ability(inquiry: Inquiry) -> Answer:
    found = measure_ability(inquiry.model, _dataclass(AbilitySettings, inquiry.options), report=inquiry.report)
    values = {metric: list(value) for metric, value in found.values().items() if math.isfinite(value[0])}
    missing = dict.fromkeys(found.values().keys() - values.keys(), "lm-evaluation-harness gives no finite number")
    return Answer(found.records(), {"labels": found.labels(), "values": values}, missing)


def check_ability(options: Mapping[str, Any]) -> None:
    check_harness()
    chosen = _dataclass(AbilitySettings, options)
    with told_together("general ability") as part:
        with part:
            check_tasks(chosen.tasks)
        with part:
            if chosen.probes is not None:
                read_probes(chosen.probes, chosen.probe_items)


def files_of_ability(options: Mapping[str, Any]) -> list[Path]:
    chosen = _dataclass(AbilitySettings, options)
    probes = [] if chosen.probes is None else [chosen.probes / f"{probe.name}.json" for probe in PROBES]
    return [*task_files(paths_in(chosen.tasks)), *probes]


def ask_concepts(inquiry: Inquiry) -> Answer:
    settings = _dataclass(ConceptSettings, inquiry.options)
    concepts = inquiry.material.concepts
    reading = read_concepts(inquiry.model, concepts, settings=settings, report=inquiry.report)
    if inquiry.before is None:
        records = concept_records(concepts, reading, settings=settings) if concepts else []
        return Answer(records, {"reading": _reading_as_json(reading)})
    before = _reading_from_json(inquiry.before["reading"])
    missing = {str(metric): why for metric, why in absent_concepts(concepts).items()}
    records = concept_records(concepts, reading, before=before, settings=settings) if concepts else []
    return Answer(records, absent=missing)


def check_concepts(options: Mapping[str, Any]) -> None:
    check_consistency()
    _dataclass(ConceptSettings, options)


def _reading_as_json(reading: ConceptReading) -> dict[str, Any]:
    scores = [[*pair, asdict(found)] for pair, found in reading.scores.items()]
    return {"scores": scores, "answers": reading.answers, "definitions": reading.definitions}


def _reading_from_json(saved: Mapping[str, Any]) -> ConceptReading:
    scores: dict[Pair, TargetScore] = {
        tuple(pair): TargetScore(**{**found, "likeliest": tuple(found["likeliest"])})
        for *pair, found in saved["scores"]
    }
    return ConceptReading(scores, dict(saved["answers"]), dict(saved["definitions"]))


def _settings(kind: type[_Settings], options: Mapping[str, Any]) -> _Settings:
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        raise InputError(f"its settings are wrong: {reason_of(error)}", remedy="See docs/bench.md") from error


_Data = TypeVar("_Data")


def _dataclass(kind: type[_Data], options: Mapping[str, Any]) -> _Data:
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in options if name not in known]:
        raise InputError(f"it has no setting {unknown[0]!r}", remedy=f"Known: {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        raise InputError(f"its settings are wrong: {reason_of(error)}", remedy="See docs/bench.md") from error
