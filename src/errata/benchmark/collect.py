"""What the cells of a grid found, pooled over seeds: ``summary.json``, and ``records.parquet`` with a row a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from errata.benchmark.campaign import Campaign
from errata.benchmark.collect_about import Ended, about_of
from errata.benchmark.finished import Finished, read_finished
from errata.benchmark.record_table import records_file
from errata.benchmark.sequential import weight_norm_summary
from errata.errors import InputError
from errata.evaluation.ability_results import summarise_others
from errata.evaluation.changes import change_records
from errata.evaluation.metrics import Metric
from errata.evaluation.perplexity import perplexity_ratio, pooled
from errata.evaluation.records import Record, Summary, When, summarise, summarise_groups
from errata.evaluation.results_file import Row, to_long, write_results


def collect(campaign: Campaign, *, seed: int = 0) -> tuple[Path, Path]:
    """Write ``summary.json`` and ``records.parquet`` of all cells that are edited; either whole or not at all.

    A cell of which a file is not what was written is left out, and told of beside the rows.

    Raises:
        MissingExtraError: without the extra ``eval``.
    """
    summary, records = campaign.directory / "summary.json", campaign.directory / "records.parquet"
    rows: list[Row] = []
    ended: dict[Path, Ended] = {}
    damaged: dict[Path, str] = {}
    with records_file(records) as write:
        for directories in _groups(campaign):  # one group at a time is in memory
            cells = []
            for directory in directories:
                try:
                    cells.append(read_finished(campaign, directory))
                except InputError as error:
                    damaged[directory] = str(error)
            rows += rows_of(cells, seed=seed) if cells else []
            for cell in cells:
                write(cell)
                ended[cell.directory] = Ended.of(cell)
    write_results(summary, rows, about_of(campaign, rows, ended, damaged))
    return summary, records


def rows_of(cells: Sequence[Finished], *, seed: int = 0) -> list[Row]:
    """The long form of cells that differ in their seed alone: facts of all seeds are drawn together, one fact (or
    text) that several seeds have is one cluster.

    ``edits`` of rows that are not of a check on the way is how many facts are in a model at the end; where runs that
    stopped early differ in it, the mean, rounded. Before editing it is how many were to be edited.
    """
    spec = cells[0].spec
    asked = max(len(cell.material.facts) for cell in cells)
    there = round(sum(int(cell.result["edits"]) for cell in cells) / len(cells))
    summaries: list[Summary] = []
    moments: tuple[When, ...] = ("before", "right_after", "after")
    for when in moments:
        summaries += summarise([record for cell in cells for record in _compared(cell, when)], when, seed=seed)
    ends: tuple[Literal["before", "after"], ...] = ("before", "after")
    for end in ends:
        known = {summary.metric for summary in summaries if summary.when == end}
        labels, values = [cell.labels(end) for cell in cells], [cell.values(end) for cell in cells]
        summaries += summarise_others(end, labels, values, known, seed=seed)
    before = pooled([cell.perplexity("before") for cell in cells])
    after = pooled([cell.perplexity("after") for cell in cells])
    if before is not None and after is not None:
        summaries.append(perplexity_ratio(before, before, "before", seed=seed))
        summaries.append(perplexity_ratio(before, after, "after", seed=seed))
    seconds = [batch.seconds for cell in cells for batch in cell.batches]
    if seconds:
        sizes = [batch.size for cell in cells for batch in cell.batches]
        summaries.append(summarise_groups(Metric.SECONDS_PER_EDIT, "after", seconds, sizes, seed=seed))
    norms = [cell.batches[-1].weight_norm_ratio for cell in cells if cell.batches]
    if norms:
        summaries.append(weight_norm_summary(norms, "after", seed=seed))
    model, data = spec.model.name, spec.data.label
    rows = []
    for row, summary in zip(to_long(spec.label, summaries), summaries, strict=True):
        edits = asked if summary.when == "before" else there
        rows.append(Row(**{**row, "model": model, "data": data, "edits": edits}))
    for edits, seeds, summary in _on_the_way(cells, seed):
        (row,) = to_long(spec.label, [summary])
        rows.append(Row(**{**row, "model": model, "data": data, "edits": edits, "seeds": seeds}))
    return rows


def _compared(cell: Finished, when: When) -> list[Record]:
    """What a cell's model said, and how its answers to control questions differ from the unedited model's."""
    now = cell.records(when)
    return [*now, *change_records(cell.records("before"), now)]


def _on_the_way(cells: Sequence[Finished], seed: int) -> Iterator[tuple[int, int, Summary]]:
    """(edits, runs, summary) of each check, and of what is known behind each batch."""
    for edits in sorted({batch.edits for cell in cells for batch in cell.batches}):
        there = [(cell, batch) for cell in cells for batch in cell.batches if batch.edits == edits]
        checks = [(cell, batch.check) for cell, batch in there if batch.check is not None]
        records = [
            record for cell, check in checks for record in (*check, *change_records(cell.records("before"), check))
        ]
        found = summarise(records, "during", seed=seed)
        yield from ((edits, len(checks), summary) for summary in found)
        before = pooled([cell.perplexity("before") for cell, _ in there])
        now = pooled([batch.perplexity for _, batch in there])
        if before is not None and now is not None:
            yield edits, len(there), perplexity_ratio(before, now, "during", seed=seed)
        norms = [batch.weight_norm_ratio for _, batch in there]
        yield edits, len(there), weight_norm_summary(norms, "during", seed=seed)


def _groups(campaign: Campaign) -> list[list[Path]]:
    """Cells that are edited and differ in their seed alone, together."""
    groups: dict[tuple[str, str, str], list[Path]] = {}
    for cell in filter(campaign.is_edited, campaign.cells):
        spec = campaign.spec(cell)
        groups.setdefault((spec.model.name, spec.data.label, spec.label), []).append(cell)
    return list(groups.values())
