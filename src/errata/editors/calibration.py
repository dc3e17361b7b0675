"""Thresholds and radii, calibrated on facts that are not edited, at the size of the memory that is run."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from errata.errors import InputError
from errata.facts.fact import Fact, FactSet
from errata.facts.files import read_facts
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.utils.text import counted

LAB: Final = "lab"
_LAB_FACTS: Final = 200
_LAB_SEED: Final = 15_000  # far from the seeds of facts to edit
_POOR: Final = 0.75  # mean of both rates; 0.5 is that of a coin
_logger = logging.getLogger(__name__)


def facts_of(source: str) -> FactSet:
    """The facts of a setting: a file's, or ``lab``: 200 facts of the embedded model's world.

    Raises:
        InputError: if the file cannot be read.
    """
    if source == LAB:
        return FactSet(tuple(lab_facts(lab_world(), _LAB_FACTS, seed=_LAB_SEED)), source=LAB)
    return read_facts(Path(source), last_wins=True)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold, and how well it separates at this size of the memory.

    Attributes:
        threshold: maximises (hit_rate + refusal_rate)/2; of several such ones the strictest.
        hit_rate: paraphrases that get their fact.
        refusal_rate: other questions that get no fact.
        facts: in the memory, for each query; the rates are of this size only.
        positives, negatives: the number of queries of both kinds.
    """

    threshold: float
    hit_rate: float
    refusal_rate: float
    facts: int
    positives: int
    negatives: int

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Calibration | None:
        """The one in an edit's file; None if there is none."""
        found = state.get("calibration")
        return cls(**found) if found else None

    def warn_if_poor(self, what: str, hint: str) -> None:
        """Log a warning if paraphrases and other questions are hardly told apart.

        Args:
            what: was calibrated, as the beginning of a sentence in the plural.
            hint: what to do instead, as a sentence.
        """
        if (self.hit_rate + self.refusal_rate) / 2 < _POOR:
            _logger.warning(
                "%s separate poorly: with %s in memory, %.0f %% of the paraphrases get their fact, and %.0f %% of the "
                "other questions get none. %s",
                what,
                counted(self.facts, "fact"),
                100 * self.hit_rate,
                100 * self.refusal_rate,
                hint,
            )


@dataclass(frozen=True, slots=True)
class TrialMemory:
    """Facts that are in memory together, and the questions that they are tried with.

    Attributes:
        paraphrases: (place of the fact that it should get, text).
        others: texts that should get no fact.
    """

    facts: tuple[Fact, ...]
    paraphrases: tuple[tuple[int, str], ...]
    others: tuple[str, ...]

    @property
    def questions(self) -> list[str]:
        """The paraphrases, then the others."""
        return [*(text for _, text in self.paraphrases), *self.others]


def trial_memories(
    held_out: Sequence[Fact], facts: Sequence[Fact], *, most: int | None = None
) -> tuple[TrialMemory, ...]:
    """Memories as large as ``facts`` of held-out facts, filled up with ``facts`` where these are too few.

    In each, the paraphrases of its held-out facts should get their fact, and the facts' ``own``, ``neighbours`` and
    ``unrelated`` questions none.

    Args:
        held_out: those whose subject ``facts`` have too, or name in their questions, are left out.
        most: use so many held-out facts at most, the first.

    Raises:
        InputError: if no fact with paraphrases and such questions is left.
    """
    subjects = {_nfc(fact.subject).casefold() for fact in facts}
    asked = "\n".join(_nfc(text) for fact in facts for text in (*fact.paraphrases, *_others(fact)))
    left = [
        fact
        for fact in held_out
        if (name := _nfc(fact.subject)).casefold() not in subjects and (not name or name not in asked)
    ][:most]
    size, found = len(facts), []
    for start in range(0, len(left), max(size, 1)):
        group = left[start : start + size]
        spare = [*left[:start], *facts][: size - len(group)]
        # A question about another fact's subject may rightly get that fact.
        names = [_nfc(fact.subject) for fact in spare]
        others = [text for fact in group for text in _others(fact)]
        found.append(
            TrialMemory(
                (*group, *spare),
                tuple((place, text) for place, fact in enumerate(group) for text in fact.paraphrases),
                tuple(text for text in others if not any(name in _nfc(text) for name in names)),
            )
        )
    positives, negatives = _counts(found)
    if not positives or not negatives:
        raise InputError(
            f"no threshold can be calibrated: {len(left)} of {len(held_out)} facts have other subjects than the edited "
            f"ones and their questions, with {positives} paraphrases and {negatives} questions that should get no fact",
            remedy="Give facts with paraphrases and own, neighbours or unrelated questions as 'calibration', or a "
            "threshold",
            code="CALIBRATION_IMPOSSIBLE",
        )
    return tuple(found)


Found: TypeAlias = Sequence[Collection[int]]
"""For each question of a memory the places of the facts that it gets."""


def best_trial(memories: Sequence[TrialMemory], trials: Iterable[tuple[float, Sequence[Found]]]) -> Calibration:
    """The value with the largest mean of both rates, of several the first.

    Args:
        trials: a value, and what each memory's questions get with it; the strictest first.
    """
    positives, negatives = _counts(memories)
    best: tuple[int, float, int, int] | None = None
    for value, found in trials:
        hits = refusals = 0
        for memory, own in zip(memories, found, strict=True):
            count = len(memory.paraphrases)
            hits += sum(place in got for (place, _), got in zip(memory.paraphrases, own[:count], strict=True))
            refusals += sum(not got for got in own[count:])
        score = hits * negatives + refusals * positives  # in integers, where ties are exact
        if best is None or score > best[0]:
            best = score, value, hits, refusals
    assert best is not None
    _, value, hits, refusals = best
    size = len(memories[0].facts)
    return Calibration(value, hits / positives, refusals / negatives, size, positives, negatives)


def thresholds_between(values: torch.Tensor) -> torch.Tensor:
    """The middles of neighbouring distinct finite values, ascending: so rounding decides nothing."""
    distinct = torch.unique(values[values.isfinite()])
    return (distinct[1:] + distinct[:-1]) / 2


def best_threshold(positives: Sequence[float], negatives: Sequence[float]) -> tuple[float, float, float]:
    """The threshold with the largest mean of both rates, with the rates: positives ≥ it, and negatives < it.

    It is half-way between two values, so that rounding decides nothing; of several the largest.

    Args:
        positives, negatives: cosines, or −∞ for a query that no threshold lets through; neither is empty.
    """
    right, wrong = (torch.tensor(values, dtype=torch.float64).sort().values for values in (positives, negatives))
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    candidates = torch.unique(torch.cat([ends, thresholds_between(torch.cat([right, wrong]))]))
    hits = len(right) - torch.searchsorted(right, candidates)
    refusals = torch.searchsorted(wrong, candidates)
    scores = hits * len(wrong) + refusals * len(right)  # in integers, where ties are exact
    best = int((scores == scores.max()).nonzero()[-1])
    return float(candidates[best]), int(hits[best]) / len(right), int(refusals[best]) / len(wrong)


def _counts(memories: Sequence[TrialMemory]) -> tuple[int, int]:
    """The paraphrases and the others of all memories."""
    return sum(len(memory.paraphrases) for memory in memories), sum(len(memory.others) for memory in memories)


def _others(fact: Fact) -> list[str]:
    return [entry.prompt for entry in (*fact.own, *fact.neighbours, *fact.unrelated)]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
