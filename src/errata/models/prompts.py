"""Tokenised prompts: where the subject ends, where the target begins, and rows padded into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errata.errors import InputError


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
    for ids, offsets, special in zip(
        encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
    ):
        end = len(ids)
        # A post-processor may append EOS; a text that is to be continued must not end with one.
        while end > 0 and special[end - 1] and any(not flag for flag in special[:end]):
            end -= 1
        result.append(Encoded(tuple(ids[:end]), tuple((start, stop) for start, stop in offsets[:end])))
    return result


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and its target as one row of tokens.

    Attributes:
        encoded: the tokens of ``prompt + " " + target``.
        target_start: index of the first target token: the first whose characters lie wholly behind the prompt.
    """

    encoded: Encoded
    target_start: int

    @property
    def ids(self) -> tuple[int, ...]:
        return self.encoded.ids

    @property
    def target_ids(self) -> tuple[int, ...]:
        return self.ids[self.target_start :]


def complete(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[Completion]:
    """Tokenise ``(prompt, target)`` pairs; exactly one space joins them.

    Raises:
        InputError: if a target has no token of its own.
    """
    encoded = encode(tokenizer, [f"{prompt} {target}" for prompt, target in pairs])
    result: list[Completion] = []
    for (prompt, target), row in zip(pairs, encoded, strict=True):
        start = row.first_token_behind(len(prompt))
        if start == len(row.ids):
            raise InputError(
                f"the target {target!r} has no token behind the prompt {prompt!r}", remedy="Give another target"
            )
        result.append(Completion(row, start))
    return result


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
