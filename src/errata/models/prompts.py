"""Tokenised prompts: where the subject ends, where the target begins, and rows padded into batches."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from errata.errors import InputError
from errata.facts.fact import Fact
from errata.facts.joining import joined

_MESSAGE: Final = "{errata: message}"  # no text of a template
_SYSTEM_MESSAGE: Final = "{errata: system message}"
_PROBE: Final = "The capital of France is Paris, and the sum of 2 and 3 is 5."

Pair: TypeAlias = tuple[str, str] | tuple[str, str, str]
"""A prompt, its continuation, and the joiner between the two (by default ``joining.joiner_of``)."""


@dataclass(frozen=True, slots=True)
class TargetScore:
    """The likelihood of a target after a prompt."""

    log_probability: float  # mean over the target's tokens, each given the prompt and the target's tokens before it
    share: float  # the fraction of the target's tokens that are the argmax at their positions
    likeliest: tuple[int, ...]  # the argmax tokens at these positions
    said: str  # their text

    @property
    def correct(self) -> bool:
        """Whether each of the target's tokens is the argmax at its position."""
        return self.share == 1


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as token ids with their character offsets."""

    # token ids, including a leading BOS if the tokenizer adds one, without trailing special tokens
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]  # (start, end) character offsets; (0, 0) for special tokens

    def tokens_of(self, start: int, end: int) -> range:
        """The tokens of ``text[start:end]``: from the first to the last token with a character of it; may be empty.

        Without gaps: a space that is a token may have no characters left once offsets are trimmed (OPT).
        """
        held = [index for index, (first, stop) in enumerate(self.offsets) if max(first, start) < min(stop, end)]
        return range(held[0], held[-1] + 1) if held else range(0)

    def first_token_after(self, position: int) -> int:
        """Index of the first token that lies wholly after character ``position``; ``len(ids)`` if there is none."""
        index = len(self.ids)
        while index > 0 and self.offsets[index - 1][0] >= position and self.offsets[index - 1] != (0, 0):
            index -= 1
        return index


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Encoded]:
    """Tokenise whole texts with leading special tokens and character offsets.

    A text that begins with BOS, or with the beginning of the chat template, has its special tokens already: none is
    added, as in the tokenizer's own handling of the template.

    Raises:
        InputError: if the tokenizer has no offsets ("slow" tokenizers).
    """
    if not tokenizer.is_fast:
        what = f"the tokenizer {type(tokenizer).__name__} gives no character offsets"
        raise InputError(what, remedy="Use the model's fast tokenizer (use_fast=True)", code="TOKENIZER_SLOW")
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
        # A post-processor may append EOS, but these texts will be continued.
        while end > begin and special[end - 1] and any(not flag for flag in special[:end]):
            end -= 1
        result.append(Encoded(tuple(ids[begin:end]), tuple((start, stop) for start, stop in offsets[begin:end])))
    return result


def _openings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The beginnings of texts that have their special tokens already: BOS, and those of the chat template."""
    found = [str(tokenizer.bos_token)] if tokenizer.bos_token else []
    with suppress(InputError):  # an unusable template matters only where it is used
        frame = chat_frames(tokenizer)
        found += [frame.before, frame.system[0] if frame.system else ""]
    return tuple(opening for opening in found if opening)


def chat_text(tokenizer: PreTrainedTokenizerBase, message: str) -> str:
    """A user's message in the tokenizer's chat template, up to where the model's reply begins.

    Raises:
        InputError: if there is no chat template, or it rejects a single user message.
    """
    if not tokenizer.chat_template:
        what = "the model's tokenizer has no chat template"
        remedy = "Use plain text, or a model that was trained for chat"
        raise InputError(what, remedy=remedy, code="CHAT_TEMPLATE_MISSING")
    messages = [{"role": "user", "content": message}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError) as error:
        what = f"the model's chat template cannot be used: {error}"
        remedy = "Use plain text, or correct the template"
        raise InputError(what, remedy=remedy, code="CHAT_TEMPLATE_UNUSABLE") from error


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The text of the chat template before and after a user's message.

    Raises:
        InputError: see ``chat_text``; also if the template changes or omits the message.
    """
    before, found, after = chat_text(tokenizer, _MESSAGE).partition(_MESSAGE)
    if not found:
        raise InputError(
            "the model's chat template omits the message", remedy="Use plain text", code="CHAT_TEMPLATE_UNUSABLE"
        )
    return before, after


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """The text of a chat template around one user message.

    Attributes:
        before, after: with the user's message alone; see ``chat_frame``.
        system: the text before a system message, and between it and the user's, with the same text after that; None if
            the template has no system messages.
    """

    before: str
    after: str
    system: tuple[str, str] | None


def chat_frames(tokenizer: PreTrainedTokenizerBase) -> ChatFrame:
    """The chat template's text around a user's message, and around a system message with it.

    Raises:
        InputError: see ``chat_frame``.
    """
    before, after = chat_frame(tokenizer)
    messages = [{"role": "system", "content": _SYSTEM_MESSAGE}, {"role": "user", "content": _MESSAGE}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError):  # templates refuse roles that they do not know
        return ChatFrame(before, after, None)
    opening, found, rest = text.partition(_SYSTEM_MESSAGE)
    if not found or not rest.endswith(_MESSAGE + after):
        return ChatFrame(before, after, None)
    return ChatFrame(before, after, (opening, rest.removesuffix(_MESSAGE + after)))


def subject_tokens(encoded: Encoded, start: int, end: int, fact: Fact) -> range:
    """The tokens of a fact's subject, which has these characters of a text.

    Raises:
        InputError: naming the fact, if there are none.
    """
    tokens = encoded.tokens_of(start, end)
    if not tokens:
        what = f"the subject {fact.subject!r} of fact {fact.id!r} has no token"
        remedy = "Give a subject in characters that the model's tokenizer knows"
        raise InputError(what, remedy=remedy, code="SUBJECT_WITHOUT_TOKEN")
    return tokens


def subject_token(encoded: Encoded, start: int, end: int, fact: Fact) -> int:
    """Index of the subject's last token; see ``subject_tokens``."""
    return subject_tokens(encoded, start, end, fact)[-1]


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and its target as one row of tokens."""

    encoded: Encoded  # the tokens of the prompt, then of the joiner and the target
    target_start: int  # index of the first target token

    @property
    def ids(self) -> tuple[int, ...]:
        return self.encoded.ids

    @property
    def prompt(self) -> Encoded:
        return Encoded(self.ids[: self.target_start], self.encoded.offsets[: self.target_start])

    @property
    def target_ids(self) -> tuple[int, ...]:
        return self.ids[self.target_start :]


def complete(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[Completion]:
    """Tokenise prompts with their continuations; see ``Pair`` for the joiner.

    The prompt gets the tokens that it has alone, as when a model generates after it. A tokenizer may merge the end of a
    prompt and the beginning of a target into one token ("\\n\\n" before a letter, or a word across the two in a script
    without spaces); the target is then tokenised as after a new line.

    Raises:
        InputError: if a target has no token.
    """
    texts = [joined(*pair) for pair in pairs]
    prompts = list(dict.fromkeys(pair[0] for pair in pairs))
    alone = dict(zip(prompts, encode(tokenizer, prompts), strict=True))
    result: list[Completion] = []
    for pair, text, whole in zip(pairs, texts, encode(tokenizer, texts), strict=True):
        prompt = alone[pair[0]]
        target = _after_prompt(whole, prompt, pair[0])
        if target is None:
            line, after = encode(tokenizer, ["\n", "\n" + text[len(pair[0]) :]])
            target = _after_prompt(after, line, "\n")
        if target is None or not target.ids:
            what = f"the target {pair[1]!r} has no token after the prompt {pair[0]!r}"
            remedy = "Give a target in characters that the model's tokenizer knows"
            raise InputError(what, remedy=remedy, code="TARGET_WITHOUT_TOKEN")
        offsets = tuple((len(pair[0]) + start, len(pair[0]) + end) for start, end in target.offsets)
        result.append(Completion(Encoded(prompt.ids + target.ids, prompt.offsets + offsets), len(prompt.ids)))
    return result


def _after_prompt(whole: Encoded, alone: Encoded, prompt: str) -> Encoded | None:
    """The tokens of a text after its prompt, whose own tokens are ``alone``, with offsets from the prompt's end.

    None if a token spans both, or may: some tokenizers leave the space before a word out of its offsets.
    """
    position, start = len(prompt), len(alone.ids)
    if whole.ids[:start] != alone.ids:
        start = whole.first_token_after(position)
        if prompt[-1:].isspace() or (start > 0 and whole.offsets[start - 1][1] > position):
            return None
    return Encoded(whole.ids[start:], tuple((first - position, end - position) for first, end in whole.offsets[start:]))


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of tokens padded to equal length."""

    input_ids: Tensor  # (rows, length) int64
    attention_mask: Tensor  # (rows, length) int64, 1 at tokens and 0 at padding
    position_ids: Tensor  # (rows, length) int64, 0 for a row's first token, never negative
    left: bool  # whether the padding is before the tokens

    @property
    def last(self) -> Tensor:
        """(rows,) int64: the column of each row's last token."""
        length = self.input_ids.shape[1]
        return torch.full_like(self.input_ids[:, 0], length - 1) if self.left else self.attention_mask.sum(1) - 1

    def inputs(self) -> dict[str, Tensor]:
        """The model's arguments.

        Padding on the right follows all tokens, so causal attention hides it. It is not masked as well: within a
        sliding window it would then attend to nothing at all, and the resulting NaN would spread.
        """
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask if self.left else torch.ones_like(self.attention_mask),
            "position_ids": self.position_ids,
        }


def pad(rows: Sequence[Sequence[int]], *, left: bool, device: torch.device) -> PaddedBatch:
    """Pad with token 0. Positions of padding repeat the nearest valid one."""
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return PaddedBatch(ids.to(device), mask.to(device), positions.to(device), left)


def length_batches(
    lengths: Sequence[int], groups: Sequence[Hashable] = (), *, token_budget: int
) -> Iterator[list[int]]:
    """Indices in batches of similar length; the padded size stays within ``token_budget`` tokens (at least one row).

    Args:
        groups: of each row, if rows of one group are to follow each other.
    """
    longest: dict[Hashable, int] = {}
    for group, length in zip(groups, lengths, strict=bool(groups)):
        longest[group] = max(length, longest.get(group, 0))
    first = {group: number for number, group in enumerate(longest)}

    def place(index: int) -> tuple[int, ...]:
        own = (-lengths[index], index)
        return (-longest[groups[index]], first[groups[index]], *own) if groups else own

    batch: list[int] = []
    size = 0  # of the longest row, which need not be the first of a batch with several groups
    for index in sorted(range(len(lengths)), key=place):
        if batch and (len(batch) + 1) * max(size, lengths[index]) > token_budget:
            yield batch
            batch, size = [], 0
        batch.append(index)
        size = max(size, lengths[index])
    if batch:
        yield batch


def probe_row(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens of an ordinary text, to check early that a tokenizer and a model work."""
    return encode(tokenizer, [_PROBE])[0].ids or (0,)


def unembedded(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[int, str]:
    """The tokens, by id, that a tokenizer knows and a model has no embedding for.

    Some models have a few that plain text never contains, such as Gemma 3's token for images.

    Args:
        rows: of the embedding.

    Raises:
        ValueError: if ordinary text may contain one of them: the tokenizer belongs to another model.
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
    """Make an embedding reject ids that it has no row for with a message, not torch's IndexError or worse."""

    def check(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and beyond and int(args[0].max()) >= min(beyond):
            token = beyond.get(int(args[0].max()), "?")
            what = f"{name!r} has no embedding for the token {token!r}"
            raise InputError(what, remedy="Remove it from all texts", code="TOKEN_WITHOUT_EMBEDDING")

    embedding.register_forward_pre_hook(check)
