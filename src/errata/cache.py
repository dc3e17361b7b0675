"""Where errata keeps what it can make or get again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory(name: str) -> Path:
    """``$ERRATA_CACHE/<name>``, else the same in the user's cache directory. It may not be there yet."""
    if given := os.environ.get("ERRATA_CACHE"):
        return Path(given) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "errata" / name
