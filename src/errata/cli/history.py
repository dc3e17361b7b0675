"""``errata history``: all edits of a model, and whether it still recalls them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from errata.cli.model_options import DeviceOption, DtypeOption, TrustOption, note_unfinished, placement
from errata.cli.terminal import JsonOption, console, echo, progress, write_json
from errata.errors import InputError
from errata.patches.patch import Patch
from errata.patches.stack import has_stack
from errata.report.ledger import EditedFact, Recall, edited_facts, recalled
from errata.runs.loading import check_exists, load_model, patches_of
from errata.runs.run import is_run
from errata.utils.files import is_file
from errata.utils.text import counted, similar

EXAMPLE = 'Example: errata history stack --subject "Milan Lang"'


app = typer.Typer()


@app.command("history", epilog=EXAMPLE)
def history(
    model: Annotated[str, typer.Argument(help="A stack, an edited model or a run; with --no-ask also a patch.")],
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
    facts = _of_subject(edited_facts(patches.items()), model, subject)
    if ask and is_file(Path(model)):
        raise InputError(
            f"{model} is a patch, not a model",
            remedy="Add --no-ask, or apply it to its base model with `errata apply`",
            code="MODEL_IS_A_PATCH",
        )
    answers: list[Recall] | None = None
    if ask:
        with progress() as report:
            loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
            answers = recalled(loaded, [entry.fact for entry in facts], report=report)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = []
    for index, entry in enumerate(facts):
        now = "–" if answers is None else "as edited" if answers[index].correct else answers[index].answer
        replaced = f" (replaced by {entry.replaced_by})" if entry.replaced_by else ""
        patch = patches[entry.edit]
        row = (
            patch.created.removesuffix("+00:00").replace("T", " "),
            f"{entry.edit}, {patch.recipe.method}",
            entry.fact.id,
            entry.fact.text,
            f"{entry.fact.target}{replaced}",
            entry.fact.old or "–",
            now,
        )
        rows.append(row)
    heads = ("time (UTC)", "patch", "fact", "prompt", "new answer", "old answer", "current answer")
    columns = [(head, *cells) for head, *cells in zip(heads, *rows, strict=True)]
    for head, width in zip(heads, word_widths(columns, console().width - 3 * len(heads)), strict=True):
        table.add_column(head, overflow="fold", min_width=width)
    for row in rows:
        table.add_row(*(Text(text) for text in row))
    console().print(table)
    if answers is not None:
        current = [answer.correct for entry, answer in zip(facts, answers, strict=True) if not entry.replaced_by]
        echo(f"{sum(current)} of {counted(len(current), 'current fact')} still recalled.")
    record = [
        {
            "patch": entry.edit,
            "time": patches[entry.edit].created,
            "method": patches[entry.edit].recipe.method,
            "fact": entry.fact.to_record(),
            "replaced_by": entry.replaced_by or None,
            "said": None if answers is None else answers[index].answer,
            "still_said": None if answers is None else answers[index].correct,
        }
        for index, entry in enumerate(facts)
    ]
    write_json(json, {"model": model, "history": record})


def word_widths(columns: Sequence[Sequence[str]], total: int) -> list[int]:
    """The width of each column's longest word, so that lines break between words; limited to a sum of ``total``."""
    longest = [max(len(word) for text in column for word in text.split() or [""]) for column in columns]
    limit = max(longest)
    while limit > 1 and sum(min(width, limit) for width in longest) > total:
        limit -= 1
    return [min(width, limit) for width in longest]


def _patches(model: str) -> dict[str, Patch]:
    """Name -> patch of a model, oldest first; names are unique.

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
    return dict(patches_of(model))


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
