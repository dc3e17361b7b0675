"""Sequential editing with one recipe: measured before, right after each batch, and at the end; optionally resumable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from errata.editing.batch import BatchRecord
from errata.editing.preparation import Prepared
from errata.editing.recipe import Recipe
from errata.editors.contract import Answerer, Edit, EditedBatch, KnowledgeEditor
from errata.editors.locate_then_edit import Editor
from errata.errors import ErrataError
from errata.evaluation.chat import ChatQuestion, evaluate_chat
from errata.evaluation.outcomes import change_records
from errata.evaluation.perplexity import Perplexity, perplexity, perplexity_ratio, pooled
from errata.evaluation.recall import evaluate_facts
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.results.metrics import Metric
from errata.results.records import Record, Row, Summary, When, summarise, summarise_groups, to_long
from errata.runs.resume import edited_weights, editor_of
from errata.runs.run import RunDirectory
from errata.utils.memory import is_out_of_memory
from errata.utils.progress import OnSearch, Report, silent, unwatched
from errata.utils.tensors import to_float64


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Prompts of an evaluation: facts with their control questions, other subjects, prose, chat questions.

    Attributes:
        automatic: (id of a fact, field) of generated control questions; see ``automatic_controls``.
    """

    facts: Sequence[Fact]
    untouched: Sequence[tuple[str, Question]] = ()
    prose: Sequence[str] = ()
    chat: Sequence[ChatQuestion] = ()
    automatic: Collection[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Results on an evaluation set.

    Attributes:
        records: one per prompt.
        perplexity: on the prose; None without prose.
        weight_norm_ratio: see the function; None if unknown.
    """

    records: list[Record]
    perplexity: Perplexity | None
    weight_norm_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """A finished run; the edit is in the model until ``patch.undo``.

    Attributes:
        rows: the long form, see ``errata.results.records.to_long``.
    """

    method: str
    rows: list[Row]
    patch: Patch
    batches: list[BatchRecord]
    after: EvaluationResult

    @property
    def left_alone(self) -> list[Fact]:
        """Facts that needed no edit; see ``BatchRecord``."""
        return [fact for batch in self.batches for fact in batch.unwritten]


def measure(
    model: Answerer, evaluation_set: EvaluationSet, *, report: Report = silent, what: str = "evaluating"
) -> EvaluationResult:
    """Evaluate the model in its present state.

    Records of recall need likelihoods, those of chat need generation, and perplexity is measured on language models.
    """

    def listen(_: str, done: int, total: int) -> None:
        report(what, done, total)

    plain = model if isinstance(model, LanguageModel) else None
    with nullcontext() if plain is None else plain.blaming_no_edit():
        records: list[Record] = []
        if "likelihood" in model.abilities:
            records += evaluate_facts(model, evaluation_set.facts, untouched=evaluation_set.untouched, report=listen)
        if evaluation_set.chat and "generation" in model.abilities:
            records += evaluate_chat(model, evaluation_set.chat, report=report)
        prose = perplexity(plain, evaluation_set.prose, report=report) if evaluation_set.prose and plain else None
    return EvaluationResult(records, prose)


@dataclass(frozen=True, slots=True)
class EditorResult:
    """The result of an editor; the edit is in place until it is removed.

    Attributes:
        rows: the long form, see ``errata.results.records.to_long``; none for an answerer without likelihoods.
    """

    rows: list[Row]
    edit: Edit
    after: EvaluationResult


def run_editor(
    editor: KnowledgeEditor,
    evaluation_set: EvaluationSet,
    before: EvaluationResult,
    *,
    report: Report = silent,
    seed: int = 0,
) -> EditorResult:
    """Edit ``evaluation_set.facts`` with any editor and measure: right after each batch, and at the end.

    Args:
        before: result of ``measure`` before this edit.
        seed: of the bootstrap.

    Raises:
        EditError, InputError: nothing has changed then.
    """
    right_after: list[Record] = []
    batches: list[tuple[float, int]] = []
    total = len(evaluation_set.facts)

    def on_batch(batch: EditedBatch) -> None:
        view = editor.view()
        if "likelihood" in view.abilities:
            right_after.extend(evaluate_facts(view, batch.facts))
        batches.append((batch.seconds, len(batch.facts)))
        report("facts edited", sum(count for _, count in batches), total)

    report("facts edited", 0, total)
    edit = editor.apply(evaluation_set.facts, on_batch=on_batch)
    try:
        after = measure(editor.view(), evaluation_set, report=report)
    except BaseException:
        editor.remove(edit)
        raise
    rows = rows_of(editor.method, [before], right_after, [after], batches, seed=seed) if after.records else []
    return EditorResult(rows, edit, after)


def run_sequence(
    model: LanguageModel,
    recipe: Recipe,
    evaluation_set: EvaluationSet,
    before: EvaluationResult,
    *,
    cache: Path | None = None,
    report: Report = silent,
    on_search: OnSearch = unwatched,
    seed: int = 0,
    prepared: Prepared | None = None,
) -> SequenceResult:
    """Edit ``evaluation_set.facts`` in batches of ``recipe.batch_size`` and measure.

    Args:
        before: result of ``measure`` on the unedited model.
        on_search: see ``Editor``.
        seed: of the bootstrap.
        prepared: see ``Editor``.

    Raises:
        EditError, InputError: the model is unchanged then.
    """
    editor = Editor(model, recipe, cache=cache, report=report, prepared=prepared, on_search=on_search)
    right_after: list[Record] = []
    facts_done = 0

    def on_batch(batch: BatchRecord) -> None:
        nonlocal facts_done
        right_after.extend(evaluate_facts(model, batch.facts))
        facts_done += len(batch.facts)
        report("facts edited", facts_done, len(evaluation_set.facts))

    report("facts edited", 0, len(evaluation_set.facts))
    patch = editor.apply(evaluation_set.facts, on_batch=on_batch)
    try:
        after = replace(measure(model, evaluation_set, report=report), weight_norm_ratio=weight_norm_ratio(editor))
    except BaseException:
        patch.undo(model)
        raise
    rows = rows_of(recipe.method, [before], right_after, [after], _timings(editor.records), seed=seed)
    return SequenceResult(recipe.method, rows, patch, list(editor.records), after)


def rows_of(
    method: str,
    before: Sequence[EvaluationResult],
    right_after: Sequence[Record],
    after: Sequence[EvaluationResult],
    batches: Sequence[tuple[float, int]],
    *,
    seed: int = 0,
) -> list[Row]:
    """The long form of runs: each metric before them, right after each fact's own batch, and after them.

    Args:
        before, after: one per run. Records of the same fact, and the same texts, are one cluster.
        batches: (seconds, facts) of each batch.
        seed: of the bootstrap.
    """
    first = [record for run in before for record in run.records]
    summaries = (
        compared(first, first, "before", seed=seed)
        + compared(first, right_after, "right_after", seed=seed)
        + compared(first, [record for run in after for record in run.records], "after", seed=seed)
        + perplexity_summaries(
            pooled([run.perplexity for run in before]), pooled([run.perplexity for run in after]), seed=seed
        )
        + weight_norm_summaries([run.weight_norm_ratio for run in after], "after", seed=seed)
        + seconds_summaries(batches, seed=seed)
    )
    return to_long(method, summaries)


def compared(before: Sequence[Record], now: Sequence[Record], when: When, *, seed: int = 0) -> list[Summary]:
    """Summaries of records, and of changes of control answers from the unedited model's."""
    return summarise([*now, *change_records(before, now)], when, seed=seed)


def weight_norm_ratio(editor: Editor) -> float:
    """‖W − W₀‖ / ‖W₀‖ (Frobenius) over all edited layers together."""
    terms = editor.patch().terms
    change = total = 0.0
    for place in (
        place for layer in dict.fromkeys(term.layer for term in terms) for place in editor.model.places(layer)
    ):
        before = to_float64(editor.model.edits.weight_without(place.layer, terms, place.module, place.expert))
        change += float((to_float64(editor.model.weight(*place)) - before).square().sum())
        total += float(before.square().sum())
    return (change / total) ** 0.5 if total else 0.0


def weight_norm_summaries(ratios: Sequence[float | None], when: When, *, seed: int = 0) -> list[Summary]:
    """The mean weight norm ratio of some runs; nothing if none is known."""
    known = [ratio for ratio in ratios if ratio is not None]
    return [summarise_groups(Metric.WEIGHT_NORM_RATIO, when, known, [1] * len(known), seed=seed)] if known else []


def perplexity_summaries(before: Perplexity | None, after: Perplexity | None, *, seed: int = 0) -> list[Summary]:
    """Perplexity ratios before and after; nothing if one is unknown."""
    if before is None or after is None:
        return []
    return [
        perplexity_ratio(before, before, "before", seed=seed),
        perplexity_ratio(before, after, "after", seed=seed),
    ]


def seconds_summaries(batches: Sequence[tuple[float, int]], *, seed: int = 0) -> list[Summary]:
    """Wall time of editing per fact, without evaluation and preparation; the interval is over batches.

    Args:
        batches: (seconds, facts) of each.
    """
    if not batches:
        return []
    seconds, facts = zip(*batches, strict=True)
    return [summarise_groups(Metric.SECONDS_PER_EDIT, "after", seconds, facts, seed=seed)]


def _timings(batches: Sequence[BatchRecord]) -> list[tuple[float, int]]:
    return [(batch.seconds, len(batch.facts)) for batch in batches]


@dataclass(frozen=True, slots=True)
class RecordedResult:
    """A finished run.

    Attributes:
        rows: the long form; empty without measurements.
        patch: of the whole run, shaped where the recipe shapes runs.
        left_alone: facts that needed no edit.
        notes: for the user, about a resumed run.
        before, after: measurements; None without any.
    """

    rows: list[Row]
    patch: Patch
    left_alone: list[Fact]
    notes: list[str]
    before: EvaluationResult | None
    after: EvaluationResult | None


def run_recorded(
    model: LanguageModel,
    run: RunDirectory,
    *,
    cache: Path | None = None,
    report: Report = silent,
    on_search: OnSearch = unwatched,
) -> RecordedResult:
    """Do the remaining work of a run; saved batches are restored.

    Each batch is saved before the next one starts. If a batch fails or cannot be saved, the model and the directory
    hold those before it.

    Args:
        on_search: see ``Editor``.

    Raises:
        InputError, FaultsError: if the model, the corpus or a file changed since the run started; nothing is changed.
        ErrataError: if a batch failed; names the last good one.
    """
    with run.locked():
        editor, notes = editor_of(model, run, cache=cache, report=report, on_search=on_search)
        with _errors_with_state(run, "starting"):
            notes += run.discard_unfinished_batch()
            for text in (f"resuming after batch {run.batches_done}" if run.batches_done else "starting", *notes):
                run.log(text)
        evaluation_set = recorded_evaluation_set(run)
        before = None if evaluation_set is None else _measured(editor, run, evaluation_set, "before", report)

        def measure_batch(record: BatchRecord) -> Any:
            return [asdict(entry) for entry in evaluate_facts(model, record.facts)]

        edit_batches(editor, run, None if evaluation_set is None else measure_batch, report=report)
        after = None if evaluation_set is None else _measured(editor, run, evaluation_set, "after", report)
        with _errors_with_state(run, "writing the log"):
            run.log("done")
        rows = [] if before is None or after is None else _rows(run, before, after)
        patch = replace(editor.patch(), created=run.manifest.created)
        left_alone = [fact for record in editor.records for fact in record.unwritten]
        return RecordedResult(rows, patch, left_alone, notes, before, after)


def recorded_rows(run: RunDirectory) -> list[Row]:
    """The long form of a run's measurements; empty without any, or before the end."""
    before, after = run.measurement("before"), run.measurement("after")
    return [] if before is None or after is None else _rows(run, _measurement(before), _measurement(after))


def evaluation_set_record(evaluation_set: EvaluationSet) -> dict[str, Any]:
    """The evaluation set without the facts, as JSON."""
    return {
        "untouched": [[cluster, question.to_record()] for cluster, question in evaluation_set.untouched],
        "prose": list(evaluation_set.prose),
        "chat": [asdict(question) for question in evaluation_set.chat],
        "automatic": [list(entry) for entry in sorted(evaluation_set.automatic)],
    }


def recorded_evaluation_set(run: RunDirectory) -> EvaluationSet | None:
    """The evaluation set of a run, if it has one."""
    if run.examination is None:
        return None
    untouched = [(cluster, Question(**question)) for cluster, question in run.examination["untouched"]]
    # Runs of earlier versions have neither chat nor generated questions.
    chat = [
        ChatQuestion(**{**entry, "accepted": tuple(entry["accepted"])}) for entry in run.examination.get("chat", ())
    ]
    automatic = [(fact, name) for fact, name in run.examination.get("automatic", ())]
    return EvaluationSet(run.facts, untouched, run.examination["prose"], chat, automatic)


class RunStoppedError(ErrataError):
    """Raised after a batch to roll it back and end the run."""


def edit_batches(
    editor: Editor,
    run: RunDirectory,
    measure_batch: Callable[[BatchRecord], Any] | None,
    *,
    report: Report = silent,
    resume_command: str | None = None,
) -> None:
    """Edit the remaining batches of a run, saving each before the next one starts.

    Args:
        measure_batch: makes the measurements right after a batch, as JSON.
        resume_command: command that resumes the run, for error messages; by default `errata edit --resume`.

    Raises:
        ErrataError: if a batch failed, or was rejected (``RunStoppedError``); the model and the run are then as they
            were after the batch before it.
    """
    size, total = run.recipe.batch_size, len(run.facts)
    for index in range(run.batches_done, run.batches):
        facts = run.facts.facts[index * size : (index + 1) * size]
        if run.batches > 1:
            report("batches", index, run.batches)
        report("facts edited", index * size, total)

        def save(record: BatchRecord) -> None:
            measured = None if measure_batch is None else measure_batch(record)
            added = replace(editor.patch(), terms=record.terms, facts=record.facts)
            run.add_batch(record, added, measured, edited_weights(editor))

        with _errors_with_state(run, f"batch {index + 1}", resume_command):
            editor.apply_batch(facts, on_batch=save)
        with _errors_with_state(run, "writing the log"):
            run.log(f"batch {index + 1} of {run.batches}: {len(facts)} facts")
        report("facts edited", min((index + 1) * size, total), total)
        if run.batches > 1:
            report("batches", index + 1, run.batches)


def _measured(
    editor: Editor, run: RunDirectory, evaluation_set: EvaluationSet, when: Literal["before", "after"], report: Report
) -> EvaluationResult:
    """The run's saved measurement, or a new one."""
    saved: Mapping[str, Any] | None = run.measurement(when)
    if saved is None:
        with _errors_with_state(run, f"evaluating {when} the edits"):
            what = "evaluating before" if when == "before" else "evaluating"
            found = measure(editor.model, evaluation_set, report=report, what=what)
            if when == "after":
                found = replace(found, weight_norm_ratio=weight_norm_ratio(editor))
            run.add_measurement(
                when,
                {
                    "records": [asdict(record) for record in found.records],
                    "perplexity": None if found.perplexity is None else asdict(found.perplexity),
                    "weight_norm_ratio": found.weight_norm_ratio,
                },
            )
        return found
    return _measurement(saved)


def _measurement(saved: Mapping[str, Any]) -> EvaluationResult:
    records = [Record(**entry) for entry in saved["records"]]
    # Earlier versions did not save the weight norm ratio.
    return EvaluationResult(records, Perplexity.of(saved["perplexity"]), saved.get("weight_norm_ratio"))


def _rows(run: RunDirectory, before: EvaluationResult, after: EvaluationResult) -> list[Row]:
    batches = run.saved_batches()
    right_after = [Record(**entry) for batch in batches for entry in batch.answers]
    timings = _timings([batch.record for batch in batches])
    return rows_of(run.recipe.method, [before], right_after, [after], timings, seed=run.manifest.seed)


@contextmanager
def _errors_with_state(run: RunDirectory, what: str, resume_command: str | None = None) -> Iterator[None]:
    """Errors name the state that the model and the run are left in."""
    try:
        yield
    except RunStoppedError:
        raise
    except (ErrataError, OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, ErrataError | OSError) and not is_out_of_memory(error):
            raise
        reason = error.what if isinstance(error, ErrataError) else f"{type(error).__name__}: {error}"
        state = f"the model and {run.path} are as they were after batch {run.batches_done} of {run.batches}"
        _log_if_possible(run, f"{what} failed: {reason}")
        remedy = f"Fix the cause, then: {resume_command or f'errata edit --resume {run.path}'}"
        code = error.code if isinstance(error, ErrataError) else "RUN_FAILED"
        raise ErrataError(f"{what} failed: {reason}; {state}", remedy=remedy, code=code) from error


def _log_if_possible(run: RunDirectory, text: str) -> None:
    """Ignore a full disk: the user sees the error message anyway."""
    try:
        run.log(text)
    except OSError:
        return
