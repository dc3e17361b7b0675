"""How many examples hypothesis tries; no part of errata is imported here."""

from __future__ import annotations

import os

# Examples are divided by it: 1 in the whole suite, more in the fast tier (``make test-fast``).
DIVISOR = int(os.environ.get("ERRATA_FUZZ_DIVISOR", "1"))


def examples(count: int) -> int:
    """So many of ``count`` examples, at least five."""
    return max(min(count, 5), count // DIVISOR)
