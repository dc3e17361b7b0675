"""A sequence of batches edited into a model with one recipe, measured before, right after each batch, at the end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from errata.batch_record import BatchRecord
from errata.edit import Editor
from errata.evaluation.changes import change_records
from errata.evaluation.chat import ChatQuestion, evaluate_chat
from errata.evaluation.metrics import Metric
from errata.evaluation.perplexity import Perplexity, perplexity, perplexity_ratio
from errata.evaluation.recall import evaluate_facts
from errata.evaluation.records import Record, Summary, When, summarise, summarise_groups
from errata.evaluation.results_file import Row, to_long
from errata.facts import Fact, Question
from errata.models.language_model import LanguageModel
from errata.patch import Patch
from errata.preparation import Prepared
from errata.progress import Report, silent
from errata.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Examination:
    """What a model is asked: the facts with their neighbours, questions about other subjects, prose, and what it is
    asked in its chat template.

    Attributes:
        automatic: (id of a fact, field) of control questions that errata drew by itself; see ``automatic_controls``.
    """

    facts: Sequence[Fact]
    untouched: Sequence[tuple[str, Question]] = ()
    prose: Sequence[str] = ()
    chat: Sequence[ChatQuestion] = ()
    automatic: Collection[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """What it answered.

    Attributes:
        records: one per prompt.
        perplexity: on the prose; None without prose.
        weight_norm_ratio: what ``weight_norm_ratio`` gave when it was asked; None where that is not known.
    """

    records: list[Record]
    perplexity: Perplexity | None
    weight_norm_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """A finished run; the edit is in the model until ``patch.undo``.

    Attributes:
        rows: the long form, see ``errata.evaluation.results_file.to_long``.
    """

    method: str
    rows: list[Row]
    patch: Patch
    batches: list[BatchRecord]
    after: Measurement

    @property
    def left_alone(self) -> list[Fact]:
        """Facts that no round was for; see ``BatchRecord``."""
        return [fact for batch in self.batches for fact in batch.left_alone]


def examine(
    model: LanguageModel, examination: Examination, *, report: Report = silent, what: str = "asking"
) -> Measurement:
    """Ask the model everything, as it is now."""

    def asking(_: str, done: int, total: int) -> None:
        report(what, done, total)

    with model.blaming_no_edit():
        records = evaluate_facts(model, examination.facts, untouched=examination.untouched, report=asking)
        if examination.chat:
            records += evaluate_chat(model, examination.chat, report=report)
        prose = perplexity(model, examination.prose, report=report) if examination.prose else None
    return Measurement(records, prose)


def run_sequence(
    model: LanguageModel,
    recipe: Recipe,
    examination: Examination,
    before: Measurement,
    *,
    cache: Path | None = None,
    report: Report = silent,
    seed: int = 0,
    prepared: Prepared | None = None,
) -> SequenceResult:
    """Edit ``examination.facts`` in batches of ``recipe.batch_size`` and measure.

    Args:
        before: what ``examine`` gave on the model as it comes in.
        seed: of the bootstrap.
        prepared: see ``Editor``.

    Raises:
        EditError, InputError: the model is then what it was.
    """
    editor = Editor(model, recipe, cache=cache, report=report, prepared=prepared)
    right_after: list[Record] = []
    facts_done = 0

    def on_batch(batch: BatchRecord) -> None:
        nonlocal facts_done
        right_after.extend(evaluate_facts(model, batch.facts))
        facts_done += len(batch.facts)
        report("facts edited", facts_done, len(examination.facts))

    report("facts edited", 0, len(examination.facts))
    patch = editor.apply(examination.facts, on_batch=on_batch)
    try:
        after = replace(examine(model, examination, report=report), weight_norm_ratio=weight_norm_ratio(editor))
    except BaseException:
        patch.undo(model)
        raise
    rows = rows_of(recipe.method, before, right_after, after, editor.records, seed)
    return SequenceResult(recipe.method, rows, patch, list(editor.records), after)


def rows_of(
    method: str,
    before: Measurement,
    right_after: Sequence[Record],
    after: Measurement,
    batches: Sequence[BatchRecord],
    seed: int,
) -> list[Row]:
    """The long form of a run: each metric before it, right after each fact's own batch, and after it."""
    summaries = (
        compared(before.records, before.records, "before", seed=seed)
        + compared(before.records, right_after, "right_after", seed=seed)
        + compared(before.records, after.records, "after", seed=seed)
    )
    if before.perplexity is not None and after.perplexity is not None:
        summaries += perplexity_summaries(before.perplexity, after.perplexity, seed=seed)
    if after.weight_norm_ratio is not None:
        summaries.append(weight_norm_summary([after.weight_norm_ratio], "after", seed=seed))
    summaries.append(_seconds_per_edit(batches, seed))
    return to_long(method, summaries)


def compared(before: Sequence[Record], now: Sequence[Record], when: When, *, seed: int = 0) -> list[Summary]:
    """Summaries of what a model said, and of how its answers to control questions differ from the unedited model's."""
    return summarise([*now, *change_records(before, now)], when, seed=seed)


def weight_norm_ratio(editor: Editor) -> float:
    """‖W − W₀‖ / ‖W₀‖ (Frobenius) over all layers that are written, as one vector."""
    terms = editor.patch().terms
    change = total = 0.0
    for layer in dict.fromkeys(term.layer for term in terms):
        before = editor.model.edits.weight_without(layer, terms).double()
        change += float((editor.model.weight(layer).double() - before).square().sum())
        total += float(before.square().sum())
    return (change / total) ** 0.5 if total else 0.0


def weight_norm_summary(ratios: Sequence[float], when: When, *, seed: int = 0) -> Summary:
    """The mean of what ``weight_norm_ratio`` gave for some runs."""
    return summarise_groups(Metric.WEIGHT_NORM_RATIO, when, ratios, [1] * len(ratios), seed=seed)


def perplexity_summaries(before: Perplexity, after: Perplexity, *, seed: int = 0) -> list[Summary]:
    """The perplexity of both as a ratio to the one before."""
    return [
        perplexity_ratio(before, before, "before", seed=seed),
        perplexity_ratio(before, after, "after", seed=seed),
    ]


def _seconds_per_edit(batches: Sequence[BatchRecord], seed: int) -> Summary:
    """Wall time of editing over facts, evaluation and preparation left out; the interval is over batches."""
    seconds, facts = [batch.seconds for batch in batches], [len(batch.facts) for batch in batches]
    return summarise_groups(Metric.SECONDS_PER_EDIT, "after", seconds, facts, seed=seed)
