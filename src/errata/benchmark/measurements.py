"""The measurements of a benchmark: two required ones, and those that are made on request."""

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

from errata.benchmark.data import BenchmarkData, reading_result
from errata.editors.contract import Answerer
from errata.editors.embedders import SentenceEmbedder
from errata.errors import ErrataError, Fault, FaultsError, InputError, collect_errors
from errata.evaluation.ability import AbilitySettings, measure_ability
from errata.evaluation.absence import absent_abilities
from errata.evaluation.answer_edits import (
    AnswerSettings,
    Entailment,
    StandIns,
    absent_answer_edits,
    answer_edit_records,
    answers_to_compare,
)
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
from errata.evaluation.recall import METRICS as RECALL_METRICS
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
from errata.models.prompts import Pair, TargetScore
from errata.results.metrics import Metric, metrics_of
from errata.results.records import Record
from errata.statistics.corpus import open_corpus
from errata.utils.files import file_digest, reason_of, write_json
from errata.utils.progress import Report

State = Literal["before", "after"]
Dependency = Literal["material", "seed", "prose"]


@dataclass(frozen=True, slots=True)
class MeasurementInputs:
    """The inputs of a measurement.

    Attributes:
        model: before or after the run.
        options: settings of the measurement.
        seed: of random choices.
        before: ``extra`` of the unedited model's result; None while that is measured.
        unedited: context manager within which the model is unedited.
        view: the edited model, of editors that leave the weights alone.
        partial_path: path whose stem partial results may use; None: none are stored.
    """

    model: LanguageModel
    data: BenchmarkData
    options: Mapping[str, Any]
    seed: int
    before: Mapping[str, Any] | None
    unedited: Callable[[], AbstractContextManager[None]]
    report: Report
    partial_path: Path | None = None
    view: Answerer | None = None

    @property
    def answerer(self) -> Answerer:
        """The model or, for editors that leave its weights alone, its edited view."""
        return self.view or self.model


@dataclass(frozen=True, slots=True)
class MeasurementResult:
    """The result of a measurement.

    Attributes:
        records: one per prompt.
        extra: further values, as JSON, for the measurement of the edited model and for summaries.
        absent: metric -> why it is missing.
        seconds: wall time.
    """

    records: Sequence[Record]
    extra: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] | Mapping[Metric, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_record(self) -> dict[str, Any]:
        absent = {str(metric): reason for metric, reason in self.absent.items()}
        return {
            "records": [asdict(record) for record in self.records],
            "kept": dict(self.extra),
            "absent": absent,
            "seconds": self.seconds,
        }

    @property
    def perplexity(self) -> Perplexity | None:
        """Of the measurements that have one; None without prose."""
        return Perplexity.of(self.extra["perplexity"])

    @property
    def labels(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Metric of weighted F1 -> sample -> (right label, predicted label)."""
        return {
            metric: {sample: (right, predicted) for sample, (right, predicted) in labels.items()}
            for metric, labels in self.extra.get("labels", {}).items()
        }

    @property
    def values(self) -> dict[str, tuple[float, int]]:
        """Metric that is not a mean over samples -> (value, samples)."""
        return {metric: (float(value), int(count)) for metric, (value, count) in self.extra.get("values", {}).items()}

    @classmethod
    def of(cls, record: Mapping[str, Any], extra: Iterable[str] = ()) -> MeasurementResult:
        """The inverse of ``to_record``; raises AttributeError, KeyError, TypeError, ValueError for anything else.

        Args:
            extra: names that ``extra`` must have.
        """
        kept = {**record["kept"]}
        if missing := [name for name in extra if name not in kept]:
            raise KeyError(missing[0])
        found = cls(
            [Record(**entry) for entry in record["records"]], kept, {**record["absent"]}, float(record["seconds"])
        )
        # Read now, where the file's name is known.
        _ = found.labels, found.values, Perplexity.of(kept.get("perplexity"))
        return found


def _nothing_to_check(options: Mapping[str, Any]) -> None:
    """For measurements without settings."""
    if options:
        what = f"it has no settings, got {', '.join(options)}"
        raise InputError(what, remedy="Leave them out", code="MEASUREMENT_SETTING_UNKNOWN")


def _no_files(options: Mapping[str, Any]) -> Sequence[Path]:
    """For measurements that read no files."""
    return ()


def _possible(data: BenchmarkData) -> str | None:
    """For measurements that are always possible, or find out only when they are made."""
    return None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement.

    Attributes:
        name: as in ``--measure``.
        help: one line.
        run: makes it.
        check: raises InputError, before any work, for unusable settings or missing packages.
        files: files that it reads, by its settings.
        depends: what the unedited model's result depends on, besides the model; cells with the same share it.
        metrics: its metrics, whose entries say what the edited model must be able to do; none for ``ability``, whose
            tasks decide.
        impossible: why it is impossible with given data; None if it is possible, or if that is known only later.
        extra: names that ``extra`` of its results always has, for summaries.
    """

    name: str
    help: str
    run: Callable[[MeasurementInputs], MeasurementResult]
    check: Callable[[Mapping[str, Any]], None] = _nothing_to_check
    files: Callable[[Mapping[str, Any]], Sequence[Path]] = _no_files
    depends: frozenset[Dependency] = frozenset({"material", "seed"})
    impossible: Callable[[BenchmarkData], str | None] = _possible
    metrics: tuple[Metric, ...] = ()
    extra: frozenset[str] = frozenset()

    def absent(self, answerer: Answerer, method: str) -> Mapping[Metric, str]:
        """The metrics that a model edited by ``method`` lacks an ability for, with the reason."""
        return absent_abilities(self.metrics, answerer.abilities, method)

    def result_name(self, options: Mapping[str, Any]) -> str:
        """Name of its result; other settings, other name."""
        if not options:
            return self.name
        text = json.dumps(options, sort_keys=True, default=str)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _all_absent(metrics: Sequence[Metric], reasons: Mapping[Metric, str]) -> str | None:
    """The reasons, if all metrics have one."""
    if any(metric not in reasons for metric in metrics):
        return None
    return "; ".join(dict.fromkeys(reasons[metric] for metric in metrics))


_AT_ONCE: Final = 200  # cases between two writes of the file


class CachedJudge:
    """A judge with verdicts cached in a file; see ``Judge``. If the judge gives up, the measurement fails: a case
    without verdict is not a result.

    Args:
        path: file of verdicts, created if missing.
    """

    def __init__(self, judge: HttpJudge, path: Path) -> None:
        self._judge, self._path = judge, path

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """A verdict for each case, in their order.

        Raises:
            ErrataError: if the judge gave up. Its verdicts so far are saved for the next attempt.
            InputError: if the file is damaged, or the key is missing.
        """
        known = self._read()
        missing = [case for case in dict.fromkeys(cases) if case not in known]
        found: dict[Case, Verdict] = {}
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            found |= zip(some, self._judge.judge(some), strict=True)
            known |= {case: found[case].correct for case in some if found[case].correct is not None}
            entries = [{**asdict(case), "correct": correct} for case, correct in known.items()]
            write_json(self._path, entries)
            if self._judge.gave_up:
                settings = self._judge.settings
                left = sum(case not in known for case in missing)
                raise ErrataError(
                    f"the judge {settings.model!r} at {settings.base_url} stopped answering: {self._judge.gave_up}; "
                    f"{left} of {len(set(cases))} answers have no verdict",
                    remedy="Later, run errata bench --retry, which requests only the missing verdicts",
                    code="JUDGE_GAVE_UP",
                )
        return [found[case] if case in found else Verdict(known[case]) for case in cases]

    def _read(self) -> dict[Case, bool | None]:
        if not self._path.is_file():
            return {}
        with reading_result(self._path):
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            return {
                Case(entry["question"], tuple(entry["accepted"]), entry["answer"]): bool(entry["correct"])
                for entry in entries
            }


_Settings = TypeVar("_Settings")


def _settings(kind: type[_Settings], options: Mapping[str, Any]) -> _Settings:
    """The validated settings of a measurement, of a pydantic model or a dataclass.

    Raises:
        InputError: if they are invalid.
    """
    if not issubclass(kind, BaseModel):
        known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
        if unknown := [name for name in options if name not in known]:
            what = f"it has no setting {unknown[0]!r}"
            raise InputError(what, remedy=f"Known: {', '.join(known)}", code="MEASUREMENT_SETTING_UNKNOWN")
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        what = f"invalid settings: {reason_of(error)}"
        raise InputError(what, remedy="See docs/bench.md", code="MEASUREMENT_SETTING_INVALID") from error


def run_recall(inputs: MeasurementInputs) -> MeasurementResult:
    facts, untouched = inputs.data.facts, inputs.data.untouched
    records = evaluate_facts(inputs.answerer, facts, untouched=untouched, tokens=True, report=inputs.report)
    if inputs.before is not None:
        records += agreement(inputs.answerer, facts, inputs.unedited)
    return MeasurementResult(records, absent=absent(facts, untouched, tokens=True))


def run_perplexity(inputs: MeasurementInputs) -> MeasurementResult:
    prose = inputs.data.prose
    found = perplexity(inputs.model, prose, report=inputs.report) if prose else None
    return MeasurementResult([], {"perplexity": None if found is None else asdict(found)})


def run_split_perplexity(inputs: MeasurementInputs) -> MeasurementResult:
    halves = split_texts(inputs.model.tokenizer, inputs.data.prose, max_length=inputs.model.context_length)
    now = split_perplexity(inputs.answerer, halves, report=inputs.report)
    before = Perplexity.of((inputs.before or {}).get("perplexity"))
    when: State = "before" if before is None else "after"
    ratio = perplexity_ratio(before or now, now, when, metric=Metric.SPLIT_PERPLEXITY_RATIO)
    return MeasurementResult([], {"perplexity": asdict(now), "values": {str(ratio.metric): [ratio.mean, ratio.n]}})


class FreeOptions(BaseModel):
    """Settings of ``free``: ours or the paper's (``wild``), and optionally a judge."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wild: bool = False
    settings: FreeSettings | None = None
    judge: JudgeSettings | None = None

    @property
    def chosen(self) -> FreeSettings:
        return WILD if self.wild else self.settings or FreeSettings()


def run_free(inputs: MeasurementInputs) -> MeasurementResult:
    options = _settings(FreeOptions, inputs.options)
    model, data, report = inputs.answerer, inputs.data, inputs.report
    judge: HttpJudge | CachedJudge | None = None
    if options.judge is not None:
        judge = HttpJudge(options.judge, report=report)
        if inputs.partial_path is not None:
            judge = CachedJudge(judge, inputs.partial_path.with_suffix(".verdicts.json"))
    records = evaluate_free(model, data.facts, options.chosen, judge=judge, report=report)
    missing: dict[str, str] = dict(absent_free(model, data.facts, options.chosen, judge=judge))
    missing |= {str(metric): why for metric, why in absent_free_locality(data.facts, data.untouched).items()}
    if inputs.before is None:
        answers = locality_answers(model, data.facts, options.chosen, untouched=data.untouched, report=report)
        return MeasurementResult(records, {"answers": answers}, missing)
    records += evaluate_free_locality(
        model, data.facts, inputs.before["answers"], options.chosen, untouched=data.untouched, report=report
    )
    return MeasurementResult(records, absent=missing)


def check_free(options: Mapping[str, Any]) -> None:
    judge = _settings(FreeOptions, options).judge
    if judge is not None:
        HttpJudge(judge).check()


def run_answers(inputs: MeasurementInputs) -> MeasurementResult:
    settings, facts = _settings(AnswerSettings, inputs.options), inputs.data.facts
    answers = answers_to_compare(inputs.answerer, facts, settings, report=inputs.report)
    if inputs.before is None:
        return MeasurementResult([], {"answers": answers})
    records = answer_edit_records(facts, inputs.before["answers"], answers, settings)
    return MeasurementResult(records, absent=absent_answer_edits(facts, settings))


def check_answers(options: Mapping[str, Any]) -> None:
    settings = _settings(AnswerSettings, options)
    if settings.entailment:
        Entailment(settings.entailment)
    if settings.encoder:
        SentenceEmbedder(Path(settings.encoder))
    if settings.stand_in:
        StandIns(settings.stand_in)


class TextOptions(BaseModel):
    """Settings of ``texts``: generation, and references to compare with.

    Attributes:
        references: JSONL of ``relation``, ``target``, ``text``; without it there is no consistency.
        corpus: text for TF-IDF weights, its documents separated by blank lines.
        vocabulary, idf: instead of ``corpus``, the two files published with ROME.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    writing: TextSettings = TextSettings()
    references: Path | None = None
    corpus: Path | None = None
    vocabulary: Path | None = None
    idf: Path | None = None

    def weights(self) -> TermWeights:
        """Raises InputError if the files cannot be read or fitted."""
        self.check_weights()
        if self.corpus is not None:
            return corpus_weights(str(self.corpus))
        return TermWeights.read_published(self.vocabulary or Path(), self.idf or Path())

    def check_weights(self) -> None:
        """Raises InputError if files are missing or cannot be read; fits nothing."""
        if self.corpus is not None:
            open_corpus(str(self.corpus))
        elif self.vocabulary is not None and self.idf is not None:
            TermWeights.read_published(self.vocabulary, self.idf)
        else:
            raise InputError(
                "consistency needs TF-IDF weights",
                remedy="Give a corpus, or ROME's vocabulary and idf files",
                code="TFIDF_WEIGHTS_MISSING",
            )


def run_texts(inputs: MeasurementInputs) -> MeasurementResult:
    options = _settings(TextOptions, inputs.options)
    writing = options.writing.model_copy(update={"seed": options.writing.seed + inputs.seed})
    facts = inputs.data.facts
    texts = write_texts(inputs.answerer, facts, writing, report=inputs.report)
    references = None if options.references is None else read_references(options.references)
    missing = absent_fluency(facts) | absent_consistency(facts, references)
    records = evaluate_fluency(texts)
    if references is not None and not absent_consistency(facts, references):
        records += evaluate_consistency(texts, facts, references, options.weights())
    return MeasurementResult(records, absent=missing)


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


def run_drift(inputs: MeasurementInputs) -> MeasurementResult:
    data = inputs.data
    records = evaluate_drift(
        inputs.answerer, data.facts, inputs.unedited, untouched=data.untouched, report=inputs.report
    )
    return MeasurementResult(records, absent=absent_drift(data.facts, data.untouched))


def run_side(inputs: MeasurementInputs) -> MeasurementResult:
    settings = _settings(SideTestSettings, inputs.options)
    facts = inputs.data.facts
    generator = random.Random(f"side tests {settings.seed} {inputs.seed}")
    tests = side_tests(facts, generator, settings=settings)
    records = evaluate_side_tests(inputs.answerer, tests, report=inputs.report)
    return MeasurementResult(records, absent=absent_side_tests(facts))


def check_side(options: Mapping[str, Any]) -> None:
    _settings(SideTestSettings, options)


def run_ability(inputs: MeasurementInputs) -> MeasurementResult:
    found = measure_ability(inputs.answerer, _settings(AbilitySettings, inputs.options), report=inputs.report)
    numbers = found.values()
    values = {metric: list(value) for metric, value in numbers.items() if math.isfinite(value[0])}
    infinite = [metric for metric in numbers if metric not in values]
    absent = {**found.absent, **dict.fromkeys(infinite, "lm-evaluation-harness gives no finite number")}
    return MeasurementResult(found.records(), {"labels": found.labels(), "values": values}, absent)


def check_ability(options: Mapping[str, Any]) -> None:
    check_harness()
    chosen = _settings(AbilitySettings, options)
    with collect_errors("general ability") as part:
        with part:
            check_tasks(chosen.tasks)
        with part:
            if chosen.probes is not None:
                read_probes(chosen.probes, chosen.probe_items)


def files_of_ability(options: Mapping[str, Any]) -> list[Path]:
    chosen = _settings(AbilitySettings, options)
    probes = [] if chosen.probes is None else [chosen.probes / f"{probe.name}.json" for probe in PROBES]
    return [*task_files(paths_in(chosen.tasks)), *probes]


def run_concepts(inputs: MeasurementInputs) -> MeasurementResult:
    settings = _settings(ConceptSettings, inputs.options)
    concepts = inputs.data.concepts
    reading = read_concepts(inputs.answerer, concepts, settings=settings, report=inputs.report)
    if inputs.before is None:
        records = concept_records(concepts, reading, settings=settings) if concepts else []
        return MeasurementResult(records, {"reading": _reading_as_json(reading)})
    before = _reading_from_json(inputs.before["reading"])
    records = concept_records(concepts, reading, before=before, settings=settings) if concepts else []
    return MeasurementResult(records, absent=absent_concepts(concepts, model=inputs.answerer))


def check_concepts(options: Mapping[str, Any]) -> None:
    check_consistency()
    _settings(ConceptSettings, options)


def _reading_as_json(reading: ConceptReading) -> dict[str, Any]:
    scores = [[*pair, asdict(found)] for pair, found in reading.scores.items()]
    return {"scores": scores, "answers": reading.answers, "definitions": reading.definitions}


def _reading_from_json(saved: Mapping[str, Any]) -> ConceptReading:
    scores: dict[Pair, TargetScore] = {
        tuple(pair): TargetScore(**{**found, "likeliest": tuple(found["likeliest"])})
        for *pair, found in saved["scores"]
    }
    return ConceptReading(scores, dict(saved["answers"]), dict(saved["definitions"]))


PERPLEXITY = Measurement(
    "perplexity",
    "on prose, as a ratio to the unedited model's",
    run_perplexity,
    depends=frozenset({"prose"}),
    metrics=(Metric.PERPLEXITY_RATIO,),
    extra=frozenset({"perplexity"}),
)
REQUIRED = (
    Measurement(
        "recall",
        "efficacy, generalisation, specificity, portability …, teacher-forced",
        run_recall,
        depends=frozenset({"material"}),
        metrics=RECALL_METRICS,
    ),
    PERPLEXITY,
)
OPTIONAL = (
    Measurement(
        "split_perplexity",
        "perplexity of the second half of prose given the first, as a ratio to the unedited model's",
        run_split_perplexity,
        depends=frozenset({"prose"}),
        impossible=lambda data: None if any(data.prose) else "there is no prose",
        metrics=(Metric.SPLIT_PERPLEXITY_RATIO,),
    ),
    Measurement(
        "free",
        "free-running answers, and whether other answers are unchanged",
        run_free,
        check_free,
        depends=frozenset({"material"}),
        metrics=metrics_of("free_"),
    ),
    Measurement(
        "answers",
        "answers before and after: whether they hold the new object, and what else stayed (TE, TR, SE, SR)",
        run_answers,
        check_answers,
        depends=frozenset({"material"}),
        impossible=lambda data: absent_answer_edits(data.facts, AnswerSettings()).get(Metric.TEXTUAL_EDIT),
        metrics=(*metrics_of("textual_"), *metrics_of("semantic_")),
    ),
    Measurement(
        "texts",
        "fluency and consistency of generated texts",
        run_texts,
        check_texts,
        files_of_texts,
        # Without fluency there is no consistency either.
        impossible=lambda data: absent_fluency(data.facts).get(Metric.FLUENCY),
        metrics=(Metric.FLUENCY, Metric.CONSISTENCY),
    ),
    Measurement(
        "drift",
        "KL divergence and top-5 overlap of the next token on control prompts",
        run_drift,
        impossible=lambda data: _all_absent(metrics_of("drift_"), absent_drift(data.facts, data.untouched)),
        metrics=metrics_of("drift_"),
    ),
    Measurement(
        "side",
        "negation, reversal, multiple choice",
        run_side,
        check_side,
        impossible=lambda data: _all_absent(SIDE_METRICS, absent_side_tests(data.facts)),
        metrics=SIDE_METRICS,
    ),
    Measurement(
        "ability",
        "tasks of lm-evaluation-harness, and the papers' six probes",
        run_ability,
        check_ability,
        files_of_ability,
        depends=frozenset(),
    ),
    Measurement(
        "concepts",
        "definitions and instances of edited concepts",
        run_concepts,
        check_concepts,
        depends=frozenset({"material"}),
        impossible=lambda data: _all_absent(metrics_of("concept_"), absent_concepts(data.concepts)),
        metrics=metrics_of("concept_"),
    ),
)


def measurements_of(names: Iterable[str]) -> list[Measurement]:
    """The required measurements, and the named ones.

    Raises:
        FaultsError: for unknown names.
    """
    known = {measurement.name: measurement for measurement in OPTIONAL}
    chosen = list(dict.fromkeys(names))
    faults = [
        Fault("measures", f"unknown measurement {name!r}", f"Known: {', '.join(known)}", code="MEASUREMENT_UNKNOWN")
        for name in chosen
        if name not in known
    ]
    if faults:
        raise FaultsError("the list of measurements", faults)
    return [*REQUIRED, *(known[name] for name in chosen)]


def check_measurements(names: Iterable[str], options: Mapping[str, Any]) -> None:
    """Raises FaultsError for unknown measurements, unusable settings, and missing packages or files."""
    parts = measurements_of(names)
    faults = [
        Fault(
            f"measures.options.{name}",
            "settings for a measurement that is not made",
            f"Add {name!r}",
            code="MEASUREMENT_UNUSED_SETTINGS",
        )
        for name in options
        if name not in [measurement.name for measurement in parts]
    ]
    for measurement in parts:
        try:
            measurement.check(options.get(measurement.name, {}))
        except FaultsError as error:
            faults += error.faults
        except InputError as error:
            faults.append(Fault(f"measurement {measurement.name!r}", error.what, error.remedy, code=error.code))
    if faults:
        raise FaultsError("the list of measurements", faults)


def input_digests(names: Iterable[str], options: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Name of a result -> path -> SHA-256 of each file that the measurement reads; only for those that read files.

    Raises:
        InputError, FaultsError: with all files that cannot be read.
    """
    digests: dict[str, dict[str, str]] = {}
    faults = []
    for measurement in measurements_of(names):
        given = options.get(measurement.name, {})
        for file in measurement.files(given):
            try:
                digests.setdefault(measurement.result_name(given), {})[str(file)] = file_digest(file)
            except OSError as error:
                what = f"{measurement.name} cannot read it: {reason_of(error)}"
                faults.append(Fault(str(file), what, "Restore it", code="FILE_UNREADABLE"))
    if faults:
        raise FaultsError("the list of files that the measurements read", faults)
    return digests
