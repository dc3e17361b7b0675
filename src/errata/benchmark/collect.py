"""What the cells of a grid found, pooled over seeds: ``summary.json``, and ``records.parquet`` with a row a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.benchmark.campaign import Campaign, failure_of
from errata.benchmark.cell_spec import CellSpec
from errata.benchmark.finished import Finished, read_finished
from errata.benchmark.record_table import records_file
from errata.evaluation.ability import summarise_labels
from errata.evaluation.perplexity import perplexity_ratio, pooled
from errata.evaluation.records import (
    Metric,
    Row,
    Summary,
    When,
    summarise,
    summarise_groups,
    to_long,
    write_results,
)
from errata.patch import software_versions


def collect(campaign: Campaign, *, seed: int = 0) -> tuple[Path, Path]:
    """Write ``summary.json`` and ``records.parquet`` of all cells that are done; either whole or not at all.

    Raises:
        MissingExtraError: without the extra ``eval``.
        InputError, FaultsError: if a cell's files are not what was written.
    """
    summary, records = campaign.directory / "summary.json", campaign.directory / "records.parquet"
    rows: list[Row] = []
    ended: dict[Path, Ended] = {}
    with records_file(records) as write:
        for directories in _groups(campaign):  # one group at a time is in memory
            cells = [read_finished(campaign, directory) for directory in directories]
            rows += rows_of(cells, seed=seed)
            for cell in cells:
                write(cell)
                ended[cell.directory] = Ended.of(cell)
    write_results(summary, rows, about_of(campaign, ended))
    return summary, records


@dataclass(frozen=True, slots=True)
class Ended:
    """Of a cell that is done, what is told beside the rows."""

    spec: CellSpec
    result: Mapping[str, Any]
    absent: Mapping[str, str]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, cell: Finished) -> Ended:
        absent = {metric: why for answer in cell.after.values() for metric, why in answer["absent"].items()}
        return cls(cell.spec, cell.result, absent, cell.material.notes)


def rows_of(cells: Sequence[Finished], *, seed: int = 0) -> list[Row]:
    """The long form of cells that differ in their seed alone: facts of all seeds are drawn together, one fact (or
    text) that several seeds have is one cluster."""
    spec = cells[0].spec
    edits = max(len(cell.material.facts) for cell in cells)
    summaries: list[tuple[int, Summary]] = []
    moments: tuple[When, ...] = ("before", "right_after", "after")
    for when in moments:
        found = summarise([record for cell in cells for record in cell.records(when)], when, seed=seed)
        summaries += [(edits, summary) for summary in found]
    summaries += [(edits, summary) for summary in _of_labels(cells, seed)]
    before = pooled([cell.perplexity("before") for cell in cells])
    after = pooled([cell.perplexity("after") for cell in cells])
    if before is not None and after is not None:
        summaries.append((edits, perplexity_ratio(before, before, "before", seed=seed)))
        summaries.append((edits, perplexity_ratio(before, after, "after", seed=seed)))
    seconds = [batch.seconds for cell in cells for batch in cell.batches]
    if seconds:
        sizes = [batch.size for cell in cells for batch in cell.batches]
        summaries.append((edits, summarise_groups(Metric.SECONDS_PER_EDIT, "after", seconds, sizes, seed=seed)))
    summaries += _on_the_way(cells, seed)
    rows = []
    for count, summary in summaries:
        (row,) = to_long(spec.label, [summary])
        rows.append(Row(**{**row, "model": spec.model.name, "data": spec.data.label, "edits": count}))
    return rows


def about_of(campaign: Campaign, done: Mapping[Path, Ended]) -> dict[str, Any]:
    """What belongs to the rows: the grid, how to repeat it, how each cell ended, what is absent and why."""
    cells = []
    for directory in campaign.cells:
        spec = campaign.spec(directory)
        ended = done.get(directory)
        failure = failure_of(directory)
        cells.append(
            {
                "id": directory.name,
                "model": spec.model.name,
                "data": spec.data.label,
                "method": spec.label,
                "seed": spec.seed,
                "status": "done" if ended else "failed" if failure else "not done",
                "failure": failure,
                "seconds": ended.result["seconds"] if ended else None,
                "edits": ended.result["edits"] if ended else None,
                "collapsed_at": ended.result["collapsed_at"] if ended else None,
                "ratio": ended.result["ratio"] if ended else None,
            }
        )
    absent: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for cell in done.values():
        absent.setdefault(cell.spec.data.label, {}).update(cell.absent)
        notes += [note for note in cell.notes if note not in notes]
    return {
        "command": campaign.record["command"],
        "created": campaign.record["created"],
        "grid": campaign.record["grid"],
        "undefined": campaign.record["undefined"],
        "recipes": _recipes([cell.spec for cell in done.values()]),
        "cells": cells,
        "absent": absent,
        "notes": notes,
        "versions": software_versions(),
    }


def _of_labels(cells: Sequence[Finished], seed: int) -> Iterator[Summary]:
    """Weighted F1, which is no mean over prompts."""
    moments: tuple[When, ...] = ("before", "after")
    for when in moments:
        runs = [cell.labels(when) for cell in cells]
        for metric in dict.fromkeys(metric for run in runs for metric in run):
            yield summarise_labels(metric, when, [run[metric] for run in runs if metric in run], seed=seed)


def _recipes(specs: Sequence[CellSpec]) -> dict[str, Any]:
    """By the method's label, and by the model's name too where there are several models."""
    several = len({spec.model.name for spec in specs}) > 1
    prefixes = {spec.model.name: f"{spec.model.name}, " if several else "" for spec in specs}
    return {f"{prefixes[spec.model.name]}{spec.label}": spec.recipe.model_dump(mode="json") for spec in specs}


def _on_the_way(cells: Sequence[Finished], seed: int) -> Iterator[tuple[int, Summary]]:
    """(edits, summary) of each check, and of what is known behind each batch."""
    for edits in sorted({batch.edits for cell in cells for batch in cell.batches}):
        there = [(cell, batch) for cell in cells for batch in cell.batches if batch.edits == edits]
        checks = [record for _, batch in there for record in batch.check or ()]
        yield from ((edits, summary) for summary in summarise(checks, "during", seed=seed))
        before = pooled([cell.perplexity("before") for cell, _ in there])
        now = pooled([batch.perplexity for _, batch in there])
        if before is not None and now is not None:
            yield edits, perplexity_ratio(before, now, "during", seed=seed)
        norms = [batch.weight_norm_ratio for _, batch in there]
        yield edits, summarise_groups(Metric.WEIGHT_NORM_RATIO, "during", norms, [1] * len(norms), seed=seed)


def _groups(campaign: Campaign) -> list[list[Path]]:
    """Cells that are done and differ in their seed alone, together."""
    groups: dict[tuple[str, str, str], list[Path]] = {}
    for cell in filter(campaign.is_done, campaign.cells):
        spec = campaign.spec(cell)
        groups.setdefault((spec.model.name, spec.data.label, spec.label), []).append(cell)
    return list(groups.values())
