"""``errata report``: the results of a benchmark or of studies as HTML, Markdown, CSV and LaTeX."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from errata.analysis.studies import ROWS, STUDY, StudyResult
from errata.benchmark.campaign import open_campaign
from errata.benchmark.collect import collect
from errata.cli.terminal import echo, warn
from errata.errors import Fault, FaultsError, InputError, collect_errors
from errata.report.analysis import FIGURES, analysis_markdown, analysis_page, figure_files
from errata.report.answers import Answers, read_answers
from errata.report.bench_run import GRID, RECORDS, SUMMARY, BenchRun, read_bench_run
from errata.report.documents import CSV_COLUMNS, LATEX_START, report_csv, report_latex, report_markdown
from errata.report.figures import check_drawing
from errata.report.page import report_page
from errata.report.studies import ShownStudy, Studies, is_of_studies, read_studies, shown
from errata.utils.files import check_file, is_file, is_there, write_bytes, write_text
from errata.utils.locks import check_no_links
from errata.utils.text import counted

EXAMPLE = "Example: errata report runs/x --format html"
STEM: Final = "report"
FORMATS: Final = ("html", "md", "csv", "tex")
_OF_STUDIES: Final = ("html", "md")
_NOT_OF_STUDIES: Final = {
    "csv": f"the table of each study is {ROWS} in its directory",
    "tex": f"LaTeX is not supported for studies; the table of each study is {ROWS} in its directory",
}
_MARK: Final = "<!-- Made by errata report, which may replace this file. -->"
app = typer.Typer()


@app.command("report", epilog=EXAMPLE)
def report(
    results: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Directory of a benchmark, of a finished study, or with several studies."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory for the report, or a file ending in .html, .md, .csv or .tex."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"Comma-separated formats: {','.join(FORMATS)}; default: all, for studies "
            f"{' and '.join(_OF_STUDIES)}.",
        ),
    ] = None,
    analysis: Annotated[
        list[Path] | None,
        typer.Option(
            "--analysis",
            help="Directory of one or several studies to include in a benchmark's HTML and Markdown; may be repeated.",
        ),
    ] = None,
) -> None:
    """Write a report of a benchmark or study as HTML, Markdown, CSV and LaTeX.

    The HTML page is self-contained and works offline. By default, the files are written next to the results and replace
    an older report; figures of the Markdown report go to figures/.
    """
    if is_of_studies(results) and not is_there(results / SUMMARY) and not is_there(results / GRID):
        _report_studies(results, out, formats, analysis or [])
    else:
        _report_benchmark(results, out, formats, analysis or [])


def _check_something(run: Path) -> None:
    """Raises InputError unless the directory contains a benchmark."""
    remedy = "Give a directory written by `errata bench` or `errata analyse`"
    if not run.is_dir():
        raise InputError(f"no directory {str(run)!r}", remedy=remedy, code="RUN_NOT_FOUND")
    if not is_there(run / SUMMARY) and not is_there(run / GRID):
        raise InputError(
            f"{run} contains neither a benchmark ({SUMMARY} or {GRID}) nor studies ({STUDY})",
            remedy=remedy,
            code="RUN_NOT_FOUND",
        )


def _collect_again(run: Path) -> None:
    """Collect the results of a benchmark again if cells have finished since; the benchmark collects only at its end."""
    summary = run / SUMMARY
    finished = [path.stat().st_mtime for path in run.glob("cells/*/result.json")]
    if finished and (not is_there(summary) or max(finished) > summary.stat().st_mtime):
        campaign = open_campaign(run)
        if any(map(campaign.is_edited, campaign.cells)):
            check_no_links(run)
            collect(campaign)


def _report_studies(run: Path, out: Path | None, formats: str | None, analysis: Sequence[Path]) -> None:
    with collect_errors("the input") as part:
        with part:
            if analysis:
                raise InputError(
                    f"--analysis adds studies to a benchmark, but {run} contains studies only",
                    remedy="Put the directories of all studies into one directory, and give that",
                    code="OPTION_NOT_APPLICABLE",
                )
        with part:
            targets = _targets(run, out, formats, _OF_STUDIES)
            refused = [
                Fault("--format", reason, "", code="FORMAT_UNSUPPORTED")
                for kind, reason in _NOT_OF_STUDIES.items()
                if kind in targets
            ]
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
    _warn_unfinished(unfinished)


def write_studies(
    results: Sequence[StudyResult],
    targets: Mapping[str, Path],
    unfinished: Sequence[str] = (),
    places: Sequence[Path] = (),
) -> None:
    """Write the report of studies, each format to its place.

    Args:
        targets: ``html`` and ``md``, or one of them -> file.
        unfinished: a message for each omitted study.
        places: the directory of each study, to link to its table.

    Raises:
        MissingExtraError: if figures cannot be drawn here.
    """
    studies = shown(results, _tables(places, targets))
    texts: dict[str, str] = {}
    if "html" in targets:
        texts["html"] = analysis_page(studies, unfinished)
    if "md" in targets:
        texts["md"] = f"{analysis_markdown(studies, unfinished)}\n{_MARK}\n"
    _write(texts, targets, studies)


def _report_benchmark(run: Path, out: Path | None, formats: str | None, analysis: Sequence[Path]) -> None:
    added = Studies()
    with collect_errors("the input") as part:
        with part:
            targets = _targets(run, out, formats)
            for target in targets.values():
                _check_target(run, target)
            if "html" in targets:
                check_drawing()
            if analysis and not {"html", "md"} & targets.keys():
                raise InputError(
                    f"--analysis applies to HTML and Markdown only, but --format is {', '.join(targets)}",
                    remedy="Remove --analysis, or add html or md",
                    code="OPTION_NOT_APPLICABLE",
                )
        with part:
            _check_something(run)
            _collect_again(run)
            found = read_bench_run(run)
        for directory in analysis:
            with part:
                check_drawing()
                added |= read_studies(directory)
    studies = shown(added.finished.values(), _tables(list(added.finished), targets))
    unfinished = list(map(str, added.unfinished.values()))
    answers = read_answers(found.records) if "html" in targets else None
    texts: dict[str, str] = {}
    if answers is not None:
        texts["html"] = report_page(found, answers, studies, unfinished)
    if "md" in targets:
        texts["md"] = f"{report_markdown(found, studies, unfinished)}\n{_MARK}\n"
    if "csv" in targets:
        texts["csv"] = report_csv(found)
    if "tex" in targets:
        texts["tex"] = report_latex(found)
    _write(texts, targets, studies)
    _warn(found, answers, unfinished)


def _write(texts: Mapping[str, str], targets: Mapping[str, Path], studies: Sequence[ShownStudy]) -> None:
    """Write a complete report; figures first, so that no document refers to missing ones."""
    pictures = figure_files(studies) if "md" in targets else {}
    if pictures and (targets["md"].parent / FIGURES).is_symlink():
        raise InputError(
            f"{targets['md'].parent / FIGURES} is a symbolic link",
            remedy="Remove it, or give another --out",
            code="OUTPUT_IS_LINK",
        )
    for name, data in pictures.items():
        write_bytes(targets["md"].parent / name, data)
    for kind, target in targets.items():
        write_text(target, texts[kind])
    figures = f", and {counted(len(pictures), 'picture')} in {targets['md'].parent / FIGURES}" if pictures else ""
    echo(f"Wrote {', '.join(map(str, targets.values()))}{figures}.")


def _targets(run: Path, out: Path | None, formats: str | None, usual: Sequence[str] = FORMATS) -> dict[str, Path]:
    """The file of each format; without --format, of all default formats."""
    chosen = usual if formats is None else _formats(formats)
    if out is not None and not out.is_dir() and out.suffix:
        kind = out.suffix[1:].lower()
        if kind not in FORMATS:
            remedy = f"Give a directory, or a file that ends in {', '.join(f'.{each}' for each in FORMATS)}"
            raise InputError(f"--out: unknown file extension of {str(out)!r}", remedy=remedy, code="FORMAT_UNKNOWN")
        if formats is not None and list(chosen) != [kind]:
            remedy = "Give a directory as --out, or remove one of the two"
            what = f"--out {out} is a file of format {kind}, but --format is {formats}"
            raise InputError(what, remedy=remedy, code="OPTION_CONFLICT")
        return {kind: out}
    return {kind: (run if out is None else out) / f"{STEM}.{kind}" for kind in chosen}


def _formats(given: str) -> Sequence[str]:
    chosen = [name.strip().lower() for name in given.split(",")]
    remedy = f"Available: {', '.join(FORMATS)}, comma-separated"
    faults = [
        Fault("--format", f"unknown format {name!r}", remedy, code="FORMAT_UNKNOWN")
        for name in chosen
        if name not in FORMATS
    ]
    if faults:
        raise FaultsError("the command line", faults)
    return list(dict.fromkeys(chosen))


def _check_target(run: Path, target: Path) -> None:
    _check_replaceable(run, target)
    if target.resolve() in {(run / SUMMARY).resolve(), (run / RECORDS).resolve()}:
        raise InputError(f"{target} is a result file of the run", remedy="Give another --out", code="OUTPUT_CONFLICT")


def _check_replaceable(run: Path, target: Path) -> None:
    """Raises InputError if the report cannot be written there, or would replace another file.

    A file with the default name in the run's directory counts as a report: earlier versions wrote it without a mark.
    """
    check_file(target)
    usual = target.stem == STEM and target.parent.resolve() == run.resolve()
    if not usual and is_file(target) and not _is_report(target):
        raise InputError(
            f"{target} exists and is not a report of errata; it would be overwritten",
            remedy="Give another --out, or remove the file first",
            code="OUTPUT_EXISTS",
        )


def _is_report(path: Path) -> bool:
    """Whether a file is empty or a report in the format of its extension."""
    data = path.read_bytes()
    marks = {
        ".html": b"<title>errata: " in data[:2000],
        ".md": data.rstrip().endswith(_MARK.encode()),
        ".csv": data.startswith(",".join(CSV_COLUMNS).encode()),
        ".tex": data.startswith(LATEX_START.encode()),
    }
    return not data or marks[path.suffix.lower()]


def _tables(places: Sequence[Path], targets: Mapping[str, Path]) -> list[str]:
    """The paths of the studies' tables, relative to the report."""
    start = next(iter(targets.values())).parent.resolve()
    return [Path(os.path.relpath(place.resolve() / ROWS, start)).as_posix() for place in places]


def _warn_unfinished(studies: Sequence[str]) -> None:
    for study in studies:
        warn(f"warning: omitted, {study}")


def _warn(run: BenchRun, answers: Answers | None, unfinished: Sequence[str]) -> None:
    cells = run.about.cells
    if bad := len(run.about.failed):
        warn(f"warning: {bad} of {counted(len(cells), 'run')} of the grid failed; see the report for reasons")
    if waiting := len(run.about.unfinished):
        verb = "is" if waiting == 1 else "are"
        warn(f"warning: {waiting} of {counted(len(cells), 'run')} of the grid {verb} unfinished")
    if answers is not None and answers.entries_left_out:
        warn(
            f"note: the page omits the answers of {answers.entries_left_out} of {answers.entries} facts to "
            f"limit its size"
        )
    _warn_unfinished(unfinished)
