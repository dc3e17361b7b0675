"""When, and with which software, a record was made."""

from __future__ import annotations

import platform
from datetime import UTC, datetime

import torch
import transformers

from errata._version import __version__


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def software_versions() -> dict[str, str]:
    """The versions of the software on which results depend."""
    return {
        "errata": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
