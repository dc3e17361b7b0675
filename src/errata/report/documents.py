"""A benchmark's results as Markdown, as CSV in the long form, and as LaTeX tables (``booktabs``, ``graphicx``)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Final

from errata.facts.files import escaped
from errata.report.analysis import left_out, section_markdown
from errata.report.bench_run import BenchRun, shown_name
from errata.report.comparison import BEST_NOTE, Comparison, MetricColumn, TableCell, comparisons
from errata.report.conclusions import conclusion
from errata.report.markdown import Markdown, code, fenced, markdown_table, moment, text
from errata.report.page import as_yaml, duration
from errata.report.studies import ShownStudy
from errata.results.records import Row

CSV_COLUMNS: Final = (
    "model", "data", "method", "metric", "when", "edits", "seeds", "mean", "low", "high", "n", "best",
)  # fmt: skip


def report_markdown(run: BenchRun, analysis: Sequence[ShownStudy] = (), waiting: Sequence[str] = ()) -> Markdown:
    """Tables with intervals, failed cells, absent metrics, how to reproduce the run; then studies, if any.

    Args:
        waiting: a message for each omitted study.
    """
    about = run.about
    blocks = [f"# {text(run.headline)}"]
    sections = run.sections()
    for section in sections:
        if found := conclusion(section.rows, run.stopped(section)):
            lead = f"**{text(section.title)}**: " if len(sections) > 1 else ""
            blocks.append(lead + text(found, 5000))
    started = moment(about.created) if about.created else "at an unknown time"
    taken = f"{duration(about.seconds)} ({about.seconds_note})"
    blocks.append(f"Started {started}, in the directory {text(run.name)}. Time: {taken}.")
    alarms = [f"- **Failed:** {', '.join(map(code, cells))}: {text(cause)}" for cause, cells in about.causes.items()]
    alarms += [f"- **Collapsed:** {code(cell.id)}: {cell.stop}" for cell in about.collapsed]
    alarms += [f"- **Not finished:** {code(cell.id)}" for cell in about.unfinished]
    blocks += ["\n".join(alarms)] if alarms else []
    for section in sections:
        blocks.append(f"## {text(section.title)}")
        for comparison in comparisons(section.rows, run.stopped(section)):
            blocks += [f"### {comparison.group}", _table(comparison, run.signs(section))]
    blocks.append(f"Mean [95 % interval] over n. **Bold**: {BEST_NOTE[0].lower()}{BEST_NOTE[1:]}")
    absent = [
        f"- {', '.join(code(shown_name(name)) for name in (entry.model, entry.data) if name)}: "
        f"{', '.join(map(code, entry.metrics))}: {text(entry.reason)}"
        for entry in run.absent()
    ]
    blocks += ["## Not measured", "\n".join(absent)] if absent else []
    blocks += ["## Notes", "\n".join(f"- {text(note)}" for note in about.notes)] if about.notes else []
    blocks += ["## Reproduce", *(fenced(command, "bash") for command in about.all_commands)]
    if about.versions:
        blocks.append("\n".join(f"- Versions: {text(each, 2000)}" for each in about.all_versions))
    if about.grid:
        blocks += ["### Grid", fenced(as_yaml(about.grid), "yaml")]
    for name, recipe in about.recipes.items():
        blocks += [f"### Recipe of {code(name)}", fenced(as_yaml(recipe), "yaml")]
    blocks += [*left_out(waiting), *(section_markdown(study, 2) for study in analysis)]
    return Markdown("\n\n".join(blocks) + "\n")


def _table(comparison: Comparison, signs: Mapping[str, str]) -> str:
    moments = {column.when for column in comparison.columns}
    heads = [
        f"{text(column.entry.heading)}{f', {column.entry.unit_text}' if column.entry.unit_text else ''}"
        f"{f', {column.moment}' if len(moments) > 1 else ''} (n={column.n})"
        for column in comparison.columns
    ]
    lines = []
    for line in comparison.unedited:
        # The unedited model's value is in the last column of each metric.
        cells: list[str] = []
        for (_, span), cell in zip(comparison.metrics, line.cells, strict=True):
            cells += [*([""] * (span - 1)), _cell(cell)]
        lines.append([f"*{text(line.name)}*", *cells])
    for line in comparison.lines:
        note = signs.get(line.name)
        lines.append([code(line.name) + (f" ({note})" if note else ""), *map(_cell, line.cells)])
    return markdown_table(["method", *heads], lines, ["---", *("---:" for _ in heads)])


def _cell(cell: TableCell) -> str:
    value = f"**{cell.value}**" if cell.best else cell.value
    return " ".join(part for part in (value, cell.interval, f"({cell.n})" if cell.n else "") if part)


def report_csv(run: BenchRun) -> str:
    """The long form: one line per row, with ``best`` 1 where the tables mark it; shares are from 0 to 1.

    Names that start like a formula are prefixed with ``'``; see ``errata.facts.files.escaped``.
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


# For text only; nothing is written elsewhere, such as in file names.
_SIGNS: Final = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{\char34}", "`": r"\textasciigrave{}", "'": "{'}",
    "‖": r"$\Vert$", "Δ": r"$\Delta$", "–": "--", "[": "{[}", "]": "{]}",
}  # fmt: skip
_NOT_WIDER_THAN_THE_TEXT: Final = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
_INVISIBLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")


def latex_text(value: object) -> str:
    """A value as LaTeX text on one line: special characters are escaped, invisible ones become spaces."""
    visible = _INVISIBLE.sub(" ", str(value))
    following = [*visible[1:], ""]
    return "".join(
        "-{}" if (sign, after) == ("-", "-") else _SIGNS.get(sign, sign)
        for sign, after in zip(visible, following, strict=False)
    )


LATEX_START: Final = r"% Needs \usepackage{booktabs,graphicx}."


def report_latex(run: BenchRun) -> str:
    """A ``table`` for each group of metrics of each model and data set."""
    commands = [f"% Created by: {_INVISIBLE.sub(' ', command)}" for command in run.about.all_commands]
    lines = [LATEX_START, *commands, f"% {BEST_NOTE}"]
    for section in run.sections():
        for table in comparisons(section.rows, run.stopped(section)):
            named = ", ".join(part for part in (section.model, section.data) if part)
            lines += ["", *_latex_table(table, named, run.signs(section))]
    return "\n".join(lines) + "\n"


def _latex_table(table: Comparison, named: str, signs: Mapping[str, str]) -> list[str]:
    last = [index for index, column in enumerate(table.columns) if column.when == "after"]
    if not last:
        return [f"% {table.group}: nothing was measured after the whole run"]
    heads = [_head(table.columns[index]) for index in last]
    counts = [f"$n={column.n.replace('–', '$--$')}$" for column in (table.columns[index] for index in last)]
    measured = [
        index
        for index, (entry, _) in enumerate(table.metrics)
        if any(table.columns[place].entry == entry for place in last)
    ]
    where = f" on {latex_text(named)}" if named else ""
    body = [
        *(each for line in table.unedited for each in _lines(line.name, [line.cells[index] for index in measured])),
        *([r"\midrule"] if table.unedited else []),
        *(
            each
            for line in table.lines
            for each in _lines(line.name, [line.cells[index] for index in last], signs.get(line.name))
        ),
    ]
    return [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{latex_text(table.group)} after the whole run{where}: mean and 95\\,\\% interval over $n$. "
        "Bold only where the interval is separate from all others.}",
        _NOT_WIDER_THAN_THE_TEXT,
        f"\\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        " & ".join(["method", *heads]) + r" \\",
        " & ".join(["", *counts]) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def _head(column: MetricColumn) -> str:
    """On two lines of similar length, since numbers are narrower than names."""
    entry = column.entry
    words = f"{entry.heading} ({entry.unit_text})".split() if entry.unit_text else entry.heading.split()
    if len(words) == 1:
        return latex_text(words[0])
    halves = [(" ".join(words[:place]), " ".join(words[place:])) for place in range(1, len(words))]
    first, second = min(halves, key=lambda half: max(map(len, half)))
    return f"\\begin{{tabular}}[b]{{@{{}}r@{{}}}}{latex_text(first)}\\\\{latex_text(second)}\\end{{tabular}}"


def _lines(name: str, cells: list[TableCell], note: str | None = None) -> list[str]:
    """Means, with intervals below them; next to them, tables would be twice as wide."""
    head = latex_text(name if note is None else f"{name} ({note})")
    means = " & ".join([head, *map(_mean, cells)])
    if not any(map(_interval, cells)):
        return [means + r" \\"]
    return [means + r" \\[-3pt]", " & ".join(["", *map(_interval, cells)]) + r" \\[2pt]"]


def _mean(cell: TableCell) -> str:
    if cell.row is None:
        return "--"
    number = cell.value.replace("-", "$-$")
    return f"\\textbf{{{number}}}" if cell.best else number


def _interval(cell: TableCell) -> str:
    # After a line end, LaTeX would read a bracket as an option.
    return f"{{\\scriptsize {{{cell.interval.replace('-', '$-$')}}}}}" if cell.row is not None and cell.interval else ""
