"""Studies that test the argument for boundary updates, in the order of that argument.

The titles are here because the command line's help needs them without importing the studies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

STUDY_TITLES: Final[Mapping[str, str]] = {
    "contribution": "Contribution of one layer's residual",
    "alignment": "Distance of spread from computed residuals",
    "single-layer": "Editing a single layer",
    "steps": "Remaining optimisation after earlier layers are written",
    "weight-shift": "Error of an update made with a spread residual",
    "hidden-shift": "Change of hidden states after a run",
    "spectrum": "Size and rank of a run's weight change",
    "factorial": "Decomposition of the boundary gain",
}
