"""``errata report``: what a benchmark's run found, as a page, a document and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from errata.errors import Fault, FaultsError, InputError, told_together
from errata.output import check_file, write_text
from errata.report.answers import Answers, read_answers
from errata.report.bench_run import RECORDS, SUMMARY, BenchRun, read_bench_run
from errata.report.documents import report_csv, report_markdown
from errata.report.latex import report_latex
from errata.report.page import report_page
from errata.verbs.console import counted, tell, warn

EXAMPLE = "Example: errata report runs/x --format html"
STEM: Final = "report"
FORMATS: Final = ("html", "md", "csv", "tex")


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a finished benchmark.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A directory for the report's files, or a FILE.html, .md, .csv or .tex."),
    ] = None,
    formats: Annotated[
        str | None, typer.Option("--format", help=f"Some of {','.join(FORMATS)}. By default all.")
    ] = None,
) -> None:
    """Show what a benchmark found: one HTML page that needs no network, Markdown, CSV and LaTeX tables.

    They are written beside the results, over an older report.
    """
    with told_together("what was given") as part:
        with part:
            targets = _targets(run, out, formats)
            for target in targets.values():
                _check_target(run, target)
        with part:
            found = read_bench_run(run)
    answers = read_answers(found.records) if "html" in targets else None
    makers: dict[str, Callable[[], str]] = {
        "html": lambda: report_page(found, _given(answers)),
        "md": lambda: report_markdown(found),
        "csv": lambda: report_csv(found),
        "tex": lambda: report_latex(found),
    }
    texts = {target: makers[kind]() for kind, target in targets.items()}
    for target, text in texts.items():  # only when all of them are there
        write_text(target, text)
    tell(f"Wrote {', '.join(map(str, texts))}.")
    _warn(found, answers)


def _targets(run: Path, out: Path | None, formats: str | None) -> dict[str, Path]:
    """Where each format goes."""
    chosen = _formats(formats)
    if out is not None and not out.is_dir() and out.suffix:
        kind = out.suffix[1:].lower()
        if kind not in FORMATS:
            remedy = f"Give a directory, or a file that ends in {', '.join(f'.{each}' for each in FORMATS)}"
            raise InputError(f"--out: no format is known by the ending of {str(out)!r}", remedy=remedy)
        if formats is not None and list(chosen) != [kind]:
            remedy = "Give --out a directory, or leave one of the two out"
            raise InputError(f"--out {out} is one file of format {kind}, --format asks for {formats}", remedy=remedy)
        return {kind: out}
    return {kind: (run if out is None else out) / f"{STEM}.{kind}" for kind in chosen}


def _formats(given: str | None) -> Sequence[str]:
    if given is None:
        return FORMATS
    chosen = [name.strip().lower() for name in given.split(",")]
    remedy = f"Known: {', '.join(FORMATS)}; several are separated by commas"
    faults = [Fault("--format", f"there is no format {name!r}", remedy) for name in chosen if name not in FORMATS]
    if faults:
        raise FaultsError("the command line", faults)
    return list(dict.fromkeys(chosen))


def _check_target(run: Path, target: Path) -> None:
    check_file(target)
    if target.resolve() in {(run / SUMMARY).resolve(), (run / RECORDS).resolve()}:
        raise InputError(f"{target} is a result of the run", remedy="Give another --out")


def _given(answers: Answers | None) -> Answers:
    if answers is None:
        raise TypeError("the page needs the answers")
    return answers


def _warn(run: BenchRun, answers: Answers | None) -> None:
    cells = run.about.cells
    bad = sum(cell.status == "failed" for cell in cells)
    if bad:
        warn(f"warning: {bad} of {counted(len(cells), 'run')} of the grid failed; the report says which and why")
    waiting = sum(cell.status == "not done" for cell in cells)
    if waiting:
        warn(f"warning: {waiting} of {counted(len(cells), 'run')} of the grid are not done yet")
    if answers is not None and answers.entries_left_out:
        warn(f"note: the page has no room for {answers.entries_left_out} of {answers.entries} facts' answers")
