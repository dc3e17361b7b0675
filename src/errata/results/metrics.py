"""The table of metrics: each metric's name, heading, unit, direction, group and requirements, in one place.

To add a metric, add a member to ``Metric``. Headings, units, the order of tables, the mark of the best value and the
reasons why a metric is absent are all derived from its entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
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
    REWRITES = "Answers before and after the edit"
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


# What the entries of a group have in common.
_edited = partial(MetricEntry, group=Group.EDITED)
_others = partial(MetricEntry, group=Group.OTHERS)
_changed = partial(MetricEntry, group=Group.CHANGES, better="lower")
_free = partial(MetricEntry, group=Group.FREE, ability="generation")
_rewrite = partial(MetricEntry, group=Group.REWRITES, ability="generation", needs=("old",))
_text = partial(MetricEntry, group=Group.TEXTS, ability="generation")
_drift = partial(MetricEntry, group=Group.OTHERS, unit=Unit.NATS, better="lower")
_side = partial(MetricEntry, group=Group.SIDE)
_concept = partial(MetricEntry, group=Group.SIDE, ability="generation")
_ratio = partial(MetricEntry, group=Group.OTHERS, unit=Unit.RATIO, better="lower")
_cost = partial(MetricEntry, group=Group.COST, ability=None)


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

    EFFICACY_SUCCESS = _edited(
        "efficacy_success",
        needs=("old",),
        short="eff. succ.",
        meaning="the edited prompt: the new answer is likelier than the old one",
    )
    EFFICACY_ACCURACY = _edited(
        "efficacy_accuracy", short="eff. acc.", meaning="the edited prompt: the model gives the new answer"
    )
    EFFICACY_TOKENS = _edited("efficacy_tokens")
    EFFICACY_ACCURACY_FIRST = _edited("efficacy_accuracy_first", title="efficacy of the first batch")
    EFFICACY_ACCURACY_LAST = _edited("efficacy_accuracy_last", title="efficacy of the last batch")
    GENERALISATION_SUCCESS = _edited(
        "generalisation_success",
        needs=("paraphrases", "old"),
        short="gen. succ.",
        meaning="paraphrases of it: the new answer is likelier than the old one",
    )
    GENERALISATION_ACCURACY = _edited(
        "generalisation_accuracy",
        needs=("paraphrases",),
        short="gen. acc.",
        meaning="its paraphrases: the model gives the new answer",
    )
    GENERALISATION_TOKENS = _edited("generalisation_tokens", needs=("paraphrases",))
    SPECIFICITY_SUCCESS = _others(
        "specificity_success",
        needs=("neighbours",),
        short="spec. succ.",
        meaning="other subjects in the same relation: their answer is likelier than the new one",
    )
    SPECIFICITY_ACCURACY_KNOWN = _others(
        "specificity_accuracy_known", title="specificity accuracy (known)", needs=("neighbours",), short="spec. known"
    )
    SPECIFICITY_ACCURACY = _others(
        "specificity_accuracy",
        needs=("neighbours",),
        short="spec. all",
        meaning="other subjects with the same relation: the model gives their answer",
    )
    SPECIFICITY_LOST = _changed("specificity_lost", needs=("neighbours",))
    SPECIFICITY_GAINED = _changed("specificity_gained", better=None, needs=("neighbours",))
    SPECIFICITY_CHANGED = _changed("specificity_changed", needs=("neighbours",))
    SCORE = _edited("score", short="score", meaning="harmonic mean of the three successes")
    PORTABILITY_ACCURACY = _edited("portability_accuracy", needs=("portability",))
    PORTABILITY_TOKENS = _edited("portability_tokens", needs=("portability",))
    SAME_SUBJECT_ACCURACY_KNOWN = _others(
        "same_subject_accuracy_known", title="same subject accuracy (known)", needs=("own",), short="same subj. known"
    )
    SAME_SUBJECT_ACCURACY = _others(
        "same_subject_accuracy",
        needs=("own",),
        short="same subj. all",
        meaning="other facts about the edited subjects: the model gives the correct answer",
    )
    SAME_SUBJECT_LOST = _changed("same_subject_lost", needs=("own",))
    SAME_SUBJECT_GAINED = _changed("same_subject_gained", better=None, needs=("own",))
    SAME_SUBJECT_CHANGED = _changed("same_subject_changed", needs=("own",))
    UNRELATED_ACCURACY_KNOWN = _others(
        "unrelated_accuracy_known", title="unrelated accuracy (known)", needs=("unrelated",)
    )
    UNRELATED_ACCURACY = _others("unrelated_accuracy", needs=("unrelated",))
    UNRELATED_LOST = _changed("unrelated_lost", needs=("unrelated",))
    UNRELATED_GAINED = _changed("unrelated_gained", better=None, needs=("unrelated",))
    UNRELATED_CHANGED = _changed("unrelated_changed", needs=("unrelated",))
    UNRELATED_TOKENS = _others("unrelated_tokens", needs=("unrelated",))
    UNRELATED_AGREEMENT = _others("unrelated_agreement", needs=("unrelated",))
    UNTOUCHED_ACCURACY_KNOWN = _others(
        "untouched_accuracy_known", title="untouched accuracy (known)", needs=("untouched",), short="untouched known"
    )
    UNTOUCHED_ACCURACY = _others(
        "untouched_accuracy",
        needs=("untouched",),
        short="untouched all",
        meaning="facts about subjects that were not edited: the model gives the correct answer",
    )
    UNTOUCHED_LOST = _changed("untouched_lost", needs=("untouched",))
    UNTOUCHED_GAINED = _changed("untouched_gained", better=None, needs=("untouched",))
    UNTOUCHED_CHANGED = _changed("untouched_changed", needs=("untouched",))
    FREE_EFFICACY_EXACT = _free("free_efficacy_exact")
    FREE_EFFICACY_CONTAINED = _free("free_efficacy_contained")
    FREE_EFFICACY_JUDGED = _free("free_efficacy_judged")
    FREE_GENERALISATION_EXACT = _free("free_generalisation_exact", needs=("paraphrases",))
    FREE_GENERALISATION_CONTAINED = _free("free_generalisation_contained", needs=("paraphrases",))
    FREE_GENERALISATION_JUDGED = _free("free_generalisation_judged", needs=("paraphrases",))
    FREE_PORTABILITY_EXACT = _free("free_portability_exact", needs=("portability",))
    FREE_PORTABILITY_CONTAINED = _free("free_portability_contained", needs=("portability",))
    FREE_PORTABILITY_JUDGED = _free("free_portability_judged", needs=("portability",))
    FREE_JUDGE_MISSING = _free("free_judge_missing", title="free answers without a verdict", better="lower")
    FREE_LOCALITY_NEIGHBOURS = _free(
        "free_locality_neighbours", title="free answers unchanged, neighbours", needs=("neighbours",)
    )
    FREE_LOCALITY_UNRELATED = _free(
        "free_locality_unrelated", title="free answers unchanged, unrelated", needs=("unrelated",)
    )
    FREE_LOCALITY_UNTOUCHED = _free(
        "free_locality_untouched", title="free answers unchanged, untouched", needs=("untouched",)
    )
    TEXTUAL_EDIT = _rewrite("textual_edit", title="textual edit (TE)")
    TEXTUAL_EDIT_OTHERS = _rewrite("textual_edit_others", title="textual edit of the other answers")
    TEXTUAL_EDIT_ALL = _rewrite("textual_edit_all", title="textual edit of all answers")
    TEXTUAL_RETENTION = _rewrite("textual_retention", title="textual retention (TR)")
    SEMANTIC_EDIT = _rewrite("semantic_edit", title="semantic edit (SE)")
    SEMANTIC_RETENTION = _rewrite("semantic_retention", title="semantic retention (SR)", unit=Unit.COSINE)
    SEMANTIC_EDIT_LM = _rewrite("semantic_edit_lm", title="stand-in for SE: likelihood")
    SEMANTIC_RETENTION_LM = _rewrite("semantic_retention_lm", title="stand-in for SR: likelihood", unit=Unit.NATS)
    SEMANTIC_RETENTION_HIDDEN = _rewrite(
        "semantic_retention_hidden", title="stand-in for SR: hidden states", unit=Unit.COSINE
    )
    FLUENCY = _text("fluency", unit=Unit.BITS, needs=("generation",))
    CONSISTENCY = _text("consistency", unit=Unit.COSINE, needs=("generation", "relation"))
    DRIFT_KL_NEIGHBOURS = _drift("drift_kl_neighbours", title="drift KL, neighbours", needs=("neighbours",))
    DRIFT_KL_UNRELATED = _drift("drift_kl_unrelated", title="drift KL, unrelated", needs=("unrelated",))
    DRIFT_KL_UNTOUCHED = _drift("drift_kl_untouched", title="drift KL, untouched", needs=("untouched",))
    DRIFT_TOP5_NEIGHBOURS = _others(
        "drift_top5_neighbours", title="drift top-5 overlap, neighbours", needs=("neighbours",)
    )
    DRIFT_TOP5_UNRELATED = _others("drift_top5_unrelated", title="drift top-5 overlap, unrelated", needs=("unrelated",))
    DRIFT_TOP5_UNTOUCHED = _others("drift_top5_untouched", title="drift top-5 overlap, untouched", needs=("untouched",))
    NEGATION_ACCURACY = _side("negation_accuracy", better=None, needs=("old",))
    REVERSAL_ACCURACY = _side("reversal_accuracy", needs=("reversal",))
    REVERSAL_TOKENS = _side("reversal_tokens", needs=("reversal",))
    MULTIPLE_CHOICE_ACCURACY = _side("multiple_choice_accuracy")
    MULTIPLE_CHOICE_LETTER_ACCURACY = _side("multiple_choice_letter_accuracy")
    CONCEPT_RELIABILITY = _side("concept_reliability")
    CONCEPT_GENERALISATION = _side("concept_generalisation")
    CONCEPT_LOCALITY = _side("concept_locality")
    CONCEPT_LOCALITY_TOKENS = _side("concept_locality_tokens")
    CONCEPT_INSTANCES = _concept("concept_instances", better="lower")
    CONCEPT_NON_INSTANCES = _concept("concept_non_instances")
    CONCEPT_INSTANCE_CHANGE = _concept("concept_instance_change")
    CONCEPT_NON_INSTANCE_CHANGE = _concept("concept_non_instance_change")
    CONCEPT_UNREADABLE = _concept("concept_unreadable", better="lower")
    CONCEPT_INSTANCES_STRICT = _concept("concept_instances_strict", better="lower")
    CONCEPT_NON_INSTANCES_STRICT = _concept("concept_non_instances_strict")
    CONCEPT_INSTANCES_TURNED = _concept("concept_instances_turned")
    CONCEPT_CONSISTENCY = _concept("concept_consistency")
    CONCEPT_CONTRAST = _concept("concept_contrast")
    PERPLEXITY_RATIO = _ratio(
        "perplexity_ratio",
        ability="rolling",
        short="ppl ratio",
        meaning="perplexity on held-out text, as a ratio to the unedited model's; 1 means no change",
    )
    SPLIT_PERPLEXITY_RATIO = _ratio(
        "split_perplexity_ratio",
        meaning="perplexity of the second half of held-out texts given the first, as a ratio to the unedited model's; "
        "1 means no change",
    )
    WEIGHT_NORM_RATIO = _cost(
        "weight_norm_ratio", title="weight change ‖ΔW‖ / ‖W‖", unit=Unit.RATIO, better=None, short="ΔW/W"
    )
    SECONDS_PER_EDIT = _cost(
        "seconds_per_edit",
        title="time per edit (without preparation)",
        unit=Unit.SECONDS,
        better="lower",
        short="s/edit",
        meaning="wall time of the edit per fact, without preparation",
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

_REWRITE_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    metric: tuple(f"{metric}:{kind}" for kind in ("own", "paraphrase", "neighbour"))
    for metric in (
        Metric.TEXTUAL_EDIT,
        Metric.TEXTUAL_RETENTION,
        Metric.SEMANTIC_EDIT,
        Metric.SEMANTIC_RETENTION,
        Metric.SEMANTIC_EDIT_LM,
    )
}
HARMONIC: Final[Mapping[str, tuple[str, ...]]] = {
    Metric.SCORE: SUCCESSES,
    **{f"{metric}:harmonic": parts for metric, parts in _REWRITE_KINDS.items()},
}
"""The metrics that are the harmonic mean of other metrics' means, with those."""
POOLED: Final[Mapping[str, tuple[str, ...]]] = {f"{metric}:pooled": parts for metric, parts in _REWRITE_KINDS.items()}
"""The metrics that are the mean over all prompts of other metrics, with those."""

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
