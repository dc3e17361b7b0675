"""``errata methods``: the table of editing methods."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import typer
from rich.padding import Padding
from rich.text import Text

from errata.cli.terminal import JsonOption, console, write_json
from errata.editing.methods import BOUNDARY_PAPER, BOUNDARY_TITLE, METHODS, Method, published_faults
from errata.editors.table import EDITOR_ROWS

EXAMPLE = "Example: errata methods --json methods.json"
_CHANGES = {
    "weights": "weights",
    "hooks": "activations during a forward pass",
    "prompt": "the prompt",
    "answer": "the finished answer",
}
app = typer.Typer()


@app.command("methods", epilog=EXAMPLE)
def methods(json: JsonOption = None) -> None:
    """List the editing methods, their papers, and any differences from them.

    Every locate-then-edit method accepts the suffix +blue (boundary updates); the editors after them do not.
    """
    counts = Counter(deviation for row in METHODS for deviation in row.deviations)
    common = [deviation for deviation, count in counts.items() if count > len(METHODS) / 2]
    for row in METHODS:
        _print(
            row.name,
            row.title,
            _choices(row),
            row.paper,
            *(f"Difference: {d}" for d in row.deviations if d not in common),
        )
    boundary = {deviation for row in METHODS for deviation in row.with_blue().deviations if deviation not in counts}
    _print("…+blue", f"any method with the schedule 'boundary': {BOUNDARY_TITLE}", BOUNDARY_PAPER, *sorted(boundary))
    for deviation in common:
        console().print(f"All methods: {deviation}", style="dim", highlight=False)
    for editor in EDITOR_ROWS:
        deviations = (f"Difference: {deviation}" for deviation in editor.deviations)
        _print(editor.name, editor.title, f"changes {_CHANGES[editor.where]}", editor.paper, *deviations)
    rows = [row for method in METHODS for row in (method, method.with_blue())]
    entries = [{**asdict(row), "as_published": published_faults(row.choices())} for row in rows]
    editors = [asdict(editor) for editor in EDITOR_ROWS]
    write_json(json, {"methods": entries, "editors": editors, "suffixes": {"+blue": BOUNDARY_PAPER}})


def _choices(row: Method) -> str:
    history = ", history" if row.solver.get("history") else ""
    shaping = "".join(f", shaping {entry['kind']}" for entry in row.shaping)
    rounds = f", {row.rounds['count']} rounds" if row.rounds else ""
    return (
        f"target {row.target['kind']} at the {'MLP' if row.site == 'mlp' else row.site}'s output, schedule "
        f"{row.schedule}, solver {row.solver['kind']}{history}{shaping}{rounds}"
    )


def _print(name: str, title: str, *lines: str) -> None:
    console().print(Text.assemble((name, "bold"), f"  {title}"), highlight=False)
    for line in lines:
        console().print(Padding(Text(line, style="dim"), (0, 0, 0, 4)), highlight=False)
