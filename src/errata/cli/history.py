"""``errata history``: what a model was told of a subject, when, by which patch, and whether it still says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from errata.cli.model_options import DeviceOption, DtypeOption, TrustOption, note_unfinished, placement
from errata.cli.terminal import JsonOption, console, counted, progress, write_json
from errata.errors import InputError
from errata.facts.conflicts import statement
from errata.facts.fact import Fact
from errata.models.likelihood import TargetScore, score
from errata.patches.stack import has_stack
from errata.runs.loading import check_there, load_model, patches_of
from errata.runs.run import is_run
from errata.utils.files import is_file
from errata.utils.text import similar

EXAMPLE = 'Example: errata history stack --subject "Milan Lang"'


@dataclass(frozen=True, slots=True)
class Told:
    """One fact as it was written once.

    Attributes:
        replaced_by: the patch that wrote another target for the same words later.
    """

    patch: str
    time: str
    method: str
    fact: Fact
    replaced_by: str | None


app = typer.Typer()


@app.command("history", epilog=EXAMPLE)
def history(
    model: Annotated[str, typer.Argument(help="A stack, an edited model or a run; or a patch, with --no-ask.")],
    subject: Annotated[str | None, typer.Option(help="Of this subject only; part of its name will do.")] = None,
    ask: Annotated[bool, typer.Option("--ask/--no-ask", help="Load the model and ask it.")] = True,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """List the edits of a model: when, by which patch, and whether each is still recalled."""
    note_unfinished(model)
    where = placement(device, dtype)
    told = _chosen(_told(model), model, subject)
    if ask and is_file(Path(model)):
        raise InputError(
            f"{model} is a patch: there is no model to ask",
            remedy="Add --no-ask, or put it on its base with `errata apply`",
        )
    answers: list[TargetScore] | None = None
    if ask:
        with progress() as report:
            loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
            answers = score(loaded, [entry.fact.pair(entry.fact.target) for entry in told], report=report)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = []
    for index, entry in enumerate(told):
        now = "–" if answers is None else "the same" if answers[index].correct else answers[index].said
        replaced = f" (replaced by {entry.replaced_by})" if entry.replaced_by else ""
        row = (
            entry.time.removesuffix("+00:00").replace("T", " "),
            f"{entry.patch}, {entry.method}",
            entry.fact.id,
            entry.fact.text,
            f"{entry.fact.target}{replaced}",
            entry.fact.old or "–",
            now,
        )
        rows.append(row)
    heads = ("when (UTC)", "patch", "fact", "prompt", "was told", "instead of", "says now")
    columns = [(head, *cells) for head, *cells in zip(heads, *rows, strict=True)]
    for head, width in zip(heads, word_widths(columns, console().width - 3 * len(heads)), strict=True):
        table.add_column(head, overflow="fold", min_width=width)
    for row in rows:
        table.add_row(*(Text(text) for text in row))
    console().print(table)
    if answers is not None:
        current = [answer.correct for entry, answer in zip(told, answers, strict=True) if entry.replaced_by is None]
        console().print(
            f"{sum(current)} of {counted(len(current), 'fact')} that nothing replaced still said.", highlight=False
        )
    record = [
        {
            "patch": entry.patch,
            "time": entry.time,
            "method": entry.method,
            "fact": entry.fact.to_record(),
            "replaced_by": entry.replaced_by,
            "said": None if answers is None else answers[index].said,
            "still_said": None if answers is None else answers[index].correct,
        }
        for index, entry in enumerate(told)
    ]
    write_json(json, {"model": model, "history": record})


def word_widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Of each column the width of its longest word, so that lines break between words; less where there is no room."""
    longest = [max(len(word) for text in column for word in text.split() or [""]) for column in columns]
    limit = max(longest)
    while limit > 1 and sum(min(width, limit) for width in longest) > room:
        limit -= 1
    return [min(width, limit) for width in longest]


def _told(model: str) -> list[Told]:
    if not (is_file(Path(model)) or has_stack(model) or is_run(model)):
        check_there(model)
        raise InputError(
            f"nothing is recorded of edits to {model!r}",
            remedy="Give what `errata edit`, `apply` or `merge` wrote, or a run",
        )
    entries = [(name, patch, fact) for name, patch in patches_of(model) for fact in patch.facts]
    last = {statement(fact): (name, fact.target) for name, _, fact in entries}
    return [
        Told(
            name,
            patch.created,
            patch.recipe.method,
            fact,
            None if (name, fact.target) == last[statement(fact)] else last[statement(fact)][0],
        )
        for name, patch, fact in entries
    ]


def _chosen(told: Sequence[Told], model: str, subject: str | None) -> list[Told]:
    if subject is None:
        return list(told)
    chosen = [entry for entry in told if subject.casefold() in entry.fact.subject.casefold()]
    if not chosen:
        subjects = list(dict.fromkeys(entry.fact.subject for entry in told))
        near = similar(subject, subjects, most=3, cutoff=0.4)
        raise InputError(
            f"nothing of {subject!r} was edited into {model!r}",
            remedy=f"Did you mean {', '.join(map(repr, near))}?" if near else f"{len(subjects)} other subjects were",
        )
    return chosen
