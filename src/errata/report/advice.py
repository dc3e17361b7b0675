"""Which editor to take, from trials of several on the same facts: a table, and a recommendation in three sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from errata.analysis.findings import Figure, Panel, Series
from errata.benchmark.trials import LOST, Trial
from errata.editing.methods import METHOD_NAMES
from errata.report.bench_run import shown_name
from errata.report.trial_page import PagePart, PageTable, trial_page
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
    Quality(Metric.REVERSAL_ACCURACY, "reversal", "higher", "questions for the subject"),
    Quality(LOST, "answers lost", "lower", "answers lost"),
)
_LEAST: Final = 0.01  # share that counts in a score, so that a quality in which all editors fail decides nothing
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
    """Harmonic mean of the qualities as shares that are better when higher; 0 without any."""
    shares = [
        max(found.mean if each.better == "higher" else 1 - found.mean, _LEAST)
        for each in QUALITIES
        if (found := trial.numbers.get(each.metric)) is not None
    ]
    return len(shares) / sum(1 / share for share in shares) if shares else 0.0


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


def choice(small: Sequence[Trial], large: Sequence[Trial] = ()) -> tuple[Trial | None, str]:
    """The trial on the user's facts to follow, and why it is this one of those that their intervals do not separate.

    A few facts seldom separate editors, and the best mean of several is then mostly luck. So a separate difference on
    more facts decides, and without one locate-then-edit comes first, which did best on a hundred facts.
    """
    best = recommended(small)
    if best is None or not (others := not_separate(best, small)):
        return best, ""
    tied = {trial.method: trial for trial in small if trial is best or trial in others}
    later = [trial for trial in large if trial.method in tied]
    found = recommended(later)
    if found is not None and len(later) > 1 and not not_separate(found, later):
        return tied[found.method], f"it is named because it is the better one with {found.facts} facts"
    if first := next((trial for name, trial in tied.items() if name in METHOD_NAMES), None):
        return first, "it is named because locate-then-edit did best on a hundred other facts (docs/editors.md)"
    return best, ""


def recommendation(small: Sequence[Trial], large: Sequence[Trial] = (), untried: Sequence[str] = ()) -> str:
    """Three sentences: what to take and its numbers, what it is no better than, and what it costs.

    Of a single editor nothing can be recommended; then its numbers and costs follow.

    Args:
        small: trials on the user's facts.
        large: the same editors on more facts; may be empty.
        untried: editors without a trial for lack of time.
    """
    if len(small) < 2:
        why = f"only {small[0].method}" if small else "no editor"
        remedy = "Give more --minutes, or fewer --editors" if untried else "Name several --editors"
        about = [f"It {_numbers(small[0])}", _third(small[0])] if small and not small[0].failure else []
        return " ".join((f"Nothing was compared, because {why} was tried.", f"{remedy}.", *about))
    best, why = choice(small, large)
    if best is None:
        return (
            "None of these editors can be recommended: each failed, recalls fewer than half of the facts, or damages "
            "the model's reading of ordinary text. Check the facts' wording with `errata ask`, then try other settings."
        )
    sentences = [f"Take {best.method}: it {_numbers(best)}", _second(best, small, large, why), _third(best)]
    if untried:
        verb = "was" if len(untried) == 1 else "were"
        sentences.append(f"{_joined(untried)} {verb} not tried for lack of time: give more --minutes.")
    return " ".join(sentences)


def _numbers(trial: Trial) -> str:
    """The end of a sentence about an editor."""
    numbers = trial.numbers
    parts = [
        f"{share(found)} of {each.phrase}" for each in QUALITIES[:-1] if (found := numbers.get(each.metric)) is not None
    ]
    lost = numbers.get(LOST)
    harm = f", and loses {share(lost)} of the control answers that the model knew" if lost is not None else ""
    return f"gives the new answer to {_joined(parts)}{harm}."


def _second(best: Trial, small: Sequence[Trial], large: Sequence[Trial], why: str) -> str:
    equal = not_separate(best, small)
    if equal:
        names = _joined([trial.method for trial in equal])
        text = f"With these {best.facts} facts its intervals do not separate from those of {names}"
        text += f"; {why}" if why else ""
    else:
        text = "No other editor that was tried is as good by these intervals"
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
    hit, miss = (1000 * (now - before) for now, before in zip(best.query_seconds, best.base_query_seconds, strict=True))
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


def advice_page(
    *,
    model: str,
    rounds: Sequence[tuple[str, Sequence[Trial]]],
    advice: str,
    absent: Sequence[tuple[str, str]],
    notes: Sequence[str],
    command: str,
    versions: Mapping[str, str],
) -> str:
    """The advice as one self-contained HTML page.

    Args:
        rounds: title and trials of each number of facts.
        absent: what was not measured, with the reason.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    figures = list(filter(None, (_figure(f"round-{number}", *each) for number, each in enumerate(rounds))))
    parts = [
        PagePart(
            title,
            tables=(
                PageTable("What took, what carried over, what broke", quality_table(trials), UNITS),
                PageTable("What it costs", cost_table(trials), QUERY),
            ),
            notes=tuple(f"{trial.method} failed: {trial.failure}" for trial in trials if trial.failure),
            figures=tuple(figure for figure in figures if figure.name == f"round-{number}"),
        )
        for number, (title, trials) in enumerate(rounds)
    ]
    return trial_page(
        kicker="errata advise",
        heading=f"Which editor for {shown_name(model)}",
        lead=[advice],
        parts=parts,
        absent=absent,
        notes=notes,
        command=command,
        versions=versions,
    )


UNITS: Final = "Shares in % with 95 % intervals; perplexity of prose as a ratio to the unedited model's."
QUERY: Final = "A query is one generated token, about an edited fact and about others."


def _figure(name: str, title: str, trials: Sequence[Trial]) -> Figure | None:
    """The qualities side by side, one series per editor; None without numbers."""
    able = [trial for trial in trials if not trial.failure]
    shown = [each for each in QUALITIES if any(each.metric in trial.numbers for trial in able)]
    if not shown:
        return None
    series = []
    for trial in able:
        found = [(each.heading, trial.numbers[each.metric]) for each in shown if each.metric in trial.numbers]
        series.append(
            Series(
                trial.method,
                [heading for heading, _ in found],
                [100 * one.mean for _, one in found],
                [None if one.low is None else 100 * one.low for _, one in found],
                [None if one.high is None else 100 * one.high for _, one in found],
            )
        )
    caption = f"{title}: shares in % with 95 % intervals. Of answers lost, fewer are better."
    return Figure(name, caption, [Panel(title, "", "%", series, kind="bars")])
