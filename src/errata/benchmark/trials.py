"""Trials of several editors on the same facts, one after another on one model: what took, what broke, what it cost.

Each trial edits all facts, measures, and removes the edit again, so that every editor starts from the same weights.
``errata advise`` makes them as they are, ``errata compare`` with probes (``errata.benchmark.arguments``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from random import Random
from statistics import median
from typing import Any, Final, Protocol, TypeAlias

from errata.benchmark.sequence import EvaluationResult, EvaluationSet, compared, measure
from errata.editors.contract import Answerer, KnowledgeEditor, Undo
from errata.editors.table import Where
from errata.errors import ErrataError
from errata.evaluation.perplexity import Perplexity, perplexity_ratio, split_perplexity, split_texts
from errata.evaluation.side_tests import evaluate_side_tests, side_tests
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.results.metrics import CONTROLS, Metric
from errata.results.records import Record, Summary, summarise
from errata.results.tallies import Tally
from errata.utils.memory import peak_memory
from errata.utils.progress import Report, silent
from errata.utils.text import excerpt

TIMED_QUERIES: Final = 8  # of each kind, hits and misses
LOST: Final = "answers_lost"
"""Of control questions of all kinds together: answers that were right before and are wrong now."""
UNEDITED: Final = "unedited"
_NO_VALUE: Final = "there are too few questions"
_REPEATS: Final = 4
_SPLIT_TOKENS: Final = 256  # tokens of a text whose second half is scored


@dataclass(frozen=True, slots=True)
class Candidate:
    """An editor to try.

    Attributes:
        where: what it changes.
        make: the editor of the unedited model, with a progress callback.
        settings: what else its results depend on, as JSON.
    """

    name: str
    where: Where
    make: Callable[[LanguageModel, Report], KnowledgeEditor]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of one editor on one number of facts.

    Attributes:
        facts: number of facts edited.
        numbers: name of a metric, of ``LOST``, or of a probe's column -> its summary after the edit.
        seconds_per_fact: wall time of the edit, preparation included.
        query_seconds: of generating one token after a prompt that the editor acts on, and after one that it does not.
        base_query_seconds: the same of the unedited model at the same time.
        stored_bytes: size of the edit.
        undo: which edits can be removed.
        failure: why there are no numbers; empty if there are.
        seconds: wall time of the whole trial.
        peak_bytes: memory that editing took at most, beyond what was in use before; None if unknown.
        tallies: of probes: name of a column -> what its summary was computed from.
        absent: name of a probe's column -> why it is missing.
    """

    method: str
    where: Where
    facts: int
    numbers: dict[str, Summary]
    seconds_per_fact: float
    query_seconds: tuple[float, float]
    base_query_seconds: tuple[float, float]
    stored_bytes: int
    undo: Undo
    failure: str = ""
    seconds: float = 0.0
    peak_bytes: int | None = None
    tallies: dict[str, Tally] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """A mapping for JSON."""
        return {
            **asdict(self),
            "numbers": {name: asdict(found) for name, found in self.numbers.items()},
            "tallies": {name: asdict(found) for name, found in self.tallies.items()},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Trial:
        """The inverse of ``to_record``, also after JSON; raises KeyError, TypeError for anything else."""
        return cls(
            **{
                **record,
                "numbers": {name: Summary(**found) for name, found in record["numbers"].items()},
                "tallies": {name: Tally.from_record(found) for name, found in record["tallies"].items()},
                "query_seconds": tuple(record["query_seconds"]),
                "base_query_seconds": tuple(record["base_query_seconds"]),
            }
        )


@dataclass(frozen=True, slots=True)
class Baseline:
    """Measurements of the unedited model that all trials on the same facts share."""

    result: EvaluationResult
    halves: list[tuple[str, str] | None]
    split: Perplexity | None
    query_seconds: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Edited:
    """What probes measure.

    Attributes:
        model: the editor's model.
        view: the edited model.
        editor: None for the unedited model.
        records: of all prompts of the evaluation set.
        base: of the unedited model.
    """

    model: LanguageModel
    view: Answerer
    where: Where
    editor: KnowledgeEditor | None
    records: Sequence[Record]
    base: Sequence[Record]


Found: TypeAlias = Tally | float | str
"""A number with or without an interval, or the reason why there is none."""


class Probe(Protocol):
    """Further numbers of each trial."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the numbers."""
        ...

    def measure(self, edited: Edited, report: Report) -> Mapping[str, Found]:
        """The numbers, or why they are missing. Further edits must be removed again."""
        ...


def measure_baseline(model: LanguageModel, evaluation_set: EvaluationSet, *, report: Report = silent) -> Baseline:
    """Measure the unedited model."""
    result = _measured(model, evaluation_set, report, "measuring the unedited model")
    halves = (
        split_texts(model.tokenizer, evaluation_set.prose, max_length=_SPLIT_TOKENS) if evaluation_set.prose else []
    )
    split = split_perplexity(model, halves) if any(halves) else None
    return Baseline(result, halves, split, _query_seconds([model], evaluation_set)[0])


def run_trial(
    model: LanguageModel,
    candidate: Candidate,
    evaluation_set: EvaluationSet,
    baseline: Baseline,
    *,
    probes: Sequence[Probe] = (),
    seed: int = 0,
    report: Report = silent,
) -> Trial:
    """Edit with one editor, measure, and remove the edit.

    An editor that fails gives a trial with the reason; the model is then as it was. A probe that fails gives the
    reason as that of its missing numbers.
    """
    count = len(evaluation_set.facts)

    def listen(what: str, done: int, total: int) -> None:
        report(f"{candidate.name}: {what}", done, total)

    started = time.perf_counter()
    try:
        with peak_memory(model.device) as memory:
            editor = candidate.make(model, listen)
            edit = editor.apply(evaluation_set.facts)
    except ErrataError as error:
        none = (0.0, 0.0)
        return Trial(candidate.name, candidate.where, count, {}, 0.0, none, none, 0, "any", failure=error.what)
    seconds_per_fact = (time.perf_counter() - started) / count
    try:
        view = editor.view()
        after = _measured(view, evaluation_set, report, f"measuring {candidate.name}")
        numbers = {each.metric: each for each in _summaries(baseline, after, seed)}
        if baseline.split is not None and "likelihood" in view.abilities:
            now = split_perplexity(view, baseline.halves)
            metric = Metric.SPLIT_PERPLEXITY_RATIO
            numbers[metric] = perplexity_ratio(baseline.split, now, "after", metric=metric, seed=seed)
        # Other weights take no other time, so that such an editor is its own baseline.
        answerers = [view] if view is model else [view, model]
        query_seconds, *base_query_seconds = _query_seconds(answerers, evaluation_set)
        edited = Edited(model, view, candidate.where, editor, after.records, baseline.result.records)
        found = _probed(probes, edited, listen)
        return Trial(
            candidate.name,
            candidate.where,
            count,
            numbers | _probe_summaries(found, seed),
            seconds_per_fact,
            query_seconds,
            base_query_seconds[0] if base_query_seconds else query_seconds,
            edit.stored_bytes,
            editor.undo,
            seconds=time.perf_counter() - started,
            peak_bytes=memory.bytes,
            tallies=_tallies(found),
            absent=_reasons(found),
        )
    finally:
        editor.remove(edit)


def unedited_trial(
    model: LanguageModel,
    evaluation_set: EvaluationSet,
    baseline: Baseline,
    probes: Sequence[Probe],
    *,
    seed: int = 0,
    report: Report = silent,
) -> Trial:
    """The numbers of the unedited model, with which those of the trials are compared."""
    records = baseline.result.records
    found = _probed(probes, Edited(model, model, "weights", None, records, records), report)
    numbers = {each.metric: each for each in compared(records, records, "before", seed=seed)}
    return Trial(
        UNEDITED,
        "weights",
        len(evaluation_set.facts),
        numbers | _probe_summaries(found, seed),
        0.0,
        baseline.query_seconds,
        baseline.query_seconds,
        0,
        "any",
        tallies=_tallies(found),
        absent=_reasons(found),
    )


def _probed(probes: Sequence[Probe], edited: Edited, report: Report) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for probe in probes:
        try:
            found |= probe.measure(edited, report)
        except ErrataError as error:
            found |= dict.fromkeys(probe.columns, f"it failed: {excerpt(' '.join(error.what.split()), 200)}")
    return {name: _NO_VALUE if _is_nothing(value) else value for name, value in found.items()}


def _is_nothing(value: Found) -> bool:
    return not isinstance(value, str) and not isfinite(value.value if isinstance(value, Tally) else value)


def _probe_summaries(found: Mapping[str, Found], seed: int) -> dict[str, Summary]:
    return {name: _summary(name, value, seed) for name, value in found.items() if not isinstance(value, str)}


def _summary(name: str, value: Tally | float, seed: int) -> Summary:
    if isinstance(value, Tally):
        return value.summary(name, seed=seed)
    return Summary(name, "after", value, None, None, 1, 1)


def _tallies(found: Mapping[str, Found]) -> dict[str, Tally]:
    return {name: value for name, value in found.items() if isinstance(value, Tally)}


def _reasons(found: Mapping[str, Found]) -> dict[str, str]:
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _measured(answerer: Answerer, evaluation_set: EvaluationSet, report: Report, what: str) -> EvaluationResult:
    """Also with questions in reverse, where facts have some. Prose is only read in halves, as all editors can."""
    found = measure(answerer, replace(evaluation_set, prose=()), report=report, what=what)
    reversed_facts = [fact for fact in evaluation_set.facts if fact.reversal]
    if reversed_facts and "likelihood" in answerer.abilities:
        tests = [replace(test, negated=None, choice=None) for test in side_tests(reversed_facts, Random(0))]
        found = replace(found, records=[*found.records, *evaluate_side_tests(answerer, tests)])
    return found


def _summaries(baseline: Baseline, after: EvaluationResult, seed: int) -> Iterator[Summary]:
    yield from compared(baseline.result.records, after.records, "after", seed=seed)
    if lost := lost_records(baseline.result.records, after.records):
        yield from summarise(lost, "after", seed=seed)


def lost_records(before: Sequence[Record], now: Sequence[Record]) -> list[Record]:
    """For each control question that was answered right before: 1 if it is wrong now, else 0."""
    right = {_key(record) for record in before if record.metric in CONTROLS and record.value == 1}
    return [
        replace(record, metric=LOST, value=float(record.value != 1))
        for record in now
        if record.metric in CONTROLS and _key(record) in right
    ]


def _key(record: Record) -> tuple[str, str, str]:
    return record.fact, record.metric, record.prompt


def _misses(evaluation_set: EvaluationSet) -> list[str]:
    """Prompts about other subjects than the edited ones; those of the facts if there are none."""
    prompts = [question.prompt for _, question in evaluation_set.untouched]
    prompts += [question.prompt for fact in evaluation_set.facts for question in fact.neighbours]
    return (prompts or [fact.text for fact in evaluation_set.facts])[:TIMED_QUERIES]


def _query_seconds(answerers: Sequence[Answerer], evaluation_set: EvaluationSet) -> list[tuple[float, float]]:
    """For each answerer the time to generate one token after prompts of facts, and after others."""
    hits = [fact.text for fact in evaluation_set.facts[:TIMED_QUERIES]]
    return list(zip(_seconds(answerers, hits), _seconds(answerers, _misses(evaluation_set)), strict=True))


def _seconds(answerers: Sequence[Answerer], prompts: Sequence[str]) -> list[float]:
    """The median over prompts, asked one at a time; the first round is a warm-up.

    The answerers take turns, and of several rounds the quickest counts, since other processes can only slow them down.
    """
    best = [dict.fromkeys(prompts, float("inf")) for _ in answerers]
    for repeat in range(_REPEATS):
        for prompt in prompts:
            for answerer, found in zip(answerers, best, strict=True):
                started = time.perf_counter()
                answerer.continue_texts([prompt], new_tokens=1)
                if repeat:
                    found[prompt] = min(found[prompt], time.perf_counter() - started)
    return [median(found.values()) for found in best]


def with_wordings(facts: Sequence[Fact], sentences: Sequence[str], count: int = 2) -> tuple[list[Fact], int]:
    """Facts with other wordings where they have none: the prompt after an unrelated sentence.

    Returns:
        The facts, and how many got wordings; these are contexts, which are easier than true paraphrases.
    """
    found, added = [], 0
    for number, fact in enumerate(facts):
        if fact.paraphrases:
            found.append(fact)
            continue
        leads = [sentences[(number * count + offset) % len(sentences)] for offset in range(count)]
        found.append(replace(fact, paraphrases=tuple(f"{lead.strip()} {fact.text}" for lead in leads)))
        added += 1
    return found, added
