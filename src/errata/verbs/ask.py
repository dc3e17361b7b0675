"""``errata ask``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import typer
from rich.table import Table

from errata.errors import Fault, FaultsError, InputError, NonFiniteError
from errata.loading import load_model
from errata.models.generation import generate
from errata.models.language_model import LanguageModel
from errata.models.outline import Outline
from errata.models.prompts import encode, pad
from errata.verbs.json_output import JsonOption, write_json
from errata.verbs.model_options import DeviceOption, DtypeOption, ModelOption, TrustOption, outline_of, placement
from errata.verbs.terminal import console

EXAMPLE = 'Example: errata ask --model edited --against lab "The mother tongue of Ada Meyer is"'
app = typer.Typer()


@app.command("ask", epilog=EXAMPLE)
def ask(
    prompts: Annotated[list[str], typer.Argument(help="Texts to continue.", metavar="PROMPT...")],
    model: ModelOption = "lab",
    against: Annotated[str | None, typer.Option(help="A second model, shown beside the first.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to add, at most.")] = 12,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Let a model continue a text (greedily), and show the likeliest next tokens; a base model beside it if asked."""
    if blank := [prompt for prompt in prompts if not prompt.strip()]:
        what = "a prompt is" if len(blank) == 1 else f"{len(blank)} prompts are"
        raise InputError(f"{what} empty", remedy="Give a text that the model can continue")
    where = placement(device, dtype)
    names = (model, *([against] if against else []))
    stripped = [prompt.rstrip() for prompt in prompts]
    outlines = [outline_of(name, trust_remote_code=trust_remote_code) for name in names]
    if faults := [fault for outline in outlines for fault in _faults(outline, stripped, tokens)]:
        raise FaultsError("what was asked", faults)
    answers = []
    for name in names:
        loaded = load_model(name, **where, trust_remote_code=trust_remote_code)
        try:
            texts = generate(loaded, stripped, new_tokens=tokens)
        except NonFiniteError as error:
            if loaded.edits.terms:
                raise
            raise loaded.not_finite() from error
        answers += [
            {"model": name, "prompt": prompt, "continuation": text, "next": _next_tokens(loaded, prompt)}
            for prompt, text in zip(stripped, texts, strict=True)
        ]
    for index, prompt in enumerate(prompts):
        table = Table(title=None, show_header=True, title_justify="left")
        table.add_column("model", no_wrap=True)
        table.add_column("continuation", overflow="fold")
        table.add_column("likeliest next tokens", overflow="fold")
        for answer in answers[index :: len(prompts)]:
            likely = ", ".join(f"{token!r} {probability:.0%}" for token, probability in answer["next"])
            table.add_row(str(answer["model"]), str(answer["continuation"]), likely)
        console().print(prompt.rstrip(), style="bold", highlight=False)
        console().print(table)
    write_json(json, {"answers": answers})


def _faults(model: Outline, prompts: Sequence[str], tokens: int) -> list[Fault]:
    """Prompts that are nothing to this model, or more than it takes."""
    limit = model.context_length - tokens
    faults = []
    for prompt, row in zip(prompts, encode(model.tokenizer, prompts), strict=True):
        shown = repr(prompt if len(prompt) <= 40 else prompt[:40] + "…")
        if not row.ids:
            remedy = "Write it in characters that the model's tokenizer knows"
            faults.append(Fault(shown, f"tokenises to nothing with {model.name!r}", remedy))
        elif len(row.ids) > limit:
            what = f"it has {len(row.ids)} tokens; {model.name!r} takes {limit} and {tokens} more"
            faults.append(Fault(shown, what, "Shorten the prompt or lower --tokens"))
    return faults


def _next_tokens(model: LanguageModel, prompt: str, count: int = 5) -> list[tuple[str, float]]:
    rows = [row.ids for row in encode(model.tokenizer, [prompt])]
    with torch.no_grad():
        inputs = pad(rows, left=False, device=model.device).inputs()
        logits = model.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    values, ids = logits.softmax(-1).topk(count)
    return [
        (str(model.tokenizer.decode([token])), value)
        for token, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]
