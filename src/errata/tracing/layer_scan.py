"""The layers to edit: single-layer edits of a few dozen facts across the depth, and a rule that selects layers.

Causal tracing finds where a fact is read from, which is not where an edit succeeds: on a model of 30 blocks it pointed
to blocks 16 to 21, where edits fail, while blocks 1 to 9 accept them. A scan measures it directly: at each scanned
layer all facts are written into that layer alone, with a short search, and the edited model is evaluated.

Contexts, keys and key statistics are computed once for all layers. The searches run layer by layer: each replays only
the blocks above its layer, which on a CPU is cheaper than one search of all layers together, since that would replay
from the lowest one for every row.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from errata.editing.batch import terms_of
from errata.editing.contexts import ContextSettings, generate_prefixes, target_in
from errata.editing.keys import SubjectTexts
from errata.editing.preparation import target_site
from errata.editing.solvers.least_squares import LeastSquares
from errata.editing.target_loss import TargetSettings
from errata.editing.target_search import find_targets
from errata.errors import ErrataError, InputError, NonFiniteError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.likelihood import score
from errata.models.prompts import TargetScore
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import key_moments
from errata.statistics.settings import BUILTIN, StatisticsSettings
from errata.utils.progress import Report, silent
from errata.utils.tensors import to_float64

ENOUGH_FACTS = 10  # with fewer, the scores say little
GOOD = 2 / 3  # of the best score: the threshold for a good layer
DIP = 1 / 2  # of the best score: a score below it ends the range of good layers; one noisy layer above it does not
MOST_LAYERS = 5
RULE = (
    "a layer's score is the harmonic mean of efficacy and generalisation of facts written into it alone, times what is "
    "left of the control questions' answers; the critical layers end at the last layer with two thirds of the best "
    "score that is reached from the best one without falling below half of it; they are as many as a quarter of the "
    f"blocks and one more, at most {MOST_LAYERS}"
)
FORMAT = "errata-layer-scan-1"
_SEARCH_CONTEXTS = 2  # the other contexts are for measuring
# Typical numbers, to estimate the time: tokens, questions per fact, layers scanned after the first ones.
_SUFFIX_TOKENS, _QUESTION_TOKENS, _QUESTIONS, _FURTHER = 8, 14, 5, 4
_logger = logging.getLogger(__name__)
_SPREAD = 0.01  # of C's mean eigenvalue, added to its diagonal: a short text leaves directions without any key


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """Settings of a scan."""

    count: int = 24  # the most facts to use
    every: int | None = None  # distance between the layers that are scanned first; by default an eighth of the depth
    steps: int = 8  # evaluations of the loss in each search
    rate: float = 0.3  # the learning rate in units of ‖h⁰‖ / √d
    ridge: float = 1.0  # λ in units of W's columns
    tokens: int = 8_000  # of text for the key statistics; fewer if the text is shorter
    corpus: str = BUILTIN
    seed: int = 0  # random seed for contexts and the choice of facts


@dataclass(frozen=True, slots=True)
class LayerScore:
    """The result of editing one layer alone; all numbers are between 0 and 1."""

    layer: int
    efficacy: float  # mean probability of the new answers after the facts' own prompts
    generalisation: float  # the same in other wordings, or, for facts without any, in contexts that no search has seen
    damage: float | None  # the share of their probability that the control questions' answers lost; None without any
    # the share of facts whose new answer is predicted, in their own prompts and in other wordings
    accuracy: tuple[float, float]

    @property
    def score(self) -> float:
        """See ``RULE``."""
        total = self.efficacy + self.generalisation
        harmonic = 2 * self.efficacy * self.generalisation / total if total > 0 else 0.0
        return harmonic * (1 - (self.damage or 0.0))


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The critical layers, ascending, by ``RULE``."""

    layers: tuple[int, ...]
    best: int  # the scanned layer with the best score
    last_good: int  # the last of the good layers around it


def window_size(depth: int) -> int:
    """The number of critical layers for a depth: 3 of 8 blocks, 5 of 16 and more."""
    return min(MOST_LAYERS, depth, 1 + depth // 4)


def choose_layers(scores: Mapping[int, float], depth: int) -> LayerChoice:
    """The critical layers by ``RULE``; between scanned layers the score is interpolated linearly.

    Args:
        scores: scanned layer -> score.
        depth: the number of blocks.

    Raises:
        ErrataError: if no layer has a positive score, or one is not finite.
    """
    layers = sorted(scores)
    if not layers or not all(math.isfinite(scores[layer]) for layer in layers) or max(scores.values()) <= 0:
        shown = ", ".join(f"{layer}: {scores[layer]:.3g}" for layer in layers)
        what = f"no layers can be chosen: the facts could not be written at any scanned layer (scores {shown})"
        remedy = "Give other facts, or choose layers yourself with --layers"
        raise ErrataError(what, remedy=remedy, code="NO_LAYERS_FOUND")
    best = max(layers, key=lambda layer: scores[layer])  # the first of equal ones
    at_least = GOOD * scores[best]
    curve = np.interp(np.arange(layers[-1] + 1), layers, [scores[layer] for layer in layers])
    last = layer = best
    while layer < layers[-1] and curve[layer + 1] >= DIP * scores[best]:
        layer += 1
        last = layer if curve[layer] >= at_least else last
    size = window_size(depth)
    return LayerChoice(tuple(range(max(0, last - size + 1), last + 1)), best, last)


def first_layers(depth: int, every: int | None) -> list[int]:
    """The layers to scan first: every k-th, from the first block on."""
    step = max(1, round(depth / 8)) if every is None else every
    return list(range(0, depth, step))


def further_layers(scores: Mapping[int, float], depth: int) -> list[int]:
    """The unscanned layers that can still change the choice: halfway between the best one and its neighbours, and all
    where the score falls below ``GOOD``.
    """
    scanned = sorted(scores)
    best = max(scanned, key=lambda layer: scores[layer])
    if scores[best] <= 0:
        return []
    below = max((layer for layer in scanned if layer < best), default=best)
    above = min((layer for layer in scanned if layer > best), default=depth)
    last = choose_layers(scores, depth).last_good
    falls_from = max(layer for layer in scanned if layer <= last)
    falls_to = min((layer for layer in scanned if layer > last), default=depth)
    wanted = {(below + best) // 2, (best + above) // 2, *range(falls_from + 1, falls_to)}
    return sorted(wanted - set(scanned))


def scan_work(depth: int, facts: int, settings: ScanSettings) -> int:
    """An estimate of the work of a scan, in tokens read by one block (gradients count three times)."""
    layers = first_layers(depth, settings.every)
    more = min(_FURTHER, depth - len(layers))
    searches = sum(_step_work(facts, depth, layer) for layer in layers) + more * _step_work(facts, depth, layers[0])
    questions = (len(layers) + more) * _QUESTIONS * facts * _QUESTION_TOKENS * depth
    return settings.steps * searches + questions + (2 if more else 1) * settings.tokens * depth


def _step_work(facts: int, depth: int, layer: int) -> int:
    """The work of one step of a search: rows × tokens from the subject on × blocks above the layer, three times for the
    gradient.
    """
    return 3 * facts * (_SEARCH_CONTEXTS + 2) * _SUFFIX_TOKENS * (depth - layer)


@dataclass(frozen=True, slots=True)
class LayerScan:
    """A finished scan."""

    settings: ScanSettings
    scores: tuple[LayerScore, ...]  # of the scanned layers, ascending
    depth: int  # the number of blocks
    facts: int  # the number of facts written at each layer
    controls: int  # the number of control questions
    paraphrased: bool  # whether generalisation was measured in the facts' other wordings
    seconds: float

    def choose(self) -> LayerChoice:
        """Raises ErrataError: see ``choose_layers``."""
        return choose_layers({score.layer: score.score for score in self.scores}, self.depth)

    def record(self) -> dict[str, object]:
        """The result as JSON; without layers if the rule gives none."""
        try:
            choice: LayerChoice | None = self.choose()
        except ErrataError:
            choice = None
        return {
            "format": FORMAT,
            "rule": RULE,
            "layers": None if choice is None else list(choice.layers),
            "best": None if choice is None else choice.best,
            "last_good": None if choice is None else choice.last_good,
            "blocks": self.depth,
            "facts": self.facts,
            "controls": self.controls,
            "generalisation_in": "paraphrases" if self.paraphrased else "contexts",
            "seconds": self.seconds,
            "settings": {name: getattr(self.settings, name) for name in ScanSettings.__slots__},
            "rows": [
                {
                    "layer": one.layer,
                    "score": one.score,
                    "efficacy": one.efficacy,
                    "generalisation": one.generalisation,
                    "damage": one.damage,
                    "efficacy_accuracy": one.accuracy[0],
                    "generalisation_accuracy": one.accuracy[1],
                }
                for one in self.scores
            ],
        }

    @property
    def why(self) -> str:
        """One line on how the layers were chosen."""
        layers = len(self.scores)
        return f"single-layer edits of {self.facts} facts at {layers} of {self.depth} layers; {RULE}"


def scan_layers(
    model: LanguageModel, facts: Sequence[Fact], settings: ScanSettings | None = None, *, report: Report = silent
) -> LayerScan:
    """Write facts into single layers across the depth and measure each time; the model is left as it was.

    Args:
        facts: with targets that the model does not predict yet. Their neighbours, own and unrelated questions are the
            control questions. At most ``settings.count`` facts are used.
        report: progress callback, in steps of searches.

    Raises:
        InputError: if there are no facts, or a subject has no token.
        NonFiniteError: if the unedited model's answers are not finite.
    """
    if not facts:
        raise InputError("there are no facts to scan layers with", remedy="Give --facts", code="FACTS_MISSING")
    settings = settings or ScanSettings()
    started = time.perf_counter()
    chosen = list(facts[: settings.count])
    scan = _Scan(model, chosen, settings, report)
    first = first_layers(scan.depth, settings.every)
    found = scan.measure(first, upcoming=min(_FURTHER, scan.depth - len(first)))
    found |= scan.measure(further_layers({layer: one.score for layer, one in found.items()}, scan.depth))
    return LayerScan(
        settings,
        tuple(found[layer] for layer in sorted(found)),
        scan.depth,
        len(chosen),
        len(scan.controls),
        scan.paraphrased,
        time.perf_counter() - started,
    )


class _Scan:
    """Everything that the layers share, and the measurement of one of them."""

    def __init__(self, model: LanguageModel, facts: Sequence[Fact], settings: ScanSettings, report: Report) -> None:
        self.model, self.facts, self.settings, self.report = model, facts, settings, report
        self.depth = len(model.blocks)
        self._site = target_site(model, Site.BLOCK)
        self._done = self._total = 0  # steps of searches, and one for the questions of each layer
        contexts = ContextSettings(openers=("The", "Because", "I", "Therefore"), seed=settings.seed)
        prefixes = generate_prefixes(model, contexts)
        self._searched, held_out = prefixes[:_SEARCH_CONTEXTS], prefixes[_SEARCH_CONTEXTS:]
        self._own = [fact.pair(fact.target) for fact in facts]
        self._other = [fact.pair(fact.target, text) for fact in facts for text in fact.paraphrases]
        self.paraphrased = bool(self._other)
        if not self._other:
            self._other = [target_in(prefix, fact) for fact in facts for prefix in held_out]
        questions = {question.pair for fact in facts for question in (*fact.neighbours, *fact.own, *fact.unrelated)}
        self.controls = sorted(questions)
        self._before = _probabilities(score(model, self.controls)) if self.controls else np.zeros(0)
        self._target = TargetSettings(learning_rate=settings.rate, relative_rate=True, steps=settings.steps)

    def measure(self, layers: Sequence[int], *, upcoming: int = 0) -> dict[int, LayerScore]:
        """The scores of layers, which share the reading of keys and key statistics.

        Args:
            upcoming: how many more layers may follow, for the progress.
        """
        self._total = self._done + (len(layers) + upcoming) * (self.settings.steps + 1)
        self._advance(self._done)
        if not layers:
            return {}
        moments = self._read_moments(layers)
        keys = SubjectTexts.tokenise(self.model, self.facts, self._searched).read(Site.KEY, layers, "halves")
        return {layer: self._measure(layer, keys[layer][0], moments[layer]) for layer in layers}

    def _measure(self, layer: int, keys: torch.Tensor, moment: torch.Tensor) -> LayerScore:
        """A layer whose edit gives values that are not finite, as in float16, has the lowest score."""
        began = self._done
        try:
            scores = self._scores_with(layer, keys, moment)
        except NonFiniteError as error:
            _logger.warning("layer %d cannot be edited: %s", layer, error.what)
            scores = None
        self._advance(began + self.settings.steps + 1)
        if scores is None:
            return LayerScore(layer, 0.0, 0.0, 1.0 if self.controls else None, (0.0, 0.0))
        first, last = len(self._own), len(self._own) + len(self._other)
        own, other, controls = scores[:first], scores[first:last], scores[last:]
        damage = None
        if self.controls:
            lost = np.maximum(self._before - _probabilities(controls), 0)
            damage = float(lost.sum() / self._before.sum())
        return LayerScore(
            layer,
            float(_probabilities(own).mean()),
            float(_probabilities(other).mean()),
            damage,
            (_accuracy(own), _accuracy(other)),
        )

    def _scores_with(self, layer: int, keys: torch.Tensor, moment: torch.Tensor) -> list[TargetScore]:
        """The scores of all questions with the facts written into one layer."""
        began, steps = self._done, self.settings.steps
        targets = find_targets(
            self.model,
            self.facts,
            self._searched,
            layer,
            self._site,
            self._target,
            on_step=lambda step: self._advance(began + step.done * steps // step.total),
        )
        solver = LeastSquares(ridge=float(self.settings.ridge * len(keys)), history=False)
        change = solver.state_of(moment).solve(keys, to_float64(targets.delta))
        edits = self.model.edits
        savepoint = edits.savepoint(self.model.places(layer))
        edits.add(terms_of(self.model, layer, change))
        try:
            return score(self.model, [*self._own, *self._other, *self.controls])
        finally:
            edits.rollback(savepoint)

    def _read_moments(self, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """C of each layer plus a small multiple of the identity: a short text has no keys in some directions."""
        settings = StatisticsSettings(
            corpus=self.settings.corpus, tokens=self.settings.tokens, length=min(512, self.model.context_length)
        )
        documents = open_corpus(settings.corpus).documents()
        found = key_moments(self.model, layers, documents, settings, may_be_shorter=True)
        means = {layer: moment.mean for layer, moment in found.items()}
        return {
            layer: mean
            + _SPREAD
            * mean.diagonal(dim1=-2, dim2=-1).mean()
            * torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
            for layer, mean in means.items()
        }

    def _advance(self, done: int) -> None:
        self._done = done
        self.report("scanning layers", min(done, self._total), self._total)


def _probabilities(scores: Sequence[TargetScore]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The probability of each answer: the geometric mean over its tokens."""
    return np.exp([found.log_probability for found in scores])


def _accuracy(scores: Sequence[TargetScore]) -> float:
    return sum(found.correct for found in scores) / len(scores)
