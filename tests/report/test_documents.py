"""A run's Markdown, CSV and LaTeX, read back."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from errata.report.answers import Answers
from errata.report.bench_run import BenchRun, read_bench_run
from errata.report.documents import CSV_COLUMNS, latex_text, report_csv, report_latex, report_markdown
from errata.report.markdown import code, text
from errata.report.page import as_yaml, report_page
from errata.results.records import write_results

from tests.support.bench_runs import MadeUp, row, rows_of, write_run

PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")
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
            **{name: int(line[name]) for name in ("edits", "seeds") if line[name]},
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


def test_no_cell_of_csv_is_a_formula(tmp_path: Path) -> None:
    formulas = ("=1+1", "@home", "+7", "-method")
    found = read_bench_run(
        write_run(tmp_path / "run", MadeUp(methods=("memit",), data=formulas, seeds=1, facts=4, batch=2))
    )
    lines = list(csv.DictReader(io.StringIO(report_csv(found))))
    assert {line["data"] for line in lines} == {f"'{name}" for name in formulas}
    assert {line["method"] for line in lines} == {"memit"}
    float(lines[0]["mean"])


def test_markdown_tables_keep_their_cells_and_nobodys_words_do_anything(run: BenchRun) -> None:
    tokens = PARSER.parse(report_markdown(run))
    assert not [token for token in tokens if token.type == "html_block"]
    children = [child for token in tokens for child in token.children or []]
    assert {child.type for child in children} <= {
        "text", "text_special", "strong_open", "strong_close", "em_open", "em_close", "code_inline",
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
    escaped = HOSTILE.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e").replace("\n", "↵")
    assert names == {"method", "before editing", "memit", escaped}
    assert re.search(r"\| \*\*\d+\.\d+\*\* \[\d+\.\d, \d+\.\d\] \|", report_markdown(run))


@given(st.text(alphabet=st.sampled_from("ab_ :=()[]*`|<&#!~$\\.é"), min_size=1, max_size=30))
def test_names_and_texts_are_read_back_from_markdown_as_they_were(value: str) -> None:
    value = value.strip() or "x"
    for written in (text(value), code(value)):
        tokens = PARSER.parse(f"| a |\n| - |\n| - {written} |")
        (cell,) = [token for token in tokens if token.type == "inline"][1:]
        children = cell.children or []
        assert {child.type for child in children} <= {"text", "text_special", "code_inline"}
        assert "".join(child.content for child in children) == f"- {value}"


def test_what_needs_no_entity_has_none() -> None:
    assert text("no fact has 'portability' questions (a_b=c): x") == "no fact has 'portability' questions (a_b=c): x"
    assert code("free_efficacy_exact:chat") == "`free_efficacy_exact:chat`"
    assert code("memit [layers=4/8, solver.ridge=1]") == "`memit [layers=4/8, solver.ridge=1]`"
    assert text("_a_ http://x") == "&#95;a&#95; http&#58;//x"


def test_absent_measurements_are_grouped_by_their_reason(tmp_path: Path) -> None:
    absent = {"one": {"free_a": "no", "free_b": "yes", "free_c": "no"}, "two": {"free_a": "no"}}
    run = read_bench_run(write_run(tmp_path / "run", MadeUp(seeds=1, facts=20, batch=10, about={"absent": absent})))
    lines = [line for line in report_markdown(run).splitlines() if "free_a" in line or "free_b" in line]
    assert lines == ["- `one`: `free_a`, `free_c`: no", "- `one`: `free_b`: yes", "- `two`: `free_a`: no"]
    page = report_page(run, Answers({}, 0, 0, 0))
    assert "<bdi>free_a</bdi>, <bdi>free_c</bdi></td><td><bdi>no</bdi>" in page


TWO_MODELS = [
    row("memit", metric, "after", 0.5, model=model, data="one")
    for model, metric in (("base", "free_exact"), ("chat", "free_exact"), ("chat", "free_exact:chat"))
]
NO_TEMPLATE = {"free_exact:chat": "no chat template", "fluency": "no texts"}


@pytest.mark.parametrize(
    "absent",
    [
        {"one": NO_TEMPLATE},
        {"base | one": NO_TEMPLATE, "chat | one": {"fluency": "no texts"}},
        [
            {"model": "base", "data": "one", "metrics": NO_TEMPLATE},
            {"model": "chat", "data": "one", "metrics": {"fluency": "no texts"}},
        ],
    ],
)
def test_only_what_a_section_has_no_row_of_was_not_measured(tmp_path: Path, absent: object) -> None:
    write_results(tmp_path / "summary.json", TWO_MODELS, {"command": "x", "cells": [], "absent": absent})
    run = read_bench_run(tmp_path)
    assert [(entry.model, entry.metrics) for entry in run.absent()] == [
        ("base", ("free_exact:chat",)),
        ("base", ("fluency",)),
        ("chat", ("fluency",)),
    ]
    written, page = report_markdown(run), report_page(run, Answers({}, 0, 0, 0))
    assert "- `base`, `one`: `free_exact:chat`: no chat template" in written
    assert "`chat`, `one`: `free_exact:chat`" not in written
    assert "<bdi>base</bdi>, <bdi>one</bdi></th><td><bdi>free_exact:chat</bdi></td>" in page
    assert "<bdi>chat</bdi>, <bdi>one</bdi></th><td><bdi>free_exact:chat</bdi></td>" not in page


def test_where_all_was_measured_there_is_no_list_of_what_was_not(tmp_path: Path) -> None:
    about = {"command": "x", "cells": [], "absent": {"one": {"free_exact": "lost"}}}
    write_results(tmp_path / "summary.json", TWO_MODELS, about)
    run = read_bench_run(tmp_path)
    assert "Not measured" not in report_markdown(run)
    assert "Not measured" not in report_page(run, Answers({}, 0, 0, 0))


def test_all_commands_the_grid_and_all_versions_are_reported(tmp_path: Path) -> None:
    commands = ["errata bench --model lab --out x", "errata bench --out x --measure free"]
    versions = [{"errata": "0.1.0", "torch": "2.12.0"}, {"errata": "0.1.0", "torch": "2.13.0"}]
    about = {"command": commands[0], "commands": commands, "versions": versions}
    run = read_bench_run(write_run(tmp_path / "run", MadeUp(seeds=1, facts=20, batch=10, about=about)))
    written, page, latex = report_markdown(run), report_page(run, Answers({}, 0, 0, 0)), report_latex(run)
    for command in commands:
        assert f"```bash\n{command}\n```" in written
        assert f">{command}</pre>" in page
        assert f"% Created by: {command}\n" in latex
        assert written.count(f"\n{command}\n") == page.count(f">{command}</pre>") == 1
    for versions in ("errata 0.1.0, torch 2.12.0", "errata 0.1.0, torch 2.13.0"):
        assert f"- Versions: {versions}\n" in written
        assert f"<dd><bdi>{versions}</bdi></dd>" in page
    assert f"### Grid\n\n```yaml\n{as_yaml(run.about.grid)}```" in written

    for each in (written, page):
        assert "total over all runs" in each

    older = {"versions": {"torch": ["2.12.0", "2.13.0"]}}
    run = read_bench_run(write_run(tmp_path / "older", MadeUp(seeds=1, facts=20, batch=10, about=older)))
    assert run.about.all_commands == [run.about.command]
    assert run.about.all_versions == ["torch 2.12.0 and 2.13.0"]


def test_methods_of_which_not_all_seeds_are_done_say_so(tmp_path: Path) -> None:
    def cell(method: str, seed: int, status: str) -> dict[str, object]:
        where = {"model": "lab", "data": "counterfact", "method": method, "seed": seed}
        return {"id": f"{method}-{seed}", **where, "status": status, "seconds": 1.0 if status == "done" else None}

    states = {"memit": ["done", "failed", "done"], "alphaedit": ["done"] * 3, "alphaedit+blue": ["done", "not done"]}
    cells = [cell(method, seed, state) for method, each in states.items() for seed, state in enumerate(each)]
    run = read_bench_run(write_run(tmp_path / "run", MadeUp(methods=tuple(states), facts=20, about={"cells": cells})))
    assert run.signs(run.sections()[0]) == {"memit": "seeds 2 of 3", "alphaedit+blue": "seeds 1 of 2"}
    written = report_markdown(run)
    groups = written.count("### ") - len(states) - 1  # the rest are recipes and the grid
    assert written.count("| `memit` (seeds 2 of 3) |") == written.count("| `alphaedit` |") == groups
    assert "memit (seeds 2 of 3) &" in report_latex(run)
    page = report_page(run, Answers({}, 0, 0, 0))
    tables = page.count('class="results"')  # a group of many metrics has several
    assert tables >= groups
    assert page.count('<span class="n">seeds 2 of 3</span>') == tables + page.count('class="chart gap"')
    assert page.count('<span class="n">seeds 3 of 3</span>') == 0
    for each in (written, page):
        assert "Started" in each
        assert "total wall time of the last editing session" in each


def test_methods_that_stopped_early_say_so_and_are_never_best(tmp_path: Path) -> None:
    def cell(method: str, seed: int, stopped: int | None) -> dict[str, object]:
        where = {"model": "lab", "data": "counterfact", "method": method, "seed": seed, "status": "done"}
        ended = {"seconds": 1.0, "collapsed_at": stopped, "edits": 1 if stopped else 20}
        return {"id": f"{method}-{seed}", **where, **ended}

    # The last method has the best numbers of all.
    methods = ("memit", "alphaedit", "alphaedit+blue", "memit+blue")
    states = {method: [None] * 3 for method in methods} | {"memit+blue": [2, None, 2]}
    cells = [cell(method, seed, stopped) for method, each in states.items() for seed, stopped in enumerate(each)]
    made_up = MadeUp(methods=methods, facts=20_000, batch=10_000)
    best = {}
    for name, about in (("stopped", {"cells": cells}), ("whole", {})):
        directory = tmp_path / name
        directory.mkdir()
        write_results(directory / "summary.json", rows_of(made_up), {"command": "x", "cells": [], **about})
        run = read_bench_run(directory)
        lines = csv.DictReader(io.StringIO(report_csv(run)))
        best[name] = {(line["method"], line["metric"]) for line in lines if line["best"] == "1"}
    assert ("memit+blue", "efficacy_accuracy") in best["whole"]
    assert ("memit", "efficacy_accuracy") not in best["whole"]
    assert not [method for method, _ in best["stopped"] if method == "memit+blue"]
    assert ("alphaedit", "efficacy_accuracy") in best["stopped"]

    stopped = read_bench_run(tmp_path / "stopped")
    assert stopped.signs(stopped.sections()[0]) == {"memit+blue": "2 of 3 stopped early"}
    written, page = report_markdown(stopped), report_page(stopped, Answers({}, 0, 0, 0))
    assert "| `memit+blue` (2 of 3 stopped early) |" in written
    assert "memit+blue (2 of 3 stopped early) &" in report_latex(stopped)
    signs = ("2 of 3 stopped early", "stopped early, not compared")  # the second one in the main table
    signed = [page.count(f'<span class="n">{sign}</span>') for sign in signs]
    assert sum(signed) == page.count("<bdi>memit+<wbr>blue</bdi></span>")
    assert signed[1] == 1
    for each in (written, page):
        assert "stopped before batch 2, with 1 fact edited" in each
        assert "with a run that stopped early is not compared" in each


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
    assert all(line.startswith("%") for line in lines[:3])
    assert lines[1] == "% Created by: one two\\input{x} three"
    assert not [line for line in lines if line.startswith(("two", "three"))]
    bodies = re.findall(r"\\begin\{tabular\}\{(l?r*)\}\n(.*?)\n\\end\{tabular\}\}", whole, re.S)
    assert len(bodies) == whole.count(r"\begin{table}") == whole.count(r"\end{table}") == 2 * 8
    for columns, body in bodies:
        rows = [line for line in body.splitlines() if re.search(r"\\\\(\[.*pt\])?$", line)]
        assert len(rows) >= 4
        for line in rows:
            assert len(re.split(r"(?<!\\)&", line)) == len(columns)
    lines = bodies[0][1].splitlines()
    place = next(place for place, line in enumerate(lines) if r"\textbackslash{}end" in line)
    named, below = lines[place : place + 2]
    assert unescaped(named.split(r" & \textbf", 1)[0].split(" & 9")[0]) == re.sub("[\u2028\u202e\n]+", " ", HOSTILE)
    first = next(
        row
        for row in run.rows
        if (row["method"], row["metric"], row["when"]) == (HOSTILE, "efficacy_accuracy", "after")
    )
    assert f"\\textbf{{{100 * first['mean']:.1f}}}" in named
    assert f"{{\\scriptsize {{[{100 * (first['low'] or 0):.1f}, " in below
    assert "\u202e" not in whole


def have_latex() -> bool:
    """Whether there is LaTeX, and the packages that tables need."""
    found = [shutil.which(program) for program in ("pdflatex", "kpsewhich")]
    packages = ("booktabs.sty", "graphicx.sty")
    return all(found) and all(
        not subprocess.run(["kpsewhich", name], capture_output=True).returncode for name in packages
    )


@pytest.mark.skipif(not have_latex(), reason="there is no pdflatex with booktabs and graphicx on this machine")
def test_latex_compiles_and_no_table_is_wider_than_the_text(run: BenchRun, tmp_path: Path) -> None:
    (tmp_path / "report.tex").write_text(report_latex(run), encoding="utf-8")
    packages, *_ = re.findall(r"% Needs (.*)\.\n", report_latex(run))
    document = rf"\documentclass{{article}}{packages}\begin{{document}}\input{{report}}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    ended = subprocess.run(
        command, cwd=tmp_path, check=False, capture_output=True, text=True, errors="replace", timeout=120
    )
    assert ended.returncode == 0, ended.stdout
    assert (tmp_path / "paper.pdf").is_file()
    assert "Overfull" not in ended.stdout
