"""Many facts, each edited alone into the same weights with one recipe, and the perplexity of prose after each edit.

A change in a few directions need not be written to be evaluated: it adds left · (right · x) to W's output. So texts are
replayed from the layer on, for dozens of edited models in one pass, where each row has the change of its own model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Final

import torch
from torch import Tensor

from errata.editing.batch import read_keys, write_group
from errata.editing.keys import SubjectTexts
from errata.editing.preparation import EditContext, prepare
from errata.editing.recipe import Recipe
from errata.editing.shaping import BatchShaper, RunShaper
from errata.editing.solvers.base import LayerSolver
from errata.editing.solvers.rank_one import RankOneLayer
from errata.editing.target_search import LayerTarget, layer_targets
from errata.editors.locate_then_edit import Editor
from errata.errors import EditError, InputError, NonFiniteError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel
from errata.models.likelihood import NextToken, predict
from errata.models.prompts import encode
from errata.models.row_replay import RowReplay, TrainingRow
from errata.models.weights import LowRankTerm, Term
from errata.patches.factors import norm
from errata.utils.progress import Report, counter, silent

TOGETHER: Final = 16  # facts whose targets are searched, and whose changes are evaluated, together
_KEYS_TOGETHER: Final = 64
_TEXT_TOKENS: Final = 512
_LARGEST_EXPONENT: Final = 700.0  # exp() of more is no float


@dataclass(frozen=True, slots=True)
class TextLosses:
    """How well a model predicts some texts.

    Attributes:
        means: for each text, the mean −log P of its predicted tokens; NaN or infinite for a broken model.
        counts: for each text, the number of predicted tokens.
    """

    means: tuple[float, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.means)

    def __add__(self, other: TextLosses) -> TextLosses:
        return TextLosses(self.means + other.means, self.counts + other.counts)

    def first(self, count: int) -> TextLosses:
        return TextLosses(self.means[:count], self.counts[:count])

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.means))

    @property
    def mean_of_exp(self) -> float:
        """The mean of the texts' own perplexities, as published with ME-PPL; one text can decide it."""
        return fmean(map(_exp, self.means))

    @property
    def exp_of_mean(self) -> float:
        """The perplexity of all tokens together, as everywhere else in errata."""
        total = math.fsum(mean * count for mean, count in zip(self.means, self.counts, strict=True))
        return _exp(total / sum(self.counts))

    @property
    def median(self) -> float:
        """The median of the texts' own perplexities."""
        return median(map(_exp, self.means))


@dataclass(frozen=True, slots=True)
class Prediction:
    """How much a single edit is expected to change, without editing.

    Attributes:
        amplification: ‖w‖ ‖k̄‖ for an update r wᵀ, the largest of the layers: 1 if the key is written in its own
            direction. Infinite if the solver refuses the key; None where the keys do not decide (``from_keys``).
        agreement: see ``RankOneLayer.agreement``, the smallest of the layers; None for other solvers.
        residual: ‖δ‖ / ‖h‖ of the searched target, where the keys do not decide.
    """

    amplification: float | None = None
    agreement: float | None = None
    residual: float | None = None

    @property
    def strength(self) -> float:
        """Larger for a fact that should be tried earlier."""
        return (self.residual if self.amplification is None else self.amplification) or 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one edit did.

    Attributes:
        losses: of the texts that were evaluated, in order; None if the edit was refused.
        change: ‖ΔW‖ / ‖W‖, the largest of the layers.
        refusal: the code of the error by which the editor refused; empty if it did not.
    """

    losses: TextLosses | None
    change: float | None = None
    refusal: str = ""


class SingleEdits:
    """Edits of one fact at a time with one recipe, on the weights that the model has now.

    The model is bit for bit as it was after each call, also after an error. Make a new one once the weights change.

    Args:
        texts: prose for perplexity; texts of one token are left out.
        bos: whether texts begin with BOS, if the tokenizer adds it.
        cache: of key statistics; the user's cache directory if None.

    Attributes:
        losses: of the texts on the weights as they are.

    Raises:
        InputError: if there is no text with two tokens, or see ``prepare``.
        EditError: see ``prepare``.
    """

    def __init__(
        self,
        model: LanguageModel,
        recipe: Recipe,
        texts: Sequence[str],
        *,
        bos: bool = True,
        cache: Path | None = None,
        report: Report = silent,
    ) -> None:
        self.model, self.recipe, self.report = model, recipe, report
        self.rows = text_rows(model, texts, bos=bos)
        layers = tuple(dict.fromkeys(step.layer for step in recipe.steps))
        self.prepared = prepare(model, recipe, layers, cache=cache, report=report)
        self.losses = losses_of(model, self.rows)
        self._context = EditContext(model, recipe, self.prepared.prefixes, recipe.steps, report)
        self._layers = layers
        self._norms = {
            layer: math.hypot(*(float(model.weight(*place).float().norm()) for place in model.places(layer)))
            for layer in layers
        }
        self._targets: dict[str, dict[int, LayerTarget]] = {}  # of facts whose search was the prediction
        self._joint = RowReplay(model, self.rows, layers) if self.are_evaluated_together else None

    @property
    def from_keys(self) -> bool:
        """Whether keys decide how much an edit changes: rank-one updates, and those of a single layer."""
        return self.recipe.solver.kind == "rank_one" or len(self.recipe.steps) == 1

    @property
    def are_evaluated_together(self) -> bool:
        """Whether the changes are in a few directions and rounding W does not matter; else each one is written."""
        shaped = any(isinstance(shaper, BatchShaper | RunShaper) for shaper in self.recipe.shaping)
        return not shaped and self.model.edits.sum_dtype == self.model.dtype

    def predict(self, facts: Sequence[Fact]) -> list[Prediction]:
        """How much each fact's edit is expected to change, without editing; targets are searched without ``from_keys``.

        Raises:
            InputError: naming the fact, if its subject has no token.
        """
        done = counter(self.report, "predicting", len(facts))
        found: list[Prediction] = []
        size = _KEYS_TOGETHER if self.from_keys else TOGETHER
        for start in range(0, len(facts), size):
            part = facts[start : start + size]
            found += self._predict_from_keys(part) if self.from_keys else self._predict_from_targets(part)
            done(len(part))
        return found

    def try_out(
        self, facts: Sequence[Fact], *, first: int, needs_all: Callable[[TextLosses], bool]
    ) -> Iterator[list[Outcome]]:
        """Edit each fact alone, and evaluate the texts.

        Args:
            first: number of texts that are evaluated for every fact.
            needs_all: whether the others are needed too, given the losses of the first.

        Yields:
            the outcomes of the next ``TOGETHER`` facts.
        """
        for start in range(0, len(facts), TOGETHER):
            part = facts[start : start + TOGETHER]
            if self._joint is None:
                yield [self._written(fact, first, needs_all) for fact in part]
            else:
                yield self._together(self._joint, part, first, needs_all)

    def _predict_from_keys(self, facts: Sequence[Fact]) -> list[Prediction]:
        keys = read_keys(self._context, self._texts(facts), self._layers)
        found = []
        for index in range(len(facts)):
            amplifications, agreements = [], []
            for layer, (averaged, bare) in keys.items():
                key, own = averaged[:, index : index + 1], bare[:, index : index + 1]
                solver = self.prepared.solvers[layer]
                amplifications.append(_amplification(solver, key, own if self.recipe.solver.uses_bare_keys else None))
                if isinstance(solver, RankOneLayer):
                    agreements.append(float(solver.agreement(key, own)))
            found.append(Prediction(max(amplifications), min(agreements) if agreements else None))
        return found

    def _predict_from_targets(self, facts: Sequence[Fact]) -> list[Prediction]:
        at = self.recipe.steps[0].target_layer
        found = []
        for fact, targets in zip(facts, self._search(facts), strict=True):
            if targets is None:  # the search diverged: nothing can change more
                found.append(Prediction(residual=math.inf))
                continue
            self._targets[fact.id] = targets
            length = targets[at].states.norm()
            found.append(Prediction(residual=float(targets[at].delta.norm() / length)))
        return found

    def _search(self, facts: Sequence[Fact]) -> list[dict[int, LayerTarget] | None]:
        """The targets of each fact that the first step needs; None if a value is not finite."""
        try:
            found = layer_targets(self._context, self._texts(facts), self.recipe.steps[0], [])
        except NonFiniteError:
            if len(facts) == 1:
                return [None]
            return [self._search([fact])[0] for fact in facts]
        return [{layer: target.of(index) for layer, target in found.items()} for index in range(len(facts))]

    def _texts(self, facts: Sequence[Fact]) -> SubjectTexts:
        return SubjectTexts.tokenise(self.model, facts, self.prepared.prefixes)

    def _terms(self, facts: Sequence[Fact]) -> Iterator[Sequence[Term] | EditError]:
        """The changes of each fact alone, or the error by which it is refused."""
        unknown = [fact for fact in facts if fact.id not in self._targets]
        searched = (
            {fact.id: found for fact, found in zip(unknown, self._search(unknown), strict=True)} if unknown else {}
        )
        edits = self.model.edits
        for fact in facts:
            targets = self._targets.get(fact.id) or searched[fact.id]
            if targets is None:
                yield NonFiniteError("target loss", facts=[fact.id], layer=self.recipe.steps[0].target_layer)
                continue
            try:
                with edits.transaction():
                    start = edits.savepoint(self._layers)
                    group = write_group(self._context, self._texts([fact]), self.prepared.solvers, (), targets)
                    edits.rollback(start)
            except EditError as error:
                yield _refusal(error)
            else:
                yield group.terms

    def _together(
        self, joint: RowReplay, facts: Sequence[Fact], first: int, needs_all: Callable[[TextLosses], bool]
    ) -> list[Outcome]:
        found: dict[int, Outcome] = {}
        terms: dict[int, Sequence[LowRankTerm]] = {}
        for index, changes in enumerate(self._terms(facts)):
            if isinstance(changes, EditError):
                found[index] = Outcome(None, refusal=changes.code)
            else:
                terms[index] = [term for term in changes if isinstance(term, LowRankTerm)]
        texts = range(min(first, len(self.rows)))
        losses = dict(zip(terms, joint_losses(joint, list(terms.values()), texts), strict=True))
        longer = [index for index, own in losses.items() if needs_all(own)]
        rest = joint_losses(joint, [terms[index] for index in longer], range(texts.stop, len(self.rows)))
        losses |= {index: losses[index] + more for index, more in zip(longer, rest, strict=True)}
        found |= {index: Outcome(own, self._change(terms[index])) for index, own in losses.items()}
        return [found[index] for index in range(len(facts))]

    def _written(self, fact: Fact, first: int, needs_all: Callable[[TextLosses], bool]) -> Outcome:
        recipe = self.recipe.model_copy(update={"batch_size": 1})
        edits = self.model.edits
        with edits.transaction():
            start = edits.savepoint(self._layers)
            try:
                patch = Editor(self.model, recipe, prepared=self.prepared).apply([fact])
            except EditError as error:
                return Outcome(None, refusal=_refusal(error).code)
            losses = losses_of(self.model, self.rows[:first])
            if needs_all(losses):
                losses += losses_of(self.model, self.rows[first:])
            edits.rollback(start)
        return Outcome(losses, self._change(patch.terms))

    def _change(self, terms: Sequence[Term]) -> float:
        layers = {term.layer for term in terms}
        changes = [norm([term for term in terms if term.layer == layer]) / self._norms[layer] for layer in layers]
        return max(changes, default=0.0)


def text_rows(model: LanguageModel, texts: Sequence[str], *, bos: bool = True) -> list[TrainingRow]:
    """Texts as rows of which every token but the first is predicted; texts with fewer than two tokens are left out.

    Args:
        bos: whether BOS is included, if the tokenizer adds it; then a text's own first token is predicted too.

    Raises:
        InputError: if none is left.
    """
    length = min(_TEXT_TOKENS, model.context_length)
    rows = [row.ids[:length] for row in encode(model.tokenizer, texts)]
    if not bos:
        rows = [ids[1:] if ids[:1] == (model.tokenizer.bos_token_id,) else ids for ids in rows]
    found = [TrainingRow(ids[:-1], tuple(range(len(ids) - 1)), ids[1:]) for ids in rows if len(ids) > 1]
    if not found:
        what = "the texts for the perplexity have no token to predict"
        raise InputError(what, remedy="Give longer texts", code="TEXTS_TOO_SHORT")
    return found


def losses_of(model: LanguageModel, rows: Sequence[TrainingRow]) -> TextLosses:
    """The losses of texts on the weights as they are; not finite where logits are not."""
    wanted = [[NextToken(*entry) for entry in zip(row.wanted, row.targets, strict=True)] for row in rows]
    found = predict(model, [row.ids for row in rows], wanted)
    means = tuple(-math.fsum(each.log_probabilities) / len(each.log_probabilities) for each in found)
    return TextLosses(means, tuple(len(row.targets) for row in rows))


def joint_losses(replay: RowReplay, changes: Sequence[Sequence[LowRankTerm]], texts: Sequence[int]) -> list[TextLosses]:
    """The losses of some texts under each of several changes of the weights, all in the same passes.

    Args:
        replay: the texts, replayed from the lowest changed layer on.
        changes: for each edited model, its terms.
        texts: indices of rows.
    """
    if not changes or not texts:
        return [TextLosses((), ())] * len(changes)
    factors = {layer: _stacked(changes, layer, replay.model) for layer in replay.layers}
    owners = [number for number in range(len(changes)) for _ in texts]
    indices = [text for _ in changes for text in texts]
    means = torch.empty(len(indices), dtype=replay.dtype)
    for places in replay.passes(indices):
        own = torch.tensor([owners[place] for place in places], device=replay.model.device)
        added = {layer: partial(_added, left[own], right[own]) for layer, (left, right) in factors.items()}
        with torch.no_grad():
            means[places] = replay.losses(added, [indices[place] for place in places], by_row=True).cpu()
    counts = tuple(len(replay.rows[text].targets) for text in texts)
    return [TextLosses(tuple(row), counts) for row in means.view(len(changes), len(texts)).tolist()]


def _stacked(changes: Sequence[Sequence[LowRankTerm]], layer: int, model: LanguageModel) -> tuple[Tensor, Tensor]:
    """The factors of all changes of a layer, (changes, d_out, r) and (changes, r, d_in), padded with zeros."""
    d_out, d_in = model.weight(layer).shape
    own = [[term for term in terms if term.layer == layer] for terms in changes]
    rank = max(sum(term.left.shape[1] for term in terms) for terms in own)
    left = torch.zeros(len(changes), d_out, rank, dtype=model.edits.sum_dtype, device=model.device)
    right = torch.zeros(len(changes), rank, d_in, dtype=left.dtype, device=model.device)
    for number, terms in enumerate(own):
        start = 0
        for term in terms:
            stop = start + term.left.shape[1]
            left[number, :, start:stop], right[number, start:stop] = term.left, term.right
            start = stop
    return left, right


def _added(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """What each row's change adds to W's output, from its input (rows, length, d_in)."""
    return (x.to(left.dtype) @ right.mT) @ left.mT


def _amplification(solver: LayerSolver, key: Tensor, bare: Tensor | None) -> float:
    try:
        update = solver.solve(key, key.new_ones(1, 1), bare)  # a residual of length 1
    except EditError:
        return math.inf
    return float(update.left.norm() * update.right.norm() * key.norm())


def _refusal(error: EditError) -> EditError:
    """The error, if it is about this fact's edit; any other is raised."""
    if isinstance(error, NonFiniteError) or error.code == "KEY_WITHOUT_DIRECTION":
        return error
    raise error


def _exp(value: float) -> float:
    return math.inf if value > _LARGEST_EXPONENT else math.exp(value)
