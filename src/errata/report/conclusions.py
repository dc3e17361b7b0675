"""Sentences derived from measurements by rules: advice after an edit, and a paragraph on a benchmark.

Nothing is called better unless the intervals are separate.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from errata.editors.table import EDITOR_NAMES, editor_row
from errata.evaluation.outcomes import FEW, Outcome, no_room
from errata.report.comparison import Interval, separate_best
from errata.results.metrics import CONTROLS, Metric, entry_of
from errata.results.records import Row
from errata.utils.text import counted

NOTABLE, LARGE = 0.1, 0.3
"""Of ‖ΔW‖ / ‖W‖ of a layer. On SmolLM2-135M, edits that left control questions alone changed layers by 0.02 to 0.11.
Those that cost perplexity (1.45 times) and ten points of specificity changed them by 0.7 to 0.9, and one that broke the
model by 1.3. So 0.1 triggers a note; 0.3, well above the first range and well below the second, triggers a warning.
It is not a verdict: the small model `lab` tolerates changes of 2 with hardly any loss."""
MUCH_PERPLEXITY: Final = 1.2
MUCH_LOST: Final = 0.1
MOST_LOST: Final = 0.5
FEWEST: Final = 2  # among few questions, a single answer is already a large share
MUCH_CHANGED: Final = 0.25  # correct or not: such a model has changed more than was requested
_GENTLEST: Final = "alphaedit"
"""It lost fewer other answers than `memit` on both real models (docs/real_models.md, The four methods)."""
_CONTROLS: Final = "add --untouched with questions that the model knows"


def damage(outcome: Outcome) -> list[str]:
    """The measured signs that an edit changed more than its facts, in words; may be empty."""
    found = []
    for kind, count in outcome.counts().items():
        kind, _, chat = kind.partition(":")
        name = kind.replace("_", " ") + (" (chat)" if chat else "")
        # With fewer than FEW questions, a tenth means little, but the loss of most is damage.
        share = MUCH_LOST if count.known >= FEW else MOST_LOST
        if count.lost >= FEWEST and count.lost > share * count.known:
            found.append(f"{count.lost} of {count.known} {name} answers were lost")
        elif not chat and count.asked >= FEW and count.changed >= FEWEST and count.changed > MUCH_CHANGED * count.asked:
            found.append(f"{count.changed} of {count.asked} {name} answers changed")
    if outcome.perplexity_ratio is not None and outcome.perplexity_ratio > MUCH_PERPLEXITY:
        found.append(f"perplexity is {outcome.perplexity_ratio:.2f} times what it was")
    return found


@dataclass(frozen=True, slots=True)
class _Remedies:
    """What to do: against damage, for facts that are not recalled, and for paraphrases that are not."""

    gentler: str
    stronger: str
    wider: str


def _remedies(method: str, model: str) -> _Remedies:
    if method in EDITOR_NAMES:
        row = editor_row(method)
        return _Remedies(*(_with_setting(method, *each) for each in (row.gentler, row.stronger, row.wider)))
    named = "" if model == "lab" else f" --model {shlex.quote(model)}"
    recipe = f"in a recipe (`errata recipe auto{named} --minutes 0 --out own.yaml` writes one)"
    lower = f"lower target.learning_rate {recipe}"
    return _Remedies(
        # A lower rate helps every method; another method is suggested only if it was measured to lose less.
        lower if method.startswith(_GENTLEST) else f"try --method {_GENTLEST}, or {lower}",
        f"raise target.learning_rate or target.steps {recipe}, or choose other layers (errata locate{named})",
        f"raise target.steps {recipe}",
    )


def _with_setting(method: str, action: str, setting: str) -> str:
    if not setting:
        return action
    return f"{action} {setting} in a recipe file with 'editors: {{{method}: {{{setting}: …}}}}', given as --recipe"


def advice(outcome: Outcome, method: str, model: str = "lab") -> str:
    """What to do next, in one sentence.

    Args:
        method: the editing method, such as ``alphaedit+blue``, or an editor.
        model: the name of the model that was edited.
    """
    own = [wording for fact in outcome.facts for wording in fact.wordings if wording.own]
    others = [wording for fact in outcome.facts for wording in fact.wordings if not wording.own]
    missed = sum(not wording.took for wording in own)
    remedies = _remedies(method, model)
    if signs := damage(outcome):
        return f"The damage is large ({'; '.join(signs)}): {remedies.gentler}."
    if own and missed == len(own):
        return f"None of the facts is recalled: {remedies.stronger}."
    if missed:
        return f"{missed} of {len(own)} facts are not recalled: {remedies.stronger}."
    largest = max(outcome.weight_change.values(), default=0.0)
    if largest > LARGE:
        return (
            f"The facts are recalled, but the change is {100 * largest:.0f} % of a layer's weights, which can do "
            f"damage that these questions do not show: {remedies.gentler}."
        )
    # Without those in chat, which repeat the same questions.
    if sum(count.known for kind, count in outcome.counts().items() if ":" not in kind) < FEW:
        return f"The facts are recalled, but fewer than {FEW} control questions can show damage: {_CONTROLS}."
    failed = sum(not wording.took for wording in others)
    if 2 * failed > len(others):
        return (
            f"The facts are recalled and little else changed, but {failed} of {len(others)} paraphrases do not give "
            f"the new answer: {remedies.wider}, or edit these wordings too."
        )
    return "This looks fine: the facts are recalled, and little else changed."


_SMALL: Final = 50  # facts; with fewer, intervals of shares are wider than 25 points

_By = Mapping[tuple[str, str], Row]
"""(metric, method) -> row."""


def conclusion(rows: Sequence[Row], stopped: Collection[str] = ()) -> str:
    """A paragraph on one model and one data set; empty if nothing was measured after the run.

    Args:
        stopped: methods with a run that stopped early; they are not compared.
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
        *([f"{_joined(sorted(stopped))} stopped early because perplexity exceeded its limit."] if stopped else []),
        *_unable(before, {metric for metric, _ in after}),
        *_few(after),
    ]
    return " ".join(sentences)


def unable(rows: Sequence[Row]) -> dict[str, str]:
    """Metric -> why it cannot show an effect: it was already at its floor or ceiling before editing."""
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
    return [f"After the whole run, the model gives the new answer to {own} of the edited prompts{others}."]


def _ahead(after: _By, methods: Sequence[str]) -> list[str]:
    """Which method is best in the first overall metric that was measured."""
    if len(methods) < 2:
        return []
    for metric in (Metric.SCORE, Metric.EFFICACY_ACCURACY):
        rows = [after.get((metric, method)) for method in methods]
        if not any(rows):
            continue
        best = separate_best(
            [None if row is None else Interval(row["mean"], row["low"], row["high"]) for row in rows], "higher"
        )
        name = entry_of(metric).heading
        if best is None:
            return [f"In {name}, no method is better than all others with separate 95 % intervals."]
        return [f"In {name}, {methods[best]} is better than all others, with separate 95 % intervals."]
    return []


def _kept(after: _By, methods: Sequence[str]) -> list[str]:
    parts = []
    for accuracy, kind in CONTROLS.items():
        found = _range(after, f"{accuracy}_known", methods, least="most damage by")
        if found is not None:
            parts.append(f"{found} of {kind.replace('_', ' ')} questions")
    if not parts:
        return []
    return [f"Of the control answers that were correct before editing, it still gives {_joined(parts)}."]


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
        f"{entry_of(metric).heading} (from {100 * mean:.1f} %)"
        for metric, mean in before.items()
        if metric in measured and no_room(metric, mean)
    ]
    if not found:
        return []
    return [f"No effect can be seen in {_joined(found)}, because of the value before editing."]


def _few(after: _By) -> list[str]:
    counts = [row["n"] for (metric, _), row in after.items() if metric == Metric.EFFICACY_ACCURACY]
    if not counts or min(counts) >= _SMALL:
        return []
    facts = counted(min(counts), "fact")
    return [f"With only {facts}, intervals are wide: differences within them are not meaningful."]


def _range(after: _By, metric: str, methods: Sequence[str], least: str = "least by") -> str | None:
    """``62.0 to 95.0 % (least by memit)``."""
    found = sorted((row["mean"], method) for method in methods if (row := after.get((metric, method))) is not None)
    if not found:
        return None
    entry = entry_of(metric)
    low, high = entry.number(found[0][0]), entry.number(found[-1][0])
    if low == high:
        return f"{low} %"
    return f"{low} to {high} % ({least} {found[0][1]})"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
