"""Which data set a file looks like: those whose readers take its first records without a fault."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from errata.datasets import jsonl
from errata.datasets.json_records import first_values
from errata.datasets.registry import DATASETS
from errata.datasets.row import DataSet
from errata.errors import InputError

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
