"""The judge against an endpoint on this machine that also is slow, errs, answers garbage and sends it elsewhere."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from errata.cli.main import run
from errata.errors import InputError
from errata.evaluation.judge import Case, HttpJudge, Judge, JudgeSettings, Verdict, read_verdict
from errata.utils.endpoints import deadline

from tests.support.judge_server import JudgeServer, Step, judge_server

KEY = "sk-very-secret-0123456789"
ENVIRONMENT = {"JUDGE_KEY": KEY}
CASE = Case("The capital of Italy is", ("Rome", "Roma"), "It is Rome")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def judge_at(server: JudgeServer, waits: list[float] | None = None, **settings: Any) -> HttpJudge:
    values = {"timeout": 5.0, "workers": 1, "key_variable": "JUDGE_KEY", **settings}
    return HttpJudge(
        JudgeSettings(base_url=server.address, model="grader", **values),
        environment=ENVIRONMENT,
        sleep=(waits if waits is not None else []).append,
    )


def test_a_case_is_put_to_the_endpoint_and_its_verdict_read() -> None:
    with judge_server(rule={CASE.question: "CORRECT", "other": "**Incorrect.**"}) as server:
        judge = judge_at(server, max_tokens=5)
        assert isinstance(judge, Judge)
        verdicts = judge.judge([CASE, Case("other", ("a",), "b"), CASE])
        judge.check()
    assert verdicts == [Verdict(True), Verdict(False), Verdict(True)]
    assert server.paths == ["/v1/chat/completions"] * 3, "equal cases are asked once"
    assert server.authorizations == [f"Bearer {KEY}"] * 3
    first = server.requests[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("grader", 0, 5)
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert json.loads(first["messages"][1]["content"]) == {
        "question": CASE.question,
        "right_answers": ["Rome", "Roma"],
        "answer": "It is Rome",
    }


def test_without_a_key_none_is_sent() -> None:
    with judge_server() as server:
        assert judge_at(server, key_variable=None).judge([CASE]) == [Verdict(True)]
        assert judge_at(server).judge([]) == []
    assert server.authorizations == [None]
    assert "max_tokens" not in server.requests[0]


def test_many_cases_are_judged_at_the_same_time_but_not_more_than_allowed() -> None:
    cases = [Case(f"question {index}", ("a",), "b") for index in range(24)]
    rule = {f"question {index}": "INCORRECT" for index in range(0, 24, 3)}
    updates: list[tuple[str, int, int]] = []
    with judge_server(rule=rule) as server:
        judge = HttpJudge(
            JudgeSettings(base_url=server.address, model="m", workers=4), report=lambda *each: updates.append(each)
        )
        verdicts = judge.judge(cases)
    assert [verdict.correct for verdict in verdicts] == [index % 3 != 0 for index in range(24)]
    assert 2 <= server.most_at_once <= 4
    assert sorted(updates) == [("judging", done, 24) for done in range(1, 25)]


@pytest.mark.parametrize(
    "failure",
    [
        Step(status=429),
        Step(status=500, body=b"no"),
        Step(status=503),
        Step(reply="CORRECT", wait=30.0),
        Step(reply="CORRECT", drip=0.5),
        Step(hang_up=True),
        Step(status=200, headers={"transfer-encoding": "nonsense"}, hang_up=True),
    ],
)
def test_what_may_pass_is_tried_again(failure: Step) -> None:
    waits: list[float] = []
    with judge_server(failure, failure) as server:
        judge = judge_at(server, waits, timeout=1.0, backoff=0.5)  # enough for a good reply on a busy machine
        assert judge.judge([CASE]) == [Verdict(True)]
    assert len(server.requests) == 3
    assert waits == [0.5, 1.0]


def test_attempts_and_waits_are_bounded() -> None:
    waits: list[float] = []
    with judge_server(*[Step(status=503)] * 9) as server:
        verdicts = judge_at(server, waits, retries=4, backoff=1.0, longest_backoff=5.0).judge([CASE])
        assert verdicts == [Verdict(None, "HTTP 503")]
        assert len(server.requests) == 5
        assert waits == [1.0, 2.0, 4.0, 5.0]
        server.steps = [Step(status=429, headers={"Retry-After": "3"}), Step(status=429, headers={"Retry-After": "99"})]
        waits.clear()
        assert judge_at(server, waits, longest_backoff=10.0).judge([CASE]) == [Verdict(True)]
        assert waits == [3.0, 10.0], "as long as the endpoint asks for, within bounds"


def test_a_silent_endpoint_is_left_after_the_timeout() -> None:
    dripping = [Step(reply="CORRECT", drip=0.1, length=length) for length in (True, False)]
    with judge_server(Step(reply="CORRECT", wait=60), *dripping) as server:
        judge = judge_at(server, timeout=0.3, retries=0)
        assert judge.judge([CASE]) == [Verdict(None, "no reply within 0.3 s")]
        for _ in dripping:
            assert judge.judge([CASE]) == [Verdict(None, "no reply within 0.3 s")], "though each byte comes in time"
    assert judge.judge([CASE])[0].reason.startswith("no connection"), "the server has gone"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Step(body=b"<html>busy</html>"), "is not JSON"),
        (Step(body=b"[" * 100_000), "is not JSON"),
        (Step(body=b"\xff\xfe"), "is not JSON"),
        (Step(body=b"{}"), "no text at choices"),
        (Step(body=b'{"choices": []}'), "no text at choices"),
        (Step(body=b'{"choices": [{"message": {"content": null}}]}'), "no text at choices"),
        (Step(body=b"[1]"), "no text at choices"),
        (Step(reply="I am not sure"), "neither CORRECT nor INCORRECT: 'I am not sure'"),
        (Step(reply=""), "neither CORRECT nor INCORRECT"),
        (Step(status=400), "HTTP 400"),
    ],
)
def test_unreadable_answers_are_reported_and_not_asked_for_again(step: Step, reason: str) -> None:
    with judge_server(step) as server:
        (verdict, other) = judge_at(server).judge([CASE, Case("other", ("a",), "b")])
    assert verdict.correct is None
    assert reason in verdict.reason
    assert other == Verdict(True), "one bad answer spoils no other"
    assert len(server.requests) == 2


def test_a_reply_without_end_is_cut_off() -> None:
    with judge_server(Step(body=b"x" * (3 << 20))) as server:
        (verdict,) = judge_at(server, retries=0).judge([CASE])
    assert verdict == Verdict(None, "the connection broke: HTTPException")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_repeated_for_every_case(status: int) -> None:
    with judge_server(*[Step(status=status, body=f"bad key {KEY}".encode())] * 9) as server:
        judge = judge_at(server)
        first, *others = judge.judge([Case(str(index), ("a",), "b") for index in range(5)])
        assert first == Verdict(None, f"HTTP {status}")
        assert {other.reason for other in others} == {f"not requested, because the judge failed earlier: HTTP {status}"}
        assert len(server.requests) == 1
        with pytest.raises(InputError, match=f"'grader' at .* does not answer: HTTP {status}") as caught:
            judge.check()
        assert KEY not in str(caught.value)


def test_an_endpoint_that_always_fails_is_given_up() -> None:
    cases = [Case(str(index), ("a",), "b") for index in range(9)]
    with judge_server(*[Step(status=500)] * 99) as server:
        verdicts = judge_at(server, retries=1, give_up_after=3).judge(cases)
        assert len(server.requests) == 6
    assert [verdict.reason.partition(",")[0] for verdict in verdicts] == ["HTTP 500"] * 3 + ["not requested"] * 6


@pytest.mark.parametrize("kind", ["headers", "continue"])
def test_headers_without_end_meet_the_deadline(kind: str) -> None:
    """A byte now and then keeps every single read within its timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                while not over.wait(0.0 if kind == "continue" else 0.05):
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" if kind == "continue" else b"H")

        thread = threading.Thread(target=serve)
        thread.start()
        settings = JudgeSettings(
            base_url=f"http://127.0.0.1:{listening.getsockname()[1]}/v1", model="m", timeout=0.5, retries=0
        )
        started = time.monotonic()
        (verdict,) = HttpJudge(settings).judge([CASE])
        taken = time.monotonic() - started
        over.set()
        thread.join()
    assert verdict == Verdict(None, "no reply within 0.5 s")
    assert taken < 5.0


def test_a_connection_that_is_made_after_the_deadline_is_not_used() -> None:
    """Nothing would end it."""
    with socket.create_server(("127.0.0.1", 0)) as listening, deadline(0.01) as until:
        time.sleep(0.05)
        with pytest.raises(TimeoutError):
            until.connect(listening.getsockname())


@pytest.mark.parametrize("length", [True, False])
def test_a_reply_that_is_cut_off_is_asked_for_again(length: bool) -> None:
    body = json.dumps({"choices": [{"message": {"content": "CORRECT"}}]}).encode()
    with judge_server(Step(body=body, cut=20, length=length), Step(body=body, cut=0, length=length)) as server:
        judge = judge_at(server, [])
        assert judge.judge([CASE]) == [Verdict(True)]
        assert len(server.requests) == 3


@pytest.mark.parametrize("key", ["sk-very-secret-0123456789", "averysecretkeyofhexdigits"])
def test_a_key_in_place_of_its_variables_name_is_not_shown(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--judge-model", "m", "--judge-key", key, "--judge", "http://localhost/v1", "--measure", "free"]
    assert run(["bench", "--methods", "memit", "--edits", "1", *options, "--dry-run"]) == 2
    said = "".join(capsys.readouterr())
    assert key not in said
    assert "environment variable" in " ".join(said.split())


@pytest.mark.parametrize(
    "judge",
    [
        {"base_url": f"http://user:{KEY}@host/v1", "model": "m"},
        {"base_url": "http://host/v1", "model": "m", "api_key": KEY},
        {"base_url": "http://host/v1", "model": "m", "timeout": KEY},
        f"http://user:{KEY}@host/v1",
        [KEY],
    ],
)
def test_secrets_in_a_grid_are_not_shown(judge: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "grid.yaml"
    for options in ({"free": {"judge": judge}}, {"free": judge}, judge):
        measures = {"parts": ["free"], "options": options}
        grid.write_text(json.dumps({"methods": ["memit"], "edits": 1, "measures": measures}), encoding="utf-8")
        assert run(["bench", str(grid), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "out.json")]) == 2
        assert KEY not in "".join(capsys.readouterr())
        assert {path.name for path in tmp_path.iterdir()} == {"grid.yaml"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_does_not_follow_a_redirect(status: int) -> None:
    with judge_server() as other, judge_server() as server:
        server.steps = [Step(status=status, headers={"Location": f"{other.address}/chat/completions"})] * 3
        (verdict,) = judge_at(server).judge([CASE])
    assert other.requests == []
    assert verdict.correct is None
    assert f"HTTP {status}: a redirect, which is not followed" in verdict.reason
    assert len(server.requests) == 1


def test_the_key_is_nowhere(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    echo = f"Bearer {KEY}"
    steps = [
        Step(reply=f"you sent {echo}"),
        Step(body=echo.encode()),
        Step(status=400, body=echo.encode(), headers={"X-Key": echo}),
        Step(status=500, body=echo.encode()),
        Step(hang_up=True),
    ]
    with caplog.at_level(logging.DEBUG), judge_server(*steps) as server:
        judge = judge_at(server, retries=0)
        verdicts = judge.judge([Case(str(index), ("a",), "b") for index in range(5)])
    assert all(verdict.correct is None for verdict in verdicts)
    assert "***" in verdicts[0].reason
    shown = [repr(verdicts), repr(judge), repr(judge.settings), judge.settings.model_dump_json(), caplog.text]
    shown += [repr(value) for value in vars(judge).values() if value is not ENVIRONMENT]
    shown += list(capsys.readouterr())
    assert not any(KEY in text for text in shown)
    assert "JUDGE_KEY" in judge.settings.model_dump_json()


@pytest.mark.parametrize("value", ["", "  ", "a b", "a\nb", "é"])
def test_a_key_that_is_none_is_refused_without_telling_it(value: str) -> None:
    settings = JudgeSettings(base_url="http://localhost", model="m", key_variable="JUDGE_KEY")
    with pytest.raises(InputError, match="JUDGE_KEY") as caught:
        HttpJudge(settings, environment={"JUDGE_KEY": value})
    assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/v1",
        "host/v1",
        "",
        "http://",
        "http://user:password@host/v1",
        "http://host/v1?key=1",
        "http://host/v1#x",
    ],
)
def test_an_address_that_cannot_be_asked_or_holds_a_secret_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="the address must") as caught:
        JudgeSettings(base_url=address, model="m")
    assert "password" not in str(caught.value).replace("no user, password", "")
    assert JudgeSettings(base_url="http://host/v1/", model="m").base_url == "http://host/v1"


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("CORRECT", True),
        (" incorrect.\n", False),
        ("**Correct**", True),
        ("Let me think. It is incorrect?\n\nCORRECT", True),
        ("not correct", None),
        ("CORRECT or INCORRECT", None),
        ("correct\nbecause it says so", None),
        ("", None),
    ],
)
def test_replies(reply: str, verdict: bool | None) -> None:
    assert read_verdict(reply) is verdict
