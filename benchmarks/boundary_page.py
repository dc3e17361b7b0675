"""Every number and picture of docs/boundary.md, "What boundary updates do, and why", by one command.

``python benchmarks/boundary_page.py`` runs all studies of `errata analyse` on the embedded model, each with its
defaults, and ``weight-shift`` once more with history (finished studies are not repeated), and fills the template beside
this file with the findings.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from errata.analysis.findings import Claim, Finding, Label, with_interval
from errata.analysis.studies import STUDIES, StudyResult, read_result
from errata.report.analysis import FIGURES, figure_files, picture
from errata.report.studies import ShownStudy, shown, verdicts
from errata.utils.files import write_bytes, write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEMPLATE = Path(__file__).with_name("boundary_page.md.j2")
FOLDER = "boundary"


class PageValues:
    """Values for the template; one that does not exist exactly once is an error."""

    def __init__(self, results: Mapping[str, StudyResult], studies: Sequence[ShownStudy]) -> None:
        self.results = results
        self._figures = {figure.name: figure for study in studies for figure in study.figures}
        self.drawn: set[str] = set()

    def row(self, study: str, quantity: str, where: Mapping[str, Label]) -> Finding:
        """The row with exactly these labels."""
        rows = [row for row in self.results[study].findings.rows if row.quantity == quantity]
        found = [row for row in rows if dict(row.where) == dict(where)]
        if len(found) != 1:
            raise KeyError(
                f"{study}: {len(found)} rows of {quantity!r} at {where}; there are {[r.where for r in rows]}"
            )
        return found[0]

    def value(self, study: str, quantity: str, digits: int = 3, **where: Label) -> str:
        """The mean with its interval."""
        return with_interval(self.row(study, quantity, where), digits)

    def mean(self, study: str, quantity: str, digits: int = 3, **where: Label) -> str:
        """The mean alone."""
        return f"{self.row(study, quantity, where).mean:.{digits}g}"

    def percent(self, study: str, quantity: str, **where: Label) -> str:
        """A share in %, with its interval."""
        return self._hundredths(self.row(study, quantity, where), "%")

    def points(self, study: str, quantity: str, **where: Label) -> str:
        """A difference of shares in points (hundredths), with its interval."""
        return self._hundredths(self.row(study, quantity, where), "points")

    @staticmethod
    def _hundredths(row: Finding, unit: str) -> str:
        interval = "" if row.low is None or row.high is None else f" [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        return f"{100 * row.mean:.1f} {unit}{interval}"

    def figure(self, name: str) -> str:
        """A picture, light or dark as the reader's page, with its caption."""
        figure = self._figures[name]
        self.drawn.add(name)
        return f"{picture(figure, f'{FOLDER}/{FIGURES}')}\n\n*{figure.figure.caption}*"

    def claims(self, study: str) -> str:
        """All claims of a study as a table."""
        # Unescaped, so that the page's source is readable too: the studies wrote these texts, about the lab's names.
        lines = [f"| {one.text} | **{one.verdict}** | {one.evidence} |" for one in self._claims(study)]
        return "\n".join(["| claim | verdict | measured |", "| --- | --- | --- |", *lines])

    def verdicts(self) -> str:
        """How many claims of all studies have each verdict."""
        return verdicts([claim for study in self.results for claim in self._claims(study)])

    def minutes(self, study: str | None = None) -> str:
        """Duration of a study, or of all of them."""
        chosen = list(STUDIES) if study is None else [study]
        return f"{sum(self.results[name].about['seconds'] for name in chosen) / 60:.0f}"

    def _claims(self, study: str) -> Sequence[Claim]:
        return self.results[study].findings.claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    folder, with_history = arguments.runs / "analysis", arguments.runs / "analysis-memit_seq"
    for what, out in ((["all"], folder), (["weight-shift", "--method", "memit_seq"], with_history)):
        subprocess.run(
            [sys.executable, "-m", "errata", "analyse", *what, "--model", "lab", "--out", str(out)], check=True
        )
    results = {name: read_result(folder / name) for name in STUDIES}
    studies = shown(results.values())
    results["weight-shift, memit_seq"] = read_result(with_history / "weight-shift")
    values = PageValues(results, studies)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(found=values)
    for name, data in figure_files(studies).items():
        if name.endswith(".svg") and Path(name).stem.removesuffix("-dark") in values.drawn:
            write_bytes(DOCS / FOLDER / name, data)
    write_text(DOCS / f"{FOLDER}.md", page.rstrip() + "\n")


if __name__ == "__main__":
    main()
