"""A benchmark's results after the whole run as LaTeX tables, for papers: needs the package ``booktabs``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from errata.report.bench_run import BenchRun
from errata.report.comparison import BEST_NOTE, Cell, Comparison, comparisons

# In text; outside of it (names of files, say) nothing of ours is ever written.
_SIGNS: Final = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{\char34}", "`": r"\textasciigrave{}", "'": "{'}",
    "‖": r"$\Vert$", "Δ": r"$\Delta$", "–": "--", "[": "{[}", "]": "{]}",
}  # fmt: skip
_INVISIBLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")


def latex_text(value: object) -> str:
    """A value as LaTeX's text on one line: every sign that LaTeX knows is escaped, invisible ones are blanks."""
    visible = _INVISIBLE.sub(" ", str(value))
    following = [*visible[1:], ""]
    return "".join(
        "-{}" if (sign, after) == ("-", "-") else _SIGNS.get(sign, sign)
        for sign, after in zip(visible, following, strict=False)
    )


def report_latex(run: BenchRun) -> str:
    """A ``table`` for each group of metrics of each model and data set."""
    # A comment ends with its line.
    commands = [f"% Made by: {_INVISIBLE.sub(' ', command)}" for command in run.about.all_commands]
    lines = [r"% Needs \usepackage{booktabs}.", *commands, f"% {BEST_NOTE}"]
    for section in run.sections():
        for table in comparisons(section.rows, run.stopped(section)):
            named = ", ".join(part for part in (section.model, section.data) if part)
            lines += ["", *_table(table, named, run.signs(section))]
    return "\n".join(lines) + "\n"


def _table(table: Comparison, named: str, signs: Mapping[str, str]) -> list[str]:
    last = [index for index, column in enumerate(table.columns) if column.when == "after"]
    if not last:
        return [f"% {table.group}: nothing was measured after the whole run"]
    heads = [
        latex_text(column.measure.head)
        + (f" ({latex_text(column.measure.unit_text)})" if column.measure.unit_text else "")
        for column in (table.columns[index] for index in last)
    ]
    counts = [f"$n={column.n.replace('–', '$--$')}$" for column in (table.columns[index] for index in last)]
    measured = [
        index
        for index, (measure, _) in enumerate(table.measures)
        if any(table.columns[place].measure == measure for place in last)
    ]
    where = f" on {latex_text(named)}" if named else ""
    body = [
        *(_line(line.name, [line.cells[index] for index in measured]) for line in table.unedited),
        *([r"\midrule"] if table.unedited else []),
        *(_line(line.name, [line.cells[index] for index in last], signs.get(line.name)) for line in table.lines),
    ]
    return [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{latex_text(table.group)} after the whole run{where}: mean and 95\\,\\% interval over $n$. "
        "Bold only where the interval is separate from all others.}",
        f"\\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        " & ".join(["method", *heads]) + r" \\",
        " & ".join(["", *counts]) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _line(name: str, cells: list[Cell], note: str | None = None) -> str:
    head = latex_text(name if note is None else f"{name} ({note})")
    return " & ".join([head, *map(_cell, cells)]) + r" \\"


def _cell(cell: Cell) -> str:
    if cell.row is None:
        return "--"
    number = cell.value.replace("-", "$-$")
    value = f"\\textbf{{{number}}}" if cell.best else number
    # A bracket after a line's end would be read as that line's option.
    return f"{value} {{\\scriptsize {{{cell.interval.replace('-', '$-$')}}}}}" if cell.interval else value
