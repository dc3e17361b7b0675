"""Which facts of a data set are edited by a seed, and what else is asked then: the same for all methods."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from errata.benchmark.grid import DataEntry
from errata.benchmark.material import UNTOUCHED, Material, others_untouched
from errata.datasets.loaded import Loaded
from errata.datasets.read import Records, read_dataset, read_records
from errata.datasets.registry import DATASETS
from errata.errors import FaultsError, InputError
from errata.facts import FactSet
from errata.reading import file_text, reason_of
from errata.verbs.models import is_lab
from errata.verbs.questions import PROSE, read_questions, shipped_sentences

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
    from errata.lab.texts import held_out_prose

    return tuple(held_out_prose(PROSE))
