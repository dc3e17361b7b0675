"""What is known before any work: that a measurement can ask nothing at all of a material."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.benchmark.material import Material
from errata.evaluation.concepts import absent_concepts
from errata.evaluation.fluency import absent_fluency
from errata.evaluation.kept import KeptKind, missing_kinds
from errata.evaluation.metrics import Metric
from errata.evaluation.side_tests import absent_side_tests


def no_texts(material: Material) -> str | None:
    """Why no text can be written; without one there is no consistency either."""
    return absent_fluency(material.facts).get(Metric.FLUENCY)


def no_drift(material: Material) -> str | None:
    """Why there is no prompt behind which nothing should change."""
    return _if_all([*KeptKind], missing_kinds(material.facts, material.untouched))


def no_side_tests(material: Material) -> str | None:
    """Why there is no side test."""
    metrics = [metric for metric in Metric if metric.startswith(("negation_", "reversal_", "multiple_choice_"))]
    return _if_all(metrics, absent_side_tests(material.facts))


def no_concepts(material: Material) -> str | None:
    """Why no concept can be asked of."""
    metrics = [metric for metric in Metric if metric.startswith("concept_")]
    return _if_all(metrics, absent_concepts(material.concepts))


def _if_all(names: list[Any], reasons: Mapping[Any, str]) -> str | None:
    """The reasons, if every one of the names has one."""
    if any(name not in reasons for name in names):
        return None
    return "; ".join(dict.fromkeys(reasons[name] for name in names))
