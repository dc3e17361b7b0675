"""All studies, in the order of the argument that they test."""

from __future__ import annotations

from collections.abc import Mapping

from errata.analysis.alignment import ALIGNMENT
from errata.analysis.contribution import CONTRIBUTION
from errata.analysis.factorial import FACTORIAL
from errata.analysis.hidden_shift import HIDDEN_SHIFT
from errata.analysis.single_layer import SINGLE_LAYER
from errata.analysis.spectrum import SPECTRUM
from errata.analysis.steps import STEPS
from errata.analysis.study import Study
from errata.analysis.weight_shift import WEIGHT_SHIFT
from errata.errors import InputError

STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        CONTRIBUTION, ALIGNMENT, SINGLE_LAYER, STEPS, WEIGHT_SHIFT, HIDDEN_SHIFT, SPECTRUM, FACTORIAL,
    )
}  # fmt: skip


def study_named(name: str) -> Study:
    """Raises InputError if there is no such study."""
    if name not in STUDIES:
        raise InputError(f"there is no study {name!r}", remedy=f"Known: {', '.join(STUDIES)}")
    return STUDIES[name]
