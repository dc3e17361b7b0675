"""``errata statistics``: key statistics in files, to be shared, inspected, or imported from published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TrustOption,
    outline_of,
    placement,
    recipe_name,
)
from errata.cli.recipe_options import TOKENS, corpus_of, layers_named
from errata.cli.terminal import JsonOption, console, echo, plain_table, progress, warn, write_json
from errata.editing.recipe_files import shipped_file
from errata.errors import InputError, collect_errors
from errata.models.loading import Outline
from errata.runs.loading import load_model
from errata.statistics.files import StatisticsFile, read_statistics_file, write_statistics
from errata.statistics.published import import_published
from errata.statistics.settings import BUILTIN, StatisticsSettings
from errata.statistics.store import check_source, default_cache, moments_for, statistics_key
from errata.utils.files import check_new_file, is_there
from errata.utils.progress import counter
from errata.utils.text import counted

_SUFFIX = ".safetensors"
app = typer.Typer(
    help="Key statistics in files: compute them for sharing, show them, or import published ones.",
    no_args_is_help=True,
)
_OutFile = Annotated[Path, typer.Option("--out", "-o", help=f"New file NAME{_SUFFIX}.")]


@app.command(
    "make",
    epilog="Example: errata statistics make --model smollm2-135m-instruct --layers 4,8 --out smollm2.safetensors\n\n"
    "Example: errata statistics make --model ./llama --corpus wikipedia.txt --documents 100000 --layers 4,5,6,7,8 "
    "--length 4096 --out llama.safetensors",
)
def make(
    out: _OutFile,
    model: ModelOption = "lab",
    layers: Annotated[
        str | None, typer.Option(help="Layers, such as 4,5,6; default: the critical layers of the shipped recipe.")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Text with blank lines between documents; default: the text shipped with errata, or the lab's own."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Number of tokens to read; default: {TOKENS:,}, unless --documents.")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="Number of documents to read, instead of tokens.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Documents are cut at this many tokens; default: 1,024, or fewer.")
    ] = None,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens/--no-special-tokens", help="Whether keys of BOS and the like count.")
    ] = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = None,
) -> None:
    """Compute key statistics of a model over a text and write them to one file.

    All layers are read in one pass over the text, which stops at the last of them. A killed command continues where it
    stopped when it is run again, with the same bits. Layers that are in the cache are not computed again.
    """
    with collect_errors("the input") as part:
        with part:
            _check_out(out)
        with part:
            if tokens is not None and documents is not None:
                raise InputError("--tokens and --documents are both given", remedy="Give one", code="OPTION_CONFLICT")
        with part:
            where = placement(device, dtype)
            outline = outline_of(model, trust_remote_code=trust_remote_code)
            chosen = _layers(model, layers, outline)
        with part:
            lab = recipe_name(model) == "lab"
            text = corpus_of(corpus, default="lab" if lab else BUILTIN)
    amount: dict[str, int] = {"documents": documents} if documents is not None else {"tokens": tokens or TOKENS}
    limit = min(length or 1024, outline.context_length)
    settings = StatisticsSettings(corpus=text, length=limit, special_tokens=special_tokens, **amount)
    check_source(settings, chosen)
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    with progress() as report, loaded.blaming_no_edit():
        on_read = counter(report, "key statistics", settings.amount)
        found = moments_for(loaded, chosen, settings, on_read=on_read)
    content = StatisticsFile(statistics_key(loaded, settings), model, text, found)
    write_statistics(out, content)
    _show(out, content)
    echo(f"Wrote {out}. Use it with --statistics {out}, or in a recipe: 'statistics: {{file: {out.name}}}'.")
    write_json(json, {"out": str(out), **_record(content)})


@app.command("show", epilog="Example: errata statistics show smollm2.safetensors")
def show(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Statistics files; default: those in the cache.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Show which layers, text and weights statistics files are of, and verify their checksums."""
    given = files or []
    if not given:
        folder = default_cache()
        given = sorted(folder.glob(f"[!u.]*{_SUFFIX}")) if is_there(folder) else []
        echo(f"{counted(len(given), 'file')} in {folder}")
    records = []
    for path in given:
        try:
            content = read_statistics_file(path)
        except InputError as error:
            if files:
                raise
            warn(f"note: {error.what}")  # of an older version of errata; edits never use it
            continue
        _show(path, content)
        records.append({"file": str(path), **_record(content)})
    write_json(json, {"files": records})


@app.command(
    "import",
    epilog="Example: errata statistics import transformer.h.*.mlp.c_proj_float32_mom2_100000.npz --model gpt2-xl "
    "--out gpt2-xl.safetensors",
)
def import_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Published .npz files, one a layer.")],
    out: _OutFile,
    model: ModelOption = "lab",
    layers: Annotated[
        str | None, typer.Option(help="The layers of the files, in their order; default: from the files' names.")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = None,
) -> None:
    """Import the .npz files that the authors of ROME, MEMIT and AlphaEdit publish, or that their code writes.

    They are checked: finite, symmetric and positive semidefinite sums of the right shape, of the scale of the model's
    own keys at that layer. Nothing in them is executed. Files with projections (.pt) are not read.
    """
    with collect_errors("the input") as part:
        with part:
            _check_out(out)
        with part:
            where = placement(device, dtype)
            outline = outline_of(model, trust_remote_code=trust_remote_code)
        with part:
            numbers = [] if layers is None else layers_named(layers)
            outline.check_layers(numbers)
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    content = import_published(loaded, files, layers=numbers)
    write_statistics(out, content)
    _show(out, content)
    echo(f"Wrote {out}. Use it with --statistics {out}, or in a recipe: 'statistics: {{file: {out.name}}}'.")
    write_json(json, {"out": str(out), **_record(content)})


def _check_out(out: Path) -> None:
    if out.suffix != _SUFFIX:
        what = f"the name of the file {out} does not end in {_SUFFIX}"
        raise InputError(what, remedy=f"Give --out NAME{_SUFFIX}", code="OPTION_INVALID")
    check_new_file(out)


def _layers(model: str, layers: str | None, outline: Outline) -> list[int]:
    """The given layers, or the critical layers of the model's shipped recipe."""
    if layers is not None:
        chosen = layers_named(layers)
    else:
        try:
            chosen = list(shipped_file(recipe_name(model)).data["layers"])
        except (InputError, KeyError) as error:
            what = f"errata ships no recipe with critical layers for {model!r}"
            raise InputError(what, remedy="Give --layers, such as 4,5,6", code="OPTION_MISSING") from error
    outline.check_layers(chosen)
    return sorted(set(chosen))


def _show(path: Path, content: StatisticsFile) -> None:
    key = content.key
    echo(f"{path}")
    table = plain_table("layer", "width", "keys", "keys a column", "mean square", right=["layer", "width", "keys",
                        "keys a column", "mean square"])  # fmt: skip
    for layer, moment in content.moments.items():
        width = moment.total.shape[-1]
        mean = float(moment.total.diagonal(dim1=-2, dim2=-1).mean()) / max(moment.count, 1)
        table.add_row(str(layer), str(width), f"{moment.count:,}", f"{moment.count / width:.1f}", f"{mean:.4g}")
    console().print(table)
    amount = f"{key.tokens:,} tokens" if key.tokens is not None else f"{key.documents or 0:,} documents"
    cut = "" if key.length is None else f", cut at {key.length} tokens"
    special = "" if key.special_tokens else ", without special tokens"
    echo(f"  text: {content.corpus} ({amount}{cut}{special}; {key.preprocessing}), digest {key.corpus[:12]}…")
    dtype = key.dtype.removeprefix("torch.")
    echo(f"  model: {content.model}, {dtype}, weights {key.weights[:12]}…, tokenizer {key.tokenizer[:12]}…")


def _record(content: StatisticsFile) -> Mapping[str, Any]:
    return {
        "model": content.model,
        "corpus": content.corpus,
        "key": asdict(content.key),
        "layers": {
            str(layer): {"width": moment.total.shape[-1], "keys": moment.count}
            for layer, moment in content.moments.items()
        },
    }
