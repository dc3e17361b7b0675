"""Requests to an OpenAI-compatible endpoint. A key comes from the environment and is never written.

The key is read anew for each request and goes into that request's header only. Redirects are not followed, so no other
host is ever sent it. Bodies of errors are not shown, since they may contain anything.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, Final, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener

from pydantic import BaseModel, ConfigDict, Field, field_validator

from errata.errors import InputError
from errata.utils.progress import Report, silent

_LARGEST_REPLY: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to get a reply.

    Attributes:
        reply: None without one.
        reason: why there is none.
        again: whether another attempt may help.
        wait: seconds before it at least.
        refused: whether every other request would fail too.
        status: of HTTP, if it is an error.
    """

    reply: str | None
    reason: str = ""
    again: bool = False
    wait: float = 0.0
    refused: bool = False
    status: int | None = None


def failed_attempt(status: int, headers: Message) -> Attempt:
    """The attempt of a response with an error status: whether and when to retry, or to stop."""
    if 300 <= status < 400:
        what = f"HTTP {status}: a redirect, which is not followed, to protect the key"
        return Attempt(None, what, refused=True, status=status)
    again = status == 429 or status >= 500
    delay = headers.get("Retry-After", "")
    wait = float(delay) if delay.isdecimal() else 0.0
    refused = status in (401, 403, 404)
    return Attempt(None, f"HTTP {status}", again=again, wait=wait, refused=refused, status=status)


def has_length(response: HTTPResponse) -> bool:
    """Whether the response has a length; without one, a broken connection looks like the end of the reply."""
    return response.chunked or response.headers.get("Content-Length") is not None


def read_body(response: HTTPResponse) -> bytes:
    """The body, if it is not larger than a reply may be.

    Raises:
        HTTPException: if it is larger, or ends before the length that the endpoint announced.
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


def parse_reply(data: bytes, text_at: Sequence[str], *, whole: bool = True) -> Attempt:
    """The reply in a body. A malformed body is described, not quoted.

    Args:
        text_at: where the text is in the first choice.
        whole: whether the body is complete; if that is unknown, one that is not JSON is worth another attempt.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return Attempt(None, f"its answer, of {len(data)} bytes, is not JSON", again=not whole)
    try:
        content = found["choices"][0]
        for name in text_at:
            content = content[name]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        return Attempt(None, f"its answer has no text at choices[0].{'.'.join(text_at)}")
    return Attempt(content)


class Deadline:
    """A moment at which connections end.

    Attributes:
        opener: opens addresses by such connections, through the proxies of the environment; follows no redirect.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.opener: OpenerDirector = build_opener(_NoRedirect, _Http(self), _Https(self))

    @property
    def left(self) -> float:
        """Seconds; at least a little, for zero would mean no limit."""
        return max(self._end - time.monotonic(), 1e-3)

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def connect(self, address: tuple[str, int], timeout: Any = None, source: Any = None) -> socket.socket:
        """As ``socket.create_connection``, within the time that is left.

        Raises:
            TimeoutError: if the moment came while it was connecting: ``end`` would not end this connection any more.
        """
        connection = socket.create_connection(address, self.left, source)
        with self._lock:
            # A copy that leads to the same connection: TLS takes the first one over.
            self._sockets.append(connection.dup())
        if self.over:
            connection.close()
            raise TimeoutError("the connection was not made in time")
        return connection

    def end(self) -> None:
        """Shut down all connections, which ends reads from them."""
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            for connection in self._sockets:
                connection.close()
            self._sockets.clear()


@contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Within the block, requests through ``opener`` end after so many seconds, with any error of the network; ``over``
    says whether the deadline was the reason."""
    made = Deadline(seconds)
    timer = threading.Timer(seconds, made.end)
    timer.daemon = True
    timer.start()
    try:
        yield made
    finally:
        timer.cancel()
        made.close()


class _Http(HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_watched, HTTPConnection, self._deadline), req)


class _Https(HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_watched, HTTPSConnection, self._deadline), req)


def _watched(kind: type[HTTPConnection], deadline: Deadline, host: str, **settings: Any) -> HTTPConnection:
    connection = kind(host, **settings)
    connection._create_connection = deadline.connect  # type: ignore[attr-defined]  # its one hook for sockets
    return connection


class _NoRedirect(HTTPRedirectHandler):
    """A redirect is an answer like any other failure."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        return None


class EndpointSettings(BaseModel):
    """An endpoint, its limits and retries. Holds no secret: it may be written to a results file."""

    # A rejected value may be a secret in the wrong place.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str = Field(description="of the endpoint; its last part is /v1 as a rule")
    model: str = Field(min_length=1, description="the model's name there")
    key_variable: str | None = Field(None, min_length=1, description="environment variable that holds the key, if any")
    timeout: float = Field(60.0, gt=0, allow_inf_nan=False, description="seconds for one request in all")
    retries: int = Field(4, ge=0, description="further attempts after 429, 5xx, a timeout or a broken connection")
    backoff: float = Field(1.0, ge=0, allow_inf_nan=False, description="seconds before the first retry; then doubled")
    longest_backoff: float = Field(30.0, ge=0, allow_inf_nan=False, description="seconds before a retry at most")
    workers: int = Field(8, ge=1, le=64, description="requests under way at the same time")
    give_up_after: int = Field(8, ge=1, description="stop after this many consecutive failed requests")

    @field_validator("key_variable")
    @classmethod
    def _a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError("it must be the name of an environment variable that holds the key, not the key itself")
        return name

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the address must begin with http:// or https:// and name a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            # The address is written into results.
            raise ValueError("the address must hold no user, password, '?' or '#'; put a key into the environment")
        return url.rstrip("/")


T = TypeVar("T", bound=Hashable)


class EndpointClient:
    """Sends each distinct request once, several at a time, and again where that may help.

    Args:
        key: reads the key; None: none is sent.
        whose: the endpoint in messages.
        sleep: waits, in seconds.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        key: Callable[[], str | None],
        whose: str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self._key, self._whose, self._sleep = key, whose, sleep
        self.gave_up = ""  # why the last call of ``replies`` ended early; empty if all requests were sent

    def replies(
        self,
        entries: Sequence[T],
        body_of: Callable[[T], Mapping[str, Any]],
        *,
        path: str = "chat/completions",
        text_at: Sequence[str] = ("message", "content"),
        report: Report = silent,
        what: str = "requesting",
    ) -> list[Attempt]:
        """The last attempt for each entry, in their order.

        When the endpoint refuses the key, the model or the address, or fails ``give_up_after`` times in a row, the
        rest is not requested, and has that as its reason.

        Args:
            body_of: the JSON of an entry's request, without the model.
            path: below the base URL.
            text_at: see ``parse_reply``.
            report: progress callback, in distinct entries.
        """
        self._key()
        distinct = list(dict.fromkeys(entries))
        state = _State()
        done = 0
        lock = threading.Lock()

        def request(entry: T) -> Attempt:
            nonlocal done
            found = self._replied(body_of(entry), path, text_at, state)
            with lock:
                done += 1
                report(what, done, len(distinct))
            return found

        with ThreadPoolExecutor(self.settings.workers) as pool:
            try:
                found = dict(zip(distinct, pool.map(request, distinct), strict=True))
            except BaseException:
                state.over = "interrupted"  # what is under way makes no further attempts
                raise
        self.gave_up = state.over
        return [found[entry] for entry in entries]

    def without_key(self, text: str) -> str:
        """A text from the endpoint as it may be shown."""
        key = self._key()
        return text if key is None else text.replace(key, "***")

    def _replied(self, body: Mapping[str, Any], path: str, text_at: Sequence[str], state: _State) -> Attempt:
        if state.over:
            return Attempt(None, f"not requested, because {self._whose} failed earlier: {state.over}")
        pause = self.settings.backoff
        attempt = self._attempt(body, path, text_at)
        for _ in range(self.settings.retries):
            if not attempt.again or state.over:
                break
            self._sleep(min(max(pause, attempt.wait), self.settings.longest_backoff))
            pause *= 2
            attempt = self._attempt(body, path, text_at)
        state.note(attempt, self.settings.give_up_after)
        return attempt

    def _attempt(self, body: Mapping[str, Any], path: str, text_at: Sequence[str]) -> Attempt:
        key = self._key()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        data = json.dumps({"model": self.settings.model, **body}).encode()
        request = Request(f"{self.settings.base_url}/{path}", data, headers)
        if key is not None:
            # Of this kind no header is ever copied into another request.
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with deadline(self.settings.timeout) as until:
            try:
                with until.opener.open(request, timeout=self.settings.timeout) as response:
                    answer, whole = read_body(response), has_length(response)
                    if until.over and not whole:  # the deadline cut it off
                        raise TimeoutError
                    return parse_reply(answer, text_at, whole=whole)
            except HTTPError as error:
                # Its body is not shown: it may contain anything, even the key.
                error.close()
                return failed_attempt(error.code, error.headers)
            except (HTTPException, OSError) as error:
                if until.over or isinstance(error, TimeoutError):
                    return Attempt(None, f"no reply within {self.settings.timeout:g} s", again=True)
                if isinstance(error, URLError):
                    return Attempt(None, f"no connection: {type(error.reason).__name__}", again=True)
                return Attempt(None, f"the connection broke: {type(error).__name__}", again=True)


def read_key(name: str | None, environment: Mapping[str, str], *, whose: str, missing: str, invalid: str) -> str | None:
    """The key in an environment variable; None without a variable's name.

    Args:
        whose: the endpoint in messages.
        missing, invalid: codes of the errors.

    Raises:
        InputError: if the variable is not set or empty, or cannot be a key.
    """
    if name is None:
        return None
    if name not in environment:
        # The name is not printed: it may be the key, given by mistake.
        what = f"the environment variable that should hold {whose} key is not set"
        raise InputError(what, remedy="Give the name of the variable, not the key, and set it", code=missing)
    key = environment[name].strip()
    remedy = f"Set it to {whose} API key"
    if not key:
        what = f"the environment variable {name} is empty, expected {whose} API key"
        raise InputError(what, remedy=remedy, code=missing)
    if not (key.isascii() and key.isprintable()) or " " in key:
        what = f"the key in the environment variable {name} contains spaces, control or non-ASCII characters"
        raise InputError(what, remedy=remedy, code=invalid)
    return key


class _State:
    """The endpoint's state, shared by the threads of one call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self.over = ""

    def note(self, attempt: Attempt, give_up_after: int) -> None:
        with self._lock:
            self._failures = 0 if attempt.reply is not None else self._failures + 1
            if attempt.refused or self._failures >= give_up_after:
                self.over = self.over or attempt.reason
