"""What a judge's endpoint answered: a reply, or why there is none and whether to ask again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Final

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


def has_length(response: HTTPResponse) -> bool:
    """Whether the endpoint says where its reply ends; else the end of the connection is it, as when it breaks off."""
    return response.chunked or response.headers.get("Content-Length") is not None


def read_body(response: HTTPResponse) -> bytes:
    """The body, if it is not larger than a reply may be.

    Raises:
        HTTPException: if it is larger, or has ended before the length that the endpoint has told.
    """
    parts: list[bytes] = []
    size = 0
    length = response.length  # read1 counts it down in some versions of Python only
    while size != length and (part := response.read1(1 << 16)):
        parts.append(part)
        size += len(part)
        if size > _LARGEST_REPLY:
            raise HTTPException("the reply is too large")
    if length is not None and size < length:
        raise IncompleteRead(b"", length - size)
    return b"".join(parts)


def outcome_of(data: bytes, *, whole: bool = True) -> Outcome:
    """What a body says. One that is malformed is described, not quoted: only of a reply is it known how to read it.

    Args:
        whole: whether nothing of it can be missing; if something can, one that is no JSON is worth another attempt.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return Outcome(None, f"its answer, of {len(data)} bytes, is no JSON", again=not whole)
    try:
        content = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        return Outcome(None, "its answer holds no text at choices[0].message.content")
    return Outcome(content)
