"""One self-contained HTML page of a benchmark's run: it opens from disk, asks nothing of any network, and whatever
anybody's facts and names contain, it shows them as text.

Three guards: Jinja escapes every value that is not markup of ours; data for the script is JSON without any sign that
HTML knows, and the script puts texts into the page as texts; a content security policy lets only this one script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from errata.report.answers import Answers
from errata.report.bench_run import About, BenchRun, CellRecord, by_cause, shown_name
from errata.report.comparison import BEST_NOTE, Comparison, comparisons
from errata.report.conclusions import conclusion, unable
from errata.report.curves import Chart, chart_svg, charts, swatch_svg
from errata.report.gap import Gap, gap_svg, gaps
from errata.report.studies import ShownStudy, told_value, verdicts

_SECONDS: Final = "editing and asking of all runs, added up; loading, preparing and asking the unedited model left out"
# Of results that name one command only: neither an earlier sitting of a cell that was stopped, nor a later one that
# only measured more, is in their seconds.
_OLDER_SECONDS: Final = "wall time of each run's last sitting of editing, added up"
MOST_COLUMNS: Final = 8  # of one table; they fit beside the names of methods in a window of 1280 pixels
TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class PageSection:
    """What the page shows of one model on one data set."""

    title: str
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
        left_out: what to say of each study that is not finished.
    """
    sections = [
        PageSection(
            section.title,
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
            headline=headline(run),
            duration=duration(total_seconds(run.about.cells)),
            failed=failed(run.about.cells),
            causes=by_cause((cell.id, cell.failure or "no reason given") for cell in failed(run.about.cells)),
            collapsed=collapsed(run.about.cells),
            unfinished=unfinished(run.about.cells),
            sections=sections,
            absent=run.absent(),
            answers=answers,
            data=embedded_json(answers.payload),
            recipes=[(name, as_yaml(recipe)) for name, recipe in run.about.recipes.items()],
            grid=as_yaml(run.about.grid) if run.about.grid else "",
            best_note=BEST_NOTE,
            seconds_note=seconds_note(run.about),
            studies=analysis,
            left_out=left_out,
            style=style(),
            script=script,
            script_hash=script_hash,
        )
    )


def headline(run: BenchRun) -> str:
    """What was run, in one line: ``4 methods on lab, counterfact; 3 seeds, 1,000 edits``."""
    cells = run.about.cells
    seeds = len({cell.seed for cell in cells})
    models = ", ".join(dict.fromkeys(shown_name(cell.model) for cell in cells if cell.model))
    data = ", ".join(dict.fromkeys(shown_name(cell.data) for cell in cells))
    edits = sorted({row["edits"] for row in run.rows if row["when"] == "after" and "edits" in row})
    what = _counted(len(run.methods), "method")
    parts = [f"{what} on {models} with {data}", _counted(seeds, "seed")] if cells else [what]
    if edits:
        parts.append(f"{edits[0]:,} edits" if len(edits) == 1 else f"{edits[0]:,}–{edits[-1]:,} edits")
    return "; ".join(parts)


def failed(cells: Iterable[CellRecord]) -> list[CellRecord]:
    """Cells that have no results."""
    return [cell for cell in cells if cell.status == "failed"]


def collapsed(cells: Iterable[CellRecord]) -> list[CellRecord]:
    """Cells in which the collapse alarm went off."""
    return [cell for cell in cells if cell.collapsed_at is not None]


def stopping(cell: CellRecord) -> str:
    """Where a cell in which the alarm went off was stopped, and what is in its model."""
    edited = "" if cell.edits is None else f", with {_counted(cell.edits, 'fact')} edited"
    return f"stopped before batch {cell.collapsed_at}{edited}"


def unfinished(cells: Iterable[CellRecord]) -> list[CellRecord]:
    """Cells that were not done when the results were written."""
    return [cell for cell in cells if cell.status == "not done"]


def total_seconds(cells: Iterable[CellRecord]) -> float:
    """The sum of the cells' wall times; see ``seconds_note``."""
    return sum((cell.seconds or 0.0 for cell in cells), 0.0)


def seconds_note(about: About) -> str:
    """What the cells' seconds are of."""
    return _SECONDS if about.commands else _OLDER_SECONDS


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 05 s`` or ``7.2 s``."""
    if seconds < 60:
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
    """A recipe or a grid for reading; a recipe's text may be YAML already."""
    return value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def embedded_json(value: Mapping[str, Any]) -> Markup:
    """JSON that is safe inside a ``<script>``: ASCII, without any sign that could end it or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def breakable(name: str) -> Markup:
    """A method's name that a narrow column breaks between its parts, and not inside a word."""
    return Markup("<wbr>").join(re.split(r"(?<=[+,=/.])", name))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def script_of(*names: str) -> tuple[Markup, str]:
    """Files of script as one, and what a content security policy lets it run by."""
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)
    return Markup(script), "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def style() -> Markup:
    """The style sheet of all pages."""
    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))


def environment() -> Environment:
    """Of the pages' templates: every value is escaped, and one that is not there is an error."""
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
        "swatch": swatch_svg,
        "breakable": breakable,
        "shown_name": shown_name,
        "duration": duration,
        "stopping": stopping,
        "moment": moment,
        "yaml": as_yaml,
        "value": told_value,
        "verdicts": verdicts,
        "drawing": Markup,  # of ``figures``, which has escaped what it draws
    }
    return made
