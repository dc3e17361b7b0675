"""A data set by its name, or one's own file, as facts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from errata.datasets.drawing import draw
from errata.datasets.json_records import Contents
from errata.datasets.loaded import Loaded
from errata.datasets.registry import dataset_named, is_own_file, local_path
from errata.datasets.row import DataSet
from errata.errors import InputError
from errata.facts import FactSet
from errata.output import is_file


def read_dataset(
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    count: int | None = None,
    seed: int | None = None,
    skip_faulty: bool = False,
) -> Loaded:
    """Read a data set; nothing is downloaded.

    Args:
        name: a name of the registry, or the path of a ``.jsonl``, ``.json`` or ``.csv`` file of one's own.
        path: a file in the data set's form; by default its first file, where `errata data get` has put it.
        count: how many facts (texts, in a set without facts); all by default, 100 of ``lab``.
        seed: shuffles the records, without replacement; None keeps the file's order. See ``drawing.draw``. Of ``lab``
            it is the seed that its facts are drawn with.
        skip_faulty: leave out the records of a published file that have faults, and say so in a note.

    Raises:
        InputError: if there is no such data set or file, or not as many facts.
        FaultsError: if records are wrong; tells all faults of the file at once.
    """
    return read_records(name, path, skip_faulty=skip_faulty).draw(count=count, seed=seed)


@dataclass(frozen=True, slots=True)
class Records:
    """A data set that was read, of which facts can be drawn more than once.

    Attributes:
        name: its name in the registry.
        source: the file, for people.
        make: (count, seed) -> records; of a file always the same.
    """

    name: str
    source: str
    make: Callable[[int | None, int | None], Contents]
    is_made: bool

    def draw(self, *, count: int | None = None, seed: int | None = None) -> Loaded:
        """As ``read_dataset``.

        Raises:
            InputError: if there are not as many facts.
        """
        contents = self.make(count, seed)
        if self.is_made:
            count = seed = None  # done by the maker
        drawn = draw(contents.units, count=count, seed=seed, source=self.source)
        facts = FactSet(drawn.facts, self.source, drawn.places)
        return Loaded(self.name, self.source, facts, drawn.texts, drawn.concepts, (*contents.notes, *drawn.notes))


def read_records(name: str, path: str | os.PathLike[str] | None = None, *, skip_faulty: bool = False) -> Records:
    """Read a data set's records; arguments and errors as of ``read_dataset``."""
    if is_own_file(name):
        if path is not None:
            what = f"{name!r} and {os.fspath(path)!r} are both files"
            raise InputError(what, remedy="Give one file, or the name of a data set and a file")
        name, path = "jsonl", name
    dataset = dataset_named(name)
    if dataset.maker is not None:
        if path is not None:
            raise InputError(f"{name!r} is made and not read from a file", remedy="Leave the file out")
        maker = dataset.maker
        return Records(name, name, lambda count, seed: Contents(maker(count, seed)), is_made=True)
    file = _file(dataset, path)
    contents = _read(dataset, file, skip_faulty)
    return Records(name, str(file), lambda count, seed: contents, is_made=False)


def _read(dataset: DataSet, file: Path, skip_faulty: bool) -> Contents:
    if dataset.reader is None:  # a row has a reader or a maker
        raise InputError(f"{dataset.name!r} is not read from a file", remedy="Leave the file out")
    return dataset.reader(file, skip_faulty)


def _file(dataset: DataSet, path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        return Path(path)
    source = dataset.source()
    file = local_path(dataset, source)
    if not is_file(file):
        by_hand = f"Get {source.file} at {source.page} and give the file" if source.url is None else ""
        remedy = by_hand or f"`errata data get {dataset.name}` downloads it; or give a file that you have"
        raise InputError(f"{dataset.name!r} is not on this machine: there is no {file}", remedy=remedy)
    return file
