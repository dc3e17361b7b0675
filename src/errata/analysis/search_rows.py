"""The rows of a search of targets by their lengths alone, put together as a search does: nothing of a model is needed.

What is counted here is what ``targets.rows`` and ``models.replay`` run, padding included; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from transformers import PreTrainedTokenizerBase

from errata.facts import Fact
from errata.models.prompts import complete, encode
from errata.models.replay import length_cuts
from errata.recipe_settings import ContextSettings
from errata.targets.contexts import in_context, neutral_leads
from errata.targets.rows import KL_PROMPT

ROWS_AT_ONCE = 1024  # as ``optimise_targets`` does by default
_LEAD = 1  # what joins a prefix and a prompt: "." mostly, for the space goes with the next word


@dataclass(frozen=True, slots=True)
class SearchRow:
    """One text: how many tokens stand before the injection, are replayed from there on, and have their logits read.

    Attributes:
        stem: how many of those before are the same for all rows of its kind.
        kind: the number of its context; that of the KL prompt is behind them.
    """

    before: int
    replayed: int
    wanted: int
    stem: int
    kind: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows that are replayed together, as long as the longest of them.

    Attributes:
        slots: tokens before the injection; those of the longest row.
        replayed: from there on.
        wanted: logits that are read, of all rows together.
        stems: tokens of the stems, each once, padded.
        tail: tokens of a row between its stem and the injection.
    """

    rows: int
    slots: int
    replayed: int
    wanted: int
    stems: int
    tail: int

    @classmethod
    def of(cls, rows: Sequence[SearchRow]) -> Bucket:
        return cls(
            rows=len(rows),
            slots=max(row.before for row in rows),
            replayed=max(row.replayed for row in rows),
            wanted=sum(row.wanted for row in rows),
            stems=len({row.kind for row in rows if row.stem}) * max(row.stem for row in rows),
            tail=max(row.before - row.stem for row in rows),
        )


@dataclass(frozen=True, slots=True)
class SearchRows:
    """All rows of a search.

    Attributes:
        facts: how many they are of.
        searched_together: the buckets of the facts that are searched at once, group after group.
    """

    facts: int
    searched_together: tuple[tuple[Bucket, ...], ...]

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        contexts: ContextSettings,
        prefixes: Sequence[str] = (),
    ) -> SearchRows:
        """Of facts.

        Args:
            prefixes: the contexts; without any, as before they have been generated, their lengths are the recipe's.

        Raises:
            InputError: if a target or a subject has no token.
        """
        neutral = neutral_leads(tokenizer, facts)
        led = list(zip(facts, neutral, strict=True))
        completions = complete(tokenizer, [fact.pair(fact.target, lead + fact.text) for fact, lead in led])
        asked = encode(tokenizer, [lead + KL_PROMPT.replace("{}", fact.subject, 1) for fact, lead in led])
        texts = []
        for fact, lead, completion, question in zip(facts, neutral, completions, asked, strict=True):
            start, end = (place + len(lead) for place in fact.subject_span)
            subject = completion.encoded.last_token_of(start, end)
            about = question.ids[: question.last_token_of(len(lead), len(lead) + len(fact.subject))]
            replayed = len(completion.ids) - 1 - subject
            before = completion.ids[:subject]
            # Nothing is before a subject that begins its text, but for the lead, which prefixes do not have.
            texts.append((before, () if lead else before, replayed, len(completion.target_ids), about))
        lengths = [tokens + _LEAD for tokens in contexts.tokens for _ in contexts.openers * contexts.per_opener]
        if prefixes:
            bare, *behind = encode(tokenizer, [in_context(prefix, facts[0].text)[0] for prefix in ("", *prefixes)])
            lengths = [len(text.ids) - len(bare.ids) for text in behind]
        leads = [0, *lengths] if contexts.targets == "all" else [0]
        size = max(1, ROWS_AT_ONCE // (len(leads) + 1))
        groups = []
        for start in range(0, len(texts), size):
            chosen = texts[start : start + size]
            bare_stem, stem = _shared([text[0] for text in chosen]), _shared([text[1] for text in chosen])
            about_stem = _shared([text[4] for text in chosen])
            rows = []
            for alone, before, replayed, wanted, asking in chosen:
                rows.append(SearchRow(len(alone), replayed, wanted, bare_stem, 0))
                for kind, more in enumerate(leads[1:], start=1):
                    rows.append(SearchRow(len(before) + more, replayed, wanted, stem + more, kind))
                rows.append(SearchRow(len(asking), 1, 1, about_stem, len(leads)))
            groups.append(_buckets(rows))
        return cls(len(facts), tuple(groups))

    @classmethod
    def typical(
        cls, facts: int, *, contexts: int, context: int, before: int, replayed: int, wanted: int, about: int
    ) -> SearchRows:
        """Of facts that are all alike, where there is no tokenizer to ask.

        Args:
            contexts: the bare prompt included.
            context: tokens of a prefix.
            before: tokens of a prompt before the subject's last, none of them shared.
            replayed: tokens from there to the last but one of the target.
            wanted: tokens of the target.
            about: tokens of ``{subject} is a`` before the subject's last.
        """
        size = max(1, ROWS_AT_ONCE // (contexts + 1))
        row = [
            SearchRow(before + (context if kind else 0), replayed, wanted, context if kind else 0, kind)
            for kind in range(contexts)
        ]
        row.append(SearchRow(about, 1, 1, 0, contexts))
        counts = [min(size, facts - start) for start in range(0, facts, size)]
        return cls(facts, tuple(_buckets(row * count) for count in counts))

    @property
    def largest(self) -> tuple[Bucket, ...]:
        """The buckets that are searched together and hold the most."""
        return max(self.searched_together, key=lambda group: sum(bucket.rows for bucket in group))

    @property
    def buckets(self) -> list[Bucket]:
        return [bucket for group in self.searched_together for bucket in group]


def _buckets(rows: Sequence[SearchRow]) -> tuple[Bucket, ...]:
    ordered = sorted(rows, key=lambda row: row.replayed)
    cuts = [0, *length_cuts([row.replayed for row in ordered]), len(ordered)]
    return tuple(Bucket.of(ordered[start:stop]) for start, stop in pairwise(cuts))


def _shared(texts: Sequence[Sequence[int]]) -> int:
    """How many of their first tokens all of them share."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False)))
