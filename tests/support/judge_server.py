"""An endpoint: each request is answered by the next of the steps that a test wrote down, or by a rule."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Step:
    """One answer: a status, a body or a reply in the endpoint's form, after a wait."""

    status: int = 200
    reply: str | None = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    hang_up: bool = False
    drip: float = 0.0  # seconds between the body's bytes
    cut: int | None = None  # bytes of the body after which the connection ends
    length: bool = True  # whether it says how long the body is


class JudgeServer(ThreadingHTTPServer):
    """Attributes:
    requests: the JSON of every request, in the order in which they came.
    authorizations: what stood in each one's header, None if nothing did.
    most_at_once: how many waited for their replies together.
    """

    daemon_threads = True

    def __init__(self, steps: Sequence[Step], rule: dict[str, str] | Callable[[str], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.steps = list(steps)
        self.rule = rule
        self.requests: list[Any] = []
        self.authorizations: list[str | None] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        self.under_way = 0
        self.lock = threading.Lock()
        self.over = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A judge that has gone is no error."""


@contextmanager
def judge_server(*steps: Step, rule: dict[str, str] | Callable[[str], str] | None = None) -> Iterator[JudgeServer]:
    """Once the steps are used up, every question gets the reply of the rule, a dict or a function, or else CORRECT."""
    with JudgeServer(steps, rule or {}) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        server = self.server
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        request = json.loads(data) if data else None
        with server.lock:
            server.requests.append(request)
            server.authorizations.append(self.headers.get("authorization"))
            server.paths.append(self.path)
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
            step = server.steps.pop(0) if server.steps else None
        try:
            step = step or Step(reply=self._by_rule(request))
            server.over.wait(step.wait)
        finally:
            # Before the reply goes out: whoever has read it may ask again before this thread goes on.
            with server.lock:
                server.under_way -= 1
        self._answer(step)

    def _by_rule(self, request: Any) -> str:
        if request is None:
            return "CORRECT"
        if callable(self.server.rule):
            return self.server.rule(request["prompt"] if "prompt" in request else request["messages"][-1]["content"])
        question = json.loads(request["messages"][-1]["content"])["question"]
        self.server.over.wait(0.02)  # long enough for others to come at the same time
        return self.server.rule.get(question, "CORRECT")

    def _answer(self, step: Step) -> None:
        if step.hang_up:
            self.connection.close()
            return
        body = step.body
        if step.reply is not None:
            message = {"message": {"role": "assistant", "content": step.reply}}
            choice = message if self.path.endswith("/chat/completions") else {"text": step.reply}
            body = json.dumps({"choices": [choice]}).encode()
        self.send_response(step.status)
        for name, value in step.headers.items():
            self.send_header(name, value)
        if step.length:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        body = body[: step.cut]
        for byte in [body] if not step.drip else [body[index : index + 1] for index in range(len(body))]:
            self.wfile.write(byte)
            self.wfile.flush()
            self.server.over.wait(step.drip)
