"""``errata serve``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
import typer

from errata.cli.model_options import DeviceOption, ModelOption, TrustOption, is_lab, outline_of, placement
from errata.cli.terminal import console, echo, progress, warn
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.patches.patch import Patch
from errata.patches.stack import Stack, is_stack, read_stack
from errata.runs.loading import check_weights, load_model, load_patch, stack_of_run
from errata.runs.run import is_run
from errata.runs.serving import build_app, served_models
from errata.utils.optional import require
from errata.utils.sockets import listen

EXAMPLE = """Example: errata serve --model smollm2-135m-instruct --patch edited.safetensors

Example: errata serve --model stack --port 8080"""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
app = typer.Typer()


@app.command("serve", epilog=EXAMPLE)
def serve(
    model: ModelOption = "lab",
    patches: Annotated[
        list[Path] | None,
        typer.Option("--patch", metavar="FILE", help="A patch to serve beside the model; can be repeated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need no key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")] = 8000,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
) -> None:
    """Serve a model, with and without edits, at an OpenAI-compatible endpoint, to try it.

    Requests choose the state by the model's name: `base` is the unedited model, `base+NAME` the one with the patch
    NAME; of a stack, every patch with those below it. The server is that of transformers: completions, chat and
    responses, streamed or not. For production, export the patches (errata export).
    """
    require("errata serve", "serve", "fastapi", "uvicorn", "openai")
    import uvicorn

    with listen(host, port) as listener:
        where = placement(device, None)
        check_weights(model)
        outline_of(model, trust_remote_code=trust_remote_code)  # faults of the model before anything heavy
        found = [(path.stem, load_patch(path)) for path in patches or ()]
        stack = _stack(model, trust_remote_code)
        # Weights have the dtype in which they were edited, to which the patches are bound.
        made_in = stack.dtype if stack is not None else found[0][1].dtype if found else None
        loaded = load_model(
            model if stack is None else stack.base,
            dtype=None if made_in is None else getattr(torch, made_in),
            device=where["device"],
            trust_remote_code=trust_remote_code,
        )
        with progress() as report:
            models = served_models(loaded, stack, found, report=report)
        address = f"http://{host if ':' not in host else f'[{host}]'}:{listener.getsockname()[1]}"
        hosts = ["127.0.0.1", "localhost", "[::1]"] if host in _LOOPBACK else ["*"]
        application = build_app(models, loaded.tokenizer, hosts)
        if host not in _LOOPBACK:
            warn(f"note: {host} may be reached from other machines, and the server asks for no key")
        echo(f"Serving at {address}/v1 until Ctrl-C. Models:")
        for name in models:
            console().print(f"  {name}", highlight=False, markup=False, soft_wrap=True)
        echo("Ask one of them:")
        made = [*([] if stack is None else [each.patch for each in stack.patches]), *(patch for _, patch in found)]
        line = _request(address, list(models)[-1], _example_prompt(model, made))
        console().print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
        with suppress(KeyboardInterrupt):  # raised again after the server has shut down
            server.run(sockets=[listener])
        echo("Stopped.")


def _example_prompt(model: str, patches: Sequence[Patch]) -> str:
    """The first fact's prompt of the last patch that has facts; without one, a prompt that the model knows."""
    edited = [patch.facts[0] for patch in patches if patch.facts]
    if edited:
        return edited[-1].text
    return lab_facts(lab_world(), 1, seed=0)[0].text if is_lab(model) else "The capital of France is"


def _request(address: str, name: str, prompt: str) -> str:
    """A request as a command for a shell. What cannot be printed is escaped."""
    asked = {"model": name, "prompt": prompt, "max_tokens": 8}
    body = json.dumps(asked, ensure_ascii=not f"{name}{prompt}".isprintable())
    return f"curl {address}/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _stack(model: str, trust_remote_code: bool) -> Stack | None:
    """The patches of a stack or a run; None for a plain model."""
    if is_stack(model):
        return read_stack(Path(model))
    return stack_of_run(model, trust_remote_code=trust_remote_code) if is_run(model) else None
