"""A row of the registry: what a data set is called, where it is from, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from errata.datasets.records import Contents, OfRecord, Unit, read_records
from errata.errors import InputError

# (path, skip_faulty) -> contents
Reader: TypeAlias = Callable[[Path, bool], Contents]
# (count, seed) -> units, for what is made and not read
Maker: TypeAlias = Callable[[int | None, int | None], tuple[Unit, ...]]


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a data set, as its authors publish it.

    Attributes:
        file: its name.
        url: where it can be had; None if there is only a page for people, ``page``.
        records: how many it holds, by its authors or by our reading; None if neither says.
        sha256: of the bytes that were read here from the authors' repository; None for a file that could not be read
            here, which is 'not verified here'.
        size: in bytes, of the same.
        page: where a person finds it.
    """

    file: str
    url: str | None
    records: int | None = None
    sha256: str | None = None
    size: int | None = None
    page: str = ""

    @property
    def verified(self) -> bool:
        return self.sha256 is not None


@dataclass(frozen=True, slots=True)
class DataSet:
    """A row.

    Attributes:
        name: as ``--data`` takes it.
        title, paper, licence: for people; the licence is that of the data, as its authors state it.
        fills: the fields of ``Fact`` that it fills beside id, subject, prompt and target, and ``texts``, ``concepts``.
        read_here: what of it could be read when the loader was written, and what could not.
        sources: the first is what its name alone stands for.
        reader: None for what is made and not read.
        maker: None for what is read.
        folder: its folder in the cache; its name if not given. Two readings of one file share one.
    """

    name: str
    title: str
    paper: str
    licence: str
    fills: tuple[str, ...]
    read_here: str
    sources: tuple[Source, ...] = ()
    reader: Reader | None = None
    maker: Maker | None = None
    folder: str = ""

    def source(self, file: str | None = None) -> Source:
        """The file of this name; the first if none is named.

        Raises:
            InputError: if there is no such file, or none at all.
        """
        if not self.sources:
            raise InputError(f"{self.name!r} is no file that could be had elsewhere", remedy=self.read_here)
        known = {source.file: source for source in self.sources}
        if file is not None and file not in known:
            raise InputError(f"{self.name!r} has no file {file!r}", remedy=f"Its files: {', '.join(known)}")
        return known[file] if file is not None else self.sources[0]


def json_list(of_record: OfRecord, *, key: str | None = None) -> Reader:
    """The reader of a JSON list of records; ``key`` is the field that names one, for the faults."""

    def read(path: Path, skip_faulty: bool) -> Contents:
        return read_records(path, of_record, key=key, skip_faulty=skip_faulty)

    return read
