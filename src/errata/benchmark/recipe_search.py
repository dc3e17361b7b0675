"""A recipe for a model that nobody has published one for: a short search on held-out facts, in scale-free numbers.

One number is searched after another, each with the best values of those before it and the starting values of those
behind it. A try edits the held-out facts in batches and scores the mean of the accuracies after the whole run, over the
method with and without ``+blue``, so that no schedule is favoured. The learning rate is searched so too, and not by the
targets' loss: that loss does not see what an edit does to everything else. Every try is written to a file as it ends,
and read from there when the search goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from errata.benchmark.recipe_journal import Try, append_to_journal, read_journal
from errata.benchmark.recipe_numbers import (
    CLAMPS,
    LEARNING_RATES,
    TRIES_OF_SOLVER,
    clamp_try,
    laid_over,
    rate_try,
    solver_tries,
    with_boundary,
)
from errata.benchmark.sequential import Examination, Measurement, examine, run_sequence
from errata.errors import ErrataError, InputError
from errata.evaluation.metrics import CONTROLS, Metric
from errata.methods import Method
from errata.models.language_model import LanguageModel
from errata.preparation import Prepared, prepare
from errata.progress import Report, silent
from errata.recipe import Recipe
from errata.statistics.corpus import open_corpus

SCORED = (Metric.EFFICACY_ACCURACY, Metric.GENERALISATION_ACCURACY, *CONTROLS)
# What gains less of the mean accuracy than this is taken for a tie, and of what ties the first is taken: the solver's
# numbers and clamps begin with what changes the model least. Of the learning rates the best is taken. A small one does
# not aim at less, it only gets less far in as many steps.
ENOUGH = {"learning_rate": 0.0, "solver": 0.005, "clamp": 0.005}
BEATEN_BY = 0.005  # a default gives way only to what scores better than it by more than this
MIDDLES = 2  # learning rates that are tried behind the listed ones: one on each side of the best


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a search.

    Attributes:
        recipe: for the method as it was asked for.
        reasons: field -> how its value was found.
        tries: everything that was tried, in order.
        complete: whether the time was enough for all of them.
    """

    recipe: Recipe
    reasons: Mapping[str, str]
    tries: Sequence[Try]
    complete: bool


@dataclass(slots=True)
class RecipeSearch:
    """One search.

    Args:
        model: is edited and brought back to what it was.
        base: everything that is not searched: the statistics, the contexts, the row's layers.
        layers: all critical layers, for the boundary schedule also of rows that write one.
        examination: held-out facts and questions; what is reported later must be others.
        journal: a file of tries, which is read first and added to.
        seconds: no further try begins after so many.
        batch_size: of the tries.
    """

    model: LanguageModel
    base: Recipe
    layers: tuple[int, ...]
    examination: Examination
    journal: Path
    seconds: float = math.inf
    batch_size: int = 25
    cache: Path | None = None
    report: Report = silent
    _tries: list[Try] = field(default_factory=list)
    _done: dict[str, Try] = field(default_factory=dict)
    _prepared: tuple[str, Prepared] | None = None
    _complete: bool = True
    _left: int = 0
    _ended: int = 0
    _started: float = 0.0
    _about: str = ""

    def run(self) -> Found:
        """Search the learning rate, then the solver's numbers, then the clamp.

        Raises:
            InputError: if the journal cannot be read.
            ErrataError: if no try came to an end before time was up, or every one failed.
        """
        self._started = time.perf_counter()
        self._done = read_journal(self.journal)
        self._about = self._identity()
        before = examine(self.model, self.examination, report=self.report, what="asking before")
        recipe, reasons = self.base, {}
        columns = self.model.weight(recipe.layers[0]).shape[1]
        stages = (
            ("learning_rate", [rate_try(rate) for rate in LEARNING_RATES]),
            ("solver", list(solver_tries(recipe, columns))),
            ("clamp", [clamp_try(clamp) for clamp in CLAMPS]),
        )
        self._left = sum(len(values) for _, values in stages) + MIDDLES
        for number, values in stages:
            results = self._stage(number, values, recipe, before)
            if number == "learning_rate":
                results += self._stage(number, middles(results), recipe, before)
            self._tries += results
            most = max((tried.score for tried in results), default=-math.inf)
            if most > -math.inf:
                default = next((tried for tried in results if laid_over(recipe, tried.value) == recipe), None)
                tried_values = ", ".join(tried.told for tried in results)
                if default is not None and default.score >= most - BEATEN_BY:
                    best, rule = default, f"the default, which nothing beats by more than {BEATEN_BY:g}"
                else:
                    best = next(tried for tried in results if tried.score >= most - ENOUGH[number])
                    rule = f"the first within {ENOUGH[number]:g} of the best" if ENOUGH[number] else "the best"
                recipe = laid_over(recipe, best.value)
                reasons[number] = f"{best.told}: {rule} of {tried_values}"
            else:
                reasons[number] = "not searched: no time was left" if not results else "every try failed"
        if not self._tries:
            raise ErrataError(
                "time was up before one try came to an end", remedy="Give the same command more --minutes"
            )
        if all(tried.score == -math.inf for tried in self._tries):
            raise ErrataError(
                f"with none of {len(self._tries)} settings could the facts be edited",
                remedy="Give other layers, or a larger text for the key statistics",
            )
        return Found(recipe, reasons, tuple(self._tries), self._complete)

    # Tries ------------------------------------------------------------------------------------------------------

    def _stage(
        self, number: str, values: Sequence[tuple[Mapping[str, Any], str]], recipe: Recipe, before: Measurement
    ) -> list[Try]:
        """The tries of one number's values, as far as time goes."""
        results: list[Try] = []
        # The default first: it is what everything else is compared with, also where time is short.
        for value, told in sorted(values, key=lambda entry: laid_over(recipe, entry[0]) != recipe):
            if self._out_of_time():
                self._complete = False
                break
            key = _key(laid_over(recipe, value), self._about)
            tried = self._done.get(key) or self._try(number, value, told, laid_over(recipe, value), before)
            if key not in self._done:
                append_to_journal(self.journal, key, tried)
                self._done[key] = tried
            # The same setting may have been tried as another number's.
            results.append(replace(tried, number=number, value=value, told=told))
            self._ended += 1
            self.report("tries", self._ended, max(self._left, self._ended))
        return results

    def _try(self, number: str, value: Mapping[str, Any], told: str, recipe: Recipe, before: Measurement) -> Try:
        started = time.perf_counter()
        try:
            found = self._edit_score(recipe, before)
        except InputError:
            raise
        except ErrataError:
            found = -math.inf  # a number with which nothing can be edited is a result
        return Try(number, value, told, found, time.perf_counter() - started)

    def _edit_score(self, recipe: Recipe, before: Measurement) -> float:
        """The mean of the accuracies, over the method with and without ``+blue``."""
        scores = []
        for tried in (recipe, with_boundary(recipe, self.layers)):
            tried = tried.model_copy(update={"batch_size": self.batch_size})
            result = run_sequence(
                self.model,
                tried,
                self.examination,
                before,
                cache=self.cache,
                report=self.report,
                prepared=self._prepare(recipe),
            )
            result.patch.undo(self.model)
            after = {line["metric"]: line["mean"] for line in result.rows if line["when"] == "after"}
            found = [after[metric] for metric in SCORED if metric in after]
            scores.append(sum(found) / len(found))
        return sum(scores) / len(scores)

    def _prepare(self, recipe: Recipe) -> Prepared:
        """What all tries with the same solver share, over all layers that either schedule writes: factorising C can
        take longer than a try. Only the latest is kept: it is as large as C is.
        """
        depends_on = json.dumps([recipe.solver.model_dump(), recipe.contexts.model_dump()])
        if self._prepared is None or self._prepared[0] != depends_on:
            self._prepared = None  # before the next one is made
            layers = sorted({*self.layers, *recipe.layers})
            prepared = prepare(self.model, recipe, layers, cache=self.cache, report=self.report)
            self._prepared = (depends_on, prepared)
        return self._prepared[1]

    def _identity(self) -> str:
        """Of what a try's score depends on beside its recipe: weights, text, facts, questions, sizes."""
        corpus = self.base.statistics.corpus
        record = [
            self.model.fingerprint(),
            open_corpus(corpus).digest if self.base.needs_statistics else "",
            [fact.to_record() for fact in self.examination.facts],
            [(name, question.to_record()) for name, question in self.examination.untouched],
            self.batch_size,
            self.layers,
            SCORED,
        ]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def _out_of_time(self) -> bool:
        return time.perf_counter() - self._started > self.seconds


def tries_at_most(row: Method) -> int:
    """How many tries a search of a row has, if none of them is in the journal already."""
    return len(LEARNING_RATES) + MIDDLES + TRIES_OF_SOLVER.get(row.solver["kind"], 1) + len(CLAMPS)


def middles(results: Sequence[Try]) -> list[tuple[dict[str, Any], str]]:
    """The learning rates halfway, by ratio, between the best of some and its neighbours: the optimum is flat, and what
    facts are held out decides between neighbours of a coarse list.
    """
    tried = {one.value["target"]["learning_rate"]: one.score for one in results}
    if not tried or max(tried.values()) == -math.inf:
        return []
    best = max(tried, key=lambda rate: tried[rate])
    below = max((rate for rate in tried if rate < best), default=None)
    above = min((rate for rate in tried if rate > best), default=None)
    return [rate_try(round(math.sqrt(best * other), 4)) for other in (below, above) if other is not None]


def _key(recipe: Recipe, about: str) -> str:
    """Everything that a try's score depends on."""
    record = [recipe.model_dump(mode="json"), about]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:24]
