"""A run's Markdown, CSV and LaTeX, read back."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from errata.report.bench_run import BenchRun, read_bench_run
from errata.report.documents import CSV_COLUMNS, report_csv, report_markdown
from errata.report.latex import latex_text, report_latex

from tests.support.bench_runs import MadeUp, write_run

HOSTILE = "a|b & c_d $x$ 50% #1 ~ ^ {z} \\end{table} <script>x</script> `q` \"r\" 's' -- [0]\u2028\u202e*new*\nline"
MADE_UP = MadeUp(methods=("memit", HOSTILE), data=("one, two", "b"), seeds=1, facts=40, batch=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> BenchRun:
    return read_bench_run(write_run(tmp_path_factory.mktemp("runs") / "hostile", MADE_UP))


def test_csv_is_the_long_form_bit_for_bit(run: BenchRun) -> None:
    lines = list(csv.DictReader(io.StringIO(report_csv(run))))
    assert tuple(lines[0]) == CSV_COLUMNS
    read = [
        {
            **{name: line[name] for name in ("model", "data", "method", "metric", "when")},
            **{name: float(line[name]) if line[name] else None for name in ("mean", "low", "high")},
            "n": int(line["n"]),
            **({"edits": int(line["edits"])} if line["edits"] else {}),
        }
        for line in lines
    ]
    # The run's rows have no key for what they do not tell; CSV has an empty cell.
    whole = [{"low": None, "high": None, **row} for section in run.sections() for row in section.rows]
    assert read == whole
    best = [line for line in lines if line["best"] == "1"]
    assert {line["metric"] for line in best} >= {"perplexity_ratio", "efficacy_accuracy"}
    assert not [line for line in best if line["metric"] in ("something_new", "weight_norm_ratio", "seconds_per_edit")]
    assert not [line for line in best if line["when"] in ("before", "during")]


def test_markdown_tables_keep_their_cells_and_nobodys_words_do_anything(run: BenchRun) -> None:
    tokens = MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(report_markdown(run))
    assert not [token for token in tokens if token.type == "html_block"]
    children = [child for token in tokens for child in token.children or []]
    assert {child.type for child in children} <= {
        "text", "text_special", "strong_open", "strong_close", "em_open", "em_close",
    }  # fmt: skip
    widths: list[set[int]] = []
    names = set()
    for index, token in enumerate(tokens):
        if token.type == "table_open":
            widths.append(set())
        if token.type == "tr_open":
            end = next(place for place in range(index, len(tokens)) if tokens[place].type == "tr_close")
            cells = [one for one in tokens[index:end] if one.type == "inline"]
            widths[-1].add(len(cells))
            names.add("".join(child.content for child in cells[0].children or []))
    assert len(widths) == 2 * 8
    assert all(len(each) == 1 for each in widths)
    told = HOSTILE.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e").replace("\n", "↵")
    assert names == {"method", "before editing", "memit", told}
    assert re.search(r"\| \*\*\d+\.\d+\*\* \[\d+\.\d, \d+\.\d\] \|", report_markdown(run))


def unescaped(latex: str) -> str:
    """What a reader of the typeset text sees."""
    for name, sign in (("textasciitilde", "~"), ("textasciicircum", "^"), ("textless", "<"), ("textgreater", ">"),
                       ("textbar", "|"), ("textasciigrave", "`")):  # fmt: skip
        latex = latex.replace(f"\\{name}{{}}", sign)
    latex = latex.replace(r"{\char34}", '"').replace("{'}", "'").replace("{[}", "[").replace("{]}", "]")
    latex = latex.replace("-{}", "-").replace(r"\textbackslash{}", "\0")
    return re.sub(r"\\([{}$&#%_])", r"\1", latex).replace("\0", "\\")


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_latex_text_is_read_back_as_it_was(value: str) -> None:
    assert unescaped(latex_text(value)) == value
    assert not re.search(r"(?<!\\)[&%#$_]", latex_text(value))


def test_latex_tables_are_whole(run: BenchRun) -> None:
    whole = report_latex(replace(run, about=run.about.model_copy(update={"command": "one\ntwo\\input{x}\u2028three"})))
    lines = whole.splitlines()
    assert lines[0].startswith("%")
    assert lines[0].endswith("one two\\input{x} three")
    assert not [line for line in lines if line.startswith(("two", "three"))]
    bodies = re.findall(r"\\begin\{tabular\}\{(l?r*)\}\n(.*?)\\end\{tabular\}", whole, re.S)
    assert len(bodies) == whole.count(r"\begin{table}") == whole.count(r"\end{table}") == 2 * 8
    for columns, body in bodies:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 4
        for line in rows:
            assert len(re.split(r"(?<!\\)&", line)) == len(columns)
    named = next(line for line in bodies[0][1].splitlines() if r"\textbackslash{}end" in line)
    assert unescaped(named.split(r" & \textbf", 1)[0].split(" & 9")[0]) == re.sub("[\u2028\u202e\n]+", " ", HOSTILE)
    first = next(
        row
        for row in run.rows
        if (row["method"], row["metric"], row["when"]) == (HOSTILE, "efficacy_accuracy", "after")
    )
    assert f"\\textbf{{{100 * first['mean']:.1f}}} {{\\scriptsize {{[{100 * (first['low'] or 0):.1f}, " in named
    assert "\u202e" not in whole
