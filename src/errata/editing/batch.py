"""One batch, the loop of all methods: facts -> targets -> residuals and keys -> solver -> weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from errata.editing.keys import SubjectTexts
from errata.editing.preparation import EditContext
from errata.editing.shaping import BatchShaper
from errata.editing.solvers.base import LayerSolver, LowRank
from errata.editing.target_search import LayerTarget, Targets, layer_targets, read_states
from errata.errors import NonFiniteError
from errata.facts.fact import Fact
from errata.models.language_model import TOKEN_BUDGET, LanguageModel, Site
from errata.models.prompts import encode, length_batches, pad
from errata.models.weights import LowRankTerm, Savepoint, SparseTerm, Term
from errata.utils.tensors import from_float64


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """The record of one batch.

    Attributes:
        index: 0 for the editor's first.
        facts: in the order given.
        terms: the changes of the weights, in order.
        targets: target layer -> the targets of the facts there.
        seconds: wall time of the batch.
        unwritten: facts for which nothing was written, because they were open in no round.
        keys: layer -> (d_in, u) float64, which later batches keep in place; empty without a history, and in the
            editor's own list, where the solvers hold them.
    """

    index: int
    facts: tuple[Fact, ...]
    terms: tuple[Term, ...]
    targets: dict[int, Targets]
    seconds: float
    unwritten: tuple[Fact, ...] = ()
    keys: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WrittenGroup:
    """Facts that were solved together: their changes, their targets, and the indices of those that were written."""

    terms: Sequence[Term]
    targets: Mapping[int, LayerTarget]
    written: frozenset[int]


def write_group(
    context: EditContext,
    texts: SubjectTexts,
    solvers: Mapping[int, LayerSolver],
    earlier: Sequence[Term],
    found: Mapping[int, LayerTarget] | None = None,
) -> WrittenGroup:
    """Take the steps of the schedule for facts that are solved together: find a target when first needed, solve, write.

    Args:
        solvers: layer -> its state.
        earlier: changes that the run has made before.
        found: layer -> its target, if it was found before on the weights as they are now.

    Raises:
        NonFiniteError, EditError: the model may then hold some of the changes.
    """
    edits, recipe = context.model.edits, context.recipe
    masking = [shaper for shaper in recipe.shaping if isinstance(shaper, BatchShaper)]
    layers = {step.layer for step in context.steps}
    at_start = {layer: context.model.weight(layer).clone() for layer in layers if masking}
    start = edits.savepoint(layers if masking else ())
    targets: dict[int, LayerTarget] = dict(found or {})
    found_before = dict.fromkeys(targets, 0)  # target layer -> number of writes before it was found
    written: set[int] = set()
    terms: list[Term] = []
    for _ in range(recipe.rounds.count if recipe.rounds else 1):
        open_facts: dict[int, list[int]] = {}
        for step in context.steps:
            at = step.target_layer
            if at not in targets:
                new = layer_targets(context, texts, step, [*earlier, *terms])
                targets |= new
                found_before |= dict.fromkeys(new, len(terms))
            # The states are those of the search if it ran on the current weights.
            unmoved = found_before[at] == len(terms) and recipe.target.weights == "current"
            states = targets[at].states if unmoved else read_states(context, texts, at)
            # z - h = delta + (h when found - h now): exactly delta before the first write, so that facts that the model
            # already knows (delta = 0) change nothing.
            residuals = targets[at].delta + (targets[at].states - states)  # (d_out, u)
            if at not in open_facts:
                open_facts[at] = _open(context, residuals)
            if chosen := open_facts[at]:
                written |= set(chosen)
                solved = _solve(context, texts.of(chosen), solvers, step.layer, residuals[:, chosen] * step.share)
                edits.add(solved)
                terms.extend(solved)
    for shaper in masking:
        terms = _masked(context, terms, at_start, start, shaper)
    return WrittenGroup(terms, targets, frozenset(written))


def read_keys(context: EditContext, texts: SubjectTexts, layers: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Layer -> averaged and bare keys on the current weights, (d_in, facts) float64 each, on ``float64_device``."""
    return texts.read(Site.KEY, layers, context.recipe.contexts.keys)


def check_logits(context: EditContext, facts: Sequence[Fact]) -> None:
    """Raises NonFiniteError if the edited model's logits after the facts' prompts are not all finite."""
    model = context.model
    rows = [row.ids for row in encode(model.tokenizer, [fact.text for fact in facts])]
    for indices in length_batches([len(row) for row in rows], token_budget=TOKEN_BUDGET // 8):
        batch = pad([rows[index] for index in indices], left=False, device=model.device)
        with torch.no_grad():
            logits = model.logits_at(batch.inputs(), torch.arange(len(indices), device=model.device), batch.last)
        check_columns("logits", logits.T, [facts[index] for index in indices], context.steps[-1].layer)


def check_columns(quantity: str, matrix: Tensor, facts: Sequence[Fact], layer: int) -> None:
    """Raises NonFiniteError, naming the facts, if a column of a matrix with one column a fact is not finite."""
    finite = torch.isfinite(matrix).all(0)
    if not bool(finite.all()):
        bad = [fact.id for fact, good in zip(facts, finite.tolist(), strict=True) if not good]
        raise NonFiniteError(quantity, facts=bad, layer=layer)


def _open(context: EditContext, residuals: Tensor) -> list[int]:
    """The facts of a round: all, unless the recipe has bounds for the distance from the target."""
    if context.recipe.rounds is None:
        return list(range(residuals.shape[1]))
    distance = residuals.norm(dim=0)
    is_open = (distance > context.recipe.rounds.least) & (distance < context.recipe.rounds.most)
    return [int(index) for index in is_open.nonzero()[:, 0]]


def _solve(
    context: EditContext, texts: SubjectTexts, solvers: Mapping[int, LayerSolver], layer: int, residuals: Tensor
) -> list[LowRankTerm]:
    """The change of a layer, one term for each expert that is written if it has some."""
    model, facts = context.model, texts.facts
    keys, bare = read_keys(context, texts, [layer])[layer]
    check_columns("key", keys, facts, layer)
    check_columns("residual", residuals, facts, layer)
    change = solvers[layer].solve(keys, residuals, bare if context.recipe.solver.uses_bare_keys else None)
    for factor in (change.left, change.right.T):
        check_columns("update", factor.to(model.edits.sum_dtype), facts, layer)
    return terms_of(model, layer, change)


def terms_of(model: LanguageModel, layer: int, change: LowRank) -> list[LowRankTerm]:
    """A solver's change as changes of the model's matrices: one, or one for each expert that is written."""
    terms = []
    for expert, part in change.parts.items():
        left, right = (from_float64(factor, model.edits.sum_dtype, model.device) for factor in (part.left, part.right))
        terms.append(LowRankTerm(layer, left, right, expert=expert))
    return terms


def _masked(
    context: EditContext, terms: Sequence[Term], at_start: Mapping[int, Tensor], start: Savepoint, shaper: BatchShaper
) -> list[Term]:
    """Replace the changes of a group by those of their entries that the shaper selects."""
    edits = context.model.edits
    edits.rollback(start)
    masked: list[Term] = []
    for layer in dict.fromkeys(term.layer for term in terms):
        change = torch.zeros_like(at_start[layer], dtype=edits.sum_dtype)
        for term in terms:
            if term.layer == layer:
                term.add_to(change)
        mask = shaper.mask(change, at_start[layer])
        # On the CPU: values and mask are as large as W for every batch, and are used again only when a change is undone
        # or left out for a while.
        masked.append(SparseTerm(layer, change[mask].cpu(), mask.cpu()))
    edits.add(masked)
    return masked
