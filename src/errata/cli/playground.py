"""``errata playground``: edit facts in a browser and watch what changes."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from errata.cli.demo import corrections
from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    TrustOption,
    UntouchedOption,
    is_lab,
    outline_of,
    placement,
)
from errata.cli.recipe_options import automatic_recipe, comes_with_recipe, layers_of, read_recipe_for, show_notes
from errata.cli.terminal import echo, progress, warn
from errata.errors import InputError
from errata.facts.questions import read_questions
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.playground.session import HOST, Playground
from errata.runs.loading import base_of, load_model
from errata.utils.optional import require
from errata.utils.sockets import listen

EXAMPLE = """Example: errata playground

Example: errata playground --model smollm2-135m-instruct --method alphaedit+blue"""
CONTROLS = 8  # questions that a visit of the lab's model begins with
app = typer.Typer()


@app.command("playground", epilog=EXAMPLE)
def playground(
    model: ModelOption = "lab",
    method: Annotated[str, typer.Option(help="Editing method (see `errata methods`).")] = "memit+blue",
    recipe: Annotated[
        Path | None, typer.Option(help="YAML recipe (hyperparameters); default: as for `errata edit`.")
    ] = None,
    untouched: UntouchedOption = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the server; default: the first free one from 7860 on.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Edit facts in a browser: ask base and edited model side by side, and see what else changed.

    The page is served to this machine only, and nothing leaves it. Needs the extra errata[app].
    """
    require("the playground", "app", "gradio")
    with listen(HOST, port, remedy="Give another --port, or end what uses it") if port else nullcontext():
        warn(f"loading {model} …")
        from errata.playground.page import serve  # needs the extra

        where = placement(device, dtype)
        if base_of(model) != model:
            raise InputError(
                f"{model!r} is edited already, and the playground begins with an unedited model",
                remedy=f"Give its base {base_of(model)!r}, or merge it first (errata merge)",
                code="MODEL_NOT_PLAIN",
            )
        questions = read_questions(untouched)
        outline = outline_of(model, trust_remote_code=trust_remote_code)
        automatic = recipe is None and not comes_with_recipe(model)
        default = automatic_recipe(model, method, outline) if automatic else None
        chosen = read_recipe_for(model, method, recipe, default=default)
        outline.check_layers(chosen.layers)
        show_notes(chosen, model)
        loaded = load_model(model, **where, trust_remote_code=trust_remote_code)
        lab = is_lab(model)
        with progress() as report, loaded.blaming_no_edit():
            if automatic:
                layers, why = layers_of(loaded, report=report)
                chosen = read_recipe_for(
                    model, method, None, default=automatic_recipe(model, method, outline, layers, why)
                )
            facts = lab_facts(lab_world(), CONTROLS, seed=0) if lab else [*corrections()[0]]
            if questions is None and lab:
                questions = untouched_questions(lab_world(), [fact.subject for fact in facts], CONTROLS, seed=0)
            prompts = [question.prompt for _, question in questions or []]
            if questions is None:
                prompts = [question.prompt for question in corrections()[1]][:CONTROLS]
            shown = Playground(loaded, chosen.with_choices({"batch_size": 1}), prompts, lab=lab, report=report)
            shown.prepare()
    # The port is free again for a moment, because Gradio opens it itself.
    page, address = serve(shown, facts, port=port, open_browser=open_browser)
    echo(f"The playground is at {address} (for this machine only). Ctrl-C ends it.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        warn("stopped")
    finally:
        page.close(verbose=False)
