"""Where errata keeps what it can make or get again."""

from __future__ import annotations

import os
from pathlib import Path

from errata.errors import InputError


def cache_directory(name: str) -> Path:
    """``$ERRATA_CACHE/<name>``, else the same in the user's cache directory. It may not be there yet.

    Raises:
        InputError: if neither is known: the user has no home directory.
    """
    if given := os.environ.get("ERRATA_CACHE"):
        return Path(given) / name
    if known := os.environ.get("XDG_CACHE_HOME"):
        return Path(known) / "errata" / name
    try:
        return Path.home() / ".cache" / "errata" / name
    except RuntimeError as error:
        raise InputError(
            "there is no home directory, and so no cache", remedy="Set ERRATA_CACHE to a directory for it"
        ) from error
