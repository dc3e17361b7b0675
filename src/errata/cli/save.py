"""``errata save``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.publication import CARD, FACTS, Publication, files_of, publication_of, size_text, write_publication
from errata.cli.terminal import JsonOption, counted, tell, warn, write_json
from errata.errors import InputError
from errata.utils.files import check_new, new_directory

EXAMPLE = "Example: errata save edited --out published"

ModelArgument = Annotated[
    str, typer.Argument(help="A patch (.safetensors), a stack, an edited model, or a run.", metavar="MODEL")
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(help="What `errata evaluate --json` or `errata edit --json` wrote; default: what lies beside MODEL."),
]
BaseOption = Annotated[
    str | None, typer.Option(help="The name on the hub of a base that was edited from a local directory.")
]
app = typer.Typer()


@app.command("save", epilog=EXAMPLE)
def save(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new directory.")],
    results: ResultsOption = None,
    base: BaseOption = None,
    card_only: Annotated[bool, typer.Option("--card-only", help=f"Write {CARD} and {FACTS} only.")] = False,
    json: JsonOption = None,
) -> None:
    """Write a folder ready to publish: the patches or the model, with a card of what was changed and what that did.

    Of an edited model it is a copy with the card; of all others the patches alone, which are small.
    """
    check_new(out)
    publication = publication_of(model, results, base)
    weights = publication.weights
    if weights is not None and out.absolute().resolve().is_relative_to(weights.resolve()):
        raise InputError(f"{out} lies in {model}, which is copied there", remedy="Give a directory elsewhere")
    with new_directory(out) as partial:
        write_publication(publication, partial, name=out.absolute().name, card_only=card_only)
    files = files_of(out)
    show_notes(publication, card_only=card_only)
    size = size_text(sum(count for _, count in files))
    facts = counted(len(publication.stack.facts), "fact")
    tell(f"Wrote {out}: {counted(len(files), 'file')}, {size}; {CARD} tells of {facts}.")
    write_json(json, record_of(publication, [name for name, _ in files]))


def show_notes(publication: Publication, *, card_only: bool = False) -> None:
    """What whoever publishes should know before."""
    if not publication.measured.rows:
        warn("note: nothing was measured, and the card says so; --results takes what `errata evaluate --json` wrote")
    if card_only:
        return
    if paths := publication.local_paths():
        warn(f"note: the files name what is on this machine alone: {', '.join(paths)}")
    if hidden := publication.left_out():
        warn(f"note: left out, for their names begin with a dot: {', '.join(hidden)}")


def record_of(publication: Publication, files: list[str]) -> dict[str, object]:
    """A publication for machines."""
    return {
        "base": publication.stack.base,
        "patches": [stacked.name for stacked in publication.stack.patches],
        "facts": len(publication.stack.facts),
        "measured": bool(publication.measured.rows),
        "files": files,
    }
