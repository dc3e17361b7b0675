"""``errata data``: the data sets that errata reads, where they are from, and whether a file of them is whole."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from errata.cli.terminal import JsonOption, console, counted, progress, tell, write_json
from errata.datasets.data_set import DataSet, Source
from errata.datasets.download import Expected, fetch
from errata.datasets.reading import likely_datasets, read_dataset
from errata.datasets.records import Loaded
from errata.datasets.registry import DATASETS, dataset_named, is_own_file, local_path, looks_like_a_file
from errata.errors import ErrataError, Fault, FaultsError, InputError
from errata.facts.files import has_formulas, read_facts, write_facts
from errata.utils.files import check_file, file_digest, is_file

app = typer.Typer(help="Data sets of knowledge editing: list, download, or check them.", no_args_is_help=True)

FAULTS_SHOWN = 20  # of a published file, whose faults are usually of one kind
NameArgument = Annotated[str, typer.Argument(help="A name of `errata data list`.")]


@app.command("list", epilog="Example: errata data list")
def list_datasets(json: JsonOption = None) -> None:
    """List the data sets that errata reads: what each fills, its licence, and whether it is here."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("name", "records", "verified", "here"):  # what has room in 80 characters; all else stands below
        table.add_column(head, justify="right" if head == "records" else "left", no_wrap=True)
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
    dataset: Annotated[str, typer.Argument(metavar="NAME", help="A name of `errata data list`.")],
    which: Annotated[
        str | None, typer.Option("--file", help="Which of its files; by default the first of the list.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Into DIR/NAME instead of the user's cache.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also if it is there already.")] = False,
    json: JsonOption = None,
) -> None:
    """Download a data set, resumed where it broke off; nothing is ever downloaded without this verb."""
    row = dataset_named(dataset)
    source = row.source(which)
    target = local_path(row, source, out)
    if source.url is None:
        raise ErrataError(
            f"{source.file} of {dataset!r} cannot be downloaded by a program",
            remedy=f"Get it at {source.page}, and give the file: errata data check {dataset} FILE",
        )
    check_file(target)
    here = is_file(target) and not again
    if here and source.sha256 is not None and file_digest(target) != source.sha256:
        raise ErrataError(
            f"{target} is not the file that errata knows: its checksum is another",
            remedy=f"Get it anew: {_command(dataset, which, out)} --again",
        )
    if not here:
        tell(f"{row.title}: {source.url} (licence: {row.licence})")
        with progress() as report:
            fetch(source.url, target, Expected(source.sha256, source.size), page=source.page, report=report)
    checked = "its checksum is right" if source.verified else "not verified here: errata knows no checksum of it"
    tell(f"{'Already there' if here else 'Wrote'} {target} ({target.stat().st_size:,} bytes; {checked})")
    write_json(json, {**_file_record(row, source), "path": str(target), "downloaded": not here})


def _command(name: str, file: str | None, out: Path | None) -> str:
    """The command line of ``get`` with what was given."""
    chosen = [] if file is None else ["--file", file]
    return shlex.join(["errata", "data", "get", name, *chosen, *([] if out is None else ["--out", str(out)])])


@app.command("check", epilog="Example: errata data check counterfact counterfact.json")
def check(
    name: Annotated[str, typer.Argument(help="A name of `errata data list`, or your own .jsonl, .json or .csv file.")],
    file: Annotated[Path | None, typer.Argument(help="A file in its form; default: where `get` has put it.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Take only so many facts; default: all.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Shuffle by this seed; default: the file's order.")
    ] = None,
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help="Leave out records with faults.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write the facts, JSONL or CSV.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Read a data set whole: all faults with their records, or its counts and a sample; exit status 2 if any fault."""
    if out is not None:
        _check_facts_file(out)
    where = name if file is None else str(file)
    try:
        loaded = read_dataset(name, file, count=count, seed=seed, skip_faulty=skip_faulty)
    except FaultsError as error:
        write_json(json, {"name": name, "file": where, "valid": False, "faults": [asdict(one) for one in error.faults]})
        shortened = len(error.faults) > FAULTS_SHOWN
        given = ("jsonl", Path(name)) if file is None and is_own_file(name) else (name, file)
        remedy = _suggestion(*given) or ("--json FILE holds all of them" if shortened and json is None else "")
        raise FaultsError(error.subject, error.faults, shown=FAULTS_SHOWN, remedy=remedy) from error
    except InputError as error:
        faults = [asdict(Fault(where, error.what, error.remedy))]
        write_json(json, {"name": name, "file": where, "valid": False, "faults": faults})
        if file is None and looks_like_a_file(name) and (suggestion := _suggestion(None, Path(name))):
            raise InputError(error.what, remedy=suggestion) from error
        raise
    filled = _filled(loaded)
    kinds = ((loaded.facts, "fact"), (loaded.texts, "text"), (loaded.concepts, "concept"))
    told = [counted(len(held), what) for held, what in kinds if held]
    tell(f"{loaded.source}: {', '.join(told if skip_faulty else [*told, 'no fault'])}.")
    for field, (facts, entries) in filled.items():
        tell(f"  {field:<12} {counted(facts, 'fact')}{f', {entries} entries' if entries > facts else ''}")
    for note in loaded.notes:
        tell(f"note: {note}.")
    sample = loaded.facts[0].to_entry() if loaded.facts else {"text": loaded.texts[0]} if loaded.texts else {}
    for field, value in sample.items():
        tell(f"  {field}: {_shown(value)}")
    if out is not None:
        write_facts(loaded.facts, out)
        tell(f"Wrote {out}")
        if out.suffix.lower() == ".csv" and has_formulas(loaded.facts):
            tell("note: texts that begin like a formula (=, +, -, @) have a ' before them; errata takes it off again.")
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
    """Raises InputError if facts cannot be written there, or would take the place of something else."""
    check_file(out)
    if is_file(out) and out.stat().st_size:
        try:
            read_facts(out)
        except InputError as error:
            what = f"{out} is there, and is not a file of facts: it would be lost"
            raise InputError(what, remedy="Give another name, or remove it first") from error


def _suggestion(name: str | None, file: Path | None) -> str:
    """The data sets that a file looks like; nothing where it is of the form that it was given as, or of none."""
    if file is None or not is_file(file):
        return ""
    names = likely_datasets(file, name if name in DATASETS else None)
    commands = [f"  {shlex.join(['errata', 'data', 'check', one, str(file)])}" for one in names]
    return "\n".join([f"This looks like {' or '.join(names)}:", *commands]) if commands else ""


def _about(row: DataSet) -> Iterator[str]:
    """What there is to say of a data set beside its numbers, line by line."""
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
        for field, value in list(fact.to_entry().items())[4:]:  # behind id, subject, prompt and target
            facts, entries = found.get(field, (0, 0))
            found[field] = (facts + 1, entries + (len(value) if isinstance(value, list) else 1))
    return found


def _shown(value: object) -> str:
    """A value of the sample; of a list the first entry and how many more there are."""
    if not isinstance(value, list):
        return str(value)
    first = value[0]
    told = f"{first['prompt']} -> {first['answer']}" if isinstance(first, dict) else str(first)
    return told if len(value) == 1 else f"{told}  (and {len(value) - 1} more)"


def _file_cells(row: DataSet) -> tuple[str, str]:
    """(verified, here), over the row's files."""
    if not row.sources:
        return "–", "comes with errata" if row.maker is not None else "–"
    verified = sum(source.verified for source in row.sources)
    here = [source.file for source in row.sources if is_file(local_path(row, source))]
    by_hand = all(source.url is None for source in row.sources)
    return (
        _of_all(verified, len(row.sources), none="not verified here"),
        _of_all(len(here), len(row.sources), none="no (get it by hand)" if by_hand else "no"),
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
