"""GRACE: a codebook of activations. A query close to a stored key gets the key's trained vector as a module's output.

Hartvigsen et al. 2023, NeurIPS, arXiv:2211.11031. The module is one block's down-projection; the query its input at the
prompt's last token. See ``Codebook`` for the rules of assignment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Final, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor

from errata.editing.target_search import adam_step
from errata.editors.calibration import Calibration, Found
from errata.editors.edit_file import StoredEdit
from errata.editors.hook_editor import (
    ReadMemory,
    RoutedEditor,
    RoutedSettings,
    TrainingRows,
    check_finite,
    generator_of,
    late_layer,
    radii,
)
from errata.editors.routed import Prompt, Queries, outputs_changed
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.row_hooks import RowHooks, RowPass
from errata.models.tail import Tail
from errata.utils.settings import NotNegative, Positive

Replaced: TypeAlias = Literal["hold", "last", "prompt"]
Growth: TypeAlias = Literal["coverage", "moving_average"]

_LAYER_SHARE: Final = 0.75  # of the depth; published: 35 of 48, 18 of 28, 25 of 28, 27 of 32 blocks
_SPLIT: Final = 1e-5  # a split ball ends this many initial radii before the middle of the two keys


class GraceSettings(RoutedSettings):
    """GRACE's settings.

    The published code has layers by model, radius and rate 1 in absolute terms, a cold start, 50 to 200 steps without a
    stop (``stop_loss`` 0), and replaces ``prompt`` or ``last``.
    """

    layer: StrictInt | None = Field(None, ge=0, description="the block; at three quarters of the depth by default")
    epsilon: Positive = Field(0.1, description="a new key's radius")
    relative_epsilon: StrictBool = Field(
        True, description="the radius is a share of the median distance between queries of unrelated prompts"
    )
    growth: Growth = Field("coverage", description="how a ball grows that meets its label again")
    replaced: Replaced = Field(
        "hold", description="where the vector is put: from the prompt's last token on, there only, or up to there"
    )
    start: Literal["warm", "cold"] = Field("warm", description="at the module's own output, or uniform in [0, 1)")
    learning_rate: Positive = Field(1.0, description="Adam's step")
    relative_rate: StrictBool = Field(True, description="it is in units of ‖y‖ / √d, y the module's own output")
    steps: StrictInt = Field(100, ge=1, description="the most updates of a vector")
    stop_loss: NotNegative = Field(0.01, description="a vector is done when the mean −log P per token is below this")


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A fact as it was assigned.

    Attributes:
        fact: its id.
        prompt: the tokens of its prompt: a later entry with the same ones replaces this one.
        label: the tokens of its target.
        query: (d,) on the CPU.
        value: (d_out,) on the CPU: the vector of the key that it was assigned to.
    """

    fact: str
    prompt: tuple[int, ...]
    label: tuple[int, ...]
    query: Float[Tensor, "d"]
    value: Float[Tensor, "d_out"]


@dataclass(frozen=True, slots=True)
class Key:
    """A ball of the codebook: of queries, centre κ, with the entries that were assigned to it, by their number."""

    centre: Float[Tensor, "d"]
    radius: float
    label: tuple[int, ...]
    entries: tuple[int, ...]


@dataclass(frozen=True)
class Codebook:
    """Balls of queries with labels, as the rules of assignment leave them.

    A query with its label, at distance δ from the nearest key j of radius ε_j, for the initial radius ε₀:

    - no key, or δ > ε₀ + ε_j: it becomes a key of radius ε₀;
    - another label: it becomes a key of radius δ/2, and ε_j = δ/2 − 1e-5 ε₀;
    - the same label: it joins key j; if δ > ε_j, coverage sets ε_j = δ, moving_average also puts κ_j half-way to it.

    Distances are Euclidean, in float64. The published code compares the means of labels' token ids.
    """

    epsilon: float  # ε₀
    growth: Growth
    keys: tuple[Key, ...] = ()

    def assigned(self, number: int, query: Float[Tensor, "d"], label: tuple[int, ...]) -> Codebook:
        """The book after one more query.

        Args:
            number: of its entry.
        """
        query, keys = query.double(), list(self.keys)
        new = Key(query, self.epsilon, label, (number,))
        if not keys:
            return replace(self, keys=(new,))
        distances = (self._centres - query).norm(dim=1)
        nearest = int(distances.argmin())
        distance, key = float(distances[nearest]), keys[nearest]
        if distance > self.epsilon + key.radius:
            keys.append(new)
        elif key.label != label:
            keys[nearest] = replace(key, radius=max(0.0, distance / 2 - _SPLIT * self.epsilon))
            keys.append(replace(new, radius=distance / 2))
        else:
            grown = replace(key, entries=(*key.entries, number))
            if distance > key.radius:
                moved = (key.centre + query) / 2 if self.growth == "moving_average" else key.centre
                grown = replace(grown, radius=distance, centre=moved)
            keys[nearest] = grown
        return replace(self, keys=tuple(keys))

    def nearest(self, queries: Float[Tensor, "rows d"], resolution: float) -> list[int | None]:
        """For each query the nearest key, if the query is inside its ball.

        Args:
            resolution: by how much ‖κ‖ a query may differ that was read again: in another batch it is rounded
                differently, and a query on the edge of its ball would else fall out of it.
        """
        if not self.keys:
            return [None] * len(queries)
        apart = torch.cdist(queries.double(), self._centres, compute_mode="donot_use_mm_for_euclid_dist")
        distances, nearest = apart.min(1)
        radii = torch.tensor([key.radius for key in self.keys], dtype=torch.float64)
        inside = distances <= (radii + resolution * self._centres.norm(dim=1))[nearest]
        return [key if hit else None for key, hit in zip(nearest.tolist(), inside.tolist(), strict=True)]

    @cached_property
    def _centres(self) -> Float[Tensor, "keys d"]:
        return torch.stack([key.centre for key in self.keys])


@dataclass(frozen=True, slots=True, eq=False)
class GraceState:
    """All entries in their order, replaced ones included, and the book that the others make."""

    entries: tuple[Entry, ...] = ()
    book: Codebook | None = None  # None without entries, unless its radius is calibrated
    calibration: Calibration | None = None

    def extended(self, entries: Sequence[Entry], epsilon: float, growth: Growth) -> GraceState:
        """The state with more entries, the same however they are divided.

        Args:
            epsilon, growth: of the book, if this state has none.
        """
        book = self.book or Codebook(epsilon, growth)
        everything = (*self.entries, *entries)
        last = {entry.prompt: number for number, entry in enumerate(everything)}
        start = len(self.entries)
        if any(last[entry.prompt] >= start for entry in self.entries):  # an entry is replaced: begin again without it
            book, start = replace(book, keys=()), 0
        for number, entry in enumerate(everything[start:], start=start):
            if last[entry.prompt] == number:
                book = book.assigned(number, entry.query, entry.label)
        return replace(self, entries=everything, book=book)

    def value_of(self, key: Key) -> Float[Tensor, "d_out"]:
        """A key's vector: that of its first entry."""
        return self.entries[key.entries[0]].value


@dataclass(frozen=True)
class GraceRouter:
    """A codebook at one module. A route is the number of a key."""

    model: LanguageModel
    queries: Queries
    state: GraceState
    layer: int
    replaced: Replaced

    @property
    def is_empty(self) -> bool:
        return not self.state.entries

    def routes(self, queries: Float[Tensor, "rows d"]) -> list[int | None]:
        book = self.state.book
        return [None] * len(queries) if book is None else book.nearest(queries, resolution_of(self.model))

    def facts_of(self, route: int) -> tuple[str, ...]:
        assert self.state.book is not None
        return tuple(self.state.entries[number].fact for number in self.state.book.keys[route].entries)

    def acting(
        self, routes: Callable[[], Sequence[int | None]], rows: RowPass, prompts: Sequence[Prompt]
    ) -> AbstractContextManager[None]:
        return replacing(self.model, self.layer, self.replaced, routes, lambda: self._values, rows, prompts)

    @cached_property
    def _values(self) -> Float[Tensor, "keys d_out"]:
        assert self.state.book is not None
        return torch.stack([self.state.value_of(key) for key in self.state.book.keys]).to(self.model.device)


def resolution_of(model: LanguageModel) -> float:
    """By how much of its length a query may differ that is read in another batch."""
    return 2 * torch.finfo(model.dtype).eps


def replacing(
    model: LanguageModel,
    layer: int,
    replaced: Replaced,
    routes: Callable[[], Sequence[int | None]],
    values: Callable[[], Float[Tensor, "keys d_out"]],
    rows: RowPass,
    prompts: Sequence[Prompt],
) -> AbstractContextManager[None]:
    """Put vectors in the place of a down-projection's outputs, differentiable in the vectors.

    Args:
        routes: for each row of the pass, the index of its vector; None leaves the row alone.
    """

    def change(_: Tensor, output: Tensor) -> Tensor:
        chosen = routes()
        if all(route is None for route in chosen):
            return output
        hit = torch.tensor([route is not None for route in chosen], device=output.device)
        own = values()[torch.tensor([route or 0 for route in chosen], device=output.device)]
        where = hit[:, None] & _positions(rows, prompts, replaced)
        return torch.where(where[..., None], own[:, None].to(output.dtype), output)

    return outputs_changed([model.down_projection(layer)], [change], len(prompts))


def _positions(rows: RowPass, prompts: Sequence[Prompt], replaced: Replaced) -> Bool[Tensor, "rows length"]:
    last = torch.tensor([prompt.last for prompt in prompts], device=rows.positions.device)[:, None]
    match replaced:
        case "hold":
            return rows.positions >= last
        case "last":
            return rows.positions == last
        case "prompt":  # the last token included, unlike in the published code
            return (rows.positions >= 0) & (rows.positions <= last)


class Grace(RoutedEditor[GraceState, GraceSettings]):
    """GRACE as a ``KnowledgeEditor``. Removing an edit replays the assignment of the others; vectors are not trained
    again.
    """

    method: ClassVar[str] = "grace"

    @property
    def layer(self) -> int:
        return late_layer(self.model, self.settings.layer, _LAYER_SHARE)

    @property
    def empty(self) -> GraceState:
        return GraceState()

    def router(self, state: GraceState) -> GraceRouter:
        return GraceRouter(self.model, self.queries, state, self.layer, self.settings.replaced)

    def learned(self, state: GraceState, facts: Sequence[Fact]) -> GraceState:
        rows = TrainingRows.of(self.model, facts, from_boundary=self.settings.replaced != "prompt")
        epsilon = state.book.epsilon if state.book else self.settings.epsilon * self._unit()
        drafts = [
            Entry(fact.id, prompt.ids, target, query, torch.empty(0))
            for fact, prompt, target, query in zip(
                facts, rows.prompts, rows.targets, self.read_alone(rows.prompts), strict=True
            )
        ]
        drafted = state.extended(drafts, epsilon, self.settings.growth)
        assert drafted.book is not None
        first = len(state.entries)
        # The entry whose vector each fact has: an earlier one's vector stays, a new one's is trained for all its facts.
        owner = {number: key.entries[0] for key in drafted.book.keys for number in key.entries if number >= first}
        by_prompt = {draft.prompt: first + index for index, draft in enumerate(drafts)}  # the last one, if it repeats
        owners = [owner[by_prompt[draft.prompt]] for draft in drafts]
        new = list(dict.fromkeys(number for number in owners if number >= first))
        trained = [index for index, number in enumerate(owners) if number >= first]
        values = dict(
            zip(new, self._trained(facts, rows, trained, [new.index(owners[i]) for i in trained]), strict=True)
        )
        entries = [
            replace(draft, value=values[number] if number >= first else state.entries[number].value)
            for draft, number in zip(drafts, owners, strict=True)
        ]
        return replace(drafted, entries=(*state.entries, *entries))

    def stored(self, before: GraceState, after: GraceState) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert after.book is not None
        entries = after.entries[len(before.entries) :]
        distinct = list({id(entry.value): entry.value for entry in entries}.values())
        place = {id(value): index for index, value in enumerate(distinct)}
        state = {
            "epsilon": after.book.epsilon,
            "prompts": [list(entry.prompt) for entry in entries],
            "labels": [list(entry.label) for entry in entries],
            "values": [place[id(entry.value)] for entry in entries],
            "calibration": after.calibration and asdict(after.calibration),
        }
        return state, {"queries": torch.stack([e.query for e in entries]), "values": torch.stack(distinct)}

    def restored(self, before: GraceState, edit: StoredEdit) -> GraceState:
        state = edit.state
        values = list(edit.tensors["values"])
        entries = [
            Entry(fact.id, tuple(prompt), tuple(label), query, values[value])
            for fact, prompt, label, query, value in zip(
                edit.facts, state["prompts"], state["labels"], edit.tensors["queries"], state["values"], strict=True
            )
        ]
        after = before.extended(entries, float(state["epsilon"]), self.settings.growth)
        return replace(after, calibration=Calibration.of_state(state))

    def parts(self, state: GraceState) -> tuple[Any, Mapping[str, Tensor]]:
        if state.book is None:
            return None, {}
        record = [
            state.book.epsilon,
            [(entry.fact, entry.prompt, entry.label) for entry in state.entries],
            [(key.radius, key.entries) for key in state.book.keys],
            state.calibration and asdict(state.calibration),
        ]
        names = ("query", "value")
        return record, {name: torch.stack([getattr(entry, name) for entry in state.entries]) for name in names}

    def _unit(self) -> float:
        """Of the initial radius."""
        return self.unrelated_distance() if self.settings.relative_epsilon else 1.0

    def calibrated(self, found: Calibration) -> GraceState:
        return GraceState(book=Codebook(found.threshold * self._unit(), self.settings.growth), calibration=found)

    def trials(self, memories: Sequence[ReadMemory]) -> Iterator[tuple[float, list[Found]]]:
        unit, resolution = self._unit(), resolution_of(self.model)

        def found(memory: ReadMemory, radius: float) -> Found:
            book = Codebook(radius, self.settings.growth)
            for number, (query, label) in enumerate(zip(memory.own, memory.labels, strict=True)):
                book = book.assigned(number, query, label)
            return [() if key is None else book.keys[key].entries for key in book.nearest(memory.asked, resolution)]

        for radius in radii(memories):
            yield radius / unit, [found(memory, radius) for memory in memories]

    def _trained(
        self, facts: Sequence[Fact], rows: TrainingRows, trained: Sequence[int], value_of: Sequence[int]
    ) -> list[Float[Tensor, "d_out"]]:
        """Train vectors, each for the mean loss of its facts. They do not depend on each other.

        Args:
            trained: the facts, ascending.
            value_of: for each of them, the number of its vector; the first fact of a vector decides how it starts.
        """
        if not trained:
            return []
        settings, model, device = self.settings, self.model, self.model.device
        firsts = [trained[value_of.index(number)] for number in range(max(value_of) + 1)]
        wanted = {Site.MLP: [self.layer]}
        own = model.capture_last([rows.prompts[index].ids for index in firsts], wanted)[Site.MLP, self.layer]
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        if settings.start == "warm":
            values = own
        else:
            cold = [
                torch.rand(own.shape[1], generator=generator_of(settings.seed, facts[index].id)) for index in firsts
            ]
            values = torch.stack(cold).to(own)
        rates = torch.full_like(own[:, :1], settings.learning_rate)
        if settings.relative_rate:
            rates = rates * own.norm(dim=1, keepdim=True) / own.shape[1] ** 0.5
        number = dict(zip(trained, value_of, strict=True))
        tail = Tail(model, rows.rows, self.layer).select(trained)
        left, first, second = list(trained), torch.zeros_like(values), torch.zeros_like(values)
        for step in range(1, settings.steps + 1):
            values = values.detach().requires_grad_(True)
            losses = rows.losses(tail.logits(self._holding(rows, number, values)), left)
            check_finite("loss of a fact", losses, [facts[index] for index in left], self.layer)
            place = torch.tensor([number[index] for index in left], device=device)
            total = losses.new_zeros(len(values)).index_add(0, place, losses)
            means = total / losses.new_zeros(len(values)).index_add(0, place, torch.ones_like(losses)).clamp_min(1)
            undone = torch.zeros(len(values), dtype=torch.bool, device=device)
            undone[place] = True
            undone &= means.detach() >= settings.stop_loss
            self.report("vectors", step, settings.steps)
            if not bool(undone.any()):
                break
            (gradient,) = torch.autograd.grad(means.sum(), values)
            first, second, moved = adam_step(first, second, values.detach(), gradient, step, rates)
            values = torch.where(undone[:, None], moved, values.detach())
            if len(staying := [index for index in left if bool(undone[number[index]])]) < len(left):
                left, tail = staying, tail.select(staying)
        return list(values.detach().cpu())

    def _holding(self, rows: TrainingRows, number: Mapping[int, int], values: Tensor) -> RowHooks:
        def hooks(passed: RowPass) -> AbstractContextManager[None]:
            prompts = [rows.prompts[row] for row in passed.rows]
            routes = [number[row] for row in passed.rows]
            return replacing(
                self.model, self.layer, self.settings.replaced, lambda: routes, lambda: values, passed, prompts
            )

        return hooks
