"""What ``errata bench`` says: what it is about to do, its cells, and what was found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from errata.benchmark.campaign import Campaign
from errata.benchmark.grid import Grid, variants
from errata.evaluation.results_file import read_results
from errata.report.bench_about import by_cause
from errata.report.tables import comparison_tables
from errata.verbs.bench_plan import Plan, unasked
from errata.verbs.terminal import console, counted, tell, warn


def show_plan(grid: Grid, plan: Plan) -> None:
    """How much there is to do, and what of it cannot be done."""
    batches = -(-grid.edits // grid.batch_size)
    tell(
        f"{counted(len(plan.specs), 'cell')}: {counted(len(grid.models), 'model')}, "
        f"{counted(len(grid.data), 'data set')}, {counted(len({spec.label for spec in plan.specs}), 'method')}, "
        f"{counted(len(grid.seeds), 'seed')}; each {grid.edits} facts in {counted(batches, 'batch')}"
    )
    reasons: dict[str, list[str]] = {}
    for entry in plan.undefined:
        reasons.setdefault(entry.reason, []).append(entry.label)
    for reason, labels in reasons.items():
        warn(f"left out, for it means nothing: {reason}")
        for label in labels:
            warn(_hanging(label))
    for measurement, data, reason in unasked(grid, plan):
        warn(f"{measurement}: nothing can be asked of {data}: {reason}")


def list_cells(grid: Grid, plan: Plan) -> None:
    """Models and data sets with their seeds, and below them a line for each method."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = {}
    for spec in plan.specs:
        groups.setdefault((spec.model.name, spec.data.label), {}).setdefault(spec.label, []).append(spec.seed)
    tables: dict[tuple[str, ...], list[str]] = {}  # most often the same for all models and data sets
    for (model, data), labels in groups.items():
        seeds = next(iter(labels.values()))
        which = f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
        tables.setdefault(tuple(labels), []).append(f"{model}, {data}, {which}:")
    for shown, heads in tables.items():
        for head in heads:
            tell(head)
        for line in _lines(grid, shown):
            tell(line)


def show_results(campaign: Campaign, summary: Path, records: Path) -> None:
    """The tables, what collapsed, what failed, and where all of it is."""
    results = read_results(summary)
    screen = console()
    groups = dict.fromkeys((row["model"], row["data"]) for row in results.rows)
    for model, data in groups:
        rows = [row for row in results.rows if (row["model"], row["data"]) == (model, data)]
        rows = [row for row in rows if row["when"] != "during"]
        for table in comparison_tables(rows, title=f"{model}, {data}", width=screen.width):
            screen.print(table)
            tell("")
    for cell in results.about["cells"]:
        if cell["collapsed_at"]:
            where = f"{cell['method']}, seed {cell['seed']}"
            warn(f"collapse: {where}: stopped before batch {cell['collapsed_at']}, {cell['edits']} facts are in")
        for note in cell["notes"]:
            warn(f"{cell['id']}: {note}")
    for cause, cells in by_cause((cell["id"], cell["failure"]) for cell in results.about["cells"]).items():
        count = f" ({len(cells)} cells)" if len(cells) > 1 else ""
        warn(f"failed{count}: {', '.join(cells)}: {cause}")
    tell(f"Wrote {summary} and {records}. See them: errata report {campaign.directory}")


def _lines(grid: Grid, labels: Sequence[str]) -> list[str]:
    """Methods with their varied fields in columns; where those have no room, each as it is called."""
    known = {variant.label: variant for variant in variants(grid)}
    table = [["method", *grid.vary]] if grid.vary else []
    table += [[known[label].method, *known[label].shown.values()] for label in labels]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in table
    ]
    if max(map(len, lines)) <= console().width:
        return lines
    return [_hanging(label) for label in labels]


def _hanging(text: str) -> str:
    """On as many lines as it takes, broken at blanks, all but the first set in further."""
    return textwrap.fill(
        text,
        console().width,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
