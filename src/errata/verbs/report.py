"""``errata report``: what a benchmark's run or studies found, as a page, a document and tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from errata.analysis.running import ROWS, STUDY, Result
from errata.benchmark.campaign import open_campaign
from errata.benchmark.collect import collect
from errata.errors import Fault, FaultsError, InputError, told_together
from errata.in_place import check_no_links
from errata.output import check_file, is_file, is_there, write_bytes, write_text
from errata.report.analysis_documents import FIGURES, analysis_markdown, figure_files
from errata.report.analysis_folders import Studies, is_of_studies, read_studies
from errata.report.analysis_page import analysis_page
from errata.report.analysis_results import ShownStudy, shown
from errata.report.answers import Answers, read_answers
from errata.report.bench_run import GRID, RECORDS, SUMMARY, BenchRun, read_bench_run
from errata.report.documents import CSV_COLUMNS, report_csv, report_markdown
from errata.report.figures import check_drawing
from errata.report.latex import LATEX_START, report_latex
from errata.report.page import report_page
from errata.verbs.terminal import counted, tell, warn

EXAMPLE = "Example: errata report runs/x --format html"
STEM: Final = "report"
FORMATS: Final = ("html", "md", "csv", "tex")
_OF_STUDIES: Final = ("html", "md")
_NOT_OF_STUDIES: Final = {
    "csv": f"each study has its table already: {ROWS} in its directory",
    "tex": f"no LaTeX is made of studies; {ROWS} in a study's directory is its table",
}
_MARK: Final = "<!-- Made by errata report, which may replace this file. -->"
app = typer.Typer()


@app.command("report", epilog=EXAMPLE)
def report(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The directory of a benchmark, of a finished study, or a folder of studies."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A directory for the report's files, or a FILE.html, .md, .csv or .tex."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", help=f"Some of {','.join(FORMATS)}. By default all; of studies {' and '.join(_OF_STUDIES)}."
        ),
    ] = None,
    analysis: Annotated[
        list[Path] | None,
        typer.Option(
            "--analysis",
            help="A study, or a folder of studies, to add to a benchmark's page and document. May be repeated.",
        ),
    ] = None,
) -> None:
    """Show what a benchmark or a study found: one HTML page that needs no network, Markdown, CSV and LaTeX tables.

    They are written beside the results, over an older report; the Markdown's figures into figures/ beside it.
    """
    if is_of_studies(results) and not is_there(results / SUMMARY) and not is_there(results / GRID):
        _report_studies(results, out, formats, analysis or [])
    else:
        _report_benchmark(results, out, formats, analysis or [])


def _check_something(run: Path) -> None:
    """Raises InputError where there is nothing that a report can be of."""
    remedy = "Give the directory of an `errata bench` or of an `errata analyse`, or a folder with several studies"
    if not run.is_dir():
        raise InputError(f"there is no directory {str(run)!r}", remedy=remedy)
    if not is_there(run / SUMMARY) and not is_there(run / GRID):
        raise InputError(
            f"{run} is no run of a benchmark (it has neither {SUMMARY} nor {GRID}), no study and no folder of studies "
            f"(neither it nor a directory in it has {STUDY})",
            remedy=remedy,
        )


def _collect_anew(run: Path) -> None:
    """Put together what the cells of a benchmark have found, where some have ended since that was last done.

    The benchmark itself does so only at its end.
    """
    summary = run / SUMMARY
    ended = [path.stat().st_mtime for path in run.glob("cells/*/result.json")]
    if ended and (not is_there(summary) or max(ended) > summary.stat().st_mtime):
        campaign = open_campaign(run)
        if any(map(campaign.is_edited, campaign.cells)):
            check_no_links(run)
            collect(campaign)


def _report_studies(run: Path, out: Path | None, formats: str | None, analysis: Sequence[Path]) -> None:
    with told_together("what was given") as part:
        with part:
            if analysis:
                raise InputError(
                    f"--analysis adds studies to a benchmark, and {run} is of studies itself",
                    remedy="Put the studies' directories into one folder, and give that",
                )
        with part:
            targets = _targets(run, out, formats, _OF_STUDIES)
            refused = [Fault("--format", reason, "") for kind, reason in _NOT_OF_STUDIES.items() if kind in targets]
            if refused:
                raise FaultsError("the command line", refused)
            for target in targets.values():
                _check_replaceable(run, target)
        with part:
            check_drawing()
        with part:
            found = read_studies(run)
    unfinished = list(map(str, found.unfinished.values()))
    write_studies(list(found.finished.values()), targets, unfinished, list(found.finished))
    _warn_of(unfinished)


def write_studies(
    results: Sequence[Result],
    targets: Mapping[str, Path],
    unfinished: Sequence[str] = (),
    places: Sequence[Path] = (),
) -> None:
    """Write the report of studies, each format to its place.

    Args:
        targets: ``html`` and ``md``, or one of them -> file.
        unfinished: what to say of each study that is left out.
        places: the directory of each study, so that the report can say where its table is.

    Raises:
        MissingExtraError: if figures cannot be drawn here.
    """
    studies = shown(results, _tables(places, targets))
    makers: dict[str, Callable[[], str]] = {
        "html": lambda: analysis_page(studies, unfinished),
        "md": lambda: f"{analysis_markdown(studies, unfinished)}\n{_MARK}\n",
    }
    _write({target: makers[kind]() for kind, target in targets.items()}, targets, studies)


def _report_benchmark(run: Path, out: Path | None, formats: str | None, analysis: Sequence[Path]) -> None:
    added = Studies()
    with told_together("what was given") as part:
        with part:
            targets = _targets(run, out, formats)
            for target in targets.values():
                _check_target(run, target)
            if analysis and not {"html", "md"} & targets.keys():
                raise InputError(
                    f"--analysis adds to HTML and Markdown, and what is asked for is {', '.join(targets)}",
                    remedy="Leave it out, or ask for html or md too",
                )
        with part:
            _check_something(run)
            _collect_anew(run)
            found = read_bench_run(run)
        for directory in analysis:
            with part:
                check_drawing()
                added |= read_studies(directory)
    studies = shown(added.finished.values(), _tables(list(added.finished), targets))
    unfinished = list(map(str, added.unfinished.values()))
    answers = read_answers(found.records) if "html" in targets else None
    makers: dict[str, Callable[[], str]] = {
        "html": lambda: report_page(found, _given(answers), studies, unfinished),
        "md": lambda: f"{report_markdown(found, studies, unfinished)}\n{_MARK}\n",
        "csv": lambda: report_csv(found),
        "tex": lambda: report_latex(found),
    }
    _write({target: makers[kind]() for kind, target in targets.items()}, targets, studies)
    _warn(found, answers)
    _warn_of(unfinished)


def _write(texts: Mapping[Path, str], targets: Mapping[str, Path], studies: Sequence[ShownStudy]) -> None:
    """Write a report, now that all of it is there; figures first, so that no document lacks them."""
    pictures = figure_files(studies) if "md" in targets else {}
    if pictures and (targets["md"].parent / FIGURES).is_symlink():
        raise InputError(f"{targets['md'].parent / FIGURES} is a link", remedy="Remove it, or give another --out")
    for name, data in pictures.items():
        write_bytes(targets["md"].parent / name, data)
    for target, text in texts.items():
        write_text(target, text)
    beside = f", and {counted(len(pictures), 'picture')} in {targets['md'].parent / FIGURES}" if pictures else ""
    tell(f"Wrote {', '.join(map(str, texts))}{beside}.")


def _targets(run: Path, out: Path | None, formats: str | None, usual: Sequence[str] = FORMATS) -> dict[str, Path]:
    """Where each format goes; without --format those that are usual."""
    chosen = usual if formats is None else _formats(formats)
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


def _formats(given: str) -> Sequence[str]:
    chosen = [name.strip().lower() for name in given.split(",")]
    remedy = f"Known: {', '.join(FORMATS)}; several are separated by commas"
    faults = [Fault("--format", f"there is no format {name!r}", remedy) for name in chosen if name not in FORMATS]
    if faults:
        raise FaultsError("the command line", faults)
    return list(dict.fromkeys(chosen))


def _check_target(run: Path, target: Path) -> None:
    _check_replaceable(run, target)
    if target.resolve() in {(run / SUMMARY).resolve(), (run / RECORDS).resolve()}:
        raise InputError(f"{target} is a result of the run", remedy="Give another --out")


def _check_replaceable(run: Path, target: Path) -> None:
    """Raises InputError if no report can be written there, or would take the place of a file that is none.

    Under its usual name in the run's own directory it is one: errata has always written it there, without a mark.
    """
    check_file(target)
    usual = target.stem == STEM and target.parent.resolve() == run.resolve()
    if not usual and is_file(target) and not _is_report(target):
        raise InputError(
            f"{target} is there, and is not a report of errata: it would be lost",
            remedy="Give another --out, or remove it first",
        )


def _is_report(path: Path) -> bool:
    """Whether a file is a report in the format that its name ends in, or is empty."""
    data = path.read_bytes()
    marks = {
        ".html": b"<title>errata: " in data[:2000],
        ".md": data.rstrip().endswith(_MARK.encode()),
        ".csv": data.startswith(",".join(CSV_COLUMNS).encode()),
        ".tex": data.startswith(LATEX_START.encode()),
    }
    return not data or marks[path.suffix.lower()]


def _given(answers: Answers | None) -> Answers:
    if answers is None:
        raise TypeError("the page needs the answers")
    return answers


def _tables(places: Sequence[Path], targets: Mapping[str, Path]) -> list[str]:
    """Where the studies' tables are, from where the report is on."""
    start = next(iter(targets.values())).parent.resolve()
    return [Path(os.path.relpath(place.resolve() / ROWS, start)).as_posix() for place in places]


def _warn_of(unfinished: Sequence[str]) -> None:
    for each in unfinished:
        warn(f"warning: left out, {each}")


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
