"""``errata methods``: the table of editing methods, or one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from errata.cli.terminal import JsonOption, console, echo, plain_table, write_json
from errata.editing.methods import (
    BOUNDARY_PAPER,
    BOUNDARY_SUFFIX,
    BOUNDARY_TITLE,
    METHODS,
    Method,
    method_named,
    published_faults,
)
from errata.editors.table import EDITOR_NAMES, EDITOR_ROWS, TRAINER_NAMES, check_method, editor_row

EXAMPLE = """Example: errata methods grace

Example: errata methods --json methods.json"""
_CHANGES = {
    "weights": "weights",
    "hooks": "activations during a forward pass",
    "prompt": "the prompt",
    "answer": "the finished answer",
}
app = typer.Typer()


@app.command("methods", epilog=EXAMPLE)
def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show this method or editor; default: a table of all.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show all, with papers and differences from them.")] = False,
    json: JsonOption = None,
) -> None:
    """List the editing methods and editors, or show one.

    One is shown with its paper, what it changes, how it is undone, what it needs, and its differences from the paper.
    Every locate-then-edit method accepts the suffix +blue (boundary updates); the editors after them do not.
    """
    if name is not None:
        check_method(name)
        _show(name)
    elif every:
        _show_all()
    else:
        _list()
    rows = [row for method in METHODS for row in (method, method.with_blue())]
    entries = [{**asdict(row), "as_published": published_faults(row.choices())} for row in rows]
    editors = [asdict(editor) for editor in EDITOR_ROWS]
    write_json(json, {"methods": entries, "editors": editors, "suffixes": {"+blue": BOUNDARY_PAPER}})


def _list() -> None:
    table = plain_table("name", "what it does", fold=True)
    table.add_row("", "Locate-then-edit, change weights (with +blue: boundary layers only):")
    for row in METHODS:
        table.add_row(row.name, row.title)
    for changes, text in _CHANGES.items():
        table.add_section()
        table.add_row("", f"Other editors, change {text}:")
        for editor in EDITOR_ROWS:
            if editor.where == changes:
                table.add_row(editor.name, editor.title)
    console().print(table)
    echo("`errata methods NAME` shows one of them, `errata methods --all` all, with papers and differences from them.")


def _show(name: str) -> None:
    facts = {"changes": "weights", "undo": "any edit", "fact fields": "prompt, subject, target", "training": "none"}
    if name in EDITOR_NAMES:
        editor = editor_row(name)
        facts = {"use": editor.use} | facts
        facts["changes"] = _CHANGES[editor.where]
        if editor.undo == "last":
            facts["undo"] = "the last edit only"
        facts["fact fields"] = ", ".join(("prompt", "subject", "target", *editor.needs))
        if name in TRAINER_NAMES:
            facts["training"] = f"needed, by `errata train-editor {name}`"
        title, paper, deviations = editor.title, editor.paper, editor.deviations
    else:
        row = method_named(name)
        title, paper, deviations = row.title, row.paper, row.deviations
        if name.endswith(BOUNDARY_SUFFIX):
            facts["with +blue"] = BOUNDARY_PAPER
        facts["choices"] = _choices(row)
        facts["faster"] = "target: {mode: fast} in a recipe searches targets at less cost (docs/speed.md, Fast mode)"
    _print(name, title, paper, *(f"{what}: {value}" for what, value in facts.items()), *_differences(deviations))


def _differences(deviations: Iterable[str]) -> Iterator[str]:
    return (f"Difference: {deviation}" for deviation in deviations)


def _show_all() -> None:
    counts = Counter(deviation for row in METHODS for deviation in row.deviations)
    common = [deviation for deviation, count in counts.items() if count > len(METHODS) / 2]
    for row in METHODS:
        own = _differences(deviation for deviation in row.deviations if deviation not in common)
        _print(row.name, row.title, _choices(row), row.paper, *own)
    boundary = {deviation for row in METHODS for deviation in row.with_blue().deviations if deviation not in counts}
    _print("…+blue", f"any method with the schedule 'boundary': {BOUNDARY_TITLE}", BOUNDARY_PAPER, *sorted(boundary))
    for deviation in common:
        console().print(f"All methods: {deviation}", style="dim", highlight=False)
    for editor in EDITOR_ROWS:
        changes = f"changes {_CHANGES[editor.where]}"
        _print(editor.name, editor.title, changes, editor.paper, *_differences(editor.deviations))


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
