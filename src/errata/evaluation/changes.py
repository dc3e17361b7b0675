"""What became of the answers to control questions: compared with the unedited model, question by question.

A question that the unedited model does not answer correctly cannot be damaged, so accuracy is also taken over those
that it does answer. And a mean can hide a change: answers that are lost and answers that are gained cancel out, and an
answer that was wrong before may be another wrong one now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from errata.evaluation.metrics import CONTROLS, Metric
from errata.evaluation.records import Record

NONE_KNOWN = "the unedited model answers none of these questions correctly"
NOT_COMPARED = "there is no unedited model to compare with"


@dataclass(frozen=True, slots=True)
class Change:
    """A control question with its answers by the unedited and by the edited model.

    Attributes:
        kind: such as ``specificity``; see ``CONTROLS``.
    """

    kind: str
    before: Record
    now: Record

    @property
    def variant(self) -> str:
        """How it was asked: ``:chat``, or "" in plain text."""
        return "".join(self.now.metric.partition(":")[1:])

    @property
    def known(self) -> bool:
        """Whether the unedited model answers correctly."""
        return self.before.value == 1

    @property
    def lost(self) -> bool:
        """Whether the answer was correct and is wrong now."""
        return self.known and self.now.value != 1

    @property
    def gained(self) -> bool:
        """Whether the answer was wrong and is correct now."""
        return not self.known and self.now.value == 1

    @property
    def changed(self) -> bool:
        """Whether the model says something else, right or wrong."""
        return self.before.said != self.now.said or self.lost or self.gained


def changes(before: Sequence[Record], now: Sequence[Record]) -> list[Change]:
    """The control questions that were asked both times. Where a fact asks the same prompt more than once (with
    different answers), the first is compared with the first, and so on.

    Args:
        before: of the unedited model, all metrics.
        now: of the edited model; may be of some of the facts only.
    """
    earlier: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in before:
        earlier[record.fact, record.metric, record.prompt].append(record)
    seen: dict[tuple[str, str, str], int] = defaultdict(int)
    found = []
    for record in now:
        kind = CONTROLS.get(record.metric.partition(":")[0])
        key = record.fact, record.metric, record.prompt
        if kind is not None and seen[key] < len(earlier.get(key, ())):
            found.append(Change(kind, earlier[key][seen[key]], record))
            seen[key] += 1
    return found


def change_records(before: Sequence[Record], now: Sequence[Record]) -> list[Record]:
    """For each kind of control question: accuracy over the questions that the unedited model answers correctly
    (``…_accuracy_known``), and, over all of them, which share was lost, gained, and changed at all.

    Of the unedited model itself (``now`` is ``before``) the first is 1 and the others are 0. Of a variant of an
    accuracy (``specificity_accuracy:chat``) they are variants too.
    """
    found = []
    for change in changes(before, now):
        variant = change.variant
        values = {"lost": change.lost, "gained": change.gained, "changed": change.changed}
        if change.known:
            found.append(replace(change.now, metric=f"{change.kind}_accuracy_known{variant}"))
        found += [
            replace(change.now, metric=f"{change.kind}_{name}{variant}", value=float(value))
            for name, value in values.items()
        ]
    return found


def absent_changes(before: Sequence[Record] | None, absent: Mapping[str, str]) -> dict[str, str]:
    """The metrics of ``change_records`` that cannot be computed, with the reason.

    Args:
        before: of the unedited model; None where it was not asked.
        absent: the accuracies that cannot be computed, with their reasons, which are then the reasons here too.
    """
    missing: dict[str, str] = {}
    for accuracy in CONTROLS:
        values = [record.value for record in before or () if record.metric == accuracy]
        if accuracy in absent:
            missing |= dict.fromkeys(derived(accuracy), absent[accuracy])
        elif before is None:
            missing |= dict.fromkeys(derived(accuracy), NOT_COMPARED)
        elif values and 1 not in values:
            missing[derived(accuracy)[0]] = NONE_KNOWN
    return missing


def derived(accuracy: str) -> tuple[Metric, ...]:
    """The metrics of ``change_records`` that belong to a kind's accuracy: known, lost, gained, changed."""
    return tuple(Metric(f"{CONTROLS[accuracy]}_{name}") for name in ("accuracy_known", "lost", "gained", "changed"))
