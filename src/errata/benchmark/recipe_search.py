"""Hyperparameter search for a model without a published recipe, on held-out facts, in scale-free units.

Parameters are searched one after another, each with the best values of the earlier ones and the starting values of the
later ones. A try edits the held-out facts in batches and scores the mean of the accuracies after the whole run, over
the method with and without ``+blue``, so that no schedule is favoured. The learning rate is not chosen by the targets'
loss, which ignores side effects. Tries are appended to a journal, from which an interrupted search resumes.

Absolute values do not transfer between models. Parameters are scale-free, or in a unit measured on the model
(methods.md, section 3):

- learning rate: ‖h‖ / √d, the size of a state's entries at the target's layer;
- clamp: ‖h‖;
- λ and ε: the number of W's columns, since the published λ grow with the width of the MLP;
- threshold: the share of C's directions that may be written to, and L2 in units of an ordinary key's energy in these
  directions. With ρ of them a typical key takes 1 / (1 + ρ) of a write, as with λ = ρ · columns in least squares. C's
  mean eigenvalue is not a usable unit: attention sinks can hold most of the trace.
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

import yaml

from errata.benchmark.sequence import EvaluationResult, EvaluationSet, measure, run_sequence
from errata.editing.methods import BOUNDARY_SUFFIX, Method, method_named
from errata.editing.preparation import Prepared, prepare
from errata.editing.recipe import Recipe
from errata.editing.solvers import SOLVERS
from errata.editing.solvers.base import Candidate, Solver
from errata.errors import ErrataError, InputError
from errata.models.language_model import LanguageModel
from errata.results.metrics import CONTROLS, Metric
from errata.statistics.store import source_digest
from errata.utils.locks import open_in_place
from errata.utils.progress import Report, silent
from errata.utils.yaml import Dumper

LEARNING_RATES = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # of ‖h‖ / √d
CLAMPS = (0.75, 1.5, 4.0)
STEPS = 25
# The starting value, which is also the default without a search; see also ``Solver.start``.
STARTING_RATE = 0.1


def rate_candidate(rate: float) -> Candidate:
    """A learning rate, as a change of a recipe."""
    return Candidate({"target": {"learning_rate": rate, "relative_rate": True}}, f"{rate:g} · ‖h‖/√d")


def clamp_candidate(clamp: float) -> Candidate:
    """A clamp, as a change of a recipe."""
    return Candidate({"target": {"clamp": clamp}}, f"{clamp:g} · ‖h‖")


def solver_candidates(solver: Solver, columns: int) -> list[Candidate]:
    """The values to try for a recipe's solver, as changes of the recipe."""
    return [
        replace(one, values={"solver": dict(one.values)} if one.values else {}) for one in solver.candidates(columns)
    ]


def starting_recipe(
    model: str, row: Method, layers: Sequence[int], columns: int, statistics: Mapping[str, Any], *, batch_size: int
) -> Recipe:
    """The method's choices with the starting value of each parameter.

    Args:
        columns: of W.
    """
    choices = row.choices()
    rounds = {"rounds": {**row.rounds, "least": 0.0, "most": 1e9}} if row.rounds else {}
    return Recipe.model_validate(
        {
            **choices,
            **rounds,
            "model": model,
            "method": row.name,
            "layers": tuple(layers[-1:] if row.schedule == "single" else layers),
            "target": {
                **choices["target"],
                "learning_rate": STARTING_RATE,
                "relative_rate": True,
                "steps": STEPS,
                "clamp": CLAMPS[0],
            },
            "solver": {**choices["solver"], **_solver_start(row, columns).values},
            "statistics": dict(statistics),
            "batch_size": batch_size,
        }
    )


def _solver_start(row: Method, columns: int) -> Candidate:
    return SOLVERS[row.solver["kind"]].start(row.solver, columns)


def laid_over(recipe: Recipe, change: Mapping[str, Any]) -> Recipe:
    """The recipe with fields of its sections changed."""
    data = recipe.model_dump()
    return Recipe.model_validate(data | {section: {**data[section], **value} for section, value in change.items()})


def with_boundary(recipe: Recipe, layers: Sequence[int]) -> Recipe:
    """The recipe of the same method with ``+blue``."""
    row = method_named(recipe.method.removesuffix(BOUNDARY_SUFFIX))
    data = recipe.model_dump() | {"schedule": "boundary", "layers": tuple(layers)}
    return Recipe.model_validate(
        data | {section: {**data[section], **value} for section, value in row.with_boundary.items()}
    )


@dataclass(frozen=True, slots=True)
class Try:
    """One evaluated setting.

    Attributes:
        parameter: ``learning_rate``, ``solver`` or ``clamp``.
        value: as a change of a recipe.
        description: of the value.
        score: larger is better; minus infinity if the edit failed.
        seconds: wall time.
    """

    parameter: str
    value: Mapping[str, Any]
    description: str
    score: float
    seconds: float


def read_journal(path: Path) -> dict[str, Try]:
    """The tries of a journal; an incomplete last line is ignored.

    Raises:
        InputError: if another line cannot be read.
    """
    if not path.is_file():
        return {}
    # An incomplete line may end inside a character.
    lines = path.read_bytes().decode(errors="replace").split("\n")
    found: dict[str, Try] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            entry = json.loads(line)
            score = -math.inf if entry["score"] is None else float(entry["score"])
            found[entry["key"]] = Try(entry["number"], entry["value"], entry["told"], score, entry["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # no line feed: interrupted while writing
                break
            raise InputError(
                f"{path}:{number} is not a trial of a recipe search: {error}",
                remedy="Remove the line, or the whole file",
                code="SEARCH_JOURNAL_DAMAGED",
            ) from error
    return found


def append_to_journal(path: Path, key: str, tried: Try) -> None:
    """Append a try; an incomplete last line is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {
        "key": key,
        "number": tried.parameter,
        "value": tried.value,
        "told": tried.description,
        "score": None if math.isinf(tried.score) else tried.score,
        "seconds": tried.seconds,
    }
    text = json.dumps(entry, ensure_ascii=False) + "\n"
    with open_in_place(path, "ab+") as file:
        file.seek(0)
        complete, line_end, _ = file.read().rpartition(b"\n")
        file.truncate(len(complete + line_end))
        file.write(text.encode())


SCORED = (Metric.EFFICACY_ACCURACY, Metric.GENERALISATION_ACCURACY, *CONTROLS)
# Smaller differences in mean accuracy are ties, won by the first value: solver and clamp start with what
# changes the model least. Of the learning rates the best is taken: a small one only gets less far in as many steps.
ENOUGH = {"learning_rate": 0.0, "solver": 0.005, "clamp": 0.005}
BEATEN_BY = 0.005  # improvement needed to replace a default
MIDDLES = 2  # learning rates tried after the listed ones: one on each side of the best


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search.

    Attributes:
        recipe: for the requested method.
        reasons: field -> how its value was chosen.
        tries: in order.
        complete: whether there was time for all of them.
    """

    recipe: Recipe
    reasons: Mapping[str, str]
    tries: Sequence[Try]
    complete: bool


@dataclass(slots=True)
class RecipeSearch:
    """One search.

    Args:
        model: is edited and restored.
        base: everything that is not searched: statistics, contexts, layers.
        layers: all critical layers, for the boundary schedule of methods that write one.
        evaluation_set: held-out facts and questions, different from those of later reports.
        journal: file of tries.
        seconds: no further try starts after this time.
        batch_size: of the tries.
    """

    model: LanguageModel
    base: Recipe
    layers: tuple[int, ...]
    evaluation_set: EvaluationSet
    journal: Path
    seconds: float = math.inf
    batch_size: int = 25
    cache: Path | None = None
    report: Report = silent
    _tries: list[Try] = field(default_factory=list)
    _done: dict[str, Try] = field(default_factory=dict)
    _prepared: tuple[str, Prepared] | None = None
    _complete: bool = True
    _planned: int = 0
    _ended: int = 0
    _started: float = 0.0
    _identity: str = ""

    def run(self) -> SearchResult:
        """Search the learning rate, then the solver's parameters, then the clamp.

        Raises:
            InputError: if the journal cannot be read.
            ErrataError: if no trial finished in time, or all failed.
        """
        self._started = time.perf_counter()
        self._done = read_journal(self.journal)
        self._identity = self._digest()
        before = measure(self.model, self.evaluation_set, report=self.report, what="evaluating before")
        recipe, reasons = self.base, {}
        columns = self.model.key_width(recipe.layers[0])
        stages = (
            ("learning_rate", [rate_candidate(rate) for rate in LEARNING_RATES]),
            ("solver", solver_candidates(recipe.solver, columns)),
            ("clamp", [clamp_candidate(clamp) for clamp in CLAMPS]),
        )
        self._planned = sum(len(candidates) for _, candidates in stages) + MIDDLES
        for parameter, candidates in stages:
            results = self._stage(parameter, candidates, recipe, before)
            if parameter == "learning_rate":
                results += self._stage(parameter, middles(results), recipe, before)
            self._tries += results
            most = max((tried.score for tried in results), default=-math.inf)
            if most > -math.inf:
                default = next((tried for tried in results if laid_over(recipe, tried.value) == recipe), None)
                tried_values = ", ".join(tried.description for tried in results)
                if default is not None and default.score >= most - BEATEN_BY:
                    best, rule = default, f"the default, which nothing beats by more than {BEATEN_BY:g}"
                else:
                    best = next(tried for tried in results if tried.score >= most - ENOUGH[parameter])
                    enough = ENOUGH[parameter]
                    rule = f"the first within {enough:g} of the best" if enough else "the best"
                recipe = laid_over(recipe, best.value)
                reasons[parameter] = f"{best.description}: {rule} of {tried_values}"
            else:
                reasons[parameter] = "not searched: no time was left" if not results else "every trial failed"
        if not self._tries:
            raise ErrataError(
                "no trial finished in time",
                remedy="Run the same command with more --minutes",
                code="SEARCH_OUT_OF_TIME",
            )
        if all(tried.score == -math.inf for tried in self._tries):
            raise ErrataError(
                f"editing failed with all {len(self._tries)} settings",
                remedy="Use other layers, or a larger text for the key statistics",
                code="SEARCH_FAILED",
            )
        return SearchResult(recipe, reasons, tuple(self._tries), self._complete)

    def _stage(
        self, parameter: str, candidates: Sequence[Candidate], recipe: Recipe, before: EvaluationResult
    ) -> list[Try]:
        """Try the values of one parameter, while there is time."""
        results: list[Try] = []
        # The default first: everything else is compared with it, even if time is short.
        for candidate in sorted(candidates, key=lambda one: laid_over(recipe, one.values) != recipe):
            if self._out_of_time():
                self._complete = False
                break
            changed = laid_over(recipe, candidate.values)
            key = _key(changed, self._identity)
            tried = self._done.get(key) or self._try(parameter, candidate, changed, before)
            if key not in self._done:
                append_to_journal(self.journal, key, tried)
                self._done[key] = tried
            # The same setting may have been tried for another parameter.
            results.append(
                replace(tried, parameter=parameter, value=candidate.values, description=candidate.description)
            )
            self._ended += 1
            self.report("tries", self._ended, max(self._planned, self._ended))
        return results

    def _try(self, parameter: str, candidate: Candidate, recipe: Recipe, before: EvaluationResult) -> Try:
        started = time.perf_counter()
        try:
            found = self._edit_score(recipe, before)
        except InputError:
            raise
        except ErrataError:
            found = -math.inf  # a value with which editing fails is a result
        return Try(parameter, candidate.values, candidate.description, found, time.perf_counter() - started)

    def _edit_score(self, recipe: Recipe, before: EvaluationResult) -> float:
        """The mean of the accuracies, over the method with and without ``+blue``."""
        scores = []
        for tried in (recipe, with_boundary(recipe, self.layers)):
            tried = tried.model_copy(update={"batch_size": self.batch_size})
            result = run_sequence(
                self.model,
                tried,
                self.evaluation_set,
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
        """Factorisations, which can take longer than a try, shared by tries with the same solver; only the latest is
        cached, since it is as large as C.
        """
        depends_on = json.dumps([recipe.solver.model_dump(), recipe.contexts.model_dump()])
        if self._prepared is None or self._prepared[0] != depends_on:
            self._prepared = None  # before the next one is made
            layers = sorted({*self.layers, *recipe.layers})
            prepared = prepare(self.model, recipe, layers, cache=self.cache, report=self.report)
            self._prepared = (depends_on, prepared)
        return self._prepared[1]

    def _digest(self) -> str:
        """Digest of everything but the recipe that a score depends on: weights, corpus, facts, questions, sizes."""
        record = [
            self.model.fingerprint(),
            source_digest(self.base.statistics) if self.base.needs_statistics else "",
            [fact.to_record() for fact in self.evaluation_set.facts],
            [(name, question.to_record()) for name, question in self.evaluation_set.untouched],
            self.batch_size,
            self.layers,
            SCORED,
        ]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def _out_of_time(self) -> bool:
        return time.perf_counter() - self._started > self.seconds


def tries_at_most(row: Method) -> int:
    """Number of tries of a search with an empty journal."""
    return len(LEARNING_RATES) + MIDDLES + len(SOLVERS[row.solver["kind"]].candidates(1)) + len(CLAMPS)


def middles(results: Sequence[Try]) -> list[Candidate]:
    """The geometric means of the best learning rate and its neighbours, since the list is coarse."""
    tried = {one.value["target"]["learning_rate"]: one.score for one in results}
    if not tried or max(tried.values()) == -math.inf:
        return []
    best = max(tried, key=lambda rate: tried[rate])
    below = max((rate for rate in tried if rate < best), default=None)
    above = min((rate for rate in tried if rate > best), default=None)
    return [rate_candidate(round(math.sqrt(best * other), 4)) for other in (below, above) if other is not None]


def _key(recipe: Recipe, identity: str) -> str:
    """Digest of everything that a score depends on."""
    record = [recipe.model_dump(mode="json"), identity]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:24]


SEARCHED = "errata recipe auto, on held-out facts of this model"
UNSEARCHED = "errata recipe auto --minutes 0; scale-free defaults, tried on no fact of this model"


def unsearched_recipe(
    model: str, row: Method, layers: Sequence[int], columns: int, statistics: Mapping[str, Any]
) -> SearchResult:
    """The starting recipe as a result: values that suit the embedded model, and λ as published for large ones.

    Args:
        columns: of W.
    """
    recipe = starting_recipe(model, row, layers, columns, statistics, batch_size=100)
    reasons = {
        "learning_rate": f"{STARTING_RATE:g} · ‖h‖/√d, not searched",
        "clamp": f"{CLAMPS[0]:g} · ‖h‖, as published for MEMIT; not searched",
    }
    if description := _solver_start(row, columns).description:
        reasons["solver"] = f"{description}, not searched"
    return SearchResult(recipe, reasons, (), complete=False)


def unsearched_reasons(recipe: Recipe) -> dict[str, str]:
    """field -> reason for its value, for parameters that no search varies."""
    reasons = {name: f"{reason}; not searched" for name, reason in recipe.solver.unsearched.items()}
    if recipe.rounds is not None:
        reasons["rounds"] = f"{recipe.rounds.count}, each for all facts; not searched"
    return reasons


def layers_by_depth(layers: int) -> tuple[int, ...]:
    """Critical layers at the same relative depth as Llama 3's: from an eighth to a quarter of the blocks."""
    return tuple(range(layers // 8, max(layers // 8, layers // 4) + 1))


def automatic_file(model: str, layers: Sequence[int], why: str, found: Mapping[str, SearchResult]) -> str:
    """A recipe file with an entry for each method and its ``+blue``, and comments on how values were chosen.

    Args:
        layers: the critical layers.
        why: how they were chosen.
        found: method -> result of its search.
    """
    entries: dict[str, Any] = {}
    for name, end in found.items():
        data = end.recipe.model_dump(mode="json")
        entry: dict[str, Any] = {section: data[section] for section in ("target", "solver", "rounds") if data[section]}
        if contexts := end.recipe.model_dump(mode="json", exclude_defaults=True).get("contexts"):
            entry["contexts"] = contexts
        blue: dict[str, Any] = {name: dict(value) for name, value in method_named(name).with_boundary.items()}
        if list(end.recipe.layers) != list(layers):
            entry["layers"], blue["layers"] = list(end.recipe.layers), list(layers)
        entries[name], entries[f"{name}{BOUNDARY_SUFFIX}"] = entry, blue
    common = next(iter(found.values())).recipe.model_dump(mode="json", exclude_defaults=True)
    lines = [f"layers: {why}"]
    for name, end in found.items():
        reasons = dict(end.reasons) | unsearched_reasons(end.recipe)
        lines += [f"{name}, {parameter.replace('_', ' ')}: {reason}" for parameter, reason in reasons.items()]
        if end.tries and not end.complete:
            lines.append(f"{name}: the time limit was reached before all values were tried")
    body: dict[str, Any] = {
        "model": model,
        "source": f"automatic: {SEARCHED if any(end.tries for end in found.values()) else UNSEARCHED}",
        "layers": list(layers),
        **{key: common[key] for key in ("statistics", "batch_size") if key in common},
        "methods": entries,
    }
    head = "".join(f"# {line}\n" for line in ["Found by errata recipe auto, not published by anyone.", *lines])
    return head + yaml.dump(
        body, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000
    )
