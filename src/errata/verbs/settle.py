"""New facts against what a model was given before: refused, written anyway, or left out."""

from __future__ import annotations

from errata.conflicts import OnConflict, conflicts, without
from errata.errors import FaultsError, InputError
from errata.facts import FactSet
from errata.loading import patches_of
from errata.run_directory import is_run
from errata.stack import has_stack
from errata.verbs.terminal import counted, warn


def settled(facts: FactSet, model: str, on_conflict: OnConflict) -> FactSet:
    """The facts that are to be edited, where some contradict what ``model`` has been given before.

    Raises:
        FaultsError: for every conflict, where they are to be refused.
        InputError: if none is left.
    """
    if not (has_stack(model) or is_run(model)):
        return facts
    earlier = [(name, fact) for name, patch in patches_of(model) for fact in patch.facts]
    clashing = conflicts(facts, earlier)
    if not clashing:
        return facts
    if on_conflict is OnConflict.REFUSE:
        place = {id(fact): where for fact, where in zip(facts, facts.places, strict=True)}
        raise FaultsError(facts.source, [conflict.fault(place[id(conflict.fact)]) for conflict in clashing])
    one = len(clashing) == 1
    if on_conflict is OnConflict.REPLACE:
        verb = "takes the place of" if one else "take the place of"
    else:
        verb = f"{'is' if one else 'are'} left out for"
    names = ", ".join(repr(conflict.fact.id) for conflict in clashing[:5]) + (", …" if len(clashing) > 5 else "")
    told = counted(len(clashing), "contradicting fact")
    warn(f"note: {told} ({names}) {verb} what {model} was given before (--on-conflict {on_conflict})")
    if on_conflict is OnConflict.REPLACE:
        return facts
    if len(clashing) == len(facts):
        raise InputError("every fact contradicts what the model was given before", remedy="Nothing is left to edit")
    return without(facts, clashing)
