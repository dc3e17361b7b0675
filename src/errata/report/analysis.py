"""Studies as Markdown and as one self-contained HTML page, with the same guards as ``page``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from errata.report.figures import DARK
from errata.report.markdown import Markdown, fenced, markdown_table, moment, text, visible
from errata.report.page import as_yaml, duration, environment, script_of, style
from errata.report.studies import ShownFigure, ShownStudy, format_value, verdicts


def analysis_page(studies: Sequence[ShownStudy], unfinished: Sequence[str] = ()) -> str:
    """The whole page as HTML; the studies in their order.

    Args:
        unfinished: a message for each omitted study.
    """
    script, script_hash = script_of("tables.js")
    return (
        environment()
        .get_template("analysis.html.j2")
        .render(
            heading=heading(studies),
            lead=lead(studies),
            studies=studies,
            unfinished=unfinished,
            seconds=sum(study.about.seconds for study in studies),
            style=style(),
            script=script,
            script_hash=script_hash,
        )
    )


def heading(studies: Sequence[ShownStudy]) -> str:
    """The title of the study, or a summary of several."""
    if len(studies) == 1:
        return studies[0].about.title
    models = ", ".join(dict.fromkeys(study.about.model for study in studies if study.about.model))
    return f"{len(studies)} studies" + (f" of {models}" if models else "")


def lead(studies: Sequence[ShownStudy]) -> str:
    """Verdict counts of all claims."""
    return verdicts(claim for study in studies for claim in study.findings.claims)


FIGURES: Final = "figures"
_MOST: Final = 200  # rows of a study; longer tables can hardly be read
_SENTENCES: Final = 4000  # characters


def analysis_markdown(studies: Sequence[ShownStudy], unfinished: Sequence[str] = ()) -> Markdown:
    """Studies as one Markdown document.

    Args:
        unfinished: a message for each omitted study.
    """
    blocks = [f"# {text(heading(studies))}"]
    if len(studies) > 1:
        seconds = sum(study.about.seconds for study in studies)
        blocks.append(f"{text(lead(studies))}. Total time: {duration(seconds)}.")
    blocks += left_out(unfinished)
    return Markdown("\n\n".join([*blocks, *(section_markdown(study, 2) for study in studies)]) + "\n")


def left_out(unfinished: Sequence[str]) -> list[Markdown]:
    """A line for each study that is not finished."""
    return [Markdown(f"**Omitted:** {text(each, _SENTENCES)}.") for each in unfinished]


def section_markdown(study: ShownStudy, level: int) -> Markdown:
    """One study under a heading of the given level (1 is the highest)."""
    return Markdown("\n\n".join(_blocks(study, "#" * level)))


def figure_files(studies: Sequence[ShownStudy]) -> Mapping[str, bytes]:
    """All figures that the Markdown links to, also as PNG: path relative to the document -> bytes."""
    return {
        f"{FIGURES}/{figure.name}{suffix}.{kind}": data
        for study in studies
        for figure in study.figures
        for suffix, picture in (("", figure.light), (DARK.suffix, figure.dark))
        for kind, data in (("svg", picture.svg.encode() + b"\n"), ("png", picture.png))
    }


def _blocks(study: ShownStudy, mark: str) -> Iterator[str]:
    about, found = study.about, study.findings
    yield f"{mark} {text(about.title)}"
    yield text(about.shows, _SENTENCES)
    yield f"**Units:** {text(about.units, _SENTENCES)}"
    yield f"**Source:** {text(about.source, _SENTENCES)}"
    made = f" Created {moment(about.created)}." if about.created else ""
    environment_ = ", ".join(part for part in (about.model, about.device, about.dtype) if part)
    yield f"Time: {duration(about.seconds)}{f', {text(environment_)}' if environment_ else ''}.{made}"
    if found.claims:
        yield f"{mark}# Claims"
        yield f"{text(verdicts(found.claims))}."
        lines = [
            [text(each.text, _SENTENCES), f"**{each.verdict}**", text(each.evidence, _SENTENCES)]
            for each in found.claims
        ]
        yield markdown_table(["claim", "verdict", "evidence"], lines)
    if study.figures:
        yield f"{mark}# Figures"
        for figure in study.figures:
            yield picture(figure)
            yield text(figure.figure.caption, _SENTENCES)
    if found.rows:
        yield f"{mark}# Rows"
        yield from _rows(study)
    if study.undefined:
        yield f"{mark}# Undefined"
        yield markdown_table(
            ["combination", "reason"],
            [[text(names, _SENTENCES), text(reason, _SENTENCES)] for names, reason in study.undefined],
        )
    yield f"{mark}# Reproduce"
    yield fenced(about.command, "bash")
    if about.versions:
        yield text(", ".join(f"{name} {version}" for name, version in about.versions.items()), 2000)
    for name, value in study.parts:
        yield f"<details><summary>{text(name)}</summary>"
        yield fenced(as_yaml(value), "yaml")
        yield "</details>"


def picture(figure: ShownFigure, folder: str = FIGURES) -> str:
    """A figure of ``figure_files``, light or dark as the page that shows it."""
    # Raw HTML, in which Markdown is not interpreted.
    place, dark = f"{folder}/{figure.name}", DARK.suffix
    return "\n".join(
        (
            "<picture>",
            f'<source media="(prefers-color-scheme: dark)" srcset="{place}{dark}.svg">',
            f'<img src="{place}.svg" alt="{escape(visible(figure.figure.caption, _SENTENCES))}"></picture>',
        )
    )


def _rows(study: ShownStudy) -> Iterator[str]:
    columns, lines = study.columns, study.lines
    heads = [text(column.name) for column in columns]
    rows = markdown_table(heads, [[text(format_value(value)) for value in line] for line in lines[:_MOST]],
                   ["---:" if column.numeric else "---" for column in columns])  # fmt: skip
    if study.long:
        yield f"<details><summary>{len(lines):,} rows</summary>"
    yield rows
    if len(lines) > _MOST:
        yield f"The first {_MOST}; all {len(lines):,} are in {text(study.table, _SENTENCES)}."
    if study.long:
        yield "</details>"
    if len(lines) <= _MOST:
        yield f"All digits are in {text(study.table, _SENTENCES)}."
