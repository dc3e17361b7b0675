"""How a prompt and its answer are joined, and where words begin and end: both depend on the script.

Measured on Gemma 3 270M: after Chinese and Japanese text the model begins its next word without a space, whatever the
word is: after "结束于公元" comes "1" with probability 0.90, and a space with 0.04. After Thai text it begins
a Thai word without a space, and a number with one (probability 0.74 after "พ.ศ.").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Final

# Chinese and Japanese have no spaces, neither between words nor around numbers and foreign words. Hangul is not
# included: Korean has spaces between words.
_WITHOUT_SPACES: Final = re.compile(
    "[\u2e80-\u312f\u3190-\u31ff\u3220-\u325f\u3280-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f"
    "\U00020000-\U0003ffff]"
)
# Thai, Lao, Khmer and Burmese have none between their words, but around numbers and foreign words.
_SPACES_BETWEEN_PHRASES: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff\uaa60-\uaa7f]"
)
_HANGUL: Final = re.compile("[\uac00-\ud7a3]")
_STRAIGHT_QUOTES: Final = frozenset("\"'`")


def joiner_of(prompt: str, answer: str) -> str:
    """The text between a prompt and its answer: nothing, or one space.

    It is empty after whitespace, an opening quote or bracket, Chinese or Japanese text, and an empty prompt. It is also
    empty between two words of other scripts without spaces between words (Thai, Lao, Khmer and Burmese). Otherwise it
    is one space.
    """
    if not prompt or prompt[-1].isspace() or _opens(prompt):
        return ""
    # Digits and punctuation belong to the script of the word before them: "公元1945", "首都:".
    for sign in reversed(prompt):
        if _WITHOUT_SPACES.match(sign):
            return ""
        if _SPACES_BETWEEN_PHRASES.match(sign):
            return "" if sets_no_spaces(answer[:1]) else " "
        if sign.isspace() or unicodedata.category(sign)[0] in "LM":
            break
    return " "


def joined(prompt: str, answer: str, joiner: str | None = None) -> str:
    """A prompt with its answer.

    Args:
        joiner: the text between them; None: see ``joiner_of``.
    """
    return f"{prompt}{joiner_of(prompt, answer) if joiner is None else joiner}{answer}"


def sets_no_spaces(sign: str) -> bool:
    """Whether a character is of a script without spaces between words; false for an empty text."""
    return bool(_WITHOUT_SPACES.match(sign) or _SPACES_BETWEEN_PHRASES.match(sign))


def is_word_boundary(text: str, place: int) -> bool:
    """Whether a word may begin or end at ``text[place]``, judged by the two characters there.

    In scripts without spaces between words every character may begin a word, unless it is a combining mark.
    """
    return _is_boundary(text, place, lambda before, after: before.isspace() or after.isspace())


def _is_boundary(text: str, place: int, separates: Callable[[str, str], bool]) -> bool:
    if place in (0, len(text)):
        return True
    before, after = text[place - 1], text[place]
    if unicodedata.category(after)[0] == "M":
        return False
    return separates(before, after) or sets_no_spaces(before) or sets_no_spaces(after)


def word_places(text: str, name: str) -> list[int]:
    """Where a text contains a name as a whole word, or whole words: not "Io" in "region".

    In scripts without spaces between words, any place counts; a Korean name may be followed directly by a particle.

    Returns:
        The indices in ``text``, ascending. The match is exact, including case.
    """
    starts = occurrences(text, name)
    return [start for start in starts if begins_a_word(text, start) and _ends_a_word(text, start + len(name))]


def occurrences(text: str, part: str) -> list[int]:
    """Where a text contains another one, overlaps included; nowhere if that is empty."""
    return [found.start() for found in re.finditer(f"(?={re.escape(part)})", text)] if part else []


def holds_name(text: str, name: str) -> bool:
    """Whether a text contains a name as whole words, ignoring case; see ``word_places``."""
    return bool(word_places(*(unicodedata.normalize("NFC", one).casefold() for one in (text, name))))


def begins_a_word(text: str, place: int) -> bool:
    """Whether ``text[place]`` is not in the middle of a word."""
    return _is_boundary(text, place, lambda before, after: not (_in_words(before) and _in_words(after)))


def _in_words(sign: str) -> bool:
    """Whether a character is a letter, a mark on one, a digit or an underscore."""
    return sign == "_" or unicodedata.category(sign)[0] in "LMN"


def _ends_a_word(text: str, place: int) -> bool:
    return begins_a_word(text, place) or bool(_HANGUL.match(text[place - 1]) and _HANGUL.match(text[place]))


def _opens(text: str) -> bool:
    """Whether the last character of a text is an opening quote or bracket; quotes depend on what precedes them."""
    line = text[text.rfind("\n") + 1 :]
    counts = {quote: line.count(quote) for quote in '"`'}  # on the last line, up to ``place``
    for place in range(len(text) - 1, -1, -1):
        last, before = text[place], text[place - 1 : place]
        kind = unicodedata.category(last)
        if kind == "Ps":
            return True
        if kind not in ("Pi", "Pf") and last not in _STRAIGHT_QUOTES:
            return False
        # „Rom“ and »Rom« close with the opening quotes of English and French.
        if not before or before.isspace() or unicodedata.category(before) in ("Ps", "Pd") or before == "=":
            return True
        if last in counts:
            if counts[last] % 2:
                return not before.isdigit()  # 5" is a measure
            counts[last] -= 1
        if kind == "Pi" and (sets_no_spaces(before) or unicodedata.category(before)[0] not in "LMNP"):
            return True
        # Otherwise a quote opens if the sign before it does.
    return False
