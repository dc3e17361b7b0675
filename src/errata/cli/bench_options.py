"""What the options of ``errata bench`` stand for in a grid."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.benchmark.grid import DataEntry
from errata.benchmark.material import UNTOUCHED, Material, others_untouched
from errata.cli.model_options import is_lab
from errata.cli.questions import PROSE, read_questions, shipped_sentences
from errata.datasets.reading import Records, read_dataset, read_records
from errata.datasets.records import Loaded
from errata.datasets.registry import DATASETS, is_own_file
from errata.errors import FaultsError, InputError
from errata.facts.fact import FactSet
from errata.utils.files import file_text, reason_of


def entries_of(text: str | None, begun: Any, shared: Mapping[str, Any]) -> list[Any] | None:
    """Entries of names by commas, else those of the grid's file, each with what the command line says of all of them;
    None if it says nothing."""
    shared = {name: value for name, value in shared.items() if value is not None}
    if text is not None:
        entries: list[Any] = [named_entry(name) for name in names_in(text)]
    elif shared:
        entries = list(begun) if isinstance(begun, list) else [begun]
    else:
        return None
    return [{**entry, **shared} if isinstance(entry, dict) else entry for entry in entries]


def named_entry(text: str) -> dict[str, Any]:
    """``NAME``, ``NAME=FILE`` or the name of one's own file; files hold wherever the benchmark goes on."""
    name, separator, path = text.partition("=")
    if separator:
        return {"name": name, "path": str(Path(path).absolute())}
    return {"name": str(Path(name).absolute()) if is_own_file(name) else name}


def file_place(text: str) -> str:
    name, separator, path = text.partition("=")
    if separator:
        return f"{name}={Path(path).absolute()}"
    return name if name in DATASETS else str(Path(name).absolute())


def task_place(name: str) -> str:
    """A task's name, or the path of its file."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def corpus_place(name: str | None) -> str | None:
    return name if name in (None, "lab") else str(Path(str(name)).absolute())


def measures_of(parts: list[str], **options: dict[str, Any]) -> dict[str, Any] | None:
    """The parts that are named, and those that an option is for; None without any."""
    given = {
        part: {name: value for name, value in values.items() if value is not None} for part, values in options.items()
    }
    given = {part: values for part, values in given.items() if values}
    names = list(dict.fromkeys([*parts, *given]))
    return {"parts": names, "options": given} if names else None


def judge_of(url: str | None, model: str | None, key: str | None) -> dict[str, Any] | None:
    if url is None:
        if lonely := [name for name, value in (("--judge-model", model), ("--judge-key", key)) if value]:
            raise InputError(f"{lonely[0]} is for a judge, and no --judge is given", remedy="Name its endpoint")
        return None
    if model is None:
        raise InputError("--judge needs --judge-model", remedy="Name the model that shall judge")
    return {"base_url": url, "model": model, "key_variable": key}


def names_in(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def seeds_named(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"--seeds {text!r} is no number, and no list of them", remedy="Write 3, or 7,8,9") from error
    if found == [0] and "," not in text:
        raise InputError("--seeds 0 is no seed at all", remedy="A number alone is how many; seed 0 alone is '0,'")
    return found[0] if len(found) == 1 and "," not in text else found


def place(path: Path | None) -> str | None:
    """A path that holds wherever the benchmark goes on."""
    return None if path is None else str(path.absolute())


# ----------------------------------------------------------------------------------------------------
# Which facts of a data set are edited by a seed, and what else is asked then: the same for all methods.


LAB = "lab"
FAULTS_SHOWN = 20  # of one data set; what else is wrong would be lost among more
SPARED = 200  # people of the lab's world that no run edits


@dataclass(frozen=True, slots=True)
class WholeSet:
    """A data set that was read once: all of it, and what it is drawn from."""

    loaded: Loaded
    records: Records


def whole_set(entry: DataEntry) -> WholeSet | None:
    """All of a data set; None where it is made as it is needed.

    Raises:
        InputError, FaultsError: if it cannot be read, or has no facts.
    """
    if entry.name == LAB:
        return None
    try:
        records = read_records(entry.name, entry.path)
        loaded = records.draw()
    except FaultsError as error:
        if len(error.faults) <= FAULTS_SHOWN:
            raise
        given = shlex.join([entry.name, *([] if entry.path is None else [entry.path])])
        what = f"{error.subject} has {len(error.faults):,} faults, of which the first is: {error.faults[0]}"
        raise InputError(what, remedy=f"errata data check {given} tells more") from error
    if not loaded.facts:
        raise InputError(f"the data set {entry.label!r} has no facts to edit", remedy="For texts, use --prose")
    return WholeSet(loaded, records)


def prose_of(name: str) -> tuple[str, ...]:
    """Texts of a data set (``NAME`` or ``NAME=FILE``), or the lines of a file."""
    dataset, _, path = name.partition("=")
    if dataset in DATASETS:
        if texts := read_dataset(dataset, path or None).texts:
            return texts
        raise InputError(f"the data set {dataset!r} has no texts", remedy="Give me-ppl, or a file with a text a line")
    try:
        lines = file_text(Path(name)).splitlines()
    except (OSError, ValueError) as error:
        what = f"--prose {name} cannot be read: {reason_of(error)}"
        raise InputError(what, remedy="Give a file with a text a line") from error
    if texts := tuple(line for line in lines if line.strip()):
        return texts
    raise InputError(f"--prose {name} is empty", remedy="Give a file with a text a line")


def material_of(
    model: str, entry: DataEntry, whole: WholeSet | None, prose: tuple[str, ...] | None, edits: int, seed: int
) -> Material:
    """The facts of a seed, questions about subjects that they do not edit, and prose.

    Args:
        model: decides which prose is taken where none is given.

    Raises:
        InputError: if there are not as many facts, or questions cannot be read.
    """
    given = read_questions(None if entry.untouched is None else Path(entry.untouched))
    if prose is None:
        prose = _default_prose(is_lab(model))
    if whole is not None:
        drawn = whole.records.draw(count=edits, seed=seed)
        untouched = others_untouched(whole.loaded.facts, drawn.facts, seed=seed) if given is None else tuple(given)
        return Material(drawn.facts, untouched, prose, drawn.notes, drawn.concepts)
    from errata.lab.package import lab_world
    from errata.lab.tasks import lab_facts, untouched_questions

    world = lab_world()
    try:
        made = FactSet(tuple(lab_facts(world, edits, seed=seed, spare=SPARED)), "the lab's world")
    except ValueError as error:
        raise InputError(f"--edits: {error}", remedy="Lower --edits") from error
    subjects = [fact.subject for fact in made]
    asked = untouched_questions(world, subjects, UNTOUCHED, seed=seed) if given is None else given
    return Material(made, tuple(asked), prose)


def _default_prose(lab: bool) -> tuple[str, ...]:
    if not lab:
        return tuple(shipped_sentences())
    from errata.lab.corpus import held_out_prose

    return tuple(held_out_prose(PROSE))
