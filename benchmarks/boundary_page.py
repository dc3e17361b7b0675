"""docs/boundary.md, "What boundary updates do, and why": every number of it, and every picture, by one command.

``python benchmarks/boundary_page.py`` makes all studies of `errata analyse` on the embedded model, each with its
defaults (what was done before is not done again), and fills the template beside this file with what they found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import jinja2

from errata.analysis.findings import Claim, Row, told
from errata.analysis.running import Result, read_result
from errata.analysis.studies import STUDIES
from errata.output import write_text
from errata.report.figures import draw_figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEMPLATE = Path(__file__).with_name("boundary_page.md.j2")


class Numbers:
    """What the template may ask for; whatever is not there once, and once only, is an error."""

    def __init__(self, results: dict[str, Result]) -> None:
        self.results = results

    def row(self, study: str, quantity: str, **where: str | float) -> Row:
        rows = self.results[study].findings.rows
        found = [row for row in rows if row.quantity == quantity and dict(row.where) == where]
        if len(found) != 1:
            near = [dict(row.where) for row in rows if row.quantity == quantity]
            raise KeyError(f"{study}: {len(found)} rows of {quantity!r} at {where}; there are {near}")
        return found[0]

    def value(self, study: str, quantity: str, digits: int = 3, percent: bool = False, **where: str | float) -> str:
        """The mean with its interval."""
        row = self.row(study, quantity, **where)
        if not percent:
            return told(row, digits)
        interval = "" if row.low is None or row.high is None else f" [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        return f"{100 * row.mean:.1f} %{interval}"

    def claims(self, study: str) -> list[Claim]:
        return list(self.results[study].findings.claims)

    def not_held(self) -> list[tuple[str, Claim]]:
        return [(study, claim) for study in self.results for claim in self.claims(study) if claim.verdict != "holds"]

    def minutes(self, study: str) -> str:
        return f"{self.results[study].about['seconds'] / 60:.1f}"

    def all_minutes(self) -> str:
        return f"{sum(result.about['seconds'] for result in self.results.values()) / 60:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/analysis"))
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "errata", "analyse", "all", "--model", "lab", "--out", str(arguments.runs)]
    subprocess.run(command, check=True)
    results = {name: read_result(arguments.runs / name) for name in STUDIES}
    for name, result in results.items():
        for figure in result.findings.figures:
            draw_figure(figure, DOCS / "boundary" / f"{name}-{figure.name}.svg")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    write_text(DOCS / "boundary.md", template.render(numbers=Numbers(results), studies=STUDIES, results=results) + "\n")


if __name__ == "__main__":
    main()
