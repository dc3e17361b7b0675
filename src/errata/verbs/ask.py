"""``errata ask``."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.table import Table

from errata.errors import InputError
from errata.models.generation import generate
from errata.models.language_model import LanguageModel
from errata.models.prompts import encode, pad
from errata.verbs.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    console,
    parse_device,
    parse_dtype,
    write_json,
)

EXAMPLE = 'Example: errata ask --model edited --against lab "The mother tongue of Ada Meyer is"'


def ask(
    prompts: Annotated[list[str], typer.Argument(help="Texts to continue.", metavar="PROMPT...")],
    model: ModelOption = "lab",
    against: Annotated[str | None, typer.Option(help="A second model, shown beside the first.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to add, at most.")] = 12,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Let a model continue a text (greedily), and show the likeliest next tokens; a base model beside it if asked."""
    if blank := [prompt for prompt in prompts if not prompt.strip()]:
        what = "a prompt is" if len(blank) == 1 else f"{len(blank)} prompts are"
        raise InputError(f"{what} empty", remedy="Give a text that the model can continue")
    answers = []
    for name in (model, *([against] if against else [])):
        loaded = LanguageModel.load(name, dtype=parse_dtype(dtype), device=parse_device(device))
        limit = loaded.context_length - tokens
        stripped = [prompt.rstrip() for prompt in prompts]
        for prompt, row in zip(stripped, encode(loaded.tokenizer, stripped), strict=True):
            if len(row.ids) > limit:
                raise InputError(
                    f"the prompt {prompt[:40]!r}… has {len(row.ids)} tokens; {name!r} takes {limit} and {tokens} more",
                    remedy="Shorten the prompt or lower --tokens",
                )
        texts = generate(loaded, stripped, new_tokens=tokens)
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
            table.add_row(*(_literal(text) for text in (answer["model"], answer["continuation"], likely)))
        console().print(_literal(prompt.rstrip()), style="bold", highlight=False)
        console().print(table)
    write_json(json, {"answers": answers})


def _literal(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))


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
