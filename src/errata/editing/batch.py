"""One batch: the one loop of all methods, facts -> aims -> keys -> residuals -> solver -> weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from errata.editing.keys import keys_and_bare
from errata.editing.recipe import Recipe
from errata.editing.schedules import Step
from errata.editing.shaping import BatchShaper, Shaper
from errata.editing.solvers.base import LayerSolver, Solver
from errata.editing.target_search import Targets
from errata.editing.targets import Aim, AimFinder
from errata.errors import NonFiniteError
from errata.facts.fact import Fact
from errata.models.language_model import TOKEN_BUDGET, LanguageModel, Site
from errata.models.prompts import encode, length_batches, pad
from errata.models.weights import LowRankTerm, Savepoint, SparseTerm, Term
from errata.utils.progress import Report, silent


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """What was done for facts that were solved together: what was added, aimed at, and for which of them."""

    terms: Sequence[Term]
    aims: Mapping[int, Aim]
    written: frozenset[int]


@dataclass(frozen=True, slots=True)
class BatchWriter:
    """Writes facts that are solved together, on the weights as they are.

    Args:
        steps: of the schedule.
        prefixes: the contexts.
        solver: the rule, and ``states`` what it keeps of each layer.
    """

    model: LanguageModel
    recipe: Recipe
    site: Site
    steps: Sequence[Step]
    prefixes: Sequence[str]
    shapers: Sequence[Shaper]
    solver: Solver
    states: Mapping[int, LayerSolver]
    report: Report = silent

    def write(self, facts: Sequence[Fact], earlier: Sequence[Term]) -> WrittenPart:
        """The steps of the schedule: find what a step aims at when it is first needed, solve, write.

        Args:
            earlier: what the run has written before.

        Raises:
            NonFiniteError, EditError: some of it may be in the model then.
        """
        finder = AimFinder(self.model, self.recipe, self.site, self.prefixes, self.shapers, self.report)
        edits, steps = self.model.edits, self.steps
        masking = [shaper for shaper in self.shapers if isinstance(shaper, BatchShaper)]
        layers = {step.layer for step in steps}
        began = {layer: self.model.weight(layer).clone() for layer in layers if masking}
        mark = edits.savepoint(layers if masking else ())
        aims: dict[int, Aim] = {}
        written: set[int] = set()
        found_before: dict[int, int] = {}  # the number of writes before an aim was found
        terms: list[Term] = []
        for _ in range(self.recipe.rounds.count if self.recipe.rounds else 1):
            opened: dict[int, list[int]] = {}
            for step in steps:
                at = step.target_layer
                if at not in aims:
                    new = finder.find(facts, step, steps, [*earlier, *terms])
                    aims |= new
                    found_before |= dict.fromkeys(new, len(terms))
                # Nothing has moved since an aim was found on these weights that no write has followed.
                unmoved = found_before[at] == len(terms) and self.recipe.target.weights == "current"
                states = aims[at].states if unmoved else finder.states(facts, at)
                # z - h = delta + (h when found - h now): exactly delta before the first write, so that facts which
                # the model knows already (delta = 0) leave the weights exactly alone.
                gaps = aims[at].delta + (aims[at].states - states)  # (d_out, u)
                if at not in opened:
                    opened[at] = self._open(gaps)
                if opened[at]:
                    written |= set(opened[at])
                    chosen = [facts[index] for index in opened[at]]
                    term = self._solve(chosen, step.layer, gaps[:, opened[at]] * step.share)
                    edits.add([term])
                    terms.append(term)
        for shaper in masking:
            terms = self._masked(terms, began, mark, shaper)
        return WrittenPart(terms, aims, frozenset(written))

    def _open(self, gaps: Tensor) -> list[int]:
        """The facts that a round is for: all of them, unless the recipe says how far from its target one must be."""
        if self.recipe.rounds is None:
            return list(range(gaps.shape[1]))
        distance = gaps.norm(dim=0)
        is_open = (distance > self.recipe.rounds.least) & (distance < self.recipe.rounds.most)
        return [int(index) for index in is_open.nonzero()[:, 0]]

    def keys(self, facts: Sequence[Fact], layers: Sequence[int]) -> dict[int, Tensor]:
        """The averaged keys on the weights as they are now, where is solved: layer -> (d_in, facts) float64."""
        return {layer: mean for layer, (mean, _) in self._keys_and_bare(facts, layers).items()}

    def _keys_and_bare(self, facts: Sequence[Fact], layers: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        found = keys_and_bare(self.model, facts, self.prefixes, layers, self.recipe.contexts.keys)
        device = solve_device(self.model)
        return {layer: (mean.to(device), bare.to(device)) for layer, (mean, bare) in found.items()}

    def _solve(self, facts: Sequence[Fact], layer: int, residuals: Tensor) -> Term:
        keys, bare = self._keys_and_bare(facts, [layer])[layer]
        check_columns("key", keys, facts, layer)
        check_columns("residual", residuals, facts, layer)
        change = self.states[layer].solve(keys, residuals.to(keys.device), bare if self.solver.uses_bare_keys else None)
        dtype = self.model.edits.sum_dtype
        left, right = change.left.to(self.model.device, dtype), change.right.to(self.model.device, dtype)
        check_columns("update", left, facts, layer)
        check_columns("update", right.T, facts, layer)
        return LowRankTerm(layer, left, right)

    def _masked(
        self, terms: Sequence[Term], began: Mapping[int, Tensor], mark: Savepoint, shaper: BatchShaper
    ) -> list[Term]:
        """The batch's writes taken back, and in their place those entries of them that the shaper leaves."""
        self.model.edits.rollback(mark)
        masked: list[Term] = []
        for layer in dict.fromkeys(term.layer for term in terms):
            change = torch.zeros_like(began[layer], dtype=self.model.edits.sum_dtype)
            for term in terms:
                if term.layer == layer:
                    term.add_to(change)
            mask = shaper.mask(change, began[layer])
            # Kept off the GPU: a term stays for the life of the run, and unlike factors, which are as wide as the batch
            # has facts, values and mask are as large as W for every batch. They are added now, and again only when a
            # change is undone or left out for a while.
            masked.append(SparseTerm(layer, change[mask].cpu(), mask.cpu()))
        self.model.edits.add(masked)
        return masked

    def check_logits(self, facts: Sequence[Fact]) -> None:
        """The edited model must still answer with numbers."""
        rows = [row.ids for row in encode(self.model.tokenizer, [fact.text for fact in facts])]
        for indices in length_batches([len(row) for row in rows], token_budget=TOKEN_BUDGET // 8):
            batch = pad([rows[index] for index in indices], left=False, device=self.model.device)
            with torch.no_grad():
                logits = self.model.logits_at(
                    batch.inputs(), torch.arange(len(indices), device=self.model.device), batch.last
                )
            check_columns("logits", logits.T, [facts[index] for index in indices], self.steps[-1].layer)


def solve_device(model: LanguageModel) -> torch.device:
    """Solves run in float64, which Apple's GPUs do not have."""
    return torch.device("cpu") if model.device.type == "mps" else model.device


def check_columns(quantity: str, matrix: Tensor, facts: Sequence[Fact], layer: int) -> None:
    """One column a fact; raises NonFiniteError naming those with a NaN or an infinity."""
    finite = torch.isfinite(matrix).all(0)
    if not bool(finite.all()):
        bad = [fact.id for fact, good in zip(facts, finite.tolist(), strict=True) if not good]
        raise NonFiniteError(quantity, facts=bad, layer=layer)


# ----------------------------------------------------------------------------------------------------
# What one batch of an edit did.


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What one batch did.

    Attributes:
        index: 0 for the first of the editor's life.
        facts: in the order given.
        terms: what was added to the weights, in order.
        targets: target layer -> what the facts aimed at there.
        seconds: wall time of the batch.
        left_alone: facts that no round was for, so that nothing was written for them.
        keys: layer -> (d_in, u) float64, what later batches keep in place; empty without history, and in what the
            editor keeps, where it would be there twice.
    """

    index: int
    facts: tuple[Fact, ...]
    terms: tuple[Term, ...]
    targets: dict[int, Targets]
    seconds: float
    left_alone: tuple[Fact, ...] = ()
    keys: Mapping[int, Tensor] = field(default_factory=dict)
