"""Read a data set by its name, or a user's own file, as facts."""

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
from errata.datasets.records import Contents, Loaded, RecordContents, first_values, left_out
from errata.datasets.registry import DATASETS, dataset_named, is_own_file, local_path
from errata.errors import InputError
from errata.facts.concept import Concept
from errata.facts.fact import Fact, FactSet, same_statement
from errata.utils.files import is_file

_TRIED: Final = 5  # records that ``likely_datasets`` reads


def read_dataset(
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    count: int | None = None,
    seed: int | None = None,
    skip_faulty: bool = False,
) -> Loaded:
    """Read a data set. Nothing is downloaded.

    Args:
        name: a name of the registry, or the path of the user's own ``.jsonl``, ``.json`` or ``.csv`` file.
        path: a file in the data set's format; by default its first file, as downloaded by `errata data get`.
        count: number of facts (texts, in a set without facts); all by default, 100 of ``lab``.
        seed: shuffles the records; None keeps the file's order. See ``select``. The facts of ``lab`` are generated
            with it.
        skip_faulty: leave out invalid records of a published file, with a note.

    Raises:
        InputError: if there is no such data set or file, or it has fewer facts.
        FaultsError: all invalid records of the file.
    """
    return open_dataset(name, path, skip_faulty=skip_faulty).select(count=count, seed=seed)


@dataclass(frozen=True, slots=True)
class DatasetRecords:
    """A data set in memory, from which facts can be selected repeatedly.

    Attributes:
        name: its name in the registry.
        source: the file, for messages.
        make: (count, seed) -> records; always the same for a file.
        is_generated: whether ``make`` applies count and seed itself.
    """

    name: str
    source: str
    make: Callable[[int | None, int | None], Contents]
    is_generated: bool

    def select(self, *, count: int | None = None, seed: int | None = None) -> Loaded:
        """As ``read_dataset``.

        Raises:
            InputError: if there are fewer facts.
        """
        contents = self.make(count, seed)
        if self.is_generated:
            count = seed = None
        found = select(contents.units, count=count, seed=seed, source=self.source)
        facts = FactSet(tuple(found.facts), self.source, tuple(found.places))
        notes = (*contents.notes, *found.notes())
        return Loaded(self.name, self.source, facts, tuple(found.texts), tuple(found.concepts), notes)


def open_dataset(name: str, path: str | os.PathLike[str] | None = None, *, skip_faulty: bool = False) -> DatasetRecords:
    """Read a data set's records; arguments and errors as of ``read_dataset``."""
    if is_own_file(name):
        if path is not None:
            what, remedy = f"{name!r} and {os.fspath(path)!r} are both files", "Give one file, or a data set and a file"
            raise InputError(what, remedy=remedy, code="DATASET_TWO_FILES")
        name, path = jsonl.DATASET.name, name
    dataset = dataset_named(name)
    if dataset.maker is not None:
        if path is not None:
            what = f"{name!r} is generated, not read from a file"
            raise InputError(what, remedy="Leave the file out", code="DATASET_WITHOUT_FILE")
        maker = dataset.maker
        return DatasetRecords(name, name, lambda count, seed: Contents(maker(count, seed)), is_generated=True)
    assert dataset.reader is not None  # a data set has a reader or a maker
    file = _downloaded(dataset) if path is None else Path(path)
    contents = dataset.reader(file, skip_faulty)
    return DatasetRecords(name, str(file), lambda count, seed: contents, is_generated=False)


def select(units: Sequence[RecordContents], *, count: int | None, seed: int | None, source: str) -> Selection:
    """Select records without replacement, until there are ``count`` facts (or texts, in a set without facts).

    Without a seed the file's order is used; with one, an order shuffled by ``random.Random(seed)``, the same for every
    count, so that a smaller selection is the beginning of a larger one. A record is selected as a whole or not at all;
    one of several facts that does not fit any more is skipped.

    Published files repeat and contradict themselves. Of records with the same subject and prompt the first in this
    order is selected; a later one with the same target adds nothing, and one with another target is left out as a
    whole. Notes report the numbers. Questions that follow from several facts go to the last of the facts that their
    record added, when all of them are in the model; if it added none, to the last of those it repeats.

    Raises:
        InputError: if ``count`` is not positive, or there are fewer facts.
    """
    if count is not None and count < 1:
        what = f"the count must be at least 1, got {count}"
        raise InputError(what, remedy="Give a positive number of facts", code="DATASET_COUNT")
    order = list(range(len(units)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    found = Selection()
    for index in order:
        if count is not None and len(found) == count:
            break
        found.add(units[index], most=None if count is None else count - len(found))
    if count is not None and len(found) < count:
        what = f"{source} has {len(found)} facts (or texts) that can be used together, but the count is {count}"
        raise InputError(what, remedy="Use a smaller count, or none for all", code="DATASET_COUNT")
    return found


class Selection:
    """Facts with their places, and the concepts and texts of the same records."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.places: list[str] = []
        self.concepts: list[Concept] = []
        self.texts: list[str] = []
        self._indices: dict[tuple[str, str], int] = {}  # of the fact of each statement
        self._repeating: list[str] = []
        self._contradicting: list[str] = []

    def __len__(self) -> int:
        return len(self.facts) or len(self.texts)

    def add(self, unit: RecordContents, *, most: int | None) -> None:
        """Add a record, unless it contradicts earlier ones or has more than ``most`` new facts."""
        if unit.text is not None:
            self.texts.append(unit.text)
        if not unit.facts:
            return
        targets: dict[tuple[str, str], str] = {}
        new: list[Fact] = []
        for fact in unit.facts:
            key = same_statement(fact)
            index = self._indices.get(key)
            before = targets.get(key) if index is None else self.facts[index].target
            if before is not None and before != fact.target:
                self._contradicting.append(unit.place)
                return
            if before is None:
                targets[key] = fact.target
                new.append(fact)
        if most is not None and len(new) > most:
            return
        if not new:
            self._repeating.append(unit.place)
        for fact in new:
            self._indices[same_statement(fact)] = len(self.facts)
            self.facts.append(fact)
            self.places.append(unit.place)
        if unit.concept is not None and new:
            self.concepts.append(unit.concept)
        if unit.together:
            last = max(self._indices[same_statement(fact)] for fact in unit.facts)
            portability = tuple(dict.fromkeys((*self.facts[last].portability, *unit.together)))
            self.facts[last] = replace(self.facts[last], portability=portability)

    def notes(self) -> tuple[str, ...]:
        """Numbers of records that were left out, each a sentence for the user."""
        reasons = (
            ("an earlier one has the same subject, prompt and target", self._repeating),
            ("an earlier one has another target for the same subject and prompt", self._contradicting),
        )
        return tuple(left_out(why, places) for why, places in reasons if places)


def likely_datasets(path: Path, name: str | None = None) -> list[str]:
    """The data sets whose readers accept a file's first records, in the order of the registry.

    Args:
        name: the data set that the file was given as; if its reader accepts any of these records, there is nothing to
            suggest.
    """
    with _beginning(path) as file:
        if name is not None and _accepts(DATASETS[name], file, skip_faulty=True):
            return []
        names = [row.name for row in DATASETS.values() if row.name != name and _accepts(row, file)]
    # errata's own format accepts those of others as well.
    return [found for found in names if found != jsonl.DATASET.name] or names


def _downloaded(dataset: DataSet) -> Path:
    source = dataset.source()
    file = local_path(dataset, source)
    if not is_file(file):
        remedy = f"`errata data get {dataset.name}` downloads it; or give a file"
        if source.url is None:
            remedy = f"Get {source.file} at {source.page} and give the file"
        what = f"{dataset.name!r} is not on this machine: there is no {file}"
        raise InputError(what, remedy=remedy, code="DATASET_NOT_DOWNLOADED")
    return file


def _accepts(row: DataSet, file: Path, *, skip_faulty: bool = False) -> bool:
    """Whether a data set's reader finds records in a file, and no fault."""
    if row.reader is None:
        return False
    try:
        return bool(row.reader(file, skip_faulty).units)
    except InputError:
        return False


@contextmanager
def _beginning(path: Path) -> Iterator[Path]:
    """A file with the first records of a JSON list; any other file as it is."""
    try:
        values = list(itertools.islice(first_values(path), _TRIED))
    except InputError:  # not text; the readers will reject it as well
        values = []
    if not values:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="errata-") as folder:
        file = Path(folder) / path.name
        file.write_text(json.dumps(values), encoding="utf-8")
        yield file
