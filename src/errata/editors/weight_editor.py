"""Editors that change W and are no locate-then-edit method: the contract's duties, around one function that trains."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from errata.editors.contract import Edit, OnBatch, Undo
from errata.editors.locate_then_edit import as_patch
from errata.editors.table import EditorSettings
from errata.editors.training import teacher_forced
from errata.errors import InputError, NonFiniteError
from errata.facts.fact import Fact, FactSet, check_fields
from errata.models.language_model import LanguageModel
from errata.models.loading import lasting_name
from errata.models.row_replay import RowReplay
from errata.models.weights import Place, Term
from errata.patches.patch import EditorRecipe, Patch, supported_dtype_name
from errata.utils.progress import Report, silent
from errata.utils.provenance import now, software_versions


class WeightEditorSettings(EditorSettings):
    """What all editors of weights have."""

    method: ClassVar[str]  # the name in the registry


@dataclass(frozen=True, slots=True)
class Present:
    """What an editor has written so far and is still in the model.

    Attributes:
        facts: all of them, oldest first.
        terms: their changes, in order.
        batches: the number of batches that they were edited in.
        states: what the calls left for later ones, oldest first; of the present call, what it has so far.
    """

    facts: tuple[Fact, ...] = ()
    terms: tuple[Term, ...] = ()
    batches: int = 0
    states: tuple[Mapping[str, Tensor], ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """The result of a batch.

    Attributes:
        terms: the changes of the whole call, those of earlier batches included; none if nothing is to be changed.
        state: what later batches and calls need besides, of the whole call too; on the CPU.
        replay: of the batch's facts in the model before this write, if the editor has one; it saves time.
    """

    terms: tuple[Term, ...]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    replay: RowReplay | None = None


@dataclass(frozen=True, slots=True)
class WrittenBatch:
    """The facts of a batch, and its wall time in seconds."""

    facts: tuple[Fact, ...]
    seconds: float


_Settings = TypeVar("_Settings", bound=WeightEditorSettings)


class WeightEditor(ABC, Generic[_Settings]):
    """A ``KnowledgeEditor`` whose edits are patches; see ``errata.editors.contract``.

    What later batches need of earlier ones is taken from the patches that are in the model, so a removed patch has no
    effect on them, and a restored one the same as when it was made.

    Args:
        model: is changed in place.
        report: progress callback.

    Raises:
        InputError: if the model has no such layers.
        UnsupportedModelError: if it has no such matrices.
    """

    undo: ClassVar[Undo] = "any"

    def __init__(self, model: LanguageModel, settings: _Settings, *, report: Report = silent) -> None:
        self.model, self.settings, self.report = model, settings, report
        model.check_layers(self.layers)
        for place in self.places:
            model.linear(*place)
        self._patches: tuple[Patch, ...] = ()

    @property
    def method(self) -> str:
        return self.settings.method

    @property
    def needs(self) -> frozenset[str]:
        return self.settings.needs

    @property
    def recipe(self) -> EditorRecipe:
        """The settings as patches hold them."""
        settings = self.settings
        values = settings.model_dump(mode="json")
        return EditorRecipe(method=self.method, seed=settings.seed, batch_size=settings.batch_size, settings=values)

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]:
        """The layers that it writes to, ascending."""

    @property
    def places(self) -> tuple[Place, ...]:
        """The matrices that it writes to."""
        return tuple(Place(layer) for layer in self.layers)

    @abstractmethod
    def write(
        self, facts: Sequence[Fact], before: Present, call: Present, report: Callable[[int, int], None]
    ) -> Written:
        """Train one batch; the model is not changed.

        Args:
            facts: of the batch.
            before: this editor's changes by earlier calls.
            call: those by earlier batches of this call; they are in the model too.
            report: progress callback, in steps.

        Raises:
            NonFiniteError: if a loss or a change is not finite.
        """

    def apply(self, facts: Sequence[Fact], *, on_batch: OnBatch | None = None) -> Patch:
        """See ``KnowledgeEditor``.

        Raises:
            FaultsError: if two facts have one id, or the same subject and prompt, or lack a field of ``needs``.
            InputError: if there is no fact, a target has no token, or a text is too long.
            NonFiniteError: if a loss, a change or a logit of the edited model is not finite.
        """
        facts = FactSet(tuple(facts), source="the facts to edit")
        if not facts:
            raise InputError("there are no facts to edit", remedy="Give at least one", code="FACTS_MISSING")
        check_fields(facts, self.needs, self.method)
        fingerprint, before, call = self.model.fingerprint(), self._present(), Present()
        edits, size = self.model.edits, self.settings.batch_size
        with edits.transaction():
            start = edits.savepoint(self.places)
            batches = list(facts.batches(size))
            for number, batch in enumerate(batches):
                started = time.perf_counter()
                doing = f"batch {number + 1} of {len(batches)}" if len(batches) > 1 else "training"
                written = self.write(batch, before, call, partial(self.report, doing))
                _check_finite(written.terms, batch)
                edits.rollback(start)
                edits.add(written.terms)
                self._check_logits(written, call, batch)
                call = Present((*call.facts, *batch), written.terms, call.batches + 1, (written.state,))
                if on_batch is not None:
                    on_batch(WrittenBatch(tuple(batch), time.perf_counter() - started))
        patch = Patch(
            terms=call.terms,
            facts=call.facts,
            recipe=self.recipe,
            prefixes=(),
            base=lasting_name(self.model.name),
            fingerprint=fingerprint,
            dtype=supported_dtype_name(self.model.dtype),
            created=now(),
            versions=software_versions(),
            state=call.states[-1],
        )
        self._patches = (*self._own(), patch)
        return patch

    def _check_logits(self, written: Written, call: Present, facts: Sequence[Fact]) -> None:
        """Raises NonFiniteError, naming the facts, if a logit of the edited model is not finite on one of them."""
        replay, changes = written.replay, {}
        # Half precision rounds the sum of base and change, which the change alone does not show.
        if replay is None or replay.dtype != self.model.dtype:
            replay = RowReplay(self.model, teacher_forced(self.model.tokenizer, facts), self.layers)
        else:
            change = self._change_since(replay.layers[0], written.terms, call.terms)
            changes = {replay.layers[0]: lambda x: nn.functional.linear(x, change)}
        finite = torch.zeros(len(facts), dtype=torch.bool)
        with torch.no_grad():
            for places in replay.passes(range(len(facts))):
                counts = [len(replay.rows[place].targets) for place in places]
                good = replay.logits(changes, places).isfinite().all(1).cpu().split(counts)
                finite[places] = torch.stack([of_row.all() for of_row in good])
        if bad := [fact.id for fact, good in zip(facts, finite.tolist(), strict=True) if not good]:
            raise NonFiniteError("logit", facts=bad, layer=replay.layers[0])

    def _change_since(self, layer: int, terms: Sequence[Term], earlier: Sequence[Term]) -> Tensor:
        """What ``terms`` change in W that the earlier ones of the call did not."""
        now, before = (torch.zeros_like(self.model.weight(layer)) for _ in range(2))
        for part, total in ((terms, now), (earlier, before)):
            for term in part:
                if term.layer == layer:
                    term.add_to(total)
        return now - before

    def remove(self, edit: Edit) -> None:
        patch = as_patch(edit)
        patch.undo(self.model)
        self._patches = tuple(other for other in self._patches if other is not patch)

    def restore(self, edit: Edit) -> None:
        patch = as_patch(edit)
        patch.apply(self.model)
        self._patches = (*self._own(), patch)

    def view(self) -> LanguageModel:
        return self.model

    def fingerprint(self) -> str:
        return self.model.fingerprint()

    def _own(self) -> tuple[Patch, ...]:
        """The patches that are in the model; one may have been undone without this editor."""
        return tuple(patch for patch in self._patches if self.model.edits.holds(patch.terms))

    def _present(self) -> Present:
        own = [patch for patch in self._own() if patch.recipe == self.recipe]
        size = self.settings.batch_size
        return Present(
            tuple(fact for patch in own for fact in patch.facts),
            tuple(term for patch in own for term in patch.terms),
            sum(-(-len(patch.facts) // size) for patch in own),
            tuple(patch.state for patch in own),
        )


def _check_finite(terms: Sequence[Term], facts: Sequence[Fact]) -> None:
    for term in terms:
        if not term.is_finite:
            raise NonFiniteError("update", facts=[fact.id for fact in facts], layer=term.layer)
