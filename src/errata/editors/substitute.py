"""``substitute``: in the finished answer to a question about a fact, the old object becomes the new one.

It needs no model, and is the bar for editors that rewrite answers (postEdit, Song et al. 2024, "Knowledge Editing on
Black-box Large Language Models", arXiv:2402.08631): their textual scores are near the ceiling with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from errata.editors.fact_memory import FactMemory
from errata.editors.memory_search import SearchSettings
from errata.editors.retrieval import QueryReader
from errata.editors.rewritten import AnswerToEdit, Rewritten
from errata.facts.joining import word_places

SUBSTITUTE: Final = "substitute"

_ARTICLE: Final = re.compile(r"(?<!\w)(a|an)(?=\s+\Z)", re.IGNORECASE)
_LIKE_A_CONSONANT: Final = re.compile(r"(?:eu|ewe|one(?!\w)|once|uni(?![nm])|us[aeu]|ut[ie])", re.IGNORECASE)
_LIKE_A_VOWEL: Final = re.compile(r"(?:[aeiou]|heir|hon(?:est|o)|hour)", re.IGNORECASE)


class SubstituteSettings(SearchSettings):
    """Words of the answer replaced."""

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"old"}


def article(noun: str) -> str:
    """The English indefinite article before a word, by its spelling."""
    return "an" if _LIKE_A_VOWEL.match(noun) and not _LIKE_A_CONSONANT.match(noun) else "a"


def substituted(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    """A text in which old words are replaced by new ones: whole words, whatever their case, in one pass.

    An "a" or "an" before them becomes that of the new ones; a capital letter stays one. Words inside new ones that the
    text has already are left ("York" in "New York").

    Args:
        pairs: (old, new); of overlapping places the earlier pair's counts.
    """
    taken: list[tuple[int, int, str]] = []
    for old, new in pairs:
        present = [found.span() for found in re.finditer(re.escape(new), text, re.IGNORECASE)]
        for found in re.finditer(re.escape(old), text, re.IGNORECASE):
            start, end = found.span()
            if start not in word_places(text, found[0]):
                continue
            if any(first <= start and end <= last for first, last in present):
                continue
            if any(start < last and first < end for first, last, _ in taken):
                continue
            capital = found[0][:1].isupper() and old[:1].islower()
            taken.append((start, end, new[:1].upper() + new[1:] if capital else new))
    result, place = "", 0
    for start, end, new in sorted(taken):
        before = text[place:start]
        if (old_article := _ARTICLE.search(before)) is not None:
            right = article(new)
            right = right.capitalize() if old_article[0][0] == "A" else right
            before = before[: old_article.start()] + right + before[old_article.end() :]
        result += before + new
        place = end
    return result + text[place:]


class Substitution:
    """Replaces the facts' old objects; see ``rewritten.AnswerRewriter``."""

    def rewrite(self, answers: Sequence[AnswerToEdit]) -> list[str]:
        return [
            substituted(answer.text, [(fact.old, fact.target) for fact in answer.facts if fact.old])
            for answer in answers
        ]


@dataclass(slots=True)
class Substitute(FactMemory[SubstituteSettings]):
    """Words of the answer replaced; see ``FactMemory``."""

    registered: ClassVar[str] = SUBSTITUTE

    def view(self) -> Rewritten:
        """The model with the present facts in its answers."""
        return Rewritten(self.model, QueryReader(self.model.tokenizer), self._state.search.memory, Substitution())
