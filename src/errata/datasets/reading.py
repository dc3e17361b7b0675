"""A data set by its name, or one's own file, as facts."""

from __future__ import annotations

import itertools
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from errata.datasets import jsonl
from errata.datasets.data_set import DataSet
from errata.datasets.records import Contents, Loaded, Unit, first_values, left_out
from errata.datasets.registry import DATASETS, dataset_named, is_own_file, local_path
from errata.errors import InputError
from errata.facts.concept import Concept
from errata.facts.fact import Fact, FactSet, Question, same_statement
from errata.utils.files import is_file

# ----------------------------------------------------------------------------------------------------
# Which records of a data set are taken, in which order, and what happens to those that clash.


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was taken: facts with their places, and what belongs to them."""

    facts: tuple[Fact, ...]
    places: tuple[str, ...]
    concepts: tuple[Concept, ...]
    texts: tuple[str, ...]
    notes: tuple[str, ...]


def draw(units: Sequence[Unit], *, count: int | None, seed: int | None, source: str) -> Drawn:
    """Take records without replacement, until there are ``count`` facts (or texts, in a set without facts).

    Without a seed they come in the file's order; with one, in an order shuffled by ``random.Random(seed)``, the same
    order for every count, so that a smaller draw is the beginning of a larger one. A record is taken whole or not at
    all; one of several facts that no longer fits is passed over.

    Published files repeat and contradict themselves. Of records with the same subject and prompt the first in this
    order is taken; a later one that says the same adds nothing, and one with another target is left out whole. Notes
    tell how many, so nothing of that is silent. Questions that follow from several facts go to the last of those that
    their record added, when all of them are in the model; if it added none, to the last that was there.

    Raises:
        InputError: if ``count`` is not positive, or there is not as much.
    """
    if count is not None and count < 1:
        raise InputError(f"the count must be at least 1, got {count}", remedy="Ask for a positive number of facts")
    order = list(range(len(units)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    taken = _Taken()
    for index in order:
        if count is not None and len(taken) == count:
            break
        taken.add(units[index], room=None if count is None else count - len(taken))
    if count is not None and len(taken) < count:
        raise InputError(
            f"{source} has {len(taken)} that can be taken together, but {count} were asked for",
            remedy="Ask for fewer, or leave the count out for all",
        )
    return taken.drawn()


class _Taken:
    """What has been taken so far."""

    def __init__(self) -> None:
        self._facts: list[Fact] = []
        self._places: list[str] = []
        self._concepts: list[Concept] = []
        self._texts: list[str] = []
        self._stated: dict[tuple[str, str], int] = {}
        self._repeating: list[str] = []
        self._contradicting: list[str] = []

    def __len__(self) -> int:
        return len(self._facts) or len(self._texts)

    def add(self, unit: Unit, *, room: int | None) -> None:
        """Take a record, unless it clashes or is larger than ``room``."""
        if unit.text is not None:
            self._texts.append(unit.text)
        if not unit.facts:
            return
        said: dict[tuple[str, str], str] = {}
        new: list[Fact] = []
        for fact in unit.facts:
            key = same_statement(fact)
            index = self._stated.get(key)
            before = said.get(key) if index is None else self._facts[index].target
            if before is not None and before != fact.target:
                self._contradicting.append(unit.place)
                return
            if before is None:
                said[key] = fact.target
                new.append(fact)
        if room is not None and len(new) > room:
            return
        if not new:
            self._repeating.append(unit.place)
        for fact in new:
            self._stated[same_statement(fact)] = len(self._facts)
            self._facts.append(fact)
            self._places.append(unit.place)
        if unit.concept is not None and new:
            self._concepts.append(unit.concept)
        if unit.together:
            last = max(self._stated[same_statement(fact)] for fact in unit.facts)
            self._facts[last] = _with_portability(self._facts[last], unit.together)

    def drawn(self) -> Drawn:
        notes = []
        if self._repeating:
            notes.append(left_out("an earlier one says the same of the same subject and prompt", self._repeating))
        if self._contradicting:
            why = "an earlier one has another target for the same subject and prompt"
            notes.append(left_out(why, self._contradicting))
        return Drawn(tuple(self._facts), tuple(self._places), tuple(self._concepts), tuple(self._texts), tuple(notes))


def _with_portability(fact: Fact, questions: Sequence[Question]) -> Fact:
    """The fact with further questions, each once."""
    return replace(fact, portability=tuple(dict.fromkeys((*fact.portability, *questions))))


# ----------------------------------------------------------------------------------------------------


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


# ----------------------------------------------------------------------------------------------------
# Which data set a file looks like: those whose readers take its first records without a fault.


_TRIED: Final = 5  # records


def likely_datasets(path: Path, name: str | None = None) -> list[str]:
    """The names of data sets that a file looks like, in the order of the registry.

    Args:
        name: the data set that it was given as; where that takes any of the first records the file is of that form,
            and there is nothing to suggest.
    """
    with _beginning(path) as file:
        if name is not None and _takes(DATASETS[name], file, skip_faulty=True):
            return []
        names = [row.name for row in DATASETS.values() if row.name != name and _takes(row, file)]
    # One's own form takes those of others as well.
    return [found for found in names if found != jsonl.DATASET.name] or names


def _takes(row: DataSet, file: Path, *, skip_faulty: bool = False) -> bool:
    """Whether a data set's reader finds something in a file, and no fault."""
    if row.reader is None:
        return False
    try:
        return bool(row.reader(file, skip_faulty).units)
    except InputError:  # which is the answer
        return False


@contextmanager
def _beginning(path: Path) -> Iterator[Path]:
    """A file with the first records of a JSON list; any other file is given whole."""
    try:
        values = list(itertools.islice(first_values(path), _TRIED))
    except InputError:  # no text; the readers will say no as well
        values = []
    if not values:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="errata-") as folder:
        file = Path(folder) / path.name
        file.write_text(json.dumps(values), encoding="utf-8")
        yield file
