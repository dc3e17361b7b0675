"""The metrics' names, and the order in which tables show them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


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
a kind's other metrics begin with it; see ``errata.evaluation.changes``."""

SUCCESSES = (Metric.EFFICACY_SUCCESS, Metric.GENERALISATION_SUCCESS, Metric.SPECIFICITY_SUCCESS)


def in_order(metrics: set[str]) -> list[str]:
    """Known metrics as in ``Metric``, each followed by its variants (``metric:variant``), then others by name."""
    known = [str(metric) for metric in Metric]

    def place(metric: str) -> tuple[int, str]:
        base = metric.partition(":")[0]
        return known.index(base) if base in known else len(known), metric

    return sorted(metrics, key=place)
