"""LoRA on down-projections (Hu et al. 2022, arXiv:2106.09685): ΔW = (α / r) · B A, trained on the facts.

A (r × d_in) begins Kaiming-uniform, B (d_out × r) zero, so that without a step nothing changes. With down-projections
as the only modules the result is a ``Patch`` of rank r.

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
from errata.models.weights import LowRankTerm, Term
from errata.utils.settings import Layers, NotNegative, Positive


class LoraSettings(WeightEditorSettings):
    """Settings of ``lora``."""

    method: ClassVar[str] = "lora"
    layers: Layers | None = Field(None, description="whose W is trained; by default all layers")
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

    def write(
        self, facts: Sequence[Fact], before: Present, call: Present, report: Callable[[int, int], None]
    ) -> Written:
        settings, sequence = self.settings, _SEQUENCES[self.settings.sequence]
        generator = seeded(settings.seed, before.batches + call.batches)
        learnt = list(facts)
        if sequence.replays:  # a fact that is edited again replaces the earlier one
            again = {fact.text for fact in facts}
            learnt = [fact for fact in (*before.facts, *call.facts) if fact.text not in again] + learnt
        scales = {layer: self._scale(layer) for layer in self.layers}
        fresh = {layer: self._fresh(layer, generator) for layer in self.layers}
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
        replay = RowReplay(self.model, teacher_forced(self.model.tokenizer, learnt), self.layers)
        if not training.run(replay, trained, learnt, generator, report):
            return Written(call.terms)
        if sequence.continues:  # one change for the whole call: from the factors before it to the present ones
            return Written(tuple(trained.term(layer, origin.get(layer)) for layer in self.layers))
        return Written((*call.terms, *(trained.term(layer, None) for layer in self.layers)))

    def _scale(self, layer: int) -> float:
        base = self.model.edits.base_weight(layer)
        unit = weight_scale(base) * base.shape[1] ** 0.5 if self.settings.relative else 1.0
        return unit * self.settings.alpha / self.settings.rank

    def _fresh(self, layer: int, generator: torch.Generator) -> Factors:
        d_out, d_in = self.model.weight(layer).shape
        dtype, device = self.model.edits.sum_dtype, self.model.device
        # Kaiming-uniform with a = √5: uniform within ± 1 / √d_in.
        down = (2 * torch.rand(self.settings.rank, d_in, generator=generator, dtype=dtype) - 1) / d_in**0.5
        return Factors(torch.zeros(d_out, self.settings.rank, dtype=dtype, device=device), down.to(device))

    def _factors(self, terms: Sequence[Term], scales: Mapping[int, float]) -> dict[int, Factors]:
        """The factors that the last of this editor's changes of each layer ended with."""
        rank, found = self.settings.rank, {}
        for term in terms:
            assert isinstance(term, LowRankTerm)
            left, right = (factor.to(self.model.device) for factor in (term.left, term.right))
            found[term.layer] = Factors(left[:, :rank] / scales[term.layer], right[:rank])
        return found


@dataclass(frozen=True, slots=True)
class Factors:
    """B (d_out × r) and A (r × d_in)."""

    up: Tensor
    down: Tensor


class LowRankChange(Trained):
    """Changes scale · B A in several layers.

    Args:
        fresh: layer -> the factors to begin with.
        present: layer -> the factors to begin with instead, whose change is in the model already.
    """

    def __init__(
        self,
        model: LanguageModel,
        fresh: Mapping[int, Factors],
        present: Mapping[int, Factors],
        scales: Mapping[int, float],
    ) -> None:
        self._scales, self._present = scales, dict(present)
        self.factors = {
            layer: Factors(factors.up.clone().requires_grad_(), factors.down.clone().requires_grad_())
            for layer, factors in ({**fresh, **present}).items()
        }
        self.parameters = [tensor for factors in self.factors.values() for tensor in (factors.up, factors.down)]
        half = torch.promote_types(model.dtype, torch.float32) != model.dtype
        self._changes: dict[int, Change] = {
            layer: linear_change(model, layer, lambda layer=layer: self._dense(layer))  # type: ignore[misc]
            if half
            else lambda x, layer=layer: self._factored(layer, x)  # type: ignore[misc]
            for layer in self.factors
        }

    def changes(self) -> Mapping[int, Change]:
        return self._changes

    def term(self, layer: int, origin: Factors | None) -> LowRankTerm:
        """The change from factors that were in the model to the trained ones; the trained ones come first."""
        scale, found = self._scales[layer], self.factors[layer]
        left, right = found.up.detach() * scale, found.down.detach()
        if origin is not None:
            left = torch.cat([left, -scale * origin.up], dim=1)
            right = torch.cat([right, origin.down])
        return LowRankTerm(layer, left, right)

    def _factored(self, layer: int, x: Tensor) -> Tensor:
        linear, scale = nn.functional.linear, self._scales[layer]
        found, old = self.factors[layer], self._present.get(layer)
        moved = linear(scale * linear(x, found.down), found.up)  # scaled where it is narrow
        if old is not None:
            moved = moved - linear(scale * linear(x, old.down), old.up)
        return moved

    def _dense(self, layer: int) -> Tensor:
        found, old = self.factors[layer], self._present.get(layer)
        change = found.up @ found.down
        return self._scales[layer] * (change if old is None else change - old.up @ old.down)
