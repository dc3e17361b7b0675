"""``errata ask``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from errata.cli.model_options import (
    DeviceOption,
    DtypeOption,
    MaxMemoryOption,
    ModelOption,
    TrustOption,
    check_chat,
    outline_of,
    placement,
)
from errata.cli.terminal import JsonOption, console, write_json
from errata.editors.contract import Answerer
from errata.errors import Fault, FaultsError, InputError
from errata.facts.questions import text_lines
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline
from errata.models.prompts import chat_text, encode
from errata.runs.loading import load_answerer
from errata.utils.text import excerpt

EXAMPLE = '''Example: errata ask --model edited --against lab "The mother tongue of Ada Meyer is"

Example: errata ask --model chat-model --chat "What is the capital of France?"'''
app = typer.Typer()


@app.command("ask", epilog=EXAMPLE)
def ask(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to continue.", metavar="PROMPT...")] = None,
    model: ModelOption = "lab",
    against: Annotated[str | None, typer.Option(help="Baseline model to compare with.")] = None,
    file: Annotated[Path | None, typer.Option(help="Text file with further prompts, one per line.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send each prompt as a message in the model's chat template.")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of generated tokens; default: 12, or 100 with --chat.")
    ] = None,
    trust_remote_code: TrustOption = False,
    device: DeviceOption = None,
    max_memory: MaxMemoryOption = None,
    dtype: DtypeOption = None,
    json: JsonOption = None,
) -> None:
    """Continue prompts greedily and show the most likely next tokens, optionally for two models."""
    prompts = [*(prompts or ()), *(_lines(file) if file is not None else ())]
    if not prompts:
        raise InputError(
            "no prompt given", remedy='Give one, such as errata ask "The capital of France is"', code="PROMPT_MISSING"
        )
    if blank := [prompt for prompt in prompts if not prompt.strip()]:
        what = "a prompt is" if len(blank) == 1 else f"{len(blank)} prompts are"
        raise InputError(f"{what} empty", remedy="Give a text that the model can continue", code="PROMPT_EMPTY")
    new_tokens = tokens or (100 if chat else 12)
    where = placement(device, dtype, max_memory)
    names = (model, *([against] if against else []))
    # A final newline is a separate token, but a final space belongs to the token of the next word.
    stripped = [prompt.strip() if chat else prompt.rstrip(" \t") for prompt in prompts]
    outlines = [outline_of(name, trust_remote_code=trust_remote_code, endpoints=True) for name in names]
    if chat:
        for outline in outlines:
            check_chat(outline)
    read = [[chat_text(outline.tokenizer, text) for text in stripped] if chat else stripped for outline in outlines]
    each = [_faults(outline, stripped, texts, new_tokens) for outline, texts in zip(outlines, read, strict=True)]
    if faults := [fault for found in each for fault in found]:
        raise FaultsError("the prompts", faults)
    answers = []
    for name, texts in zip(names, read, strict=True):
        loaded, _ = load_answerer(name, **where, trust_remote_code=trust_remote_code)
        with loaded.blaming_no_edit() if isinstance(loaded, LanguageModel) else nullcontext():
            answers += answers_of(loaded, stripped, texts, new_tokens)
    for index, prompt in enumerate(stripped):
        table = Table(title=None, show_header=True, title_justify="left")
        table.add_column("model", no_wrap=True)
        table.add_column("reply" if chat else "continuation", overflow="fold")
        table.add_column("most likely next tokens", overflow="fold")
        for answer in answers[index :: len(prompts)]:
            likely = ", ".join(f"{token!r} {probability:.0%}" for token, probability in answer["next"])
            table.add_row(str(answer["model"]), str(answer["continuation"]), likely)
        console().print(prompt.rstrip(), style="bold", highlight=False)
        console().print(table)
    write_json(json, {"answers": answers, "chat": chat})


def answers_of(
    answerer: Answerer, prompts: Sequence[str], texts: Sequence[str], new_tokens: int
) -> list[dict[str, Any]]:
    """A record for each prompt: its greedy continuation, and the most likely next tokens where there are likelihoods.

    Args:
        texts: the model inputs, i.e. the prompts after the chat template.
    """
    continued = answerer.continue_texts(texts, new_tokens=new_tokens)
    likely = _next_tokens(answerer, texts) if "likelihood" in answerer.abilities else [[] for _ in texts]
    return [
        {"model": answerer.name, "prompt": prompt, "continuation": continuation, "next": tokens, "used": list(facts)}
        for prompt, continuation, tokens, facts in zip(prompts, continued, likely, answerer.used(texts), strict=True)
    ]


def _lines(path: Path) -> list[str]:
    """The non-blank lines of a file."""
    found = [line for line in text_lines(path, path, remedy="Give a UTF-8 file") if line.strip()]
    if not found:
        raise InputError(f"{path} contains no prompt", remedy="Write one prompt per line", code="PROMPT_MISSING")
    return found


def _faults(model: Outline, prompts: Sequence[str], texts: Sequence[str], tokens: int) -> list[Fault]:
    """Prompts without tokens, or too long for the model.

    Args:
        texts: the model inputs, i.e. the prompts after the chat template.
    """
    limit = model.context_length - tokens
    faults = []
    for prompt, row in zip(prompts, encode(model.tokenizer, texts), strict=True):
        shown = repr(excerpt(prompt, 40))
        if not row.ids:
            what, remedy = f"has no tokens for {model.name!r}", "Use characters that the model's tokenizer knows"
            faults.append(Fault(shown, what, remedy, code="PROMPT_EMPTY"))
        elif len(row.ids) > limit:
            what = f"has {len(row.ids)} tokens; {model.name!r} allows {limit} plus {tokens} generated ones"
            faults.append(Fault(shown, what, "Shorten the prompt or lower --tokens", code="PROMPT_TOO_LONG"))
    return faults


def _next_tokens(answerer: Answerer, texts: Sequence[str], count: int = 5) -> list[list[tuple[str, float]]]:
    """The most likely next tokens after each text, with their probabilities."""
    values, ids = answerer.next_token_log_probabilities(texts).exp().topk(count)
    return [
        [(str(answerer.tokenizer.decode([token])), value) for token, value in zip(tokens, probabilities, strict=True)]
        for tokens, probabilities in zip(ids.tolist(), values.tolist(), strict=True)
    ]
