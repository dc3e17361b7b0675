"""``rledit``: a network that turns gradients into weight changes, trained over sequences of edits.

Li et al. 2025, "Reinforced Lifelong Editing for Language Models", ICML, arXiv:2502.05759; the write is that of MALMEN,
Tan et al. 2024, "Massive Editing for Large Language Models via Meta Learning", ICLR, arXiv:2311.04661. The rows of a
batch are the positions at which its target tokens are predicted: h (d_in) is W's input there, and g (d_out) the
gradient of the facts' losses at W's output. A network as that of ``mend``, with four steps, maps (h, g) to (h̃, g̃), and

    v = −η (h · h̃) g̃
    W′ = W + Vᵀ (H Hᵀ + λ I)⁻¹ H

which equals the published ((Hᵀ H + λ I)⁻¹ Hᵀ V)ᵀ; η and λ are learnt for each layer. With the identity as network this
is almost ``ultra``, which is where training starts.

Training edits one batch after another, so that the network reads gradients of weights which it has changed itself.
After turn t, W_t is judged by the facts of this turn and of up to nine before it:

    Σ_i 0.95^(t−i) [c_edit · (mean −log P of the new answers after other wordings) + c_loc · KL(P before ‖ P after)]
    + c_change · Σ_layers ‖W_t − W_{t−1}‖² / ‖W‖²

The gradient is that of the turn's own change: earlier turns are constants.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from pydantic import Field, StrictInt
from torch import Tensor, nn

from errata.editors.mend import (
    Episode,
    Losses,
    Mend,
    MendSettings,
    MendTraining,
    Network,
    batches,
    descend,
    low_rank,
    material,
    mean_losses,
    statistics,
)
from errata.editors.trained_editor import Learnt, Trainer
from errata.editors.training import teacher_forced
from errata.editors.training_data import EditorData, TrainingRecord
from errata.editors.ultra import ridge_write
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.row_replay import Change, RowReplay
from errata.utils.progress import Report
from errata.utils.settings import NotNegative, Positive

RLEDIT: Final = "rledit"
_FOR_UNITS: Final = 64  # facts whose inputs set the units of η and λ


class RleditTraining(MendTraining):
    """Settings of the training."""

    rank: StrictInt = Field(256, ge=1, description="of U V, at most d_in + d_out (published: 1024)")
    steps: StrictInt = Field(60, ge=1, description="turns to learn from, at most")
    turns: StrictInt = Field(12, ge=1, description="edits of a sequence (published: as many as will be made)")
    together: StrictInt = Field(1, ge=1, description="turns of one step of Adam (published: the whole sequence)")
    window: StrictInt = Field(10, ge=1, description="turns whose facts judge a turn, its own included")
    earlier: StrictInt = Field(2, ge=0, description="of the earlier ones, how many are drawn (published: all)")
    fading: Positive = Field(0.95, le=1, description="weight of a turn against the next one")
    learning_rate: Positive = Field(1e-3, description="Adam's step for the network (published: 1e-5)")
    step: Positive = Field(1.0, description="η at first, in units of the RMS of W's outputs, for average rows")
    ridge: Positive = Field(0.1, description="λ at first, in units of the mean of ‖h‖²")
    step_learning_rate: NotNegative = Field(0.03, description="Adam's step for log η and log λ")
    edit_weight: Positive = Field(1.0, description="c_edit")
    loc_weight: NotNegative = Field(0.6, description="c_loc")
    change_weight: NotNegative = Field(0.01, description="c_change (published: 1e-4, of ‖W_t − W_{t−1}‖² itself)")
    clip: Positive = Field(1.0, description="the largest norm of a gradient")
    check_every: StrictInt = Field(20, ge=1, description="turns between checks on the calibration split")
    checked: StrictInt = Field(96, ge=1, description="calibration facts of a check, edited in one sequence")


class RleditSettings(MendSettings):
    """Settings of ``rledit``."""

    method: ClassVar[str] = RLEDIT
    network: str = Field("", description="the file written by `errata train-editor rledit` for this model")


def target_pairs(
    replay: RowReplay, indices: Sequence[int], changes: Mapping[int, Change] | None = None
) -> dict[int, tuple[Tensor, Tensor]]:
    """Layer -> h and g (in the replay's dtype) where the rows' targets are predicted, under changes of W if given."""
    found = replay.gradients(indices, changes=changes)
    return {layer: (h.to(replay.dtype), gradient) for layer, (h, gradient) in found.items()}


@dataclass(frozen=True, slots=True)
class RleditNetwork(Network):
    """As ``Network``, with another write.

    Attributes:
        unit: (m,) of η: the RMS of W's outputs, divided by the mean of |h · h̃| with the identity as network.
        log_step: (m,) log η, in that unit.
        length: (m,) the mean of ‖h‖².
        log_ridge: (m,) log λ, in units of ``length``.
    """

    length: Float[Tensor, "m"] = field(kw_only=True)
    log_ridge: Float[Tensor, "m"] = field(kw_only=True)

    STEPS: ClassVar[tuple[str, ...]] = ("log_step", "log_ridge")
    FIXED: ClassVar[tuple[str, ...]] = (*Network.FIXED, "length")
    COUNT: ClassVar[int] = 4
    UNIT: ClassVar[str] = "steps η in units of W's outputs"

    def factors(self, place: int, x: Tensor, delta: Tensor) -> tuple[Float[Tensor, "rows d_out"], Tensor]:
        """(H Hᵀ + λ I)⁻¹ V and H, of all rows of a batch."""
        inputs, gradients = self.pairs(place, x, delta)
        step = self.log_step[place].exp() * self.unit[place]
        targets = -step * (x * inputs).sum(1, keepdim=True) * gradients
        ridge = self.log_ridge[place].exp() * self.length[place]
        left, right = ridge_write(x.double(), targets.double(), ridge.double())
        return left.T.to(x.dtype), right.to(x.dtype)


# Training


class EditSequence:
    """Edits one after another. The model itself is not changed.

    Args:
        turns: at least one, whose rows are of the unedited model.
        layers: those that are edited.

    Attributes:
        made: the number of turns so far.
        written: layer -> (d_out, d_in) the change of W by them, a constant.
    """

    def __init__(self, model: LanguageModel, turns: Sequence[Episode], layers: Sequence[int]) -> None:
        self.turns, self.made = tuple(turns), 0
        weights = {layer: model.weight(layer).to(turns[0].facts.dtype) for layer in layers}
        self.written = {layer: torch.zeros_like(weight) for layer, weight in weights.items()}
        self._squares = {layer: weight.square().sum() for layer, weight in weights.items()}

    @property
    def is_over(self) -> bool:
        return self.made == len(self.turns)

    def turn(self, network: RleditNetwork, settings: RleditTraining, generator: random.Random) -> Float[Tensor, ""]:
        """Make the next edit; returns its loss, differentiable in the network."""
        now, factors = self.made, self._factors(network)
        changes = self._changes(factors)
        window = range(max(0, now + 1 - settings.window), now)
        drawn = generator.sample(window, min(settings.earlier, len(window)))
        weights = {now: 1.0} | {turn: settings.fading ** (now - turn) * len(window) / len(drawn) for turn in drawn}
        size = [_square(*factors[layer]) / square for layer, square in self._squares.items()]
        loss = settings.change_weight * torch.stack(size).sum()
        for turn, weight in weights.items():
            edit, loc = self.turns[turn].judge.losses(changes)
            loss = loss + weight * (settings.edit_weight * edit + settings.loc_weight * loc)
        self._write(factors)
        return loss

    def play(self, network: RleditNetwork) -> list[tuple[Float[Tensor, ""], Float[Tensor, ""]]]:
        """Make all edits that are left; returns the losses of every turn's judge after the last one."""
        while not self.is_over:
            self._write(self._factors(network))
        return [turn.judge.losses(self._changes({})) for turn in self.turns]

    def _factors(self, network: RleditNetwork) -> dict[int, tuple[Tensor, Tensor]]:
        facts = self.turns[self.made].facts
        pairs = target_pairs(facts, range(len(facts)), self._changes({}))
        return {layer: network.factors(place, *pairs[layer]) for place, layer in enumerate(network.layers)}

    def _changes(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, Change]:
        """Layer -> the change by the edits so far, and by another one."""
        return {layer: _linear(written, factors.get(layer)) for layer, written in self.written.items()}

    def _write(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        with torch.no_grad():
            self.written = {layer: written + _product(*factors[layer]) for layer, written in self.written.items()}
        self.made += 1


def _linear(written: Tensor, factors: tuple[Tensor, Tensor] | None) -> Change:
    def change(x: Tensor) -> Tensor:
        found = nn.functional.linear(x.to(written.dtype), written)
        return found if factors is None else found + low_rank(*factors)(x)

    return change


def _product(left: Float[Tensor, "rows d_out"], right: Float[Tensor, "rows d_in"]) -> Float[Tensor, "d_out d_in"]:
    return left.T @ right


def _square(left: Float[Tensor, "rows d_out"], right: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
    """‖leftᵀ right‖²."""
    return ((left @ left.T) * (right @ right.T)).sum()


def units(
    model: LanguageModel, facts: Sequence[Fact], layers: Sequence[int], mean: Tensor, std: Tensor
) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
    """``unit`` and ``length`` of ``RleditNetwork``, from the rows of some facts."""
    replay = RowReplay(model, teacher_forced(model.tokenizer, facts), layers)
    parts = [target_pairs(replay, places) for places in replay.passes(range(len(facts)))]
    found = []
    for layer in layers:
        h = torch.cat([part[layer][0] for part in parts])
        d_in = h.shape[1]
        normalised = (h - mean[:d_in].to(h)) / std[:d_in].to(h)
        outputs = nn.functional.linear(h, model.weight(layer).to(h.dtype)).square().mean().sqrt()
        found.append(torch.stack([outputs / (h * normalised).sum(1).abs().mean(), h.square().sum(1).mean()]))
    unit, length = torch.stack(found, dim=1).float().cpu()
    return unit, length


def learn(
    model: LanguageModel, train: EditorData, calibration: EditorData, settings: Mapping[str, Any], report: Report
) -> Learnt:
    """Train the network; see ``trained_editor.Trainer``, ``mend.material`` and ``mend.descend``.

    A check edits held-out facts in one sequence; its losses are those of all of them after the last edit.
    """
    chosen = RleditTraining.model_validate(settings)
    layers, records, held_out = material(model, train, calibration, chosen)
    generator = random.Random(f"rledit {chosen.seed}")
    sample = [record.edit for record in generator.sample(records, min(chosen.texts, len(records)))]
    mean, std = statistics(model, sample, layers, report, target_pairs)
    unit, length = units(model, sample[:_FOR_UNITS], layers, mean, std)
    ridge = torch.full((len(layers),), math.log(chosen.ridge))
    first = RleditNetwork.at_first(layers, mean, std, unit, chosen, length=length, log_ridge=ridge)

    def turns(chosen_from: Sequence[TrainingRecord], count: int, generator: random.Random) -> list[Episode]:
        part = generator.sample(chosen_from, min(count, len(chosen_from)))
        return [Episode.of(model, few, layers, chosen.questions, generator) for few in batches(part, chosen.batch_size)]

    held = turns(held_out, chosen.checked, random.Random(f"check {chosen.seed}"))
    sequence: EditSequence | None = None

    def loss_of(network: RleditNetwork) -> tuple[Tensor, Sequence[Fact]]:
        nonlocal sequence
        losses, facts = [], []
        for _ in range(chosen.together):
            if sequence is None or sequence.is_over:
                sequence = EditSequence(model, turns(records, chosen.turns * chosen.batch_size, generator), layers)
            facts += [record.edit for record in sequence.turns[sequence.made].records]
            losses.append(sequence.turn(network, chosen, generator))
        return torch.stack(losses).mean(), facts

    def checked(network: RleditNetwork) -> Losses:
        return mean_losses(EditSequence(model, held, layers).play(network), chosen)

    dtype = torch.promote_types(model.dtype, torch.float32)
    return descend(first.to(model.device, dtype), loss_of, checked, chosen, report)


TRAINER: Final = Trainer(RleditTraining, learn)


# The editor


class Rledit(Mend):
    """See the module.

    Raises:
        InputError: if there is no trained network for the unedited model, or it is not the one of ``digest``.
    """

    kind: ClassVar[type[Network]] = RleditNetwork

    def read(self, replay: RowReplay, indices: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        return target_pairs(replay, indices)
