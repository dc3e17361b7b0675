"""The measurements of a benchmark: two that are always made, and those that are made when they are named."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from errata.benchmark import measurements as asking
from errata.benchmark.cell_spec import damaged
from errata.benchmark.material import Material
from errata.errors import ErrataError, Fault, FaultsError, InputError, collect_errors
from errata.evaluation.ability import AbilitySettings, measure_ability
from errata.evaluation.concepts import ConceptReading, ConceptSettings, absent_concepts, concept_records, read_concepts
from errata.evaluation.drift import absent_drift, evaluate_drift
from errata.evaluation.free_running import (
    WILD,
    FreeSettings,
    absent_free,
    absent_free_locality,
    evaluate_free,
    evaluate_free_locality,
    locality_answers,
)
from errata.evaluation.harness import check_harness, check_tasks, paths_in, task_files
from errata.evaluation.judge import Case, HttpJudge, JudgeSettings, Verdict
from errata.evaluation.perplexity import Perplexity, perplexity, perplexity_ratio, split_perplexity, split_texts
from errata.evaluation.probes import PROBES, read_probes
from errata.evaluation.recall import absent, agreement, evaluate_facts
from errata.evaluation.side_tests import (
    SIDE_METRICS,
    SideTestSettings,
    absent_side_tests,
    evaluate_side_tests,
    side_tests,
)
from errata.evaluation.texts import (
    TermWeights,
    TextSettings,
    absent_consistency,
    absent_fluency,
    check_consistency,
    check_fluency,
    corpus_weights,
    evaluate_consistency,
    evaluate_fluency,
    read_references,
    write_texts,
)
from errata.models.language_model import LanguageModel
from errata.models.likelihood import Pair, TargetScore
from errata.results.metrics import Metric
from errata.results.records import Record
from errata.statistics.corpus import open_corpus
from errata.utils.files import file_digest, reason_of, write_text
from errata.utils.progress import Report

# ----------------------------------------------------------------------------------------------------
# What a measurement of a benchmark is: asked of a model before and after a run, and kept by itself.


State = Literal["before", "after"]
Dependency = Literal["material", "seed", "prose"]


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What a part is given.

    Attributes:
        model: as it is before or after the run.
        options: the part's own settings.
        seed: of whatever is drawn.
        before: what the part itself kept of the unedited model; None while that is asked.
        unedited: within it the model is the unedited one.
        aside: beside files of this name, with another suffix, what is done so far may be kept; None: nothing is.
    """

    model: LanguageModel
    material: Material
    options: Mapping[str, Any]
    seed: int
    before: Mapping[str, Any] | None
    unedited: Callable[[], AbstractContextManager[None]]
    report: Report
    aside: Path | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a part gives.

    Attributes:
        records: one per prompt.
        kept: what the same part, or whoever sums it up, needs to know later, as JSON holds it.
        absent: metric -> why it cannot be told.
        seconds: wall time that it took.
    """

    records: Sequence[Record]
    kept: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_record(self) -> dict[str, Any]:
        absent = {str(metric): reason for metric, reason in self.absent.items()}
        return {
            "records": [asdict(record) for record in self.records],
            "kept": dict(self.kept),
            "absent": absent,
            "seconds": self.seconds,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Answer:
        """As ``to_record`` wrote it; raises KeyError, TypeError, ValueError if it is not that."""
        return cls(
            [Record(**entry) for entry in record["records"]],
            {**record["kept"]},
            {**record["absent"]},
            float(record["seconds"]),
        )


def _nothing_to_check(options: Mapping[str, Any]) -> None:
    """For parts without settings."""
    if options:
        raise InputError(f"it has no settings, got {', '.join(options)}", remedy="Leave them out")


def _no_files(options: Mapping[str, Any]) -> Sequence[Path]:
    """For parts that read none."""
    return ()


def _something(material: Material) -> str | None:
    """For parts that can always be asked, or cannot know it before."""
    return None


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement.

    Attributes:
        name: as ``--measure`` calls it.
        what: one line of help.
        ask: does it.
        check: raises InputError, before any work, for settings or packages that would stop it.
        files: those that it reads, by its settings.
        depends: what an unedited model's answer depends on, beside the model; cells that share that share the answer.
        nothing: why it can ask nothing at all of a material; None if it can, or if that shows only when it is asked.
    """

    name: str
    what: str
    ask: Callable[[Inquiry], Answer]
    check: Callable[[Mapping[str, Any]], None] = _nothing_to_check
    files: Callable[[Mapping[str, Any]], Sequence[Path]] = _no_files
    depends: frozenset[Dependency] = frozenset({"material", "seed"})
    nothing: Callable[[Material], str | None] = _something

    def answer_name(self, options: Mapping[str, Any]) -> str:
        """What its answer by these settings is called; by others it is another answer."""
        if not options:
            return self.name
        text = json.dumps(options, sort_keys=True, default=str)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# ----------------------------------------------------------------------------------------------------
# What is known before any work: that a measurement can ask nothing at all of a material.


def no_texts(material: Material) -> str | None:
    """Why no text can be written; without one there is no consistency either."""
    return absent_fluency(material.facts).get(Metric.FLUENCY)


def no_drift(material: Material) -> str | None:
    """Why there is no prompt behind which nothing should change."""
    metrics = [metric for metric in Metric if metric.startswith("drift_")]
    return _if_all(metrics, absent_drift(material.facts, material.untouched))


def no_side_tests(material: Material) -> str | None:
    """Why there is no side test."""
    return _if_all([*SIDE_METRICS], absent_side_tests(material.facts))


def no_concepts(material: Material) -> str | None:
    """Why no concept can be asked of."""
    metrics = [metric for metric in Metric if metric.startswith("concept_")]
    return _if_all(metrics, absent_concepts(material.concepts))


def _if_all(names: list[Any], reasons: Mapping[Any, str]) -> str | None:
    """The reasons, if every one of the names has one."""
    if any(name not in reasons for name in names):
        return None
    return "; ".join(dict.fromkeys(reasons[name] for name in names))


# ----------------------------------------------------------------------------------------------------
# A judge whose verdicts are kept as they come, and whose outage is a failure: what was not judged because nobody
# answered is no result.


_AT_ONCE: Final = 200  # cases between two writings of the file: what is killed loses no more of them


class KeptJudge:
    """Asks a judge what it has not been asked before; see ``Judge``.

    Args:
        path: a file of verdicts, which is made if it is not there.
    """

    def __init__(self, judge: HttpJudge, path: Path) -> None:
        self._judge, self._path = judge, path

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """A verdict for each case, in their order.

        Raises:
            ErrataError: if the judge has given up. The verdicts that it gave are kept, so that the next attempt asks
                the others alone.
            InputError: if the file is damaged, or the key is not there.
        """
        known = self._read()
        asked = [case for case in dict.fromkeys(cases) if case not in known]
        found: dict[Case, Verdict] = {}
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            found |= zip(some, self._judge.judge(some), strict=True)
            known |= {case: found[case].correct for case in some if found[case].correct is not None}
            entries = [{**asdict(case), "correct": correct} for case, correct in known.items()]
            write_text(self._path, json.dumps(entries, ensure_ascii=False) + "\n")
            if self._judge.gave_up:
                settings = self._judge.settings
                left = sum(case not in known for case in asked)
                raise ErrataError(
                    f"the judge {settings.model!r} at {settings.base_url} gave up: {self._judge.gave_up}; "
                    f"{left} of {len(set(cases))} answers have no verdict",
                    remedy="When it answers again: errata bench --retry, which asks for those alone",
                )
        return [found[case] if case in found else Verdict(known[case]) for case in cases]

    def _read(self) -> dict[Case, bool | None]:
        if not self._path.is_file():
            return {}
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            return {
                Case(entry["question"], tuple(entry["accepted"]), entry["answer"]): bool(entry["correct"])
                for entry in entries
            }
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise damaged(self._path, error) from error


# ----------------------------------------------------------------------------------------------------
# How each measurement of a benchmark is made, with its settings; ``measurements`` lists them.


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


def ask_split_perplexity(inquiry: Inquiry) -> Answer:
    halves = split_texts(inquiry.model.tokenizer, inquiry.material.prose, max_length=inquiry.model.context_length)
    now = split_perplexity(inquiry.model, halves, report=inquiry.report)
    saved = (inquiry.before or {}).get("perplexity")
    before = now if saved is None else Perplexity(tuple(saved["log_likelihoods"]), tuple(saved["counts"]))
    ratio = perplexity_ratio(before, now, "after" if saved else "before", metric=Metric.SPLIT_PERPLEXITY_RATIO)
    return Answer([], {"perplexity": asdict(now), "values": {str(ratio.metric): [ratio.mean, ratio.n]}})


def no_prose(material: Material) -> str | None:
    """Why there is no prose to measure perplexity on."""
    return None if any(material.prose) else "there is no prose"


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
    with collect_errors("general ability") as part:
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


# ----------------------------------------------------------------------------------------------------


PERPLEXITY = Part(
    "perplexity", "on prose, as a ratio to the unedited model's", asking.ask_perplexity, depends=frozenset({"prose"})
)
ALWAYS = (
    Part(
        "recall",
        "efficacy, generalisation, specificity, portability …, teacher-forced",
        asking.ask_recall,
        depends=frozenset({"material"}),
    ),
    PERPLEXITY,
)
FURTHER = (
    Part(
        "split_perplexity",
        "perplexity of the second half of prose given the first, as a ratio to the unedited model's",
        asking.ask_split_perplexity,
        depends=frozenset({"prose"}),
        nothing=asking.no_prose,
    ),
    Part(
        "free",
        "what the model says by itself, and whether other answers stayed",
        asking.ask_free,
        asking.check_free,
        depends=frozenset({"material"}),
    ),
    Part(
        "texts",
        "fluency and consistency of texts that it writes",
        asking.ask_texts,
        asking.check_texts,
        asking.files_of_texts,
        nothing=no_texts,
    ),
    Part(
        "drift",
        "KL divergence and top-5 overlap of the next token, where nothing should change",
        asking.ask_drift,
        nothing=no_drift,
    ),
    Part("side", "negation, reversal, multiple choice", asking.ask_side, asking.check_side, nothing=no_side_tests),
    Part(
        "ability",
        "tasks of lm-evaluation-harness, and the papers' six probes",
        asking.ask_ability,
        asking.check_ability,
        asking.files_of_ability,
        depends=frozenset(),
    ),
    Part(
        "concepts",
        "definitions and instances of edited concepts",
        asking.ask_concepts,
        asking.check_concepts,
        depends=frozenset({"material"}),
        nothing=no_concepts,
    ),
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


def input_digests(names: Iterable[str], options: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Name of an answer -> path -> SHA-256 of each file that the measurement reads: an answer is of these files, and of
    no others. Measurements that read none are not named.

    Raises:
        InputError, FaultsError: for files that cannot be read; names all of them.
    """
    digests: dict[str, dict[str, str]] = {}
    faults = []
    for part in parts_of(names):
        given = options.get(part.name, {})
        for file in part.files(given):
            try:
                digests.setdefault(part.answer_name(given), {})[str(file)] = file_digest(file)
            except OSError as error:
                faults.append(Fault(str(file), f"{part.name} cannot read it: {reason_of(error)}", "Put it back"))
    if faults:
        raise FaultsError("what the measurements read", faults)
    return digests
