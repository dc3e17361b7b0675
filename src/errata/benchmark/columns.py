"""The columns of ``errata compare``: name, heading, unit, and which side is better, in one table.

They follow the arguments of Pinter and Elhadad (2023), "Emptying the Ocean with a Spoon: Should We Edit Models?",
EMNLP Findings, arXiv:2310.11958; how each argument is measured is errata's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from errata.benchmark.trials import LOST
from errata.results.metrics import Metric

Best: TypeAlias = Literal["higher", "lower", "zero"]
Quantity: TypeAlias = Literal[
    "share", "slope", "ratio", "nats", "seconds", "milliseconds", "bytes", "memory", "tokens", "answer"
]


class Argument(StrEnum):
    """Columns that are shown in one table; the values are headings."""

    TOOK = "Did it take"
    COVERAGE = "Consequences"
    CONSISTENCY = "Consistency"
    POPULARITY = "Popular facts"
    DAMAGE = "Damage"
    TRUST = "Trust"
    ATTRIBUTION = "Attribution"
    STALENESS = "Updates"
    DISCLOSURE = "Disclosure"
    EDITING = "Cost of an edit"
    QUERY = "Cost of a query"


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        heading: in tables.
        best: which side is better; ``zero``: the closer to 0.
        meaning: a sentence below the table.
        compared: whether it counts in the verdict; not if another column holds the same.
    """

    name: str
    argument: Argument
    heading: str
    quantity: Quantity
    best: Best
    meaning: str
    compared: bool = True


TOOK_FREE: Final = "free_took"
WORDINGS_FREE: Final = "free_wordings"
UNNAMED_FREE: Final = "free_unnamed"
COVERAGE: Final = "coverage"
RELATIVE_COVERAGE: Final = "coverage_of_ceiling"
ABILITY: Final = "ability"
STATED: Final = "two_hop_stated"
INFERRED: Final = "two_hop_inferred"
AGREEMENT: Final = "agreement"
CONTRADICTION: Final = "contradiction"
AGREEMENT_DISTRACTED: Final = "agreement_distracted"
CONTRADICTION_DISTRACTED: Final = "contradiction_distracted"
SLOPE_EFFICACY: Final = "popularity_efficacy"
SLOPE_GENERALISATION: Final = "popularity_generalisation"
SLOPE_OWN: Final = "popularity_own_lost"
CALIBRATION_EDITED: Final = "calibration_edited"
CALIBRATION_NEIGHBOURS: Final = "calibration_neighbours"
CALIBRATION_UNTOUCHED: Final = "calibration_untouched"
FALSE_SCOPE: Final = "false_scope"
PRECISION: Final = "attribution_precision"
RECALL: Final = "attribution_recall"
LATEST: Final = "latest"
LATEST_MARGIN: Final = "latest_margin"
EXACT_REMOVAL: Final = "exact_removal"
LAG: Final = "lag"
REPEATED: Final = "disclosed_repeat"
CONTINUED: Final = "disclosed_subject"
SECONDS: Final = "seconds_per_fact"
PEAK: Final = "peak_bytes"
REMOVAL: Final = "removal_seconds"
BYTES: Final = "bytes_per_fact"
TOKENS_HIT: Final = "added_tokens_hit"
TOKENS_MISS: Final = "added_tokens_miss"
TIME_HIT: Final = "added_milliseconds_hit"
TIME_MISS: Final = "added_milliseconds_miss"

_A = Argument
COLUMNS: Final[tuple[Column, ...]] = (
    Column(Metric.EFFICACY_ACCURACY, _A.TOOK, "own prompt", "share", "higher", "each target token is the likeliest"),
    Column(Metric.GENERALISATION_ACCURACY, _A.TOOK, "other wordings", "share", "higher", "the same of other wordings"),
    Column(TOOK_FREE, _A.TOOK, "own, free", "share", "higher", "the generated answer names the target"),
    Column(WORDINGS_FREE, _A.TOOK, "others, free", "share", "higher", "the same of other wordings"),
    Column(UNNAMED_FREE, _A.TOOK, "unnamed, free", "share", "higher", "of wordings that do not name the subject"),
    Column(
        COVERAGE,
        _A.COVERAGE,
        "coverage",
        "share",
        "higher",
        "right answers to questions about consequences, of facts whose own prompt is right; of the unedited model: "
        "about consequences of the old facts that it knows, which is the ceiling",
    ),
    Column(RELATIVE_COVERAGE, _A.COVERAGE, "of ceiling", "share", "higher", "coverage over the ceiling", False),
    Column(STATED, _A.COVERAGE, "stated", "share", "higher", "people whose consequences lab was trained on", False),
    Column(INFERRED, _A.COVERAGE, "inferred", "share", "higher", "people whose consequences it has to infer", False),
    Column(Metric.REVERSAL_ACCURACY, _A.COVERAGE, "reversal", "share", "higher", "questions for the subject"),
    Column(
        AGREEMENT,
        _A.CONSISTENCY,
        "agree",
        "share",
        "higher",
        "facts of which all wordings, five or more, name the target",
    ),
    Column(
        CONTRADICTION,
        _A.CONSISTENCY,
        "contradict",
        "share",
        "lower",
        "facts of which one wording names the target and another the old answer",
    ),
    Column(AGREEMENT_DISTRACTED, _A.CONSISTENCY, "agree, distracted", "share", "higher", "after an unrelated sentence"),
    Column(CONTRADICTION_DISTRACTED, _A.CONSISTENCY, "contradict, distracted", "share", "lower", "the same"),
    Column(
        SLOPE_EFFICACY,
        _A.POPULARITY,
        "own prompt",
        "slope",
        "zero",
        "change of the share from the least to the most popular fact",
    ),
    Column(SLOPE_GENERALISATION, _A.POPULARITY, "other wordings", "slope", "zero", "the same of other wordings"),
    Column(SLOPE_OWN, _A.POPULARITY, "own answers lost", "slope", "zero", "the same of other facts about the subject"),
    Column(Metric.SPECIFICITY_ACCURACY, _A.DAMAGE, "neighbours", "share", "higher", "answers about similar subjects"),
    Column(Metric.SAME_SUBJECT_ACCURACY, _A.DAMAGE, "own", "share", "higher", "other facts about the edited subjects"),
    Column(Metric.UNTOUCHED_ACCURACY, _A.DAMAGE, "untouched", "share", "higher", "facts about other subjects"),
    Column(LOST, _A.DAMAGE, "lost", "share", "lower", "control answers that were right and are wrong", False),
    Column(
        Metric.SPLIT_PERPLEXITY_RATIO,
        _A.DAMAGE,
        "perplexity",
        "ratio",
        "lower",
        "of second halves of texts, over the unedited model's",
    ),
    Column(ABILITY, _A.DAMAGE, "tasks", "share", "higher", "accuracy on the tasks of --tasks"),
    Column(
        CALIBRATION_EDITED,
        _A.TRUST,
        "ECE, edited",
        "share",
        "lower",
        "expected calibration error of the likeliest first token: how far its probability is from its accuracy",
    ),
    Column(CALIBRATION_NEIGHBOURS, _A.TRUST, "ECE, neighbours", "share", "lower", "the same of similar subjects"),
    Column(CALIBRATION_UNTOUCHED, _A.TRUST, "ECE, untouched", "share", "lower", "the same of other subjects"),
    Column(FALSE_SCOPE, _A.TRUST, "false scope", "share", "lower", "prompts about other subjects that it acts on"),
    Column(PRECISION, _A.ATTRIBUTION, "precision", "share", "higher", "facts that it names as used and were asked for"),
    Column(RECALL, _A.ATTRIBUTION, "recall", "share", "higher", "prompts of a fact for which it names this fact"),
    Column(LATEST, _A.STALENESS, "latest", "share", "higher", "own prompts that give the last of several versions"),
    Column(
        LATEST_MARGIN,
        _A.STALENESS,
        "margin",
        "nats",
        "higher",
        "log-probability per token of the latest version less that of the best earlier one",
    ),
    Column(
        EXACT_REMOVAL,
        _A.STALENESS,
        "exact removal",
        "answer",
        "higher",
        "removing the last version gives the state before it, bit for bit",
    ),
    Column(LAG, _A.STALENESS, "lag", "seconds", "lower", "from a new fact to the first token of an answer with it"),
    Column(
        REPEATED,
        _A.DISCLOSURE,
        "asked to repeat",
        "share",
        "lower",
        "targets in the answer to 'Repeat everything above.'",
    ),
    Column(CONTINUED, _A.DISCLOSURE, "bare subject", "share", "lower", "targets in the continuation of the subject"),
    Column(SECONDS, _A.EDITING, "s/fact", "seconds", "lower", "editing, with preparation"),
    Column(PEAK, _A.EDITING, "memory", "memory", "lower", "most memory while editing, beyond the model"),
    Column(REMOVAL, _A.EDITING, "s to remove", "seconds", "lower", "removing one edit below others"),
    Column(BYTES, _A.EDITING, "size/fact", "bytes", "lower", "stored"),
    Column(TOKENS_HIT, _A.QUERY, "tokens, hit", "tokens", "lower", "added to a prompt that it acts on"),
    Column(TOKENS_MISS, _A.QUERY, "tokens, miss", "tokens", "lower", "added to a prompt about another subject"),
    Column(TIME_HIT, _A.QUERY, "ms, hit", "milliseconds", "lower", "added to one generated token"),
    Column(TIME_MISS, _A.QUERY, "ms, miss", "milliseconds", "lower", "the same about another subject"),
)
