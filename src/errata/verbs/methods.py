"""``errata methods``."""

from __future__ import annotations

from dataclasses import asdict

from errata.methods import BOUNDARY_PAPER, BOUNDARY_TITLE, METHODS
from errata.verbs.console import JsonOption, console, write_json

EXAMPLE = "Example: errata methods --json methods.json"


def methods(json: JsonOption = None) -> None:
    """List the editing methods with their papers; any of them takes +blue."""
    out = console()
    for row in METHODS:
        shaping = "".join(f", shaping {entry['kind']}" for entry in row.shaping)
        history = ", history" if row.solver.get("history") else ""
        out.print(f"[bold]{row.name}[/]  {row.title}", highlight=False)
        out.print(
            f"    target {row.target['kind']} at the {row.site}'s output, schedule {row.schedule}, "
            f"solver {row.solver['kind']}{history}{shaping}\n"
            f"    {row.paper}",
            style="dim",
            highlight=False,
        )
        for deviation in row.deviations:
            out.print(f"    Here: {deviation}", style="dim", highlight=False)
    out.print(f"[bold]…+blue[/]  any row with the schedule boundary: {BOUNDARY_TITLE}", highlight=False)
    out.print(f"    {BOUNDARY_PAPER}", style="dim", highlight=False)
    write_json(json, {"methods": [asdict(row) for row in METHODS], "suffixes": {"+blue": BOUNDARY_PAPER}})
