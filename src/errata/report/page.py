"""A benchmark as one self-contained HTML page, which works offline and shows untrusted facts and names as text.

Three safeguards: Jinja escapes every value that is not markup; data for the script is JSON with <, > and & escaped, and
the script inserts it as text; a content security policy allows only this script to run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from errata.report.answers import Answers
from errata.report.bench_run import BenchRun, shown_name
from errata.report.comparison import BEST_NOTE, Comparison, comparisons
from errata.report.conclusions import conclusion, unable
from errata.report.curves import Chart, chart_svg, charts, swatch_svg
from errata.report.gap import Gap, gap_svg, gaps
from errata.report.overview import Overview, overview, overview_svg
from errata.report.studies import ShownStudy, format_value, verdicts

MOST_COLUMNS: Final = 8  # of one table; they fit next to the names of methods in a window of 1280 pixels
TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class PageSection:
    """The contents of the page for one model on one data set."""

    title: str
    overview: Overview | None
    conclusion: str
    unable: Mapping[str, str]
    signs: Mapping[str, str]
    tables: tuple[Comparison, ...]
    gaps: tuple[Gap, ...]
    charts: tuple[Chart, ...]


def report_page(
    run: BenchRun, answers: Answers, analysis: Sequence[ShownStudy] = (), left_out: Sequence[str] = ()
) -> str:
    """The whole page as HTML.

    Args:
        analysis: studies, shown after everything else.
        left_out: a message for each omitted study.
    """
    sections = [
        PageSection(
            section.title,
            overview(section.rows, run.methods, run.stopped(section)),
            conclusion(section.rows, run.stopped(section)),
            unable(section.rows),
            run.signs(section),
            tuple(comparisons(section.rows, run.stopped(section), most=MOST_COLUMNS)),
            tuple(gaps(section.rows, run.methods)),
            tuple(charts(section.rows, run.methods)),
        )
        for section in run.sections()
    ]
    script, script_hash = script_of("tables.js", "report.js")
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            about=run.about,
            sections=sections,
            absent=run.absent(),
            answers=answers,
            data=embedded_json(answers.payload),
            recipes=[(name, as_yaml(recipe)) for name, recipe in run.about.recipes.items()],
            grid=as_yaml(run.about.grid) if run.about.grid else "",
            best_note=BEST_NOTE,
            studies=analysis,
            left_out=left_out,
            style=style(),
            script=script,
            script_hash=script_hash,
        )
    )


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 05 s`` or ``7.2 s``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(value: str) -> str:
    """An ISO time to the minute; any other text unchanged."""
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return value
    zone = "" if when.utcoffset() is None else f" {when.tzname()}"
    return f"{when:%Y-%m-%d %H:%M}{zone}"


def as_yaml(value: object) -> str:
    """A recipe or a grid as YAML; the text of a recipe may be YAML already."""
    return value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def embedded_json(value: Mapping[str, Any]) -> Markup:
    """JSON that is safe inside ``<script>``: ASCII, without characters that could end it or start a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def breakable(name: str) -> Markup:
    """The name of a method, with line breaks allowed between its parts."""
    return Markup("<wbr>").join(re.split(r"(?<=[+,=/.])", name))


def script_of(*names: str) -> tuple[Markup, str]:
    """Script files as one script, and its hash for the content security policy."""
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)
    return Markup(script), "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def style() -> Markup:
    """The style sheet of all pages."""
    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))


def environment() -> Environment:
    """The environment of the pages' templates: values are escaped, and missing ones are errors."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "chart": chart_svg,
        "gap_chart": gap_svg,
        "overview_chart": overview_svg,
        "swatch": swatch_svg,
        "breakable": breakable,
        "shown_name": shown_name,
        "duration": duration,
        "moment": moment,
        "yaml": as_yaml,
        "value": format_value,
        "verdicts": verdicts,
        "drawing": Markup,  # of ``figures``, which escapes its texts
    }
    return made
