"""Trials of editors as one self-contained HTML page, with the same guards as ``page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from errata.analysis.findings import Figure
from errata.report.figures import DARK, LIGHT, draw, style_indices
from errata.report.page import environment, script_of, style
from errata.report.studies import ShownFigure


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table of texts: heads, then one row per editor.

    Attributes:
        explained: below the table.
        folded: whether it is closed at first.
    """

    title: str
    lines: Sequence[Sequence[str]]
    explained: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class PagePart:
    """A section of the page.

    Attributes:
        lead: sentences below the title.
        notes: warnings.
    """

    title: str
    lead: Sequence[str] = ()
    tables: Sequence[PageTable] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()


def trial_page(
    *,
    kicker: str,
    heading: str,
    lead: Sequence[str],
    parts: Sequence[PagePart],
    absent: Sequence[tuple[str, str]],
    notes: Sequence[str],
    command: str,
    versions: Mapping[str, str],
) -> str:
    """The whole page as HTML.

    Args:
        kicker: the command, above the heading.
        lead: the result in sentences.
        absent: names of what was not measured, with the reason.
        notes: remarks on the data.
        command: that makes the page again.

    Raises:
        MissingExtraError: if there are figures and matplotlib is not installed.
    """
    styles = style_indices([figure for part in parts for figure in part.figures])
    drawn = {
        figure.name: ShownFigure(
            figure.name, figure, *(draw(figure, scheme, name=figure.name, styles=styles) for scheme in (LIGHT, DARK))
        )
        for part in parts
        for figure in part.figures
    }
    script, script_hash = script_of("tables.js")
    return (
        environment()
        .get_template("trials.html.j2")
        .render(
            kicker=kicker,
            heading=heading,
            lead=lead,
            parts=parts,
            drawn=drawn,
            absent=absent,
            notes=notes,
            command=command,
            versions=versions,
            style=style(),
            script=script,
            script_hash=script_hash,
        )
    )
