"""Tokens that a tokenizer knows and a model has no embedding for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from errata.errors import InputError
from errata.models.prompts import encode

_PROBE = "The capital of France is Paris, and the sum of 2 and 3 is 5."


def probe_row(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens of an ordinary text, to see early whether a tokenizer, and a model, do what they have to."""
    return encode(tokenizer, [_PROBE])[0].ids or (0,)


def unembedded(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[int, str]:
    """The tokens whose ids are beyond the embedding, by id.

    Some models have a few that no plain text holds, such as Gemma 3's token for images.

    Args:
        rows: of the embedding.

    Raises:
        ValueError: if ordinary text may hold one of them: the tokenizer is another model's.
    """
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    added = tokenizer.added_tokens_decoder
    if ordinary := sorted(index for index in beyond if index not in added):
        raise ValueError(
            f"its tokenizer has tokens up to {max(beyond)}, but its embedding has {rows} rows ({len(ordinary)} tokens "
            f"have none, such as {beyond[ordinary[0]]!r})"
        )
    return beyond


def guard_embedding(embedding: nn.Module, name: str, beyond: Mapping[int, str]) -> None:
    """Let an embedding refuse ids that it has no row for with a message, where torch has an IndexError, or worse."""

    def check(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and beyond and int(args[0].max()) >= min(beyond):
            token = beyond.get(int(args[0].max()), "?")
            raise InputError(f"{name!r} has no embedding for the token {token!r}", remedy="Leave it out of all texts")

    embedding.register_forward_pre_hook(check)
