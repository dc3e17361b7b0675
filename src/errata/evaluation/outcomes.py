"""The outcome of an edit, fact by fact and question by question, which averages do not show.

A question that the unedited model does not answer correctly cannot be damaged, so accuracy is also computed over those
that it does answer. And a mean can hide changes: answers that are lost and answers that are gained cancel out, and an
answer that was wrong before may be another wrong one now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from errata.evaluation.chat import VARIANT
from errata.facts.fact import Fact
from errata.results.metrics import CONTROLS, Metric
from errata.results.records import Record

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
        """``:chat`` in the chat template, "" in plain text."""
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
        """Whether the answer is a different one, right or wrong."""
        return self.before.said != self.now.said or self.lost or self.gained


def changes(before: Sequence[Record], now: Sequence[Record]) -> list[Change]:
    """The control questions with answers before and now. Where a fact has the same prompt more than once (with
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
        before: of the unedited model; None if there are none.
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


Status = Literal["took", "partly", "failed"]

FLOOR, CEILING = 0.1, 0.9
"""Shares below FLOOR cannot fall further; shares above CEILING cannot rise further."""
_FIELDS = {kind: Metric(accuracy).entry.needs[0] for accuracy, kind in CONTROLS.items()}
"""Kind of control question -> the field of facts that holds such questions."""
FEW = 5
"""With fewer known control questions than this, each one that is lost moves their accuracy by more than 20 points."""


@dataclass(frozen=True, slots=True)
class Wording:
    """A prompt for a fact, and the answer.

    Attributes:
        own: whether it is the edited prompt, not a paraphrase.
        took: whether every token of the target is the most likely one.
        said: the text of the most likely tokens in the place of the target.
        before: ``took`` of the unedited model; None if there is none.
    """

    prompt: str
    own: bool
    took: bool
    said: str
    before: bool | None = None


@dataclass(frozen=True, slots=True)
class FactOutcome:
    """The outcome for one fact."""

    id: str
    target: str
    wordings: tuple[Wording, ...]

    @property
    def status(self) -> Status:
        """``took`` if the model answers the target to every wording, ``failed`` if to none."""
        took = [wording.took for wording in self.wordings]
        return "took" if all(took) else "partly" if any(took) else "failed"

    @property
    def known_before(self) -> bool | None:
        """Whether the unedited model answers the target to the edited prompt already; None if that is unknown."""
        return next((wording.before for wording in self.wordings if wording.own), None)

    @property
    def failed(self) -> list[Wording]:
        """The wordings to which the model answers something else."""
        return [wording for wording in self.wordings if not wording.took]


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply in chat to a prompt of an edited fact.

    Attributes:
        own: whether it is the edited prompt, not a paraphrase.
        took: whether the reply contains the target.
        before: whether that of the unedited model did; None if there is none.
    """

    fact: str
    prompt: str
    own: bool
    took: bool
    said: str
    before: bool | None


_COUNTED = ("known", "lost", "gained", "changed")


@dataclass(frozen=True, slots=True)
class Count:
    """Numbers of control questions of one kind: all, known before the edit, and with changed answers."""

    asked: int
    known: int
    lost: int
    gained: int
    changed: int

    @classmethod
    def of(cls, found: Sequence[Change]) -> Count:
        return cls(len(found), *(sum(getattr(change, name) for change in found) for name in _COUNTED))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The effects of an edit.

    Attributes:
        facts: in the order of the edit; only those with answers.
        controls: the control questions with answers of both models; none without an unedited model.
        weight_change: layer -> ‖ΔW‖ / ‖W‖; empty if unknown.
        perplexity_ratio: None without prose or without an unedited model.
        unable: metric -> why it can show nothing.
        chat: replies to prompts of edited facts, and to paraphrases.
        automatic: (id of a fact, field) of control questions that errata generated.
    """

    facts: tuple[FactOutcome, ...]
    controls: tuple[Change, ...]
    weight_change: Mapping[int, float]
    perplexity_ratio: float | None
    unable: Mapping[str, str]
    chat: tuple[Reply, ...] = ()
    automatic: Collection[tuple[str, str]] = ()

    def counts(self) -> dict[str, Count]:
        """By kind, in the order of ``CONTROLS``, of kinds with questions; then those in chat (``untouched:chat``)."""
        by_kind = {
            f"{kind}{variant}": [each for each in self.controls if (each.kind, each.variant) == (kind, variant)]
            for variant in ("", VARIANT)
            for kind in CONTROLS.values()
        }
        return {kind: Count.of(found) for kind, found in by_kind.items() if found}

    def to_record(self) -> dict[str, Any]:
        """A mapping for JSON."""
        facts = [
            {
                "id": fact.id,
                "target": fact.target,
                "status": fact.status,
                "known_before": fact.known_before,
                "wordings": list(map(asdict, fact.wordings)),
            }
            for fact in self.facts
        ]
        questions = [
            {
                "kind": f"{change.kind}{change.variant}",
                "fact": change.now.fact,
                "prompt": change.now.prompt,
                "before": change.before.said,
                "now": change.now.said,
                "correct_before": change.known,
                "correct_now": change.now.value == 1,
                "changed": change.changed,
                "automatic": (change.now.fact, _FIELDS.get(change.kind)) in self.automatic,
            }
            for change in self.controls
        ]
        return {
            "facts": facts,
            "chat": [asdict(reply) for reply in self.chat],
            "controls": {kind: asdict(count) for kind, count in self.counts().items()},
            "control_questions": questions,
            "weight_change": {str(layer): ratio for layer, ratio in self.weight_change.items()},
            "unable": dict(self.unable),
        }


def compare_records(
    facts: Sequence[Fact],
    before: Sequence[Record] | None,
    after: Sequence[Record],
    *,
    weight_change: Mapping[int, float] | None = None,
    perplexity_ratio: float | None = None,
    automatic: Collection[tuple[str, str]] = (),
) -> Outcome:
    """Compare the answers of the unedited and the edited model.

    Args:
        before: of the unedited model; None if there are none.
        after: of the edited model, of all facts, at the end.
        automatic: see ``Outcome``.
    """
    wordings: dict[str, list[Wording]] = defaultdict(list)
    metrics: dict[str, bool] = {Metric.EFFICACY_ACCURACY: True, Metric.GENERALISATION_ACCURACY: False}
    earlier = {(record.fact, record.prompt): record.value == 1 for record in before or () if record.metric in metrics}
    for record in after:
        if record.metric in metrics:
            known = earlier.get((record.fact, record.prompt))
            wording = Wording(record.prompt, metrics[record.metric], record.value == 1, record.said, known)
            wordings[record.fact].append(wording)
    found = tuple(FactOutcome(fact.id, fact.target, tuple(wordings[fact.id])) for fact in facts if fact.id in wordings)
    compared = () if before is None else tuple(changes(before, after))
    unable = {} if before is None else unable_to_show(before)
    replies = _replies(before, after)
    return Outcome(found, compared, weight_change or {}, perplexity_ratio, unable, replies, automatic)


def _replies(before: Sequence[Record] | None, after: Sequence[Record]) -> tuple[Reply, ...]:
    metrics = {
        f"{Metric.FREE_EFFICACY_CONTAINED}{VARIANT}": True,
        f"{Metric.FREE_GENERALISATION_CONTAINED}{VARIANT}": False,
    }
    earlier = {(record.fact, record.prompt): record.value == 1 for record in before or () if record.metric in metrics}
    return tuple(
        Reply(
            record.fact,
            record.prompt,
            metrics[record.metric],
            record.value == 1,
            record.said,
            earlier.get((record.fact, record.prompt)),
        )
        for record in after
        if record.metric in metrics
    )


def unable_to_show(before: Sequence[Record]) -> dict[str, str]:
    """The metrics that can show nothing because of their values before the edit, with the reason."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in before:
        values[record.metric].append(record.value)
    found: dict[str, str] = {}
    for metric, each in values.items():
        reason = no_room(metric, sum(each) / len(each))
        if reason is not None:
            found[metric] = reason
        known = sum(value == 1 for value in each)
        if metric in CONTROLS and 0 < known < FEW:
            found[f"{metric}_known"] = (
                f"the unedited model answers only {known} of these {len(each)} questions correctly"
            )
    return found


def no_room(metric: str, before: float) -> str | None:
    """Why a share cannot show the effect of an edit, because of its value before; None if it can.

    Args:
        before: from 0 to 1.
    """
    base = metric.partition(":")[0]
    if base in (*CONTROLS, Metric.SPECIFICITY_SUCCESS) and before <= FLOOR:
        return f"{100 * before:.1f} % before editing leaves no room to fall"
    if base.startswith(("efficacy_", "generalisation_")) and before >= CEILING:
        return f"{100 * before:.1f} % before editing leaves no room to rise"
    return None
