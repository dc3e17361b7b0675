"""What a command line names, looked at before torch and transformers are imported: whether methods and files are there.

That takes no time, while the verb's own check, which looks into the files as well, begins after seconds of imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from errata.datasets.registry import is_own_file
from errata.errors import InputError, told_together
from errata.methods import method_named
from errata.output import is_there
from errata.recipe_settings import NAMED_CORPORA

READ: Final = frozenset(
    "analysis facts file grid patches probes recipe reference_corpus references results resume untouched".split()
)
"""Parameters of all verbs whose path has to be there; the others of type ``Path`` name what is written."""
_METHODS: Final = frozenset({"method", "methods"})
_DATA: Final = frozenset({"facts", "data"})


def check_inputs(params: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """Look whether the methods and files that are named exist.

    Args:
        params: parameter -> value.
        labels: parameter -> what the user knows it by.

    Raises:
        InputError: for one that does not.
        FaultsError: for several.
    """
    with told_together("the command line") as part:
        for name, value in params.items():
            if name in _METHODS and isinstance(value, str):
                for method in filter(None, map(str.strip, value.split(","))):
                    with part:
                        method_named(method)
            for path in _paths(name, value):
                with part:
                    if not is_there(path):
                        raise InputError(
                            f"{labels.get(name, name)}: there is no file or directory {str(path)!r}",
                            remedy="Check the name; it counts from the working directory",
                        )


def _paths(name: str, value: Any) -> Iterator[Path]:
    """The paths that a parameter names, and that are read."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, Path) and name in READ:
            yield one
        elif isinstance(one, str) and name in _DATA:
            for entry in filter(None, map(str.strip, one.split(","))):
                dataset, separator, path = entry.partition("=")
                if separator or is_own_file(dataset):
                    yield Path(path if separator else dataset)
        elif isinstance(one, str) and name == "corpus" and one not in NAMED_CORPORA:
            yield Path(one)
