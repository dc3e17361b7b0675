"""The contexts in which keys and targets are found: the bare prompt, and prompts behind short generated prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from errata.errors import InputError
from errata.facts import Fact
from errata.models.generation import generate
from errata.models.language_model import LanguageModel
from errata.models.prompts import encode
from errata.recipe_settings import ContextSettings


def generate_prefixes(model: LanguageModel, settings: ContextSettings) -> tuple[str, ...]:
    """Short texts from the model itself, once per run and on the unedited weights; kept in the run's record.

    Each has one of ``settings.tokens`` as its length, its opener included, BOS not. Braces become spaces, so that no
    reader of the record can take them for the subject's place.
    """
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
    return tuple(prefixes)


def in_context(prefix: str, text: str) -> tuple[str, int]:
    """``text`` behind a prefix ("" is the bare prompt), and the number of characters that stand before it."""
    lead = f"{prefix}. " if prefix else ""
    return lead + text, len(lead)


def subject_rows(model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids up to the subject's last token, facts outermost, for each of ``prefixes``.

    Raises:
        InputError: naming the fact, if the tokenizer leaves nothing of its subject.
    """
    texts, spans = [], []
    for fact in facts:
        start, end = fact.subject_span
        for prefix in prefixes:
            text, lead = in_context(prefix, fact.text)
            texts.append(text)
            spans.append((start + lead, end + lead))
    rows: list[tuple[int, ...]] = []
    for index, (encoded, (start, end)) in enumerate(zip(encode(model.tokenizer, texts), spans, strict=True)):
        try:
            rows.append(encoded.ids[: encoded.last_token_of(start, end) + 1])
        except InputError as error:
            fact = facts[index // len(prefixes)]
            raise InputError(
                f"the subject {fact.subject!r} of fact {fact.id!r} has no token", remedy=error.remedy
            ) from error
    return rows
