"""Escapes untrusted text for Markdown, so that it is never read as Markdown, HTML, mathematics or a link."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import punctuation
from typing import Final

from errata.utils.text import excerpt

SHOWN: Final = 240  # characters of one value; longer ones are cut
# Punctuation that is harmless within a line, though not at its start. Other punctuation may have a meaning: |,
# backticks, <, $ of mathematics, : of emoji and links, @ of names. Parentheses have one only after square brackets,
# which are escaped.
_HARMLESS: Final = frozenset("-+,.;'\"/%?=()")
_MARKS: Final = frozenset(punctuation) - _HARMLESS - {"_", ":"}
# _ within a word is not emphasis, and : before a space starts neither a link nor an emoji.
_MARK: Final = re.compile(rf"[{re.escape(''.join(sorted(_MARKS)))}]|(?<![^\W_])_|_(?![^\W_])|:(?! )")
_NAME: Final = re.compile(r"(?! )[-A-Za-z0-9_ +,.;:/%=\[\]()#@!?*~]+(?<! )")
# Characters that break lines or change the direction of writing, so that a reader would see a different text.
_INVISIBLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d)?\+00:00", re.ASCII)


class Markdown(str):
    """Markdown that can be inserted into a document unchanged."""

    __slots__ = ()


def text(value: object, shown: int = SHOWN) -> Markdown:
    """A value on one line, with all markup as entities; line ends are shown as ↵, invisible characters by their code.

    It may appear anywhere except at the start of a line or list item.
    """
    return Markdown(_MARK.sub(lambda found: f"&#{ord(found.group())};", visible(value, shown)))


def visible(value: object, shown: int = SHOWN) -> str:
    """A value on one line without invisible characters: line ends are shown as ↵, others by their code."""
    whole = str(value)
    cut = excerpt(whole, shown)
    return _INVISIBLE.sub(_name, cut.replace("\r\n", "↵").replace("\n", "↵"))


def code(value: object) -> Markdown:
    """A name as code, or as text if it has characters that code in a table cannot hold.

    It may appear where ``text`` may.
    """
    name = str(value)
    return Markdown(f"`{name}`") if _NAME.fullmatch(name) and len(name) <= SHOWN else text(value)


def moment(value: str) -> Markdown:
    """An ISO time to the minute; any other text unchanged."""
    found = _MOMENT.fullmatch(value)
    return Markdown(f"{found[1]} {found[2]} UTC") if found else text(value)


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]], rules: Sequence[str] = ()) -> str:
    """A table of Markdown.

    Args:
        rules: the alignment of each column, ``---`` or ``---:``; by default all are left-aligned.
    """
    whole = [heads, rules or ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in whole)


def fenced(value: object, language: str = "") -> Markdown:
    """A code block whose fence is longer than any in the value."""
    whole = str(value).strip("\n")
    longest = max([2, *(len(run) for run in re.findall("`+", whole))])
    fence = "`" * (longest + 1)
    return Markdown(f"{fence}{language}\n{whole}\n{fence}")


def _name(found: re.Match[str]) -> str:
    return f"\\u{ord(found.group()):04x}"
