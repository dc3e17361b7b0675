"""The target vector: the h that makes the model say the new object (Meng et al. 2022, eq. 4; 2023, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor

from errata.errors import InputError, NonFiniteError
from errata.facts import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import complete, encode
from errata.models.replay import BucketedReplay, ReplayRow
from errata.recipe import TargetSettings
from errata.targets.contexts import in_context

KL_PROMPT = "{} is a"
_IGNORED = -100  # no token has this number


@dataclass(frozen=True, slots=True)
class Targets:
    """What a search found for each fact.

    Attributes:
        z: (d, facts), float32 or the model's dtype where that is wider.
        delta: (d, facts), z minus the state at delta = 0.
        loss: (facts,) the last evaluated loss.
        evaluations: (facts,) how many losses were evaluated.
    """

    z: Float[Tensor, "d u"]
    delta: Float[Tensor, "d u"]
    loss: Float[Tensor, "u"]
    evaluations: Int[Tensor, "u"]


class TargetLoss:
    """The loss of several facts at once as a function of their deltas; everything constant is computed here.

    There is a row for each fact in each context, and one for each fact's KL prompt.
    """

    def __init__(
        self,
        model: LanguageModel,
        facts: Sequence[Fact],
        prefixes: Sequence[str],
        layer: int,
        site: Site,
        settings: TargetSettings,
    ) -> None:
        self._settings = settings
        self.dtype = torch.promote_types(model.dtype, torch.float32)
        rows = _rows(model, facts, ["", *prefixes])
        # Ascending in what is replayed of them; stable, so the rows of one kind stay in the facts' order.
        rows.sort(key=lambda row: len(row.replay.ids) - row.replay.injection)
        device = model.device
        self._replay = BucketedReplay(model, [row.replay for row in rows], layer, site)
        self._row_fact = torch.tensor([row.fact for row in rows], device=device)
        self._is_kl = torch.tensor([not row.target_ids for row in rows], device=device)
        # One entry for each of the wanted logits; a KL prompt has one, and no target.
        target_ids = [token for row in rows for token in row.target_ids or (_IGNORED,)]
        weights = [1 / ((1 + len(prefixes)) * len(row.replay.wanted)) for row in rows for _ in row.replay.wanted]
        self._target_ids = torch.tensor(target_ids, device=device)
        self._weights = torch.tensor(weights, dtype=self.dtype, device=device)
        bare = torch.tensor([index for index, row in enumerate(rows) if row.bare], device=device)
        bare = bare[self._row_fact[bare].argsort()]
        self.origin = self._replay.origin[bare].to(self.dtype)  # (facts, d)
        self._origin_norm = self.origin.norm(dim=1)
        self._reference: Tensor | None = None  # (facts, vocabulary): log P_0 at the KL prompt

    def __call__(self, delta: Float[Tensor, "u d"]) -> Float[Tensor, "u"]:
        """The whole loss of every fact; the first call must be at delta = 0, where P_0 is read."""
        replay, settings = self._replay, self._settings
        logits = replay.logits(delta[self._row_fact]).to(self.dtype)
        is_kl = self._is_kl[replay.wanted_row]
        fact = self._row_fact[replay.wanted_row]
        # Rows without a target are ignored in place: to pick the others out would copy a row of logits for each.
        surprise = torch.nn.functional.cross_entropy(logits, self._target_ids, reduction="none", ignore_index=_IGNORED)
        loss = torch.zeros(len(delta), dtype=self.dtype, device=delta.device)
        loss = loss.index_add(0, fact, surprise * self._weights)
        current = logits[is_kl].log_softmax(-1)
        if self._reference is None:
            self._reference = current.detach()
        loss = loss + settings.kl_factor * (current.exp() * (current - self._reference)).sum(-1)
        return loss + settings.weight_decay * delta.norm(dim=1) / self._origin_norm**2

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
        self.origin, self._origin_norm = self.origin[facts], self._origin_norm[facts]
        if self._reference is not None:
            self._reference = self._reference[facts]

    @property
    def largest_norm(self) -> Float[Tensor, "u"]:
        """How long each delta may be."""
        return self._settings.clamp * self._origin_norm


def optimise_targets(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    site: Site,
    settings: TargetSettings,
    *,
    row_budget: int = 1024,
    on_step: Callable[[int], None] = lambda facts_left: None,
) -> Targets:
    """Search the targets of all facts together: Adam is elementwise, so this equals one fact at a time.

    A fact whose loss is below the stop leaves the batch; each delta is clamped by itself.

    Args:
        row_budget: at most so many rows (facts × contexts) are replayed at once; more facts are taken in turn.
        on_step: told after each step how many facts are still being searched.

    Raises:
        NonFiniteError: naming facts and layer, if a loss or a gradient is NaN or infinite.
    """
    size = max(1, row_budget // (len(prefixes) + 2))
    parts = [
        _optimise(model, facts[start : start + size], prefixes, layer, site, settings, on_step)
        for start in range(0, len(facts), size)
    ]
    return Targets(
        z=torch.cat([part.z for part in parts], dim=1),
        delta=torch.cat([part.delta for part in parts], dim=1),
        loss=torch.cat([part.loss for part in parts]),
        evaluations=torch.cat([part.evaluations for part in parts]),
    )


def _optimise(
    model: LanguageModel,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    layer: int,
    site: Site,
    settings: TargetSettings,
    on_step: Callable[[int], None],
) -> Targets:
    loss_of = TargetLoss(model, facts, prefixes, layer, site, settings)
    origin = loss_of.origin
    final_delta = torch.zeros_like(origin)
    final_loss = torch.zeros(len(facts), dtype=loss_of.dtype, device=origin.device)
    evaluations = torch.zeros(len(facts), dtype=torch.long, device=origin.device)
    active = torch.arange(len(facts), device=origin.device)
    delta = torch.zeros_like(origin)
    first, second = torch.zeros_like(origin), torch.zeros_like(origin)
    for step in range(1, settings.steps + 1):
        delta.requires_grad_(True)
        loss = loss_of(delta)
        final_delta[active], final_loss[active] = delta.detach(), loss.detach()
        evaluations[active] = step
        _check_finite("target loss", loss, facts, active, layer)
        going_on = loss.detach() >= settings.stop_loss
        if step == settings.steps or not bool(going_on.any()):
            break
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        _check_finite("gradient of the target loss", gradient[going_on], facts, active[going_on], layer)
        delta = delta.detach()
        if not bool(going_on.all()):
            kept = going_on.nonzero()[:, 0]
            loss_of.select(kept)
            active, delta, gradient, first, second = (x[kept] for x in (active, delta, gradient, first, second))
        first, second, delta = _adam(first, second, delta, gradient, step, settings.learning_rate)
        norm = delta.norm(dim=1, keepdim=True)
        delta = torch.where(norm > loss_of.largest_norm[:, None], delta * (loss_of.largest_norm[:, None] / norm), delta)
        on_step(len(active))
    return Targets(z=(origin + final_delta).T, delta=final_delta.T, loss=final_loss, evaluations=evaluations)


def _adam(
    first: Tensor, second: Tensor, value: Tensor, gradient: Tensor, step: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam with the usual constants (Kingma & Ba 2015, algorithm 1); all rows are at the same step."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient**2
    denominator = (second / (1 - beta2**step)).sqrt() + epsilon
    return first, second, value - rate * (first / (1 - beta1**step)) / denominator


@dataclass(frozen=True, slots=True)
class _Row:
    """A fact in a context, with its target's tokens; the KL prompt has none."""

    replay: ReplayRow
    fact: int
    target_ids: tuple[int, ...] = ()
    bare: bool = False


def _rows(model: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[_Row]:
    pairs = [(in_context(context, fact.text)[0], fact.target) for fact in facts for context in contexts]
    completions = iter(complete(model.tokenizer, pairs))
    kl_encoded = iter(encode(model.tokenizer, [KL_PROMPT.replace("{}", fact.subject, 1) for fact in facts]))
    rows: list[_Row] = []
    for index, fact in enumerate(facts):
        start, end = fact.subject_span
        for context in contexts:
            lead = in_context(context, fact.text)[1]
            completion = next(completions)
            if len(completion.ids) > model.context_length:
                raise InputError(
                    f"fact {fact.id!r} has {len(completion.ids)} tokens behind the prefix {context!r}; {model.name!r} "
                    f"takes {model.context_length}",
                    remedy="Shorten the prompt, or lower contexts.tokens in the recipe",
                )
            injection = _position(completion.encoded.last_token_of, start + lead, end + lead, fact)
            wanted = tuple(range(completion.target_start - 1, len(completion.ids) - 1))
            replay = ReplayRow(completion.ids[:-1], injection, wanted)
            rows.append(_Row(replay, index, completion.target_ids, bare=not context))
        about = next(kl_encoded)
        position = _position(about.last_token_of, 0, len(fact.subject), fact)
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


def _position(locate: Callable[[int, int], int], start: int, end: int, fact: Fact) -> int:
    try:
        return locate(start, end)
    except InputError as error:
        raise InputError(
            f"the subject {fact.subject!r} of fact {fact.id!r} has no token", remedy=error.remedy
        ) from error


def _check_finite(quantity: str, values: Tensor, facts: Sequence[Fact], index: Tensor, layer: int) -> None:
    finite = torch.isfinite(values.detach()).view(len(index), -1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(quantity, facts=[facts[i].id for i in index[~finite].tolist()], layer=layer)
