"""One sentence of advice after an edit, by rules from what was measured."""

from __future__ import annotations

from typing import Final

from errata.evaluation.outcomes import FEW, Outcome

NOTABLE, LARGE = 0.1, 0.3
"""Of ‖ΔW‖ / ‖W‖ of a layer. On SmolLM2-135M, edits that left control questions alone changed layers by 0.02 to 0.11.
Those that cost perplexity (1.45 times) and ten points of specificity changed them by 0.7 to 0.9, and one that broke the
model by 1.3. So a tenth is worth a note; 0.3 is well above the first and well below the second, and is worth a warning.
It is no verdict: the small model `lab` takes changes of 2 with hardly a loss."""
MUCH_PERPLEXITY: Final = 1.2
MUCH_LOST: Final = 0.1
FEWEST: Final = 2  # of few questions, a single answer is already a large share
MUCH_CHANGED: Final = 0.25  # right or wrong: a model that answers otherwise has learnt something that nobody asked for
_GENTLEST: Final = "alphaedit"
"""The row that lost fewest of the other answers on both real models (docs/real_models.md, The four rows)."""
_RECIPE: Final = "in a recipe (`errata recipe show`, or `errata recipe auto --minutes 0`, writes one)"
_LOWER_RATE: Final = f"lower target.learning_rate {_RECIPE}"
_CONTROLS: Final = "add --untouched with questions that the model knows"


def damage(outcome: Outcome) -> list[str]:
    """The measured signs that an edit changed more than its facts, in words; none where there is none."""
    found = []
    for kind, count in outcome.counts().items():
        kind, _, chat = kind.partition(":")
        name = kind.replace("_", " ") + (" (chat)" if chat else "")
        if count.known >= FEW and count.lost >= FEWEST and count.lost > MUCH_LOST * count.known:
            found.append(f"{count.lost} of {count.known} {name} answers were lost")
        elif not chat and count.asked >= FEW and count.changed >= FEWEST and count.changed > MUCH_CHANGED * count.asked:
            found.append(f"{count.changed} of {count.asked} {name} answers changed")
    if outcome.perplexity_ratio is not None and outcome.perplexity_ratio > MUCH_PERPLEXITY:
        found.append(f"perplexity is {outcome.perplexity_ratio:.2f} times what it was")
    return found


def advice(outcome: Outcome, method: str) -> str:
    """What to do next, in one sentence.

    Args:
        method: that edited, such as ``alphaedit+blue``.
    """
    own = [wording for fact in outcome.facts for wording in fact.wordings if wording.own]
    others = [wording for fact in outcome.facts for wording in fact.wordings if not wording.own]
    missed = sum(not wording.took for wording in own)
    # A smaller rate helps any method; another method is named only where it was measured to lose less.
    gentler = _LOWER_RATE if method.startswith(_GENTLEST) else f"try --method {_GENTLEST}, or {_LOWER_RATE}"
    stronger = f"raise target.learning_rate or target.steps {_RECIPE}, or choose other layers (errata locate)"
    if signs := damage(outcome):
        return f"The damage is large ({'; '.join(signs)}): {gentler}."
    if own and missed == len(own):
        return f"None of the facts took: {stronger}."
    if missed:
        return f"{missed} of {len(own)} facts did not take: {stronger}."
    largest = max(outcome.weight_change.values(), default=0.0)
    if largest > LARGE:
        return (
            f"The facts took, but the change is {100 * largest:.0f} % of a layer's weights, which can do damage that "
            f"these questions do not show: {gentler}."
        )
    # Not those in chat, which are the same questions once more.
    if sum(count.known for kind, count in outcome.counts().items() if ":" not in kind) < FEW:
        return f"The facts took, but fewer than {FEW} control questions can show damage: {_CONTROLS}."
    deaf = sum(not wording.took for wording in others)
    if 2 * deaf > len(others):
        return (
            f"The facts took and little else changed, but {deaf} of {len(others)} paraphrases do not give the new "
            f"answer: raise target.steps {_RECIPE}, or edit these wordings too."
        )
    return "This looks fine: the facts took, and little else changed."
