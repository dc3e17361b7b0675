"""What editors by hooks share: their edits one after another, each with the state after it, and training rows."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.editors.calibration import (
    Calibration,
    Found,
    TrialMemory,
    best_trial,
    facts_of,
    thresholds_between,
    trial_memories,
)
from errata.editors.contract import Edit, OnBatch, Undo
from errata.editors.edit_file import StoredEdit
from errata.editors.routed import Hooked, Prompt, Queries, QueryKind, ReadKind, Routed, Router, prompts_of
from errata.editors.table import EditorSettings
from errata.errors import InputError, NonFiniteError
from errata.facts.fact import Fact, FactSet
from errata.models.language_model import LanguageModel, Site
from errata.models.loading import lasting_name
from errata.models.prompts import Pair, complete, encode
from errata.models.tail import TailRow
from errata.utils.progress import Report, silent
from errata.utils.provenance import now, software_versions
from errata.utils.tensors import checksum

_HELD_OUT: Final = 60  # facts that a threshold is calibrated on, at most: their prompts are all read
_RADII: Final = 40  # radii that are tried, at most
_UNRELATED: Final = (
    "The capital of Portugal is",
    "Marie Curie was born in",
    "The mother tongue of Pablo Neruda is",
    "Mount Kilimanjaro is located in",
    "The chemical symbol for gold is",
    "Toyota was founded by",
    "The author of Moby Dick is",
    "The Great Barrier Reef lies off the coast of",
    "Ludwig van Beethoven played the",
    "The currency of Sweden is the",
    "Water boils at a temperature of",
    "The first president of the United States was",
    "Lionel Messi plays the sport of",
    "The Danube flows into the",
    "The official language of Brazil is",
    "Photosynthesis takes place in the",
)


@dataclass(frozen=True, slots=True)
class Batch:
    """The facts of one batch and its wall time in seconds; see ``contract.EditedBatch``."""

    facts: tuple[Fact, ...]
    seconds: float


S = TypeVar("S")


class RoutedSettings(EditorSettings):
    """What all editors by hooks have."""

    query: QueryKind = Field("prompt_last", description="where the query of a prompt is read")
    calibration: str = Field(
        "",
        description="facts that choose the radius or threshold instead, at the number of facts that are edited first: "
        "a file, or 'lab'; those with an edited fact's subject are left out",
    )


C = TypeVar("C", bound=EditorSettings)


@dataclass(frozen=True, slots=True)
class _Applied(Generic[S]):
    """An edit that is in, and the state with it."""

    edit: StoredEdit
    state: S


@dataclass(slots=True)
class HookEditor(ABC, Generic[S, C]):
    """An editor whose state ``S`` is a value: every change makes another one, so a failure leaves the old one.

    Args:
        model: is never changed.
        settings: of the editor.
        report: progress callback.
    """

    model: LanguageModel
    settings: C
    report: Report = silent
    _applied: tuple[_Applied[S], ...] = ()

    method: ClassVar[str]
    undo: ClassVar[Undo] = "any"

    @property
    def needs(self) -> frozenset[str]:
        return self.settings.needs

    def check(self, state: S, count: int) -> None:
        """Raises InputError if ``count`` facts cannot be added to a state."""

    def prepared(self, state: S, facts: Sequence[Fact]) -> S:
        """The state before the first batch of all facts of a call; an editor may choose what depends on all of them."""
        return state

    # What an editor adds

    @property
    @abstractmethod
    def empty(self) -> S:
        """The state without any fact."""

    @abstractmethod
    def learned(self, state: S, facts: Sequence[Fact]) -> S:
        """The state after one more batch."""

    @abstractmethod
    def stored(self, before: S, after: S) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What an edit's file needs to make ``after`` from ``before``: JSON, and tensors on the CPU."""

    @abstractmethod
    def restored(self, before: S, edit: StoredEdit) -> S:
        """The inverse of ``stored``, bit for bit."""

    @abstractmethod
    def parts(self, state: S) -> tuple[Any, Mapping[str, Tensor]]:
        """Everything on which the answers, later edits and removals depend: as JSON, and as tensors on the CPU."""

    # The contract

    @property
    def state(self) -> S:
        return self._applied[-1].state if self._applied else self.empty

    def apply(self, facts: Sequence[Fact], *, on_batch: OnBatch | None = None) -> StoredEdit:
        facts = FactSet(tuple(facts), source="the facts to edit")
        if not facts:
            raise InputError("there are no facts to edit", remedy="Give at least one", code="FACTS_MISSING")
        self.check(self.state, len(facts))
        applied, before, fingerprint = self._applied, self.state, self.fingerprint()
        state = self.prepared(before, facts.facts)
        try:
            for batch in facts.batches(self.settings.batch_size):
                started = time.perf_counter()
                state = self.learned(state, batch)
                edit = self._edit(facts.facts, fingerprint, before, state)
                self._applied = (*applied, _Applied(edit, state))
                if on_batch is not None:
                    on_batch(Batch(tuple(batch), time.perf_counter() - started))
        except BaseException:
            self._applied = applied
            raise
        return edit

    def remove(self, edit: Edit) -> None:
        place = self._place(edit)
        earlier, later = self._applied[:place], self._applied[place + 1 :]
        if later and self.undo == "last":
            raise InputError(
                f"{len(later)} later edits by {self.method!r} build on this one",
                remedy="Remove the last edit first",
                code="EDIT_NOT_LAST",
            )
        state = earlier[-1].state if earlier else self.empty
        for entry in later:
            state = self.restored(state, entry.edit)
            earlier = (*earlier, _Applied(entry.edit, state))
        self._applied = earlier

    def restore(self, edit: Edit) -> None:
        own = self._own(edit)
        if own.fingerprint != self.fingerprint():
            raise InputError(
                "this edit was made on other weights, or after other edits",
                remedy="Restore it with the model and after the edits that it was made with, in their order",
                code="EDIT_FOR_OTHER_WEIGHTS",
            )
        self._applied = (*self._applied, _Applied(own, self.restored(self.state, own)))

    @abstractmethod
    def view(self) -> Hooked:
        """The edited model, as it is now."""

    def fingerprint(self) -> str:
        header, tensors = self.parts(self.state)
        settings = self.settings.model_dump(mode="json")
        record = json.dumps([self.method, settings, header], sort_keys=True)
        return hashlib.sha256(f"{self.model.fingerprint()}{checksum(record, tensors)}".encode()).hexdigest()

    def _forget(self, edit: Edit, forgotten: Callable[[S, frozenset[str]], S]) -> None:
        """Change all states from an edit on, and drop it; the last one is removed."""
        place = self._place(edit)
        facts = frozenset(fact.id for fact in edit.facts)
        if place == len(self._applied) - 1:
            self._applied = self._applied[:place]
            return
        later = tuple(_Applied(entry.edit, forgotten(entry.state, facts)) for entry in self._applied[place + 1 :])
        self._applied = (*self._applied[:place], *later)

    def _place(self, edit: Edit) -> int:
        key = _key(self._own(edit))
        place = next((index for index, entry in enumerate(self._applied) if _key(entry.edit) == key), None)
        if place is None:
            raise InputError(
                "the edit is not in, so it cannot be removed",
                remedy="Remove an edit that this editor has applied or restored, once",
                code="EDIT_NOT_APPLIED",
            )
        return place

    def _edit(self, facts: tuple[Fact, ...], fingerprint: str, before: S, after: S) -> StoredEdit:
        state, tensors = self.stored(before, after)
        return StoredEdit(
            method=self.method,
            settings=self.settings.model_dump(mode="json"),
            facts=facts,
            base=lasting_name(self.model.name),
            fingerprint=fingerprint,
            created=now(),
            versions=software_versions(),
            state=state,
            tensors=tensors,
        )

    def _own(self, edit: Edit) -> StoredEdit:
        settings = self.settings.model_dump(mode="json")
        if not isinstance(edit, StoredEdit) or edit.method != self.method or edit.settings != settings:
            raise InputError(
                f"this is not an edit by {self.method!r} with the same settings",
                remedy="Give an edit that this editor, or one made alike, has returned",
                code="EDIT_OF_ANOTHER_EDITOR",
            )
        return edit


def _key(edit: StoredEdit) -> str:
    """Equal for an edit and its copy from a file."""
    record = json.dumps([edit.fingerprint, [fact.to_record() for fact in edit.facts], dict(edit.state)], sort_keys=True)
    return checksum(record, edit.tensors)


@dataclass(slots=True)
class PromptEditor(HookEditor[S, C]):
    """An editor that decides by a prompt's query what is done to a row."""

    _queries: Queries | None = None

    @property
    @abstractmethod
    def kind(self) -> ReadKind:
        """What of a prompt is its query."""

    @property
    @abstractmethod
    def layer(self) -> int:
        """The block in whose down-projection queries are read."""

    @property
    def queries(self) -> Queries:
        """The queries of the model, remembered for all views."""
        if self._queries is None:
            self._queries = Queries(self.model, self.layer, self.kind)
        return self._queries

    def read_alone(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompts *tokens d"]:
        """The queries of prompts as read together, bit for bit: remembered ones depend on what they were read with."""
        return Queries(self.model, self.layer, self.kind).of(prompts)

    def unrelated_distance(self) -> float:
        """The median distance between the queries of unrelated prompts, by which radii suit any model."""
        return float(torch.pdist(self.read_alone(unrelated_prompts(self.model)).double()).median())

    @abstractmethod
    def router(self, state: S) -> Router[Any]:
        """What a state does to the model."""

    def view(self) -> Routed[Any]:
        return Routed(self.model, self.router(self.state))


@dataclass(frozen=True, slots=True)
class ReadMemory:
    """A trial memory as an editor sees it.

    Attributes:
        facts: those of the memory.
        own: (facts, d) the queries of their prompts.
        labels: the tokens of their targets.
        asked: (questions, d) the queries of its questions.
    """

    facts: tuple[Fact, ...]
    own: Float[Tensor, "facts d"]
    labels: tuple[tuple[int, ...], ...]
    asked: Float[Tensor, "questions d"]


def radii(memories: Sequence[ReadMemory]) -> list[float]:
    """Radii to try, ascending: between the distances of questions from the nearest fact of their memory.

    The smallest holds no question; of many, some at even steps of rank.
    """
    nearest = [torch.cdist(memory.asked.double(), memory.own.double()).amin(1) for memory in memories]
    values = torch.cat(nearest).sort().values
    values = values[values > 0]
    if not len(values):
        return [1.0]  # all questions are the facts' own prompts
    found = torch.cat([values[:1] / 2, thresholds_between(values)])
    if len(found) > _RADII:
        found = found[torch.linspace(0, len(found) - 1, _RADII).round().long()]
    return found.tolist()


@runtime_checkable
class _Calibrated(Protocol):
    @property
    def calibration(self) -> Calibration | None: ...


K = TypeVar("K", bound=_Calibrated)
R = TypeVar("R", bound=RoutedSettings)


@dataclass(slots=True)
class RoutedEditor(PromptEditor[K, R]):
    """One whose query is one vector, as its settings say, and whose radius or threshold can be calibrated.

    A calibrated value is chosen for the first edit, and part of the state from then on.
    """

    @abstractmethod
    def calibrated(self, found: Calibration) -> K:
        """The state without any fact, with a calibrated value."""

    @abstractmethod
    def trials(self, memories: Sequence[ReadMemory]) -> Iterator[tuple[float, list[Found]]]:
        """Values to try, the strictest first, and the facts that the questions of each memory get with it."""

    @property
    def kind(self) -> ReadKind:
        return self.settings.query

    @property
    def calibration(self) -> Calibration | None:
        """Of the radius or threshold; None before the first edit, or if it was not calibrated."""
        return self.state.calibration

    def prepared(self, state: K, facts: Sequence[Fact]) -> K:
        if not self.settings.calibration or state.calibration is not None:
            return state
        memories = trial_memories(facts_of(self.settings.calibration), facts, most=_HELD_OUT)
        found = best_trial(memories, self.trials(self._read(memories)))
        found.warn_if_poor(f"The queries of {self.method!r}", "Editors that compare names, such as 'retrieval', may.")
        return self.calibrated(found)

    def _read(self, memories: Sequence[TrialMemory]) -> list[ReadMemory]:
        """Every prompt is read once."""
        rows = [TrainingRows.of(self.model, memory.facts, from_boundary=False) for memory in memories]
        texts = list(dict.fromkeys(text for memory in memories for text in memory.questions))
        asked = dict(
            zip(texts, prompts_of(self.model.tokenizer, texts, encode(self.model.tokenizer, texts)), strict=True)
        )
        prompts = list(dict.fromkeys([*asked.values(), *(prompt for row in rows for prompt in row.prompts)]))
        queries = dict(zip(prompts, self.read_alone(prompts), strict=True))
        return [
            ReadMemory(
                memory.facts,
                torch.stack([queries[prompt] for prompt in row.prompts]),
                row.targets,
                torch.stack([queries[asked[text]] for text in memory.questions]),
            )
            for memory, row in zip(memories, rows, strict=True)
        ]


# Training


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Facts as rows that read the prompt and all but the last token of the target."""

    prompts: tuple[Prompt, ...]
    rows: tuple[TailRow, ...]
    targets: tuple[tuple[int, ...], ...]  # tokens

    @classmethod
    def of(cls, model: LanguageModel, facts: Sequence[Fact], *, from_boundary: bool) -> TrainingRows:
        """The rows of facts.

        Args:
            from_boundary: whether hooks act from the prompt's last token on, not from its first.

        Raises:
            InputError: if a target has no token, or a row is too long for the model.
        """
        return cls.of_pairs(model, facts, [fact.pair(fact.target) for fact in facts], from_boundary=from_boundary)

    @classmethod
    def of_pairs(
        cls, model: LanguageModel, facts: Sequence[Fact], pairs: Sequence[Pair], *, from_boundary: bool
    ) -> TrainingRows:
        """The rows of prompts with targets, each about a fact; see ``of``."""
        completions = complete(model.tokenizer, pairs)
        for fact, completion in zip(facts, completions, strict=True):
            if completion.target_start == 0 or len(completion.ids) - 1 > model.context_length:
                what = f"fact {fact.id!r} has {len(completion.ids)} tokens, {completion.target_start} in its prompt"
                remedy = f"Give a prompt, and at most {model.context_length} tokens in all"
                raise InputError(what, remedy=remedy, code="TEXT_TOO_LONG")
        prompts = prompts_of(model.tokenizer, [pair[0] for pair in pairs], [found.prompt for found in completions])
        rows = [
            TailRow(
                found.ids[:-1],
                found.target_start - 1 if from_boundary else 0,
                tuple(range(found.target_start - 1, len(found.ids) - 1)),
            )
            for found in completions
        ]
        return cls(tuple(prompts), tuple(rows), tuple(found.target_ids for found in completions))

    def losses(self, logits: Float[Tensor, "wanted vocabulary"], rows: Sequence[int]) -> Float[Tensor, "rows"]:
        """−log P of each row's target, mean over its tokens; logits as from ``Tail`` with these rows, ascending."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        device = wide.device
        ids = torch.tensor([token for row in rows for token in self.targets[row]], device=device)
        lengths = torch.tensor([len(self.targets[row]) for row in rows], device=device)
        each = torch.nn.functional.cross_entropy(wide, ids, reduction="none")
        place = torch.arange(len(rows), device=device).repeat_interleave(lengths)
        return wide.new_zeros(len(rows)).index_add(0, place, each) / lengths


def unrelated_prompts(model: LanguageModel) -> list[Prompt]:
    """Prompts about unrelated things, whose queries give the scale of queries in a model."""
    return prompts_of(model.tokenizer, _UNRELATED, encode(model.tokenizer, _UNRELATED))


def check_finite(quantity: str, values: Float[Tensor, "facts"], facts: Sequence[Fact], layer: int) -> None:
    """Raises NonFiniteError with the ids of the facts whose value is not finite."""
    if bad := [fact.id for fact, fine in zip(facts, values.isfinite().tolist(), strict=True) if not fine]:
        raise NonFiniteError(quantity, facts=bad, layer=layer)


def generator_of(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU whose numbers depend on a seed and a name only."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def late_layer(model: LanguageModel, layer: int | None, share: float) -> int:
    """A setting's layer, or the one at a share of the depth."""
    if layer is not None:
        model.check_layers([layer])
        return layer
    return min(int(share * len(model.blocks)), len(model.blocks) - 1)


def consecutive_layers(model: LanguageModel, first: int | None, count: int, share: float) -> tuple[int, ...]:
    """Blocks to adapt, above one in which queries can be read at the prompt's last token.

    Args:
        first: the lowest; by default they end at a share of the depth, and may be fewer in a shallow model.

    Raises:
        InputError: if one of them does not exist.
    """
    if first is not None:
        layers = tuple(range(first, first + count))
        model.check_layers(layers)
        return layers
    blocks = len(model.blocks)
    lowest = -(-blocks // 4) + 1  # the block of the queries is above the first quarter
    stop = max(int(share * blocks), min(blocks, lowest + count))
    return tuple(range(max(lowest, stop - count), stop))


def output_ratios(model: LanguageModel, layers: Sequence[int]) -> Float[Tensor, "layers"]:
    """For each down-projection the ratio of the root mean squares of its outputs and inputs on unrelated prompts."""
    wanted = {Site.KEY: list(layers), Site.MLP: list(layers)}
    read = model.capture_last([prompt.ids for prompt in unrelated_prompts(model)], wanted)
    return torch.stack(
        [root_mean_square(read[Site.MLP, layer]) / root_mean_square(read[Site.KEY, layer]) for layer in layers]
    )


def root_mean_square(values: Tensor) -> Float[Tensor, ""]:
    """Of all entries, on the CPU, float32 or wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32)).square().mean().sqrt().cpu()
