"""errata corrects what a language model knows: facts are edited into its weights, and what else changed is shown."""

from __future__ import annotations

__version__ = "0.1.0"
