"""``mend``: a small network turns the gradient of a fact into a weight change.

Mitchell et al. 2022, "Fast Model Editing at Scale", ICLR, arXiv:2110.11309. The gradient of one fact at W is a sum over
tokens, Σ_t δ_t x_tᵀ, where x (d_in) is W's input and δ (d_out) the gradient of the fact's loss at W's output. The
network, one for all edited layers, maps each pair to another one:

    z = [(x, δ) − mean] / std, by coordinate, over all tokens of the training data
    z ← z + max(0, s ⊙ (U V z + b) + t), twice; s and t belong to the layer, U is zero at first
    W′ = W − α Σ_t δ̃_t x̃_tᵀ, with (x̃, δ̃) = z and a learnt step α > 0 of the layer

and is trained by gradient descent through the edit, on

    c_edit · (mean −log P of the new answer after other wordings)
    + c_loc · KL(P before ‖ P after) at the answers of unrelated and hard questions

in which W, x and δ are constants, so nothing below the lowest edited layer is run with a gradient.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from pydantic import Field, StrictInt, field_validator
from torch import Tensor, nn

from errata.editors.trained_editor import Learnt, TrainedEditor, Trainer, TrainerSettings
from errata.editors.training import check_finite, teacher_forced, weight_scale
from errata.editors.training_data import EditorData, TrainingRecord
from errata.editors.ultra import Moments
from errata.editors.weight_editor import Present, WeightEditor, WeightEditorSettings, Written
from errata.errors import InputError
from errata.facts.fact import Fact, Question
from errata.models.language_model import LanguageModel
from errata.models.prompts import complete
from errata.models.row_replay import Change, RowReplay, TrainingRow
from errata.models.weights import DenseTerm, LowRankTerm, Term
from errata.utils.progress import Report, silent
from errata.utils.settings import Layers, NotNegative, Positive
from errata.utils.tensors import to_float64

MEND: Final = "mend"
_STEPS_OF_NETWORK: Final = 2
_LEAST: Final = 1e-7  # of a standard deviation, in units of the largest


class MendTraining(TrainerSettings):
    """Settings of the training."""

    layers: Layers | None = Field(None, description="whose W is edited; by default the last three")
    rank: StrictInt = Field(256, ge=1, description="of U V, at most d_in + d_out (published: 1920)")
    steps: StrictInt = Field(500, ge=1, description="edits to learn from, at most (published: 100,000)")
    batch_size: StrictInt = Field(8, ge=1, description="facts of one edit")
    questions: StrictInt = Field(3, ge=1, description="unrelated and hard questions for each fact of an edit")
    learning_rate: Positive = Field(1e-3, description="Adam's step for the network (published: 1e-6)")
    step: Positive = Field(
        3e-3, description="α at first, in units of the RMS of W's entries (published: 1e-4, absolute)"
    )
    step_learning_rate: NotNegative = Field(0.03, description="Adam's step for log α")
    edit_weight: Positive = Field(0.1, description="c_edit")
    loc_weight: NotNegative = Field(1.0, description="c_loc")
    clip: Positive = Field(100.0, description="the largest norm of a gradient")
    check_every: StrictInt = Field(50, ge=1, description="steps between checks on the calibration split")
    checked: StrictInt = Field(40, ge=1, description="calibration facts of a check")
    texts: StrictInt = Field(500, ge=1, description="facts whose gradients set mean and std")
    patience: StrictInt = Field(5, ge=1, description="checks without an improvement after which training ends")


class MendSettings(WeightEditorSettings):
    """Settings of ``mend``."""

    method: ClassVar[str] = MEND
    network: str = Field("", description="the file written by `errata train-editor mend` for this model")
    digest: str = Field("", description="of that file, checked if given; edits have it")
    batch_size: StrictInt = Field(8, ge=1, description="facts that are edited together; best as in training")

    @field_validator("network")
    @classmethod
    def _absolute(cls, network: str) -> str:
        return str(Path(network).absolute()) if network else network


# The network


@dataclass(frozen=True, slots=True)
class Network:
    """The network and the steps; d = d_in + d_out, m layers.

    Attributes:
        layers: those that are edited, ascending.
        mean, std: (d,) of the pairs (x, δ); x comes first.
        unit: (m,) the RMS of each W's entries.
        log_step: (m,) log α, in that unit.
        up, down: U (2, d, rank) and V (2, rank, d).
        bias: (2, d).
        scale, shift: (2, m, d) s and t.
    """

    layers: tuple[int, ...]
    mean: Float[Tensor, "d"]
    std: Float[Tensor, "d"]
    unit: Float[Tensor, "m"]
    log_step: Float[Tensor, "m"]
    up: Float[Tensor, "two d rank"]
    down: Float[Tensor, "two rank d"]
    bias: Float[Tensor, "two d"]
    scale: Float[Tensor, "two m d"]
    shift: Float[Tensor, "two m d"]

    LEARNT: ClassVar[tuple[str, ...]] = ("log_step", "up", "down", "bias", "scale", "shift")
    FIXED: ClassVar[tuple[str, ...]] = ("mean", "std", "unit")

    @classmethod
    def at_first(
        cls, layers: Sequence[int], mean: Tensor, std: Tensor, unit: Tensor, settings: MendTraining
    ) -> Network:
        """The identity on normalised pairs."""
        size, rank, m = len(mean), min(settings.rank, len(mean)), len(layers)
        generator = torch.Generator().manual_seed(settings.seed)
        down = torch.randn(_STEPS_OF_NETWORK, rank, size, generator=generator, dtype=torch.float32) / math.sqrt(size)
        zeros = torch.zeros(_STEPS_OF_NETWORK, size)
        return cls(
            tuple(layers),
            mean.float(),
            std.float(),
            unit.float(),
            torch.full((m,), math.log(settings.step)),
            torch.zeros(_STEPS_OF_NETWORK, size, rank),
            down,
            zeros,
            torch.ones(_STEPS_OF_NETWORK, m, size),
            torch.zeros(_STEPS_OF_NETWORK, m, size),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Network:
        return replace(self, **{name: getattr(self, name).to(device).to(dtype) for name in (*self.FIXED, *self.LEARNT)})

    def tensors(self) -> dict[str, Tensor]:
        values = {name: getattr(self, name) for name in (*self.FIXED, *self.LEARNT)}
        return {name: value.detach().cpu().float() for name, value in values.items()}

    def pairs(
        self, place: int, x: Float[Tensor, "tokens d_in"], delta: Float[Tensor, "tokens d_out"]
    ) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]]:
        """(x̃, δ̃) of the layer at ``place``."""
        z = (torch.cat([x, delta], dim=1) - self.mean) / self.std
        for step in range(_STEPS_OF_NETWORK):
            inner = nn.functional.linear(nn.functional.linear(z, self.down[step]), self.up[step], self.bias[step])
            # clamp, not relu: at exactly 0, where training starts, its gradient is 1.
            z = z + (self.scale[step, place] * inner + self.shift[step, place]).clamp(min=0)
        return z[:, : x.shape[1]], z[:, x.shape[1] :]

    def factors(self, place: int, x: Tensor, delta: Tensor) -> tuple[Float[Tensor, "tokens d_out"], Tensor]:
        """−α δ̃ and x̃, whose product is the change of W."""
        inputs, gradients = self.pairs(place, x, delta)
        return -self.log_step[place].exp() * self.unit[place] * gradients, inputs

    def changes(self, pairs: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, Change]:
        """Layer -> the change of W's output, differentiable in the network.

        Args:
            pairs: layer -> x and δ.
        """
        found: dict[int, Change] = {}
        for place, layer in enumerate(self.layers):
            left, right = self.factors(place, *pairs[layer])
            found[layer] = _low_rank(left, right)
        return found


def _low_rank(left: Tensor, right: Tensor) -> Change:
    return lambda x: nn.functional.linear(x.to(right.dtype), right) @ left


def token_pairs(replay: RowReplay, indices: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Layer -> x and δ (in the replay's dtype) of all tokens of some rows whose loss depends on W's output there.

    Padding never counts. In the last block only the tokens that predict have a gradient.
    """
    found = replay.gradients(indices, at_all=True)
    kept = {layer: (delta != 0).any(1) for layer, (_, delta) in found.items()}
    return {layer: (x.to(replay.dtype)[kept[layer]], delta[kept[layer]]) for layer, (x, delta) in found.items()}


# Training


def question_rows(model: LanguageModel, questions: Sequence[Question]) -> list[TrainingRow]:
    """Teacher-forced rows of questions with their answers."""
    rows = complete(model.tokenizer, [question.pair for question in questions])
    return [
        TrainingRow(row.ids[:-1], tuple(range(row.target_start - 1, len(row.ids) - 1)), row.target_ids) for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Episode:
    """One edit to learn from, with everything that does not depend on the network.

    Attributes:
        pairs: layer -> x and δ of the facts' tokens.
        outer, loc: the rows by which it is judged.
        before: (tokens, vocabulary) log P at the answers of ``loc``, unedited.
    """

    pairs: Mapping[int, tuple[Tensor, Tensor]]
    outer: RowReplay
    loc: RowReplay
    before: Float[Tensor, "tokens vocabulary"]

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        records: Sequence[TrainingRecord],
        layers: Sequence[int],
        questions: int,
        generator: random.Random,
    ) -> Episode:
        """An edit of the records; one other wording, and some questions, of each are chosen at random."""
        facts = RowReplay(model, teacher_forced(model.tokenizer, [record.edit for record in records]), layers)
        outer = [generator.choice(record.outer) for record in records]
        loc: list[Question] = []
        for record in records:
            known = [*record.loc, *record.hard_loc]
            loc += generator.sample(known, min(questions, len(known)))
        rows = (
            RowReplay(model, question_rows(model, outer), layers),
            RowReplay(model, question_rows(model, loc), layers),
        )
        with torch.no_grad():
            before = rows[1].log_probabilities({}, range(len(loc)))
        return cls(token_pairs(facts, range(len(records))), *rows, before)

    def losses(self, network: Network) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The two parts of the loss, without their weights."""
        changes = network.changes(self.pairs)
        edit = self.outer.losses(changes, range(len(self.outer))).mean()
        after = self.loc.log_probabilities(changes, range(len(self.loc)))
        return edit, (self.before.exp() * (self.before - after)).sum(1).mean()


def statistics(
    model: LanguageModel, facts: Sequence[Fact], layers: Sequence[int], report: Report
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Mean and standard deviation of (x, δ), over all tokens of the facts and all layers together."""
    d_out, d_in = model.weight(layers[0]).shape
    moments = Moments.none(d_in + d_out, torch.device("cpu"), full=False)
    replay = RowReplay(model, teacher_forced(model.tokenizer, facts), layers)
    done = 0
    for places in replay.passes(range(len(facts))):
        for x, delta in token_pairs(replay, places).values():
            moments = moments.updated(to_float64(torch.cat([x, delta], dim=1)).cpu())
        done += len(places)
        report("reading gradients", done, len(facts))
    std = (moments.scatter / max(moments.count - 1, 1)).sqrt()
    for part in (slice(d_in), slice(d_in, None)):  # a coordinate that never changes says nothing
        std[part] = std[part].clamp_min(_LEAST * float(std[part].max()) or 1.0)
    return moments.mean, std


def learn(
    model: LanguageModel, train: EditorData, calibration: EditorData, settings: Mapping[str, Any], report: Report
) -> Learnt:
    """Train the network; see ``trained_editor.Trainer``. The steps with the least loss on ``calibration`` are kept.

    Raises:
        InputError: if the records have no questions that should keep their answers, or a layer does not exist.
        NonFiniteError: if a loss is not finite.
    """
    chosen = MendTraining.model_validate(settings)
    blocks = len(model.blocks)
    layers = chosen.layers if chosen.layers is not None else tuple(range(max(0, blocks - 3), blocks))
    model.check_layers(layers)
    records, held_out = (
        [record for record in data.records if record.loc or record.hard_loc] for data in (train, calibration)
    )
    if not records or not held_out:
        raise InputError(
            "the training data have no questions that should keep their answers",
            remedy="Use facts with own, neighbours or unrelated questions",
            code="EDITOR_DATA_TOO_SMALL",
        )
    generator = random.Random(f"mend {chosen.seed}")
    sample = generator.sample(records, min(chosen.texts, len(records)))
    mean, std = statistics(model, [record.edit for record in sample], layers, report)
    unit = torch.tensor([weight_scale(model.weight(layer)) for layer in layers])
    first = Network.at_first(layers, mean, std, unit, chosen).to(
        model.device, torch.promote_types(model.dtype, torch.float32)
    )
    network = replace(first, **{name: getattr(first, name).clone().requires_grad_() for name in Network.LEARNT})
    inner = [getattr(network, name) for name in Network.LEARNT if name != "log_step"]
    optimiser = torch.optim.Adam(
        [
            {"params": inner, "lr": chosen.learning_rate},
            {"params": [network.log_step], "lr": chosen.step_learning_rate},
        ],
        foreach=False,
    )
    few = generator.sample(held_out, min(chosen.checked, len(held_out)))
    episode = _episodes(model, layers, chosen)
    checks = [episode(part, random.Random(f"check {chosen.seed}")) for part in _batches(few, chosen.batch_size)]
    best = _checked(network, checks, chosen)
    unedited = best
    kept, kept_at, waited = network.tensors(), 0, 0
    for step in range(1, chosen.steps + 1):
        part = generator.sample(records, min(chosen.batch_size, len(records)))
        edit, loc = episode(part, generator).losses(network)
        loss = chosen.edit_weight * edit + chosen.loc_weight * loc
        facts = [record.edit for record in part]
        check_finite("training loss", loss.detach().cpu().expand(len(facts)), facts, layers[0])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*inner, network.log_step], chosen.clip)
        optimiser.step()
        report("training", step, chosen.steps)
        if step % chosen.check_every == 0 or step == chosen.steps:
            found = _checked(network, checks, chosen)
            if found.total < best.total:
                best, kept, kept_at, waited = found, network.tensors(), step, 0
            else:
                waited += 1
                if waited == chosen.patience:
                    break
    record = {
        "layers": list(layers),
        "kept step": kept_at,
        "calibration −log P of the new answer, untrained and trained": [round(unedited.edit, 4), round(best.edit, 4)],
        "calibration KL of other answers, untrained and trained": [round(unedited.loc, 4), round(best.loc, 4)],
        "steps α in units of W": [round(math.exp(value), 6) for value in kept["log_step"].tolist()],
    }
    return Learnt(kept, record, {"layers": list(layers)})


@dataclass(frozen=True, slots=True)
class _Check:
    """The mean losses on some edits."""

    edit: float
    loc: float
    total: float


def _episodes(
    model: LanguageModel, layers: Sequence[int], settings: MendTraining
) -> Callable[[Sequence[TrainingRecord], random.Random], Episode]:
    return lambda records, generator: Episode.of(model, records, layers, settings.questions, generator)


def _batches(records: Sequence[TrainingRecord], size: int) -> Iterable[Sequence[TrainingRecord]]:
    return (records[start : start + size] for start in range(0, len(records), size))


def _checked(network: Network, episodes: Sequence[Episode], settings: MendTraining) -> _Check:
    with torch.no_grad():
        found = [tuple(float(part) for part in episode.losses(network)) for episode in episodes]
    edit, loc = (sum(values) / len(found) for values in zip(*found, strict=True))
    total = settings.edit_weight * edit + settings.loc_weight * loc
    return _Check(edit, loc, total if math.isfinite(total) else math.inf)


TRAINER: Final = Trainer(MendTraining, learn)


# The editor


class Mend(WeightEditor[MendSettings]):
    """See the module.

    Raises:
        InputError: if there is no trained network for the unedited model, or it is not the one of ``digest``.
    """

    def __init__(self, model: LanguageModel, settings: MendSettings, *, report: Report = silent) -> None:
        if not settings.network:
            raise InputError(
                "mend needs a network that was trained for the model",
                remedy=f"Train one: errata train-editor {MEND} --model … --out FILE; then set network: FILE",
                code="TRAINED_EDITOR_MISSING",
            )
        with model.edits.without(model.edits.terms):
            trained = TrainedEditor.load(Path(settings.network), MEND, model)
        if settings.digest not in ("", trained.digest):
            raise InputError(
                f"{settings.network} is another network than the one with the checksum {settings.digest[:12]}…",
                remedy="Give the file with which the edit was made",
                code="TRAINED_EDITOR_CHANGED",
            )
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.network = Network(tuple(trained.state["layers"]), **trained.tensors).to(model.device, dtype)
        super().__init__(model, settings.model_copy(update={"digest": trained.digest}), report=report)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.network.layers

    def write(
        self, facts: Sequence[Fact], before: Present, call: Present, report: Callable[[int, int], None]
    ) -> Written:
        replay = RowReplay(self.model, teacher_forced(self.model.tokenizer, facts), self.layers)
        left: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        right: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        done = 0
        for places in replay.passes(range(len(facts))):
            for place, (layer, pairs) in enumerate(token_pairs(replay, places).items()):
                sizes = pairs[1].norm().expand(len(places))
                check_finite("gradient", sizes.cpu(), [facts[index] for index in places], layer)
                outer, inner = self.network.factors(place, *pairs)
                left[layer].append(outer)
                right[layer].append(inner)
            done += len(places)
            report(done, len(facts))
        terms = [self._term(layer, torch.cat(left[layer]), torch.cat(right[layer])) for layer in self.layers]
        return Written((*call.terms, *terms))

    def _term(self, layer: int, left: Float[Tensor, "tokens d_out"], right: Float[Tensor, "tokens d_in"]) -> Term:
        dtype = self.model.edits.sum_dtype
        tokens, d_out, d_in = len(left), left.shape[1], right.shape[1]
        if tokens * (d_out + d_in) > d_out * d_in:  # factors would take more memory than the change itself
            return DenseTerm(layer, (left.T @ right).to(dtype).cpu())
        return LowRankTerm(layer, left.T.to(dtype).contiguous(), right.to(dtype))
