"""HTTP requests that end at a moment, whatever the other side does.

The timeout of a socket counts for one read, so a server that sends a byte now and then would never meet it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener


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
        """Whoever reads from a connection now finds its end."""
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
    """Within the block, requests through ``opener`` end after so many seconds. What they raise then is any error of the
    network: ask ``over`` for the reason."""
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
        def connection(host: str, **settings: Any) -> HTTPConnection:
            return _watched(HTTPConnection(host, **settings), self._deadline)

        return self.do_open(connection, req)


class _Https(HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: Request) -> HTTPResponse:
        def connection(host: str, **settings: Any) -> HTTPConnection:
            return _watched(HTTPSConnection(host, **settings), self._deadline)

        return self.do_open(connection, req)


def _watched(connection: HTTPConnection, deadline: Deadline) -> HTTPConnection:
    connection._create_connection = deadline.connect  # type: ignore[attr-defined]  # its one hook for sockets
    return connection


class _NoRedirect(HTTPRedirectHandler):
    """A redirect is an answer like any other failure."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        return None
