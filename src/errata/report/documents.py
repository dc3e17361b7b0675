"""A benchmark's results as a Markdown document, and as CSV in the long form."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Final

from errata.evaluation.results_file import Row
from errata.facts_formats import escaped
from errata.report.analysis_documents import left_out, section_markdown
from errata.report.analysis_results import ShownStudy
from errata.report.bench_about import by_cause
from errata.report.bench_run import BenchRun, shown_name
from errata.report.comparison import BEST_NOTE, Cell, Comparison, comparisons
from errata.report.conclusion import conclusion
from errata.report.markdown import Markdown, code, fenced, moment, text
from errata.report.page import (
    as_yaml,
    collapsed,
    duration,
    failed,
    headline,
    seconds_note,
    stopping,
    total_seconds,
    unfinished,
)

CSV_COLUMNS: Final = (
    "model", "data", "method", "metric", "when", "edits", "seeds", "mean", "low", "high", "n", "best",
)  # fmt: skip


def report_markdown(run: BenchRun, analysis: Sequence[ShownStudy] = (), waiting: Sequence[str] = ()) -> Markdown:
    """The tables with their intervals, what failed, what is absent, how to repeat it; then studies, if there are.

    Args:
        waiting: what to say of each study that is left out.
    """
    about = run.about
    blocks = [f"# {text(headline(run))}"]
    sections = run.sections()
    for section in sections:
        if found := conclusion(section.rows, run.stopped(section)):
            lead = f"**{text(section.title)}**: " if len(sections) > 1 else ""
            blocks.append(lead + text(found, 5000))
    begun = moment(about.created) if about.created else "at a time not told"
    taken = f"{duration(total_seconds(about.cells))} ({seconds_note(about)})"
    blocks.append(f"Begun {begun}, in the folder {text(run.name)}. Time: {taken}.")
    causes = by_cause((cell.id, cell.failure or "no reason told") for cell in failed(about.cells))
    alarms = [f"- **Failed:** {', '.join(map(code, cells))}: {text(cause)}" for cause, cells in causes.items()]
    alarms += [f"- **Collapsed:** {code(cell.id)}: {stopping(cell)}" for cell in collapsed(about.cells)]
    alarms += [f"- **Not done:** {code(cell.id)}" for cell in unfinished(about.cells)]
    blocks += ["\n".join(alarms)] if alarms else []
    for section in sections:
        blocks.append(f"## {text(section.title)}")
        for table in comparisons(section.rows, run.stopped(section)):
            blocks += [f"### {table.group}", _table(table, run.signs(section))]
    blocks.append(f"Mean [95 % interval] over n. **Bold**: {BEST_NOTE[0].lower()}{BEST_NOTE[1:]}")
    absent = [
        f"- {', '.join(code(shown_name(name)) for name in (entry.model, entry.data) if name)}: "
        f"{', '.join(map(code, entry.metrics))}: {text(entry.reason)}"
        for entry in run.absent()
    ]
    blocks += ["## Not measured", "\n".join(absent)] if absent else []
    blocks += ["## Notes", "\n".join(f"- {text(note)}" for note in about.notes)] if about.notes else []
    blocks += ["## How to repeat it", *(fenced(command, "bash") for command in about.all_commands)]
    if about.versions:
        blocks.append("\n".join(f"- With {text(each, 2000)}" for each in about.all_versions))
    if about.grid:
        blocks += ["### The grid", fenced(as_yaml(about.grid), "yaml")]
    for name, recipe in about.recipes.items():
        blocks += [f"### Recipe of {code(name)}", fenced(as_yaml(recipe), "yaml")]
    blocks += [*left_out(waiting), *(section_markdown(study, 2) for study in analysis)]
    return Markdown("\n\n".join(blocks) + "\n")


def _table(table: Comparison, signs: Mapping[str, str]) -> str:
    moments = {column.when for column in table.columns}
    heads = [
        f"{text(column.measure.head)}{f', {column.measure.unit_text}' if column.measure.unit_text else ''}"
        f"{f', {column.moment}' if len(moments) > 1 else ''} (n={column.n})"
        for column in table.columns
    ]
    lines = [["method", *heads], ["---", *("---:" for _ in heads)]]
    for line in table.unedited:
        # What the unedited model says stands in the last column of each metric.
        cells: list[str] = []
        for (_, span), cell in zip(table.measures, line.cells, strict=True):
            cells += [*([""] * (span - 1)), _cell(cell)]
        lines.append([f"*{text(line.name)}*", *cells])
    for line in table.lines:
        sign = signs.get(line.name)
        lines.append([code(line.name) + (f" ({sign})" if sign else ""), *map(_cell, line.cells)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(cell: Cell) -> str:
    value = f"**{cell.value}**" if cell.best else cell.value
    return " ".join(part for part in (value, cell.interval, f"({cell.n})" if cell.n else "") if part)


def report_csv(run: BenchRun) -> str:
    """The long form: a line for each row, with ``best`` 1 where the tables mark it; shares are from 0 to 1.

    Names that begin like a formula have a ``'`` before them; see ``facts_formats.escaped``.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for section in run.sections():
        best = {
            (cell.row["method"], cell.row["metric"], cell.row["when"])
            for table in comparisons(section.rows, run.stopped(section))
            for line in table.lines
            for cell in line.cells
            if cell.best and cell.row is not None
        }
        for row in section.rows:
            writer.writerow(_csv_line(row, (row["method"], row["metric"], row["when"]) in best))
    return out.getvalue()


def _csv_line(row: Row, best: bool) -> list[object]:
    interval = ["" if end is None else repr(float(end)) for end in (row["low"], row["high"])]
    return [
        *(escaped(str(row.get(name, ""))) for name in ("model", "data", "method", "metric", "when")),
        row.get("edits", ""),
        row.get("seeds", ""),
        repr(float(row["mean"])),
        *interval,
        row["n"],
        int(best),
    ]
