"""Tokenised prompts: where the subject ends, where the target begins, and rows padded into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from errata.errors import InputError
from errata.facts.joining import joined

_MESSAGE: Final = "{}"

Pair: TypeAlias = tuple[str, str] | tuple[str, str, str]
"""A prompt, what follows it, and what stands between the two (without it: ``joining.joiner_of``)."""


@dataclass(frozen=True, slots=True)
class TargetScore:
    """How a model takes a target behind a prompt.

    Attributes:
        log_probability: mean over the target's tokens, each given the prompt and the target's tokens before it.
        share: of the target's tokens that are the likeliest at their places.
        likeliest: the likeliest tokens at these places.
        said: the same as text.
    """

    log_probability: float
    share: float
    likeliest: tuple[int, ...]
    said: str

    @property
    def correct(self) -> bool:
        """Whether each of the target's tokens is the likeliest at its place."""
        return self.share == 1


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as token ids with the characters that each token stands for.

    Attributes:
        ids: token ids, a leading BOS included where the tokenizer adds one, trailing special tokens left out.
        offsets: (start, end) character offsets; (0, 0) for special tokens.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def last_token_of(self, start: int, end: int) -> int:
        """Index of the last token that holds a character of ``text[start:end]``.

        Raises:
            InputError: if no token does.
        """
        for index in range(len(self.ids) - 1, -1, -1):
            token_start, token_end = self.offsets[index]
            if token_start < end and token_end > start and token_end > token_start:
                return index
        raise InputError(
            f"no token holds any of the characters {start} to {end}", remedy="Give a subject that the tokenizer knows"
        )

    def first_token_behind(self, position: int) -> int:
        """Index of the first token that lies wholly behind character ``position``; ``len(ids)`` if there is none."""
        index = len(self.ids)
        while index > 0 and self.offsets[index - 1][0] >= position and self.offsets[index - 1] != (0, 0):
            index -= 1
        return index


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Encoded]:
    """Tokenise whole texts with the tokenizer's own special tokens in front, and with character offsets.

    A text that begins with BOS, or as the tokenizer's chat template begins, has all its special tokens already: none
    is added, as none is when the template itself is tokenised.

    Raises:
        InputError: if the tokenizer cannot tell offsets ("slow" tokenizers): positions could only be guessed.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer {type(tokenizer).__name__} does not tell character offsets",
            remedy="Use the model's fast tokenizer (use_fast=True)",
        )
    if not texts:
        return []
    encoded = tokenizer(list(texts), return_offsets_mapping=True, return_special_tokens_mask=True)
    result: list[Encoded] = []
    openings: tuple[str, ...] = ()
    for text, ids, offsets, special in zip(
        texts, encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
    ):
        begin, end = 0, len(ids)
        if ids and special[0] and tuple(offsets[0]) == (0, 0) and text:
            openings = openings or _openings(tokenizer)
            while text.startswith(openings) and begin < end and special[begin] and tuple(offsets[begin]) == (0, 0):
                begin += 1
        # A post-processor may append EOS; a text that is to be continued must not end with one.
        while end > begin and special[end - 1] and any(not flag for flag in special[:end]):
            end -= 1
        result.append(Encoded(tuple(ids[begin:end]), tuple((start, stop) for start, stop in offsets[begin:end])))
    return result


def chat_text(tokenizer: PreTrainedTokenizerBase, message: str) -> str:
    """A user's message in the tokenizer's own chat template, up to where the model's reply begins.

    Raises:
        InputError: if there is no chat template, or it does not take a single message of a user.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "the model's tokenizer has no chat template",
            remedy="Ask in plain text, or use a model that was trained for chat",
        )
    messages = [{"role": "user", "content": message}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError) as error:
        raise InputError(
            f"the model's chat template cannot be used: {error}", remedy="Ask in plain text, or correct the template"
        ) from error


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template puts before and after a user's message.

    Raises:
        InputError: see ``chat_text``; also if the template does not hold the message as it was given.
    """
    before, place, after = chat_text(tokenizer, _MESSAGE).partition(_MESSAGE)
    if not place:
        raise InputError("the model's chat template leaves the message out", remedy="Ask in plain text")
    return before, after


def _openings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What texts begin with that have their special tokens already: BOS, and the beginning of the chat template."""
    found = [str(tokenizer.bos_token)] if tokenizer.bos_token else []
    with suppress(InputError):  # a template that cannot be used concerns only those who want to use it
        found.append(chat_frame(tokenizer)[0])
    return tuple(opening for opening in found if opening)


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and its target as one row of tokens.

    Attributes:
        encoded: the tokens of the prompt, and of what joins it with the target and the target.
        target_start: index of the first target token.
    """

    encoded: Encoded
    target_start: int

    @property
    def ids(self) -> tuple[int, ...]:
        return self.encoded.ids

    @property
    def target_ids(self) -> tuple[int, ...]:
        return self.ids[self.target_start :]


def complete(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[Completion]:
    """Tokenise prompts with what follows them; see ``Pair`` for what joins the two.

    The prompt has the tokens that it has alone, since these are what a model reads when it goes on by itself. A
    tokenizer may read the end of a prompt and the beginning of a target as one token ("\\n\\n" before a letter, or a
    word across the two in a script without spaces); the target is then tokenised as after a new line.

    Raises:
        InputError: if a target has no token of its own.
    """
    texts = [joined(*pair) for pair in pairs]
    prompts = list(dict.fromkeys(pair[0] for pair in pairs))
    alone = dict(zip(prompts, encode(tokenizer, prompts), strict=True))
    result: list[Completion] = []
    for pair, text, whole in zip(pairs, texts, encode(tokenizer, texts), strict=True):
        prompt = alone[pair[0]]
        target = _behind(whole, prompt, pair[0])
        if target is None:
            line, after = encode(tokenizer, ["\n", "\n" + text[len(pair[0]) :]])
            target = _behind(after, line, "\n")
        if target is None or not target.ids:
            raise InputError(
                f"the target {pair[1]!r} has no token behind the prompt {pair[0]!r}", remedy="Give another target"
            )
        offsets = tuple((len(pair[0]) + start, len(pair[0]) + end) for start, end in target.offsets)
        result.append(Completion(Encoded(prompt.ids + target.ids, prompt.offsets + offsets), len(prompt.ids)))
    return result


def _behind(whole: Encoded, alone: Encoded, prompt: str) -> Encoded | None:
    """The tokens of a whole text behind its prompt, whose tokens ``alone`` are; their offsets count from there. None if
    a token lies on both sides, or may: a space in front of a word is left out of the offsets of some tokenizers.
    """
    position, start = len(prompt), len(alone.ids)
    if whole.ids[:start] != alone.ids:
        start = whole.first_token_behind(position)
        if prompt[-1:].isspace() or (start > 0 and whole.offsets[start - 1][1] > position):
            return None
    return Encoded(whole.ids[start:], tuple((first - position, end - position) for first, end in whole.offsets[start:]))


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of tokens made equally long.

    Attributes:
        input_ids: (rows, length) int64.
        attention_mask: (rows, length) int64, 1 at tokens and 0 at padding.
        left: whether the padding stands before the tokens.
        position_ids: (rows, length) int64, 0 for a row's first token, never negative.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    left: bool

    @property
    def last(self) -> Tensor:
        """(rows,) int64: the column of each row's last token."""
        length = self.input_ids.shape[1]
        return torch.full_like(self.input_ids[:, 0], length - 1) if self.left else self.attention_mask.sum(1) - 1

    def inputs(self) -> dict[str, Tensor]:
        """The only three arguments that errata ever gives to a model.

        Padding on the right stands behind everything that is read, and causal attention hides it. It is not masked as
        well: within a sliding window it would then attend to nothing at all, and the NaN of that would spread.
        """
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask if self.left else torch.ones_like(self.attention_mask),
            "position_ids": self.position_ids,
        }


def pad(rows: Sequence[Sequence[int]], *, left: bool, device: torch.device, first_position: int = 0) -> PaddedBatch:
    """Pad with token 0, which the attention mask hides. Positions of padding repeat the nearest legal one."""
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0) + first_position
    return PaddedBatch(ids.to(device), mask.to(device), positions.to(device), left)


def length_batches(lengths: Sequence[int], *, token_budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length; the padded size stays within ``token_budget`` tokens (at least one row)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


# ----------------------------------------------------------------------------------------------------
# Tokens that a tokenizer knows and a model has no embedding for.


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
