"""What the further measurements are called (``measurements.FURTHER``): for help that needs none of their code."""

from __future__ import annotations

from typing import Final

FURTHER_NAMES: Final = ("split_perplexity", "free", "texts", "drift", "side", "ability", "concepts")
