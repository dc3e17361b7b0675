"""``errata train-editor``: train the part of an editor that learns from examples."""

from __future__ import annotations

from json import dumps as json_text
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
    seed_option,
)
from errata.cli.terminal import JsonOption, echo, echo_line, progress, write_json
from errata.datasets.editor_data import editor_splits
from errata.datasets.registry import split_file
from errata.editors.table import TRAINER_NAMES, trainer_row
from errata.editors.trainers import train_editor as trained
from errata.editors.trainers import trainer_settings
from errata.errors import Fault, FaultsError, InputError, collect_errors
from errata.runs.loading import load_model
from errata.utils.files import check_new_file
from errata.utils.text import counted, readable
from errata.utils.yaml import parse_yaml

EXAMPLE = "Example: errata train-editor serac --model lab --data lab --out serac-gate.safetensors"
app = typer.Typer()


@app.command("train-editor", epilog=EXAMPLE)
def train_editor(
    trainer: Annotated[str, typer.Argument(metavar="NAME", help=f"The editor: {', '.join(TRAINER_NAMES)}.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="New .safetensors file for the result.")],
    model: ModelOption = "lab",
    data: Annotated[
        str,
        typer.Option(
            help="Facts to learn from: lab, a name from `errata data list` (NAME=FILE for a file of its format), or "
            "your own file of facts with paraphrases."
        ),
    ] = "lab",
    split_seed: Annotated[
        int, seed_option("of the split of subjects: 60 % to train, 10 % to calibrate, 30 % never used.")
    ] = 0,
    seed: Annotated[int, seed_option("of the training.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the training; can be repeated."),
    ] = None,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Train the part of an editor that learns from examples, and write it to one file.

    The file names its data, the seed of the split, the model and a checksum. It can be used with this model only.
    """
    with collect_errors("the input") as part:
        with part:
            chosen = trainer_settings(trainer, {"seed": seed, **_changes(settings or [])})
        with part:
            where = placement(device, dtype)
        with part:
            if out.suffix != ".safetensors":
                raise InputError(
                    f"--out {out} is not a .safetensors file",
                    remedy=f"Write --out {out.with_suffix('.safetensors')}",
                    code="OUTPUT_NAME_INVALID",
                )
            check_new_file(out)
        with part:
            source, path = split_file(data)
            splits = editor_splits(source, split_seed, path=path)
        with part:
            outline_of(model, trust_remote_code=trust_remote_code)
    loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
    with progress(speed_window=120.0) as report, loaded.blaming_no_edit():
        found = trained(trainer, loaded, splits, chosen, report=report)
    found.save(out)
    size = counted(sum(tensor.numel() for tensor in found.tensors.values()), "trained number")
    echo(f"Wrote {out} ({size}), trained on {counted(len(splits['train'].records), 'record')} of {source}")
    for name, value in found.record.items():
        echo(f"  {name}: {readable(value)}")
    echo(f"Use it: errata edit --method {trainer} --recipe RECIPE.yaml, where RECIPE.yaml has the line")
    echo_line(f"  {trainer_row(trainer).recipe(json_text(str(out.absolute())))}")
    record: dict[str, Any] = {
        "trainer": trainer,
        "out": str(out),
        "digest": found.digest,
        "source": source,
        "split_seed": split_seed,
        "records": {split: len(part.records) for split, part in splits.items()},
        "base": found.base,
        "base_fingerprint": found.base_fingerprint,
        "settings": dict(found.settings),
        "record": dict(found.record),
    }
    write_json(json, record)


def _changes(settings: list[str]) -> dict[str, Any]:
    """The settings of --set.

    Raises:
        FaultsError: for each one without a value, and each that is given twice.
        InputError: for a value that is not YAML.
    """
    found: dict[str, Any] = {}
    faults = []
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator or not key:
            faults.append(Fault("--set", f"{text!r} has no value", "Write KEY=VALUE", code="OPTION_INVALID"))
        elif key in found:
            faults.append(Fault("--set", f"{key!r} is given twice", "Give it once", code="OPTION_INVALID"))
        else:
            found[key] = parse_yaml(value, f"--set {key}").data
    if faults:
        raise FaultsError("the command line", faults)
    return found
