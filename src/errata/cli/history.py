"""``errata history``: all edits of a model, and whether it still recalls them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from errata.cli.model_options import DeviceOption, DtypeOption, TrustOption, note_unfinished, placement
from errata.cli.terminal import JsonOption, console, echo, progress, write_json
from errata.editors.edit_file import StoredEdit
from errata.errors import InputError
from errata.patches.patch import Patch
from errata.patches.stack import has_stack
from errata.report.ledger import EditedFact, Recall, edited_facts, recalled
from errata.runs.loading import check_exists, edits_of, is_edit, load_answerer
from errata.runs.run import is_run
from errata.utils.files import is_file
from errata.utils.text import counted, similar

EXAMPLE = 'Example: errata history stack --subject "Milan Lang"'

_GAP = 2  # spaces between columns
app = typer.Typer()


@app.command("history", epilog=EXAMPLE)
def history(
    model: Annotated[
        str, typer.Argument(help="A stack, an edited model, a run or an edit; with --no-ask also a patch.")
    ],
    subject: Annotated[str | None, typer.Option(help="Show only facts whose subject contains this text.")] = None,
    ask: Annotated[bool, typer.Option("--ask/--no-ask", help="Load the model and check its answers.")] = True,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """List the edits of a model: when, by which patch, and whether each is still recalled."""
    note_unfinished(model)
    where = placement(device, dtype)
    patches = _patches(model)
    if not patches and subject is None:
        echo(f"{model} has no edits.")
        write_json(json, {"model": model, "history": []})
        return
    facts = _of_subject(edited_facts(patches.items()), model, subject)
    if ask and is_file(Path(model)) and not is_edit(model):
        raise InputError(
            f"{model} is a patch, not a model",
            remedy=f"Add --no-ask, or apply it to its base first: errata apply {model} --out STACK, then errata "
            "history STACK",
            code="MODEL_IS_A_PATCH",
        )
    answers: list[Recall] | None = None
    if ask:
        with progress() as report:
            loaded, _ = load_answerer(model, **where, trust_remote_code=trust_remote_code)
            answers = recalled(loaded, [entry.fact for entry in facts], report=report)
    numbers = {name: number for number, name in enumerate(patches, start=1)}
    shown = {name: patches[name] for name in dict.fromkeys(entry.edit for entry in facts)}
    out = console()
    out.print(_edits_table(shown, numbers, Counter(entry.edit for entry in facts)))
    out.print()
    columns = _columns(facts, answers, numbers, out.width)
    out.print(_facts_table(columns, out.width))
    if "old answer" not in columns and any(entry.fact.old for entry in facts):
        echo("(Old answers are shown in a wider terminal, and in --json.)")
    if answers is not None:
        current = [answer.correct for entry, answer in zip(facts, answers, strict=True) if not entry.replaced_by]
        echo(f"{sum(current)} of {counted(len(current), 'current fact')} still recalled.")
    record = [
        {
            "patch": entry.edit,
            "time": patches[entry.edit].created,
            "method": patches[entry.edit].method,
            "fact": entry.fact.to_record(),
            "replaced_by": entry.replaced_by or None,
            "said": None if answers is None else answers[index].answer,
            "still_said": None if answers is None else answers[index].correct,
        }
        for index, entry in enumerate(facts)
    ]
    write_json(json, {"model": model, "history": record})


def _edits_table(
    patches: Mapping[str, Patch | StoredEdit], numbers: Mapping[str, int], counts: Mapping[str, int]
) -> Table:
    """The edits, each with its number, by which the table of facts refers to it."""
    table = _table()
    for head in ("edit", "patch", "method", "time (UTC)", "facts"):
        table.add_column(head, overflow="fold", justify="right" if head == "facts" else "left")
    for name, patch in patches.items():
        time = patch.created.removesuffix("+00:00").replace("T", " ")
        cells = (str(numbers[name]), name, patch.method, time, f"{counts[name]:,}")
        table.add_row(*map(Text, cells))
    return table


def _columns(
    facts: Sequence[EditedFact], answers: Sequence[Recall] | None, numbers: Mapping[str, int], width: int
) -> dict[str, list[str]]:
    """The columns of the table of facts: head -> cells. Old answers are omitted if they do not fit.

    Args:
        width: of the console in characters.
    """
    columns = {
        "edit": [str(numbers[entry.edit]) for entry in facts],
        "fact": [entry.fact.id for entry in facts],
        "prompt": [entry.fact.text for entry in facts],
        "new answer": [
            entry.fact.target + (f" (replaced by edit {numbers[entry.replaced_by]})" if entry.replaced_by else "")
            for entry in facts
        ],
        "old answer": [entry.fact.old or "–" for entry in facts],
    }
    if len(numbers) == 1:
        del columns["edit"]
    if answers is not None:
        columns["answer now"] = ["as edited" if answer.correct else answer.answer for answer in answers]
    whole_cells = sum(max(map(cell_len, (head, *cells))) for head, cells in columns.items())
    if set(columns["old answer"]) == {"–"} or whole_cells + _GAP * (len(columns) - 1) > width:
        del columns["old answer"]
    return columns


def _facts_table(columns: Mapping[str, Sequence[str]], width: int) -> Table:
    """Cells that do not fit are broken between words, if possible."""
    table = _table()
    with_heads = [(head, *cells) for head, cells in columns.items()]
    for head, least in zip(columns, word_widths(with_heads, width - _GAP * (len(columns) - 1)), strict=True):
        table.add_column(head, overflow="fold", min_width=least)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    return table


def _table() -> Table:
    """A table with ``_GAP`` spaces between columns."""
    return Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=(0, _GAP - 1, 0, 0)
    )


def word_widths(columns: Sequence[Sequence[str]], total: int) -> list[int]:
    """The width of each column's longest word, so that lines break between words; limited to a sum of ``total``."""
    longest = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in columns]
    limit = max(longest)
    while limit > 1 and sum(min(width, limit) for width in longest) > total:
        limit -= 1
    return [min(width, limit) for width in longest]


def _patches(model: str) -> dict[str, Patch | StoredEdit]:
    """Name -> edit of a model, oldest first; names are unique.

    Raises:
        InputError: if it has no record of edits.
    """
    if not (is_file(Path(model)) or has_stack(model) or is_run(model)):
        check_exists(model)
        raise InputError(
            f"{model!r} has no record of edits",
            remedy="Give the output of `errata edit`, `apply` or `merge`, or a run",
            code="NO_PATCHES",
        )
    return dict(edits_of(model))


def _of_subject(facts: Sequence[EditedFact], model: str, subject: str | None) -> list[EditedFact]:
    if subject is None:
        return list(facts)
    chosen = [entry for entry in facts if subject.casefold() in entry.fact.subject.casefold()]
    if not chosen:
        subjects = list(dict.fromkeys(entry.fact.subject for entry in facts))
        near = similar(subject, subjects, most=3, cutoff=0.4)
        raise InputError(
            f"no edit of {model!r} has the subject {subject!r}",
            remedy=f"Did you mean {', '.join(map(repr, near))}?"
            if near
            else f"It has edits of {counted(len(subjects), 'other subject')}",
            code="SUBJECT_UNKNOWN",
        )
    return chosen
