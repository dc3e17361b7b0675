"""``errata data``: list, download and check data sets; ``mine_hard`` has the command that edits."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from errata.cli.command import check_input
from errata.cli.terminal import JsonOption, console, echo, plain_table, progress, write_json
from errata.datasets.data_set import DataSet, Source
from errata.datasets.download import Expected, fetch
from errata.datasets.reading import likely_datasets, read_dataset
from errata.datasets.records import Loaded
from errata.datasets.registry import DATASETS, dataset_named, is_own_file, local_path, looks_like_a_file
from errata.errors import ErrataError, FaultsError, InputError, faults_of
from errata.facts.files import has_formulas, read_facts, write_facts
from errata.utils.files import check_file, file_digest, is_file
from errata.utils.text import counted

app = typer.Typer(help="Data sets of knowledge editing: list, download, check, or mine them.", no_args_is_help=True)

FAULTS_SHOWN = 20  # errors in a published file are usually of one kind


@app.command("list", epilog="Example: errata data list")
def list_datasets(json: JsonOption = None) -> None:
    """List the supported data sets with their fields, licences, and whether they are available locally."""
    # Fits into 80 characters; details follow below.
    table = plain_table("name", "records", "verified", "local", right=["records"], no_wrap=True)
    for row in DATASETS.values():
        records = row.sources[0].records if row.sources else None
        shown = "–" if records is None else f"{records:,}"
        table.add_row(row.name, shown, *_file_cells(row))
    out = console()
    out.print(table)
    for row in DATASETS.values():
        out.print(Text.assemble((row.name, "bold"), f"  {row.title}."))
        for line in _about(row):
            out.print(Padding(Text(line, "dim"), (0, 0, 0, 4)))
    write_json(json, {"datasets": [_record(row) for row in DATASETS.values()]})


@app.command("get", epilog="Example: errata data get counterfact")
def get(
    dataset: Annotated[str, typer.Argument(metavar="NAME", help="Name from `errata data list`.")],
    which: Annotated[
        str | None, typer.Option("--file", help="File of the data set; default: the first one listed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Save to DIR/NAME instead of the user's cache.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Download even if the file exists.")] = False,
    json: JsonOption = None,
) -> None:
    """Download a data set, resuming interrupted downloads. No other command downloads data sets."""
    row = dataset_named(dataset)
    source = row.source(which)
    target = local_path(row, source, out)
    if source.url is None:
        raise ErrataError(
            f"{source.file} of {dataset!r} cannot be downloaded automatically",
            remedy=f"Download it from {source.page}, then run: errata data check {dataset} FILE",
            code="DOWNLOAD_MANUAL",
        )
    check_file(target)
    here = is_file(target) and not again
    if here and source.sha256 is not None and file_digest(target) != source.sha256:
        raise ErrataError(
            f"{target} has the wrong checksum",
            remedy=f"Download it again: {_command(dataset, which, out)} --again",
            code="CHECKSUM_MISMATCH",
        )
    if not here:
        echo(f"{row.title}: {source.url} (licence: {row.licence})")
        with progress() as report:
            fetch(source.url, target, Expected(source.sha256, source.size), page=source.page, report=report)
    checked = "checksum verified" if source.verified else "not verified: no checksum is known"
    echo(f"{'Exists already:' if here else 'Wrote'} {target} ({target.stat().st_size:,} bytes; {checked})")
    write_json(json, {**_file_record(row, source), "path": str(target), "downloaded": not here})


def _command(name: str, file: str | None, out: Path | None) -> str:
    """The command line that repeats a ``get``."""
    chosen = [] if file is None else ["--file", file]
    return shlex.join(["errata", "data", "get", name, *chosen, *([] if out is None else ["--out", str(out)])])


@app.command("check", epilog="Example: errata data check counterfact counterfact.json")
def check(
    name: Annotated[str, typer.Argument(help="Name from `errata data list`, or your own .jsonl, .json or .csv file.")],
    file: Annotated[
        Path | None, typer.Argument(help="File in the format of the data set; default: the file saved by `get`.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of facts to use; default: all.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Random seed for shuffling; default: file order.")
    ] = None,
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help="Skip invalid records.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also save the facts as JSONL or CSV.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Validate a data set: print all errors with their records, or its counts and a sample.

    Exits with status 2 if there are errors.
    """
    if out is not None:
        _check_facts_file(out)
    where = name if file is None else str(file)
    try:
        if file is not None or is_own_file(name):
            check_input(Path(where), "NAME" if file is None else "FILE")
        loaded = read_dataset(name, file, count=count, seed=seed, skip_faulty=skip_faulty)
    except InputError as error:
        faults = [asdict(fault) for fault in faults_of(error, where)]
        write_json(json, {"name": name, "file": where, "valid": False, "faults": faults})
        if isinstance(error, FaultsError):
            shortened = len(error.faults) > FAULTS_SHOWN
            given = ("jsonl", Path(name)) if file is None and is_own_file(name) else (name, file)
            remedy = _suggestion(*given) or ("--json FILE saves all of them" if shortened and json is None else "")
            raise FaultsError(error.subject, error.faults, shown=FAULTS_SHOWN, remedy=remedy) from error
        if file is None and looks_like_a_file(name) and (suggestion := _suggestion(None, Path(name))):
            raise InputError(error.what, remedy=suggestion, code=error.code) from error
        raise
    filled = _filled(loaded)
    kinds = ((loaded.facts, "fact"), (loaded.texts, "text"), (loaded.concepts, "concept"))
    counts = [counted(len(entries), what) for entries, what in kinds if entries]
    echo(f"{loaded.source}: {', '.join(counts if skip_faulty else [*counts, 'no errors'])}.")
    for field, (facts, entries) in filled.items():
        echo(f"  {field:<12} {counted(facts, 'fact')}{f', {entries} entries' if entries > facts else ''}")
    for note in loaded.notes:
        echo(f"note: {note}.")
    sample = loaded.facts[0].to_entry() if loaded.facts else {"text": loaded.texts[0]} if loaded.texts else {}
    for field, value in sample.items():
        echo(f"  {field}: {_shown(value)}")
    if out is not None:
        write_facts(loaded.facts, out)
        echo(f"Wrote {out}")
        if out.suffix.lower() == ".csv" and has_formulas(loaded.facts):
            echo(
                "note: texts that look like a formula (starting with =, +, - or @) are prefixed with ', which "
                "errata removes when reading."
            )
    write_json(
        json,
        {
            "name": loaded.dataset,
            "file": loaded.source,
            "valid": True,
            "facts": len(loaded.facts),
            "texts": len(loaded.texts),
            "concepts": len(loaded.concepts),
            "filled": {field: {"facts": facts, "entries": entries} for field, (facts, entries) in filled.items()},
            "notes": list(loaded.notes),
            "digest": loaded.facts.digest(),
            "sample": sample,
            "faults": [],
        },
    )


def _check_facts_file(out: Path) -> None:
    """Raises InputError if the file cannot be written, or exists and contains anything but facts."""
    check_file(out)
    if is_file(out) and out.stat().st_size:
        try:
            read_facts(out)
        except InputError as error:
            what = f"{out} exists and is not a file of facts; it would be overwritten"
            remedy = "Give another name, or remove the file first"
            raise InputError(what, remedy=remedy, code="OUTPUT_EXISTS") from error


def _suggestion(name: str | None, file: Path | None) -> str:
    """The data sets whose format a file has, other than the given one; empty if there are none."""
    if file is None or not is_file(file):
        return ""
    names = likely_datasets(file, name if name in DATASETS else None)
    commands = [f"  {shlex.join(['errata', 'data', 'check', one, str(file)])}" for one in names]
    return "\n".join([f"This looks like {' or '.join(names)}:", *commands]) if commands else ""


def _about(row: DataSet) -> Iterator[str]:
    """Lines of details about a data set."""
    yield f"Fills {', '.join(row.fills)}. Licence: {row.licence}."
    if row.paper:
        yield f"{row.paper}."
    yield f"Read here: {row.read_here}." if row.sources else f"{row.read_here}."
    if len(row.sources) > 1:
        yield f"Files (--file): {', '.join(source.file for source in row.sources)}"


def _filled(loaded: Loaded) -> dict[str, tuple[int, int]]:
    """Optional field -> (facts that have it, entries in all), for the fields that any fact has."""
    found: dict[str, tuple[int, int]] = {}
    for fact in loaded.facts:
        for field, value in list(fact.to_entry().items())[4:]:  # after id, subject, prompt and target
            facts, entries = found.get(field, (0, 0))
            found[field] = (facts + 1, entries + (len(value) if isinstance(value, list) else 1))
    return found


def _shown(value: object) -> str:
    """A value of the sample; for lists, the first entry and the number of others."""
    if not isinstance(value, list):
        return str(value)
    first = value[0]
    text = f"{first['prompt']} -> {first['answer']}" if isinstance(first, dict) else str(first)
    return text if len(value) == 1 else f"{text}  (and {len(value) - 1} more)"


def _file_cells(row: DataSet) -> tuple[str, str]:
    """The cells (verified, local) for all files of a data set."""
    if not row.sources:
        return "–", "included" if row.maker is not None else "–"
    verified = sum(source.verified for source in row.sources)
    here = [source.file for source in row.sources if is_file(local_path(row, source))]
    by_hand = all(source.url is None for source in row.sources)
    return (
        _of_all(verified, len(row.sources), none="no"),
        _of_all(len(here), len(row.sources), none="no (manual download)" if by_hand else "no"),
    )


def _of_all(count: int, total: int, *, none: str) -> str:
    return none if count == 0 else "yes" if count == total else f"{count} of {total} files"


def _file_record(row: DataSet, source: Source) -> Mapping[str, Any]:
    path = local_path(row, source)
    return {"name": row.name, **asdict(source), "verified": source.verified, "path": str(path), "here": is_file(path)}


def _record(row: DataSet) -> Mapping[str, Any]:
    return {
        "name": row.name,
        "title": row.title,
        "paper": row.paper,
        "licence": row.licence,
        "fills": list(row.fills),
        "read_here": row.read_here,
        "files": [_file_record(row, source) for source in row.sources],
    }
