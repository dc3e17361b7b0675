"""Grids of experiments: models × data × methods × varied settings × seeds.

The names are here because the command line's help needs them without importing the measurements.
"""

from __future__ import annotations

from typing import Final

OPTIONAL_MEASUREMENTS: Final = ("split_perplexity", "free", "answers", "texts", "drift", "side", "ability", "concepts")
"""Names of ``measurements.OPTIONAL``."""
