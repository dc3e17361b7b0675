"""Other people's words in Markdown: shown as they are, never read as Markdown, HTML, mathematics or a link."""

from __future__ import annotations

import re
from string import punctuation
from typing import Final

SHOWN: Final = 240  # characters of one value; what is longer is cut
# What may appear unescaped within a line, though not at its beginning. Other punctuation has a meaning somewhere: |,
# backticks, <, $ of mathematics, : of emoji and links, @ of names. Round brackets mean something after a square one
# alone, and those are marks.
_HARMLESS: Final = frozenset("-+,.;'\"/%?=()")
_MARKS: Final = frozenset(punctuation) - _HARMLESS - {"_", ":"}
# Within a word _ is no emphasis, and before a blank : is neither a link's nor an emoji's.
_MARK: Final = re.compile(rf"[{re.escape(''.join(sorted(_MARKS)))}]|(?<![^\W_])_|_(?![^\W_])|:(?! )")
_NAME: Final = re.compile(r"(?! )[-A-Za-z0-9_ +,.;:/%=\[\]()#@!?*~]+(?<! )")
# What breaks a line or turns the direction of writing around, so that a reader sees another text than there is.
_INVISIBLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d)?\+00:00", re.ASCII)


class Markdown(str):
    """Text that is Markdown already, and may be put into a document as it is."""

    __slots__ = ()


def text(value: object, shown: int = SHOWN) -> Markdown:
    """A value on one line, with every mark as an entity; a line's end is ↵, an invisible sign its code.

    It may appear anywhere but at the beginning of a line or of an item of a list.
    """
    return Markdown(_MARK.sub(lambda found: f"&#{ord(found.group())};", visible(value, shown)))


def visible(value: object, shown: int = SHOWN) -> str:
    """A value on one line, with nothing in it that is not seen: a line's end is ↵, an invisible sign its code."""
    whole = str(value)
    cut = whole if len(whole) <= shown else whole[: shown - 1] + "…"
    return _INVISIBLE.sub(_name, cut.replace("\r\n", "↵").replace("\n", "↵"))


def code(value: object) -> Markdown:
    """A name as code, where it reads best; one that has a sign which code, or a table around it, cannot hold as text.

    It may appear where ``text`` may.
    """
    name = str(value)
    return Markdown(f"`{name}`") if _NAME.fullmatch(name) and len(name) <= SHOWN else text(value)


def moment(value: str) -> Markdown:
    """An ISO time to the minute; any other text unchanged."""
    found = _MOMENT.fullmatch(value)
    return Markdown(f"{found[1]} {found[2]} UTC") if found else text(value)


def fenced(value: object, language: str = "") -> Markdown:
    """A block of code, with a fence that is longer than any that the value has."""
    whole = str(value).strip("\n")
    longest = max([2, *(len(run) for run in re.findall("`+", whole))])
    fence = "`" * (longest + 1)
    return Markdown(f"{fence}{language}\n{whole}\n{fence}")


def _name(found: re.Match[str]) -> str:
    return f"\\u{ord(found.group()):04x}"
