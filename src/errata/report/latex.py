"""A benchmark's results after the whole run as LaTeX tables, for papers; they need ``booktabs`` and ``graphicx``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from errata.report.bench_run import BenchRun
from errata.report.comparison import BEST_NOTE, Cell, Column, Comparison, comparisons

# In text; outside of it (names of files, say) nothing of ours is ever written.
_SIGNS: Final = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{\char34}", "`": r"\textasciigrave{}", "'": "{'}",
    "‖": r"$\Vert$", "Δ": r"$\Delta$", "–": "--", "[": "{[}", "]": "{]}",
}  # fmt: skip
_NOT_WIDER_THAN_THE_TEXT: Final = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
_INVISIBLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")


def latex_text(value: object) -> str:
    """A value as LaTeX's text on one line: every sign that LaTeX knows is escaped, invisible ones are blanks."""
    visible = _INVISIBLE.sub(" ", str(value))
    following = [*visible[1:], ""]
    return "".join(
        "-{}" if (sign, after) == ("-", "-") else _SIGNS.get(sign, sign)
        for sign, after in zip(visible, following, strict=False)
    )


LATEX_START: Final = r"% Needs \usepackage{booktabs,graphicx}."


def report_latex(run: BenchRun) -> str:
    """A ``table`` for each group of metrics of each model and data set."""
    # A comment ends with its line.
    commands = [f"% Made by: {_INVISIBLE.sub(' ', command)}" for command in run.about.all_commands]
    lines = [LATEX_START, *commands, f"% {BEST_NOTE}"]
    for section in run.sections():
        for table in comparisons(section.rows, run.stopped(section)):
            named = ", ".join(part for part in (section.model, section.data) if part)
            lines += ["", *_table(table, named, run.signs(section))]
    return "\n".join(lines) + "\n"


def _table(table: Comparison, named: str, signs: Mapping[str, str]) -> list[str]:
    last = [index for index, column in enumerate(table.columns) if column.when == "after"]
    if not last:
        return [f"% {table.group}: nothing was measured after the whole run"]
    heads = [_head(table.columns[index]) for index in last]
    counts = [f"$n={column.n.replace('–', '$--$')}$" for column in (table.columns[index] for index in last)]
    measured = [
        index
        for index, (measure, _) in enumerate(table.measures)
        if any(table.columns[place].measure == measure for place in last)
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


def _head(column: Column) -> str:
    """On two lines that are as short as can be: numbers are narrower than names."""
    measure = column.measure
    words = f"{measure.head} ({measure.unit_text})".split() if measure.unit_text else measure.head.split()
    if len(words) == 1:
        return latex_text(words[0])
    halves = [(" ".join(words[:place]), " ".join(words[place:])) for place in range(1, len(words))]
    first, second = min(halves, key=lambda half: max(map(len, half)))
    return f"\\begin{{tabular}}[b]{{@{{}}r@{{}}}}{latex_text(first)}\\\\{latex_text(second)}\\end{{tabular}}"


def _lines(name: str, cells: list[Cell], note: str | None = None) -> list[str]:
    """Means, and below them their intervals where there are any: beside them, tables would be twice as wide."""
    head = latex_text(name if note is None else f"{name} ({note})")
    means = " & ".join([head, *map(_mean, cells)])
    if not any(map(_interval, cells)):
        return [means + r" \\"]
    return [means + r" \\[-3pt]", " & ".join(["", *map(_interval, cells)]) + r" \\[2pt]"]


def _mean(cell: Cell) -> str:
    if cell.row is None:
        return "--"
    number = cell.value.replace("-", "$-$")
    return f"\\textbf{{{number}}}" if cell.best else number


def _interval(cell: Cell) -> str:
    # A bracket after a line's end would be read as that line's option.
    return f"{{\\scriptsize {{{cell.interval.replace('-', '$-$')}}}}}" if cell.row is not None and cell.interval else ""
