"""What a judge's endpoint answered: a reply, or why there is none and whether to ask again."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from typing import Any, Final

_LARGEST_REPLY: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt: a reply, or why there is none, whether it is worth another attempt, and the wait it asks for."""

    reply: str | None
    reason: str = ""
    again: bool = False
    wait: float = 0.0
    refused: bool = False


def http_outcome(status: int, headers: Message) -> Outcome:
    """What an answer without a reply says: whether to ask again, when, and whether to ask at all."""
    if 300 <= status < 400:
        return Outcome(None, f"HTTP {status}: a redirect, which is not followed, lest the key go astray", refused=True)
    again = status == 429 or status >= 500
    asked = headers.get("Retry-After", "")
    wait = float(asked) if asked.isdecimal() else 0.0
    return Outcome(None, f"HTTP {status}", again=again, wait=wait, refused=status in (401, 403, 404))


def read_body(response: Any, deadline: float) -> bytes:
    """The body, within the time and a size that a reply may have: an endpoint may also send a byte now and then."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > _LARGEST_REPLY:
            raise HTTPException("the reply is too large")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def outcome_of(data: bytes) -> Outcome:
    """What a body says. One that is malformed is described, not quoted: only of a reply is it known how to read it."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return Outcome(None, f"its answer, of {len(data)} bytes, is no JSON")
    try:
        content = whole["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        return Outcome(None, "its answer holds no text at choices[0].message.content")
    return Outcome(content)
