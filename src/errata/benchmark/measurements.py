"""The measurements of a benchmark: two that are always made, and those that are made when they are named."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from errata.benchmark.foreseen import no_concepts, no_drift, no_side_tests, no_texts
from errata.benchmark.parts import Answer, Part, Question
from errata.errors import Fault, FaultsError, InputError
from errata.evaluation.ability import AbilitySettings, measure_ability
from errata.evaluation.concepts import ConceptReading, ConceptSettings, absent_concepts, concept_records, read_concepts
from errata.evaluation.consistency import TermWeights, absent_consistency, check_consistency, evaluate_consistency
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
from errata.evaluation.harness import check_harness
from errata.evaluation.judge import HttpJudge, JudgeSettings
from errata.evaluation.perplexity import perplexity
from errata.evaluation.recall import absent, agreement, evaluate_facts
from errata.evaluation.references import read_references
from errata.evaluation.scoring import TargetScore
from errata.evaluation.side_tests import SideTestSettings, absent_side_tests, evaluate_side_tests, side_tests
from errata.evaluation.texts import TextSettings, write_texts
from errata.reading import reason_of
from errata.statistics.corpus import open_corpus

_Settings = TypeVar("_Settings", bound=BaseModel)


def _ask_recall(question: Question) -> Answer:
    facts, untouched = question.material.facts, question.material.untouched
    records = evaluate_facts(question.model, facts, untouched=untouched, tokens=True, report=question.report)
    if question.before is not None:
        records += agreement(question.model, facts, question.unedited)
    reasons = {str(metric): reason for metric, reason in absent(facts, untouched, tokens=True).items()}
    return Answer(records, absent=reasons)


def _ask_perplexity(question: Question) -> Answer:
    prose = question.material.prose
    found = perplexity(question.model, prose, report=question.report) if prose else None
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


def _ask_free(question: Question) -> Answer:
    options = _settings(FreeOptions, question.options)
    model, material, report = question.model, question.material, question.report
    judge = None if options.judge is None else HttpJudge(options.judge, report=report)
    records = evaluate_free(model, material.facts, options.chosen, judge=judge, report=report)
    missing: dict[str, str] = dict(absent_free(model, material.facts, options.chosen, judge=judge))
    missing |= {str(metric): why for metric, why in absent_free_locality(material.facts, material.untouched).items()}
    if question.before is None:
        answers = locality_answers(model, material.facts, options.chosen, untouched=material.untouched, report=report)
        return Answer(records, {"answers": answers}, missing)
    records += evaluate_free_locality(
        model, material.facts, question.before["answers"], options.chosen, untouched=material.untouched, report=report
    )
    return Answer(records, absent=missing)


def _check_free(options: Mapping[str, Any]) -> None:
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
        """Raises InputError if neither, or not both files, are given, or they cannot be read."""
        if self.vocabulary is not None and self.idf is not None:
            return TermWeights.read_published(self.vocabulary, self.idf)
        if self.corpus is not None:
            return TermWeights.fit(open_corpus(str(self.corpus)).documents())
        raise InputError(
            "consistency needs the weights of words", remedy="Give a corpus, or ROME's vocabulary and idf files"
        )


def _ask_texts(question: Question) -> Answer:
    options = _settings(TextOptions, question.options)
    writing = options.writing.model_copy(update={"seed": options.writing.seed + question.seed})
    facts = question.material.facts
    texts = write_texts(question.model, facts, writing, report=question.report)
    references = None if options.references is None else read_references(options.references)
    missing = absent_fluency(facts) | absent_consistency(facts, references)
    records = evaluate_fluency(texts)
    if references is not None and not absent_consistency(facts, references):
        records += evaluate_consistency(texts, facts, references, options.weights())
    return Answer(records, absent={str(metric): why for metric, why in missing.items()})


def _check_texts(options: Mapping[str, Any]) -> None:
    check_fluency()
    chosen = _settings(TextOptions, options)
    if chosen.references is not None:
        check_consistency()
        read_references(chosen.references)
        chosen.weights()


def _ask_drift(question: Question) -> Answer:
    material = question.material
    missing = {str(metric): why for metric, why in absent_drift(material.facts, material.untouched).items()}
    records = evaluate_drift(
        question.model, material.facts, question.unedited, untouched=material.untouched, report=question.report
    )
    return Answer(records, absent=missing)


def _ask_side(question: Question) -> Answer:
    settings = _dataclass(SideTestSettings, question.options)
    facts = question.material.facts
    generator = random.Random(f"side tests {settings.seed} {question.seed}")
    tests = side_tests(facts, generator, settings=settings)
    records = evaluate_side_tests(question.model, tests, report=question.report)
    return Answer(records, absent={str(metric): why for metric, why in absent_side_tests(facts).items()})


def _check_side(options: Mapping[str, Any]) -> None:
    _dataclass(SideTestSettings, options)


def _ask_ability(question: Question) -> Answer:
    found = measure_ability(question.model, _dataclass(AbilitySettings, question.options), report=question.report)
    return Answer(found.records(), {"labels": found.labels()})


def _check_ability(options: Mapping[str, Any]) -> None:
    check_harness()
    _dataclass(AbilitySettings, options)


def _ask_concepts(question: Question) -> Answer:
    settings = _dataclass(ConceptSettings, question.options)
    concepts = question.material.concepts
    reading = read_concepts(question.model, concepts, settings=settings, report=question.report)
    if question.before is None:
        records = concept_records(concepts, reading, settings=settings) if concepts else []
        return Answer(records, {"reading": _reading_as_json(reading)})
    before = _reading_from_json(question.before["reading"])
    missing = {str(metric): why for metric, why in absent_concepts(concepts).items()}
    records = concept_records(concepts, reading, before=before, settings=settings) if concepts else []
    return Answer(records, absent=missing)


def _check_concepts(options: Mapping[str, Any]) -> None:
    check_consistency()
    _dataclass(ConceptSettings, options)


def _reading_as_json(reading: ConceptReading) -> dict[str, Any]:
    scores = [[*pair, asdict(found)] for pair, found in reading.scores.items()]
    return {"scores": scores, "answers": reading.answers, "definitions": reading.definitions}


def _reading_from_json(saved: Mapping[str, Any]) -> ConceptReading:
    scores = {
        (prompt, target): TargetScore(**{**found, "likeliest": tuple(found["likeliest"])})
        for prompt, target, found in saved["scores"]
    }
    return ConceptReading(scores, dict(saved["answers"]), dict(saved["definitions"]))


PERPLEXITY = Part("perplexity", "on prose, as a ratio to the unedited model's", _ask_perplexity)
ALWAYS = (
    Part("recall", "efficacy, generalisation, specificity, portability …, teacher-forced", _ask_recall),
    PERPLEXITY,
)
FURTHER = (
    Part("free", "what the model says by itself, and whether other answers stayed", _ask_free, _check_free),
    Part("texts", "fluency and consistency of texts that it writes", _ask_texts, _check_texts, no_texts),
    Part(
        "drift",
        "KL divergence and top-5 overlap of the next token, where nothing should change",
        _ask_drift,
        nothing=no_drift,
    ),
    Part("side", "negation, reversal, multiple choice", _ask_side, _check_side, no_side_tests),
    Part("ability", "tasks of lm-evaluation-harness, and the papers' six probes", _ask_ability, _check_ability),
    Part("concepts", "definitions and instances of edited concepts", _ask_concepts, _check_concepts, no_concepts),
)


def parts_of(names: Iterable[str]) -> list[Part]:
    """The parts that are always asked, and those that are named.

    Raises:
        FaultsError: for names that there are not.
    """
    known = {part.name: part for part in FURTHER}
    chosen = list(dict.fromkeys(names))
    faults = [
        Fault("measures", f"there is no measurement {name!r}", f"Known: {', '.join(known)}")
        for name in chosen
        if name not in known
    ]
    if faults:
        raise FaultsError("the measurements", faults)
    return [*ALWAYS, *(known[name] for name in chosen)]


def check_parts(names: Iterable[str], options: Mapping[str, Any]) -> None:
    """Raises InputError, FaultsError: for unknown parts, settings that none has, and what would stop one later."""
    parts = parts_of(names)
    faults = [
        Fault(f"measures.options.{name}", "there are settings of a measurement that is not made", f"Add {name!r}")
        for name in options
        if name not in [part.name for part in parts]
    ]
    for part in parts:
        try:
            part.check(options.get(part.name, {}))
        except FaultsError as error:
            faults += error.faults
        except InputError as error:
            faults.append(Fault(f"measurement {part.name!r}", error.what, error.remedy))
    if faults:
        raise FaultsError("the measurements", faults)


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
