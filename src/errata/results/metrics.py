"""The metrics' names, and the order in which tables show them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal


class Metric(StrEnum):
    """The metrics' names, in the order in which tables show them."""

    EFFICACY_SUCCESS = "efficacy_success"
    EFFICACY_ACCURACY = "efficacy_accuracy"
    EFFICACY_TOKENS = "efficacy_tokens"
    EFFICACY_ACCURACY_FIRST = "efficacy_accuracy_first"
    EFFICACY_ACCURACY_LAST = "efficacy_accuracy_last"
    GENERALISATION_SUCCESS = "generalisation_success"
    GENERALISATION_ACCURACY = "generalisation_accuracy"
    GENERALISATION_TOKENS = "generalisation_tokens"
    SPECIFICITY_SUCCESS = "specificity_success"
    SPECIFICITY_ACCURACY_KNOWN = "specificity_accuracy_known"
    SPECIFICITY_ACCURACY = "specificity_accuracy"
    SPECIFICITY_LOST = "specificity_lost"
    SPECIFICITY_GAINED = "specificity_gained"
    SPECIFICITY_CHANGED = "specificity_changed"
    SCORE = "score"
    PORTABILITY_ACCURACY = "portability_accuracy"
    PORTABILITY_TOKENS = "portability_tokens"
    SAME_SUBJECT_ACCURACY_KNOWN = "same_subject_accuracy_known"
    SAME_SUBJECT_ACCURACY = "same_subject_accuracy"
    SAME_SUBJECT_LOST = "same_subject_lost"
    SAME_SUBJECT_GAINED = "same_subject_gained"
    SAME_SUBJECT_CHANGED = "same_subject_changed"
    UNRELATED_ACCURACY_KNOWN = "unrelated_accuracy_known"
    UNRELATED_ACCURACY = "unrelated_accuracy"
    UNRELATED_LOST = "unrelated_lost"
    UNRELATED_GAINED = "unrelated_gained"
    UNRELATED_CHANGED = "unrelated_changed"
    UNRELATED_TOKENS = "unrelated_tokens"
    UNRELATED_AGREEMENT = "unrelated_agreement"
    UNTOUCHED_ACCURACY_KNOWN = "untouched_accuracy_known"
    UNTOUCHED_ACCURACY = "untouched_accuracy"
    UNTOUCHED_LOST = "untouched_lost"
    UNTOUCHED_GAINED = "untouched_gained"
    UNTOUCHED_CHANGED = "untouched_changed"
    FREE_EFFICACY_EXACT = "free_efficacy_exact"
    FREE_EFFICACY_CONTAINED = "free_efficacy_contained"
    FREE_EFFICACY_JUDGED = "free_efficacy_judged"
    FREE_GENERALISATION_EXACT = "free_generalisation_exact"
    FREE_GENERALISATION_CONTAINED = "free_generalisation_contained"
    FREE_GENERALISATION_JUDGED = "free_generalisation_judged"
    FREE_PORTABILITY_EXACT = "free_portability_exact"
    FREE_PORTABILITY_CONTAINED = "free_portability_contained"
    FREE_PORTABILITY_JUDGED = "free_portability_judged"
    FREE_JUDGE_MISSING = "free_judge_missing"
    FREE_LOCALITY_NEIGHBOURS = "free_locality_neighbours"
    FREE_LOCALITY_UNRELATED = "free_locality_unrelated"
    FREE_LOCALITY_UNTOUCHED = "free_locality_untouched"
    FLUENCY = "fluency"
    CONSISTENCY = "consistency"
    DRIFT_KL_NEIGHBOURS = "drift_kl_neighbours"
    DRIFT_KL_UNRELATED = "drift_kl_unrelated"
    DRIFT_KL_UNTOUCHED = "drift_kl_untouched"
    DRIFT_TOP5_NEIGHBOURS = "drift_top5_neighbours"
    DRIFT_TOP5_UNRELATED = "drift_top5_unrelated"
    DRIFT_TOP5_UNTOUCHED = "drift_top5_untouched"
    NEGATION_ACCURACY = "negation_accuracy"
    REVERSAL_ACCURACY = "reversal_accuracy"
    REVERSAL_TOKENS = "reversal_tokens"
    MULTIPLE_CHOICE_ACCURACY = "multiple_choice_accuracy"
    MULTIPLE_CHOICE_LETTER_ACCURACY = "multiple_choice_letter_accuracy"
    CONCEPT_RELIABILITY = "concept_reliability"
    CONCEPT_GENERALISATION = "concept_generalisation"
    CONCEPT_LOCALITY = "concept_locality"
    CONCEPT_LOCALITY_TOKENS = "concept_locality_tokens"
    CONCEPT_INSTANCES = "concept_instances"
    CONCEPT_NON_INSTANCES = "concept_non_instances"
    CONCEPT_INSTANCE_CHANGE = "concept_instance_change"
    CONCEPT_NON_INSTANCE_CHANGE = "concept_non_instance_change"
    CONCEPT_UNREADABLE = "concept_unreadable"
    CONCEPT_CONSISTENCY = "concept_consistency"
    PERPLEXITY_RATIO = "perplexity_ratio"
    WEIGHT_NORM_RATIO = "weight_norm_ratio"
    SECONDS_PER_EDIT = "seconds_per_edit"


NOT_SHARES = frozenset(
    {
        Metric.FLUENCY,
        Metric.CONSISTENCY,
        Metric.DRIFT_KL_NEIGHBOURS,
        Metric.DRIFT_KL_UNRELATED,
        Metric.DRIFT_KL_UNTOUCHED,
        Metric.PERPLEXITY_RATIO,
        Metric.WEIGHT_NORM_RATIO,
        Metric.SECONDS_PER_EDIT,
    }
)
"""Metrics whose values are no shares of 1, to be shown as they are and not in per cent."""


ACCURACIES: Mapping[str, str] = {
    Metric.EFFICACY_ACCURACY: "efficacy",
    Metric.GENERALISATION_ACCURACY: "generalisation",
    Metric.SPECIFICITY_ACCURACY: "specificity",
    Metric.SAME_SUBJECT_ACCURACY: "same subject",
    Metric.UNTOUCHED_ACCURACY: "untouched",
}
"""What figures show of an edit, by short names."""

CONTROLS: Mapping[str, str] = {
    Metric.SPECIFICITY_ACCURACY: "specificity",
    Metric.SAME_SUBJECT_ACCURACY: "same_subject",
    Metric.UNRELATED_ACCURACY: "unrelated",
    Metric.UNTOUCHED_ACCURACY: "untouched",
}
"""The accuracies of control questions, whose answers an edit should leave alone, by the kind of question. The names of
a kind's other metrics begin with it; see ``errata.evaluation.outcomes``."""

SUCCESSES = (Metric.EFFICACY_SUCCESS, Metric.GENERALISATION_SUCCESS, Metric.SPECIFICITY_SUCCESS)


def in_order(metrics: set[str]) -> list[str]:
    """Known metrics as in ``Metric``, each followed by its variants (``metric:variant``), then others by name."""
    known = [str(metric) for metric in Metric]

    def place(metric: str) -> tuple[int, str]:
        base = metric.partition(":")[0]
        return known.index(base) if base in known else len(known), metric

    return sorted(metrics, key=place)


# ----------------------------------------------------------------------------------------------------
# What is known of each metric: its head, its unit and which way is better. Of an unknown one, nothing is guessed.


Better = Literal["higher", "lower"]


class Unit(StrEnum):
    """How a metric's numbers are written."""

    PERCENT = "%"
    RATIO = "ratio"
    SECONDS = "s"
    RAW = ""


class Group(StrEnum):
    """What is measured together; the values are headings, in the order of the page."""

    EDITED = "The edited facts"
    OTHERS = "Everything else"
    CHANGES = "Answers to control questions that changed"
    FREE = "Free-running answers"
    TEXTS = "Texts that the model writes"
    SIDE = "Side tests"
    ABILITY = "General ability"
    COST = "Size of the change, and time"
    UNKNOWN = "Other metrics"


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric as it is shown.

    Attributes:
        name: as results files name it.
        head: its column's head.
        better: which way is better; None where that is not known or not so simple, and nothing is marked as best.
    """

    name: str
    head: str
    group: Group
    unit: Unit
    better: Better | None

    @property
    def unit_text(self) -> str:
        """What stands behind the head: ``%``, ``s``; nothing for a number without a unit."""
        return "" if self.unit in (Unit.RAW, Unit.RATIO) else str(self.unit)

    def number(self, value: float) -> str:
        """A value in the metric's unit, without the unit's sign."""
        if self.unit is Unit.PERCENT:
            return f"{100 * value:.1f}"
        if self.unit is Unit.SECONDS:
            return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
        return f"{value:.3f}" if self.unit is Unit.RATIO and abs(value) < 100 else f"{value:.4g}"

    def interval(self, low: float | None, high: float | None) -> str:
        """``[91.0, 98.4]``; empty where no interval can be told."""
        return "" if low is None or high is None else f"[{self.number(low)}, {self.number(high)}]"


_SUBJECTS: Final = (
    ("efficacy", Group.EDITED),
    ("generalisation", Group.EDITED),
    ("portability", Group.EDITED),
    ("specificity", Group.OTHERS),
    ("same_subject", Group.OTHERS),
    ("untouched", Group.OTHERS),
    ("unrelated", Group.OTHERS),
)
_SHARES: Final = (
    ("accuracy_known", "accuracy, known before"),
    ("accuracy", "accuracy"),
    ("success", "success"),
    ("tokens", "tokens"),
    ("agreement", "agreement"),
)
_CHANGES: Final[tuple[tuple[str, Better | None], ...]] = (("lost", "lower"), ("gained", None), ("changed", "lower"))
_KNOWN: Final[Mapping[str, Measure]] = {
    measure.name: measure
    for measure in (
        Measure("score", "score", Group.EDITED, Unit.PERCENT, "higher"),
        *(
            Measure(f"{subject}_{kind}", f"{subject.replace('_', ' ')} {head}", group, Unit.PERCENT, "higher")
            for subject, group in _SUBJECTS
            for kind, head in _SHARES
            if kind != "accuracy_known" or subject in CONTROLS.values()
        ),
        # A wrong answer that became right is a change too: nothing is best.
        *(
            Measure(f"{kind}_{name}", f"{kind.replace('_', ' ')} {name}", Group.CHANGES, Unit.PERCENT, better)
            for kind in CONTROLS.values()
            for name, better in _CHANGES
        ),
        Measure("efficacy_accuracy_first", "efficacy of the first batch", Group.EDITED, Unit.PERCENT, "higher"),
        Measure("efficacy_accuracy_last", "efficacy of the last batch", Group.EDITED, Unit.PERCENT, "higher"),
        *(
            Measure(f"free_{subject}_{kind}", f"{subject} {head}", Group.FREE, Unit.PERCENT, "higher")
            for subject in ("efficacy", "generalisation", "portability")
            for kind, head in (("exact", "exact"), ("contained", "contained"), ("judged", "judged"))
        ),
        Measure("perplexity_ratio", "perplexity ratio", Group.OTHERS, Unit.RATIO, "lower"),
        # How much was changed is told, not judged: a larger change can be a better edit.
        Measure("weight_norm_ratio", "weight change ‖ΔW‖ / ‖W‖", Group.COST, Unit.RATIO, None),
        Measure("fluency", "fluency", Group.TEXTS, Unit.RAW, "higher"),
        Measure("consistency", "consistency", Group.TEXTS, Unit.RAW, "higher"),
        Measure("seconds_per_edit", "time per edit (without preparation)", Group.COST, Unit.SECONDS, "lower"),
    )
}
# The first that fits. Whether a negated prompt should get the new answer is a question of definition: no best mark.
_PATTERNS: Final[tuple[tuple[re.Pattern[str], Group, Unit, Better | None], ...]] = (
    (re.compile(r"drift_kl(_.+)?"), Group.OTHERS, Unit.RAW, "lower"),
    (re.compile(r"drift_top5(_.+)?"), Group.OTHERS, Unit.PERCENT, "higher"),
    (re.compile(r"negation_.*(accuracy|success|tokens)"), Group.SIDE, Unit.PERCENT, None),
    (re.compile(r"(reversal|multiple_choice)_.*(accuracy|success|tokens)"), Group.SIDE, Unit.PERCENT, "higher"),
    (re.compile(r"(negation|reversal|multiple_choice)_.+"), Group.SIDE, Unit.RAW, None),
    (re.compile(r"ability:.+[:/,](acc|acc_norm|f1|exact_match)(,none)?"), Group.ABILITY, Unit.PERCENT, "higher"),
    # The papers' probes: what was said, the likelier word (_likelihood), and against GLUE's own labels (_glue).
    (
        re.compile(r"ability:.+:(accuracy|weighted_f1)(_likelihood)?(_glue)?"),
        Group.ABILITY,
        Unit.PERCENT,
        "higher",
    ),
    (re.compile(r"ability:.+[:/,]unparsable"), Group.ABILITY, Unit.PERCENT, "lower"),
    (re.compile(r"ability:.+"), Group.ABILITY, Unit.RAW, None),
    (re.compile(r"free_judge_missing(:.+)?"), Group.FREE, Unit.PERCENT, "lower"),
    (re.compile(r"free_locality_.+"), Group.FREE, Unit.PERCENT, "higher"),
    (re.compile(r"free_.+_(exact|contained|judged):.+"), Group.FREE, Unit.PERCENT, "higher"),
    (
        re.compile(r"concept_(reliability|generalisation|locality|locality_tokens|non_instances|consistency)"),
        Group.SIDE,
        Unit.PERCENT,
        "higher",
    ),
    (re.compile(r"concept_(instances|unreadable)"), Group.SIDE, Unit.PERCENT, "lower"),
    # From -1 to 1; more instances that left, and more non-instances that came, are what the edit is for.
    (re.compile(r"concept_(non_)?instance_change"), Group.SIDE, Unit.PERCENT, "higher"),
    (re.compile(r"free_.+"), Group.FREE, Unit.RAW, None),
)
_ORDER: Final = list(_KNOWN)


def measure_of(metric: str) -> Measure:
    """What is known of a metric; an unknown one is shown by its own name, raw, and nothing of it is marked."""
    if metric in _KNOWN:
        return _KNOWN[metric]
    for pattern, group, unit, better in _PATTERNS:
        if pattern.fullmatch(metric):
            return Measure(metric, _head(metric), group, unit, better)
    return Measure(metric, metric.replace("_", " "), Group.UNKNOWN, Unit.RAW, None)


def _head(metric: str) -> str:
    """``free_efficacy_exact:chat`` as ``efficacy exact, chat``; a task keeps its own name."""
    if metric.startswith("ability:"):
        return metric.removeprefix("ability:").replace("_", " ")
    name, _, context = metric.removeprefix("free_").partition(":")
    name = name.replace("locality", "same text as before:") if name.startswith("locality_") else name
    return name.replace("_", " ").replace(":  ", ": ") + (f", {context}" if context else "")


def measures_in_order(metrics: set[str]) -> list[Measure]:
    """By group; within one, known metrics in the order of this table, then others by name."""
    groups = list(Group)
    return sorted(
        map(measure_of, metrics),
        key=lambda one: (
            groups.index(one.group),
            _ORDER.index(one.name) if one.name in _KNOWN else len(_ORDER),
            one.name,
        ),
    )
