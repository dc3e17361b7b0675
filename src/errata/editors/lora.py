"""LoRA (Hu et al. 2022, arXiv:2106.09685): ΔW = (α / r) · B A, trained on the facts.

A (r × d_in) begins Kaiming-uniform, B (d_out × r) zero, so that without a step nothing changes. The result is a
``Patch`` of rank r in each matrix: the down-projections, or attention's projections of queries and values.

Published numbers (EasyEdit's configurations): r 8, α 32, dropout 0.1, learning rate 5e-3, batches of 1, attention or
MLP modules of all layers; 30 steps on GPT2-XL, 50 on GPT-J, 60 on Qwen2.5-7B, 70 on Llama-2 and Llama-3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor, nn

from errata.editors.training import Trained, Training, linear_change, seeded, teacher_forced, weight_scale
from errata.editors.weight_editor import Present, WeightEditor, WeightEditorSettings, Written
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.row_replay import Change, RowReplay
from errata.models.weights import LowRankTerm, ModuleName, Place, Term
from errata.utils.settings import Layers, NotNegative, Positive


class LoraSettings(WeightEditorSettings):
    """Settings of ``lora``."""

    method: ClassVar[str] = "lora"
    layers: Layers | None = Field(None, description="whose matrices are trained; by default all layers")
    modules: Literal["down_proj", "qv"] = Field(
        "down_proj", description="which matrices: W, or attention's projections of queries and values (published)"
    )
    batch_size: StrictInt = Field(100, ge=1, description="facts that are trained together")
    rank: StrictInt = Field(8, ge=1, description="r")
    alpha: Positive = Field(32.0, description="α; the change is (α / r) · B A")
    learning_rate: Positive = Field(5e-4, description="Adam's step, for A and B")
    relative: StrictBool = Field(
        True, description="B is in units of the RMS of W's entries times √d_in, which is about 1 in most models"
    )
    steps: StrictInt = Field(70, ge=0, description="epochs at most")
    stop_loss: NotNegative = Field(0.01, description="training ends when the loss of every fact is below it")
    mini_batch: StrictInt = Field(25, ge=1, description="facts of one step")
    sequence: Literal["stack", "again", "replay"] = Field(
        "stack",
        description="each batch gets factors of its own on top of the earlier ones; or the same factors are trained "
        "again, on the batch or on all facts so far",
    )


@dataclass(frozen=True, slots=True)
class _Sequence:
    continues: bool  # whether the factors of earlier batches are trained on
    replays: bool  # whether the facts of earlier batches are trained on again


_MODULES: Final[Mapping[str, tuple[ModuleName, ...]]] = {"down_proj": ("down_proj",), "qv": ("q_proj", "v_proj")}
_SEQUENCES: Final[Mapping[str, _Sequence]] = {
    "stack": _Sequence(continues=False, replays=False),
    "again": _Sequence(continues=True, replays=False),
    "replay": _Sequence(continues=True, replays=True),
}


class Lora(WeightEditor[LoraSettings]):
    """See the module."""

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(len(self.model.blocks))) if self.settings.layers is None else self.settings.layers

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(Place(layer, module) for layer in self.layers for module in _MODULES[self.settings.modules])

    def write(
        self, facts: Sequence[Fact], before: Present, call: Present, report: Callable[[int, int], None]
    ) -> Written:
        settings, sequence = self.settings, _SEQUENCES[self.settings.sequence]
        generator = seeded(settings.seed, before.batches + call.batches)
        learnt = list(facts)
        if sequence.replays:  # a fact that is edited again replaces the earlier one
            again = {fact.text for fact in facts}
            learnt = [fact for fact in (*before.facts, *call.facts) if fact.text not in again] + learnt
        scales = {place: self._scale(place) for place in self.places}
        fresh = {place: self._fresh(place, generator) for place in self.places}
        origin, present = (self._factors(terms, scales) for terms in (before.terms, call.terms))
        present = {**origin, **present} if sequence.continues else {}
        trained = LowRankChange(self.model, fresh, present, scales)
        training = Training(
            learning_rates=[settings.learning_rate] * len(trained.parameters),
            steps=settings.steps,
            mini_batch=settings.mini_batch,
            shuffled=True,
            is_learnt=lambda losses: bool((losses < settings.stop_loss).all()),
            is_done=lambda losses: bool((losses < settings.stop_loss).all()),
        )
        rows = teacher_forced(self.model.tokenizer, learnt)
        replay = RowReplay(self.model, rows, self.layers, _MODULES[settings.modules])
        if not training.run(replay, trained, learnt, generator, report):
            return Written(call.terms)
        if sequence.continues:  # one change for the whole call: from the factors before it to the present ones
            return Written(tuple(trained.term(place, origin.get(place)) for place in self.places))
        return Written((*call.terms, *(trained.term(place, None) for place in self.places)))

    def _scale(self, place: Place) -> float:
        base = self.model.edits.base_weight(*place)
        unit = weight_scale(base) * base.shape[1] ** 0.5 if self.settings.relative else 1.0
        return unit * self.settings.alpha / self.settings.rank

    def _fresh(self, place: Place, generator: torch.Generator) -> Factors:
        d_out, d_in = self.model.weight(*place).shape
        dtype, device = self.model.edits.sum_dtype, self.model.device
        # Kaiming-uniform with a = √5: uniform within ± 1 / √d_in.
        down = (2 * torch.rand(self.settings.rank, d_in, generator=generator, dtype=dtype) - 1) / d_in**0.5
        return Factors(torch.zeros(d_out, self.settings.rank, dtype=dtype, device=device), down.to(device))

    def _factors(self, terms: Sequence[Term], scales: Mapping[Place, float]) -> dict[Place, Factors]:
        """The factors that the last of this editor's changes of each matrix ended with."""
        rank, found = self.settings.rank, {}
        for term in terms:
            assert isinstance(term, LowRankTerm)
            left, right = (factor.to(self.model.device) for factor in (term.left, term.right))
            found[term.place] = Factors(left[:, :rank] / scales[term.place], right[:rank])
        return found


@dataclass(frozen=True, slots=True)
class Factors:
    """B (d_out × r) and A (r × d_in)."""

    up: Tensor
    down: Tensor


class LowRankChange(Trained):
    """Changes scale · B A of several matrices.

    Args:
        fresh: the factors to begin with.
        present: the factors to begin with instead, whose change is in the model already.
    """

    def __init__(
        self,
        model: LanguageModel,
        fresh: Mapping[Place, Factors],
        present: Mapping[Place, Factors],
        scales: Mapping[Place, float],
    ) -> None:
        self._scales, self._present = scales, dict(present)
        self.factors = {
            place: Factors(factors.up.clone().requires_grad_(), factors.down.clone().requires_grad_())
            for place, factors in ({**fresh, **present}).items()
        }
        self.parameters = [tensor for factors in self.factors.values() for tensor in (factors.up, factors.down)]
        half = torch.promote_types(model.dtype, torch.float32) != model.dtype
        self._changes: dict[Place, Change] = {
            place: linear_change(model, place, lambda place=place: self._dense(place))  # type: ignore[misc]
            if half
            else lambda x, place=place: self._factored(place, x)  # type: ignore[misc]
            for place in self.factors
        }

    def changes(self) -> Mapping[Place, Change]:
        return self._changes

    def term(self, place: Place, origin: Factors | None) -> LowRankTerm:
        """The change from factors that were in the model to the trained ones; the trained ones come first."""
        scale, found = self._scales[place], self.factors[place]
        left, right = found.up.detach() * scale, found.down.detach()
        if origin is not None:
            left = torch.cat([left, -scale * origin.up], dim=1)
            right = torch.cat([right, origin.down])
        return LowRankTerm(place.layer, left, right, module=place.module)

    def _factored(self, place: Place, x: Tensor) -> Tensor:
        linear, scale = nn.functional.linear, self._scales[place]
        found, old = self.factors[place], self._present.get(place)
        moved = linear(scale * linear(x, found.down), found.up)  # scaled where it is narrow
        if old is not None:
            moved = moved - linear(scale * linear(x, old.down), old.up)
        return moved

    def _dense(self, place: Place) -> Tensor:
        found, old = self.factors[place], self._present.get(place)
        change = found.up @ found.down
        return self._scales[place] * (change if old is None else change - old.up @ old.down)
