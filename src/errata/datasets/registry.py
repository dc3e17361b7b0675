"""All data sets that errata reads, one row each."""

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
    multi_counterfact,
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
        multi_counterfact.DATASET,
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
    """The row of a name.

    Raises:
        InputError: if there is none; says which are near.
    """
    if (found := DATASETS.get(name)) is not None:
        return found
    if looks_like_a_file(name):
        raise InputError(
            f"there is no data set {name!r}; a file needs the name of the data set whose form it has",
            remedy=f"Give both: errata data check NAME {name} (elsewhere NAME={name}), where NAME is one of "
            f"{', '.join(DATASETS)}",
        )
    begun = [known for known in DATASETS if name and known.startswith(name.lower())]
    close = begun or similar(name.lower(), DATASETS)
    nearest = f"Did you mean {' or '.join(close)}? " if close else ""
    remedy = f"{nearest}Known: {', '.join(DATASETS)}; or the path of a .jsonl, .json or .csv file of your own"
    raise InputError(f"there is no data set {name!r}", remedy=remedy)


def looks_like_a_file(name: str) -> bool:
    """Whether what was given for a name is rather a path: it has a suffix or a separator, or a file is there."""
    return name not in DATASETS and (bool(Path(name).suffix) or os.sep in name or "/" in name or is_file(Path(name)))


def is_own_file(name: str) -> bool:
    """Whether a name that is given for a data set is the path of the user's own file."""
    return name not in DATASETS and Path(name).suffix.lower() in _OWN_SUFFIXES


def local_path(dataset: DataSet, source: Source, directory: Path | None = None) -> Path:
    """Where a file of a data set lies once it has been downloaded.

    Args:
        directory: the folder of all data sets; the user's cache if None.
    """
    return (directory or cache_directory("data")) / (dataset.folder or dataset.name) / source.file
