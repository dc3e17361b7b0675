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
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field, StrictInt, field_validator
from torch import Tensor, nn

from errata.editors.table import trainer_row
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

AnyNetwork = TypeVar("AnyNetwork", bound="Network")


@dataclass(frozen=True, slots=True)
class Network:
    """The network and the steps; d = d_in + d_out, m layers, n steps of the network.

    Attributes:
        layers: those that are edited, ascending.
        mean, std: (d,) of the pairs (x, δ); x comes first.
        unit: (m,) the RMS of each W's entries.
        log_step: (m,) log α, in that unit.
        up, down: U (n, d, rank) and V (n, rank, d).
        bias: (n, d).
        scale, shift: (n, m, d) s and t.
    """

    layers: tuple[int, ...]
    mean: Float[Tensor, "d"]
    std: Float[Tensor, "d"]
    unit: Float[Tensor, "m"]
    log_step: Float[Tensor, "m"]
    up: Float[Tensor, "n d rank"]
    down: Float[Tensor, "n rank d"]
    bias: Float[Tensor, "n d"]
    scale: Float[Tensor, "n m d"]
    shift: Float[Tensor, "n m d"]

    STEPS: ClassVar[tuple[str, ...]] = ("log_step",)
    INNER: ClassVar[tuple[str, ...]] = ("up", "down", "bias", "scale", "shift")
    FIXED: ClassVar[tuple[str, ...]] = ("mean", "std", "unit")
    COUNT: ClassVar[int] = 2  # n
    UNIT: ClassVar[str] = "steps α in units of W"

    @classmethod
    def at_first(
        cls: type[AnyNetwork],
        layers: Sequence[int],
        mean: Tensor,
        std: Tensor,
        unit: Tensor,
        settings: MendTraining,
        **others: Tensor,
    ) -> AnyNetwork:
        """The identity on normalised pairs.

        Args:
            others: tensors of a further network.
        """
        size, rank, m = len(mean), min(settings.rank, len(mean)), len(layers)
        generator = torch.Generator().manual_seed(settings.seed)
        return cls(
            layers=tuple(layers),
            mean=mean.float(),
            std=std.float(),
            unit=unit.float(),
            log_step=torch.full((m,), math.log(settings.step)),
            up=torch.zeros(cls.COUNT, size, rank),
            down=torch.randn(cls.COUNT, rank, size, generator=generator, dtype=torch.float32) / math.sqrt(size),
            bias=torch.zeros(cls.COUNT, size),
            scale=torch.ones(cls.COUNT, m, size),
            shift=torch.zeros(cls.COUNT, m, size),
            **others,
        )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All tensors."""
        return (*cls.FIXED, *cls.STEPS, *cls.INNER)

    def learning(self: AnyNetwork) -> AnyNetwork:
        """A copy whose tensors need gradients, but for the fixed ones."""
        return replace(
            self, **{name: getattr(self, name).clone().requires_grad_() for name in (*self.STEPS, *self.INNER)}
        )

    def to(self: AnyNetwork, device: torch.device, dtype: torch.dtype) -> AnyNetwork:
        return replace(self, **{name: getattr(self, name).to(device).to(dtype) for name in self.names()})

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).detach().cpu().float() for name in self.names()}

    def pairs(
        self, place: int, x: Float[Tensor, "tokens d_in"], delta: Float[Tensor, "tokens d_out"]
    ) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]]:
        """(x̃, δ̃) of the layer at ``place``."""
        z = (torch.cat([x, delta], dim=1) - self.mean) / self.std
        for step in range(len(self.up)):
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
            found[layer] = low_rank(left, right)
        return found


def low_rank(left: Float[Tensor, "rows d_out"], right: Float[Tensor, "rows d_in"]) -> Change:
    """The change by leftᵀ right."""
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
class Judge:
    """The rows by which an edit is judged, with everything that does not depend on it.

    Attributes:
        outer: of other wordings, with the new answers.
        loc: of questions whose answers should not change.
        before: (tokens, vocabulary) log P at the answers of ``loc``, unedited.
    """

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
    ) -> Judge:
        """Of the records, one other wording and some questions each are chosen at random."""
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
        return cls(*rows, before)

    def losses(self, changes: Mapping[int, Change]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The two parts of the loss, without their weights."""
        edit = self.outer.losses(changes, range(len(self.outer))).mean()
        after = self.loc.log_probabilities(changes, range(len(self.loc)))
        return edit, (self.before.exp() * (self.before - after)).sum(1).mean()


@dataclass(frozen=True, slots=True)
class Episode:
    """One edit to learn from, with everything that does not depend on the network.

    Attributes:
        facts: their teacher-forced rows in the unedited model.
        judge: the rows by which the edit is judged.
    """

    records: tuple[TrainingRecord, ...]
    facts: RowReplay
    judge: Judge

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        records: Sequence[TrainingRecord],
        layers: Sequence[int],
        questions: int,
        generator: random.Random,
    ) -> Episode:
        """An edit of the records; see ``Judge.of``."""
        facts = RowReplay(model, teacher_forced(model.tokenizer, [record.edit for record in records]), layers)
        return cls(tuple(records), facts, Judge.of(model, records, layers, questions, generator))

    def pairs(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Layer -> x and δ of the facts' tokens."""
        return token_pairs(self.facts, range(len(self.facts)))


ReadPairs: TypeAlias = Callable[[RowReplay, Sequence[int]], dict[int, tuple[Tensor, Tensor]]]
"""Layer -> x and δ of some rows, as ``token_pairs``."""


def statistics(
    model: LanguageModel, facts: Sequence[Fact], layers: Sequence[int], report: Report, read: ReadPairs = token_pairs
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Mean and standard deviation of (x, δ), over all tokens that are read and all layers together."""
    d_out, d_in = model.weight(layers[0]).shape
    moments = Moments.none(d_in + d_out, torch.device("cpu"), full=False)
    replay = RowReplay(model, teacher_forced(model.tokenizer, facts), layers)
    done = 0
    for places in replay.passes(range(len(facts))):
        for x, delta in read(replay, places).values():
            moments = moments.updated(to_float64(torch.cat([x, delta], dim=1)).cpu())
        done += len(places)
        report("reading gradients", done, len(facts))
    std = (moments.scatter / max(moments.count - 1, 1)).sqrt()
    for part in (slice(d_in), slice(d_in, None)):  # a coordinate that never changes says nothing
        std[part] = std[part].clamp_min(_LEAST * float(std[part].max()) or 1.0)
    return moments.mean, std


@dataclass(frozen=True, slots=True)
class Losses:
    """The mean losses on some edits, and their weighted sum."""

    edit: float
    loc: float
    total: float


def descend(
    first: AnyNetwork,
    loss_of: Callable[[AnyNetwork], tuple[Tensor, Sequence[Fact]]],
    checked: Callable[[AnyNetwork], Losses],
    settings: MendTraining,
    report: Report,
) -> Learnt:
    """Adam, with checks on held-out edits; the tensors with the least loss there are kept.

    Args:
        first: the network before the first step.
        loss_of: the loss of the next step, and the facts in it.
        checked: the losses on held-out edits.

    Raises:
        NonFiniteError: if a loss is not finite.
    """
    network = first.learning()
    inner, sizes = ([getattr(network, name) for name in names] for names in (network.INNER, network.STEPS))
    optimiser = torch.optim.Adam(
        [{"params": inner, "lr": settings.learning_rate}, {"params": sizes, "lr": settings.step_learning_rate}],
        foreach=False,
    )
    with torch.no_grad():
        untrained = best = checked(network)
    kept, kept_at, waited = network.tensors(), 0, 0
    for step in range(1, settings.steps + 1):
        loss, facts = loss_of(network)
        check_finite("training loss", loss.detach().cpu().expand(len(facts)), facts, network.layers[0])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*inner, *sizes], settings.clip)
        optimiser.step()
        report("training", step, settings.steps)
        if step % settings.check_every == 0 or step == settings.steps:
            with torch.no_grad():
                found = checked(network)
            if found.total < best.total:
                best, kept, kept_at, waited = found, network.tensors(), step, 0
            else:
                waited += 1
                if waited == settings.patience:
                    break
    layers = list(network.layers)
    record = {
        "layers": layers,
        "kept step": kept_at,
        "calibration −log P of the new answer, untrained and trained": [round(untrained.edit, 4), round(best.edit, 4)],
        "calibration KL of other answers, untrained and trained": [round(untrained.loc, 4), round(best.loc, 4)],
        network.UNIT: [round(math.exp(value), 6) for value in kept["log_step"].tolist()],
    }
    return Learnt(kept, record, {"layers": layers})


def material(
    model: LanguageModel, train: EditorData, calibration: EditorData, settings: MendTraining
) -> tuple[tuple[int, ...], list[TrainingRecord], list[TrainingRecord]]:
    """The layers, the records to learn from, and those to check on.

    Raises:
        InputError: if the records have no questions that should keep their answers, or a layer does not exist.
    """
    blocks = len(model.blocks)
    layers = settings.layers if settings.layers is not None else tuple(range(max(0, blocks - 3), blocks))
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
    return layers, records, held_out


def learn(
    model: LanguageModel, train: EditorData, calibration: EditorData, settings: Mapping[str, Any], report: Report
) -> Learnt:
    """Train the network; see ``trained_editor.Trainer``, ``material`` and ``descend``."""
    chosen = MendTraining.model_validate(settings)
    layers, records, held_out = material(model, train, calibration, chosen)
    generator = random.Random(f"mend {chosen.seed}")
    sample = generator.sample(records, min(chosen.texts, len(records)))
    mean, std = statistics(model, [record.edit for record in sample], layers, report)
    unit = torch.tensor([weight_scale(model.weight(layer)) for layer in layers])
    first = Network.at_first(layers, mean, std, unit, chosen)
    few = generator.sample(held_out, min(chosen.checked, len(held_out)))
    episode = _episodes(model, layers, chosen)
    held = (episode(part, random.Random(f"check {chosen.seed}")) for part in batches(few, chosen.batch_size))
    checks = [(check.judge, check.pairs()) for check in held]

    def loss_of(network: Network) -> tuple[Tensor, Sequence[Fact]]:
        part = generator.sample(records, min(chosen.batch_size, len(records)))
        turn = episode(part, generator)
        edit, loc = turn.judge.losses(network.changes(turn.pairs()))
        return chosen.edit_weight * edit + chosen.loc_weight * loc, [record.edit for record in part]

    return descend(
        first.to(model.device, torch.promote_types(model.dtype, torch.float32)),
        loss_of,
        lambda network: mean_losses([judge.losses(network.changes(pairs)) for judge, pairs in checks], chosen),
        chosen,
        report,
    )


def _episodes(
    model: LanguageModel, layers: Sequence[int], settings: MendTraining
) -> Callable[[Sequence[TrainingRecord], random.Random], Episode]:
    return lambda records, generator: Episode.of(model, records, layers, settings.questions, generator)


def batches(records: Sequence[TrainingRecord], size: int) -> Iterable[Sequence[TrainingRecord]]:
    return (records[start : start + size] for start in range(0, len(records), size))


def mean_losses(parts: Sequence[tuple[Tensor, Tensor]], settings: MendTraining) -> Losses:
    """Over some edits; the total is infinite if a loss is not finite."""
    edit, loc = (sum(float(value) for value in values) / len(parts) for values in zip(*parts, strict=True))
    total = settings.edit_weight * edit + settings.loc_weight * loc
    return Losses(edit, loc, total if math.isfinite(total) else math.inf)


TRAINER: Final = Trainer(MendTraining, learn)


# The editor


class Mend(WeightEditor[MendSettings]):
    """See the module.

    Raises:
        InputError: if there is no trained network for the unedited model, or it is not the one of ``digest``.
    """

    kind: ClassVar[type[Network]] = Network

    def __init__(self, model: LanguageModel, settings: MendSettings, *, report: Report = silent) -> None:
        name = settings.method
        if not settings.network:
            raise InputError(
                f"{name} needs a network that was trained for the model",
                remedy=trainer_row(name).remedy(),
                code="TRAINED_EDITOR_MISSING",
            )
        with model.edits.without(model.edits.terms):
            trained = TrainedEditor.load(Path(settings.network), name, model)
        if settings.digest not in ("", trained.digest):
            raise InputError(
                f"{settings.network} is another network than the one with the checksum {settings.digest[:12]}…",
                remedy="Give the file with which the edit was made",
                code="TRAINED_EDITOR_CHANGED",
            )
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.network = self.kind(layers=tuple(trained.state["layers"]), **trained.tensors).to(model.device, dtype)
        super().__init__(model, settings.model_copy(update={"digest": trained.digest}), report=report)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.network.layers

    def read(self, replay: RowReplay, indices: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """Layer -> x and δ of the rows of some facts."""
        return token_pairs(replay, indices)

    def write(
        self, facts: Sequence[Fact], before: Present, call: Present, report: Callable[[int, int], None]
    ) -> Written:
        replay = RowReplay(self.model, teacher_forced(self.model.tokenizer, facts), self.layers)
        found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in self.layers}
        done = 0
        for places in replay.passes(range(len(facts))):
            for layer, pairs in self.read(replay, places).items():
                sizes = pairs[1].norm().expand(len(places))
                check_finite("gradient", sizes.cpu(), [facts[index] for index in places], layer)
                found[layer].append(pairs)
            done += len(places)
            report(done, len(facts))
        terms = []
        for place, layer in enumerate(self.layers):
            x, delta = (torch.cat(parts) for parts in zip(*found[layer], strict=True))
            terms.append(self._term(layer, *self.network.factors(place, x, delta)))
        return Written((*call.terms, *terms))

    def _term(self, layer: int, left: Float[Tensor, "tokens d_out"], right: Float[Tensor, "tokens d_in"]) -> Term:
        dtype = self.model.edits.sum_dtype
        tokens, d_out, d_in = len(left), left.shape[1], right.shape[1]
        if tokens * (d_out + d_in) > d_out * d_in:  # factors would take more memory than the change itself
            return DenseTerm(layer, (left.T @ right).to(dtype).cpu())
        return LowRankTerm(layer, left.T.to(dtype).contiguous(), right.to(dtype))
