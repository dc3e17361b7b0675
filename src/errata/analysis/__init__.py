"""Studies that test the argument for boundary updates, in the order of that argument.

The titles are here because the command line's help needs them without importing the studies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

STUDY_TITLES: Final[Mapping[str, str]] = {
    "contribution": "What one layer's residual contributes",
    "alignment": "How far spread residuals are from computed ones",
    "single-layer": "One layer written alone",
    "steps": "How much is left to do once earlier layers are written",
    "weight-shift": "How far the spread residual leads an update astray",
    "hidden-shift": "How far a run moves what it was not to touch",
    "spectrum": "How large the change of a run is, and in how many directions",
    "factorial": "What the boundary gain is made of",
}
