"""The prompts of a target search: each fact in each context, and its KL prompt, all replayed together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.editing.contexts import in_context, neutral_leads, target_in
from errata.editing.search_groups import FactLength
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import complete, encode, subject_token
from errata.models.replay import BucketedReplay, ReplayRow

KL_PROMPT = "{} is a"
_IGNORED = -100  # target id of prompts without a target


@dataclass(frozen=True, slots=True)
class InjectedAnswers:
    """The model's answers with a vector injected for each fact.

    Attributes:
        nll: (facts,) −log P of the target, mean over its tokens, then over the contexts.
        kl: (facts,) KL(P ‖ P₀) of the next token after ``{subject} is a``.
        argmax_correct: (facts,) whether the target is the argmax at each of its positions in each context; None unless
            requested.
    """

    nll: Float[Tensor, "u"]
    kl: Float[Tensor, "u"]
    argmax_correct: Bool[Tensor, "u"] | None


class SearchPrompts:
    """All prompts of several facts. Everything that does not depend on the injected vectors is computed once.

    Args:
        sites: where vectors enter; see ``errata.models.replay``.
        pass_cost: see ``BucketedReplay``.

    Attributes:
        dtype: of losses and deltas: float32, or the model's where that is wider.
        prefixes: the number of contexts besides the bare prompt.
        origin: (facts, width) the unmodified vectors at the sites in the bare prompts.
    """

    def __init__(
        self,
        model: LanguageModel,
        facts: Sequence[Fact],
        prefixes: Sequence[str],
        layer: int,
        sites: Sequence[Site],
        pass_cost: int | None = None,
    ) -> None:
        self.dtype = torch.promote_types(model.dtype, torch.float32)
        self.prefixes = len(prefixes)
        rows = _rows(model, facts, ["", *prefixes])
        # Ascending in the number of replayed tokens; the sort is stable, so rows of one kind stay in the facts' order.
        rows.sort(key=lambda row: len(row.replay.ids) - row.replay.injection)
        device = model.device
        self._replay = BucketedReplay(model, [row.replay for row in rows], layer, sites, pass_cost)
        self._row_fact = torch.tensor([row.fact for row in rows], device=device)
        self._is_kl = torch.tensor([not row.target_ids for row in rows], device=device)
        self._context = torch.tensor([row.context for row in rows], device=device)  # 0: bare, from 1: with a prefix
        # One entry for each of the wanted logits; a KL prompt has one, without a target.
        target_ids = [token for row in rows for token in row.target_ids or (_IGNORED,)]
        weights = [1 / ((1 + len(prefixes)) * len(row.replay.wanted)) for row in rows for _ in row.replay.wanted]
        self._target_ids = torch.tensor(target_ids, device=device)
        self._weights = torch.tensor(weights, dtype=self.dtype, device=device)
        bare = torch.tensor([index for index, row in enumerate(rows) if row.bare], device=device)
        bare = bare[self._row_fact[bare].argsort()]
        self.origin = self._replay.origin[bare].to(self.dtype)
        self._reference: Tensor | None = None  # (facts, vocabulary): log P₀ at the KL prompt

    def answers(
        self, delta: Float[Tensor, "u width"], *, argmax: bool = False, contexts: Sequence[int] | None = None
    ) -> InjectedAnswers:
        """Differentiable in ``delta``. The loss evaluates delta = 0 when it is built; that call sets P₀.

        Args:
            argmax: whether to compare the targets with the argmax too.
            contexts: indices of the prefixes to read besides the bare prompt, which then weigh as much as all; by
                default all.
        """
        if contexts is not None:
            return self._in_contexts(contexts).answers(delta, argmax=argmax)
        logits = self._replay.logits(delta[self._row_fact]).to(self.dtype)
        fact = self._row_fact[self._replay.wanted_row]
        # Rows without a target are ignored in place: selecting the others would copy their logits.
        nll = torch.nn.functional.cross_entropy(logits, self._target_ids, reduction="none", ignore_index=_IGNORED)
        zeros = torch.zeros(len(delta), dtype=self.dtype, device=delta.device)
        current = logits[self._is_kl[self._replay.wanted_row]].log_softmax(-1)
        if self._reference is None:
            self._reference = current.detach()
        correct = None
        if argmax:
            wrong = (logits.detach().argmax(-1) != self._target_ids) & (self._target_ids != _IGNORED)
            correct = zeros.index_add(0, fact, wrong.to(self.dtype)) == 0
        return InjectedAnswers(
            nll=zeros.index_add(0, fact, nll * self._weights),
            kl=(current.exp() * (current - self._reference)).sum(-1),
            argmax_correct=correct,
        )

    def _in_contexts(self, contexts: Sequence[int]) -> SearchPrompts:
        """The bare prompts, KL prompts and prompts in some contexts."""
        read = torch.tensor([0, *(index + 1 for index in contexts)], device=self._row_fact.device)
        chosen = copy.copy(self)
        rows = torch.isin(self._context, read) | self._is_kl
        chosen._keep(rows)
        # The bare prompt counts as before; if it is read alone, for all.
        share = self.prefixes / len(contexts) if contexts else 1.0
        bare = (chosen._context == 0)[chosen._replay.wanted_row]
        alone = 1.0 if contexts else 1.0 + self.prefixes
        chosen._weights = chosen._weights * torch.where(bare, alone, share).to(self.dtype)
        return chosen

    def _keep(self, rows: Bool[Tensor, "rows"]) -> None:
        """Reduce to some rows of all facts."""
        wanted = rows[self._replay.wanted_row]
        self._target_ids, self._weights = self._target_ids[wanted], self._weights[wanted]
        self._replay = self._replay.select(rows.nonzero()[:, 0])
        self._row_fact, self._is_kl, self._context = self._row_fact[rows], self._is_kl[rows], self._context[rows]

    @torch.no_grad()
    def probabilities(self, delta: Float[Tensor, "u width"]) -> Float[Tensor, "u"]:
        """P of each fact's target with a vector injected: exp of its tokens' mean log-probability, then the
        mean over the contexts.
        """
        logits = self._replay.logits(delta[self._row_fact]).to(self.dtype)
        nll = torch.nn.functional.cross_entropy(logits, self._target_ids, reduction="none", ignore_index=_IGNORED)
        of_rows = torch.zeros(len(self._row_fact), dtype=self.dtype, device=delta.device)
        row = self._replay.wanted_row
        tokens = of_rows.index_add(0, row, torch.ones_like(nll))
        chances = (-of_rows.index_add(0, row, nll) / tokens).exp()[~self._is_kl]
        fact = self._row_fact[~self._is_kl]
        of_facts = torch.zeros(len(delta), dtype=self.dtype, device=delta.device)
        return of_facts.index_add(0, fact, chances) / of_facts.index_add(0, fact, torch.ones_like(chances))

    def select(self, facts: Int[Tensor, "n"]) -> None:
        """Reduce to these facts (ascending indices into the present ones)."""
        selected = torch.zeros(len(self.origin), dtype=torch.bool, device=facts.device)
        selected[facts] = True
        self._keep(selected[self._row_fact])
        self._row_fact = (selected.cumsum(0) - 1)[self._row_fact]
        self.origin = self.origin[facts]
        if self._reference is not None:
            self._reference = self._reference[facts]


def fact_lengths(
    model: LanguageModel, facts: Sequence[Fact], prefixes: Sequence[str], per_step: int | None = None
) -> list[FactLength]:
    """The lengths of each fact's rows in ``SearchPrompts``.

    Args:
        per_step: the number of prefixes that an evaluation takes; by default all.

    Raises:
        InputError: if a target or a subject has no token, or a text is too long.
    """
    rows: list[list[ReplayRow]] = [[] for _ in facts]
    for row in _rows(model, facts, ["", *prefixes]):
        rows[row.fact].append(row.replay)
    return [
        FactLength(
            rows=len(own) if per_step is None else min(len(own), per_step + 2),
            held=len(own),
            before=max(row.injection for row in own),
            replayed=max(len(row.ids) - row.injection for row in own),
            wanted=sum(len(row.wanted) for row in own),
        )
        for own in rows
    ]


@dataclass(frozen=True, slots=True)
class _Row:
    """A fact in a context, with its target's tokens; the KL prompt has none."""

    replay: ReplayRow
    fact: int
    target_ids: tuple[int, ...] = ()
    context: int = -1

    @property
    def bare(self) -> bool:
        return self.context == 0


def _rows(model: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[_Row]:
    with_leads = list(zip(facts, neutral_leads(model.tokenizer, facts), strict=True))
    pairs = [target_in(context, fact, lead) for fact, lead in with_leads for context in contexts]
    completions = iter(complete(model.tokenizer, pairs))
    kl_prompts = [lead + KL_PROMPT.replace("{}", fact.subject, 1) for fact, lead in with_leads]
    kl_encoded = iter(encode(model.tokenizer, kl_prompts))
    rows: list[_Row] = []
    for index, (fact, lead) in enumerate(with_leads):
        start, end = fact.subject_span
        for number, context in enumerate(contexts):
            before = in_context(context, fact.text, lead)[1]
            completion = next(completions)
            if len(completion.ids) > model.context_length:
                raise InputError(
                    f"fact {fact.id!r} has {len(completion.ids)} tokens after the prefix {context!r}; {model.name!r} "
                    f"accepts {model.context_length}",
                    remedy="Shorten the prompt, or lower contexts.tokens in the recipe",
                    code="TEXT_TOO_LONG",
                )
            injection = subject_token(completion.encoded, start + before, end + before, fact)
            wanted = tuple(range(completion.target_start - 1, len(completion.ids) - 1))
            replay = ReplayRow(completion.ids[:-1], injection, wanted)
            rows.append(_Row(replay, index, completion.target_ids, number))
        about = next(kl_encoded)
        position = subject_token(about, len(lead), len(lead) + len(fact.subject), fact)
        rows.append(_Row(ReplayRow(about.ids[: position + 1], position, (position,)), index))
    return _with_stems(rows, kinds=len(contexts) + 1)


def _with_stems(rows: Sequence[_Row], kinds: int) -> list[_Row]:
    """Mark the tokens that all rows of a context share before their subjects, which are then computed once.

    Tokens are compared, since a tokenizer may join the end of a context with the text after it.
    """
    stems = [
        common_prefix([row.replay.ids[: row.replay.injection] for row in rows[kind::kinds]]) for kind in range(kinds)
    ]
    return [replace(row, replay=replace(row.replay, stem=stems[index % kinds])) for index, row in enumerate(rows)]


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """The length of the common prefix of all sequences."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
