"""``errata push``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from errata.cli.publication import files_of, publication_of, size_text, write_publication
from errata.cli.save import BaseOption, ModelArgument, ResultsOption, record_of, show_notes
from errata.cli.terminal import JsonOption, counted, tell, warn, write_json
from errata.errors import ErrataError, InputError
from errata.models.hub import address, check_login, check_repository, upload

EXAMPLE = "Example: errata push edited --to OWNER/NAME"
app = typer.Typer()


@app.command("push", epilog=EXAMPLE)
def push(
    model: ModelArgument,
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="Where to; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    results: ResultsOption = None,
    base: BaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")] = False,
    json: JsonOption = None,
) -> None:
    """Upload what `errata save` writes to the Hugging Face hub, after showing what goes where.

    The token is that of `hf auth login` or of HF_TOKEN.
    """
    check_repository(to)
    if not yes and not sys.stdin.isatty():
        raise InputError(
            "nobody is there to say yes to it", remedy="Add --yes, or see with `errata save` what it would be"
        )
    publication = publication_of(model, results, base)
    with tempfile.TemporaryDirectory(prefix="errata-push-") as folder:
        directory = Path(folder)
        # Weights may be large: they are uploaded from where they are.
        write_publication(publication, directory, name=to.rpartition("/")[2], repository=to, copy=_link)
        files = files_of(directory)
        seen = "private: only you and those whom you let can see it" if private else "public: everybody can see it"
        tell(f"To {address(to)} ({seen}):")
        for name, count in files:
            tell(f"  {name}  {size_text(count)}")
        total = size_text(sum(count for _, count in files))
        tell(f"{counted(len(files), 'file')}, {total}; {counted(len(publication.stack.facts), 'fact')}.")
        show_notes(publication)
        check_login()
        if not yes and not typer.confirm("Upload?"):
            raise ErrataError("nothing was uploaded", remedy="You did not say yes")
        done = upload(directory, to, private=private, message=_message(len(publication.stack.facts)))
    if done.others:
        warn(f"note: what was there before and is none of these stays: {', '.join(done.others)}")
    tell(f"Uploaded to {done.url}")
    record = record_of(publication, [name for name, _ in files])
    write_json(json, {**record, "url": done.url, "private": private, "others": list(done.others)})


def _message(facts: int) -> str:
    return f"{counted(facts, 'fact')} edited by errata"


def _link(source: str, target: str) -> None:
    os.symlink(Path(source).resolve(), target)  # noqa: PTH211  (as copytree calls it)
