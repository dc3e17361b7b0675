"""Results of a grid, pooled over seeds: ``summary.json``, and ``records.parquet`` with one row per prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from errata.benchmark.campaign import Campaign, failure_of
from errata.benchmark.cell_files import (
    CellResult,
    CellSpec,
    before_of,
    measurements_made,
    notes_of,
    read_measurement,
    result_path,
    saved_edits,
)
from errata.benchmark.data import BenchmarkData, read_data, read_json, reading_result
from errata.benchmark.measurements import REQUIRED, MeasurementResult
from errata.benchmark.sequence import perplexity_summaries, seconds_summaries, weight_norm_summaries
from errata.editors.registry import LOCATE_THEN_EDIT
from errata.errors import InputError
from errata.evaluation.ability import summarise_others
from errata.evaluation.free_running import FreeQuestion, expected_answer, free_questions
from errata.evaluation.outcomes import absent_changes, change_records
from errata.evaluation.perplexity import Perplexity, perplexity_ratio, pooled
from errata.facts.fact import QUESTION_LISTS, Question
from errata.results.records import Record, Row, Summary, When, summarise, to_long, write_results
from errata.runs.run import open_run, verified_json
from errata.utils.files import new_file
from errata.utils.optional import require


@dataclass(frozen=True, slots=True)
class MeasuredBatch:
    """Measurements after one batch.

    Attributes:
        edits: facts edited so far.
        records: of its own facts.
        check: of a sample of all facts so far; None if none was due.
        perplexity: on the prose; None without prose.
    """

    edits: int
    size: int
    seconds: float
    records: Sequence[Record]
    check: Sequence[Record] | None
    perplexity: Perplexity | None
    weight_norm_ratio: float | None


@dataclass(frozen=True, slots=True)
class FinishedCell:
    """The results of a cell.

    Attributes:
        before, after: measurement -> result of the unedited and the edited model; only those made for both.
        notes: about resumed runs.
        versions: of software, when editing started.
    """

    directory: Path
    spec: CellSpec
    data: BenchmarkData
    result: CellResult
    before: Mapping[str, MeasurementResult]
    after: Mapping[str, MeasurementResult]
    batches: Sequence[MeasuredBatch]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    def measured(self, when: Literal["before", "after"]) -> Mapping[str, MeasurementResult]:
        return self.before if when == "before" else self.after

    def records(self, when: When) -> list[Record]:
        """All records of a moment."""
        if when == "right_after":
            return [record for batch in self.batches for record in batch.records]
        if when == "during":
            return [record for batch in self.batches for record in batch.check or ()]
        return [record for measurement in self.measured(when).values() for record in measurement.records]

    def with_changes(self, records: Sequence[Record]) -> list[Record]:
        """The records, and changes of control answers from the unedited model's."""
        return [*records, *change_records(self.records("before"), records)]

    def labels(self, when: Literal["before", "after"]) -> dict[str, dict[str, tuple[int, int]]]:
        """See ``MeasurementResult.labels``."""
        return {name: labels for result in self.measured(when).values() for name, labels in result.labels.items()}

    def values(self, when: Literal["before", "after"]) -> dict[str, tuple[float, int]]:
        """See ``MeasurementResult.values``."""
        return {name: value for result in self.measured(when).values() for name, value in result.values.items()}

    def perplexity(self, when: Literal["before", "after"]) -> Perplexity | None:
        return self.measured(when)["perplexity"].perplexity


def read_finished(campaign: Campaign, cell: Path) -> FinishedCell:
    """The results of an edited cell, with the optional measurements made so far.

    Raises:
        InputError, FaultsError: if one of its files is missing or damaged.
    """
    spec = campaign.spec(cell)
    measures = campaign.grid.measures
    made = [*REQUIRED, *(each for each in measurements_made(cell, measures) if each not in REQUIRED)]
    batches, versions = _batches(cell, spec)
    return FinishedCell(
        cell,
        spec,
        read_data(campaign.directory / "material" / spec.material),
        CellResult.read(cell),
        {each.name: read_measurement(before_of(cell, each, measures), each) for each in made},
        {each.name: read_measurement(result_path(cell / "after", each, measures), each) for each in made},
        batches,
        notes_of(cell),
        versions,
    )


def _batches(cell: Path, spec: CellSpec) -> tuple[list[MeasuredBatch], Mapping[str, str]]:
    """The saved batches, and the software versions when editing started."""
    saved: list[tuple[Path, int, float, Mapping[str, Any]]] = []  # file, facts, seconds, measurements
    if spec.editor == LOCATE_THEN_EDIT:
        run = open_run(cell / "run")
        versions: Mapping[str, str] = run.manifest.versions
        for entry in run.ledger.of("batch"):
            about = entry.fields
            path = run.batch_path(about["index"]).with_suffix(".json")
            saved.append((path, len(about["facts"]), float(about["seconds"]), verified_json(path, about["said"])))
    else:
        versions = read_json(cell / "edits" / "versions.json")
        for path, batch in saved_edits(cell / "edits").items():
            saved.append((path, len(batch["facts"]), float(batch["seconds"]), batch["said"]))
    batches: list[MeasuredBatch] = []
    edits = 0
    for path, size, seconds, measured in saved:
        edits += size
        with reading_result(path):
            batches.append(
                MeasuredBatch(
                    edits,
                    size,
                    seconds,
                    [Record(**record) for record in measured["records"]],
                    None if measured["check"] is None else [Record(**record) for record in measured["check"]],
                    Perplexity.of(measured["perplexity"]),
                    measured["weight_norm_ratio"],
                )
            )
    return batches, versions


_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class CellSummary:
    """Summary of an edited cell.

    Attributes:
        seconds: of editing and all measurements, resumed parts included.
        measurements: names of those made.
        absent: metric -> why it is missing.
        data_notes: about its facts and questions.
        notes: about resumed runs.
        versions: of software, when editing started.
    """

    spec: CellSpec
    result: CellResult
    seconds: float
    measurements: tuple[str, ...]
    absent: Mapping[str, str]
    data_notes: tuple[str, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, cell: FinishedCell) -> CellSummary:
        absent = {metric: why for answer in cell.after.values() for metric, why in answer.absent.items()}
        absent |= absent_changes(cell.records("before"), absent)
        seconds = cell.result.seconds + sum(answer.seconds for answer in cell.after.values())
        return cls(
            cell.spec,
            cell.result,
            seconds,
            tuple(cell.after),
            absent,
            cell.data.notes,
            cell.notes,
            cell.versions,
        )


UNKNOWN = "unknown"
"""Model, data and method of a cell whose specification cannot be read."""


def about_of(
    campaign: Campaign, rows: Sequence[Row], done: Mapping[Path, CellSummary], damaged: Mapping[Path, str]
) -> dict[str, Any]:
    """Metadata of the rows: the grid, its commands, the status of each cell, and absent metrics with reasons.

    Args:
        done: cells with results.
        damaged: cells with unreadable files, with the reason.
    """
    cells = []
    for directory in campaign.cells:
        ended = done.get(directory)
        failure = damaged.get(directory) or (None if campaign.is_done(directory) else failure_of(directory))
        try:
            spec: CellSpec | None = ended.spec if ended else campaign.spec(directory)
        except InputError as error:
            spec, failure = None, str(error)
        cells.append(
            {
                "id": directory.name,
                "model": spec.model.name if spec else UNKNOWN,
                "data": spec.data.label if spec else UNKNOWN,
                "method": spec.label if spec else UNKNOWN,
                "seed": spec.seed if spec else None,
                "status": "done" if ended else "failed" if failure else "not done",
                "failure": failure,
                "seconds": ended.seconds if ended else None,
                "edits": ended.result.edits if ended else None,
                "collapsed_at": ended.result.collapsed_at if ended else None,
                "ratio": ended.result.ratio if ended else None,
                "notes": list(ended.notes) if ended else [],
            }
        )
    return {
        "command": campaign.record["commands"][0],
        "commands": campaign.record["commands"],
        "created": campaign.record["created"],
        "grid": campaign.record["grid"],
        "undefined": campaign.record["undefined"],
        "recipes": _recipes([cell.spec for cell in done.values()]),
        "cells": cells,
        "absent": _absent(campaign, rows, done),
        "notes": _notes(campaign, done),
        "versions": _distinct([cell.versions for cell in done.values()]),
    }


def _absent(campaign: Campaign, rows: Sequence[Row], done: Mapping[Path, CellSummary]) -> list[dict[str, Any]]:
    """For each model and data set the metrics that no cell has, with the reason; measurements that no cell has made are
    listed by name."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for directory, cell in done.items():
        reasons = found.setdefault((cell.spec.model.name, cell.spec.data.label), {})
        reasons |= {metric: why for metric, why in cell.absent.items() if metric not in reasons}
        for measurement in campaign.grid.measures.parts:
            if measurement not in cell.measurements:
                reasons.setdefault(measurement, _why_not(directory))
    for (model, data), reasons in found.items():
        chosen = [row for row in rows if (row.get("model"), row.get("data")) == (model, data)]
        present = {row["metric"] for row in chosen if row["when"] != "before"}
        present |= {measurement for cell in _of(done, model, data) for measurement in cell.measurements}
        for metric in present & reasons.keys():
            del reasons[metric]
    return [{"model": model, "data": data, "metrics": reasons} for (model, data), reasons in found.items() if reasons]


def _notes(campaign: Campaign, done: Mapping[Path, CellSummary]) -> list[str]:
    """Notes on data, on runs resumed under other conditions, and on measurements that only some cells have made."""
    notes = [note for cell in done.values() for note in cell.data_notes]
    for text in dict.fromkeys(text for cell in done.values() for text in cell.notes):
        runs = [cell.spec.called for cell in done.values() if text in cell.notes]
        notes.append(f"{'; '.join(runs)}: {text}")
    for directory, cell in done.items():
        spec = cell.spec
        others = {
            measurement for other in _of(done, spec.model.name, spec.data.label) for measurement in other.measurements
        }
        for measurement in campaign.grid.measures.parts:
            if measurement not in cell.measurements and measurement in others:
                notes.append(f"{spec.called}: {measurement} is not measured: {_why_not(directory)}")
    return _distinct(notes)


def _of(done: Mapping[Path, CellSummary], model: str, data: str) -> list[CellSummary]:
    return [cell for cell in done.values() if (cell.spec.model.name, cell.spec.data.label) == (model, data)]


def _why_not(directory: Path) -> str:
    """Why an edited cell lacks a measurement, in one line."""
    failure = failure_of(directory)
    return "it has not been measured yet" if failure is None else " ".join(failure.split())


def _recipes(specs: Sequence[CellSpec]) -> dict[str, Any]:
    """Recipe by label, with the model's name if there are several; of the first seed."""
    several = len({spec.model.name for spec in specs}) > 1
    found: dict[str, Any] = {}
    for spec in specs:
        prefix = f"{spec.model.name}, " if several else ""
        found.setdefault(f"{prefix}{spec.label}", dict(spec.settings))
    return found


def _distinct(items: Sequence[_Item]) -> list[_Item]:
    """Without duplicates, in order."""
    found: list[_Item] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found


def check_table() -> None:
    """Raises MissingExtraError unless pyarrow is installed."""
    require("a benchmark's table of records", "eval", "pyarrow")


@contextmanager
def records_file(path: Path) -> Iterator[Callable[[FinishedCell], None]]:
    """Yields a function that writes a cell's records, one row per prompt, metric and moment; atomic.

    Raises:
        MissingExtraError: without the extra ``eval``.
    """
    check_table()
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    text, number = arrow.string(), arrow.int64()
    schema = arrow.schema(
        [("cell", text), ("model", text), ("data", text), ("method", text), ("seed", number), ("when", text),
         ("edits", number), ("fact", text), ("metric", text), ("prompt", text), ("expected", text),
         ("value", arrow.float64()), ("said", text)]
    )  # fmt: skip
    with new_file(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:

        def write(cell: FinishedCell) -> None:
            columns: dict[str, list[Any]] = {name: [] for name in schema.names}
            expected = expected_answers(cell.data)
            free: dict[str, list[FreeQuestion]] = defaultdict(list)
            for question in free_questions(cell.data.facts):
                free[question.fact].append(question)
            spec = cell.spec
            common = (cell.directory.name, spec.model.name, spec.data.label, spec.label, spec.seed)
            for when, edits, record in _all_records(cell):
                answer = expected.get((record.fact, record.prompt))
                if record.metric.startswith("free_"):  # the prompt of a free question is the whole input
                    answer = expected_answer(free[record.fact], record.metric, record.prompt) or answer
                prompt = (record.fact, str(record.metric), record.prompt, answer, record.value, record.said)
                for name, value in zip(schema.names, (*common, when, edits, *prompt), strict=True):
                    columns[name].append(value)
            writer.write_table(arrow.table(columns, schema=schema))

        yield write


def _all_records(cell: FinishedCell) -> Iterator[tuple[When, int, Record]]:
    total = cell.result.edits  # fewer than requested if the run stopped early
    yield from (("before", 0, record) for record in cell.records("before"))
    for batch in cell.batches:
        yield from (("right_after", batch.edits, record) for record in batch.records)
        yield from (("during", batch.edits, record) for record in batch.check or ())
    yield from (("after", total, record) for record in cell.records("after"))


def expected_answers(data: BenchmarkData) -> dict[tuple[str, str], str]:
    """(fact or cluster, prompt) -> the expected answer; targets of facts take precedence."""
    found: dict[tuple[str, str], str] = {}
    for fact in data.facts:
        found.setdefault((fact.id, fact.text), fact.target)
        for paraphrase in fact.paraphrases:
            found.setdefault((fact.id, paraphrase), fact.target)
        questions: list[Question] = [question for name in QUESTION_LISTS for question in getattr(fact, name)]
        for question in questions:
            found.setdefault((fact.id, question.prompt), question.answer)
    for cluster, question in data.untouched:
        found.setdefault((cluster, question.prompt), question.answer)
    return found


def collect(campaign: Campaign, *, seed: int = 0) -> tuple[Path, Path]:
    """Write ``summary.json`` and ``records.parquet`` of all edited cells, atomically.

    Cells with damaged files are left out and listed in the summary.

    Raises:
        MissingExtraError: without the extra ``eval``.
    """
    summary, records = campaign.directory / "summary.json", campaign.directory / "records.parquet"
    rows: list[Row] = []
    ended: dict[Path, CellSummary] = {}
    damaged: dict[Path, str] = {}
    with records_file(records) as write:
        for directories in _groups(campaign, damaged):  # one group at a time is in memory
            cells = []
            for directory in directories:
                try:
                    cells.append(read_finished(campaign, directory))
                except InputError as error:
                    damaged[directory] = str(error)
            rows += pooled_rows(cells, seed=seed) if cells else []
            for cell in cells:
                write(cell)
                ended[cell.directory] = CellSummary.of(cell)
    write_results(summary, rows, about_of(campaign, rows, ended, damaged))
    return summary, records


def pooled_rows(cells: Sequence[FinishedCell], *, seed: int = 0) -> list[Row]:
    """The long form of cells that differ only in seed; a fact (or text) of several seeds is one cluster.

    ``edits`` is the number of facts in the model: at a check those so far, at the end the rounded mean over runs,
    before editing those to be edited.
    """
    spec = cells[0].spec
    to_edit = max(len(cell.data.facts) for cell in cells)
    edited = round(sum(cell.result.edits for cell in cells) / len(cells))
    summaries: list[Summary] = []
    moments: tuple[When, ...] = ("before", "right_after", "after")
    for when in moments:
        records = [record for cell in cells for record in cell.with_changes(cell.records(when))]
        summaries += summarise(records, when, seed=seed)
    ends: tuple[Literal["before", "after"], ...] = ("before", "after")
    for end in ends:
        known = {summary.metric for summary in summaries if summary.when == end}
        labels, values = [cell.labels(end) for cell in cells], [cell.values(end) for cell in cells]
        summaries += summarise_others(end, labels, values, known, seed=seed)
    before, after = (pooled([cell.perplexity(end) for cell in cells]) for end in ends)
    summaries += perplexity_summaries(before, after, seed=seed)
    summaries += seconds_summaries([(batch.seconds, batch.size) for cell in cells for batch in cell.batches], seed=seed)
    norms = [cell.batches[-1].weight_norm_ratio for cell in cells if cell.batches]
    summaries += weight_norm_summaries(norms, "after", seed=seed)
    model, data = spec.model.name, spec.data.label
    rows = []
    for row, summary in zip(to_long(spec.label, summaries), summaries, strict=True):
        edits = to_edit if summary.when == "before" else edited
        rows.append(Row(**{**row, "model": model, "data": data, "edits": edits}))
    for edits, seeds, summary in _during(cells, seed):
        (row,) = to_long(spec.label, [summary])
        rows.append(Row(**{**row, "model": model, "data": data, "edits": edits, "seeds": seeds}))
    return rows


def _during(cells: Sequence[FinishedCell], seed: int) -> Iterator[tuple[int, int, Summary]]:
    """(edits, runs, summary) of each check, and of perplexity and weight norm after each batch."""
    for edits in sorted({batch.edits for cell in cells for batch in cell.batches}):
        batches = [(cell, batch) for cell in cells for batch in cell.batches if batch.edits == edits]
        checks = [cell.with_changes(batch.check) for cell, batch in batches if batch.check is not None]
        found = summarise([record for check in checks for record in check], "during", seed=seed)
        yield from ((edits, len(checks), summary) for summary in found)
        before = pooled([cell.perplexity("before") for cell, _ in batches])
        now = pooled([batch.perplexity for _, batch in batches])
        if before is not None and now is not None:
            yield edits, len(batches), perplexity_ratio(before, now, "during", seed=seed)
        norms = [batch.weight_norm_ratio for _, batch in batches]
        yield from ((edits, len(batches), norm) for norm in weight_norm_summaries(norms, "during", seed=seed))


def _groups(campaign: Campaign, damaged: dict[Path, str]) -> list[list[Path]]:
    """Edited cells, grouped with those that differ only in seed.

    Args:
        damaged: gets those whose specification cannot be read, with the reason.
    """
    groups: dict[tuple[str, str, str], list[Path]] = {}
    for cell in filter(campaign.is_edited, campaign.cells):
        try:
            spec = campaign.spec(cell)
        except InputError as error:
            damaged[cell] = str(error)
            continue
        groups.setdefault((spec.model.name, spec.data.label, spec.label), []).append(cell)
    return list(groups.values())
