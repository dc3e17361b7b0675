"""Which facts a truncated adapter loses: those that the model says with the exact patches and not with the adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from errata.evaluation.scoring import TargetScore, score
from errata.facts import Fact
from errata.lora import Adapter
from errata.models.language_model import LanguageModel
from errata.patch import Patch
from errata.progress import Report, silent


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said behind a fact's prompt.

    Attributes:
        fact: what was edited.
        by_patch: with the exact patches in the model.
        by_adapter: with the adapter's factors in their place.
    """

    fact: Fact
    by_patch: TargetScore
    by_adapter: TargetScore

    @property
    def is_lost(self) -> bool:
        return self.by_patch.correct and not self.by_adapter.correct


def ask_both(model: LanguageModel, adapter: Adapter, *, force: bool = False, report: Report = silent) -> list[Answer]:
    """Ask for every fact of the patches, twice; the model is afterwards what it was. A fact counts as said if every
    token of its target is the likeliest (the efficacy accuracy of ``evaluation``).

    Args:
        model: the base.
        force: whether the patches need not have been made for what the ones before them leave.
        report: told the rows read, of how many.

    Raises:
        InputError: the patches were not made for this model, or not in this order.
        NonFiniteError: a logit is not a number.
    """
    facts = [fact for patch in adapter.patches for fact in patch.facts]
    pairs = [fact.pair(fact.target) for fact in facts]
    with applied(model, adapter.patches, force=force):
        by_patch = score(model, pairs, report=report)
    terms = adapter.terms()
    model.edits.add(terms)
    try:
        by_adapter = score(model, pairs, report=report)
    finally:
        model.edits.remove(terms)
    return [Answer(*entry) for entry in zip(facts, by_patch, by_adapter, strict=True)]


@contextmanager
def applied(model: LanguageModel, patches: Sequence[Patch], *, force: bool = False) -> Iterator[None]:
    """Put patches into a model in their order, for a while.

    Raises:
        InputError: one of them was not made for what the ones before it leave; the model is then what it was.
    """
    inside: list[Patch] = []
    try:
        for patch in patches:
            before = [f"patch {number + 1}" for number in range(len(inside))]
            patch.apply(model, force=force, name=f"patch {len(inside) + 1}", before=before)
            inside.append(patch)
        yield
    finally:
        for patch in reversed(inside):
            patch.undo(model)
