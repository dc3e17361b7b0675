"""The table of all data sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from errata.datasets import (
    conceptedit,
    counterfact,
    counterfact_edit,
    hardedit,
    jsonl,
    known,
    lab,
    me_ppl,
    mquake,
    qaedit,
    rippleedits,
    zsre,
)
from errata.datasets.data_set import DataSet, Source
from errata.errors import InputError
from errata.utils.files import cache_directory, is_file
from errata.utils.text import similar

DATASETS: Final[Mapping[str, DataSet]] = {
    row.name: row
    for row in (
        lab.DATASET,
        jsonl.DATASET,
        counterfact.DATASET,
        counterfact.MULTI,
        counterfact_edit.DATASET,
        zsre.ANSWERS,
        zsre.ALTERNATIVE,
        qaedit.DATASET,
        known.DATASET,
        conceptedit.DATASET,
        hardedit.DATASET,
        rippleedits.DATASET,
        mquake.DATASET,
        me_ppl.DATASET,
    )
}
_OWN_SUFFIXES: Final = (".jsonl", ".json", ".csv")


def dataset_named(name: str) -> DataSet:
    """The data set of a name.

    Raises:
        InputError: if there is none; suggests similar names.
    """
    if (found := DATASETS.get(name)) is not None:
        return found
    if looks_like_a_file(name):
        what = f"there is no data set {name!r}; for a file, also name the data set whose format it has"
        both = f"Give both: errata data check NAME {name} (elsewhere NAME={name})"
        remedy = f"{both}, where NAME is one of {', '.join(DATASETS)}"
        raise InputError(what, remedy=remedy, code="DATASET_UNKNOWN")
    begun = [known for known in DATASETS if name and known.startswith(name.lower())]
    close = begun or similar(name.lower(), DATASETS)
    nearest = f"Did you mean {' or '.join(close)}? " if close else ""
    remedy = f"{nearest}Known: {', '.join(DATASETS)}; or the path of your own .jsonl, .json or .csv file"
    raise InputError(f"there is no data set {name!r}", remedy=remedy, code="DATASET_UNKNOWN")


def looks_like_a_file(name: str) -> bool:
    """Whether a name is rather a path: it has a suffix or a separator, or such a file exists."""
    return name not in DATASETS and (bool(Path(name).suffix) or os.sep in name or "/" in name or is_file(Path(name)))


def split_file(text: str) -> tuple[str, str | None]:
    """``NAME=FILE`` as (name, file); anything else, such as the path ``runs/lr=0.1/facts.jsonl``, as (text, None)."""
    name, separator, path = text.partition("=")
    return (name, path) if separator and Path(name).name == name else (text, None)


def is_own_file(name: str) -> bool:
    """Whether a name of a data set is the path of the user's own file."""
    return name not in DATASETS and Path(name).suffix.lower() in _OWN_SUFFIXES


def local_path(dataset: DataSet, source: Source, directory: Path | None = None) -> Path:
    """The path of a data set's downloaded file.

    Args:
        directory: the folder of all data sets; the user's cache if None.
    """
    return (directory or cache_directory("data")) / (dataset.folder or dataset.name) / source.file
