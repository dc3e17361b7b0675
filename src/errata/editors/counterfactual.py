"""SERAC's counterfactual model as a small language model, which reads a fact with a query and answers it.

Mitchell et al. 2022, "Memory-Based Model Editing at Scale", ICML, arXiv:2206.06520, train a small T5 or GPT together
with the classifier. Here it is a Llama of a few blocks, trained from scratch with the edited model's tokenizer on

    Ada Stone lives in Oslo.
    The home of Ada Stone is Oslo

to minimise −log P of the answer, the last words, per token. The query is each wording of the fact in turn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from errata.editors.memory_search import context_of
from errata.editors.rewriting import AllWeights, answer_rows, put_in, train
from errata.editors.scope import SmallModel
from errata.editors.training_data import EditorData, TrainingRecord
from errata.errors import InputError
from errata.facts.fact import Question
from errata.lab.training import TrainingSettings, build_model
from errata.models.language_model import LanguageModel
from errata.models.prompts import Pair
from errata.utils.progress import Report

_PREFIX: Final = "counterfactual "  # before its tensors in the file of the classifier


def questions_of(record: TrainingRecord) -> tuple[Question, ...]:
    """The fact's own prompt and its other wordings, with the new answer."""
    fact = record.edit
    return Question(fact.text, fact.target, fact.joiner), *record.outer


def pairs_of(records: Sequence[TrainingRecord]) -> list[Pair]:
    """All questions about the facts, each with its fact before it."""
    return [
        Question(context_of([record.edit]) + question.prompt, question.answer, question.joiner).pair
        for record in records
        for question in questions_of(record)
    ]


def small_model(base: LanguageModel, settings: SmallModel, seed: int) -> LanguageModel:
    """A random model with the base's tokenizer, tokens and context, on its device; float32."""
    shape = TrainingSettings(
        seed=seed,
        blocks=settings.blocks,
        width=settings.width,
        mlp_width=4 * settings.width,
        heads=4,
        context=base.context_length,
    )
    tokens = base.model.get_output_embeddings().weight.shape[0]
    model = build_model(shape, base.tokenizer, tokens=tokens)
    nn.Module.to(model, base.device)  # transformers wraps the method in a way that hides its types
    return LanguageModel(model, base.tokenizer, name=f"the counterfactual model of {base.name}")


def learn(
    base: LanguageModel, data: EditorData, calibration: EditorData, settings: SmallModel, seed: int, report: Report
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train the model.

    Returns:
        Its tensors as they are stored, and the shares of calibration questions that are answered rightly.

    Raises:
        InputError: if a text is too long for the base, or a target has no token.
        NonFiniteError: if a loss is not finite.
    """
    generator = random.Random(f"counterfactual {seed}")
    count, pairs = settings.steps * settings.batch_size, pairs_of(data.records)
    chosen: list[Pair] = []
    while len(chosen) < count:  # all of them in each round
        chosen += generator.sample(pairs, len(pairs))
    model = small_model(base, settings, seed)
    weights = AllWeights(model, torch.float32)
    with model.blaming_no_edit():
        train(model, weights, answer_rows(model, chosen[:count]), settings, report)
    tensors = {f"{_PREFIX}{name}": tensor for name, tensor in weights.tensors().items()}
    return tensors, measured(loaded(base, settings, tensors), calibration.records)


def measured(model: LanguageModel, records: Sequence[TrainingRecord]) -> dict[str, Any]:
    """How many questions about held-out facts are answered rightly."""
    scores = model.score(pairs_of(records))
    return {"calibration questions answered rightly": f"{sum(score.correct for score in scores)} of {len(scores)}"}


def loaded(base: LanguageModel, settings: SmallModel, tensors: Mapping[str, Tensor]) -> LanguageModel:
    """The trained model from the tensors of a file.

    Raises:
        InputError: if the file has none.
    """
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    if not own:
        raise InputError(
            "the file of the classifier has no small counterfactual model",
            remedy="Train it with one: errata train-editor serac --set counterfactual=small",
            code="COUNTERFACTUAL_MODEL_MISSING",
        )
    model = small_model(base, settings, seed=0)
    put_in(model, own)
    return model
