"""What editors that hold facts in a memory share: edits in and out, updates, and the search of the memory."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from errata.editors.calibration import Calibration, facts_of
from errata.editors.contract import Answerer, Base, Edit, OnBatch, Undo
from errata.editors.edit_file import StoredEdit
from errata.editors.embedders import Embedder, FactEmbedder
from errata.editors.memory_search import Memory, SearchSettings, calibrate
from errata.errors import InputError
from errata.facts.fact import Fact, FactSet, check_fields, same_statement
from errata.models.loading import lasting_name
from errata.utils.progress import Report, silent
from errata.utils.provenance import now, software_versions


@dataclass(frozen=True, slots=True)
class MemoryBatch:
    """See ``contract.EditedBatch``."""

    facts: tuple[Fact, ...]
    seconds: float


def statement_key(fact: Fact) -> tuple[str, str]:
    """Equal for facts of which the later replaces the earlier: subject, and the prompt up to case and spaces."""
    subject, prompt = same_statement(fact)
    return subject, " ".join(prompt.casefold().split())


def latest(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """The facts without those that a later one replaces, in order."""
    last = {statement_key(fact): index for index, fact in enumerate(facts)}
    return tuple(facts[index] for index in sorted(last.values()))


C = TypeVar("C", bound=SearchSettings)


# Without slots, for what is computed when it is first needed.
@dataclass(frozen=True)
class FactSearch:
    """The search of some facts. A value: other facts are another search.

    Attributes:
        facts: without replaced ones.
        held_out: for an open threshold; None without one.
    """

    facts: tuple[Fact, ...]
    embedder: Embedder
    settings: SearchSettings
    held_out: FactSet | None

    @cached_property
    def calibration(self) -> Calibration | None:
        """Of the open threshold, at this number of facts; None without one, or without facts."""
        if self.held_out is None or not self.facts:
            return None
        return calibrate(self.held_out, self.facts, self.embedder, self.settings)

    @cached_property
    def memory(self) -> Memory:
        threshold = self.calibration.threshold if self.calibration else None
        return Memory(self.facts, self.embedder, self.settings, self.settings.gates_with(threshold))


@dataclass(frozen=True, slots=True)
class MemoryState:
    """The edits that are in, oldest first, and the search of their facts; replaced as a whole."""

    edits: tuple[StoredEdit, ...]
    search: FactSearch

    def with_edits(self, edits: Sequence[StoredEdit]) -> MemoryState:
        facts = latest([fact for edit in edits for fact in edit.facts])
        return MemoryState(tuple(edits), replace(self.search, facts=facts))


@dataclass(slots=True)
class FactMemory(ABC, Generic[C]):
    """An editor that holds facts and changes no weight; see ``errata.editors.contract``.

    A later fact with the same subject and prompt replaces an earlier one; without it the earlier one is back.

    Args:
        model: is never changed.
        report: progress callback.

    Raises:
        InputError: if a threshold is to be calibrated without facts, or those cannot be read.
    """

    model: Base
    settings: C
    report: Report = silent
    _state: MemoryState = field(init=False)

    undo: ClassVar[Undo] = "any"
    registered: ClassVar[str]  # the editor's name in the registry

    def __post_init__(self) -> None:
        embedder = self.settings.embedder.embedder(self.model)
        held_out = None
        if self.settings.open_gates:
            if self.settings.calibration:
                held_out = facts_of(self.settings.calibration)
            elif isinstance(embedder, FactEmbedder):
                held_out = embedder.held_out
            else:
                raise InputError(
                    "the gate 'cosine' has no threshold, and no facts to calibrate it on",
                    remedy="Set its 'threshold', or 'calibration' to facts that will not be edited",
                    code="CALIBRATION_IMPOSSIBLE",
                )
        self._state = MemoryState((), FactSearch((), embedder, self.settings, held_out))

    # What an editor adds

    @abstractmethod
    def view(self) -> Answerer:
        """See ``errata.editors.contract``."""

    def digests(self) -> dict[str, str]:
        """Of everything outside the settings that answers depend on."""
        search = self._state.search
        found = {} if search.held_out is None else {"calibration": search.held_out.digest()}
        return {**found, "embedder": search.embedder.digest} if isinstance(search.embedder, FactEmbedder) else found

    # The contract

    @property
    def method(self) -> str:
        return self.registered

    @property
    def needs(self) -> frozenset[str]:
        return self.settings.needs

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts in memory, without replaced ones."""
        return self._state.search.facts

    @property
    def calibration(self) -> Calibration | None:
        """Of an open threshold, at the present number of facts."""
        return self._state.search.calibration

    def apply(self, facts: Sequence[Fact], *, on_batch: OnBatch | None = None) -> StoredEdit:
        """See ``errata.editors.contract``.

        Raises:
            FaultsError: if two facts have one id, or the same subject and prompt, or one lacks a field in ``needs``.
            InputError: if a threshold cannot be calibrated with them.
        """
        facts = FactSet(tuple(facts), source="the facts to edit")
        if not facts:
            raise InputError("there are no facts to edit", remedy="Give at least one", code="FACTS_MISSING")
        check_fields(facts, self.needs, self.method)
        before, fingerprint = self._state, self.fingerprint()
        try:
            for batch in facts.batches(self.settings.batch_size):
                started = time.perf_counter()
                done = len(self._state.edits[-1].facts) if self._state is not before else 0
                edit = self._edit(facts.facts[: done + len(batch)], fingerprint)
                self._state = before.with_edits([*before.edits, edit])
                if on_batch is not None:
                    on_batch(MemoryBatch(tuple(batch), time.perf_counter() - started))
            # The calibration is known only with the facts in memory.
            self._warn_of_poor_gate()
            edit = replace(edit, state=self._record())
            self._state = replace(self._state, edits=(*before.edits, edit))
        except BaseException:
            self._state = before
            raise
        return edit

    def remove(self, edit: Edit) -> None:
        """See ``errata.editors.contract``."""
        key = _key(self._own(edit))
        left = [entry for entry in self._state.edits if _key(entry) != key]
        if len(left) == len(self._state.edits):
            raise InputError(
                "the edit is not in, so it cannot be removed",
                remedy="Remove an edit that this editor has applied or restored, once",
                code="EDIT_NOT_APPLIED",
            )
        self._state = self._state.with_edits(left)

    def restore(self, edit: Edit) -> None:
        """See ``errata.editors.contract``."""
        own = self._own(edit)
        if own.fingerprint != self.fingerprint():
            raise InputError(
                "this edit was made on other weights, with other settings, or after other edits",
                remedy="Restore it with the model and after the edits that it was made with, in their order",
                code="EDIT_FOR_OTHER_WEIGHTS",
            )
        self._state = self._state.with_edits([*self._state.edits, own])

    def fingerprint(self) -> str:
        """See ``errata.editors.contract``; of all facts in their order, replaced ones included."""
        record = {
            "method": self.registered,
            "settings": self.settings.model_dump(mode="json"),
            "digests": self.digests(),
            "facts": [fact.to_record() for edit in self._state.edits for fact in edit.facts],
        }
        return hashlib.sha256(f"{self.model.fingerprint()}{json.dumps(record, sort_keys=True)}".encode()).hexdigest()

    def _record(self) -> dict[str, Any]:
        calibration = self._state.search.calibration
        return {"digests": self.digests(), "calibration": calibration and asdict(calibration)}

    def _warn_of_poor_gate(self) -> None:
        if (found := self._state.search.calibration) is not None:
            hint = "The gate 'subject' is exact where prompts name the subject."
            found.warn_if_poor("The calibrated gates", hint)

    def _edit(self, facts: tuple[Fact, ...], fingerprint: str) -> StoredEdit:
        return StoredEdit(
            method=self.registered,
            settings=self.settings.model_dump(mode="json"),
            facts=facts,
            base=lasting_name(self.model.name),
            fingerprint=fingerprint,
            created=now(),
            versions=software_versions(),
        )

    def _own(self, edit: Edit) -> StoredEdit:
        if not isinstance(edit, StoredEdit) or edit.method != self.registered:
            raise InputError(
                f"this is not an edit by {self.registered!r}",
                remedy="Give an edit that this editor, or one made alike, has returned",
                code="EDIT_OF_ANOTHER_EDITOR",
            )
        return edit


def _key(edit: StoredEdit) -> tuple[str, tuple[Fact, ...]]:
    """Equal for an edit and its copy from a file."""
    return edit.fingerprint, edit.facts
