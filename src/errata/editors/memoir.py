"""MEMOIR: a residual memory beside one down-projection, of which each fact may only use some input coordinates.

Wang et al. 2025, arXiv:2506.07899; rules and numbers as in a port of it (the authors' code could not be read). The mask
of a prompt names the k coordinates of W's input that differ most from those of unrelated prompts. A fact is written
under the mask of its prompt; a prompt whose mask overlaps enough with a stored one uses the memory under that one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Bool, Float
from pydantic import Field, StrictInt
from torch import Tensor

from errata.editors.calibration import Calibration, Found, thresholds_between
from errata.editors.contract import Edit, Undo
from errata.editors.edit_file import StoredEdit
from errata.editors.hook_editor import (
    ReadMemory,
    RoutedEditor,
    RoutedSettings,
    TrainingRows,
    check_finite,
    generator_of,
    late_layer,
    unrelated_prompts,
)
from errata.editors.routed import Prompt, Queries, QueryKind, outputs_changed
from errata.errors import InputError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.row_hooks import RowHooks, RowPass
from errata.models.tail import Tail
from errata.utils.settings import NotNegative, Positive

_LAYER_SHARE: Final = 0.75  # of the depth; published: 21 of 28, 27 of 32 blocks
_COLUMNS_SHARE: Final = 8  # of W's inputs one in so many; published: 4096 of 14336
_THRESHOLD: Final = 0.7  # measured on SmolLM2, docs/editors.md; published for wider masks: 0.4, 0.46
_DEVIATIONS: Final = 4  # by which the threshold is above the overlap of random masks


class MemoirSettings(RoutedSettings):
    """MEMOIR's settings. Published: k 4096, learning rate 1 (absolute), 30 or 70 steps, threshold 0.4 or 0.46."""

    query: QueryKind = Field("prompt_mean", description="where the query of a prompt is read")
    layer: StrictInt | None = Field(None, ge=0, description="the block; at three quarters of the depth by default")
    columns: StrictInt | None = Field(None, ge=1, description="k, coordinates of a mask; an eighth of them by default")
    threshold: float | None = Field(
        None, gt=0, le=1, description="the least overlap with a stored mask, as a share; 0.7, or more in narrow models"
    )
    learning_rate: Positive = Field(3.0, description="of plain gradient descent, in units of the module's own scale")
    clip: Positive = Field(1.0, description="the largest norm of a fact's gradient, in the same units")
    steps: StrictInt = Field(70, ge=1, description="the most updates for a batch")
    stop_loss: NotNegative = Field(0.02, description="a fact is done when its −log P per token is at most this …")
    stop_change: NotNegative = Field(1e-4, description="… and has changed by at most this; inf: whatever it has done")


@dataclass(frozen=True, slots=True, eq=False)
class MemoirState:
    """The memory and what it is recognised by, on the CPU.

    Attributes:
        memory: (d_out, d_in); empty before the first fact, as are the others.
        centre: (d_in,) the mean query of unrelated prompts.
        unit: a change of W by ``unit`` in each of k coordinates changes the module's output by about its own size.
        masks: (N, d_in).
        facts, prompts: for each fact its id and the tokens of its prompt.
    """

    memory: Tensor
    centre: Tensor
    unit: float
    masks: Tensor
    facts: tuple[str, ...] = ()
    prompts: tuple[tuple[int, ...], ...] = ()
    calibration: Calibration | None = None

    def without(self, leaves: Callable[[int], bool]) -> MemoirState:
        """The state without the masks of some facts, by their number; the memory stays."""
        staying = [number for number in range(len(self.facts)) if not leaves(number)]
        return replace(
            self,
            masks=self.masks[staying],
            facts=tuple(self.facts[number] for number in staying),
            prompts=tuple(self.prompts[number] for number in staying),
        )


def mask_of(
    queries: Float[Tensor, "rows d"], centre: Float[Tensor, "d"], columns: int, seed: int
) -> Bool[Tensor, "rows d"]:
    """The k coordinates in which queries are furthest from the centre, sent through a fixed permutation."""
    width = len(centre)
    order = torch.rand(width, generator=generator_of(seed, "permutation")).argsort()
    largest = (queries - centre).abs().topk(columns, dim=1).indices
    return torch.zeros(len(queries), width, dtype=torch.bool).scatter(1, order[largest], True)


def overlaps(masks: Bool[Tensor, "rows d"], stored: Bool[Tensor, "facts d"]) -> Float[Tensor, "rows facts"]:
    """The share of a stored mask's coordinates that a mask has too."""
    return masks.float() @ stored.float().T / int(stored[0].sum())


def least_threshold(columns: int, width: int) -> float:
    """The overlap of two random masks, plus four standard deviations of it (hypergeometric), as a share."""
    share = columns / width
    variance = columns * share * (1 - share) * (width - columns) / max(width - 1, 1)
    return share + _DEVIATIONS * math.sqrt(variance) / columns


@dataclass(frozen=True)
class MemoirRouter:
    """The memory at one module. A route is the number of a fact."""

    model: LanguageModel
    queries: Queries
    state: MemoirState
    layer: int
    columns: int
    seed: int
    threshold: float

    @property
    def is_empty(self) -> bool:
        return not self.state.facts

    def routes(self, queries: Float[Tensor, "rows d"]) -> list[int | None]:
        if self.is_empty:
            return [None] * len(queries)
        found = mask_of(queries.to(self.state.centre.dtype), self.state.centre, self.columns, self.seed)
        best, nearest = overlaps(found, self.state.masks).max(1)
        return [fact if share >= self.threshold else None for share, fact in zip(best, nearest.tolist(), strict=True)]

    def facts_of(self, route: int) -> tuple[str, ...]:
        return (self.state.facts[route],)

    def acting(
        self, routes: Callable[[], Sequence[int | None]], rows: RowPass, prompts: Sequence[Prompt]
    ) -> AbstractContextManager[None]:
        def change(x: Tensor, output: Tensor) -> Tensor:
            hits = [(row, fact) for row, fact in enumerate(routes()) if fact is not None]
            if not hits:
                return output
            places = torch.tensor([row for row, _ in hits], device=x.device)
            memory, masks = self._on_device
            wide = x[places].to(memory.dtype) * masks[[fact for _, fact in hits]][:, None]
            return output.index_add(0, places, (wide @ memory.T).to(output.dtype))

        return outputs_changed([self.model.down_projection(self.layer)], [change], len(prompts))

    @cached_property
    def _on_device(self) -> tuple[Tensor, Tensor]:
        return self.state.memory.to(self.model.device), self.state.masks.to(self.model.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Added:
    """What a pass of training adds to the module's output: from masked inputs, (rows, length, d) each."""

    rows: tuple[int, ...]
    inputs: Tensor
    values: Tensor


class Memoir(RoutedEditor[MemoirState, MemoirSettings]):
    """MEMOIR as a ``KnowledgeEditor``. Facts may share coordinates, so only the last edit can be removed exactly."""

    method: ClassVar[str] = "memoir"
    undo: ClassVar[Undo] = "last"

    @property
    def layer(self) -> int:
        return late_layer(self.model, self.settings.layer, _LAYER_SHARE)

    @property
    def columns(self) -> int:
        """k."""
        return self.settings.columns or self.model.weight(self.layer).shape[1] // _COLUMNS_SHARE

    @property
    def empty(self) -> MemoirState:
        none = torch.zeros(0)
        return MemoirState(none, none, 1.0, none)

    def router(self, state: MemoirState) -> MemoirRouter:
        seed, threshold = self.settings.seed, self.threshold_of(state)
        return MemoirRouter(self.model, self.queries, state, self.layer, self.columns, seed, threshold)

    def threshold_of(self, state: MemoirState) -> float:
        """τ."""
        return self.threshold if state.calibration is None else state.calibration.threshold

    @property
    def threshold(self) -> float:
        """τ where it is not calibrated."""
        if self.settings.threshold is not None:
            return self.settings.threshold
        return min(1.0, max(_THRESHOLD, self._least))

    def check(self, state: MemoirState, count: int) -> None:
        """Raises InputError if masks cannot tell prompts apart."""
        width = self.model.weight(self.layer).shape[1]
        least = self._least if self.columns < width else math.inf
        if (threshold := self.threshold_of(state)) < least:
            raise InputError(
                f"masks of {self.columns} of {width} coordinates overlap by up to {least:.2f} by chance, so the "
                f"threshold {threshold:g} finds facts everywhere",
                remedy="Set a higher threshold, or other columns",
                code="MEMOIR_THRESHOLD_TOO_LOW",
            )

    def learned(self, state: MemoirState, facts: Sequence[Fact]) -> MemoirState:
        rows = TrainingRows.of(self.model, facts, from_boundary=False)
        if not len(state.memory):
            state = replace(self._begun(), calibration=state.calibration)
        fresh = {prompt.ids for prompt in rows.prompts}
        state = state.without(lambda number: state.prompts[number] in fresh)
        queries = self.read_alone(rows.prompts).to(state.centre.dtype)
        masks = mask_of(queries, state.centre, self.columns, self.settings.seed)
        return replace(
            state,
            memory=self._trained(state, facts, rows, masks),
            masks=torch.cat([state.masks, masks]),
            facts=(*state.facts, *(fact.id for fact in facts)),
            prompts=(*state.prompts, *(prompt.ids for prompt in rows.prompts)),
        )

    def stored(self, before: MemoirState, after: MemoirState) -> tuple[dict[str, Any], dict[str, Tensor]]:
        earlier = {id(prompt) for prompt in before.prompts}
        new = [number for number, prompt in enumerate(after.prompts) if id(prompt) not in earlier]
        touched = after.masks[new].any(0).nonzero()[:, 0]
        state = {
            "facts": [after.facts[number] for number in new],
            "prompts": [list(after.prompts[number]) for number in new],
            "unit": after.unit,
            "calibration": after.calibration and asdict(after.calibration),
        }
        tensors = {"columns": touched, "values": after.memory[:, touched], "masks": after.masks[new]}
        return state, tensors | {"centre": after.centre}

    def restored(self, before: MemoirState, edit: StoredEdit) -> MemoirState:
        tensors, prompts = edit.tensors, [tuple(prompt) for prompt in edit.state["prompts"]]
        others = before.without(lambda number: before.prompts[number] in prompts)
        masks, values = tensors["masks"], tensors["values"]
        memory = before.memory.clone() if len(before.memory) else values.new_zeros(len(values), masks.shape[1])
        memory[:, tensors["columns"]] = values
        return MemoirState(
            memory,
            tensors["centre"],
            float(edit.state["unit"]),
            torch.cat([others.masks, masks]) if others.facts else masks,
            (*others.facts, *edit.state["facts"]),
            (*others.prompts, *prompts),
            Calibration.of_state(edit.state),
        )

    def parts(self, state: MemoirState) -> tuple[Any, Mapping[str, Tensor]]:
        tensors = {"memory": state.memory, "centre": state.centre, "masks": state.masks}
        return [state.facts, state.prompts, state.unit, state.calibration and asdict(state.calibration)], tensors

    def forget(self, edit: Edit) -> None:
        """Drop the masks of an edit's facts, whatever came later: their prompts are recognised no more. What they wrote
        into coordinates that other facts use stays, so this is no ``remove``.

        Raises:
            InputError: if the edit is not in.
        """
        self._forget(edit, lambda state, facts: state.without(lambda number: state.facts[number] in facts))

    @property
    def _least(self) -> float:
        return least_threshold(self.columns, self.model.weight(self.layer).shape[1])

    def calibrated(self, found: Calibration) -> MemoirState:
        return replace(self.empty, calibration=found)

    def trials(self, memories: Sequence[ReadMemory]) -> Iterator[tuple[float, list[Found]]]:
        centre = self.read_alone(unrelated_prompts(self.model)).mean(0)
        best = []
        for memory in memories:
            own, asked = (
                mask_of(queries.to(centre.dtype), centre, self.columns, self.settings.seed)
                for queries in (memory.own, memory.asked)
            )
            best.append(overlaps(asked, own).max(1))
        # The largest is above every overlap but a whole one, of which rounding could change a coordinate.
        values = thresholds_between(torch.cat([torch.ones(1), *(shares for shares, _ in best)]))
        for value in [value for value in values.flip(0).tolist() if value >= self._least] or [1.0]:
            yield (
                value,
                [
                    [
                        (fact,) if share >= value else ()
                        for share, fact in zip(shares.tolist(), facts.tolist(), strict=True)
                    ]
                    for shares, facts in best
                ],
            )

    def _begun(self) -> MemoirState:
        model, layer = self.model, self.layer
        prompts = unrelated_prompts(model)
        centre = self.read_alone(prompts).mean(0)
        wanted = {Site.KEY: [layer], Site.MLP: [layer]}
        read = model.capture_last([prompt.ids for prompt in prompts], wanted)
        key, own = (read[site, layer].to(centre.dtype).square().mean().sqrt().item() for site in wanted)
        d_out, d_in = model.weight(layer).shape
        memory = torch.zeros(d_out, d_in, dtype=centre.dtype)
        unit = own / (key * math.sqrt(self.columns))
        return MemoirState(memory, centre, unit, torch.zeros(0, d_in, dtype=torch.bool))

    def _trained(
        self, state: MemoirState, facts: Sequence[Fact], rows: TrainingRows, masks: Bool[Tensor, "facts d"]
    ) -> Float[Tensor, "d_out d_in"]:
        """Gradient descent of all facts at once; the gradient of each is clipped by itself and stays in its columns."""
        settings, device = self.settings, self.model.device
        memory, masks = state.memory.to(device), masks.to(device)
        tail = Tail(self.model, rows.rows, self.layer)
        left, last = list(range(len(facts))), [math.inf] * len(facts)
        for step in range(1, settings.steps + 1):
            passes: list[_Added] = []
            losses = rows.losses(tail.logits(self._adding(memory, masks, passes)), left)
            check_finite("loss of a fact", losses, [facts[index] for index in left], self.layer)
            self.report("memory", step, settings.steps)
            now = losses.tolist()
            done = {
                index
                for index, loss in zip(left, now, strict=True)
                if loss <= settings.stop_loss and abs(last[index] - loss) <= settings.stop_change
            }
            if len(done) == len(left):
                break
            gradients = torch.autograd.grad(losses.sum(), [added.values for added in passes])
            memory = memory.clone()
            for added, gradient in zip(passes, gradients, strict=True):
                for place, number in enumerate(added.rows):
                    if number not in done:
                        columns = masks[number].nonzero()[:, 0]
                        # In units of ``unit``, so that the rate and the clip suit any model.
                        change = state.unit * (gradient[place].T @ added.inputs[place][:, columns])
                        change = change * min(1.0, settings.clip / max(float(change.norm()), 1e-30))
                        memory[:, columns] -= settings.learning_rate * state.unit * change
            last = [last[index] if index not in left else now[left.index(index)] for index in range(len(facts))]
        return memory.cpu()

    def _adding(self, memory: Tensor, masks: Tensor, passes: list[_Added]) -> RowHooks:
        """Hooks of training, which note what they add."""

        def hooks(passed: RowPass) -> AbstractContextManager[None]:
            def change(x: Tensor, output: Tensor) -> Tensor:
                inputs = x.to(memory.dtype) * masks[list(passed.rows)][:, None]
                inputs = inputs * (passed.positions >= 0)[..., None]
                added = _Added(passed.rows, inputs, (inputs @ memory.T).requires_grad_(True))
                passes.append(added)
                return output + added.values.to(output.dtype)

            return outputs_changed([self.model.down_projection(self.layer)], [change], len(passed.rows))

        return hooks
