"""``errata serve`` with OpenAI's own client: each state answers as errata's own model does; nothing else is served."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from errata.cli.main import run
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.patches.stack import new_stack
from errata.runs.serving import build_app, served_models

from tests.support.editing import assert_same_bits, parameter_bits, tiny_language_model
from tests.support.errors import raises_code
from tests.test_lora import logits, low_rank, patch_of

openai = pytest.importorskip("openai", reason="needs errata[serve]")
pytest.importorskip("fastapi", reason="needs errata[serve]")
uvicorn = pytest.importorskip("uvicorn", reason="needs errata[serve]")

TEXT = "The capital of France is Paris, the capital of Italy is"


@pytest.fixture(scope="module")
def made() -> tuple[LanguageModel, dict[str, Patch]]:
    """A tiny model, two alternative patches, and one made on top of the first."""
    model = tiny_language_model("llama")
    first, other = (patch_of(model, [low_rank(model, 1, 2, seed=seed)]) for seed in (1, 7))
    first.apply(model)
    second = patch_of(model, [low_rank(model, 1, 1, seed=3), low_rank(model, 4, 1, seed=4)])
    first.undo(model)
    return model, {"first": first, "other": other, "second": second}


def expected(model: LanguageModel, *patches: Patch) -> tuple[torch.Tensor, str]:
    """The logits with some patches, and what greedy decoding makes of the text."""
    for patch in patches:
        patch.apply(model)
    found = logits(model.model), model.continue_texts([TEXT], new_tokens=6)[0].lstrip()  # as the server decodes it
    for patch in reversed(patches):
        patch.undo(model)
    return found


@contextmanager
def served(models: dict[str, PreTrainedModel], model: LanguageModel) -> Iterator[Any]:
    """A client of a server of these models."""
    app = build_app(models, model.tokenizer, ["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        server.should_exit = True
        thread.join()


def test_patches_are_served_on_the_weights_that_they_were_made_for(
    made: tuple[LanguageModel, dict[str, Patch]],
) -> None:
    model, patches = made
    before = parameter_bits(model)
    models = served_models(model, None, list(patches.items()))
    assert list(models) == ["base", "base+first", "base+other", "base+first+second"]
    assert_same_bits(parameter_bits(model), before)
    assert models["base"] is model.model
    for name, served_model in models.items():
        wanted, _ = expected(model, *(patches[part] for part in name.split("+")[1:]))
        torch.testing.assert_close(logits(served_model), wanted, rtol=0, atol=0)
        own = {
            path
            for path, parameter in served_model.named_parameters()
            if parameter.data_ptr() != model.model.get_parameter(path).data_ptr()
        }
        layers = {
            f"model.layers.{term.layer}.mlp.down_proj.weight"
            for part in name.split("+")[1:]
            for term in patches[part].terms
        }
        assert own == layers  # all other weights are shared
    with raises_code("PATCH_OTHER_WEIGHTS", InputError, "'second'"):
        served_models(model, None, [("second", patches["second"])])
    renamed = replace(patches["second"], base="another-model")
    with raises_code("PATCH_OTHER_WEIGHTS", InputError, "another-model"):
        served_models(model, None, [("second", renamed)])
    with raises_code("PATCH_NAME_TWICE", InputError, "base+first"):
        served_models(model, None, [("first", patches["first"]), ("first", patches["other"])])
    assert_same_bits(parameter_bits(model), before)


def test_a_stack_is_served_patch_by_patch(made: tuple[LanguageModel, dict[str, Patch]]) -> None:
    model, patches = made
    stack = new_stack(model, model.fingerprint())
    for name in ("first", "second"):
        stack = stack.with_patch(name, patches[name])
    models = served_models(model, stack)
    assert list(models) == ["base", "base+first", "base+first+second"]
    wanted, _ = expected(model, patches["first"], patches["second"])
    torch.testing.assert_close(logits(models["base+first+second"]), wanted, rtol=0, atol=0)
    without = served_models(model, stack.without(["first"]))  # a patch whose ground was removed
    wanted = logits(without["base+second"])
    patches["second"].apply(model, force=True)
    torch.testing.assert_close(wanted, logits(model.model), rtol=0, atol=0)
    patches["second"].undo(model)
    other = tiny_language_model("llama", seed=1)
    with raises_code("STACK_OTHER_BASE", InputError):
        served_models(other, stack)


def test_openai_s_client_chooses_the_state_by_the_model_s_name(made: tuple[LanguageModel, dict[str, Patch]]) -> None:
    model, patches = made
    models = served_models(model, None, list(patches.items()))
    told = {name: expected(model, *(patches[part] for part in name.split("+")[1:]))[1] for name in models}
    assert len(set(told.values())) == 4
    asked = {"prompt": TEXT, "max_tokens": 6, "temperature": 0}
    with served(models, model) as client:
        assert [entry.id for entry in client.models.list().data] == list(models)
        answers: dict[str, str] = {}

        def ask(name: str) -> None:
            answers[name] = client.completions.create(model=name, **asked).choices[0].text.lstrip()

        threads = [threading.Thread(target=ask, args=(name,)) for name in models]  # states must not mix
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == told
        stream = client.completions.create(model="base+other", stream=True, **asked)
        assert "".join(chunk.choices[0].text for chunk in stream).lstrip() == told["base+other"]
        with pytest.raises(openai.NotFoundError, match=r"base\+first\+second"):
            client.completions.create(model="lab", **asked)
        with pytest.raises(openai.BadRequestError, match="chat_template"):
            client.chat.completions.create(model="base", messages=[{"role": "user", "content": "Hello"}])
        model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        try:
            reply = client.chat.completions.create(
                model="base+first", messages=[{"role": "user", "content": TEXT}], max_tokens=6, temperature=0
            )
        finally:
            model.tokenizer.chat_template = None
        assert reply.model == "base+first"
        assert reply.choices[0].message.content
        # Other entries of transformers' server must neither load nor unload models.
        client.post("/../reset", cast_to=object)
        assert client.completions.create(model="base", **asked).choices[0].text.lstrip() == told["base"]
        loading = client.post("/../load_model", body={"model": "gpt2"}, cast_to=str)
        assert "error" in loading
        rebound = openai.OpenAI(base_url=client.base_url, api_key="x", default_headers={"Host": "evil.example"})
        with pytest.raises(openai.BadRequestError):
            rebound.models.list()


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    model = LanguageModel.load("lab")
    fact = Fact("one", "Milan Lang", 'It\'s "said" that {} lives in', "Rome")
    replace(patch_of(model, [low_rank(model, 1, 1)]), facts=(fact,), base="lab").save(tmp_path / "p.safetensors")
    command = [sys.executable, "-m", "errata", "serve", "--model", "lab", "--port", "0"]
    command += ["--patch", str(tmp_path / "p.safetensors")]
    environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", first)
        assert found is not None, first
        client = openai.OpenAI(base_url=found[0], api_key="none")
        text = "The native city of Milan Lang is"
        answer = client.completions.create(model="base", prompt=text, max_tokens=2, temperature=0).choices[0].text
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 0
    assert answer == model.continue_texts([text], new_tokens=2)[0]
    assert "Stopped." in rest
    # The example asks for the patch's own fact, and survives the shell and JSON.
    (line,) = [line for line in rest.splitlines() if line.strip().startswith("curl")]
    asked = json.loads(shlex.split(line)[-1])
    assert (asked["model"], asked["prompt"]) == ("base+p", fact.text)


def test_a_port_in_use_is_refused_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        # A model that does not exist is a fault that is found later.
        assert run(["serve", "--model", "no-such-model", "--port", str(taken.getsockname()[1])]) == 2
        err = capsys.readouterr().err
        assert "cannot listen" in err
        assert "('127.0.0.1'" not in err
