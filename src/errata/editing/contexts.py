"""The contexts in which keys and targets are found: the bare prompt, prompts after short generated prefixes, and
prompts in the model's chat template.

A context is a text. A context that contains ``{}`` is a frame; the prompt replaces ``{}``. Any other context is a
prefix, which contains no braces.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Final, Literal, TypeAlias

import torch
from pydantic import Field, StrictBool, StrictInt, field_validator
from transformers import PreTrainedTokenizerBase

from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.generation import generate
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair, chat_frame, encode, subject_token
from errata.utils.settings import Settings

# Put before a bare prompt whose first token would be the subject's last. A line break, since that is text in any
# language; a special token will not do (after SmolLM2's <|im_start|> the next token is still an attention sink).
NEUTRAL = "\n"

# The place of the prompt in a frame. The second is for frames whose text before the prompt contains the first.
_SLOT: Final = "{}"
_OTHER_SLOT: Final = "{errata: prompt}"

Average: TypeAlias = Literal["halves", "mean", "bare"]


class ContextSettings(Settings):
    """The short prefixes put before prompts when keys and targets are computed.

    ``halves`` is ½ of the bare prompt and ½ of the mean over prefixes; ``mean`` counts the bare prompt as one of them.
    """

    chat: StrictBool = Field(False, description="whether prompts are also put into the model's own chat template")
    openers: tuple[str, ...] = Field(("The", "Therefore", "Because", "I", "You"), description="how prefixes begin")
    per_opener: StrictInt = Field(1, ge=0, description="prefixes generated from each opener at each length")
    tokens: tuple[Annotated[StrictInt, Field(ge=1)], ...] = Field(
        (10,), min_length=1, description="lengths of prefixes in tokens, opener included"
    )
    top_k: StrictInt = Field(5, ge=1, description="sampling among this many tokens")
    seed: StrictInt = Field(0, ge=0, lt=2**63, description="of the generator that samples them")
    keys: Average = Field("halves", description="how keys are averaged over contexts")
    states: Average = Field("bare", description="how h is averaged over contexts")
    targets: Literal["all", "bare"] = Field("all", description="in which contexts targets are searched")

    @field_validator("tokens", mode="before")
    @classmethod
    def _one_length(cls, tokens: object) -> object:
        return (tokens,) if isinstance(tokens, int) else tokens


def generate_prefixes(model: LanguageModel, settings: ContextSettings) -> tuple[str, ...]:
    """Short texts from the model itself, once per run and on the unedited weights. The model's chat template comes
    last if the settings include it.

    Each text has one of ``settings.tokens`` as its length, its opener included, BOS not. Braces become spaces, so that
    it is not taken for a frame.

    Raises:
        InputError: if the settings include the chat template and it cannot be used.
    """
    frames = [frame(*chat_frame(model.tokenizer))] if settings.chat else []
    generator = torch.Generator().manual_seed(settings.seed)
    prefixes: list[str] = []
    for tokens, opener in product(settings.tokens, settings.openers):
        length = len(model.tokenizer(opener, add_special_tokens=False)["input_ids"])
        texts = generate(
            model,
            [opener] * settings.per_opener,
            new_tokens=max(tokens - length, 0),
            top_k=settings.top_k,
            generator=generator,
        )
        prefixes.extend((opener + text).replace("{", " ").replace("}", " ") for text in texts)
    return (*prefixes, *frames)


def frame(before: str, after: str) -> str:
    """The context that puts a prompt between two texts.

    Raises:
        InputError: if the first text contains ``_OTHER_SLOT``.
    """
    slot = _OTHER_SLOT if _SLOT in before or _OTHER_SLOT in after else _SLOT
    if _OTHER_SLOT in before:
        raise InputError(
            f"the chat template contains {_OTHER_SLOT!r} before the message",
            remedy="Use plain text, or correct the template",
            code="CHAT_TEMPLATE_UNUSABLE",
        )
    return before + slot + after


def _around(context: str) -> tuple[str, str] | None:
    """The texts of a frame before and after the prompt; None for a prefix."""
    before, slot, after = context.partition(_OTHER_SLOT if _OTHER_SLOT in context else _SLOT)
    return (before, after) if slot else None


def in_context(context: str, text: str, lead: str = "") -> tuple[str, int]:
    """``text`` in a context ("" is the bare prompt), and the number of characters before it.

    Args:
        lead: text before the bare prompt; see ``neutral_leads``.
    """
    before, after = _around(context) or (f"{context}. " if context else lead, "")
    return before + text + after, len(before)


def target_in(context: str, fact: Fact, lead: str = "") -> Pair:
    """A fact's prompt in a context with its target, as ``models.prompts.complete`` takes them.

    A fact's own joiner is for its prompt, not for the end of a frame.
    """
    text, _ = in_context(context, fact.text, lead)
    return (text, fact.target) if _around(context) else fact.pair(fact.target, text)


def neutral_leads(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[str]:
    """The text before each fact's bare prompt: ``NEUTRAL`` where it begins with the subject's last token, else "".

    That takes a tokenizer without BOS, and a subject of one token. Such a token is an attention sink: from the first
    few layers on its state, and so its key, is that of any other first token. Writing to such a key changes the answers
    to all texts.

    Raises:
        InputError: naming the fact, if its subject has no token.
    """
    encoded = encode(tokenizer, [fact.text for fact in facts])
    ends = [subject_token(row, *fact.subject_span, fact) for row, fact in zip(encoded, facts, strict=True)]
    return [NEUTRAL if end == 0 else "" for end in ends]


def subject_rows(
    model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], leads: Sequence[str]
) -> list[tuple[int, ...]]:
    """Token ids up to the subject's last token, facts outermost, for each of ``prefixes``.

    Args:
        leads: the facts' ``neutral_leads``.

    Raises:
        InputError: naming the fact, if its subject has no token.
    """
    texts = [
        in_context(prefix, fact.text, lead) for fact, lead in zip(facts, leads, strict=True) for prefix in prefixes
    ]
    encoded = encode(model.tokenizer, [text for text, _ in texts])
    rows: list[tuple[int, ...]] = []
    for index, (row, (_, before)) in enumerate(zip(encoded, texts, strict=True)):
        fact = facts[index // len(prefixes)]
        start, end = fact.subject_span
        rows.append(row.ids[: subject_token(row, start + before, end + before, fact) + 1])
    return rows
