"""SERAC's scope classifier without an external model: logistic regression on a few features of a query and a fact.

The features, each of the query's text and the fact's prompt, never of an answer:

1. the cosine of the lexical embedder, over the facts in memory;
2. the cosine of the hidden embedder;
3. 1 if the query names the fact's subject, else 0;
4. the share of the words of the prompt, without the subject, that the query has too;
5. the difference of their numbers of words, over the larger number.

Training: positives are the prompt and other wordings of a fact; negatives are unrelated and hard questions, and the
same wordings with the nearest other fact in memory. Both kinds have the same total weight. The regression is Newton's
method with a ridge on the weights of standardised features.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field, StrictInt, field_validator
from torch import Tensor

from errata.editors.contract import Base, with_weights
from errata.editors.embedders import Embedder, Hidden, LexicalEmbedder, TextIndex
from errata.editors.table import trainer_row
from errata.editors.trained_editor import Descent, Learnt, TrainedEditor, TrainerSettings
from errata.editors.training_data import EditorData, TrainingRecord
from errata.errors import InputError
from errata.facts.fact import Fact, FactSet
from errata.facts.files import facts_from_records
from errata.facts.joining import word_places
from errata.models.language_model import LanguageModel
from errata.utils.progress import Report
from errata.utils.settings import Positive, Settings

SCOPE: Final = "serac"  # the trainer's name
FEATURES: Final = ("lexical", "hidden", "subject", "words", "length")
_HELD_OUT: Final = 100  # calibration facts in the file, at most
_CONVERGED: Final = 1e-10
_CLASSIFIER: Final = ("mean", "scale", "weights", "bias")


class SmallModel(Descent):
    """A small counterfactual model, and its training."""

    blocks: StrictInt = Field(2, ge=1, description="of the model")
    width: StrictInt = Field(256, ge=4, multiple_of=4, description="of its residual stream; the MLP's is four times it")
    steps: StrictInt = Field(1000, ge=1, description="of AdamW; the rate rises for a tenth of them, then falls to 0")
    learning_rate: Positive = Field(2e-3, description="the highest")


class ScopeSettings(TrainerSettings):
    """Settings of the training."""

    records: StrictInt = Field(500, ge=2, description="training records that are used, at most")
    memory: StrictInt = Field(100, ge=2, description="facts that are in memory together during training")
    ridge: Positive = Field(1e-3, description="λ of ½λ‖w‖² beside the mean loss, for standardised features")
    hidden: Hidden = Field(Hidden(), description="the embedder of the second feature; see retrieval")
    counterfactual: Literal["base", "small"] = Field(
        "base", description="small: a small counterfactual model is trained as well, for serac's setting of this name"
    )
    small: SmallModel = Field(SmallModel(), description="the small model")


class LearntScope(Settings):
    """A classifier trained by `errata train-editor serac`. Its value is a probability; ½ is SERAC's threshold."""

    kind: Literal["trained"] = "trained"
    file: str = Field("", description="written by `errata train-editor serac`")

    @field_validator("file")
    @classmethod
    def _absolute(cls, file: str) -> str:
        return str(Path(file).absolute()) if file else file

    def embedder(self, model: Base) -> Embedder:
        weights = with_weights(model, "the embedder 'trained'")
        if not self.file:
            raise InputError(
                "there is no trained classifier that decides which questions are about a fact",
                remedy=trainer_row(SCOPE).remedy(),
                code="TRAINED_EDITOR_MISSING",
            )
        return ScopeEmbedder(weights, TrainedEditor.load(Path(self.file), SCOPE, weights))


# Features


class Features:
    """Features of queries and the facts of one memory.

    Args:
        lexical, hidden: the embedders of the first two.
    """

    def __init__(self, facts: Sequence[Fact], lexical: Embedder, hidden: Embedder) -> None:
        self.facts = tuple(facts)
        texts = [fact.text for fact in facts]
        self._lexical, self._hidden = lexical.index(texts), hidden.index(texts)
        self._names = [unicodedata.normalize("NFC", fact.subject) for fact in facts]
        self._relations = [relation_words(fact) for fact in facts]
        self._lengths = [len(_words(text)) for text in texts]

    def of(self, queries: Sequence[str]) -> Float[Tensor, "queries facts features"]:
        """(queries, facts, 5) float64 on the CPU."""
        lexical, hidden = self._lexical.cosines(queries), self._hidden.cosines(queries)
        others = [self._of(unicodedata.normalize("NFC", query)) for query in queries]
        rest = torch.tensor(others, dtype=torch.float64).reshape(len(queries), len(self.facts), 3)
        return torch.cat([lexical[..., None], hidden[..., None], rest], dim=2)

    def _of(self, query: str) -> list[tuple[bool, float, float]]:
        words = _words(query)
        own, length = frozenset(words), len(words)
        return [
            (
                name in query and bool(word_places(query, name)),
                len(relation & own) / len(relation) if relation else 0.0,
                abs(count - length) / max(count, length, 1),
            )
            for name, relation, count in zip(self._names, self._relations, self._lengths, strict=True)
        ]


def relation_words(fact: Fact) -> frozenset[str]:
    """The words of a fact's prompt without its subject, case-folded."""
    return frozenset(_words(fact.prompt.replace("{}", " ")))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


# The classifier


@dataclass(frozen=True, slots=True)
class Classifier:
    """P(in scope) = σ(w · (x − mean)/scale + bias).

    Attributes:
        mean, scale, weights: (features,) float64.
        bias: () float64.
    """

    mean: Float[Tensor, "f"]
    scale: Float[Tensor, "f"]
    weights: Float[Tensor, "f"]
    bias: Float[Tensor, ""]

    def __call__(self, features: Float[Tensor, "*pairs f"]) -> Float[Tensor, "*pairs"]:
        return torch.sigmoid((features - self.mean) / self.scale @ self.weights + self.bias)

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _CLASSIFIER}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Classifier:
        """From the tensors of a file."""
        return cls(**{name: tensors[name] for name in _CLASSIFIER})


def fit(
    positives: Float[Tensor, "p f"], negatives: Float[Tensor, "n f"], *, ridge: float, steps: int = 100
) -> Classifier:
    """Logistic regression by Newton's method; positives and negatives have weight ½ each.

    Minimises the weighted mean of −log P plus ½·ridge·‖w‖², in which the bias is free. Damped by halving a step until
    the loss falls.
    """
    rows = torch.cat([positives, negatives])
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    x = torch.cat([(rows - mean) / scale, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
    signs = torch.cat([torch.ones(len(positives)), -torch.ones(len(negatives))]).to(rows)
    shares = torch.cat([torch.full((len(part),), 0.5 / len(part), dtype=rows.dtype) for part in (positives, negatives)])
    penalty = torch.full((x.shape[1],), ridge, dtype=rows.dtype)
    penalty[-1] = 0.0

    def loss_at(w: Tensor) -> Tensor:
        return -(shares * torch.nn.functional.logsigmoid(signs * (x @ w))).sum() + (penalty * w.square()).sum() / 2

    w = torch.zeros(x.shape[1], dtype=rows.dtype)
    loss = loss_at(w)
    for _ in range(steps):
        right = torch.sigmoid(signs * (x @ w))
        gradient = -(shares * signs * (1 - right)) @ x + penalty * w
        curvature = (x * (shares * right * (1 - right))[:, None]).T @ x + torch.diag(penalty)
        curvature.diagonal().add_(1e-12)  # the bias has no ridge
        direction = torch.linalg.solve(curvature, gradient)
        step = 1.0
        while step > 1e-6 and float(loss_at(w - step * direction)) > float(loss):
            step /= 2
        w = w - step * direction
        before, loss = loss, loss_at(w)
        if float(before - loss) < _CONVERGED:
            break
    return Classifier(mean, scale, w[:-1], w[-1])


def auc(positives: Float[Tensor, "p"], negatives: Float[Tensor, "n"]) -> float:
    """The probability that a positive exceeds a negative, ties counting half (the area under the ROC curve)."""
    ordered = negatives.sort().values
    below = torch.searchsorted(ordered, positives, right=False)
    up_to = torch.searchsorted(ordered, positives, right=True)
    return float((below + up_to).double().sum() / 2 / (len(positives) * len(negatives)))


# Training


def pairs_of(
    records: Sequence[TrainingRecord], lexical: Embedder, hidden: Embedder, size: int, report: Report
) -> tuple[Tensor, Tensor]:
    """Features of positive and of negative pairs, in memories of ``size`` facts."""
    positives: list[Tensor] = []
    negatives: list[Tensor] = []
    for start in range(0, len(records), size):
        group = records[start : start + size]
        features = Features([record.edit for record in group], lexical, hidden)
        outer = [
            (place, prompt)
            for place, record in enumerate(group)
            for prompt in (record.edit.text, *(question.prompt for question in record.outer))
        ]
        others = [
            (place, question.prompt)
            for place, record in enumerate(group)
            for question in (*record.loc, *record.hard_loc)
        ]
        own = torch.tensor([place for place, _ in outer])
        found = features.of([text for _, text in outer])
        rows = torch.arange(len(found))
        positives.append(found[rows, own])
        if len(group) > 1:
            nearness = found[..., 0].clone()
            nearness[rows, own] = -torch.inf
            negatives.append(found[rows, nearness.argmax(1)])
        if others:
            found = features.of([text for _, text in others])
            negatives.append(found[torch.arange(len(found)), torch.tensor([place for place, _ in others])])
        report("reading records", min(start + size, len(records)), len(records))
    empty = torch.zeros(0, len(FEATURES), dtype=torch.float64)
    return torch.cat([empty, *positives]), torch.cat([empty, *negatives])


def distinct_subjects(records: Sequence[TrainingRecord], most: int, seed: int) -> list[TrainingRecord]:
    """At most ``most`` records, at random, with different subjects: another fact about a subject is no negative."""
    order = list(records)
    random.Random(f"scope {seed}").shuffle(order)
    first: dict[str, TrainingRecord] = {}
    for record in order:
        first.setdefault(record.edit.subject, record)
    return list(first.values())[:most]


def learn(
    model: LanguageModel, train: EditorData, calibration: EditorData, settings: Mapping[str, Any], report: Report
) -> Learnt:
    """Train the classifier; see ``trained_editor.Trainer.learn``.

    Raises:
        InputError: if the records have no other wordings, or no other questions.
    """
    chosen = ScopeSettings.model_validate(settings)
    lexical, hidden = LexicalEmbedder(), chosen.hidden.embedder(model)
    records = distinct_subjects(train.records, chosen.records, chosen.seed)
    positives, negatives = pairs_of(records, lexical, hidden, chosen.memory, report)
    if not len(negatives):
        raise InputError(
            "the training data have no questions that are not about the fact",
            remedy="Use facts with own, neighbours or unrelated questions",
            code="EDITOR_DATA_TOO_SMALL",
        )
    classifier = fit(positives, negatives, ridge=chosen.ridge)
    held_out = distinct_subjects(calibration.records, chosen.records, chosen.seed)
    right, wrong = (classifier(part) for part in pairs_of(held_out, lexical, hidden, chosen.memory, report))
    record = {
        "pairs": {"about the fact": len(positives), "about others": len(negatives)},
        "weights": dict(zip(FEATURES, (round(weight, 3) for weight in classifier.weights.tolist()), strict=True)),
        "calibration AUC": round(auc(right, wrong), 4),
        "calibration hits at ½": round(float((right >= 0.5).double().mean()), 4),
        "calibration refusals at ½": round(float((wrong < 0.5).double().mean()), 4),
    }
    facts = [entry.to_fact().to_record() for entry in held_out[:_HELD_OUT]]
    return Learnt(classifier.tensors(), record, {"held_out": facts})


# Use


class ScopeEmbedder:
    """The trained classifier as a measure of how near a query is to a fact.

    Attributes:
        trained: the file.
        held_out: facts of the calibration split, for a threshold at the size of the memory.
        digest: of the trained file.
    """

    def __init__(self, model: LanguageModel, trained: TrainedEditor) -> None:
        settings = ScopeSettings.model_validate(trained.settings)
        self._lexical, self._hidden = LexicalEmbedder(), settings.hidden.embedder(model)
        self._classifier = Classifier.of(trained.tensors)
        self.trained = trained
        self.digest = trained.digest
        source = f"the calibration facts of {trained.source}"
        self.held_out: FactSet = facts_from_records(trained.state["held_out"], source=source)

    def index(self, texts: Sequence[str]) -> TextIndex:
        """Texts that are no facts have no subject; they are compared by the lexical embedder."""
        return self._lexical.index(texts)

    def index_of(self, facts: Sequence[Fact]) -> TextIndex:
        """See ``embedders.FactEmbedder``."""
        return _ScopeIndex(self._classifier, Features(facts, self._lexical, self._hidden))


@dataclass(frozen=True, slots=True)
class _ScopeIndex:
    classifier: Classifier
    features: Features

    def cosines(self, queries: Sequence[str]) -> Float[Tensor, "queries texts"]:
        return self.classifier(self.features.of(queries))
