"""``errata lab``: the embedded model."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import TypeAdapter

from errata.cli.model_options import seed_option
from errata.cli.terminal import JsonOption, console, echo, progress, write_json
from errata.editing.recipe import shipped_recipe
from errata.errors import InputError
from errata.facts.files import write_facts
from errata.lab.package import lab_directory, lab_world, save_lab, write_lab
from errata.lab.tasks import every_fact, lab_facts
from errata.lab.training import EpochReport, TrainingSettings, train
from errata.models.language_model import LanguageModel
from errata.statistics.corpus import open_corpus
from errata.statistics.files import StatisticsFile, write_statistics
from errata.statistics.moments import key_moments
from errata.statistics.store import statistics_key
from errata.utils import files
from errata.utils.files import (
    check_new,
    check_new_file,
    file_digest,
    is_there,
    new_directory,
    read_json,
    read_text,
    reading,
    reason_of,
)
from errata.utils.locks import open_in_place
from errata.utils.progress import counter
from errata.utils.text import counted

CONTEXT_SHARE = 0.1
FURTHER_CONTEXT_SHARE = 0.5  # of a trained model: a few epochs are then enough
FURTHER_EPOCHS = 8
FURTHER_RATE = 2 / 3  # of the learning rate from scratch

app = typer.Typer(
    help="The embedded model: save it, train it, measure its recall, or sample facts from its world.",
    no_args_is_help=True,
)


@app.command("save", epilog="Example: errata lab save lab-model")
def save(
    directory: Annotated[Path, typer.Argument(help="New directory for the model.")], json: JsonOption = None
) -> None:
    """Save the embedded model as a plain transformers directory."""
    save_lab(directory)
    echo(f"Wrote {directory}")
    write_json(json, {"directory": str(directory)})


@app.command("facts", epilog="Example: errata lab facts --count 100 --seed 3 --out facts.jsonl")
def facts(
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL or CSV file to write.")],
    count: Annotated[int, typer.Option(min=1, help="Number of facts.")] = 100,
    seed: Annotated[int, seed_option("of the sample.")] = 0,
    json: JsonOption = None,
) -> None:
    """Sample counterfactual edits from the lab's world."""
    world = lab_world()
    if count > len(world.people):
        raise InputError(
            f"--count {count} exceeds the {len(world.people)} people of the world",
            remedy="Lower --count",
            code="TOO_MANY_FACTS",
        )
    check_new_file(out)
    write_facts(lab_facts(world, count, seed=seed), out)
    echo(f"Wrote {counted(count, 'fact')} to {out}")
    write_json(json, {"facts": count, "out": str(out)})


@app.command("recall", epilog="Example: errata lab recall --json recall.json")
def recall(
    model: Annotated[str, typer.Option("--model", "-m", help="'lab' or a directory derived from it.")] = "lab",
    json: JsonOption = None,
) -> None:
    """Measure the share of the world's facts that the model recalls, by relation and wording."""
    world = lab_world()
    asked = every_fact(world)
    loaded = LanguageModel.load(model)
    with progress() as report:
        scores = loaded.score([question.pair for _, question in asked], report=report)
    wordings = len(asked) // (len(world.people) * len(world.relations))
    shares: dict[str, list[float]] = {}
    stride = len(world.relations) * wordings  # prompts of a person
    for index, relation in enumerate(world.relations):
        columns = (scores[index * wordings + wording :: stride] for wording in range(wordings))
        shares[relation] = [sum(score.correct for score in column) / len(world.people) for column in columns]
    for relation, values in shares.items():
        console().print(f"{relation:<12} " + "  ".join(f"{value:6.1%}" for value in values), highlight=False)
    total = sum(item.correct for item in scores) / len(scores)
    echo(f"all          {total:6.2%} of {len(scores)} prompts")
    write_json(json, {"model": model, "recall": total, "prompts": len(scores), "by_relation_and_wording": shares})


@app.command("statistics", epilog="Example: errata lab statistics --out src/errata/lab/moments")
def statistics(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the statistics.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="'lab' or a directory created by `errata lab train`.")
    ] = "lab",
    json: JsonOption = None,
) -> None:
    """Compute the key statistics shipped with the embedded model, as in its recipe, rounded to float32."""
    recipe = shipped_recipe("lab", "memit")
    loaded = LanguageModel.load(model, dtype=torch.float32)
    settings = recipe.statistics
    key = statistics_key(loaded, settings)
    with progress() as report:
        on_read = counter(report, "key statistics", settings.amount)
        documents = open_corpus(settings.corpus).documents()
        moments = key_moments(loaded, recipe.layers, documents, settings, on_read=on_read)
    for layer, moment in moments.items():
        content = StatisticsFile(key, "lab", settings.corpus, {layer: moment})
        write_statistics(out / key.file_name(layer), content, dtype=torch.float32)
    echo(f"Wrote the statistics of layers {list(recipe.layers)} to {out}")
    write_json(json, {"out": str(out), "files": {layer: key.file_name(layer) for layer in moments}})


def _logged_epochs(log: Path) -> dict[int, EpochReport]:
    """Epoch -> its report. After an interruption the last line may be incomplete, and an epoch be logged twice.

    Raises:
        InputError: if the file cannot be read, or another line is damaged.
    """
    if not is_there(log):
        return {}
    remedy = "Restore it, or give another --work"
    lines = read_text(log, f"the training log {log}", remedy=remedy, code="TRAINING_LOG_DAMAGED").splitlines()
    report_of = TypeAdapter(EpochReport)
    entries: dict[int, EpochReport] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = report_of.validate_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            remedy = "Restore the line, or remove it if its epoch is logged again below"
            what = f"{log}:{number} is damaged ({reason_of(error)})"
            raise InputError(what, remedy=remedy, code="TRAINING_LOG_DAMAGED") from error
        entries[entry.epoch] = entry
    return entries


def _settings_from(start: Path) -> TrainingSettings:
    """The settings for training a model further.

    Raises:
        InputError: if the directory is not one of ``lab train``.
    """
    what = f"the model {start} to start from"
    remedy = "Give 'lab' or a directory created by errata lab train"
    code = "TRAINING_START_INVALID"
    record = read_json(start / "training.json", what, remedy=remedy, code=code)
    try:
        made = TypeAdapter(TrainingSettings).validate_python(record["settings"])
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{what} is invalid ({reason_of(error)})", remedy=remedy, code=code) from error
    with reading(what, remedy=remedy, code=code):
        digest = file_digest(start / "model.safetensors")
    rate = FURTHER_RATE * TrainingSettings().learning_rate
    return replace(made, epochs=FURTHER_EPOCHS, learning_rate=rate, start=digest)


def _log_line(report: EpochReport) -> str:
    return json_module.dumps(asdict(report)) + "\n"


@app.command("train", epilog="Example: errata lab train --out lab-new --work lab-training")
def train_lab(
    out: Annotated[Path, typer.Option("--out", "-o", help="New directory for the model.")],
    work: Annotated[Path, typer.Option(help="Directory of checkpoints; existing training is resumed.")] = Path(
        "lab-training"
    ),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Training epochs (exposures per fact); default: as for the shipped model.")
    ] = None,
    people: Annotated[
        int | None, typer.Option(min=1, help="People in the world; default: as for the shipped model.")
    ] = None,
    seed: Annotated[int, seed_option("of the world and the training.")] = 0,
    context: Annotated[
        bool,
        typer.Option(
            "--context",
            help="A tenth of the documents (with --start, half) state a new fact and then ask for it. The model learns "
            "to read facts in its prompt.",
        ),
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(
            help="'lab' or a directory created by `errata lab train`, to train its weights further at two thirds of "
            "the learning rate, by default for 8 epochs. Its world and tokenizer stay.",
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Use torch.compile, which needs a C++ compiler.")
    ] = True,
    json: JsonOption = None,
) -> None:
    """Train the embedded model from scratch (about an hour on one core); training can be interrupted and resumed."""
    check_new(out)
    source = None if start is None else lab_directory() if start == "lab" else Path(start)
    base = TrainingSettings() if source is None else _settings_from(source)
    if source is not None and people is not None:
        what = "--people makes a new world, but --start keeps the world of its model"
        raise InputError(what, remedy="Leave out --people", code="TRAINING_SETTINGS_INVALID")
    settings = replace(
        base,
        epochs=epochs or base.epochs,
        people=people or base.people,
        seed=seed,
        compile=compiled,
        context_share=(CONTEXT_SHARE if source is None else FURTHER_CONTEXT_SHARE) if context else 0.0,
    )
    log = work / "log.jsonl"
    entries = _logged_epochs(log)
    work.mkdir(parents=True, exist_ok=True)
    files.write_text(log, "".join(map(_log_line, entries.values())))  # without an incomplete last line
    with progress() as report, open_in_place(log, "a") as file:

        def on_epoch(done: EpochReport) -> None:
            entries[done.epoch] = done
            file.write(_log_line(done))
            file.flush()
            report("epochs", done.epoch, settings.epochs)

        report("epochs", 0, settings.epochs)
        try:
            model, tokenizer, world = train(settings, work, start=source, on_epoch=on_epoch)
        except ValueError as error:
            raise InputError(
                str(error), remedy="Give another --work, or more --people", code="TRAINING_SETTINGS_INVALID"
            ) from error
    with new_directory(out) as partial:
        write_lab(partial, model, tokenizer, world)
        record = {"settings": asdict(settings), "log": [asdict(entries[epoch]) for epoch in sorted(entries)]}
        files.write_json(partial / "training.json", record, indent=1)
    echo(f"Wrote {out}; last loss {entries[max(entries)].loss:.3f}")
    write_json(json, {"directory": str(out), **record})
