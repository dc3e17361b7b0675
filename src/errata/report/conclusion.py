"""What a benchmark found, in one paragraph, by rules from its rows.

Nothing is called better unless the intervals say so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from errata.evaluation.metrics import CONTROLS, Metric
from errata.evaluation.outcomes import no_room
from errata.evaluation.results_file import Row
from errata.report.advice import LARGE, MUCH_PERPLEXITY
from errata.report.comparison import Interval, separate_best
from errata.report.measures import measure_of

_SMALL: Final = 50  # facts; an interval of a share over fewer is wider than 25 points

_By = Mapping[tuple[str, str], Row]
"""(metric, method) -> row."""


def conclusion(rows: Sequence[Row], stopped: Collection[str] = ()) -> str:
    """A paragraph on one model and one data set; empty where nothing was measured after the run.

    Args:
        stopped: methods of which a run stopped early; they are not compared.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    after: _By = {(row["metric"], row["method"]): row for row in rows if row["when"] == "after"}
    before = {row["metric"]: row["mean"] for row in rows if row["when"] == "before"}
    compared = [method for method in methods if method not in stopped]
    sentences = [
        *_edited(after, methods),
        *_ahead(after, compared),
        *_kept(after, methods),
        *_harm(after, methods),
        *([f"{_joined(sorted(stopped))} stopped early, because perplexity went over its limit."] if stopped else []),
        *_unable(before, {metric for metric, _ in after}),
        *_few(after),
    ]
    return " ".join(sentences)


def unable(rows: Sequence[Row]) -> dict[str, str]:
    """Metric -> why it can show nothing: it started at its floor or ceiling."""
    found = {}
    for row in rows:
        if row["when"] == "before" and (reason := no_room(row["metric"], row["mean"])):
            found[row["metric"]] = reason
    return found


def _edited(after: _By, methods: Sequence[str]) -> list[str]:
    own = _range(after, Metric.EFFICACY_ACCURACY, methods)
    if own is None:
        return []
    rephrased = _range(after, Metric.GENERALISATION_ACCURACY, methods)
    others = f", and to {rephrased} of their paraphrases" if rephrased else ""
    return [f"After the whole run the model gives the new answer to {own} of the edited prompts{others}."]


def _ahead(after: _By, methods: Sequence[str]) -> list[str]:
    """Which method is ahead in the first of a few overall metrics that was measured."""
    if len(methods) < 2:
        return []
    for metric in (Metric.SCORE, Metric.EFFICACY_ACCURACY):
        rows = [after.get((metric, method)) for method in methods]
        if not any(rows):
            continue
        best = separate_best(
            [None if row is None else Interval(row["mean"], row["low"], row["high"]) for row in rows], "higher"
        )
        name = measure_of(metric).head
        if best is None:
            return [f"In {name} no method is ahead of all others beyond the 95 % intervals."]
        return [f"In {name} {methods[best]} is ahead of all others beyond the 95 % intervals."]
    return []


def _kept(after: _By, methods: Sequence[str]) -> list[str]:
    parts = []
    for accuracy, kind in CONTROLS.items():
        found = _range(after, f"{accuracy}_known", methods, least="most harm by")
        if found is not None:
            parts.append(f"{found} of {kind.replace('_', ' ')} questions")
    if not parts:
        return []
    return [f"Of the control answers that were correct before editing it still gives {_joined(parts)}."]


def _harm(after: _By, methods: Sequence[str]) -> list[str]:
    found = []
    for metric, limit, what in (
        (Metric.PERPLEXITY_RATIO, MUCH_PERPLEXITY, "perplexity above {limit:g} times that of the unedited model"),
        (Metric.WEIGHT_NORM_RATIO, LARGE, "a change of more than {limit:g} of the weights' norm"),
    ):
        over = [
            f"{method} ({row['mean']:.2f})"
            for method in methods
            if (row := after.get((metric, method))) is not None and row["mean"] > limit
        ]
        if over:
            found.append(f"Warning: {what.format(limit=limit)} after {_joined(over)}.")
    return found


def _unable(before: Mapping[str, float], measured: Collection[str]) -> list[str]:
    found = [
        f"{measure_of(metric).head} (from {100 * mean:.1f} %)"
        for metric, mean in before.items()
        if metric in measured and no_room(metric, mean)
    ]
    if not found:
        return []
    return [f"No effect can be seen, because of where it began, in {_joined(found)}."]


def _few(after: _By) -> list[str]:
    counts = [row["n"] for (metric, _), row in after.items() if metric == Metric.EFFICACY_ACCURACY]
    if not counts or min(counts) >= _SMALL:
        return []
    return [f"These are only {min(counts)} facts: differences within the intervals mean nothing."]


def _range(after: _By, metric: str, methods: Sequence[str], least: str = "least by") -> str | None:
    """``62.0 to 95.0 % (least by memit)``."""
    found = sorted((row["mean"], method) for method in methods if (row := after.get((metric, method))) is not None)
    if not found:
        return None
    measure = measure_of(metric)
    low, high = measure.number(found[0][0]), measure.number(found[-1][0])
    if low == high:
        return f"{low} %"
    return f"{low} to {high} % ({least} {found[0][1]})"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
