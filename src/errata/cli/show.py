"""``errata show``: the contents of a patch, a stack, an edited model or a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from errata.cli.terminal import JsonOption, console, echo, plain_table, write_json
from errata.editors.edit_file import StoredEdit
from errata.facts.fact import Fact
from errata.models.weights import LowRankTerm
from errata.patches.factors import norm, rank
from errata.patches.patch import Patch
from errata.patches.stack import has_stack, read_stack
from errata.runs.loading import edits_of
from errata.runs.run import is_run, open_run
from errata.utils.text import counted, readable

EXAMPLE = "Example: errata show edited.safetensors"
SHOWN = 20  # facts per patch without --all
_BAR = 32  # characters of the longest bar
app = typer.Typer()


@app.command("show", epilog=EXAMPLE)
def show(
    name: Annotated[
        str, typer.Argument(help="A patch or another edit (.safetensors), a stack, an edited model or a run.")
    ],
    every: Annotated[bool, typer.Option("--all", help="Show all facts instead of the first of each patch.")] = False,
    json: JsonOption = None,
) -> None:
    """Show the contents of an edit: its facts, and the size and rank of the change per layer.

    No model is loaded.
    """
    edits = edits_of(name)
    if is_run(name):
        run = open_run(Path(name))
        echo(
            f"run {name} on {run.manifest.model}: {run.batches_done} of {run.batches} batches, {run.facts_done} of "
            f"{counted(len(run.facts), 'fact')}"
        )
        if run.ledger.truncated:
            echo("the last line of the ledger is incomplete; `errata edit --resume` repeats its batch")
    elif has_stack(name):
        stack = read_stack(Path(name))
        echo(f"{counted(len(stack.patches), 'patch')} on {stack.base} in {stack.dtype} ({stack.fingerprint[:12]}…)")
        for stacked in stack.patches:
            if stacked.missing:
                echo(f"{stacked.name} was solved on top of {', '.join(stacked.missing)}, which was removed later")
            if stacked.forced:
                echo(f"{stacked.name} was made for different weights (applied with --force)")
    for title, edit in edits:
        if isinstance(edit, Patch):
            _show(title, edit)
        else:
            _show_stored(title, edit)
        console().print(facts_table(edit.facts, None if every else SHOWN))
        if not every and len(edit.facts) > SHOWN:
            echo(f"  … and {len(edit.facts) - SHOWN} more (--all)")
    patches = [patch_record(title, edit) for title, edit in edits if isinstance(edit, Patch)]
    stored = [stored_record(title, edit) for title, edit in edits if isinstance(edit, StoredEdit)]
    write_json(json, {"patches": patches, **({"edits": stored} if stored else {})})


def patch_record(title: str, patch: Patch) -> dict[str, Any]:
    """The JSON record of a patch, without factors."""
    return {
        "name": title,
        "base": patch.base,
        "fingerprint": patch.fingerprint,
        "dtype": patch.dtype,
        "created": patch.created,
        "seed": patch.seed,
        "versions": dict(patch.versions),
        "replaces_run": patch.replaces,
        "layers": [
            {**place._asdict(), "norm": norm(patch.of_place(place)), "rank": rank(patch.of_place(place))}
            for place in patch.places
        ],
        "recipe": patch.recipe.model_dump(mode="json"),
        "prefixes": list(patch.prefixes),
        "facts": [fact.to_record() for fact in patch.facts],
    }


def facts_table(facts: Sequence[Fact], most: int | None) -> Table:
    """A table of the first ``most`` facts."""
    table = plain_table("fact", "prompt", "target", "before", fold=True)
    for fact in facts[:most]:
        table.add_row(*(Text(text) for text in (fact.id, fact.text, fact.target, fact.old or "–")))
    return table


def stored_record(title: str, edit: StoredEdit) -> dict[str, Any]:
    """The JSON record of an edit that changes no weights, without tensors."""
    return {
        "name": title,
        "method": edit.method,
        "base": edit.base,
        "fingerprint": edit.fingerprint,
        "created": edit.created,
        "versions": dict(edit.versions),
        "settings": dict(edit.settings),
        "bytes": edit.stored_bytes,
        "facts": [fact.to_record() for fact in edit.facts],
    }


def _show_stored(title: str, edit: StoredEdit) -> None:
    head = f"  {edit.method}, {counted(len(edit.facts), 'fact')}, {edit.created}"
    console().print(Text.assemble((title, "bold"), head))
    echo(f"  made for {edit.base} ({edit.fingerprint[:12]}…); changes no weights, {edit.stored_bytes:,} bytes")
    echo(f"  with {', '.join(f'{name} {version}' for name, version in edit.versions.items())}")
    for name, value in edit.settings.items():
        if shown := readable(value):
            echo(f"  {name}: {shown}")


def _show(title: str, patch: Patch) -> None:
    recipe = patch.recipe
    console().print(
        Text.assemble((title, "bold"), f"  {recipe.method}, {counted(len(patch.facts), 'fact')}, {patch.created}")
    )
    echo(f"  made for {patch.base} in {patch.dtype} ({patch.fingerprint[:12]}…), seed {patch.seed}")
    versions = ", ".join(f"{name} {version}" for name, version in patch.versions.items())
    echo(f"  with {versions}")
    if patch.replaces:
        echo("  a pruned copy that replaces all changes of its run")
    if patch.places:
        console().print(norms_table(patch))


def norms_table(patch: Patch) -> Table:
    """The Frobenius norm of the change of each written matrix, as a number and as a bar, and its rank."""
    norms = {place: norm(patch.of_place(place)) for place in patch.places}
    table = plain_table("matrix", "‖ΔW‖", "rank", "", right=("‖ΔW‖", "rank"))
    for place, size in norms.items():
        terms = patch.of_place(place)
        kinds = sorted({term.kind for term in terms} - {LowRankTerm.kind})
        title = f"{place.title}{''.join(f', {kind}' for kind in kinds)}"
        bar = Bar(max(norms.values()) or 1.0, 0.0, size, width=_BAR)
        table.add_row(Text(title), f"{size:.4g}", str(rank(terms)), bar)
    return table
