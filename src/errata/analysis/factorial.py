"""Study ``factorial``: what of the boundary gain comes from the residuals' source, and what from the choice of layers.

Published comparisons change several things at once (methods.md, section 2). Here every cell is a run on the same
facts, with the same contexts, target settings and statistics, and cells differ in exactly what their names say. The
residual's source and the set of layers cannot be crossed completely (over one layer nothing is spread), so the design
is two complete factorials that share cells: all sources over both ends and over all layers, and all sets of layers
with computed residuals; each crossed with history, ridge and key contexts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import combinations, product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from errata.analysis.common import temporarily_edited
from errata.analysis.findings import (
    RESAMPLES,
    Claim,
    Figure,
    Finding,
    Findings,
    Label,
    Panel,
    Sign,
    series_of,
    with_n,
)
from errata.analysis.study import AnalysisSettings, Study, StudyContext, StudyTask, TaskRecord
from errata.benchmark.sequence import EvaluationSet, measure
from errata.editing.batch import BatchRecord
from errata.editing.contexts import generate_prefixes
from errata.editing.preparation import Prepared
from errata.editing.recipe import Recipe
from errata.editors.locate_then_edit import Editor
from errata.errors import Fault, FaultsError
from errata.results.metrics import ACCURACIES, SUCCESSES, Metric, in_order
from errata.results.records import interval_of, resampled_sums
from errata.utils.optional import require

RESIDUAL = "residual"
# Sums of squares below this share of the values' squares are rounding errors.
_NOTHING = 1e-20


@dataclass(frozen=True, slots=True)
class AnovaTerm:
    """A line of the table.

    Attributes:
        name: of a factor, of two joined by `` × ``, or ``residual``.
        squares: the sum of squares, in the square of the response's unit.
        share: η², of the total sum of squares.
        degrees: of freedom.
        f: mean square over the residual's; None for the residual, and without residual variance.
        p: probability of such an F if the term had no effect and errors were independent and normal.
    """

    name: str
    squares: float
    share: float
    degrees: int
    f: float | None
    p: float | None


def check_statistics() -> None:
    """Raises MissingExtraError unless statsmodels is installed."""
    require("the analysis of variance", "analysis", "statsmodels")


def joined(one: str, other: str) -> str:
    """The name of an interaction."""
    return f"{one} × {other}"


def analysis_of_variance(
    observations: Sequence[Mapping[str, str]], values: Sequence[float], *, block: str
) -> list[AnovaTerm]:
    """Sums of squares of all factors and of all pairs of them, and of the block's main effect.

    In a balanced design a term's sum of squares does not depend on the order of the terms: types 1 to 3 are the same.

    Args:
        observations: factor -> level, the block included; every combination of levels equally often. A factor with a
            single level is not a term.
        values: one for each observation.

    Returns:
        The terms, the residual last; empty if the values do not vary.

    Raises:
        MissingExtraError: without statsmodels.
        ValueError: if the design is not balanced.
    """
    check_statistics()
    _check_balanced(observations)
    mean = math.fsum(values) / len(values)
    total = math.fsum((value - mean) ** 2 for value in values)
    varied = [name for name in observations[0] if len({entry[name] for entry in observations}) > 1]
    if not varied or total <= _NOTHING * max(1.0, math.fsum(value**2 for value in values)):
        return []
    factors = [name for name in varied if name != block]
    names = {f"C({name})": name for name in varied}
    names |= {f"C({one}):C({other})": joined(one, other) for one, other in combinations(factors, 2)}
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    table = pd.DataFrame([dict(entry) for entry in observations]).assign(value=list(values))
    with np.errstate(divide="ignore", invalid="ignore"):  # F is undefined without residual variance
        found = anova_lm(ols(f"value ~ {' + '.join(names)}", table).fit(), typ=1)
    left, free = float(found.loc["Residual", "sum_sq"]), round(float(found.loc["Residual", "df"]))
    comparable = free > 0 and left > 1e-12 * total
    terms = []
    for key, name in names.items():
        squares = float(found.loc[key, "sum_sq"])
        f, p = (float(found.loc[key, column]) for column in ("F", "PR(>F)"))
        degrees = round(float(found.loc[key, "df"]))
        terms.append(AnovaTerm(name, squares, squares / total, degrees, *((f, p) if comparable else (None, None))))
    return [*terms, AnovaTerm(RESIDUAL, left, left / total, free, None, None)]


def _check_balanced(observations: Sequence[Mapping[str, str]]) -> None:
    counts: dict[tuple[str, ...], int] = {}
    for entry in observations:
        key = tuple(entry.values())
        counts[key] = counts.get(key, 0) + 1
    combinations_of_levels = math.prod(len({entry[name] for entry in observations}) for name in observations[0])
    if len(counts) != combinations_of_levels or len(set(counts.values())) != 1:
        raise ValueError(f"{len(counts)} of {combinations_of_levels} combinations of levels, or in unequal numbers")


Levels = Mapping[str, str]
"""factor -> level."""
Weights = NDArray[np.float64]
"""(cells,) a contrast: the sum of the cells' responses, each times its weight."""
Sums = Mapping[str, tuple[float, float]]
"""cluster (a fact, a subject, a text) -> the sum of its values and the number of them."""


@dataclass(frozen=True, slots=True)
class Response:
    """The response of each cell of a design, and its bootstrap samples.

    Attributes:
        cells: in the order of the numbers.
        unit: of the response.
        found: (cells,).
        resampled: (samples, cells) the same with resampled facts, the same facts in all cells.
        clusters: number of facts (subjects, texts).
    """

    name: str
    unit: str
    cells: Sequence[Levels]
    found: NDArray[np.float64]
    resampled: NDArray[np.float64]
    clusters: int

    def row(self, quantity: str, where: Mapping[str, Label], weights: Weights) -> Finding:
        """A contrast with its interval."""
        low, high = interval_of(self.resampled @ weights, self.clusters)
        labels = {"response": self.name, **where}
        return Finding(quantity, self.unit, labels, float(self.found @ weights), low, high, self.clusters)

    def mean_of(self, **levels: str) -> Weights:
        """The mean of the cells that have these levels."""
        chosen = np.array([all(cell[name] == level for name, level in levels.items()) for cell in self.cells], float)
        if not chosen.any():
            raise ValueError(f"there are no cells with {levels}")
        weights: Weights = chosen / chosen.sum()
        return weights

    def levels(self, factor: str) -> list[str]:
        return list(dict.fromkeys(cell[factor] for cell in self.cells))

    def of(self, cells: Sequence[Levels]) -> Response:
        """The same for some of the cells."""
        places = [self.cells.index(cell) for cell in cells]
        return Response(self.name, self.unit, cells, self.found[places], self.resampled[:, places], self.clusters)


def response_of(
    name: str, unit: str, cells: Sequence[Levels], sums: Sequence[Sequence[Sums]], *, seed: int = 0
) -> Response:
    """The response of each cell: a mean over prompts, or the harmonic mean of several means.

    Args:
        sums: for each cell, for each of the means, the sums of the clusters; the same clusters in all cells.

    Raises:
        ValueError: if cells were measured on different prompts.
    """
    clusters = list(dict.fromkeys(cluster for part in sums[0] for cluster in part))
    places = {cluster: place for place, cluster in enumerate(clusters)}
    means = len(sums[0])
    values, counts = np.zeros((len(cells), means, len(clusters))), np.zeros((means, len(clusters)))
    for index, parts in enumerate(sums):
        for mean, part in enumerate(parts):
            if index == 0:
                counts[mean, [places[cluster] for cluster in part]] = [count for _, count in part.values()]
            elif {cluster: count for cluster, (_, count) in part.items()} != {
                cluster: count for cluster, (_, count) in sums[0][mean].items()
            }:
                raise ValueError(f"the cells have different prompts for {name!r}")
            values[index, mean, [places[cluster] for cluster in part]] = [value for value, _ in part.values()]
    stacked = np.concatenate([values.reshape(len(cells) * means, -1), counts])
    resampled = resampled_sums(stacked, seed=seed, resamples=RESAMPLES)
    return Response(
        name,
        unit,
        cells,
        _combined(stacked.sum(1)[None], len(cells))[0],
        _combined(resampled, len(cells)),
        len(clusters),
    )


def _combined(totals: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """(draws, cells · means + means) sums and counts -> (draws, cells): the harmonic mean of the cell's means."""
    means = totals.shape[1] // (cells + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = totals[:, : cells * means].reshape(-1, cells, means) / totals[:, None, cells * means :]
        harmonic: NDArray[np.float64] = means / (1 / found).sum(2)  # a mean of 0 makes it 0
    return found[:, :, 0] if means == 1 else harmonic


def effects(response: Response, factors: Sequence[str], where: Mapping[str, Label]) -> list[Finding]:
    """Means of levels, main effects (a level's mean minus the grand mean), differences between levels, and two-way
    interactions (the mean of two levels together, minus each one's, plus the grand mean)."""
    grand = response.mean_of()
    rows = []
    for factor in factors:
        levels = response.levels(factor)
        mean = {level: response.mean_of(**{factor: level}) for level in levels}
        for level in levels:
            labels = {**where, "factor": factor, "level": level}
            rows.append(response.row("mean", labels, mean[level]))
            rows.append(response.row("main effect", labels, mean[level] - grand))
        for one, other in combinations(levels, 2):
            labels = {**where, "factor": factor, "level": f"{other} minus {one}"}
            rows.append(response.row("difference", labels, mean[other] - mean[one]))
    for first, second in combinations(factors, 2):
        for one, other in product(response.levels(first), response.levels(second)):
            together = response.mean_of(**{first: one, second: other})
            labels = {**where, "factor": joined(first, second), "level": joined(one, other)}
            apart = response.mean_of(**{first: one}) + response.mean_of(**{second: other})
            rows.append(response.row("mean", labels, together))
            rows.append(response.row("interaction", labels, together - apart + grand))
    return rows


def value_of(parts: Sequence[Sums]) -> float:
    """One cell's response, as ``response_of`` computes it."""
    totals = [(sum(value for value, _ in part.values()), sum(count for _, count in part.values())) for part in parts]
    flat = np.array([[value for value, _ in totals] + [count for _, count in totals]], float)
    return float(_combined(flat, 1)[0, 0])


_TITLES = {
    "source": "Source of the residual",
    "layers": "Layers that are written",
    "history": "History of keys",
    "ridge": "Ridge",
    "contexts": "Key contexts",
}
_UNITS = {"ridge": "times the recipe's λ or L2"}


def main_effect_figure(
    rows: Sequence[Finding], designs: Mapping[str, Mapping[str, Sequence[str]]], responses: Sequence[str]
) -> Figure:
    """One panel per factor, from the source's design; layers from their own."""
    panels = []
    for factor, title in _TITLES.items():
        design = "layers" if factor == "layers" else "source"
        if len(designs[design][factor]) > 1:
            series = [
                series_of(_rows(rows, "main effect", name, design, factor), ACCURACIES[name], "level")
                for name in ACCURACIES
                if name in responses
            ]
            label = "difference from the design's mean (share)"
            panels.append(Panel(title, _UNITS.get(factor, factor), label, series, "bars"))
    return Figure(
        "factorial-main-effects",
        "Main effects: the mean of the runs with a level minus the mean of all runs of its design "
        "(accuracies as shares), with 95 % intervals over facts. Layers are compared with computed residuals, "
        "everything else over both ends and all layers.",
        panels,
    )


def interaction_figure(rows: Sequence[Finding], responses: Sequence[str]) -> Figure:
    """Source against layers; parallel lines mean no interaction."""
    panels = []
    for name, title in ACCURACIES.items():
        found = _rows(rows, "mean", name, "source", joined("source", "layers")) if name in responses else []
        if found:
            split = {layers: [row for row in found if _levels(row)[1] == layers] for layers in ("both", "all")}
            series = [
                replace(
                    series_of(chosen, {"both": "both ends", "all": "all layers"}[layers], "level"),
                    x=[_levels(row)[0] for row in chosen],
                )
                for layers, chosen in split.items()
            ]
            panels.append(Panel(title.capitalize(), "source of the residual", f"{title} (share)", series))
    return Figure(
        "factorial-interaction",
        "Source of the residual against the layers that are written: means of the runs over history, ridge and key "
        "contexts, with 95 % intervals over facts. Where lines are parallel, the two do not depend on each other.",
        panels,
    )


def decomposition_figure(rows: Sequence[Finding], responses: Sequence[str]) -> Figure:
    """Bars: the whole gain, and the parts due to source and layers."""
    parts = ("whole", "source", "layers", "interaction")
    series = []
    for name, title in ACCURACIES.items():
        found = {row.where["part"]: row for row in rows if _is(row, "boundary gain", name)}
        if found and name in responses:
            series.append(series_of([found[part] for part in parts], title, "part"))
    panel = Panel(
        "From (spread, all layers) to (computed, both ends)", "part of the change", "change (share)", series, "bars"
    )
    return Figure(
        "factorial-decomposition",
        "The change from the spread residual over all layers to computed residuals at both ends, and the parts due to "
        "the source and to the layers (they add up to the whole; the interaction is separate), with 95 % intervals "
        "over facts.",
        [panel] if series else [],
    )


def _is(row: Finding, quantity: str, response: str) -> bool:
    return row.quantity == quantity and row.where.get("response") == response


def _rows(rows: Sequence[Finding], quantity: str, response: str, design: str, factor: str) -> list[Finding]:
    wanted = {"design": design, "factor": factor}
    return [row for row in rows if _is(row, quantity, response) and wanted.items() <= row.where.items()]


def _levels(row: Finding) -> list[str]:
    return str(row.where["level"]).split(joined("", ""))


PERPLEXITY = "log_perplexity_ratio"
_FACTORS = ("source", "layers", "history", "ridge", "contexts")
_EFFICACY, _SPECIFICITY = str(Metric.EFFICACY_ACCURACY), str(Metric.SPECIFICITY_ACCURACY)
_GENERALISATION, _UNTOUCHED = str(Metric.GENERALISATION_ACCURACY), str(Metric.UNTOUCHED_ACCURACY)


def findings_of(settings: AnalysisSettings, saved: Mapping[str, TaskRecord]) -> Findings:
    """For each design: cells, analysis of variance, effects and contrasts; and the boundary gain, decomposed."""
    before = {record["seed"]: record for record in saved.values() if "designs" in record}
    runs = [record for record in saved.values() if "cell" in record]
    first = next(iter(before.values()))
    cells: list[Levels] = list({_key(run["cell"]): run["cell"] for run in runs}.values())
    undefined = _undefined(first)
    rows: list[Finding] = []
    responses: dict[str, Response] = {}
    for name, unit in _names(first):
        sums = {(_key(run["cell"]), run["seed"]): _sums(name, run, before[run["seed"]]) for run in runs}
        pooled = [_pooled([sums[_key(cell), seed] for seed in before]) for cell in cells]
        responses[name] = response = response_of(name, unit, cells, pooled)
        for design, levels in first["designs"].items():
            chosen = [cell for cell in cells if all(cell[factor] in levels[factor] for factor in levels)]
            factors = [factor for factor in _FACTORS if len(levels[factor]) > 1]
            observed = [(cell, seed) for cell in chosen for seed in before]
            table = analysis_of_variance(
                [{factor: cell[factor] for factor in factors} | {"seed": seed} for cell, seed in observed],
                [value_of(sums[_key(cell), seed]) for cell, seed in observed],
                block="seed",
            )
            if not table:
                undefined[f"variance of {name}, design {design!r}"] = "all runs gave the same value"
            rows += _variance_rows(table, {"response": name, "design": design}, unit, len(observed))
            rows += effects(response.of(chosen), factors, {"design": design})
        for part, weights in parts_of_gain(response).items():
            rows.append(response.row("boundary gain", {"part": part}, weights))
    figures = [
        main_effect_figure(rows, first["designs"], list(responses)),
        interaction_figure(rows, list(responses)),
        decomposition_figure(rows, list(responses)),
    ]
    return Findings(rows, _claims(responses), [figure for figure in figures if figure.panels], undefined=undefined)


def _key(cell: Levels) -> tuple[tuple[str, str], ...]:
    return tuple(cell.items())


def _variance_rows(table: Sequence[AnovaTerm], where: Mapping[str, str], unit: str, runs: int) -> list[Finding]:
    """Numbers without intervals; ``n`` runs."""
    rows = []
    for term in table:
        numbers: list[tuple[str, str, float | None]] = [
            ("sum of squares", f"({unit})²", term.squares),
            ("share of variance", "1", term.share),
            ("degrees of freedom", "1", float(term.degrees)),
            ("F", "1", term.f),
            ("p", "probability", term.p),
        ]
        for quantity, its_unit, value in numbers:
            if value is not None:
                rows.append(Finding(quantity, its_unit, {**where, "factor": term.name}, value, None, None, runs))
    return rows


def parts_of_gain(response: Response) -> dict[str, Weights]:
    """The change from (spread, all layers) to (computed, both ends), averaged over the other factors.

    ``source`` and ``layers`` are the effects of one change averaged over both levels of the other; they add up to the
    whole. ``interaction`` is how much larger the source's effect is at both ends than at all layers (equally, how much
    larger the effect of the layers is with computed residuals than with spread ones).
    """
    if "all" not in response.levels("layers"):
        return {}
    old, new = (response.mean_of(source="spread", layers=name) for name in ("all", "both"))
    far, near = (response.mean_of(source="computed", layers=name) for name in ("all", "both"))
    return {
        "whole": near - old,
        "source": ((far - old) + (near - new)) / 2,
        "layers": ((new - old) + (near - far)) / 2,
        "source, at all layers": far - old,
        "source, at both ends": near - new,
        "layers, spread residual": new - old,
        "layers, computed residual": near - far,
        "interaction": (near - new) - (far - old),
    }


def _names(record: TaskRecord) -> list[tuple[str, str]]:
    """The responses and their units."""
    metrics = in_order(set(record["sums"]))
    found = [(metric, "share") for metric in metrics]
    if {str(metric) for metric in SUCCESSES} <= set(metrics):
        found.append((str(Metric.SCORE), "share"))
    if record["perplexity"] is not None:
        found.append((PERPLEXITY, "log ratio"))
    return found


def _sums(name: str, run: TaskRecord, before: TaskRecord) -> list[Sums]:
    if name == PERPLEXITY:
        earlier, now = before["perplexity"], run["perplexity"]
        texts = zip(earlier["log_likelihoods"], now["log_likelihoods"], now["counts"], strict=True)
        return [{f"text {place}": (a - b, float(count)) for place, (a, b, count) in enumerate(texts)}]
    metrics = [str(metric) for metric in SUCCESSES] if name == Metric.SCORE else [name]
    return [
        {fact: (float(value), float(count)) for fact, (value, count) in run["sums"][metric].items()}
        for metric in metrics
    ]


def _pooled(seeds: Sequence[Sequence[Sums]]) -> list[Sums]:
    """All seeds together; a text or subject that occurs in several seeds is one cluster."""
    found: list[dict[str, tuple[float, float]]] = [{} for _ in seeds[0]]
    for parts in seeds:
        for whole, part in zip(found, parts, strict=True):
            for cluster, (value, count) in part.items():
                earlier = whole.get(cluster, (0.0, 0.0))
                whole[cluster] = (earlier[0] + value, earlier[1] + count)
    return list(found)


def _undefined(record: TaskRecord) -> dict[str, str]:
    found = {
        f"{source} × {layers} layer only": f"over one layer {reason}: it is the residual computed there"
        for source, reason in (
            ("spread", "nothing is spread, the share is 1"),
            ("sqrt-spread", "nothing is spread, the share is 1"),
            ("replay", "there is no later one to carry a target to"),
        )
        for layers in ("first", "last")
    }
    if len(record["layers"]) == 2:
        found["all layers"] = "there are two critical layers: they are the two ends"
    if record["designs"]["source"]["contexts"] == ["bare"]:
        found["keys averaged over contexts"] = "the recipe's keys are those of bare prompts"
    return found


def _claims(responses: Mapping[str, Response]) -> list[Claim]:
    efficacy = responses[_EFFICACY]
    computed, spread, root, replay = (
        efficacy.mean_of(source=source, layers="both") for source in ("computed", "spread", "sqrt-spread", "replay")
    )
    tested: list[tuple[str, Weights, Sign]] = [
        ("The computed residual recalls more than the spread one, at both ends.", computed - spread, "positive"),
        ("The √-spread residual recalls more than the spread one, at both ends.", root - spread, "positive"),
        ("The √-spread residual recalls less than the computed one, at both ends.", root - computed, "negative"),
        ("Replay from the first end recalls less than a search at each end.", replay - computed, "negative"),
    ]
    claims = [_claim(efficacy, text, weights, claimed) for text, weights, claimed in tested]
    sets = {name: efficacy.mean_of(source="computed", layers=name) for name in efficacy.levels("layers")}
    for single in ("first", "last"):
        text = f"Of the two ends the {single} layer alone is not enough: both recall more, all with computed residuals."
        claims.append(_claim(efficacy, text, sets["both"] - sets[single]))
    if "all" in sets:
        text = "Computed residuals at the two ends recall more than at all layers: the layers between do harm."
        claims.append(_claim(efficacy, text, sets["both"] - sets["all"]))
        claims += _claims_of_gain(responses)
    for name, what in ((_EFFICACY, "recalls more"), (_SPECIFICITY, "spares neighbours"), (_UNTOUCHED, "spares others")):
        if name in responses:
            response = responses[name]
            history = response.mean_of(history="on") - response.mean_of(history="off")
            claims.append(_claim(response, f"History helps: the run with it {what}.", history))
    return claims


def _claims_of_gain(responses: Mapping[str, Response]) -> list[Claim]:
    claims = []
    for name, what in ((_EFFICACY, "efficacy"), (_GENERALISATION, "generalisation")):
        if name in responses:
            response = responses[name]
            gain = parts_of_gain(response)
            shown = {part: response.row("boundary gain", {}, gain[part]) for part in ("whole", "source", "layers")}
            more = response.row("source minus layers", {}, gain["source"] - gain["layers"])
            parts = ", ".join(f"{part} {with_n(row)}" for part, row in shown.items())
            evidence = f"{parts}; source minus layers {with_n(more)} ({name}, paired over facts)"
            text = (
                "From (spread, all layers) to (computed, both ends), the source of the residual brings more of the "
                f"gain in {what} than the choice of layers."
            )
            claims.append(Claim.on(more, text, evidence))
            text = f"Writing the two ends instead of all layers raises {what}, at the same residuals."
            claims.append(_claim(response, text, gain["layers"]))
    for name, what in ((_SPECIFICITY, "neighbours' answers"), (_UNTOUCHED, "answers about other subjects")):
        if name in responses:
            loss = parts_of_gain(responses[name])
            claims.append(_claim(responses[name], f"The boundary gain costs {what}.", loss["whole"], "negative"))
            claims.append(
                _claim(
                    responses[name],
                    f"At the same residuals, writing the two ends instead of all layers spares {what}.",
                    loss["layers"],
                )
            )
    return claims


def _claim(response: Response, text: str, weights: Weights, claimed: Sign = "positive") -> Claim:
    row = response.row("difference", {}, weights)
    evidence = f"difference of {response.name} {with_n(row)} (means of cells, paired over facts)"
    return Claim.on(row, text, evidence, claimed=claimed)


# The residual's source -> the schedule that gives it to all layers of a recipe.
SOURCES: Final[Mapping[str, str]] = {
    "spread": "even",
    "sqrt-spread": "sqrt",
    "computed": "own",
    "replay": "replay",
}


def layer_sets(layers: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The sets of critical layers that are compared; of two layers, all are the two ends."""
    first, last = layers[0], layers[-1]
    sets = {"first": (first,), "last": (last,), "both": (first, last), "all": tuple(layers)}
    if len(layers) == 2:
        del sets["all"]
    return sets


def designs_of(recipe: Recipe, settings: AnalysisSettings) -> dict[str, dict[str, list[str]]]:
    """The two complete factorials: name -> factor -> levels."""
    sets = layer_sets(recipe.layers)
    contexts = recipe.contexts
    averaged = contexts.keys != "bare" and contexts.openers and contexts.per_opener
    common = {
        "history": ["off", "on"],
        "ridge": [f"{ridge:g}" for ridge in settings.ridges],
        "contexts": ["averaged", "bare"] if averaged else ["bare"],
    }
    return {
        "source": {"source": list(SOURCES), "layers": [name for name in sets if len(sets[name]) > 1], **common},
        "layers": {"source": ["computed"], "layers": list(sets), **common},
    }


def cells_of(designs: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Levels]:
    """All cells of the designs, each once; of two that differ only in history the one with history is first."""
    found: list[Levels] = []
    for factors in designs.values():
        for levels in product(*(list(levels) for levels in factors.values())):
            cell = dict(zip(factors, levels, strict=True))
            if cell not in found:
                found.append(cell)
    names = list(next(iter(designs.values())))
    order = [name for name in names if name != "history"]
    known = {name: list(dict.fromkeys(cell[name] for cell in found)) for name in order}
    return sorted(found, key=lambda cell: (*(known[name].index(cell[name]) for name in order), cell["history"] != "on"))


def recipe_of(recipe: Recipe, settings: AnalysisSettings, cell: Levels) -> Recipe:
    """The recipe with the levels of a cell.

    Raises:
        FaultsError: if the result is not a valid recipe.
    """
    ridge = recipe.solver.ridge_field
    solver = recipe.solver.model_dump()
    contexts = recipe.contexts.model_dump()
    return recipe.with_choices(
        {
            "schedule": SOURCES[cell["source"]],
            "layers": layer_sets(recipe.layers)[cell["layers"]],
            "solver": {**solver, ridge: solver[ridge] * float(cell["ridge"]), "history": cell["history"] == "on"},
            "contexts": {**contexts, "keys": "bare"} if cell["contexts"] == "bare" else contexts,
            "batch_size": settings.batch_size,
        }
    )


def name_of(cell: Levels, seed: int) -> str:
    return (
        f"seed-{seed}-{cell['source']}-{cell['layers']}-ridge-{cell['ridge']}-{cell['contexts']}-"
        f"history-{cell['history']}"
    )


@dataclass(slots=True)
class _Shared:
    """Values shared by cells, computed once per process.

    Attributes:
        prefixes: seed -> contexts, generated on the unedited model.
        first: the last cell with history, and what its first batch did.
    """

    context: StudyContext
    prefixes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    first: tuple[str, BatchRecord] | None = None

    def prepared(self, cell: Levels, seed: int) -> Prepared:
        """For all critical layers: before the first batch a solver's state, the expensive part, depends neither on the
        cell's layers nor on its history nor on the seed."""
        context = self.context
        if seed not in self.prefixes:
            self.prefixes[seed] = generate_prefixes(context.model, context.recipe_for(seed).contexts)
        plain = {**cell, "source": "computed", "layers": "all" if len(context.layers) > 2 else "both", "history": "on"}
        recipe = recipe_of(context.recipe, context.settings, {**plain, "contexts": "bare"})
        return replace(context.prepared(recipe), prefixes=self.prefixes[seed])

    def measure(self, cell: Levels, seed: int) -> TaskRecord:
        """A run, and the measurements after it."""
        context = self.context
        facts = context.materials[seed].facts.facts
        recipe = recipe_of(context.recipe_for(seed), context.settings, cell)
        editor = Editor(
            context.model, recipe, cache=context.cache, report=context.report, prepared=self.prepared(cell, seed)
        )
        # Before the first batch there is no history, so a run without one begins exactly as the run with it did.
        with_history = name_of({**cell, "history": "on"}, seed)
        known = []
        if cell["history"] == "off" and self.first is not None and self.first[0] == with_history:
            known = [replace(self.first[1], keys={})]
        with temporarily_edited(editor, facts, known) as made:
            found = self._measure_present_state(seed)
        self.first = (with_history, made[0]) if cell["history"] == "on" else None
        return {"cell": dict(cell), "seed": str(seed), **found}

    def measure_before(self, seed: int) -> TaskRecord:
        designs = designs_of(self.context.recipe, self.context.settings)
        found = self._measure_present_state(seed)
        return {"designs": designs, "layers": list(self.context.layers), "seed": str(seed), **found}

    def _measure_present_state(self, seed: int) -> dict[str, Any]:
        """metric -> cluster (fact, subject) -> [sum, number of prompts]; and the perplexity."""
        data = self.context.materials[seed]
        evaluation_set = EvaluationSet(data.facts.facts, data.untouched, data.prose)
        found = measure(self.context.model, evaluation_set, report=self.context.report)
        sums: dict[str, dict[str, list[float]]] = {}
        for record in found.records:
            entry = sums.setdefault(str(record.metric), {}).setdefault(record.fact, [0.0, 0])
            entry[0] += record.value
            entry[1] += 1
        return {"sums": sums, "perplexity": None if found.perplexity is None else asdict(found.perplexity)}


def _tasks(context: StudyContext) -> list[StudyTask]:
    shared = _Shared(context)
    cells = cells_of(designs_of(context.recipe, context.settings))
    found = []
    for seed in context.settings.seeds:
        found.append(StudyTask(f"seed-{seed}-before", partial(shared.measure_before, seed)))
        found += [StudyTask(name_of(cell, seed), partial(shared.measure, cell, seed)) for cell in cells]
    return found


def check_factorial(recipe: Recipe, settings: AnalysisSettings) -> None:
    """Raises MissingExtraError without statsmodels, FaultsError with everything that rules out the design."""
    check_statistics()
    faults = []
    if settings.count <= settings.batch_size:
        what = f"{settings.count} facts fit in one batch of {settings.batch_size}; history needs several batches"
        faults.append(Fault("count", what, "Use more facts or smaller batches", code="STUDY_TOO_FEW_FACTS"))
    ridges = [f"{ridge:g}" for ridge in settings.ridges]
    if not ridges or len(set(ridges)) < len(ridges) or any(not ridge > 0 for ridge in settings.ridges):
        what = f"expected different positive factors, got {list(settings.ridges)}"
        faults.append(Fault("ridges", what, "Use, for example, 1 and 4", code="STUDY_SETTING_INVALID"))
    elif not recipe.solver.ridge_field:
        what = f"the solver {recipe.solver.kind!r} lacks a ridge or a history"
        remedy = "Use another recipe, such as that of memit"
        faults.append(Fault("recipe", what, remedy, code="STUDY_SOLVER_UNSUITABLE"))
    elif len(recipe.layers) < 2:
        what = "it has one critical layer, expected at least two"
        faults.append(Fault("recipe", what, "Use a recipe with several layers", code="STUDY_NEEDS_LAYERS"))
    else:
        reasons: dict[str, None] = {}
        for cell in cells_of(designs_of(recipe, settings)):
            try:
                recipe_of(recipe, settings, cell)
            except FaultsError as error:
                reasons |= dict.fromkeys(fault.what for fault in error.faults)
        remedy = "Use a recipe that is valid with the levels of all cells"
        faults += [Fault("recipe", reason, remedy, code="STUDY_RECIPE_UNSUITABLE") for reason in reasons]
    if faults:
        raise FaultsError("the factorial", faults)


FACTORIAL = Study(
    name="factorial",
    shows="Runs that differ in one factor at a time: the source of the residuals (spread, √-spread, computed at "
    "each layer, forward replay), the layers written (first, last, both ends, all), history, ridge and key "
    "contexts. An analysis of variance shows how much of the variation between runs is due to each factor "
    "and each pair of factors; effects with intervals show their size; and the gain from (spread, all "
    "layers) to (computed, both ends) is decomposed into source and layers.",
    units="Accuracies and successes are shares of 1; score is their harmonic mean; perplexity is the natural "
    "logarithm of its ratio to the unedited model's. Sums of squares are in squared units; shares of "
    "variance (η²) of 1. Intervals of effects are by bootstrap over facts, the same facts in all cells, "
    "given these runs. F and p compare cells × seeds with the residual left by main effects, two-way "
    "interactions and the seed.",
    source="ours: in published tables history, ridge and number of layers change together with the residual",
    uses=("count", "batch_size", "ridges"),
    tasks=_tasks,
    findings=findings_of,
    check=check_factorial,
    defaults={"count": 40, "batch_size": 10, "seeds": (0, 1)},
)
