"""Editor: facts into a model, batch after batch, all or nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from errata.editing.batch import BatchRecord, WrittenGroup, check_logits, read_keys, write_group
from errata.editing.keys import SubjectTexts
from errata.editing.preparation import EditContext, Prepared, prepare
from errata.editing.recipe import Recipe
from errata.editing.schedules import Step
from errata.editing.shaping import RunShaper
from errata.editing.solvers.base import LayerSolver
from errata.editing.target_search import join_targets
from errata.editors.contract import Edit, OnBatch, Undo
from errata.errors import InputError
from errata.facts.fact import Fact, FactSet
from errata.models.language_model import LanguageModel
from errata.models.loading import lasting_name
from errata.models.weights import EditedWeights, LowRankTerm, Term
from errata.patches.patch import Patch, supported_dtype_name
from errata.utils.progress import OnSearch, Report, silent, unwatched
from errata.utils.provenance import now, software_versions
from errata.utils.tensors import float64_device
from errata.utils.text import listed

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Run:
    """The state of a run; replaced as a whole, never modified.

    Attributes:
        solvers: layer -> its state, with the history of keys.
        terms: the changes made by the batches.
        shaped: the changes that are in the model instead while a shaped copy of the run is shown.
    """

    solvers: Mapping[int, LayerSolver] = field(default_factory=dict)
    terms: tuple[Term, ...] = ()
    shaped: tuple[Term, ...] | None = None


@dataclass(slots=True)
class Editor:
    """Edits one model with one recipe, in any number of consecutive batches.

    The contexts (on the unedited weights), the second moments of the keys and their factorisations are computed once.
    The history of keys, which later batches need, is part of the editor's state.

    Args:
        model: is changed in place; every change is in ``model.edits``.
        cache: of key statistics; the user's cache directory if None.
        report: progress callback; see ``errata.utils.progress``.
        prepared: the result of an earlier ``prepare`` on the same weights, with the same contexts, solver and
            statistics, for at least the same layers.
        plan: steps instead of the recipe's schedule, for experiments.
        on_search: called after each step of a search for targets, with its loss.
    """

    model: LanguageModel
    recipe: Recipe
    cache: Path | None = None
    report: Report = silent
    prepared: Prepared | None = None
    plan: Sequence[Step] | None = None
    on_search: OnSearch = unwatched
    records: list[BatchRecord] = field(default_factory=list)
    _run: _Run = field(default_factory=_Run)
    _context: EditContext | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.recipe.steps if self.plan is None else tuple(self.plan)

    @property
    def run_shapers(self) -> list[RunShaper]:
        return [shaper for shaper in self.recipe.shaping if isinstance(shaper, RunShaper)]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The contexts; none before ``prepare``."""
        return self.prepared.prefixes if self.prepared else ()

    @property
    def fingerprint(self) -> str:
        """Of the weights before the run; empty before ``prepare``."""
        return self.prepared.fingerprint if self.prepared else ""

    def prepare(self) -> None:
        """Contexts, statistics and factorisations; done by the first batch if not before.

        Raises:
            InputError: if a layer does not exist or the corpus is too short.
        """
        if self._run.solvers:
            return
        layers = list(dict.fromkeys(step.layer for step in self.steps))
        if self.prepared is None:
            self.prepared = prepare(self.model, self.recipe, layers, cache=self.cache, report=self.report)
        self._context = EditContext(self.model, self.recipe, self.prefixes, self.steps, self.report, self.on_search)
        self._run = _Run({layer: self.prepared.solvers[layer] for layer in layers})

    def apply(self, facts: Sequence[Fact], *, on_batch: Callable[[BatchRecord], None] | None = None) -> Patch:
        """Edit all facts, in batches of ``recipe.batch_size``: all of them or none.

        Where the recipe shapes whole runs (``prune``), the model has the shaped copy afterwards and while ``on_batch``
        is called; later batches continue from the unshaped run. The patch is then that of the whole run and replaces
        the patches that earlier calls returned.

        Args:
            on_batch: called after every batch, with the batch in the model.

        Raises:
            FaultsError: if two facts have one id, or the same subject and prompt.
            EditError, InputError: the model is then bit for bit as it was.
        """
        facts = FactSet(tuple(facts), source="the facts to edit")
        unprepared = not self._run.solvers
        self.prepare()
        first = len(self.records)
        # A patch of later batches is for the weights as they are now, a patch of the whole run for those before it.
        whole = unprepared or bool(self.run_shapers)
        fingerprint = self.fingerprint if whole else self.model.fingerprint()
        with self._all_or_nothing():
            starts = range(0, len(facts), self.recipe.batch_size)
            for index, start in enumerate(starts):
                if len(starts) > 1:
                    self.report("batches", index, len(starts))
                self.apply_batch(facts[start : start + self.recipe.batch_size], on_batch=on_batch)
            if len(starts) > 1:
                self.report("batches", len(starts), len(starts))
            self.show()
        if self._run.shaped is not None:
            return self.patch()
        return replace(self.patch(first), fingerprint=fingerprint)

    def apply_batch(
        self, facts: Sequence[Fact], *, on_batch: Callable[[BatchRecord], None] | None = None
    ) -> BatchRecord:
        """Edit the facts of one batch together; a failure leaves the model and the history as they were.

        Args:
            on_batch: called with the batch in the model, shaped where the recipe shapes runs; if it fails, the batch
                has failed. Without it, call ``show`` before the model is used.

        Raises:
            InputError: if there are no facts, or this editor's earlier changes are no longer in the model.
            FaultsError: if two facts have one id, or say the same or different things of one subject and prompt.
        """
        if not facts:
            raise InputError("there are no facts to edit", remedy="Give at least one", code="FACTS_MISSING")
        facts = FactSet(tuple(facts), source="the facts to edit")
        self.prepare()
        context = self._context
        assert context is not None
        if not self.model.edits.holds(self._run.terms if self._run.shaped is None else self._run.shaped):
            raise InputError(
                "an edit by this Editor was removed from the model, but its keys are still in the history",
                remedy="Make a new Editor",
                code="EDITOR_STALE",
            )
        started = time.perf_counter()
        with self._all_or_nothing():
            self._hide_shaped()
            texts = SubjectTexts.tokenise(self.model, facts, self.prefixes)
            self._warn_of_first_tokens(texts)
            size = self.recipe.solver.facts_at_once or len(facts)
            groups: list[WrittenGroup] = []
            unwritten: list[Fact] = []
            for start in range(0, len(facts), size):
                indices = range(start, min(start + size, len(facts)))
                earlier = [*self._run.terms, *(term for group in groups for term in group.terms)]
                group = write_group(context, texts.of(indices), self._run.solvers, earlier)
                groups.append(group)
                unwritten += [facts[index] for index in indices if index - start not in group.written]
            check_logits(context, facts)
            solvers = dict(self._run.solvers)
            keys: dict[int, Tensor] = {}
            if self.recipe.solver.uses_history:
                keys = {layer: mean for layer, (mean, _) in read_keys(context, texts, list(solvers)).items()}
                solvers |= {layer: solvers[layer].remember(found) for layer, found in keys.items()}
            terms = tuple(term for group in groups for term in group.terms)
            self._run = _Run(solvers, (*self._run.terms, *terms))
            targets = {
                layer: join_targets([group.targets[layer].search for group in groups]) for layer in groups[0].targets
            }
            seconds = time.perf_counter() - started
            record = BatchRecord(len(self.records), tuple(facts), terms, targets, seconds, tuple(unwritten), keys)
            self.records.append(replace(record, keys={}))
            if on_batch is not None:
                self.show()
                on_batch(record)
        return record

    def restore(self, batches: Sequence[BatchRecord]) -> None:
        """Put batches of an earlier process into the model and the history, as if this editor had just made them.

        Raises:
            InputError: if this editor has edited before.
        """
        if self.records:
            raise InputError(
                "this Editor has already applied an edit",
                remedy="Create a new Editor and restore into it",
                code="EDITOR_USED",
            )
        self.prepare()
        device = float64_device(self.model.device)
        with self._all_or_nothing():
            for batch in batches:
                states = dict(self._run.solvers)
                states |= {layer: states[layer].remember(keys.to(device)) for layer, keys in batch.keys.items()}
                self.model.edits.add(batch.terms)
                self._run = _Run(states, (*self._run.terms, *batch.terms))
                self.records.append(replace(batch, keys={}))
            self.show()

    def patch(self, first: int = 0) -> Patch:
        """Everything from batch ``first`` on, as one patch; the whole run where it is shown shaped."""
        shaped = self._run.shaped
        records = self.records[first:] if shaped is None else self.records
        return Patch(
            terms=tuple(term for record in records for term in record.terms) if shaped is None else shaped,
            facts=tuple(fact for record in records for fact in record.facts),
            recipe=self.recipe,
            prefixes=self.prefixes,
            base=lasting_name(self.model.name),
            fingerprint=self.fingerprint,
            dtype=supported_dtype_name(self.model.dtype),
            created=now(),
            versions=software_versions(),
            processes=1 if self.model.copies is None else self.model.copies.count,
        )

    def _warn_of_first_tokens(self, texts: SubjectTexts) -> None:
        if ids := [fact.id for fact, lead in zip(texts.facts, texts.leads, strict=True) if lead]:
            _logger.warning(
                "The subject is the very first token of the prompt in %d of %d facts (%s). %r has no BOS token, so "
                "it cannot distinguish subjects there. The facts are written for prompts with text before the subject; "
                "a prompt that starts with the subject may still get the old answer.",
                len(ids),
                len(texts.facts),
                listed(ids),
                self.model.name,
            )

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """If an exception leaves this block, the model, the run and the records are as they were before it."""
        run, count = self._run, len(self.records)
        try:
            with self.model.edits.transaction():
                yield
        except BaseException:
            self._run = run
            del self.records[count:]
            raise

    def show(self) -> None:
        """Put a shaped copy of the run into the model, where the recipe has a shaper for runs."""
        if not self.run_shapers or not self._run.terms or self._run.shaped is not None:
            return
        shaped = _shaped_run(self.model.edits, self._run.terms, self.run_shapers)
        self.model.edits.remove(self._run.terms)
        self.model.edits.add(shaped)
        self._run = replace(self._run, shaped=shaped)

    def _hide_shaped(self) -> None:
        """Replace the shaped copy by the changes that the batches made."""
        if self._run.shaped is not None:
            self.model.edits.remove(self._run.shaped)
            self.model.edits.add(self._run.terms)
            self._run = replace(self._run, shaped=None)


@dataclass(slots=True)
class LocateThenEdit:
    """``Editor`` as a ``KnowledgeEditor``; see ``errata.editors.contract``.

    Consecutive ``apply`` calls continue one run: later batches keep the keys of earlier ones in place where the solver
    has a history. ``remove`` and ``restore`` end the run. The next ``apply`` begins another one on the weights as they
    are then, with an empty history; the edits that stay in are not solved again. Contexts and key statistics are those
    of the weights without this editor's edits in every run.

    Args:
        model: is changed in place.
        prepared: see ``Editor``; used while the weights without this editor's edits are those it was prepared for.
        on_search: see ``Editor``.
    """

    model: LanguageModel
    recipe: Recipe
    cache: Path | None = None
    report: Report = silent
    prepared: Prepared | None = None
    on_search: OnSearch = unwatched
    _editor: Editor | None = None
    _patches: tuple[Patch, ...] = ()

    undo: ClassVar[Undo] = "any"
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def method(self) -> str:
        return self.recipe.method

    def apply(self, facts: Sequence[Fact], *, on_batch: OnBatch | None = None) -> Patch:
        editor = self._editor
        if editor is None:
            prepared = self._prepared()
            editor = Editor(
                self.model,
                self.recipe,
                cache=self.cache,
                report=self.report,
                prepared=prepared,
                on_search=self.on_search,
            )
        patch = editor.apply(facts, on_batch=on_batch)
        self._editor, self.prepared = editor, self.prepared or editor.prepared
        self._patches = (*self._own(), patch)
        return patch

    def remove(self, edit: Edit) -> None:
        as_patch(edit).undo(self.model)
        self._editor = None

    def restore(self, edit: Edit) -> None:
        patch = as_patch(edit)
        patch.apply(self.model)
        self._editor, self._patches = None, (*self._own(), patch)

    def _own(self) -> tuple[Patch, ...]:
        """The patches that are in the model."""
        return tuple(patch for patch in self._patches if self.model.edits.holds(patch.terms))

    def _prepared(self) -> Prepared | None:
        """For a run on the present weights, from those without this editor's edits; None if there are no edits.

        Raises:
            InputError, EditError: see ``prepare``.
        """
        present = self.model.fingerprint()
        if self.prepared is not None and self.prepared.fingerprint == present:
            return self.prepared
        own = [term for patch in self._own() for term in patch.terms]
        if not own:
            self.prepared = None
            return None
        with self.model.edits.without(own):
            if self.prepared is None or self.prepared.fingerprint != self.model.fingerprint():
                layers = list(dict.fromkeys(step.layer for step in self.recipe.steps))
                self.prepared = prepare(self.model, self.recipe, layers, cache=self.cache, report=self.report)
        return replace(self.prepared, fingerprint=present)

    def view(self) -> LanguageModel:
        return self.model

    def fingerprint(self) -> str:
        return self.model.fingerprint()


def as_patch(edit: Edit) -> Patch:
    """The edit of an editor of weights.

    Raises:
        InputError: if it is the edit of another editor.
    """
    if not isinstance(edit, Patch):
        raise InputError(
            f"a {type(edit).__name__} is not an edit of weights",
            remedy="Give the patch that apply returned",
            code="EDIT_OF_ANOTHER_EDITOR",
        )
    return edit


def _shaped_run(edits: EditedWeights, terms: Sequence[Term], shapers: Sequence[RunShaper]) -> tuple[Term, ...]:
    """One term for each layer, in place of all changes of a run.

    Args:
        edits: of the model, with the terms in it.
        terms: the changes made by the batches, in order, all of them low-rank.
        shapers: applied in order.
    """
    shaped: list[Term] = []
    for layer in dict.fromkeys(term.layer for term in terms):
        own = [term for term in terms if term.layer == layer]
        assert all(isinstance(term, LowRankTerm) for term in own)  # recipes refuse masks together with these shapers
        left = torch.cat([term.left for term in own if isinstance(term, LowRankTerm)], dim=1)
        right = torch.cat([term.right for term in own if isinstance(term, LowRankTerm)], dim=0)
        original = edits.weight_without(layer, terms)
        for shaper in shapers:
            left, right = shaper.factors(left, right, original)
        shaped.append(LowRankTerm(layer, left, right, replaces=True))
    return tuple(shaped)
