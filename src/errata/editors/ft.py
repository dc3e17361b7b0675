"""FT: gradient descent on one block's down-projection, in four variants.

| variant | asked of | order | cap |
|---|---|---|---|
| ``ft`` | all target tokens of the prompt's last position | as given | no |
| ``ft_l`` | as ``ft`` | as given | after each step, for each entry of W |
| ``ft_m`` | each target token of the tokens before it | as given | optional |
| ``ft_bf`` | as ``ft_m``, and the end of the text after the target | every epoch shuffles all facts | no |

Published numbers, all with ``relative`` false, 25 steps, batches of 1 (``ft_bf``: mini-batches of 100):

| model | layer, learning rate, cap |
|---|---|
| GPT2-XL | ``ft`` 1, 5e-4; ``ft_l`` 0, 5e-4, 5e-4 |
| GPT-J | ``ft`` 21, 5e-4; ``ft_l`` 0, 5e-4, 5e-5 |
| GPT2-medium, GPT2-large | ``ft_l`` 0, 5e-4, 2e-3 and 1e-3 |
| Llama-2-7B, Llama-3-8B | ``ft_m`` 21, 5e-4 |
| Qwen2.5-7B | ``ft_m`` 27, 5e-4 |
| Llama-3-8B, Qwen2.5-7B | ``ft_bf`` 22 and 6, 5e-4 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errata.editors.training import (
    Trained,
    Training,
    after_the_prompt,
    linear_change,
    seeded,
    teacher_forced,
    weight_scale,
    with_end,
)
from errata.editors.weight_editor import Present, WeightEditor, WeightEditorSettings, Written
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.row_replay import Change, RowReplay, TrainingRow
from errata.models.weights import DenseTerm
from errata.utils.settings import NotNegative, Positive


class FineTuningSettings(WeightEditorSettings):
    """What the variants share."""

    layer: StrictInt | None = Field(None, ge=0, description="whose W is trained; by default at two thirds of the depth")
    learning_rate: Positive = Field(0.01, description="Adam's step")
    relative: StrictBool = Field(True, description="steps and caps are in units of the RMS of W's entries")
    steps: StrictInt = Field(25, ge=0, description="epochs at most")
    stop_loss: NotNegative = Field(
        0.01, description="a mini-batch whose mean loss is below it takes no step; below it on average, training ends"
    )
    batch_size: StrictInt = Field(1, ge=1, description="facts that are trained together, each batch to its end")
    mini_batch: StrictInt = Field(1, ge=1, description="facts of one step")

    shuffled: ClassVar[bool] = False

    def rows(self, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[TrainingRow]:
        """What is read and asked, one row a fact."""
        return after_the_prompt(tokenizer, facts)

    @property
    def limit(self) -> float | None:
        """ε: no entry of W moves further than this; None for no limit."""
        return None

    @property
    def limits_run(self) -> bool:
        """Whether the limit counts from the weights before all of this editor's edits, not before each call."""
        return False


class FtSettings(FineTuningSettings):
    """Settings of ``ft``."""

    method: ClassVar[str] = "ft"


class FtLSettings(FineTuningSettings):
    """Settings of ``ft_l``."""

    method: ClassVar[str] = "ft_l"
    cap: Positive = Field(0.2, description="ε: after each step, no entry of W is further from where it was")
    anchor: Literal["call", "run"] = Field("call", description="where it was: before each call, or before the first")

    @property
    def limit(self) -> float | None:
        return self.cap

    @property
    def limits_run(self) -> bool:
        return self.anchor == "run"


class FtMSettings(FineTuningSettings):
    """Settings of ``ft_m``."""

    method: ClassVar[str] = "ft_m"
    cap: Positive | None = Field(None, description="ε: after each step, no entry of W is further from where it was")
    anchor: Literal["call", "run"] = Field("call", description="where it was: before each call, or before the first")

    def rows(self, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[TrainingRow]:
        return teacher_forced(tokenizer, facts)

    @property
    def limit(self) -> float | None:
        return self.cap

    @property
    def limits_run(self) -> bool:
        return self.anchor == "run"


class FtBfSettings(FineTuningSettings):
    """Settings of ``ft_bf``."""

    method: ClassVar[str] = "ft_bf"
    learning_rate: Positive = Field(0.02, description="Adam's step")
    batch_size: StrictInt = Field(10_000, ge=1, description="facts that are trained together")
    mini_batch: StrictInt = Field(100, ge=1, description="facts of one step")

    shuffled: ClassVar[bool] = True

    def rows(self, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[TrainingRow]:
        return with_end(tokenizer, facts)


class FineTuning(WeightEditor[FineTuningSettings]):
    """All variants; see the module."""

    @property
    def layers(self) -> tuple[int, ...]:
        layer = self.settings.layer
        return (2 * len(self.model.blocks) // 3 if layer is None else layer,)

    def write(
        self, facts: Sequence[Fact], before: Present, call: Present, report: Callable[[int, int], None]
    ) -> Written:
        settings, (layer,) = self.settings, self.layers
        base = self.model.edits.base_weight(layer)
        unit = weight_scale(base) if settings.relative else 1.0
        earlier = torch.zeros_like(base, dtype=self.model.edits.sum_dtype)
        for term in call.terms:
            term.add_to(earlier)
        since = earlier.clone()  # the change since where the limit counts from
        for term in before.terms if settings.limits_run else ():
            term.add_to(since)
        limit = None if settings.limit is None else settings.limit * unit
        trained = DenseChange(self.model, layer, since, limit)
        training = Training(
            learning_rates=[settings.learning_rate * unit],
            steps=settings.steps,
            mini_batch=settings.mini_batch,
            shuffled=settings.shuffled,
            is_learnt=lambda losses: float(losses.mean()) < settings.stop_loss,
            is_done=lambda losses: float(losses.mean()) < settings.stop_loss,
        )
        replay = RowReplay(self.model, settings.rows(self.model.tokenizer, facts), self.layers)
        generator = seeded(settings.seed, before.batches + call.batches)
        if not training.run(replay, trained, facts, generator, report):
            return Written(call.terms)
        return Written((DenseTerm(layer, (earlier + trained.delta.detach()).cpu()),), replay=replay)


class DenseChange(Trained):
    """A change of all entries of one W, zero at first.

    Args:
        since: the change that was made before, for the limit.
        limit: of each entry of both changes together; None for no limit.
    """

    def __init__(self, model: LanguageModel, layer: int, since: Tensor, limit: float | None) -> None:
        self.delta = torch.zeros_like(since, requires_grad=True)
        self.parameters = (self.delta,)
        self._bounds = None if limit is None else (-limit - since, limit - since)
        self._change = linear_change(model, layer, lambda: self.delta)
        self._layer = layer

    def changes(self) -> Mapping[int, Change]:
        return {self._layer: self._change}

    def constrain(self) -> None:
        if self._bounds is not None:
            self.delta.clamp_(*self._bounds)
