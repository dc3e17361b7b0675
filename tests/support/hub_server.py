"""As much of the hub as an upload asks for, on this machine: it keeps what it is sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class HubServer(ThreadingHTTPServer):
    """Answers every request with ``status``, if that is one of failure.

    Attributes:
        asked: method and path of every request.
        tokens: what stood in their authorization.
        files: path -> content of the last commit.
        made_private: of every repository that was made, whether only its owner may see it.
    """

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.made_private: list[bool] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub_server() -> Iterator[HubServer]:
    with HubServer() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.asked.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("authorization") or "")
        found: dict[str, Any] = {}
        status = self.server.status
        if status != 200:
            found = {"error": f"no, says the server, to {self.headers.get('authorization')}"}
        elif path == "/api/repos/create":
            wanted = json.loads(body)  # older versions of the library say the one, newer ones the other
            self.server.made_private.append(wanted.get("visibility") == "private" or wanted.get("private") is True)
            found = {"url": f"{self.server.address}/owner/name", "id": "owner/name", "name": "owner/name"}
        elif path.endswith("/preupload/main"):
            sent = json.loads(body)["files"]
            found = {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in sent]}
        elif path.endswith("/commit/main"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"{self.server.address}/owner/name/commit/{'0' * 40}"
            found = {"success": True, "commitOid": "0" * 40, "commitUrl": address, "hookOutput": ""}
        elif path == "/api/models/owner/name" or path.endswith("/revision/main"):
            found = {"id": "owner/name", "private": self.server.made_private[-1], "siblings": [], "sha": "0" * 40}
        elif path == "/api/validate-yaml":
            found = {"errors": [], "warnings": []}
        else:
            status = 404
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
