"""What is known of each metric: its head, its unit and which way is better. Of an unknown one, nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from errata.evaluation.metrics import CONTROLS

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


def in_order(metrics: set[str]) -> list[Measure]:
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
