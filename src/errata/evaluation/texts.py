"""Texts that a model writes from the facts' generation prompts: what fluency and consistency are read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from errata.facts import Fact
from errata.models.generation import CACHE_BUDGET, continue_rows
from errata.models.language_model import LanguageModel
from errata.models.prompts import encode
from errata.models.sampling import own_uniforms
from errata.progress import Report, silent


class TextSettings(BaseModel):
    """How texts are written; the defaults are those of ROME's and MEMIT's evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: StrictInt = Field(100, ge=1, description="tokens of a text in all, its prompt (and BOS, if any) included")
    top_k: StrictInt = Field(5, ge=1, description="sample among the k likeliest tokens; 1 is greedy")
    seed: StrictInt = Field(
        0, ge=0, lt=2**63, description="of the random numbers; a fact's texts do not depend on other facts"
    )


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A text with its prompt.

    Attributes:
        fact: the id of the fact.
        prompt: what it begins with.
        text: the whole text, the prompt included.
    """

    fact: str
    prompt: str
    text: str


def write_texts(
    model: LanguageModel,
    facts: Sequence[Fact],
    settings: TextSettings | None = None,
    *,
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> list[WrittenText]:
    """One text for each generation prompt of the facts. An end-of-text token is left out and ends none, as in MEMIT.

    Args:
        token_budget: most padded tokens that are kept at once; the texts do not depend on it.
        report: told the texts written, of how many.

    Raises:
        InputError: if the model takes fewer tokens than a text has.
        NonFiniteError: if a logit is not a number; names the facts.
    """
    settings = settings or TextSettings()
    asked = [(fact.id, prompt) for fact in facts for prompt in fact.generation]
    rows = [row.ids for row in encode(model.tokenizer, [prompt for _, prompt in asked])]
    generator = torch.Generator().manual_seed(settings.seed)
    uniforms = own_uniforms([f"{name}\n{prompt}" for name, prompt in asked], settings.tokens, generator)
    written = 0

    def on_rows(count: int) -> None:
        nonlocal written
        written += count
        report("texts", written, len(rows))

    continuations = continue_rows(
        model,
        rows,
        new_tokens=[max(settings.tokens - len(row), 0) for row in rows],
        top_k=settings.top_k,
        uniforms=uniforms,
        end_at_eos=False,
        token_budget=token_budget,
        names=[name for name, _ in asked],
        on_rows=on_rows,
    )
    return [
        WrittenText(name, prompt, prompt + added) for (name, prompt), added in zip(asked, continuations, strict=True)
    ]
