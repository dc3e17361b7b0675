"""A row of the registry: a data set's name, sources and reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from errata.datasets.records import Contents, OfRecord, RecordContents, parse_records
from errata.errors import InputError

# (path, skip_faulty) -> contents
Reader: TypeAlias = Callable[[Path, bool], Contents]
# (count, seed) -> units
Maker: TypeAlias = Callable[[int | None, int | None], tuple[RecordContents, ...]]


@dataclass(frozen=True, slots=True)
class Source:
    """One published file of a data set.

    Attributes:
        file: its name.
        url: download address; None if there is only a web page, ``page``.
        records: number of records, as stated by its authors or read here; None if unknown.
        sha256: of the bytes in the authors' repository; None if the file could not be verified.
        size: in bytes, of the same.
        page: web page of the file.
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
    """A data set.

    Attributes:
        name: as ``--data`` takes it.
        title, paper, licence: for the user; the licence is that of the data, as stated by its authors.
        fills: optional fields of ``Fact`` that it has, and ``texts``, ``concepts``.
        read_here: which of its files the loader was tested with.
        sources: its files; the first is the default.
        reader: None for a generated data set.
        maker: generates the data set; None for one that is read.
        folder: its folder in the cache, by default its name. Two readings of one file share a folder.
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
        """The file of this name, by default the first.

        Raises:
            InputError: if there is no such file, or none at all.
        """
        if not self.sources:
            what = f"{self.name!r} has no file to download"
            raise InputError(what, remedy=self.read_here, code="DATASET_WITHOUT_FILE")
        known = {source.file: source for source in self.sources}
        if file is not None and file not in known:
            what = f"{self.name!r} has no file {file!r}"
            raise InputError(what, remedy=f"Its files: {', '.join(known)}", code="DATASET_UNKNOWN_FILE")
        return known[file] if file is not None else self.sources[0]


def json_list(of_record: OfRecord, *, key: str | None = None) -> Reader:
    """The reader of a JSON list of records; ``key`` is the field that names a record in messages."""

    def read(path: Path, skip_faulty: bool) -> Contents:
        return parse_records(path, of_record, key=key, skip_faulty=skip_faulty)

    return read
