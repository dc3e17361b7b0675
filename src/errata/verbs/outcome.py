"""What an edit did, as the terminal shows it: every fact that did not take, every control answer that changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rich import box
from rich.table import Table

from errata.evaluation.changes import Change
from errata.evaluation.outcomes import FactOutcome, Outcome, Reply
from errata.report.advice import LARGE, NOTABLE
from errata.verbs.terminal import console, counted, error_console, tell, warn

SHOWN = 5  # of each kind; --json has all
_LONGEST = 50  # characters of a prompt that are shown
_Item = TypeVar("_Item")


def show_facts(facts: Sequence[FactOutcome]) -> None:
    """How many facts took, and of the others which wordings failed."""
    if not facts:
        return
    by_status = {status: [fact for fact in facts if fact.status == status] for status in ("took", "partly", "failed")}
    took, partly, failed = by_status.values()
    tell(f"Facts: {len(took)} of {len(facts)} are said in every wording, {len(partly)} in some, {len(failed)} in none.")
    _listed([*failed, *partly], _fact_line)


def show_chat(replies: Sequence[Reply], facts: Sequence[FactOutcome]) -> None:
    """How many facts the model says in its chat template, and what it replies where it does not."""
    own = [reply for reply in replies if reply.own]
    if not own:
        return
    before = "" if own[0].before is None else f" ({sum(bool(reply.before) for reply in own)} before the edit)"
    tell(f"In chat: the reply holds the answer for {sum(reply.took for reply in own)} of {len(own)} facts{before}.")
    if rest := [reply for reply in replies if not reply.own]:
        tell(f"  … and for {sum(reply.took for reply in rest)} of {counted(len(rest), 'paraphrase')}.")
    missed = [reply for reply in own if not reply.took]
    _listed(missed, lambda reply: f"  {reply.fact}: {_short(reply.prompt)} → '{_short(reply.said)}'")
    bare = {fact.id for fact in facts if any(wording.own and wording.took for wording in fact.wordings)}
    if unsaid := [reply for reply in missed if reply.fact in bare]:
        warn(f"note: {counted(len(unsaid), 'fact')} took in plain text, but not in chat; try errata edit --chat")


def show_controls(outcome: Outcome) -> None:
    """How many answers to control questions were lost and gained, and which, with the words before and after."""
    if not outcome.controls:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("control questions")
    for head in ("asked", "known before", "lost", "gained", "changed"):
        table.add_column(head, justify="right")
    for kind, count in outcome.counts().items():
        share = f"{count.changed} ({100 * count.changed / count.asked:.0f} %)"
        numbers = map(str, (count.asked, count.known, count.lost, count.gained))
        table.add_row(kind.replace("_", " ").replace(":chat", ", in chat"), *numbers, share)
    console().print(table)
    for name, which in (
        ("lost", [change for change in outcome.controls if change.lost]),
        ("gained", [change for change in outcome.controls if change.gained]),
        ("changed", [change for change in outcome.controls if change.changed and not (change.lost or change.gained)]),
    ):
        _listed(which, lambda change, name=name: _change_line(name, change))  # type: ignore[misc]
    if any(change.changed and not change.variant for change in outcome.controls):  # those in chat are whole replies
        tell("(Outside chat, after →: the likeliest token at each place, given the expected ones before it.)")


def show_unable(outcome: Outcome, metrics: Iterable[str]) -> None:
    """The numbers above that can show nothing."""
    shown = set(metrics)
    for metric, why in outcome.unable.items():
        if metric in shown:
            tell(f"* {metric.replace('_', ' ')} can show little or nothing: {why}.")


def show_weight_change(outcome: Outcome) -> None:
    """How large the change is beside the weights, with a warning where it is large."""
    changed = outcome.weight_change
    if not changed:
        return
    layers = ", ".join(f"layer {layer}: {_percent(ratio)}" for layer, ratio in changed.items())
    tell(f"Weight change ‖ΔW‖ / ‖W‖: {layers}.")
    largest = max(changed.values())
    if largest > LARGE:
        error_console().print(
            f"warning: the change is large: {_percent(largest)} of a layer's weights. On real models changes above "
            f"{100 * LARGE:.0f} % have done damage.",
            style="yellow",
            markup=False,
            highlight=False,
        )
    elif largest > NOTABLE:
        text = f"note: more than {100 * NOTABLE:.0f} % of a layer's weights changed; look at the control questions."
        warn(text)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.2g} %" if ratio < 0.1 else f"{100 * ratio:.0f} %"


def _fact_line(fact: FactOutcome) -> str:
    first, *rest = fact.failed
    more = f" (and {counted(len(rest), 'wording')} more)" if rest else ""
    return f"  {fact.id}: {_short(first.prompt)} → '{_short(first.said)}', not '{_short(fact.target)}'{more}"


def _change_line(name: str, change: Change) -> str:
    kind = change.kind.replace("_", " ") + (", in chat" if change.variant else "")
    return f"  {name}, {kind}: {_short(change.now.prompt)} '{_short(change.before.said)}' → '{_short(change.now.said)}'"


def _listed(items: Sequence[_Item], line: Callable[[_Item], str]) -> None:
    for item in items[:SHOWN]:
        tell(line(item))
    if len(items) > SHOWN:
        tell(f"  … and {len(items) - SHOWN} more, see --json")


def _short(text: str) -> str:
    """On one line, its end kept: that is where the question is."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else "…" + line[1 - _LONGEST :]
