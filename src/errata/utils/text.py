"""Text that came from elsewhere, made safe to print: what would steer a terminal is shown instead."""

from __future__ import annotations

from typing import Final

# C0 but tab and line feed, DEL and C1, the marks that change the order in which text is shown, and halves of surrogate
# pairs, which stand for bytes of a file name that are not UTF-8.
_STEERING: Final = (
    *range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)  # fmt: skip
_SHOWN: Final = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _STEERING}


def visible(text: str) -> str:
    """The text with each control character written as Python would write it, such as ``\\x1b``."""
    return text if text.isascii() and text.isprintable() else text.translate(_SHOWN)
