"""``errata show``: what is in a patch, a stack, an edited model or a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from errata.cli.terminal import JsonOption, console, counted, tell, write_json
from errata.facts.fact import Fact
from errata.models.weights import LowRankTerm
from errata.patches.patch import Patch
from errata.patches.stack import has_stack, read_stack
from errata.runs.loading import patches_of
from errata.runs.run import is_run, open_run

EXAMPLE = "Example: errata show edited.safetensors"
SHOWN = 20  # facts, where not all are asked for
app = typer.Typer()


@app.command("show", epilog=EXAMPLE)
def show(
    name: Annotated[str, typer.Argument(help="A patch (.safetensors), a stack, an edited model or a run.")],
    every: Annotated[bool, typer.Option("--all", help="All facts, and not only the first of each patch.")] = False,
    json: JsonOption = None,
) -> None:
    """Show the contents of an edit: its facts, and the size and rank of the change per layer.

    No model is loaded.
    """
    patches = patches_of(name)
    if is_run(name):
        run = open_run(Path(name))
        tell(
            f"run {name}: {run.batches_done} of {run.batches} batches, {run.facts_done} of {len(run.facts)} facts, "
            f"on {run.manifest.model}"
        )
        if run.ledger.torn:
            tell("the ledger's last line was cut off; `errata edit --resume` does that batch again")
    elif has_stack(name):
        stack = read_stack(Path(name))
        tell(f"{counted(len(stack.patches), 'patch')} on {stack.base} in {stack.dtype} ({stack.fingerprint[:12]}…)")
        for stacked in stack.patches:
            if stacked.missing:
                tell(f"{stacked.name} was solved on top of {', '.join(stacked.missing)}, since taken out")
            if stacked.forced:
                tell(f"{stacked.name} was made for other weights than it stands on")
    for title, patch in patches:
        _show(title, patch, None if every else SHOWN)
    write_json(json, {"patches": [patch_record(title, patch) for title, patch in patches]})


def patch_record(title: str, patch: Patch) -> dict[str, Any]:
    """A patch for machines, without its factors."""
    norms, ranks = patch.norms(), patch.ranks()
    return {
        "name": title,
        "base": patch.base,
        "fingerprint": patch.fingerprint,
        "dtype": patch.dtype,
        "created": patch.created,
        "seed": patch.seed,
        "versions": dict(patch.versions),
        "replaces_run": patch.replaces,
        "layers": [{"layer": layer, "norm": norms[layer], "rank": ranks[layer]} for layer in patch.layers],
        "recipe": patch.recipe.model_dump(mode="json"),
        "prefixes": list(patch.prefixes),
        "facts": [fact.to_record() for fact in patch.facts],
    }


def facts_table(facts: Sequence[Fact], most: int | None) -> Table:
    """Facts in a table, cut behind ``most`` of them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("fact", "prompt", "target", "before"):
        table.add_column(head, overflow="fold")
    for fact in facts[:most]:
        table.add_row(*(Text(text) for text in (fact.id, fact.text, fact.target, fact.old or "–")))
    return table


def _show(title: str, patch: Patch, most: int | None) -> None:
    recipe = patch.recipe
    console().print(
        Text.assemble((title, "bold"), f"  {recipe.method}, {counted(len(patch.facts), 'fact')}, {patch.created}")
    )
    tell(f"  made for {patch.base} in {patch.dtype} ({patch.fingerprint[:12]}…), seed {patch.seed}")
    versions = ", ".join(f"{name} {version}" for name, version in patch.versions.items())
    tell(f"  with {versions}")
    if patch.replaces:
        tell("  a pruned copy: it stands for everything that its run changed")
    norms, ranks = patch.norms(), patch.ranks()
    for layer in patch.layers:
        terms = patch.of_layer(layer)
        sparse = "" if all(isinstance(term, LowRankTerm) for term in terms) else ", sparse"
        tell(f"  layer {layer}: norm {norms[layer]:.4g}, rank {ranks[layer]}{sparse}")
    console().print(facts_table(patch.facts, most))
    if most is not None and len(patch.facts) > most:
        tell(f"  … and {len(patch.facts) - most} more (--all)")
