"""The contexts in which keys and targets are found: the bare prompt, prompts after short generated prefixes, and
prompts in the model's chat template.

A context is a text. One that holds ``{}`` is a frame: the prompt stands in that place. Any other is a prefix; a prefix
holds no braces.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Final

import torch
from transformers import PreTrainedTokenizerBase

from errata.editing.recipe_settings import ContextSettings
from errata.facts.fact import Fact
from errata.models.generation import generate
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair, chat_frame, encode, subject_token

# Put before a bare prompt whose first token would be the subject's last. A line break, since that is text in any
# language; a special token will not do (after SmolLM2's <|im_start|> the next token is still an attention sink).
NEUTRAL = "\n"

FRAMED: Final = "{}"


def generate_prefixes(model: LanguageModel, settings: ContextSettings) -> tuple[str, ...]:
    """Short texts from the model itself, once per run and on the unedited weights. The model's chat template comes
    last if the settings include it.

    Each text has one of ``settings.tokens`` as its length, its opener included, BOS not. Braces become spaces, so that
    it is not taken for a frame.

    Raises:
        InputError: if the settings include the chat template and it cannot be used.
    """
    frames = [FRAMED.join(chat_frame(model.tokenizer))] if settings.chat else []
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


def in_context(context: str, text: str, lead: str = "") -> tuple[str, int]:
    """``text`` in a context ("" is the bare prompt), and the number of characters before it.

    Args:
        lead: text before the bare prompt; see ``neutral_leads``.
    """
    if FRAMED in context:
        before, after = context.split(FRAMED, 1)
    else:
        before, after = f"{context}. " if context else lead, ""
    return before + text + after, len(before)


def target_in(context: str, fact: Fact, lead: str = "") -> Pair:
    """A fact's prompt in a context with its target, as ``models.prompts.complete`` takes them.

    A fact's own joiner is for its prompt, not for the end of a frame.
    """
    text, _ = in_context(context, fact.text, lead)
    return (text, fact.target) if FRAMED in context else fact.pair(fact.target, text)


def begin_texts(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[bool]:
    """For each fact, whether its subject ends at the very first token of its prompt.

    That takes a tokenizer without BOS, and a subject of one token. Such a token is an attention sink: from the first
    few layers on its state, and so its key, is that of any other first token.

    Raises:
        InputError: naming the fact, if its subject has no token.
    """
    encoded = encode(tokenizer, [fact.text for fact in facts])
    return [subject_token(row, *fact.subject_span, fact) == 0 for row, fact in zip(encoded, facts, strict=True)]


def neutral_leads(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[str]:
    """The text before each fact's bare prompt: ``NEUTRAL`` where it begins with the subject's last token, else "".

    A key read at a text's first token belongs to all texts, and writing to it changes the answers to all of them.
    """
    return [NEUTRAL if first else "" for first in begin_texts(tokenizer, facts)]


def subject_rows(model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids up to the subject's last token, facts outermost, for each of ``prefixes``.

    Raises:
        InputError: naming the fact, if its subject has no token.
    """
    leads = neutral_leads(model.tokenizer, facts) if "" in prefixes else [""] * len(facts)
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
