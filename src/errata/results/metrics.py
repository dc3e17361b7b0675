"""The table of metrics: each metric's name, heading, unit, direction, group and requirements, in one place.

To add a metric, add a member to ``Metric``. Headings, units, the order of tables, the mark of the best value and the
reasons why a metric is absent are all derived from its entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal, TypeAlias

Better: TypeAlias = Literal["higher", "lower"]
Ability: TypeAlias = Literal["likelihood", "generation", "rolling"]
"""``likelihood``: scores a target after a prompt. ``generation``: continues a prompt. ``rolling``: scores prose, which
has no prompt."""


class Unit(StrEnum):
    """The unit of a metric's values. Shares are stored from 0 to 1 and shown in per cent."""

    PERCENT = "%"
    RATIO = "ratio"
    SECONDS = "s"
    NATS = "nats"
    BITS = "bits · 100"
    COSINE = "cosine · 100"
    RAW = ""


class Group(StrEnum):
    """Metrics that are shown in one table; the values are headings, in the order of the page."""

    EDITED = "The edited facts"
    OTHERS = "Everything else"
    CHANGES = "Answers to control questions that changed"
    FREE = "Free-running answers"
    TEXTS = "Generated texts"
    SIDE = "Side tests"
    ABILITY = "General ability"
    COST = "Size of the change, and time"
    UNKNOWN = "Other metrics"


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """All that is known of a metric.

    Attributes:
        name: as in results files.
        title: the heading where it differs from the name with spaces.
        better: which side is better; None where that is unknown or debatable, so that no value is marked as best.
        ability: what a model must be able to do; None where the model is not queried.
        needs: fields that one fact must have for the metric (``untouched``: questions about other subjects).
        short: the heading in the terminal's comparison table; metrics without one are not in it.
        meaning: explanation in model cards.
    """

    name: str
    group: Group
    title: str = ""
    unit: Unit = Unit.PERCENT
    better: Better | None = "higher"
    ability: Ability | None = "likelihood"
    needs: tuple[str, ...] = ()
    short: str = ""
    meaning: str = ""

    @property
    def heading(self) -> str:
        """The metric's heading in tables and figures."""
        return self.title or self.name.replace("_", " ")

    @property
    def unit_text(self) -> str:
        """The unit after a heading; empty for numbers without a unit."""
        return "" if self.unit is Unit.RATIO else str(self.unit)

    def number(self, value: float) -> str:
        """A value in the metric's unit, without the unit's sign."""
        if self.unit is Unit.PERCENT:
            return f"{100 * value:.1f}"
        if self.unit is Unit.SECONDS:
            return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
        return f"{value:.3f}" if self.unit is Unit.RATIO and abs(value) < 100 else f"{value:.4g}"

    def interval(self, low: float | None, high: float | None) -> str:
        """``[91.0, 98.4]``; empty without an interval."""
        return "" if low is None or high is None else f"[{self.number(low)}, {self.number(high)}]"


class Metric(StrEnum):
    """The metrics, in the order of results files and tables. A member is the metric's name as a string."""

    entry: MetricEntry

    # Members are made from entries; by ``str``, type checkers see the lookup ``Metric("score")``.
    def __new__(cls, entry: MetricEntry | str) -> Metric:
        if isinstance(entry, str):
            raise TypeError("a metric needs a MetricEntry")
        metric = str.__new__(cls, entry.name)
        metric._value_ = entry.name
        metric.entry = entry
        return metric

    EFFICACY_SUCCESS = MetricEntry(
        "efficacy_success",
        Group.EDITED,
        needs=("old",),
        short="eff. succ.",
        meaning="the edited prompt: the new answer is likelier than the old one",
    )
    EFFICACY_ACCURACY = MetricEntry(
        "efficacy_accuracy",
        Group.EDITED,
        short="eff. acc.",
        meaning="the edited prompt: the new answer is what the model says",
    )
    EFFICACY_TOKENS = MetricEntry("efficacy_tokens", Group.EDITED)
    EFFICACY_ACCURACY_FIRST = MetricEntry("efficacy_accuracy_first", Group.EDITED, title="efficacy of the first batch")
    EFFICACY_ACCURACY_LAST = MetricEntry("efficacy_accuracy_last", Group.EDITED, title="efficacy of the last batch")
    GENERALISATION_SUCCESS = MetricEntry(
        "generalisation_success",
        Group.EDITED,
        needs=("paraphrases", "old"),
        short="gen. succ.",
        meaning="paraphrases of it: the new answer is likelier than the old one",
    )
    GENERALISATION_ACCURACY = MetricEntry(
        "generalisation_accuracy",
        Group.EDITED,
        needs=("paraphrases",),
        short="gen. acc.",
        meaning="paraphrases of it: the new answer is what the model says",
    )
    GENERALISATION_TOKENS = MetricEntry("generalisation_tokens", Group.EDITED, needs=("paraphrases",))
    SPECIFICITY_SUCCESS = MetricEntry(
        "specificity_success",
        Group.OTHERS,
        needs=("neighbours",),
        short="spec. succ.",
        meaning="other subjects in the same relation: their answer is likelier than the new one",
    )
    SPECIFICITY_ACCURACY_KNOWN = MetricEntry(
        "specificity_accuracy_known",
        Group.OTHERS,
        title="specificity accuracy (known)",
        needs=("neighbours",),
        short="spec. known",
    )
    SPECIFICITY_ACCURACY = MetricEntry(
        "specificity_accuracy",
        Group.OTHERS,
        needs=("neighbours",),
        short="spec. all",
        meaning="other subjects in the same relation: their answer is what the model says",
    )
    SPECIFICITY_LOST = MetricEntry("specificity_lost", Group.CHANGES, better="lower", needs=("neighbours",))
    SPECIFICITY_GAINED = MetricEntry("specificity_gained", Group.CHANGES, better=None, needs=("neighbours",))
    SPECIFICITY_CHANGED = MetricEntry("specificity_changed", Group.CHANGES, better="lower", needs=("neighbours",))
    SCORE = MetricEntry("score", Group.EDITED, short="score", meaning="harmonic mean of the three successes")
    PORTABILITY_ACCURACY = MetricEntry("portability_accuracy", Group.EDITED, needs=("portability",))
    PORTABILITY_TOKENS = MetricEntry("portability_tokens", Group.EDITED, needs=("portability",))
    SAME_SUBJECT_ACCURACY_KNOWN = MetricEntry(
        "same_subject_accuracy_known",
        Group.OTHERS,
        title="same subject accuracy (known)",
        needs=("own",),
        short="same subj. known",
    )
    SAME_SUBJECT_ACCURACY = MetricEntry(
        "same_subject_accuracy",
        Group.OTHERS,
        needs=("own",),
        short="same subj. all",
        meaning="other facts of the edited subjects: the model still says them",
    )
    SAME_SUBJECT_LOST = MetricEntry("same_subject_lost", Group.CHANGES, better="lower", needs=("own",))
    SAME_SUBJECT_GAINED = MetricEntry("same_subject_gained", Group.CHANGES, better=None, needs=("own",))
    SAME_SUBJECT_CHANGED = MetricEntry("same_subject_changed", Group.CHANGES, better="lower", needs=("own",))
    UNRELATED_ACCURACY_KNOWN = MetricEntry(
        "unrelated_accuracy_known", Group.OTHERS, title="unrelated accuracy (known)", needs=("unrelated",)
    )
    UNRELATED_ACCURACY = MetricEntry("unrelated_accuracy", Group.OTHERS, needs=("unrelated",))
    UNRELATED_LOST = MetricEntry("unrelated_lost", Group.CHANGES, better="lower", needs=("unrelated",))
    UNRELATED_GAINED = MetricEntry("unrelated_gained", Group.CHANGES, better=None, needs=("unrelated",))
    UNRELATED_CHANGED = MetricEntry("unrelated_changed", Group.CHANGES, better="lower", needs=("unrelated",))
    UNRELATED_TOKENS = MetricEntry("unrelated_tokens", Group.OTHERS, needs=("unrelated",))
    UNRELATED_AGREEMENT = MetricEntry("unrelated_agreement", Group.OTHERS, needs=("unrelated",))
    UNTOUCHED_ACCURACY_KNOWN = MetricEntry(
        "untouched_accuracy_known",
        Group.OTHERS,
        title="untouched accuracy (known)",
        needs=("untouched",),
        short="untouched known",
    )
    UNTOUCHED_ACCURACY = MetricEntry(
        "untouched_accuracy",
        Group.OTHERS,
        needs=("untouched",),
        short="untouched all",
        meaning="facts of subjects that were not edited: the model still says them",
    )
    UNTOUCHED_LOST = MetricEntry("untouched_lost", Group.CHANGES, better="lower", needs=("untouched",))
    UNTOUCHED_GAINED = MetricEntry("untouched_gained", Group.CHANGES, better=None, needs=("untouched",))
    UNTOUCHED_CHANGED = MetricEntry("untouched_changed", Group.CHANGES, better="lower", needs=("untouched",))
    FREE_EFFICACY_EXACT = MetricEntry("free_efficacy_exact", Group.FREE, ability="generation")
    FREE_EFFICACY_CONTAINED = MetricEntry("free_efficacy_contained", Group.FREE, ability="generation")
    FREE_EFFICACY_JUDGED = MetricEntry("free_efficacy_judged", Group.FREE, ability="generation")
    FREE_GENERALISATION_EXACT = MetricEntry(
        "free_generalisation_exact", Group.FREE, ability="generation", needs=("paraphrases",)
    )
    FREE_GENERALISATION_CONTAINED = MetricEntry(
        "free_generalisation_contained", Group.FREE, ability="generation", needs=("paraphrases",)
    )
    FREE_GENERALISATION_JUDGED = MetricEntry(
        "free_generalisation_judged", Group.FREE, ability="generation", needs=("paraphrases",)
    )
    FREE_PORTABILITY_EXACT = MetricEntry(
        "free_portability_exact", Group.FREE, ability="generation", needs=("portability",)
    )
    FREE_PORTABILITY_CONTAINED = MetricEntry(
        "free_portability_contained", Group.FREE, ability="generation", needs=("portability",)
    )
    FREE_PORTABILITY_JUDGED = MetricEntry(
        "free_portability_judged", Group.FREE, ability="generation", needs=("portability",)
    )
    FREE_JUDGE_MISSING = MetricEntry(
        "free_judge_missing", Group.FREE, title="free answers without a verdict", better="lower", ability="generation"
    )
    FREE_LOCALITY_NEIGHBOURS = MetricEntry(
        "free_locality_neighbours",
        Group.FREE,
        title="free answers unchanged, neighbours",
        ability="generation",
        needs=("neighbours",),
    )
    FREE_LOCALITY_UNRELATED = MetricEntry(
        "free_locality_unrelated",
        Group.FREE,
        title="free answers unchanged, unrelated",
        ability="generation",
        needs=("unrelated",),
    )
    FREE_LOCALITY_UNTOUCHED = MetricEntry(
        "free_locality_untouched",
        Group.FREE,
        title="free answers unchanged, untouched",
        ability="generation",
        needs=("untouched",),
    )
    FLUENCY = MetricEntry("fluency", Group.TEXTS, unit=Unit.BITS, ability="generation", needs=("generation",))
    CONSISTENCY = MetricEntry(
        "consistency", Group.TEXTS, unit=Unit.COSINE, ability="generation", needs=("generation", "relation")
    )
    DRIFT_KL_NEIGHBOURS = MetricEntry(
        "drift_kl_neighbours",
        Group.OTHERS,
        title="drift KL, neighbours",
        unit=Unit.NATS,
        better="lower",
        needs=("neighbours",),
    )
    DRIFT_KL_UNRELATED = MetricEntry(
        "drift_kl_unrelated",
        Group.OTHERS,
        title="drift KL, unrelated",
        unit=Unit.NATS,
        better="lower",
        needs=("unrelated",),
    )
    DRIFT_KL_UNTOUCHED = MetricEntry(
        "drift_kl_untouched",
        Group.OTHERS,
        title="drift KL, untouched",
        unit=Unit.NATS,
        better="lower",
        needs=("untouched",),
    )
    DRIFT_TOP5_NEIGHBOURS = MetricEntry(
        "drift_top5_neighbours", Group.OTHERS, title="drift top-5 overlap, neighbours", needs=("neighbours",)
    )
    DRIFT_TOP5_UNRELATED = MetricEntry(
        "drift_top5_unrelated", Group.OTHERS, title="drift top-5 overlap, unrelated", needs=("unrelated",)
    )
    DRIFT_TOP5_UNTOUCHED = MetricEntry(
        "drift_top5_untouched", Group.OTHERS, title="drift top-5 overlap, untouched", needs=("untouched",)
    )
    NEGATION_ACCURACY = MetricEntry("negation_accuracy", Group.SIDE, better=None, needs=("old",))
    REVERSAL_ACCURACY = MetricEntry("reversal_accuracy", Group.SIDE, needs=("reversal",))
    REVERSAL_TOKENS = MetricEntry("reversal_tokens", Group.SIDE, needs=("reversal",))
    MULTIPLE_CHOICE_ACCURACY = MetricEntry("multiple_choice_accuracy", Group.SIDE)
    MULTIPLE_CHOICE_LETTER_ACCURACY = MetricEntry("multiple_choice_letter_accuracy", Group.SIDE)
    CONCEPT_RELIABILITY = MetricEntry("concept_reliability", Group.SIDE)
    CONCEPT_GENERALISATION = MetricEntry("concept_generalisation", Group.SIDE)
    CONCEPT_LOCALITY = MetricEntry("concept_locality", Group.SIDE)
    CONCEPT_LOCALITY_TOKENS = MetricEntry("concept_locality_tokens", Group.SIDE)
    CONCEPT_INSTANCES = MetricEntry("concept_instances", Group.SIDE, better="lower", ability="generation")
    CONCEPT_NON_INSTANCES = MetricEntry("concept_non_instances", Group.SIDE, ability="generation")
    CONCEPT_INSTANCE_CHANGE = MetricEntry("concept_instance_change", Group.SIDE, ability="generation")
    CONCEPT_NON_INSTANCE_CHANGE = MetricEntry("concept_non_instance_change", Group.SIDE, ability="generation")
    CONCEPT_UNREADABLE = MetricEntry("concept_unreadable", Group.SIDE, better="lower", ability="generation")
    CONCEPT_CONSISTENCY = MetricEntry("concept_consistency", Group.SIDE, ability="generation")
    PERPLEXITY_RATIO = MetricEntry(
        "perplexity_ratio",
        Group.OTHERS,
        unit=Unit.RATIO,
        better="lower",
        ability="rolling",
        short="ppl ratio",
        meaning="perplexity on held-out text, over that before; 1 is no change",
    )
    SPLIT_PERPLEXITY_RATIO = MetricEntry(
        "split_perplexity_ratio",
        Group.OTHERS,
        unit=Unit.RATIO,
        better="lower",
        meaning="perplexity of the second half of held-out texts given the first, over that before; 1 is no change",
    )
    WEIGHT_NORM_RATIO = MetricEntry(
        "weight_norm_ratio",
        Group.COST,
        title="weight change ‖ΔW‖ / ‖W‖",
        unit=Unit.RATIO,
        better=None,
        ability=None,
        short="ΔW/W",
    )
    SECONDS_PER_EDIT = MetricEntry(
        "seconds_per_edit",
        Group.COST,
        title="time per edit (without preparation)",
        unit=Unit.SECONDS,
        better="lower",
        ability=None,
        short="s/edit",
        meaning="wall time of the edit over its facts, without preparation",
    )


SUCCESSES: Final = (Metric.EFFICACY_SUCCESS, Metric.GENERALISATION_SUCCESS, Metric.SPECIFICITY_SUCCESS)
CONTROLS: Final[Mapping[str, str]] = {
    metric: metric.removesuffix("_accuracy")
    for metric in (
        Metric.SPECIFICITY_ACCURACY,
        Metric.SAME_SUBJECT_ACCURACY,
        Metric.UNRELATED_ACCURACY,
        Metric.UNTOUCHED_ACCURACY,
    )
}
"""The accuracies of control questions, whose answers an edit should not change, by the kind of question. The names of
a kind's other metrics begin with it; see ``errata.evaluation.outcomes``."""
ACCURACIES: Final[Mapping[str, str]] = {
    metric: metric.entry.heading.removesuffix(" accuracy")
    for metric in (
        Metric.EFFICACY_ACCURACY,
        Metric.GENERALISATION_ACCURACY,
        Metric.SPECIFICITY_ACCURACY,
        Metric.SAME_SUBJECT_ACCURACY,
        Metric.UNTOUCHED_ACCURACY,
    )
}
"""The accuracies that figures show, with short names."""

_RANK: Final = {str(metric): rank for rank, metric in enumerate(Metric)}
_GROUP_RANK: Final = {group: rank for rank, group in enumerate(Group)}
# The number of a task of lm-evaluation-harness, or of the papers' probes (also by likelihood, or with GLUE's labels).
_TASK_SHARE: Final = re.compile(
    r".+[:/,](acc|acc_norm|f1|exact_match)(,none)?|.+:(accuracy|weighted_f1)(_likelihood)?(_glue)?"
)
_TASK_UNPARSABLE: Final = re.compile(r".+[:/,]unparsable")


def entry_of(name: str) -> MetricEntry:
    """The entry of a metric, of a variant of one (``metric:variant``) or of a task (``ability:TASK:METRIC``).

    An unknown metric gets its own name as heading, no unit, and no better side.
    """
    base, _, variant = name.partition(":")
    if base in _RANK:
        entry = Metric(base).entry
        return replace(entry, name=name, title=f"{entry.heading}, {variant}") if variant else entry
    if base == "ability" and variant:
        heading = variant.replace("_", " ")
        if _TASK_SHARE.fullmatch(variant):
            return MetricEntry(name, Group.ABILITY, heading, ability=None)
        if _TASK_UNPARSABLE.fullmatch(variant):
            return MetricEntry(name, Group.ABILITY, heading, better="lower", ability=None)
        return MetricEntry(name, Group.ABILITY, heading, Unit.RAW, better=None, ability=None)
    return MetricEntry(name, Group.UNKNOWN, unit=Unit.RAW, better=None, ability=None)


def metrics_of(prefix: str) -> tuple[Metric, ...]:
    """The metrics whose names begin with a prefix, in the order of ``Metric``."""
    return tuple(metric for metric in Metric if metric.startswith(prefix))


def in_order(metrics: Iterable[str]) -> list[str]:
    """Known metrics in the order of ``Metric``, each followed by its variants, then unknown ones by name."""
    return sorted(metrics, key=lambda metric: (_RANK.get(metric.partition(":")[0], len(_RANK)), metric))


def entries_by_group(metrics: Iterable[str]) -> list[MetricEntry]:
    """The metrics' entries by group, and within a group ``in_order``, but the score, which sums up others, first."""
    entries = map(entry_of, in_order(metrics))
    return sorted(entries, key=lambda entry: (_GROUP_RANK[entry.group], entry.name != Metric.SCORE))
