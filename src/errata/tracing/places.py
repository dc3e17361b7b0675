"""What is restored and where: parts of the model, kinds of tokens, windows of blocks; and facts as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from errata.errors import InputError
from errata.facts import Fact
from errata.models.language_model import LanguageModel
from errata.models.prompts import complete


class Part(StrEnum):
    """What is restored: the block's output at one layer; the others over a window of blocks."""

    BLOCK = "block"
    MLP = "mlp"
    ATTENTION = "attention"


class Position(StrEnum):
    """Which tokens are restored, all of a kind together. Tokens before the subject hold nothing that noise changed."""

    SUBJECT_FIRST = "subject_first"
    SUBJECT_MIDDLE = "subject_middle"
    SUBJECT_LAST = "subject_last"
    NEXT_FIRST = "next_first"
    NEXT_FURTHER = "next_further"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A fact's prompt as tokens.

    Attributes:
        fact: the fact's id.
        ids: the prompt's tokens.
        subject: indices of the subject's tokens among them, ascending.
        answer: the first token of the true answer.
    """

    fact: str
    ids: tuple[int, ...]
    subject: tuple[int, ...]
    answer: int

    def tokens_at(self, position: Position) -> tuple[int, ...]:
        """Indices of the tokens of a kind; empty if there are none.

        Every token from the subject's first on is of one kind. A subject of one token has only a last one; a prompt
        that ends with its subject has nothing behind it; a single token behind it is the last one.
        """
        first, last, end = self.subject[0], self.subject[-1], len(self.ids) - 1
        kinds = {
            Position.SUBJECT_FIRST: range(first, min(first + 1, last)),
            Position.SUBJECT_MIDDLE: range(first + 1, last),
            Position.SUBJECT_LAST: range(last, last + 1),
            Position.NEXT_FIRST: range(last + 1, min(last + 2, end)),
            Position.NEXT_FURTHER: range(last + 2, end),
            Position.LAST: range(max(end, last + 1), end + 1),
        }
        return tuple(kinds[position])


def prompts_of(model: LanguageModel, facts: Sequence[Fact]) -> list[Prompt]:
    """The facts' prompts with their true answers.

    Raises:
        InputError: if a fact has no old answer, or its subject or old answer no token.
    """
    pairs = [fact.pair(fact.old) for fact in facts if fact.old is not None]
    if len(pairs) < len(facts):
        lacking = next(fact.id for fact in facts if fact.old is None)
        raise InputError(
            f"fact {lacking!r} has no 'old' answer, and only what the model knows can be traced",
            remedy="Give every fact its true answer",
        )
    prompts = []
    for fact, completion in zip(facts, complete(model.tokenizer, pairs), strict=True):
        start, end = fact.subject_span
        offsets = completion.encoded.offsets[: completion.target_start]
        held = [index for index, (first, stop) in enumerate(offsets) if max(first, start) < min(stop, end)]
        if not held:
            raise InputError(f"the subject of fact {fact.id!r} has no token", remedy="Give another subject")
        # Without gaps: a space that is a token of its own may have no characters left once offsets are trimmed (OPT).
        subject = tuple(range(held[0], held[-1] + 1))
        prompts.append(Prompt(fact.id, completion.ids[: completion.target_start], subject, completion.target_ids[0]))
    return prompts


def window_around(layer: int, size: int, layers: int) -> range:
    """``size`` blocks around a layer, cut at both ends of the model; an even window has the layer in its upper half."""
    return range(max(0, layer - size // 2), min(layers, layer + (size + 1) // 2))
