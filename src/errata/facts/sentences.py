"""Where sentences end."""

from __future__ import annotations

import re
from typing import Final

# Abbreviations before a name or a number: no sentence ends with them.
_NEVER_LAST: Final = frozenset(
    "st ste mt ft mr mrs ms messrs dr prof rev fr hon pres sen rep gov amb gen brig adm col maj capt cpt cmdr lt sgt"
    " pvt no nos vol vols fig figs vs ca approx cf pp op ed eds".split()
)
# Abbreviations after a name, or anywhere: a sentence may end with them.
_MAYBE_LAST: Final = frozenset("jr sr inc ltd co corp bros cos dept univ assn etc al est ave blvd rd ph.d".split())
# Words that begin sentences and seldom names. After an abbreviation, only they show that a sentence ended with it.
_OPENERS: Final = frozenset(
    "the a an he she it they we you i his her its their this that these those there here in on at as after before"
    " when while since although because but and or so if however also both most many some other during from for with"
    " by to of who what where which why how is was are were q a question answer".split()
)
_FULL_STOP: Final = re.compile(r"""(?<!\.)\.["'”’»)\]]*(?=(?P<gap>\s+)(?P<next>["'“‘«(\[]*\S+)(?P<rest>\s?))""")
# Full stops of scripts that need no space after them. What follows must be seen: quotes may still close.
_FULL_WIDTH_STOP: Final = re.compile(
    """[。｡！？។៕။।॥]+["'”’»」』）〉》】)\\]]*(?=[^。｡！？។៕။।॥"'”’»」』）〉》】)\\]])"""
)
_WORD_BEFORE: Final = re.compile(r"[\w.]*\Z")


def first_sentence_end(text: str) -> int | None:
    """Where the first sentence ends, its full stop and closing quotes included; None while that is undecided.

    A full stop ends a sentence if space and then something other than a small letter follow, unless

    - only digits precede it on its line: "1. Paris" is an item of a list;
    - it follows an abbreviation that precedes a name or a number, such as "St." or "No.";
    - it follows another abbreviation, a single letter or letters with full stops between them ("Inc.", "J.",
      "U.S."), and the next whole word is not one that often begins sentences;
    - it is one of several dots.

    The full stops of other scripts (。 ។ ။ ।) and the wide ！ and ？ always end one, and need no space after them.

    The rules look no further than the next word, so a decision on a text is also valid for every longer one: a text
    can be checked while it grows. Question and exclamation marks end nothing ("Yahoo! Inc.").
    """
    wide = _FULL_WIDTH_STOP.search(text)
    for found in _FULL_STOP.finditer(text):
        if _ends(text, found):
            return found.end() if wide is None else min(found.end(), wide.end())
    return wide.end() if wide else None


def _ends(text: str, found: re.Match[str]) -> bool:
    following = found["next"].lstrip("\"'“‘«([")
    if not following or following[0].islower() or following[0] in ".,;:…�":
        return False
    before = _WORD_BEFORE.search(text, 0, found.start())
    word = before[0].casefold() if before else ""
    line = text.rfind("\n", 0, found.start()) + 1
    if word.isdigit() and text[line : found.start()].strip() == word:
        return False
    if word in _NEVER_LAST:
        return False
    letters = word.split(".")
    if word in _MAYBE_LAST or (word and all(len(part) == 1 and part.isalpha() for part in letters)):
        # The next word is complete once something follows it; with a full stop of its own it is no such word.
        return found["rest"] != "" and following.rstrip(",;:!?\"'”’»").casefold() in _OPENERS
    return True


def sentences(text: str) -> list[str]:
    """The sentences of a text, with the space before them; a line ends one as well. They add up to the text."""
    found: list[str] = []
    start = 0
    while start < len(text):
        line = text.find("\n", start) + 1 or len(text)
        end = first_sentence_end(text[start:])
        end = line if end is None else min(start + end, line)
        found.append(text[start:end])
        start = end
    return found
