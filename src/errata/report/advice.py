"""Which editor to take, from trials of several on the same facts: a table, and a recommendation in three sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from errata.benchmark.trials import LOST, Trial
from errata.results.metrics import Better, Metric
from errata.results.records import Summary
from errata.utils.text import size_text

ENOUGH: Final = 0.5  # of the edited prompts; an editor that recalls fewer is not recommended
SERVING: Final = {
    "weights": "Any server can serve it, because only weights change",
    "hooks": "Serving it needs errata, which adds hooks to the model",
    "prompt": "Serving it needs errata, or a proxy that rewrites prompts",
    "answer": "Serving it needs errata, or a proxy that rewrites answers",
}


@dataclass(frozen=True, slots=True)
class Quality:
    """A number by which editors are compared.

    Attributes:
        metric: its name in ``Trial.numbers``.
        heading: of the table's column.
        phrase: in sentences: "gives … of other wordings".
    """

    metric: str
    heading: str
    better: Better
    phrase: str


QUALITIES: Final = (
    Quality(Metric.EFFICACY_ACCURACY, "took", "higher", "edited prompts"),
    Quality(Metric.GENERALISATION_ACCURACY, "other wordings", "higher", "other wordings"),
    Quality(Metric.PORTABILITY_ACCURACY, "consequences", "higher", "consequences"),
    Quality(LOST, "answers lost", "lower", "answers lost"),
)
PERPLEXITY: Final = Metric.SPLIT_PERPLEXITY_RATIO
BROKEN: Final = 1.5  # ratio of split perplexities; an editor that exceeds it is not recommended


def is_better(one: Summary | None, other: Summary | None, better: Better) -> bool:
    """Whether one mean is better than another, with separate 95 % intervals."""
    if one is None or other is None:
        return False
    above, below = (one, other) if better == "higher" else (other, one)
    return above.low is not None and below.high is not None and above.low > below.high


def dominates(one: Trial, other: Trial) -> bool:
    """Whether one is better in some quality, and worse in none, by separate intervals."""
    pairs = [(one.numbers.get(each.metric), other.numbers.get(each.metric), each.better) for each in QUALITIES]
    return any(is_better(a, b, side) for a, b, side in pairs) and not any(is_better(b, a, side) for a, b, side in pairs)


def usable(trial: Trial) -> bool:
    """Whether a trial ended, most facts took, and the model still reads prose as before."""
    took = trial.numbers.get(Metric.EFFICACY_ACCURACY)
    broken = trial.numbers.get(PERPLEXITY)
    return took is not None and took.mean >= ENOUGH and (broken is None or broken.mean <= BROKEN)


def score(trial: Trial) -> float:
    """Harmonic mean of the qualities as shares that are better when higher; 0 if one of them is 0."""
    shares = [
        found.mean if each.better == "higher" else 1 - found.mean
        for each in QUALITIES
        if (found := trial.numbers.get(each.metric)) is not None
    ]
    return len(shares) / sum(1 / share for share in shares) if shares and all(share > 0 for share in shares) else 0.0


def recommended(trials: Sequence[Trial]) -> Trial | None:
    """The trial to follow: of those that no other dominates, the one with the best score. None if none is usable."""
    able = [trial for trial in trials if usable(trial)]
    free = [trial for trial in able if not any(dominates(other, trial) for other in able)]
    return max(free, key=score, default=None)


def not_separate(best: Trial, trials: Sequence[Trial]) -> list[Trial]:
    """The other usable trials whose intervals overlap with the best one's in every quality."""
    return [
        trial
        for trial in trials
        if trial is not best
        and usable(trial)
        and not any(
            is_better(best.numbers.get(each.metric), trial.numbers.get(each.metric), each.better)
            or is_better(trial.numbers.get(each.metric), best.numbers.get(each.metric), each.better)
            for each in QUALITIES
        )
    ]


def recommendation(small: Sequence[Trial], large: Sequence[Trial] = ()) -> str:
    """Three sentences: what to take and its numbers, what it is no better than, and what it costs.

    Args:
        small: trials on the user's facts.
        large: the same editors on more facts; may be empty.
    """
    best = recommended(small)
    if best is None:
        return (
            "None of these editors can be recommended: each failed, recalls fewer than half of the facts, or damages "
            "the model's reading of ordinary text. Check the facts' wording with `errata ask`, then try other settings."
        )
    return " ".join((_first(best), _second(best, small, large), _third(best)))


def _first(best: Trial) -> str:
    numbers = best.numbers
    parts = [
        f"{share(found)} of {each.phrase}" for each in QUALITIES[:-1] if (found := numbers.get(each.metric)) is not None
    ]
    lost = numbers.get(LOST)
    harm = f", and loses {share(lost)} of the control answers that the model knew" if lost is not None else ""
    return f"Take {best.method}: it gives the new answer to {_joined(parts)}{harm}."


def _second(best: Trial, small: Sequence[Trial], large: Sequence[Trial]) -> str:
    equal = not_separate(best, small)
    if equal:
        names = _joined([trial.method for trial in equal])
        text = f"With these {best.facts} facts its intervals do not separate from those of {names}"
    else:
        text = "No other editor is as good by these intervals"
    if later := next((trial for trial in large if trial.method == best.method), None):
        took = later.numbers.get(Metric.EFFICACY_ACCURACY)
        if took is None:
            return f"{text}; with {later.facts} facts it fails ({later.failure})."
        other = recommended(large)
        change = f"; with {later.facts} facts it recalls {share(took)}"
        if other is not None and other.method != best.method:
            change += f", and {other.method} is the better choice there"
        return f"{text}{change}."
    return f"{text}."


def _third(best: Trial) -> str:
    undo = "any edit can be undone later" if best.undo == "any" else "only the last edit can be undone"
    miss = 1000 * (best.query_seconds[1] - best.base_query_seconds)
    hit = 1000 * (best.query_seconds[0] - best.base_query_seconds)
    slower = f"it adds {max(hit, 0):.0f} ms to a query about an edited fact and {max(miss, 0):.0f} ms to others"
    return f"{SERVING[best.where]}; {slower}; {undo}."


def share(found: Summary) -> str:
    """A share as a percentage with its interval: ``90 % [80, 97]``."""
    interval = "" if found.low is None or found.high is None else f" [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    return f"{100 * found.mean:.0f} %{interval}"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


COST_HEADS: Final = ("editor", "s/fact", "ms/query", "others", "size", "undo", "changes")


def quality_table(trials: Sequence[Trial]) -> list[list[str]]:
    """Heads and one row per trial, in % with intervals; a quality that no trial has and failed trials are left out."""
    able = [trial for trial in trials if not trial.failure]
    shown = [each for each in QUALITIES if any(each.metric in trial.numbers for trial in able)]
    rows = [["editor", *(each.heading for each in shown), "perplexity"]]
    for trial in able:
        shares = [_percent(trial.numbers.get(each.metric)) for each in shown]
        ratio = trial.numbers.get(PERPLEXITY)
        rows.append([trial.method, *shares, "–" if ratio is None else f"× {ratio.mean:.2f}"])
    return rows


def _percent(found: Summary | None) -> str:
    """``90 [80,97]``; the mean alone without an interval."""
    if found is None:
        return "–"
    interval = "" if found.low is None or found.high is None else f" [{100 * found.low:.0f},{100 * found.high:.0f}]"
    return f"{100 * found.mean:.0f}{interval}"


def cost_table(trials: Sequence[Trial]) -> list[list[str]]:
    """Heads and one row per trial; failed trials are left out."""
    return [list(COST_HEADS), *_costs(trials)]


def _costs(trials: Sequence[Trial]) -> list[list[str]]:
    return [
        [
            trial.method,
            f"{trial.seconds_per_fact:.2g}",
            *(f"{1000 * seconds:.0f}" for seconds in trial.query_seconds),
            size_text(trial.stored_bytes),
            trial.undo,
            trial.where,
        ]
        for trial in trials
        if not trial.failure
    ]
