"""The rewriting model of ``post_edit``: any causal LM, trained to say which words of a sentence an edit changes.

It reads the old statement of the fact, the new one and a sentence, each on a line, and answers with one line:

    Ada Stone lives in Rome.
    Ada Stone lives in Oslo.
    The home of Ada Stone is in Rome.
     Rome = Oslo

or ``retain`` where the sentence stays as it is. So an answer can only change in the words that the model names.

Training minimises −log P of the answer. All weights are trained, or low-rank changes of all linear modules in the
blocks.
"""

from __future__ import annotations

import copy
import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from pydantic import Field, StrictInt
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.editors.contract import Base
from errata.editors.memory_search import sentence, statement
from errata.editors.rewrite_pairs import Replacement, SentencePair, sentence_pairs
from errata.editors.trained_editor import Descent, Learnt, TrainedEditor, Trainer, TrainerSettings
from errata.editors.training_data import EditorData
from errata.errors import InputError, NonFiniteError
from errata.facts.fact import Fact
from errata.facts.joining import holds_name, joined
from errata.models.families import down_projection_weight
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair, complete, length_batches, pad
from errata.models.row_replay import GRADIENT_BUDGET, TrainingRow
from errata.utils.progress import Report
from errata.utils.settings import Positive

POST_EDIT: Final = "post_edit"
RETAIN: Final = "retain"
_IS: Final = " = "
_WARM_UP: Final = 0.1  # share of the steps
_SCALE: Final = 2.0  # α/r of LoRA


class RewritingTraining(Descent, TrainerSettings):
    """Settings of the training."""

    rank: StrictInt | None = Field(
        None, ge=1, description="of low-rank changes, for large models (published: 8); null: all weights are trained"
    )
    learning_rate: Positive = Field(5e-4, description="the highest (published, for low-rank changes of 7B: 2e-5)")
    checked: StrictInt = Field(400, ge=2, description="calibration sentences that are rewritten at the end")


# What is asked, and what is answered


def request(fact: Fact, text: str) -> str:
    """The prompt: both statements of a fact, and a sentence; an unfinished one gets a full stop."""
    lines = (joined(fact.text, fact.old or "", fact.joiner), statement(fact), text)
    return "".join(f"{sentence(' '.join(line.split()))}\n" for line in lines)


def reply(change: Replacement | None) -> str:
    """What the model should answer."""
    return f" {RETAIN}\n" if change is None else f" {change.old}{_IS}{change.new}\n"


def replacement(answer: str, text: str) -> Replacement | None:
    """What an answer says about a text; None if it is to stay.

    An answer that has not ended, or names words that the text does not have, changes nothing.
    """
    line, ended, _ = answer.partition("\n")
    line = line.strip()
    if not ended or line == RETAIN:
        return None
    for found in reversed(list(re.finditer(_IS, line))):
        change = Replacement(line[: found.start()].strip(), line[found.end() :].strip())
        if change.old and change.new and holds_name(text, change.old):
            return change
    return None


def has_ended(answer: str) -> bool:
    return "\n" in answer


def answers_of(model: LanguageModel, requests: Sequence[str], new_tokens: int, report: Report) -> list[str]:
    """The model's greedy answers."""
    return model.continue_texts(requests, new_tokens=new_tokens, stop=has_ended, report=report)


# Trained weights


class Weights(ABC):
    """What is trained of a model.

    Attributes:
        parameters: float32, or float64 for float64 models.
    """

    parameters: Sequence[Tensor]

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """As they are stored; see ``put_in``."""


class AllWeights(Weights):
    """Every weight of a model, whose dtype is float32 at least."""

    def __init__(self, model: LanguageModel, stored: torch.dtype) -> None:
        self._named = dict(model.model.named_parameters())
        self._stored = stored
        self.parameters = [parameter.requires_grad_() for parameter in self._named.values()]

    def tensors(self) -> dict[str, Tensor]:
        return {f"weight {name}": value.detach().to(self._stored).cpu() for name, value in self._named.items()}


class LowRank(Weights):
    """W + 2BA for each linear module of the blocks: A (rank, d_in) is random at first, and B (d_out, rank) is 0."""

    def __init__(self, model: LanguageModel, rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, module in _linear_modules(model).items():
            d_out, d_in = down_projection_weight(module).shape
            dtype = torch.promote_types(module.get_parameter("weight").dtype, torch.float32)
            a = (torch.rand(rank, d_in, generator=generator, dtype=torch.float32) * 2 - 1) / math.sqrt(d_in)
            b = torch.zeros(d_out, rank, dtype=dtype, device=model.device, requires_grad=True)
            self._factors[name] = (a.to(model.device, dtype).requires_grad_(), b)
            module.register_forward_hook(_adding(*self._factors[name]))
        self.parameters = [factor for pair in self._factors.values() for factor in pair]

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, (a, b) in self._factors.items():
            found |= {f"a {name}": a.detach().cpu(), f"b {name}": b.detach().cpu()}
        return found


def _linear_modules(model: LanguageModel) -> dict[str, nn.Module]:
    return {
        f"{model.architecture.blocks}.{name}": module
        for name, module in model.blocks.named_modules()
        if type(module) in (nn.Linear, Conv1D)
    }


def _adding(a: Tensor, b: Tensor) -> Any:
    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        change = nn.functional.linear(nn.functional.linear(args[0].to(a.dtype), a), _SCALE * b)
        return (output.to(a.dtype) + change).to(output.dtype)

    return add


def put_in(model: LanguageModel, tensors: Mapping[str, Tensor]) -> None:
    """Write trained weights into a model."""
    with torch.no_grad():
        for key, tensor in tensors.items():
            kind, _, name = key.partition(" ")
            if kind == "weight":
                model.model.get_parameter(name).copy_(tensor)
            elif kind == "a":
                weight = down_projection_weight(model.model.get_submodule(name))
                change = _SCALE * tensors[f"b {name}"].to(weight.device) @ tensor.to(weight.device)
                weight.copy_(weight.to(change.dtype) + change)


def copied(model: LanguageModel) -> LanguageModel:
    return LanguageModel(copy.deepcopy(model.model), model.tokenizer, name=model.name)


def rewriting_model(trained: TrainedEditor, base: Base) -> LanguageModel:
    """The model that was trained: a copy of the base if it was made from it, else loaded by its name.

    Raises:
        InputError: if it cannot be loaded, or has other weights than when it was trained.
    """
    if isinstance(base, LanguageModel) and base.fingerprint() == trained.base_fingerprint:
        model = copied(base)
    else:
        device = base.device if isinstance(base, LanguageModel) else None
        model = LanguageModel.load(trained.base, dtype=getattr(torch, trained.state["dtype"]), device=device)
        trained.check_model(model)
    put_in(model, trained.tensors)
    return model


# Training


def training_rows(model: LanguageModel, pairs: Sequence[SentencePair]) -> list[TrainingRow]:
    """Requests with their replies; see ``answer_rows``."""
    return answer_rows(model, [(request(pair.fact, pair.text), reply(pair.change), "") for pair in pairs])


def answer_rows(model: LanguageModel, pairs: Sequence[Pair]) -> list[TrainingRow]:
    """Prompts with a fact, and their answers, teacher-forced.

    Raises:
        InputError: if one is too long for the model.
    """
    completions = complete(model.tokenizer, pairs)
    longest = max(len(row.ids) for row in completions)
    if longest > model.context_length:
        raise InputError(
            f"a text of the training data has {longest} tokens with its fact, but {model.name!r} accepts "
            f"{model.context_length}",
            remedy="Use facts with shorter prompts and answers, or another model",
            code="TEXT_TOO_LONG",
        )
    return [
        TrainingRow(row.ids[:-1], tuple(range(row.target_start - 1, len(row.ids) - 1)), row.target_ids)
        for row in completions
    ]


def summed_loss(model: LanguageModel, rows: Sequence[TrainingRow]) -> Float[Tensor, ""]:
    """Σ −log P over the targets of all rows."""
    batch = pad([row.ids for row in rows], left=False, device=model.device)
    row = torch.tensor([place for place, row in enumerate(rows) for _ in row.wanted], device=model.device)
    column = torch.tensor([position for row in rows for position in row.wanted], device=model.device)
    targets = torch.tensor([token for row in rows for token in row.targets], device=model.device)
    logits = model.logits_at(batch.inputs(), row, column)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(logits, targets, reduction="sum")


def rate(step: int, steps: int) -> float:
    """The learning rate of a step, from 0, as a share of the highest: linear, then half a cosine."""
    warm_up = max(1, round(_WARM_UP * steps))
    return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2


def train(
    model: LanguageModel, weights: Weights, rows: Sequence[TrainingRow], settings: Descent, report: Report
) -> None:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) without decay, in the order of the rows.

    Raises:
        NonFiniteError: if a loss is not finite.
    """
    optimiser = torch.optim.AdamW(weights.parameters, lr=settings.learning_rate, weight_decay=0.0, fused=True)
    for step in range(settings.steps):
        report("training", step, settings.steps)
        part = rows[step * settings.batch_size : (step + 1) * settings.batch_size]
        count = sum(len(row.targets) for row in part)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate(step, settings.steps)
        optimiser.zero_grad(set_to_none=True)
        for places in length_batches([len(row.ids) for row in part], token_budget=GRADIENT_BUDGET):
            loss = summed_loss(model, [part[place] for place in places]) / count
            if not bool(loss.isfinite()):
                raise NonFiniteError("training loss", facts=(), layer=None)
            loss.backward()
        nn.utils.clip_grad_norm_(weights.parameters, settings.clip)
        optimiser.step()
    report("training", settings.steps, settings.steps)


def learn(
    model: LanguageModel, train_data: EditorData, calibration: EditorData, settings: Mapping[str, Any], report: Report
) -> Learnt:
    """Train the rewriting model; see ``trained_editor.Trainer``.

    Raises:
        InputError: if the records have no old objects or no other questions, or a text is too long for the model.
        NonFiniteError: if a loss is not finite.
    """
    chosen = RewritingTraining.model_validate(settings)
    count = chosen.steps * chosen.batch_size
    pairs = sentence_pairs(train_data, count, random.Random(f"{POST_EDIT} {chosen.seed}"))
    checks = sentence_pairs(calibration, chosen.checked, random.Random(f"{POST_EDIT} check {chosen.seed}"))
    trained = copied(model)
    if chosen.rank is None:
        trained.model.to(torch.promote_types(model.dtype, torch.float32))
        weights: Weights = AllWeights(trained, model.dtype)
    else:
        weights = LowRank(trained, chosen.rank, chosen.seed)
    with trained.blaming_no_edit():
        train(trained, weights, training_rows(trained, pairs), chosen, report)
    tensors = weights.tensors()
    del trained, weights
    result = copied(model)
    put_in(result, tensors)
    return Learnt(tensors, measured(result, checks, report), {"dtype": str(model.dtype).removeprefix("torch.")})


def measured(model: LanguageModel, pairs: Sequence[SentencePair], report: Report) -> dict[str, Any]:
    """The share of sentences that are rewritten as they should be, of both kinds."""
    said = answers_of(model, [request(pair.fact, pair.text) for pair in pairs], _CHECK_TOKENS, report)
    right = [replacement(answer, pair.text) == pair.change for answer, pair in zip(said, pairs, strict=True)]
    record: dict[str, Any] = {}
    for name, changes in (("calibration sentences rewritten rightly", True), ("calibration sentences kept", False)):
        kind = [good for good, pair in zip(right, pairs, strict=True) if (pair.change is not None) == changes]
        record[name] = f"{sum(kind)} of {len(kind)}"
    return record


_CHECK_TOKENS: Final = 32

TRAINER: Final = Trainer(RewritingTraining, learn)
