"""``errata diff``: compare two edits or two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.text import Text

from errata.cli.model_options import TrustOption, note_unfinished
from errata.cli.terminal import JsonOption, console, echo, plain_table, write_json
from errata.errors import InputError
from errata.facts.conflicts import statement
from errata.facts.fact import Fact
from errata.facts.joining import joined
from errata.models.weights import Place, Term
from errata.patches.factors import inner, norm
from errata.patches.stack import has_stack
from errata.runs.loading import check_changes_weights, check_exists, load_model, patches_of
from errata.runs.run import is_run
from errata.utils.files import is_file
from errata.utils.text import counted

EXAMPLE = "Example: errata diff first.safetensors second.safetensors"
app = typer.Typer()


@app.command("diff", epilog=EXAMPLE)
def diff(
    first: Annotated[str, typer.Argument(help="A patch, a stack, an edited model, a run, or any model.")],
    second: Annotated[str, typer.Argument(help="The patch, stack, model or run to compare FIRST with.")],
    trust_remote_code: TrustOption = False,
    json: JsonOption = None,
) -> None:
    """Compare two edits: their facts and targets, and their weight changes layer by layer.

    If one of the two is a plain model without patches, all weights of both models are compared instead.
    """
    note_unfinished(first)
    note_unfinished(second)
    for name in (first, second):
        check_changes_weights(name)
    if _has_patches(first) and _has_patches(second):
        found = _edits(first, second)
    else:
        if is_file(Path(first)) or is_file(Path(second)):  # a patch has no weights to compare
            for name in (first, second):
                check_exists(name)
        found = _weights(first, second, trust_remote_code=trust_remote_code)
    write_json(json, found)


def _has_patches(name: str) -> bool:
    return is_file(Path(name)) or has_stack(name) or is_run(name)


def _edits(first: str, second: str) -> dict[str, Any]:
    changes = []
    facts: list[dict[str, Fact]] = []
    for name in (first, second):
        patches = [patch for _, patch in patches_of(name)]
        by_place: dict[Place, list[Term]] = {}
        for term in (term for patch in patches for term in patch.terms):
            by_place.setdefault(term.place, []).append(term)
        changes.append(by_place)
        facts.append({statement(fact): fact for patch in patches for fact in patch.facts})
    differing = [key for key in facts[0] if key in facts[1] and facts[0][key].target != facts[1][key].target]
    only = [[fact for key, fact in ours.items() if key not in theirs] for ours, theirs in (facts, reversed(facts))]
    both = sum(key in facts[1] for key in facts[0]) - len(differing)
    echo(f"{counted(both, 'fact')} in both with the same target")
    if differing:
        echo(f"{counted(len(differing), 'fact')} in both with different targets, in {first} and in {second}:")
    for key in differing:
        echo(f"  {facts[0][key].text}: {facts[0][key].target!r} and {facts[1][key].target!r}")
    for name, entries in zip((first, second), only, strict=True):
        echo(f"{counted(len(entries), 'fact')} only in {name}")
        for fact in entries[:10]:
            echo(f"  {fact.id}: {joined(*fact.pair(fact.target))}")
        if len(entries) > 10:
            echo(f"  … and {len(entries) - 10} more")
    edited = sorted({place for change in changes for place in change})
    layers = [_matrix(place, *(change.get(place, []) for change in changes)) for place in edited]
    heads = ("layer", "norm of first", "norm of second", "norm of difference", "cosine")
    table = plain_table(*heads, right=heads)
    for place, entry in zip(edited, layers, strict=True):
        table.add_row(
            place.title.removeprefix("layer "),
            *(_number(entry[key]) for key in ("first", "second", "difference", "cosine")),
        )
    console().print(table)
    return {
        "facts": {
            "in_both": both,
            "apart": [[facts[0][key].to_record(), facts[1][key].to_record()] for key in differing],
            "only_in_first": [fact.to_record() for fact in only[0]],
            "only_in_second": [fact.to_record() for fact in only[1]],
        },
        "layers": layers,
    }


def _matrix(place: Place, first: Sequence[Term], second: Sequence[Term]) -> dict[str, Any]:
    """Norms of both changes and their difference, and their cosine; None if one of them is zero or absent."""
    one, other = norm(first) if first else 0.0, norm(second) if second else 0.0
    together = inner(first, second) if first and second else 0.0
    cosine = together / (one * other) if one and other else None
    # ‖A − B‖² suffers from cancellation if A ≈ B; values below the rounding error count as zero.
    difference = math.sqrt(max(0.0, one**2 + other**2 - 2 * together))
    if difference < 1e-7 * max(one, other):
        difference = 0.0
    return {**place._asdict(), "first": one, "second": other, "difference": difference, "cosine": cosine}


def _weights(first: str, second: str, *, trust_remote_code: bool) -> dict[str, Any]:
    """Print and return every parameter that differs between two models, with the size of the difference."""
    states: list[Mapping[str, torch.Tensor]] = []
    for name in (first, second):
        if is_file(Path(name)):
            raise InputError(
                f"{name} is a patch and cannot be compared with a plain model",
                remedy="Give two edits or two models",
                code="NOT_COMPARABLE",
            )
        states.append(load_model(name, device="cpu", trust_remote_code=trust_remote_code).model.state_dict())
    one, other = states
    if one.keys() != other.keys() or any(one[key].shape != other[key].shape for key in one):
        raise InputError(
            f"{first} and {second} have different parameters",
            remedy="Give two models of the same architecture and size",
            code="NOT_COMPARABLE",
        )
    rows = []
    for key in one:
        change = other[key].double() - one[key].double()
        if one[key].dtype != other[key].dtype or bool(change.any()):
            size, moved = float(one[key].double().norm()), float(change.norm())
            rows.append({"parameter": key, "change": moved, "relative": moved / size if size else None})
    numbers = ("norm of the change", "relative")
    table = plain_table("parameter", *numbers, right=numbers, fold=True)
    for row in rows:
        table.add_row(Text(str(row["parameter"])), _number(row["change"]), _number(row["relative"]))
    echo(f"{len(rows)} of {len(one)} parameters differ")
    if rows:
        console().print(table)
    return {"parameters": rows, "of": len(one)}


def _number(value: Any) -> str:
    return "–" if value is None else f"{float(value):.4g}"
