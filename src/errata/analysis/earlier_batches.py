"""A run of batches that stands in the model only while it is looked at, with what its solver remembers of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from errata.analysis.study import Workbench
from errata.edit import Editor
from errata.edit_batch import solve_device
from errata.facts import Fact
from errata.models.weights import Term
from errata.recipe import Recipe
from errata.solvers.base import LayerSolver
from errata.targets.keys import keys_and_bare


@dataclass(slots=True)
class EarlierBatches:
    """Batches by a recipe, with its own schedule; each is written once, however often the run is looked at.

    Attributes:
        facts: of all batches that may be asked for, in order.
        size: facts a batch.
    """

    bench: Workbench
    recipe: Recipe
    facts: Sequence[Fact]
    size: int
    _editor: Editor | None = None
    _states: Mapping[int, LayerSolver] = field(default_factory=dict)

    @contextmanager
    def written(self, count: int) -> Iterator[Mapping[int, LayerSolver]]:
        """Let the model be what the first ``count`` batches make of it, as a next batch would find it.

        Yields:
            layer -> the solver's state at every critical layer, with the history of the batches if its rule counts
            any. A layer that the recipe's schedule does not write remembers what it would if it did.

        Raises:
            ValueError: if more batches have been written already.
            EditError: as ``Editor``; the model is bit for bit what it was.
        """
        editor = self._opened()
        if count < len(editor.records):
            raise ValueError(f"{len(editor.records)} batches are written, {count} were asked for: ask in order")
        edits = self.bench.model.edits
        with edits.transaction():
            edits.add(self.terms)
            while len(editor.records) < count:
                self._write_next(editor)
            yield self._states
            edits.remove(self.terms)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The contexts of the run."""
        return self.bench.prepared(self.recipe).prefixes

    @property
    def terms(self) -> list[Term]:
        """What the batches that have been written changed."""
        return [] if self._editor is None else [term for record in self._editor.records for term in record.terms]

    def _opened(self) -> Editor:
        if self._editor is None:
            prepared = self.bench.prepared(self.recipe)
            bench = self.bench
            self._editor = Editor(bench.model, self.recipe, cache=bench.cache, report=bench.report, prepared=prepared)
            self._states = {layer: prepared.solvers[layer] for layer in bench.layers}
        return self._editor

    def _write_next(self, editor: Editor) -> None:
        start = len(editor.records) * self.size
        facts = self.facts[start : start + self.size]
        record = editor.apply_batch(facts)
        if not editor.solver.history:
            return
        model, layers = self.bench.model, [layer for layer in self._states if layer not in record.keys]
        keys = dict(record.keys)
        if layers:
            device = solve_device(model)
            others = keys_and_bare(model, facts, editor.prefixes, layers, self.recipe.contexts.keys)
            keys |= {layer: mean.to(device) for layer, (mean, _) in others.items()}
        self._states = {layer: state.remember(keys[layer]) for layer, state in self._states.items()}
