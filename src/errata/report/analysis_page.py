"""Studies as one self-contained HTML page, with the guards of ``page``: it opens from disk and asks nothing of any
network, and whatever labels, claims and captions contain, it shows them as text.
"""

from __future__ import annotations

from collections.abc import Sequence

from errata.report.analysis_results import ShownStudy, verdicts
from errata.report.page import environment, script_of, style


def analysis_page(studies: Sequence[ShownStudy], unfinished: Sequence[str] = ()) -> str:
    """The whole page as HTML; the studies in their order.

    Args:
        unfinished: what to say of each study that is left out.
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
    """The one study's title, or what several are of."""
    if len(studies) == 1:
        return studies[0].about.title
    models = ", ".join(dict.fromkeys(study.about.model for study in studies if study.about.model))
    return f"{len(studies)} studies" + (f" of {models}" if models else "")


def lead(studies: Sequence[ShownStudy]) -> str:
    """What became of all claims."""
    return verdicts(claim for study in studies for claim in study.findings.claims)
