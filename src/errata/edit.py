"""Editor: the one loop of all methods, facts -> targets -> keys -> residuals -> solver -> weights; all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from errata.errors import NonFiniteError
from errata.facts import Fact
from errata.models.language_model import TOKEN_BUDGET, LanguageModel, Site
from errata.models.prompts import encode, length_batches, pad
from errata.models.weights import Term
from errata.patch import Patch, software_versions
from errata.progress import Report, silent
from errata.recipe import Recipe
from errata.schedules import SCHEDULES, Step
from errata.solvers import make_solver
from errata.solvers.base import LayerSolver
from errata.statistics.store import moments_for, packaged_moments
from errata.targets.contexts import generate_prefixes
from errata.targets.keys import current_states, mean_keys
from errata.targets.residual import Targets, optimise_targets


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What one batch did.

    Attributes:
        index: 0 for the first of the editor's life.
        facts: in the order given.
        terms: what was added to the weights, one per written layer.
        targets: target layer -> what the search found.
        seconds: wall time of the batch.
    """

    index: int
    facts: tuple[Fact, ...]
    terms: tuple[Term, ...]
    targets: dict[int, Targets]
    seconds: float


@dataclass(slots=True)
class Editor:
    """Edits one model with one recipe, in any number of batches, one after another.

    What is prepared once: the contexts (on the unedited weights), the second moments of the keys, their
    factorisations. What later batches need of earlier ones (the history of keys) is kept here.

    Args:
        model: is changed in place; every change is in ``model.edits``.
        recipe: the numbers.
        cache: where key statistics are kept; the user's cache directory if None.
        report: told of progress; see ``errata.progress``.
    """

    model: LanguageModel
    recipe: Recipe
    cache: Path | None = None
    report: Report = silent
    records: list[BatchRecord] = field(default_factory=list)
    prefixes: tuple[str, ...] = ()
    fingerprint: str = ""
    _solvers: dict[int, LayerSolver] = field(default_factory=dict)

    @property
    def steps(self) -> list[Step]:
        return SCHEDULES[self.recipe.schedule](self.recipe.layers)

    @property
    def site(self) -> Site:
        """Where a norm stands behind the MLP, W's own output is edited: only there does adding R to it move it by R."""
        return Site.MLP if self.model.architecture.norm_after_mlp else Site(self.recipe.site)

    def prepare(self) -> None:
        """Contexts, statistics and factorisations; done by the first batch if not before.

        Raises:
            InputError: if a layer does not exist or the corpus is too short.
        """
        if self._solvers:
            return
        self.model.check_layers(self.recipe.layers)
        self.fingerprint = self.model.fingerprint()
        self.prefixes = generate_prefixes(self.model, self.recipe.contexts)
        layers = list(dict.fromkeys(step.layer for step in self.steps))
        total = self.recipe.statistics.tokens
        read = 0

        def on_tokens(count: int) -> None:
            nonlocal read
            read += count
            self.report("key statistics", read, total)

        moments = moments_for(
            self.model,
            layers,
            self.recipe.statistics,
            cache=self.cache,
            read_only=packaged_moments(),
            on_tokens=on_tokens,
        )
        solver = make_solver(self.recipe.solver.kind, self.recipe.solver.model_dump(exclude={"kind"}))
        prepared = {layer: solver.prepare(moments[layer].mean.to(_solve_device(self.model))) for layer in layers}
        self._solvers = prepared

    def apply(self, facts: Sequence[Fact], *, on_batch: Callable[[BatchRecord], None] | None = None) -> Patch:
        """Edit all facts, in batches of ``recipe.batch_size``: either all of it is in, or nothing.

        Args:
            on_batch: called after every batch, with the batch in the model.

        Raises:
            EditError, InputError: the model is bit for bit what it was.
        """
        unprepared = not self._solvers
        self.prepare()
        first, solvers = len(self.records), dict(self._solvers)
        # A later patch goes on top of earlier ones: it is for the weights as they are now.
        fingerprint = self.fingerprint if unprepared else self.model.fingerprint()
        try:
            with self.model.edits.transaction():
                for start in range(0, len(facts), self.recipe.batch_size):
                    record = self.apply_batch(facts[start : start + self.recipe.batch_size])
                    if on_batch is not None:
                        on_batch(record)
        except BaseException:
            del self.records[first:]
            self._solvers = solvers
            raise
        return replace(self.patch(first), fingerprint=fingerprint)

    def apply_batch(self, facts: Sequence[Fact]) -> BatchRecord:
        """Edit the facts of one batch together; a failure leaves the model and the history as they were."""
        self.prepare()
        started = time.perf_counter()
        searched: dict[int, _Searched] = {}
        terms: list[Term] = []
        solvers = dict(self._solvers)
        with self.model.edits.transaction():
            for step in self.steps:
                if step.target_layer not in searched:
                    searched[step.target_layer] = self._search(facts, step.target_layer, len(terms))
                found = searched[step.target_layer]
                # Nothing has moved since a search that no write has followed.
                states = found.states if found.writes_before == len(terms) else self._states(facts, step.target_layer)
                term = self._solve(facts, step, found, states)
                self.model.edits.add([term])
                terms.append(term)
            self._check_logits(facts)
            if self.recipe.solver.history:
                for layer in {step.layer for step in self.steps}:
                    keys = mean_keys(self.model, facts, self.prefixes, layer)
                    solvers[layer] = solvers[layer].remember(keys.to(_solve_device(self.model)))
        self._solvers = solvers
        targets = {layer: found.targets for layer, found in searched.items()}
        record = BatchRecord(len(self.records), tuple(facts), tuple(terms), targets, time.perf_counter() - started)
        self.records.append(record)
        return record

    def patch(self, first: int = 0) -> Patch:
        """Everything from batch ``first`` on, as one patch."""
        records = self.records[first:]
        return Patch(
            terms=tuple(term for record in records for term in record.terms),
            facts=tuple(fact for record in records for fact in record.facts),
            recipe=self.recipe,
            prefixes=self.prefixes,
            base=self.model.name,
            fingerprint=self.fingerprint,
            versions=software_versions(),
        )

    def _states(self, facts: Sequence[Fact], layer: int) -> Tensor:
        return current_states(self.model, facts, layer, self.site)

    def _search(self, facts: Sequence[Fact], layer: int, writes_before: int) -> _Searched:
        steps_done = 0

        def on_step(facts_left: int) -> None:
            nonlocal steps_done
            steps_done += 1
            self.report(f"targets at layer {layer}", steps_done, self.recipe.target.steps)

        states = self._states(facts, layer)
        targets = optimise_targets(
            self.model, facts, self.prefixes, layer, self.site, self.recipe.target, on_step=on_step
        )
        return _Searched(targets, states, writes_before)

    def _solve(self, facts: Sequence[Fact], step: Step, searched: _Searched, states: Tensor) -> Term:
        device = _solve_device(self.model)
        keys = mean_keys(self.model, facts, self.prefixes, step.layer)
        # z - h = delta + (h at the search - h now): exactly delta before the first write, so that facts which the
        # model knows already (delta = 0) leave the weights exactly alone.
        residuals = (searched.targets.delta.double() + (searched.states - states)) * step.share  # (d_out, u)
        _check_columns("key", keys, facts, step.layer)
        _check_columns("residual", residuals, facts, step.layer)
        change = self._solvers[step.layer].solve(keys.to(device), residuals.to(device))
        dtype = self.model.edits.sum_dtype
        left, right = change.left.to(self.model.device, dtype), change.right.to(self.model.device, dtype)
        _check_columns("update", left, facts, step.layer)
        _check_columns("update", right.T, facts, step.layer)
        return Term(step.layer, left, right)

    def _check_logits(self, facts: Sequence[Fact]) -> None:
        """The edited model must still answer with numbers."""
        rows = [row.ids for row in encode(self.model.tokenizer, [fact.text for fact in facts])]
        for indices in length_batches([len(row) for row in rows], token_budget=TOKEN_BUDGET // 8):
            batch = pad([rows[index] for index in indices], left=False, device=self.model.device)
            last = batch.attention_mask.sum(1) - 1
            with torch.no_grad():
                logits = self.model.model(**batch.inputs(), use_cache=False).logits
            answers = logits[torch.arange(len(indices), device=logits.device), last]
            _check_columns("logits", answers.T, [facts[index] for index in indices], self.steps[-1].layer)


@dataclass(frozen=True, slots=True)
class _Searched:
    """Targets, the states (d_out, u) of the bare prompts when they were searched, and the writes made by then."""

    targets: Targets
    states: Tensor
    writes_before: int


def _solve_device(model: LanguageModel) -> torch.device:
    """Solves run in float64, which Apple's GPUs do not have."""
    return torch.device("cpu") if model.device.type == "mps" else model.device


def _check_columns(quantity: str, matrix: Tensor, facts: Sequence[Fact], layer: int) -> None:
    """One column a fact; raises NonFiniteError naming those with a NaN or an infinity."""
    finite = torch.isfinite(matrix).all(0)
    if not bool(finite.all()):
        bad = [fact.id for fact, good in zip(facts, finite.tolist(), strict=True) if not good]
        raise NonFiniteError(quantity, facts=bad, layer=layer)
