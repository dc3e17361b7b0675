"""Text for messages: safe to print, counts, lists of names, and suggestions for misspelt ones."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

# C0 except tab and line feed, DEL and C1, bidirectional formatting, and lone surrogates (bytes of file names that are
# not UTF-8).
_CONTROLS: Final = (
    *range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)  # fmt: skip
_ESCAPES: Final = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_LONGEST: Final = 80  # characters of a name to compare; difflib is quadratic


def visible(text: str) -> str:
    """The text with control characters escaped, such as ``\\x1b``, so that it cannot steer a terminal."""
    return text if text.isascii() and text.isprintable() else text.translate(_ESCAPES)


def readable(value: object) -> str:
    """A setting or result, as JSON, in words for a terminal; empty for what is not set.

    ``[{"kind": "subject"}, {"kind": "words", "share": 0.5}]`` gives ``subject; words (share 0.5)``.
    """
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        kind = readable(value.get("kind"))
        rest = ", ".join(f"{key} {text}" for key, one in value.items() if key != "kind" and (text := readable(one)))
        return f"{kind} ({rest})" if kind and rest else kind or rest
    if isinstance(value, list | tuple):
        nested = any(isinstance(one, Mapping | list | tuple) for one in value)
        return ("; " if nested else ", ").join(map(readable, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def counted(count: int, what: str) -> str:
    """A count and its noun: ``1 patch``, ``2 patches``."""
    plural = "es" if what.endswith("ch") else "s"
    return f"{count:,} {what}{'' if count == 1 else plural}"


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first names with commas, and ``…`` if there are more: ``a, b, …``."""
    return ", ".join([*map(str, names[:most]), *(["…"] if len(names) > most else [])])


def excerpt(text: str, most: int, *, end: bool = False) -> str:
    """The beginning of a text that is too long, with ``…`` in place of the rest.

    It is cut between words. In scripts without spaces, or within a very long word, it is cut between characters.

    Args:
        most: characters of the result at most, including the ``…``.
        end: keep the end of the text instead.
    """
    if len(text) <= most:
        return text
    half = most // 2  # a cut between words loses no more than that
    if end:
        first = len(text) - most + 2
        space = next((place for place in range(first - 1, first - 1 + half) if text[place].isspace()), None)
        if space is not None:
            return f"… {text[space + 1 :].lstrip()}"
        start = first - 1
        while start < len(text) and _is_accent(text[start]):
            start += 1
        return f"…{text[start:]}"
    space = next((place for place in range(most - 2, most - 2 - half, -1) if text[place].isspace()), None)
    if space is not None:
        return f"{text[:space].rstrip()} …"
    stop = most - 1
    while stop > 0 and _is_accent(text[stop]):
        stop -= 1
    return f"{text[:stop]}…"


def _is_accent(character: str) -> bool:
    """Whether a character combines with the one before it."""
    return unicodedata.category(character).startswith("M")


def size_text(count: int) -> str:
    """``1.2 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.99995 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def similar(name: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names most similar to a misspelt one, best first; see ``difflib.get_close_matches``."""
    return difflib.get_close_matches(name[:_LONGEST], list(known), n=most, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """``"Did you mean 'x'? "`` for a misspelt name; empty if no known name is similar."""
    found = similar(name, known, cutoff=cutoff)
    return f"Did you mean {found[0]!r}? " if found else ""


def dtype_name(dtype: object) -> str:
    """The short name of a torch dtype, such as ``bfloat16`` (torch itself is not imported here)."""
    return str(dtype).removeprefix("torch.")
