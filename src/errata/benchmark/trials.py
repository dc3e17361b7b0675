"""Trials of several editors on the same facts, one after another on one model: what took, what broke, what it cost.

Each trial edits all facts, measures, and removes the edit again, so that every editor starts from the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Final

from errata.benchmark.sequence import EvaluationResult, EvaluationSet, compared, measure
from errata.editors.contract import Answerer, KnowledgeEditor, Undo
from errata.editors.table import Where
from errata.errors import ErrataError
from errata.evaluation.perplexity import Perplexity, perplexity_ratio, split_perplexity, split_texts
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.results.metrics import CONTROLS, Metric
from errata.results.records import Record, Summary, summarise
from errata.utils.progress import Report, silent

TIMED_QUERIES: Final = 8  # of each kind, hits and misses
LOST: Final = "answers_lost"
"""Of control questions of all kinds together: answers that were right before and are wrong now."""
_REPEATS: Final = 3
_SPLIT_TOKENS: Final = 256  # tokens of a text whose second half is scored


@dataclass(frozen=True, slots=True)
class Candidate:
    """An editor to try.

    Attributes:
        where: what it changes.
        make: the editor of the unedited model, with a progress callback.
    """

    name: str
    where: Where
    make: Callable[[LanguageModel, Report], KnowledgeEditor]


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of one editor on one number of facts.

    Attributes:
        facts: number of facts edited.
        numbers: name of a metric (or ``LOST``) -> its summary after the edit.
        seconds_per_fact: wall time of the edit, preparation included.
        query_seconds: of generating one token after a prompt that the editor acts on, and after one that it does not.
        base_query_seconds: the same of the unedited model.
        stored_bytes: size of the edit.
        undo: which edits can be removed.
        failure: why there are no numbers; empty if there are.
    """

    method: str
    where: Where
    facts: int
    numbers: dict[str, Summary]
    seconds_per_fact: float
    query_seconds: tuple[float, float]
    base_query_seconds: float
    stored_bytes: int
    undo: Undo
    failure: str = ""

    def to_record(self) -> dict[str, Any]:
        """A mapping for JSON."""
        return {**asdict(self), "numbers": {name: asdict(found) for name, found in self.numbers.items()}}


@dataclass(frozen=True, slots=True)
class Baseline:
    """Measurements of the unedited model that all trials on the same facts share."""

    result: EvaluationResult
    halves: list[tuple[str, str] | None]
    split: Perplexity | None
    query_seconds: float


def measure_baseline(model: LanguageModel, evaluation_set: EvaluationSet, *, report: Report = silent) -> Baseline:
    """Measure the unedited model."""
    result = measure(model, evaluation_set, report=report, what="measuring the unedited model")
    halves = (
        split_texts(model.tokenizer, evaluation_set.prose, max_length=_SPLIT_TOKENS) if evaluation_set.prose else []
    )
    split = split_perplexity(model, halves) if any(halves) else None
    return Baseline(result, halves, split, _query_seconds(model, _misses(evaluation_set)))


def run_trial(
    model: LanguageModel,
    candidate: Candidate,
    evaluation_set: EvaluationSet,
    baseline: Baseline,
    *,
    seed: int = 0,
    report: Report = silent,
) -> Trial:
    """Edit with one editor, measure, and remove the edit.

    An editor that fails gives a trial with the reason; the model is then as it was.
    """
    count = len(evaluation_set.facts)

    def listen(what: str, done: int, total: int) -> None:
        report(f"{candidate.name}: {what}", done, total)

    started = time.perf_counter()
    try:
        editor = candidate.make(model, listen)
        edit = editor.apply(evaluation_set.facts)
    except ErrataError as error:
        return Trial(candidate.name, candidate.where, count, {}, 0.0, (0.0, 0.0), 0.0, 0, "any", failure=error.what)
    seconds_per_fact = (time.perf_counter() - started) / count
    try:
        view = editor.view()
        after = measure(view, evaluation_set, report=report, what=f"measuring {candidate.name}")
        numbers = {each.metric: each for each in _summaries(baseline, after, seed)}
        if baseline.split is not None and "likelihood" in view.abilities:
            now = split_perplexity(view, baseline.halves)
            metric = Metric.SPLIT_PERPLEXITY_RATIO
            numbers[metric] = perplexity_ratio(baseline.split, now, "after", metric=metric, seed=seed)
        hits = [fact.text for fact in evaluation_set.facts[:TIMED_QUERIES]]
        seconds = _query_seconds(view, hits), _query_seconds(view, _misses(evaluation_set))
        return Trial(
            candidate.name,
            candidate.where,
            count,
            numbers,
            seconds_per_fact,
            seconds,
            baseline.query_seconds,
            edit.stored_bytes,
            editor.undo,
        )
    finally:
        editor.remove(edit)


def _summaries(baseline: Baseline, after: EvaluationResult, seed: int) -> Iterator[Summary]:
    yield from compared(baseline.result.records, after.records, "after", seed=seed)
    right = {_key(record) for record in baseline.result.records if record.metric in CONTROLS and record.value == 1}
    lost = [
        replace(record, metric=LOST, value=float(record.value != 1))
        for record in after.records
        if record.metric in CONTROLS and _key(record) in right
    ]
    if lost:
        yield from summarise(lost, "after", seed=seed)


def _key(record: Record) -> tuple[str, str, str]:
    return record.fact, record.metric, record.prompt


def _misses(evaluation_set: EvaluationSet) -> list[str]:
    """Prompts about other subjects than the edited ones; those of the facts if there are none."""
    prompts = [question.prompt for _, question in evaluation_set.untouched]
    prompts += [question.prompt for fact in evaluation_set.facts for question in fact.neighbours]
    return (prompts or [fact.text for fact in evaluation_set.facts])[:TIMED_QUERIES]


def _query_seconds(answerer: Answerer, prompts: Sequence[str]) -> float:
    """The median time to generate one token after one prompt, asked one at a time; the first round is a warm-up."""
    each: list[float] = []
    for repeat in range(_REPEATS):
        for prompt in prompts:
            started = time.perf_counter()
            answerer.continue_texts([prompt], new_tokens=1)
            if repeat:
                each.append(time.perf_counter() - started)
    return median(each)


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
