"""A server of one file on this machine, which can be as unreliable as the web is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class FileServer(ThreadingHTTPServer):
    """Serves ``content`` at every path.

    Attributes:
        ranges: whether it honours a Range.
        tag: its ETag; none if empty.
        length: whether it tells how long the answer is; otherwise it sends chunks.
        statuses: what the next requests are answered with instead, one each.
        break_after: how many bytes the next answers send before the connection ends, one each.
        redirect: where it sends everybody, if anywhere.
        asked: the Range of every request, "" for none.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.ranges = True
        self.tag = '"one"'
        self.length = True
        self.wrong_range = False
        self.statuses: list[int] = []
        self.break_after: list[int] = []
        self.redirect = ""
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.json"


@contextmanager
def file_server(content: bytes) -> Iterator[FileServer]:
    with FileServer(content) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range", "")
        server.asked.append(wanted)
        self.close_connection = True
        if server.redirect:
            self._end(302, Location=server.redirect)
            return
        if server.statuses:
            self._end(server.statuses.pop(0))
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start and self.headers.get("If-Range", server.tag) != server.tag:
            start = 0
        if start and start >= len(server.content):
            self._end(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            stated = 0 if server.wrong_range else start
            self.send_header("Content-Range", f"bytes {stated}-{len(server.content) - 1}/{len(server.content)}")
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        whole = not server.break_after
        sent = body if whole else body[: server.break_after.pop(0)]
        self.wfile.write(sent if server.length else b"%x\r\n%s\r\n" % (len(sent), sent))
        if whole and not server.length:
            self.wfile.write(b"0\r\n\r\n")

    def _end(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
