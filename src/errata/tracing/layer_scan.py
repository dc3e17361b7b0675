"""Which layers take edits: single-layer edits of a few dozen facts across the depth, and a rule from their scores.

Causal tracing says where a fact is read from. It does not say where an edit will take: on a model of 30 blocks it
pointed to blocks 16 to 21, where edits fail, while blocks 1 to 9 accept them. A scan asks the question itself. At each
scanned layer all facts are written into that layer alone, with a short search, and the edited model is asked.

What all layers share is computed once: contexts, the facts' keys, and the key statistics, from one pass over the text.
The searches run layer by layer: each replays only the blocks above its own layer, which on a CPU is cheaper than one
search of all layers together, since that would have to replay from the lowest one for every row.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from errata.editing.contexts import generate_prefixes, target_in
from errata.editing.keys import keys_and_bare
from errata.editing.preparation import solve_device
from errata.editing.recipe_settings import ContextSettings, TargetSettings
from errata.editing.solvers import make_solver
from errata.editing.target_search import find_targets
from errata.errors import ErrataError, InputError, NonFiniteError
from errata.facts.fact import Fact
from errata.models.language_model import LanguageModel, Site
from errata.models.likelihood import TargetScore, score
from errata.models.weights import LowRankTerm
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import key_moments
from errata.statistics.settings import BUILTIN, StatisticsSettings
from errata.utils.progress import Report, silent

ENOUGH_FACTS = 10  # below, the scores say little
GOOD = 2 / 3  # of the best score, that makes a layer a good one
DIP = 1 / 2  # of the best score: what falls below it ends the good layers, so that noise in one layer does not
MOST_LAYERS = 5
RULE = (
    "a layer's score is the harmonic mean of efficacy and generalisation of facts written into it alone, times what is "
    "left of the control questions' answers; the critical layers end at the last layer with two thirds of the best "
    "score that is reached from the best one without falling below half of it; they are as many as a quarter of the "
    f"blocks and one more, at most {MOST_LAYERS}"
)
FORMAT = "errata-layer-scan-1"
_SEARCH_CONTEXTS = 2  # the other contexts are kept for measuring
# About so many, for the time left: tokens, questions of each fact, layers that a scan looks at after the first ones.
_SUFFIX_TOKENS, _QUESTION_TOKENS, _QUESTIONS, _FURTHER = 8, 14, 5, 4
_logger = logging.getLogger(__name__)
_SPREAD = 0.01  # of C's mean eigenvalue, added to its diagonal: a short text leaves directions without any key


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """What a scan goes by.

    Attributes:
        count: facts, at most.
        every: distance between the layers that are scanned first; by default an eighth of the depth.
        steps: evaluations of the loss in each search.
        rate: the learning rate in units of ‖h⁰‖ / √d.
        ridge: λ in units of W's columns.
        tokens: of text for the key statistics; fewer where the text is shorter.
        corpus: the text.
        seed: of contexts and of the choice of facts.
    """

    count: int = 24
    every: int | None = None
    steps: int = 8
    rate: float = 0.3
    ridge: float = 1.0
    tokens: int = 8_000
    corpus: str = BUILTIN
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LayerScore:
    """What editing one layer alone came to; all numbers are means of probabilities between 0 and 1.

    Attributes:
        layer: the block.
        efficacy: the probability of the new answers behind the facts' own prompts.
        generalisation: the same in other wordings, or in contexts that no search has seen where facts have none.
        damage: the share of their probability that the control questions' answers lost; None without any.
        accuracy: the share of facts whose new answer the model would say, in their own prompts and in other wordings.
    """

    layer: int
    efficacy: float
    generalisation: float
    damage: float | None
    accuracy: tuple[float, float]

    @property
    def score(self) -> float:
        """See ``RULE``."""
        total = self.efficacy + self.generalisation
        harmonic = 2 * self.efficacy * self.generalisation / total if total > 0 else 0.0
        return harmonic * (1 - (self.damage or 0.0))


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The critical layers, ascending, by ``RULE``.

    Attributes:
        layers: what was chosen.
        best: the scanned layer with the best score.
        last_good: where the run of good layers around it ends.
    """

    layers: tuple[int, ...]
    best: int
    last_good: int


def window_size(depth: int) -> int:
    """How many critical layers a model of so many blocks gets: 3 of 8, 5 of 16 and more."""
    return min(MOST_LAYERS, depth, 1 + depth // 4)


def choose_layers(scores: Mapping[int, float], depth: int) -> LayerChoice:
    """The critical layers by ``RULE``; between scanned layers the score is taken to run straight.

    Args:
        scores: scanned layer -> score.
        depth: the number of blocks.

    Raises:
        ErrataError: if no layer has a positive score, or one is not a number.
    """
    layers = sorted(scores)
    if not layers or not all(math.isfinite(scores[layer]) for layer in layers) or max(scores.values()) <= 0:
        shown = ", ".join(f"{layer}: {scores[layer]:.3g}" for layer in layers)
        raise ErrataError(
            f"no layers can be chosen: at none of the scanned ones could facts be written (scores {shown})",
            remedy="Give other facts, or choose layers yourself with --layers",
            code="NO_LAYERS_FOUND",
        )
    best = max(layers, key=lambda layer: scores[layer])  # of equal ones the first
    at_least = GOOD * scores[best]
    curve = np.interp(np.arange(layers[-1] + 1), layers, [scores[layer] for layer in layers])
    last = layer = best
    while layer < layers[-1] and curve[layer + 1] >= DIP * scores[best]:
        layer += 1
        last = layer if curve[layer] >= at_least else last
    size = window_size(depth)
    return LayerChoice(tuple(range(max(0, last - size + 1), last + 1)), best, last)


def first_layers(depth: int, every: int | None) -> list[int]:
    """The layers that are scanned first: every k-th, from the first block on."""
    step = max(1, round(depth / 8)) if every is None else every
    return list(range(0, depth, step))


def further_layers(scores: Mapping[int, float], depth: int) -> list[int]:
    """The layers between scanned ones that can still change the choice: halfway to both neighbours of the best one, and
    all of them where the score falls below what is good.
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
    """About how much a scan of a model has to do, in tokens read by one block (gradients count three times)."""
    layers = first_layers(depth, settings.every)
    more = min(_FURTHER, depth - len(layers))
    searches = sum(_step_work(facts, depth, layer) for layer in layers) + more * _step_work(facts, depth, layers[0])
    questions = (len(layers) + more) * _QUESTIONS * facts * _QUESTION_TOKENS * depth
    return settings.steps * searches + questions + (2 if more else 1) * settings.tokens * depth


def _step_work(facts: int, depth: int, layer: int) -> int:
    """One step of a search, in tokens read by one block: rows, their tokens from the subject on, three times for the
    gradient; the blocks below the layer are not run.
    """
    return 3 * facts * (_SEARCH_CONTEXTS + 2) * _SUFFIX_TOKENS * (depth - layer)


@dataclass(frozen=True, slots=True)
class LayerScan:
    """A finished scan.

    Attributes:
        scores: of the scanned layers, ascending.
        depth: how many blocks the model has.
        facts: how many facts were written at each layer.
        controls: how many control questions were asked.
        paraphrased: whether generalisation was measured in the facts' other wordings.
        seconds: that it took.
    """

    settings: ScanSettings
    scores: tuple[LayerScore, ...]
    depth: int
    facts: int
    controls: int
    paraphrased: bool
    seconds: float

    def choose(self) -> LayerChoice:
        """Raises ErrataError: see ``choose_layers``."""
        return choose_layers({score.layer: score.score for score in self.scores}, self.depth)

    def record(self) -> dict[str, object]:
        """The result as JSON would hold it; no layers where the rule gives none."""
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
        """One line on how the layers were found."""
        layers = len(self.scores)
        return f"single-layer edits of {self.facts} facts at {layers} of {self.depth} layers; {RULE}"


def scan_layers(
    model: LanguageModel, facts: Sequence[Fact], settings: ScanSettings | None = None, *, report: Report = silent
) -> LayerScan:
    """Write facts into single layers across the depth, and measure each time; the model is left as it was.

    Args:
        facts: with targets that the model does not say yet. Control questions are their neighbours, own and unrelated
            ones. At most ``settings.count`` are used.
        report: told of the work done, in evaluations of blocks.

    Raises:
        InputError: if there are no facts, or one has a subject without a token.
        NonFiniteError: if the unedited model answers with what is no number.
    """
    if not facts:
        raise InputError("there are no facts to scan layers with", remedy="Give --facts", code="FACTS_MISSING")
    settings = settings or ScanSettings()
    started = time.perf_counter()
    chosen = list(facts[: settings.count])
    scan = _Scan(model, chosen, settings, report)
    first = first_layers(scan.depth, settings.every)
    found = {
        layer: scan.measure(layer) for layer in scan.planned(first, further=min(_FURTHER, scan.depth - len(first)))
    }
    more = further_layers({layer: one.score for layer, one in found.items()}, scan.depth)
    found |= {layer: scan.measure(layer) for layer in scan.planned(more)}
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
    """What all layers share, and the measurement of one of them."""

    def __init__(self, model: LanguageModel, facts: Sequence[Fact], settings: ScanSettings, report: Report) -> None:
        self.model, self.facts, self.settings, self.report = model, facts, settings, report
        self.depth = len(model.blocks)
        self._site = Site.MLP if model.architecture.norm_after_mlp else Site.BLOCK
        self._done = self._total = 0
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
        self._moments: dict[int, torch.Tensor] = {}
        self._keys: dict[int, torch.Tensor] = {}

    def planned(self, layers: Sequence[int], *, further: int = 0) -> Sequence[int]:
        """Read what these layers share: keys, and key statistics from one pass over the text.

        Args:
            further: how many more layers may follow, for the time left.
        """
        work = [self._work(layer) for layer in layers]
        statistics = self.settings.tokens * (max(layers, default=-1) + 1)
        self._total = self._done + statistics + sum(work)
        self._total += further * max(work, default=0) + (statistics if further else 0)
        if not layers:
            self._tell(self._total)
            return layers
        self._moments = self._read_moments(layers)
        self._tell(self._done)
        found = keys_and_bare(self.model, self.facts, self._searched, layers)
        self._keys = {layer: mean for layer, (mean, _) in found.items()}
        return layers

    def measure(self, layer: int) -> LayerScore:
        """Write the facts into one layer, ask, and take the change back. Where that gives no numbers, as float16 may
        at some layers, the layer takes no edits.
        """
        began = self._done
        try:
            scores = self._scores_with(layer)
        except NonFiniteError as error:
            _logger.warning("layer %d takes no edits: %s", layer, error.what)
            scores = None
        self._tell(began + self._work(layer))
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

    def _scores_with(self, layer: int) -> list[TargetScore]:
        """The scores of all questions with the facts written into one layer."""
        began, steps = self._done, 0

        def on_step(_: int) -> None:
            nonlocal steps
            steps += 1
            self._tell(began + steps * _step_work(len(self.facts), self.depth, layer))

        targets = find_targets(self.model, self.facts, self._searched, layer, self._site, self._target, on_step=on_step)
        device = solve_device(self.model)
        columns = self._moments[layer].shape[0]
        solver = make_solver("least_squares", {"ridge": self.settings.ridge * columns, "history": False})
        keys, residuals = self._keys[layer].to(device), targets.delta.double().to(device)
        change = solver.prepare(self._moments[layer].to(device)).solve(keys, residuals)
        dtype = self.model.edits.sum_dtype
        term = LowRankTerm(layer, change.left.to(self.model.device, dtype), change.right.to(self.model.device, dtype))
        edits = self.model.edits
        mark = edits.savepoint([layer])
        edits.add([term])
        try:
            return score(self.model, [*self._own, *self._other, *self.controls])
        finally:
            edits.rollback(mark)

    def _read_moments(self, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """C of each layer, with a little of the identity: a short text does not reach every direction of a wide W."""
        settings = self.settings
        blocks = max(layers) + 1

        def on_read(tokens: int) -> None:
            self._tell(self._done + tokens * blocks)

        statistics = StatisticsSettings(
            corpus=settings.corpus, tokens=settings.tokens, length=min(512, self.model.context_length)
        )
        found = key_moments(
            self.model,
            layers,
            open_corpus(statistics.corpus).documents(),
            tokens=statistics.tokens,
            length=statistics.length,
            on_read=on_read,
        )
        means = {layer: moment.mean for layer, moment in found.items()}
        return {
            layer: mean + _SPREAD * mean.diagonal().mean() * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
            for layer, mean in means.items()
        }

    def _work(self, layer: int) -> int:
        """A search, and the questions, in the same unit."""
        questions = len(self._own) + len(self._other) + len(self.controls)
        return (
            self.settings.steps * _step_work(len(self.facts), self.depth, layer)
            + questions * _QUESTION_TOKENS * self.depth
        )

    def _tell(self, done: int) -> None:
        self._done = done
        self.report("scanning layers", min(done, self._total), self._total)


def _probabilities(scores: Sequence[TargetScore]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Of each answer: the geometric mean over its tokens."""
    return np.exp([found.log_probability for found in scores])


def _accuracy(scores: Sequence[TargetScore]) -> float:
    return sum(found.correct for found in scores) / len(scores)
