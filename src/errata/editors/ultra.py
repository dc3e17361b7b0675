"""UltraEdit and StableEdit: one least-squares write from gradients, without a search and without a subject.

The rows of a batch are the positions at which its target tokens are predicted: h (d_in) is W's input there, and g
(d_out) the gradient of the summed losses of the facts at W's output. Both are normalised by statistics of all rows so
far, this batch's included, to ĥ and ĝ. The pseudo-target of a row is v = −η ‖ĥ‖² ĝ, and the write is ridge regression
on the raw inputs (H and V hold the h and v as rows):

    ΔW = Vᵀ (H Hᵀ + λ I)⁻¹ H

which equals the published ((Hᵀ H + λ I)⁻¹ Hᵀ V)ᵀ. All layers of a batch are computed from the same passes. Later
batches run on the edited weights; of earlier ones only the statistics matter.

Published numbers, all with ``relative`` false, η 1e-6 (1e-6 and 2e-6 for ``stable``) and 100 facts a batch:

| model | down-projections |
|---|---|
| GPT-J | ``ultra`` 18 to 26; ``stable`` 7 to 15 and 18 to 25 |
| Mistral-7B | ``ultra`` 29 and 30; ``stable`` 28 to 31 |
| Llama-3-8B | ``stable`` 11, 12, 22, 23, 28 to 30 |
| Qwen2.5-7B | ``stable`` 8 to 14 and 18 to 25 |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor

from errata.editors.training import check_finite, teacher_forced
from errata.editors.weight_editor import Present, WeightEditor, WeightEditorSettings, Written
from errata.facts.fact import Fact
from errata.models.row_replay import RowReplay
from errata.models.weights import LowRankTerm
from errata.utils.settings import Layers, Positive
from errata.utils.tensors import float64_device, to_float64

_EPSILON: Final = 1e-7  # added to standard deviations
_LEAST: Final = 1e-6  # the least eigenvalue of a covariance
_logger = logging.getLogger(__name__)


class GradientWriteSettings(WeightEditorSettings):
    """What both variants have."""

    layers: Layers | None = Field(
        None,
        description="whose W is written; by default from two thirds of the depth to the last but one",
    )
    learning_rate: Positive = Field(
        1.0, description="η; where it is relative, in units of the RMS of W's outputs, for inputs of average length"
    )
    ridge: Positive = Field(0.1, description="λ; where it is relative, in units of the mean of ‖h‖²")
    relative: StrictBool = Field(True, description="whether η and λ are relative")
    pooled: StrictBool = Field(False, description="one set of statistics for all layers, as published")
    batch_size: StrictInt = Field(100, ge=1, description="facts that are edited together")

    whitened: ClassVar[bool] = False  # whether gradients are whitened by their full covariance


class UltraSettings(GradientWriteSettings):
    """Settings of ``ultra``."""

    method: ClassVar[str] = "ultra"


class StableSettings(GradientWriteSettings):
    """Settings of ``stable``."""

    method: ClassVar[str] = "stable"
    learning_rate: Positive = Field(
        2.0, description="η; where it is relative, in units of the RMS of W's outputs, for inputs of average length"
    )
    ridge: Positive = Field(1.0, description="λ; where it is relative, in units of the mean of ‖h‖²")

    whitened: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and scatter of rows, updated chunk by chunk (Chan, Golub and LeVeque 1983, doi:10.2307/2683386).

    Attributes:
        count: rows so far.
        mean: (d,) float64.
        scatter: (d,) or (d, d): sum of the squared, or of the outer products of, deviations from the mean.
    """

    count: int
    mean: Float[Tensor, "d"]
    scatter: Tensor

    @classmethod
    def none(cls, size: int, device: torch.device, *, full: bool) -> Moments:
        shape = (size, size) if full else (size,)
        zeros = torch.zeros(size, dtype=torch.float64, device=device)
        return cls(0, zeros, torch.zeros(shape, dtype=torch.float64, device=device))

    def updated(self, rows: Float[Tensor, "m d"]) -> Moments:
        """With more rows, of any number."""
        m, mean = len(rows), rows.mean(0)
        centred, shift, total = rows - mean, mean - self.mean, self.count + len(rows)
        between = self.count * m / total
        full = self.scatter.dim() == 2
        within = centred.T @ centred if full else centred.square().sum(0)
        moved = torch.outer(shift, shift) if full else shift.square()
        return Moments(total, self.mean + shift * m / total, self.scatter + within + between * moved)

    def normalised(self, rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """Each coordinate by its mean and standard deviation; whitened if the scatter is full and of enough rows."""
        deviations, size = rows - self.mean, len(self.mean)
        if self.scatter.dim() == 2 and self.count > size + 1:
            values, vectors = torch.linalg.eigh(self.scatter / (self.count - size - 1))
            root = (vectors * values.clamp_min(_LEAST).rsqrt()) @ vectors.T
            return deviations @ root
        squares = self.scatter.diagonal() if self.scatter.dim() == 2 else self.scatter
        return deviations / ((squares / max(self.count - 1, 1)).sqrt() + _EPSILON)


class GradientWrite(WeightEditor[GradientWriteSettings]):
    """See the module."""

    @property
    def layers(self) -> tuple[int, ...]:
        if self.settings.layers is not None:
            return self.settings.layers
        blocks = len(self.model.blocks)
        return tuple(range(min(2 * blocks // 3, blocks - 1), max(blocks - 1, 2 * blocks // 3 + 1)))

    def write(
        self, facts: Sequence[Fact], before: Present, call: Present, report: Callable[[int, int], None]
    ) -> Written:
        states = (*before.states, *call.states)
        replay = RowReplay(self.model, teacher_forced(self.model.tokenizer, facts), self.layers)
        rows = self._rows(replay, facts, report)
        names = {layer: "all" if self.settings.pooled else str(layer) for layer in self.layers}
        statistics = self._statistics(states[-1] if states else {}, names)
        for layer, (inputs, gradients) in rows.items():
            of_inputs, of_gradients = statistics[names[layer]]
            statistics[names[layer]] = of_inputs.updated(inputs), of_gradients.updated(gradients)
        if any(of_inputs.count < 2 for of_inputs, _ in statistics.values()):
            _logger.warning(
                "%s has seen one target token, which is its own mean: nothing is written. Edit more facts together.",
                self.method,
            )
        terms = [self._term(layer, *rows[layer], *statistics[names[layer]]) for layer in self.layers]
        return Written((*call.terms, *terms), _tensors_of(statistics), replay)

    def _rows(
        self, replay: RowReplay, facts: Sequence[Fact], report: Callable[[int, int], None]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Layer -> inputs and gradients, float64, one row for each target token, in the order of the facts."""
        device = float64_device(self.model.device)
        found: dict[int, dict[int, tuple[Tensor, Tensor]]] = {layer: {} for layer in self.layers}
        done = 0
        for places in replay.passes(range(len(facts))):
            for layer, (inputs, gradients) in replay.gradients(places).items():
                counts = [len(replay.rows[place].wanted) for place in places]
                parts = zip(places, inputs.split(counts), gradients.split(counts), strict=True)
                for place, x, g in parts:
                    found[layer][place] = to_float64(x).to(device), to_float64(g).to(device)
            done += len(places)
            report(done, len(facts))
        for layer, parts_of in found.items():
            sizes = torch.tensor([float(parts_of[place][1].norm()) for place in range(len(facts))])
            check_finite("gradient", sizes, facts, layer)
        return {
            layer: (
                torch.cat([parts_of[place][0] for place in range(len(facts))]),
                torch.cat([parts_of[place][1] for place in range(len(facts))]),
            )
            for layer, parts_of in found.items()
        }

    def _statistics(self, state: Mapping[str, Tensor], names: Mapping[int, str]) -> dict[str, tuple[Moments, Moments]]:
        device = float64_device(self.model.device)
        found: dict[str, tuple[Moments, Moments]] = {}
        for layer, name in names.items():
            d_out, d_in = self.model.weight(layer).shape
            fresh = (
                Moments.none(d_in, device, full=False),
                Moments.none(d_out, device, full=self.settings.whitened),
            )
            found[name] = fresh
            if state:
                inputs, gradients = (_moments_from(state, f"{name}.{part}", device) for part in _PARTS)
                found[name] = inputs, gradients
        return found

    def _term(
        self, layer: int, inputs: Tensor, gradients: Tensor, of_inputs: Moments, of_gradients: Moments
    ) -> LowRankTerm:
        settings = self.settings
        h, g = of_inputs.normalised(inputs), of_gradients.normalised(gradients)
        rate, ridge = settings.learning_rate, settings.ridge
        if settings.relative:
            weight = to_float64(self.model.weight(layer)).to(inputs.device)
            rate *= float((inputs @ weight.T).square().mean().sqrt()) / inputs.shape[1]
            ridge *= float(inputs.square().sum(1).mean())
        left, right = ridge_write(inputs, pseudo_targets(h, g, rate), ridge)
        dtype, device = self.model.edits.sum_dtype, self.model.device
        return LowRankTerm(layer, left.to(dtype).to(device), right.to(dtype).to(device))


def pseudo_targets(
    inputs: Float[Tensor, "rows d_in"], gradients: Float[Tensor, "rows d_out"], rate: float
) -> Float[Tensor, "rows d_out"]:
    """v = −η ‖ĥ‖² ĝ."""
    return -rate * inputs.square().sum(1, keepdim=True) * gradients


def ridge_write(
    inputs: Float[Tensor, "rows d_in"], targets: Float[Tensor, "rows d_out"], ridge: float | Float[Tensor, ""]
) -> tuple[Float[Tensor, "d_out rows"], Float[Tensor, "rows d_in"]]:
    """ΔW = Vᵀ (H Hᵀ + λ I)⁻¹ H in two factors; one rows × rows system."""
    inner = inputs @ inputs.T
    inner.diagonal().add_(ridge)
    return torch.cholesky_solve(targets, torch.linalg.cholesky(inner)).T, inputs


_PARTS: Final = ("inputs", "gradients")


def _tensors_of(statistics: Mapping[str, tuple[Moments, Moments]]) -> dict[str, Tensor]:
    found = {}
    for name, pair in statistics.items():
        for part, moments in zip(_PARTS, pair, strict=True):
            found[f"{name}.{part}.count"] = torch.tensor([float(moments.count)], dtype=torch.float64)
            found[f"{name}.{part}.mean"] = moments.mean.cpu()
            found[f"{name}.{part}.scatter"] = moments.scatter.cpu()
    return found


def _moments_from(state: Mapping[str, Tensor], name: str, device: torch.device) -> Moments:
    mean, scatter = (state[f"{name}.{part}"].to(device) for part in ("mean", "scatter"))
    return Moments(int(state[f"{name}.count"]), mean, scatter)
