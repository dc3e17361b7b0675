"""The texts that targets are searched on: each fact in each context, and its KL prompt, replayed all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.editing.contexts import in_context, neutral_leads, subject_token, target_in
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import complete, encode
from errata.models.replay import BucketedReplay, ReplayRow

KL_PROMPT = "{} is a"
_IGNORED = -100  # no token has this number


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model says with a vector injected.

    Attributes:
        surprise: (facts,) −log P of the target, mean over its tokens, then over the contexts.
        divergence: (facts,) KL of the next token behind ``{subject} is a`` from what it was at first.
        holds: (facts,) whether the target is the likeliest at each of its positions in each context; if asked for.
    """

    surprise: Float[Tensor, "u"]
    divergence: Float[Tensor, "u"]
    holds: Bool[Tensor, "u"] | None


class FactRows:
    """All rows of several facts; everything that does not depend on what is injected is computed here.

    Args:
        sites: where vectors enter; see ``errata.models.replay``.

    Attributes:
        dtype: of losses and deltas: float32, or the model's where that is wider.
        origin: (facts, width) what stands at the sites in the bare prompts.
    """

    def __init__(
        self, model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, sites: Sequence[Site]
    ) -> None:
        self.dtype = torch.promote_types(model.dtype, torch.float32)
        rows = _rows(model, facts, ["", *prefixes])
        # Ascending in what is replayed of them; stable, so the rows of one kind stay in the facts' order.
        rows.sort(key=lambda row: len(row.replay.ids) - row.replay.injection)
        device = model.device
        self._replay = BucketedReplay(model, [row.replay for row in rows], layer, sites)
        self._row_fact = torch.tensor([row.fact for row in rows], device=device)
        self._is_kl = torch.tensor([not row.target_ids for row in rows], device=device)
        # One entry for each of the wanted logits; a KL prompt has one, and no target.
        target_ids = [token for row in rows for token in row.target_ids or (_IGNORED,)]
        weights = [1 / ((1 + len(prefixes)) * len(row.replay.wanted)) for row in rows for _ in row.replay.wanted]
        self._target_ids = torch.tensor(target_ids, device=device)
        self._weights = torch.tensor(weights, dtype=self.dtype, device=device)
        bare = torch.tensor([index for index, row in enumerate(rows) if row.bare], device=device)
        bare = bare[self._row_fact[bare].argsort()]
        self.origin = self._replay.origin[bare].to(self.dtype)
        self._reference: Tensor | None = None  # (facts, vocabulary): log P_0 at the KL prompt

    def answers(self, delta: Float[Tensor, "u width"], *, holds: bool = False) -> Answers:
        """Differentiable in ``delta``; the first call must be at delta = 0, where P_0 is read.

        Args:
            holds: whether to look for the likeliest tokens too.
        """
        logits = self._replay.logits(delta[self._row_fact]).to(self.dtype)
        fact = self._row_fact[self._replay.wanted_row]
        # Rows without a target are ignored in place: to pick the others out would copy a row of logits for each.
        surprise = torch.nn.functional.cross_entropy(logits, self._target_ids, reduction="none", ignore_index=_IGNORED)
        zeros = torch.zeros(len(delta), dtype=self.dtype, device=delta.device)
        current = logits[self._is_kl[self._replay.wanted_row]].log_softmax(-1)
        if self._reference is None:
            self._reference = current.detach()
        held = None
        if holds:
            wrong = (logits.detach().argmax(-1) != self._target_ids) & (self._target_ids != _IGNORED)
            held = zeros.index_add(0, fact, wrong.to(self.dtype)) == 0
        return Answers(
            surprise=zeros.index_add(0, fact, surprise * self._weights),
            divergence=(current.exp() * (current - self._reference)).sum(-1),
            holds=held,
        )

    @torch.no_grad()
    def probabilities(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u"]:
        """P of each fact's target with a vector injected: exp of its tokens' mean log-probability, then the
        mean over the contexts.
        """
        logits = self._replay.logits(delta[self._row_fact]).to(self.dtype)
        surprise = torch.nn.functional.cross_entropy(logits, self._target_ids, reduction="none", ignore_index=_IGNORED)
        of_rows = torch.zeros(len(self._row_fact), dtype=self.dtype, device=delta.device)
        row = self._replay.wanted_row
        tokens = of_rows.index_add(0, row, torch.ones_like(surprise))
        chances = (-of_rows.index_add(0, row, surprise) / tokens).exp()[~self._is_kl]
        fact = self._row_fact[~self._is_kl]
        of_facts = torch.zeros(len(delta), dtype=self.dtype, device=delta.device)
        return of_facts.index_add(0, fact, chances) / of_facts.index_add(0, fact, torch.ones_like(chances))

    def select(self, facts: Int[Tensor, "n"]) -> None:
        """Go on with these facts only (ascending indices into the present ones)."""
        keep_fact = torch.zeros(len(self.origin), dtype=torch.bool, device=facts.device)
        keep_fact[facts] = True
        keep_row = keep_fact[self._row_fact]
        wanted_kept = keep_row[self._replay.wanted_row]
        self._target_ids, self._weights = self._target_ids[wanted_kept], self._weights[wanted_kept]
        self._replay = self._replay.select(keep_row.nonzero()[:, 0])
        renumbered = keep_fact.cumsum(0) - 1
        self._row_fact, self._is_kl = renumbered[self._row_fact[keep_row]], self._is_kl[keep_row]
        self.origin = self.origin[facts]
        if self._reference is not None:
            self._reference = self._reference[facts]


@dataclass(frozen=True, slots=True)
class _Row:
    """A fact in a context, with its target's tokens; the KL prompt has none."""

    replay: ReplayRow
    fact: int
    target_ids: tuple[int, ...] = ()
    bare: bool = False


def _rows(model: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[_Row]:
    led = list(zip(facts, neutral_leads(model.tokenizer, facts), strict=True))
    pairs = [target_in(context, fact, lead) for fact, lead in led for context in contexts]
    completions = iter(complete(model.tokenizer, pairs))
    kl_prompts = [lead + KL_PROMPT.replace("{}", fact.subject, 1) for fact, lead in led]
    kl_encoded = iter(encode(model.tokenizer, kl_prompts))
    rows: list[_Row] = []
    for index, (fact, lead) in enumerate(led):
        start, end = fact.subject_span
        for context in contexts:
            before = in_context(context, fact.text, lead)[1]
            completion = next(completions)
            if len(completion.ids) > model.context_length:
                raise InputError(
                    f"fact {fact.id!r} has {len(completion.ids)} tokens behind the prefix {context!r}; {model.name!r} "
                    f"takes {model.context_length}",
                    remedy="Shorten the prompt, or lower contexts.tokens in the recipe",
                )
            injection = subject_token(completion.encoded, start + before, end + before, fact)
            wanted = tuple(range(completion.target_start - 1, len(completion.ids) - 1))
            replay = ReplayRow(completion.ids[:-1], injection, wanted)
            rows.append(_Row(replay, index, completion.target_ids, bare=not context))
        about = next(kl_encoded)
        position = subject_token(about, len(lead), len(lead) + len(fact.subject), fact)
        rows.append(_Row(ReplayRow(about.ids[: position + 1], position, (position,)), index))
    return _with_stems(rows, kinds=len(contexts) + 1)


def _with_stems(rows: Sequence[_Row], kinds: int) -> list[_Row]:
    """Mark what the rows of one context share before their subjects: it is the same text, so it is run once.

    It is found by comparing tokens, for a tokenizer may join the end of a context with what follows.
    """
    stems = [_shared([row.replay.ids[: row.replay.injection] for row in rows[kind::kinds]]) for kind in range(kinds)]
    return [replace(row, replay=replace(row.replay, stem=stems[index % kinds])) for index, row in enumerate(rows)]


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """How many of their first tokens all of the sequences share."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
