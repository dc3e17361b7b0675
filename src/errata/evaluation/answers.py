"""Answers in free text: where one ends, and whether it is the right one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, Literal

from errata.evaluation.sentences import first_sentence_end
from errata.joining import is_word_boundary

Ending = Literal["sentence", "full_stop"]
_ARTICLES: Final = frozenset({"the", "a", "an"})
_KEPT_SIGNS: Final = frozenset("#%&")  # C#, 5 %, AT&T
_POSSESSIVE: Final = re.compile(r"['’]s\b", re.IGNORECASE)
_ANY_FULL_STOP: Final = re.compile("[.。｡។။।]")


def answer_end(text: str, ending: Ending) -> int | None:
    """Where the answer in a growing text ends: at the first newline, or earlier; None if it may still go on.

    Args:
        ending: ``sentence``: behind the full stop of the first sentence (see ``first_sentence_end``);
            ``full_stop``: before the first full stop of any kind.
    """
    newline = text.find("\n")
    line = text if newline < 0 else text[:newline]
    full_stop = _ANY_FULL_STOP.search(line)
    stop = first_sentence_end(line) if ending == "sentence" else full_stop and full_stop.start()
    if stop is not None:
        return stop
    return None if newline < 0 else newline


def answer_of(text: str, ending: Ending) -> str:
    """The answer in a whole text, without space around it."""
    end = answer_end(text, ending)
    return (text if end is None else text[:end]).strip()


def normalise(text: str) -> str:
    """A text as it is compared: words in small letters with one space between them.

    Unicode NFKC, case folded; apostrophes, and full stops that do not stand between digits, are taken out ("U.S." is
    "us", "3.5" stays), other punctuation but #, % and & becomes a space.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = re.sub(r"['’ʼ`]|(?<!\d)\.|\.(?!\d)", "", folded)
    spaced = "".join(
        " " if unicodedata.category(sign)[0] in "PZC" and sign not in _KEPT_SIGNS | {"."} else sign for sign in folded
    )
    return " ".join(spaced.split())


def is_exact(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer is one of the accepted ones, normalised, an article in front not counted."""
    given = _compared(answer)
    return any(given == _compared(text) for text in accepted)


def is_contained(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer is one of the accepted ones, or holds one as whole words, normalised.

    In scripts that set no spaces between words a word may begin and end at every character (``is_word_boundary``). What
    something belongs to is held too: "Rembrandt's painting" holds "Rembrandt".
    """
    texts = [normalise(text) for text in accepted]
    held = (normalise(answer), normalise(_POSSESSIVE.sub("", answer)))
    return is_exact(answer, accepted) or any(_count(words, text) for words in held for text in texts)


def is_repeated(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer says an accepted one more than once ("Rome, Rome, Rome")."""
    words = normalise(answer)
    return any(_count(words, normalise(text)) > 1 for text in accepted)


def _count(words: str, text: str) -> int:
    """How many times a text stands in another as whole words, side by side; 0 of an empty text."""
    count, place = 0, words.find(text) if text else -1
    while place >= 0:
        end = place + len(text)
        whole = is_word_boundary(words, place) and is_word_boundary(words, end)
        count += whole
        place = words.find(text, end if whole else place + 1)
    return count


def _compared(text: str) -> str:
    """Normalised, without an article in front; what is nothing but signs stays as it is."""
    first, _, rest = normalise(text).partition(" ")
    whole = rest if rest and first in _ARTICLES else f"{first} {rest}".strip()
    return whole or text.strip()
