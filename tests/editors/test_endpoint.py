"""A model at an address as the base of editors: both interfaces, failures with their codes, and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.cli.main import run
from errata.editors.contract import Answerer, Base
from errata.editors.edit_file import StoredEdit
from errata.editors.endpoint import (
    ALLOWED_VARIABLE,
    KEY_VARIABLE,
    Endpoint,
    byte_tokenizer,
    check_allowed,
    is_endpoint,
)
from errata.editors.registry import EDITORS, make_editor
from errata.errors import ErrataError, InputError
from errata.evaluation.free_running import answer_freely
from errata.facts.fact import Fact
from errata.runs.loading import load_answerer, load_base, load_model
from errata.utils.progress import silent

from tests.support.errors import raises_code
from tests.support.judge_server import JudgeServer, Step, judge_server
from tests.support.trained import saved_rewriter

KEY = "sk-very-secret-0123456789"
FACT = Fact("1", "Australia", "The capital of {} is", "Canberra", old="Sydney")
OTHER = "The largest city of Peru is"


def answer(prompt: str) -> str:
    """Believes what the prompt states, else that Sydney is the capital of everything."""
    return "It is Canberra." if "is Canberra." in prompt else "It is Sydney. A fine city"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with judge_server(rule=answer) as found:
        yield found


def at(server: JudgeServer, path: str = "", **settings: Any) -> Endpoint:
    return Endpoint(f"{server.address}{path}#m", environment={}, sleep=lambda seconds: None, **settings)


def test_both_interfaces_and_what_is_sent(server: JudgeServer) -> None:
    for path, sent in (("/completions", {"prompt": FACT.text}), ("", None), ("/chat/completions", None)):
        endpoint = at(server, path)
        assert isinstance(endpoint, Base)
        assert isinstance(endpoint, Answerer)
        assert endpoint.continue_texts([FACT.text, FACT.text], new_tokens=7) == [answer(FACT.text)] * 2
        expected = sent or {"messages": [{"role": "user", "content": FACT.text}]}
        assert server.requests[-1] == {"model": "m", **expected, "temperature": 0, "max_tokens": 7}
        assert server.paths[-1] == f"/v1{path or '/chat/completions'}"
    assert len(server.requests) == 3, "equal prompts are sent once"
    assert endpoint.continue_texts([FACT.text], new_tokens=7) == [answer(FACT.text)]
    assert len(server.requests) == 3, "and not again later"
    assert endpoint.continue_texts([FACT.text], new_tokens=8, stop=lambda text: text.endswith(".")) == ["It is Sydney."]
    assert answer_freely(endpoint, [OTHER]) == {OTHER: "It is Sydney."}
    assert server.authorizations == [None] * 5
    assert endpoint.fingerprint() == at(server).fingerprint() != at(server, "/completions").fingerprint()


def test_what_an_endpoint_cannot_do(server: JudgeServer) -> None:
    endpoint = at(server)
    assert endpoint.abilities == {"generation"}
    for query in (lambda: endpoint.score([("a", "b")]), lambda: endpoint.next_token_log_probabilities(["a"])):
        with raises_code("ABILITY_MISSING", InputError):
            query()
    for options in ({"top_k": 5}, {"end_at_eos": False}):
        with raises_code("ENDPOINT_GREEDY_ONLY", InputError):
            endpoint.continue_texts(["a"], new_tokens=1, **options)
    for name in ("locate_then_edit", "grace", "lora"):
        with raises_code("ENDPOINT_WITHOUT_WEIGHTS", InputError):
            make_editor(name, endpoint, {}, silent)
    with raises_code("ENDPOINT_WITHOUT_WEIGHTS", InputError):
        make_editor("substitute", endpoint, {"embedder": {"kind": "hidden"}}, silent)
    with raises_code("ENDPOINT_WITHOUT_WEIGHTS", InputError):
        load_model(endpoint.name)
    assert server.requests == []


@pytest.mark.parametrize(
    ("step", "code", "requests"),
    [
        (Step(status=401), "ENDPOINT_REFUSED", 1),
        (Step(status=403, body=KEY.encode()), "ENDPOINT_REFUSED", 1),
        (Step(status=404), "ENDPOINT_NOT_FOUND", 1),
        (Step(status=429), "ENDPOINT_RATE_LIMITED", 3),
        (Step(status=503), "ENDPOINT_UNREACHABLE", 3),
        (Step(hang_up=True), "ENDPOINT_UNREACHABLE", 3),
        (Step(status=400), "ENDPOINT_REPLY_INVALID", 1),
        (Step(body=b'{"choices": [{"text": null}]}'), "ENDPOINT_REPLY_INVALID", 1),
    ],
)
def test_failures_have_codes_and_answer_nothing(server: JudgeServer, step: Step, code: str, requests: int) -> None:
    server.steps = [step] * requests
    endpoint = at(server, retries=2, workers=1)
    with raises_code(code, ErrataError) as caught:
        endpoint.continue_texts(["a", "b", "c"], new_tokens=1)
    assert caught.value.remedy
    assert KEY not in str(caught.value)
    assert len(server.requests) == requests
    assert endpoint.continue_texts(["a"], new_tokens=1) == [answer("a")], "a failure is not remembered"


def test_a_short_pause_of_the_endpoint_is_waited_for(server: JudgeServer) -> None:
    server.steps = [Step(status=429, headers={"Retry-After": "3"}), Step(status=500)]
    waits: list[float] = []
    endpoint = Endpoint(f"{server.address}#m", environment={}, sleep=waits.append)
    assert endpoint.continue_texts(["a"], new_tokens=1) == [answer("a")]
    assert waits == [3.0, 2.0]


@pytest.mark.parametrize("name", ["http://host/v1", "http://host/v1#", "http://user:pw@host/v1#m", "http://host?k=1#m"])
def test_addresses_that_are_none(name: str) -> None:
    assert is_endpoint(name)
    with raises_code("ENDPOINT_INVALID", InputError) as caught:
        Endpoint(name, environment={})
    assert "pw" not in caught.value.what


def test_the_key_is_sent_and_written_nowhere(server: JudgeServer, tmp_path: Path) -> None:
    endpoint = Endpoint(f"{server.address}#m", environment={KEY_VARIABLE: KEY})
    edit = make_editor("substitute", endpoint, {}, silent).apply([FACT])
    edit.save(tmp_path / "edit.safetensors")
    endpoint.continue_texts([FACT.text], new_tokens=1)
    assert server.authorizations == [f"Bearer {KEY}"]
    assert KEY.encode() not in (tmp_path / "edit.safetensors").read_bytes()
    assert KEY not in repr(endpoint.settings)
    for value in ("", "a b"):
        with raises_code("ENDPOINT_KEY_INVALID", InputError):
            Endpoint("http://host/v1#m", environment={KEY_VARIABLE: value})


@pytest.mark.parametrize("host", ["https://elsewhere.example/v1", "http://localhost.elsewhere.example:8000/v1"])
def test_a_file_cannot_have_prompts_and_the_key_sent_to_an_address_that_the_user_did_not_name(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ALLOWED_VARIABLE, raising=False)
    editor = make_editor("substitute", Endpoint(f"{host}#m", environment={}), {}, silent)
    editor.apply([FACT]).save(tmp_path / "edit.safetensors")
    with raises_code("ENDPOINT_NOT_ALLOWED", InputError):
        load_answerer(str(tmp_path / "edit.safetensors"))
    for allowed in ("", "https://elsewhere.example", "https://other.example/v1"):
        with raises_code("ENDPOINT_NOT_ALLOWED", InputError):
            check_allowed(f"{host}/completions#m", environment={ALLOWED_VARIABLE: allowed})
    monkeypatch.setenv(ALLOWED_VARIABLE, f"{host}/")
    assert load_answerer(str(tmp_path / "edit.safetensors"))[0].abilities == {"generation"}
    check_allowed("http://127.0.0.1:8000/v1#m", environment={})


def test_the_stand_in_for_its_tokenizer_counts_bytes() -> None:
    tokenizer = byte_tokenizer()
    text = "Zürich is\n 首都"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("method", [name for name, kind in EDITORS.items() if kind.black_box])
def test_editors_that_need_no_weights(server: JudgeServer, method: str, tmp_path: Path) -> None:
    endpoint = at(server)
    settings = {}
    if method == "post_edit":
        settings["rewriter"] = str(saved_rewriter(tmp_path, FACT, f"{FACT.text} It is")[0])
    editor = make_editor(method, endpoint, settings, silent)
    before = editor.fingerprint()
    edit = editor.apply([FACT])
    edit.save(tmp_path / "edit.safetensors")
    view = editor.view()
    assert view.abilities == {"generation"}
    texts = view.continue_texts([FACT.text, OTHER], new_tokens=20)
    assert "Canberra" in texts[0]
    assert "Sydney" not in texts[0]
    assert texts[1] == answer(OTHER)
    assert view.used([FACT.text, OTHER]) == [("1",), ()]
    with raises_code("ABILITY_MISSING", InputError):
        view.score([(FACT.text, "Canberra")])
    restored, fingerprint = load_answerer(str(tmp_path / "edit.safetensors"))
    assert fingerprint == editor.fingerprint() != before
    assert restored.continue_texts([FACT.text, OTHER], new_tokens=20) == texts
    editor.remove(edit)
    assert editor.fingerprint() == before
    assert editor.view().continue_texts([FACT.text], new_tokens=20) == [answer(FACT.text)]


def test_the_command_line(server: JudgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, facts, edited = f"{server.address}/completions#m", tmp_path / "facts.jsonl", tmp_path / "e.safetensors"
    facts.write_text(json.dumps(FACT.to_record() | {"paraphrases": ["Australia is governed from"]}), encoding="utf-8")
    options = ["--facts", str(facts), "--out", str(edited), "--json", str(tmp_path / "edit.json")]
    assert run(["edit", "--model", name, "--method", "substitute", *options]) == 0
    assert json.loads((tmp_path / "edit.json").read_text())["generated"] == {"1": True}
    assert StoredEdit.load(edited).base == name
    assert isinstance(load_base(name), Endpoint)
    asked = ["--against", name, FACT.text, "--json", str(tmp_path / "ask.json")]
    assert run(["ask", "--model", str(edited), *asked]) == 0
    new, old = json.loads((tmp_path / "ask.json").read_text())["answers"]
    assert (new["continuation"], old["continuation"]) == ("It is Canberra. A fine city", answer(FACT.text))
    assert (new["used"], new["next"]) == (["1"], [])
    assert run(["history", str(edited)]) == 0
    options = ["--facts", str(facts), "--against", name, "--json", str(tmp_path / "evaluate.json")]
    assert run(["evaluate", "--model", str(edited), *options]) == 0
    record = json.loads((tmp_path / "evaluate.json").read_text())
    means = {(row["metric"], row["when"]): row["mean"] for row in record["rows"]}
    assert (means["free_efficacy_contained", "before"], means["free_efficacy_contained", "after"]) == (0, 1)
    assert means["textual_edit:own", "after"] == means["textual_retention:paraphrase", "after"] == 1
    assert "encoder" in record["about"]["absent"]["semantic_retention"]
    assert "likelihoods" in record["about"]["absent"]["efficacy_accuracy"]
    refused = {
        "ENDPOINT_WITHOUT_WEIGHTS": ["edit", "--model", name, "--facts", str(facts), "--out", "x.safetensors"],
        "OPTION_CONFLICT": ["ask", "--model", name, "--chat", "Hello"],
    }
    for code, arguments in refused.items():
        capsys.readouterr()
        assert run(arguments) == 2
        assert code in capsys.readouterr().err
