"""How well finished answers were rewritten: TE and TR of postEdit (Song et al. 2024, arXiv:2402.08631).

Two texts are compared, the answer before and after; no model is needed. Where the published code differs:

- it looks for substrings (``contains_substring``); here whole words count, with aliases;
- it lower-cases TR within scope only; here always;
- it counts every neighbour; here those whose answer before was right, with the number over all beside it;
- in scope both count only answers that held the old object; here those that did not have a number of their own.

Its semantic scores (SE, SR) need an entailment model and a sentence encoder, and are not here.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from errata.editors.substitute import substituted
from errata.evaluation.free_running import is_contained

QueryKind: TypeAlias = Literal["own", "paraphrase", "neighbour"]
IN_SCOPE: Final[tuple[QueryKind, ...]] = ("own", "paraphrase")
MASK: Final = "mask"

Contains: TypeAlias = Callable[[str, Sequence[str]], bool]


def contains_substring(text: str, accepted: Sequence[str]) -> bool:
    """Whether one of the accepted texts is a substring, ignoring case: as published."""
    return any(entry.casefold() in text.casefold() for entry in accepted)


@dataclass(frozen=True, slots=True)
class EditedAnswer:
    """An answer before and after a rewrite.

    Attributes:
        kind: of the query: the fact's own prompt, a paraphrase, or a neighbour's.
        new: the fact's target and its aliases.
        old: the fact's old object.
        right: of a neighbour its right answer; without meaning in scope.
    """

    kind: QueryKind
    before: str
    after: str
    new: tuple[str, ...]
    old: str
    right: str = ""


def textual_edit(answer: EditedAnswer, contains: Contains = is_contained) -> float:
    """TE: 1 if the answer after holds what it should and not what it should not; 0.5 if both; else 0.

    In scope it should hold the new object and not the old one; elsewhere its own right answer and not the new object.
    """
    wanted, unwanted = (answer.new, (answer.old,)) if answer.kind in IN_SCOPE else ((answer.right,), answer.new)
    if not contains(answer.after, wanted):
        return 0.0
    return 0.5 if contains(answer.after, unwanted) else 1.0


def textual_retention(answer: EditedAnswer) -> float:
    """TR: how much of the answer's other words stayed: ROUGE-1's F of both texts.

    In scope the old object (before) and the new one (after) count as the same word.
    """
    if answer.kind not in IN_SCOPE:
        return unigram_f1(answer.after, answer.before)
    masked = substituted(answer.after, [(text, MASK) for text in answer.new])
    return unigram_f1(masked, substituted(answer.before, [(answer.old, MASK)]))


def unigram_f1(text: str, reference: str) -> float:
    """ROUGE-1's F: twice the words in common, over the words of both; 1 for two texts without words.

    Words are runs of letters, digits and underscores, case-folded, without stemming.
    """
    one, other = (Counter(re.findall(r"\w+", each.casefold())) for each in (text, reference))
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 1.0


@dataclass(frozen=True, slots=True)
class RewriteScores:
    """TE and TR of one kind of query.

    Attributes:
        edit, retention: means over the answers that count; None without any.
        count: of these answers.
        others: mean TE of the answers that do not count: in scope those that did not name the old object before, of
            neighbours those that were wrong before; None without any.
        edit_of_all: mean TE of all answers; None without any.
    """

    edit: float | None
    retention: float | None
    count: int
    others: float | None
    edit_of_all: float | None


def rewrite_scores(
    answers: Iterable[EditedAnswer], contains: Contains = is_contained
) -> dict[QueryKind, RewriteScores]:
    """The scores of each kind of query that there is."""
    by_kind: dict[QueryKind, list[EditedAnswer]] = {}
    for answer in answers:
        by_kind.setdefault(answer.kind, []).append(answer)
    return {kind: _scores(found, contains) for kind, found in by_kind.items()}


def _scores(answers: Sequence[EditedAnswer], contains: Contains) -> RewriteScores:
    counted: list[EditedAnswer] = []
    others: list[EditedAnswer] = []
    for answer in answers:
        expected = answer.old if answer.kind in IN_SCOPE else answer.right
        (counted if contains(answer.before, (expected,)) else others).append(answer)
    return RewriteScores(
        _mean([textual_edit(answer, contains) for answer in counted]),
        _mean([textual_retention(answer) for answer in counted]),
        len(counted),
        _mean([textual_edit(answer, contains) for answer in others]),
        _mean([textual_edit(answer, contains) for answer in answers]),
    )


def harmonic_mean(values: Mapping[QueryKind, float | None]) -> float | None:
    """Over the three kinds, as published; None if one of them is missing."""
    found = [values.get(kind) for kind in (*IN_SCOPE, "neighbour")]
    present = [value for value in found if value is not None]
    return statistics.harmonic_mean(present) if len(present) == len(found) else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
