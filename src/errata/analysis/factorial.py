"""Study ``factorial``: what of the boundary gain comes from the residuals' source, and what from the choice of layers.

Published comparisons change several things at once (methods.md, section 2). Here every cell is a run on the same
facts, with the same contexts, target settings and statistics, and cells differ in exactly what their names say. The
residual's source and the set of layers cannot be crossed completely (over one layer nothing is spread), so the design
is two complete factorials that share cells: all sources over both ends and over all layers, and all sets of layers
with computed residuals; each crossed with history, ridge and key contexts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, Final, Literal

from errata.analysis.contrasts import (
    Cell,
    Response,
    Sums,
    Term,
    Weights,
    analysis_of_variance,
    check_statistics,
    effects,
    joined,
    response_of,
    value_of,
)
from errata.analysis.findings import Claim, Figure, Findings, Panel, Row, Series, compared, series_of, told
from errata.analysis.runs import temporarily_edited as edited
from errata.analysis.study import AnalysisSettings, Kept, Piece, Study, Workbench
from errata.analysis.titles import TITLES
from errata.benchmark.sequence import Examination, Measurement, examine
from errata.editing.batch import BatchRecord
from errata.editing.contexts import generate_prefixes
from errata.editing.preparation import Prepared
from errata.editing.recipe import Recipe
from errata.editors.locate_then_edit import Editor
from errata.errors import Fault, FaultsError
from errata.results.metrics import ACCURACIES, SUCCESSES, Metric, in_order

# ----------------------------------------------------------------------------------------------------
# The pictures of a factorial: main effects, source against layers, the boundary gain taken apart.


_TITLES = {
    "source": "Source of the residual",
    "layers": "Layers that are written",
    "history": "History of keys",
    "ridge": "Ridge",
    "contexts": "Key contexts",
}
_UNITS = {"ridge": "times the recipe's λ or L2"}


def main_effect_figure(
    rows: Sequence[Row], designs: Mapping[str, Mapping[str, Sequence[str]]], responses: Sequence[str]
) -> Figure:
    """A panel a factor: the source's design shows all but the layers, which have theirs."""
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
        "What each factor does by itself: the mean of the runs with a level minus the mean of all runs of its design "
        "(accuracies as shares), with 95 % intervals over facts. Layers are compared with computed residuals, "
        "everything else over both ends and all layers.",
        panels,
    )


def interaction_figure(rows: Sequence[Row], responses: Sequence[str]) -> Figure:
    """Whether the source does the same at both ends as at all layers: then the lines are parallel."""
    panels = []
    for name, title in ACCURACIES.items():
        found = _rows(rows, "mean", name, "source", joined("source", "layers")) if name in responses else []
        if found:
            split = {layers: [row for row in found if _levels(row)[1] == layers] for layers in ("both", "all")}
            series = [
                Series(
                    {"both": "both ends", "all": "all layers"}[layers],
                    [_levels(row)[0] for row in chosen],
                    [row.mean for row in chosen],
                    [row.low for row in chosen],
                    [row.high for row in chosen],
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


def decomposition_figure(rows: Sequence[Row], responses: Sequence[str]) -> Figure:
    """Bars: the whole gain, and what source and layers bring of it."""
    parts = ("whole", "source", "layers", "interaction")
    series = []
    for name, title in ACCURACIES.items():
        found = {row.where["part"]: row for row in rows if _is(row, "boundary gain", name)}
        if found and name in responses:
            chosen = [found[part] for part in parts]
            series.append(
                Series(
                    title,
                    parts,
                    [row.mean for row in chosen],
                    [row.low for row in chosen],
                    [row.high for row in chosen],
                )
            )
    panel = Panel(
        "From (spread, all layers) to (computed, both ends)", "part of the change", "change (share)", series, "bars"
    )
    return Figure(
        "factorial-decomposition",
        "The change from the spread residual over all layers to computed residuals at both ends, and what the source "
        "and the layers bring of it (they add up to the whole; the interaction is beside them), with 95 % intervals "
        "over facts.",
        [panel] if series else [],
    )


def _is(row: Row, quantity: str, response: str) -> bool:
    return row.quantity == quantity and row.where.get("response") == response


def _rows(rows: Sequence[Row], quantity: str, response: str, design: str, factor: str) -> list[Row]:
    wanted = {"design": design, "factor": factor}
    return [row for row in rows if _is(row, quantity, response) and wanted.items() <= row.where.items()]


def _levels(row: Row) -> list[str]:
    return str(row.where["level"]).split(joined("", ""))


# ----------------------------------------------------------------------------------------------------
# What follows from the runs of a factorial: rows, the boundary gain taken apart, claims, and pictures.


PERPLEXITY = "log_perplexity_ratio"
_FACTORS = ("source", "layers", "history", "ridge", "contexts")
_EFFICACY, _SPECIFICITY = str(Metric.EFFICACY_ACCURACY), str(Metric.SPECIFICITY_ACCURACY)
_GENERALISATION, _UNTOUCHED = str(Metric.GENERALISATION_ACCURACY), str(Metric.UNTOUCHED_ACCURACY)


def findings_of(settings: AnalysisSettings, kept: Mapping[str, Kept]) -> Findings:
    """Of each design the cells, the analysis of variance, effects and contrasts; what the boundary gain is made of."""
    before = {piece["seed"]: piece for piece in kept.values() if "designs" in piece}
    runs = [piece for piece in kept.values() if "cell" in piece]
    first = next(iter(before.values()))
    cells: list[Cell] = list({_key(run["cell"]): run["cell"] for run in runs}.values())
    undefined = _undefined(first)
    rows: list[Row] = []
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
                undefined[f"variance of {name}, design {design!r}"] = "all runs gave the same"
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


def _key(cell: Cell) -> tuple[tuple[str, str], ...]:
    return tuple(cell.items())


def _variance_rows(table: Sequence[Term], where: Mapping[str, str], unit: str, runs: int) -> list[Row]:
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
                rows.append(Row(quantity, its_unit, {**where, "factor": term.name}, value, None, None, runs))
    return rows


def parts_of_gain(response: Response) -> dict[str, Weights]:
    """The way from (spread, all layers) to (computed, both ends), averaged over everything else.

    ``source`` and ``layers`` are means of what the change does on either side of the other one; they add up to the
    whole. ``interaction`` is by how much the source does more at both ends than at all layers, which is also by how
    much the choice of layers does more with computed residuals than with spread ones.
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


def _names(piece: Kept) -> list[tuple[str, str]]:
    """The responses and their units."""
    metrics = in_order(set(piece["sums"]))
    found = [(metric, "share") for metric in metrics]
    if {str(metric) for metric in SUCCESSES} <= set(metrics):
        found.append((str(Metric.SCORE), "share"))
    if piece["perplexity"] is not None:
        found.append((PERPLEXITY, "log ratio"))
    return found


def _sums(name: str, run: Kept, before: Kept) -> list[Sums]:
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
    """All seeds together; what several seeds have (a text, a subject) is one cluster."""
    found: list[dict[str, tuple[float, float]]] = [{} for _ in seeds[0]]
    for parts in seeds:
        for whole, part in zip(found, parts, strict=True):
            for cluster, (value, count) in part.items():
                earlier = whole.get(cluster, (0.0, 0.0))
                whole[cluster] = (earlier[0] + value, earlier[1] + count)
    return list(found)


def _undefined(piece: Kept) -> dict[str, str]:
    found = {
        f"{source} × {layers} layer only": f"over one layer {reason}: it is the residual computed there"
        for source, reason in (
            ("spread", "nothing is spread, the share is 1"),
            ("sqrt-spread", "nothing is spread, the share is 1"),
            ("replay", "there is no later one to carry a target to"),
        )
        for layers in ("first", "last")
    }
    if len(piece["layers"]) == 2:
        found["all layers"] = "there are two critical layers: they are the two ends"
    if piece["designs"]["source"]["contexts"] == ["bare"]:
        found["keys averaged over contexts"] = "the recipe's keys are those of bare prompts"
    return found


def _claims(responses: Mapping[str, Response]) -> list[Claim]:
    efficacy = responses[_EFFICACY]
    computed, spread, root, replay = (
        efficacy.mean_of(source=source, layers="both") for source in ("computed", "spread", "sqrt-spread", "replay")
    )
    said: list[tuple[str, Weights, Literal["positive", "negative"]]] = [
        ("The computed residual recalls more than the spread one, at both ends.", computed - spread, "positive"),
        ("The √-spread residual recalls more than the spread one, at both ends.", root - spread, "positive"),
        ("The √-spread residual recalls less than the computed one, at both ends.", root - computed, "negative"),
        ("Replay from the first end recalls less than a search at each end.", replay - computed, "negative"),
    ]
    claims = [_claim(efficacy, text, weights, claimed) for text, weights, claimed in said]
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
            parts = ", ".join(f"{part} {told(row)}" for part, row in shown.items())
            evidence = f"{parts}; source minus layers {told(more)} ({name}, paired over facts)"
            text = (
                "From (spread, all layers) to (computed, both ends), the source of the residual brings more of the "
                f"gain in {what} than the choice of layers."
            )
            claims.append(Claim(text, compared(more, claimed="positive"), evidence))
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


def _claim(
    response: Response, text: str, weights: Weights, claimed: Literal["positive", "negative"] = "positive"
) -> Claim:
    row = response.row("difference", {}, weights)
    evidence = f"difference of {response.name} {told(row)} (means of cells, paired over facts)"
    return Claim(text, compared(row, claimed=claimed), evidence)


# ----------------------------------------------------------------------------------------------------


# The residual's source -> the schedule that gives it to all layers of a recipe.
SOURCES: Final[Mapping[str, str]] = {
    "spread": "even",
    "sqrt-spread": "sqrt",
    "computed": "own",
    "replay": "replay",
}
# Solver -> its ridge.
RIDGES: Final[Mapping[str, str]] = {"least_squares": "ridge", "null_space": "l2"}


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


def cells_of(designs: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Cell]:
    """All cells of the designs, each once; those that differ in their history alone stand together, with it first."""
    found: list[Cell] = []
    for factors in designs.values():
        for levels in product(*(list(levels) for levels in factors.values())):
            cell = dict(zip(factors, levels, strict=True))
            if cell not in found:
                found.append(cell)
    names = list(next(iter(designs.values())))
    order = [name for name in names if name != "history"]
    known = {name: list(dict.fromkeys(cell[name] for cell in found)) for name in order}
    return sorted(found, key=lambda cell: (*(known[name].index(cell[name]) for name in order), cell["history"] != "on"))


def recipe_of(recipe: Recipe, settings: AnalysisSettings, cell: Cell) -> Recipe:
    """The recipe of a cell: what its levels do not name is as it was.

    Raises:
        FaultsError: if the recipe does not hold with them.
    """
    ridge = RIDGES[recipe.solver.kind]
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


def name_of(cell: Cell, seed: int) -> str:
    return (
        f"seed-{seed}-{cell['source']}-{cell['layers']}-ridge-{cell['ridge']}-{cell['contexts']}-"
        f"history-{cell['history']}"
    )


@dataclass(slots=True)
class _Shared:
    """What cells have in common, computed once a process.

    Attributes:
        prefixes: seed -> contexts, generated on the unedited model.
        first: the last cell with history, and what its first batch did.
    """

    bench: Workbench
    prefixes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    first: tuple[str, BatchRecord] | None = None

    def prepared(self, cell: Cell, seed: int) -> Prepared:
        """For all critical layers, whatever the cell's sets: neither that nor history nor the seed is in a solver's
        state before the first batch, which is by far the most of what is prepared."""
        bench = self.bench
        if seed not in self.prefixes:
            self.prefixes[seed] = generate_prefixes(bench.model, bench.recipe_for(seed).contexts)
        plain = {**cell, "source": "computed", "layers": "all" if len(bench.layers) > 2 else "both", "history": "on"}
        recipe = recipe_of(bench.recipe, bench.settings, {**plain, "contexts": "bare"})
        return replace(bench.prepared(recipe), prefixes=self.prefixes[seed])

    def measure(self, cell: Cell, seed: int) -> Kept:
        """A run and what the model says behind it."""
        bench = self.bench
        material = bench.materials[seed]
        facts = material.facts.facts
        recipe = recipe_of(bench.recipe_for(seed), bench.settings, cell)
        editor = Editor(bench.model, recipe, cache=bench.cache, report=bench.report, prepared=self.prepared(cell, seed))
        # Before the first batch there is no history, so a run without one begins exactly as the run with it did.
        with_history = name_of({**cell, "history": "on"}, seed)
        known = []
        if cell["history"] == "off" and self.first is not None and self.first[0] == with_history:
            known = [replace(self.first[1], keys={})]
        with edited(editor, facts, known) as made:
            found = examine(bench.model, Examination(facts, material.untouched, material.prose), report=bench.report)
        self.first = (with_history, made[0]) if cell["history"] == "on" else None
        return {"cell": dict(cell), "seed": str(seed), **_kept(found)}

    def measure_before(self, seed: int) -> Kept:
        bench = self.bench
        material = bench.materials[seed]
        asked = Examination(material.facts.facts, material.untouched, material.prose)
        found = examine(bench.model, asked, report=bench.report)
        designs = designs_of(bench.recipe, bench.settings)
        return {"designs": designs, "layers": list(bench.layers), "seed": str(seed), **_kept(found)}


def _kept(found: Measurement) -> dict[str, Any]:
    """What each fact (subject, text) gave: metric -> cluster -> [sum, number of prompts]."""
    sums: dict[str, dict[str, list[float]]] = {}
    for record in found.records:
        entry = sums.setdefault(str(record.metric), {}).setdefault(record.fact, [0.0, 0])
        entry[0] += record.value
        entry[1] += 1
    return {"sums": sums, "perplexity": None if found.perplexity is None else asdict(found.perplexity)}


def _pieces(bench: Workbench) -> list[Piece]:
    shared = _Shared(bench)
    cells = cells_of(designs_of(bench.recipe, bench.settings))
    found = []
    for seed in bench.settings.seeds:
        found.append(Piece(f"seed-{seed}-before", partial(shared.measure_before, seed)))
        found += [Piece(name_of(cell, seed), partial(shared.measure, cell, seed)) for cell in cells]
    return found


def check_factorial(recipe: Recipe, settings: AnalysisSettings) -> None:
    """Raises MissingExtraError without statsmodels, FaultsError for everything that the design cannot be made with."""
    check_statistics()
    faults = []
    if settings.count <= settings.batch_size:
        what = f"{settings.count} facts are one batch of {settings.batch_size}, and history is of earlier batches"
        faults.append(Fault("count", what, "Give more facts, or smaller batches"))
    if len(set(settings.seeds)) < len(settings.seeds):
        faults.append(Fault("seeds", "a seed stands there twice", "Name each once"))
    ridges = [f"{ridge:g}" for ridge in settings.ridges]
    if not ridges or len(set(ridges)) < len(ridges) or any(not ridge > 0 for ridge in settings.ridges):
        what = f"expected different positive factors, got {list(settings.ridges)}"
        faults.append(Fault("ridges", what, "Give for instance 1 and 4"))
    elif recipe.solver.kind not in RIDGES:
        what = f"the solver {recipe.solver.kind!r} has not both a ridge and a history"
        faults.append(Fault("recipe", what, f"Give a recipe with {' or '.join(RIDGES)}, such as that of memit"))
    elif len(recipe.layers) < 2:
        what = "it has one critical layer: nothing is spread, and there are no two ends"
        faults.append(Fault("recipe", what, "Give a recipe with several layers"))
    else:
        reasons: dict[str, None] = {}
        for cell in cells_of(designs_of(recipe, settings)):
            try:
                recipe_of(recipe, settings, cell)
            except FaultsError as error:
                reasons |= dict.fromkeys(fault.what for fault in error.faults)
        faults += [Fault("recipe", reason, "Give a recipe that all cells can be made of") for reason in reasons]
    if faults:
        raise FaultsError("the factorial", faults)


FACTORIAL = Study(
    name="factorial",
    title=TITLES["factorial"],
    shows="Runs that differ in one thing at a time: where residuals come from (spread, √-spread, computed at each "
    "layer, carried forward by replay), which layers are written (first, last, both ends, all), history, ridge and key "
    "contexts. An analysis of variance tells how much of the variation between runs goes with each factor and each "
    "pair of them; effects with intervals tell how large they are; and the gain from (spread, all layers) to "
    "(computed, both ends) is taken apart into source and layers.",
    units="Shares of 1 (accuracies and successes), their harmonic mean (score), natural logarithm of the perplexity "
    "over the unedited model's. Sums of squares in the square of that; shares of variance (η²) of 1. Intervals of "
    "effects are by bootstrap over facts, the same facts in all cells, given these runs; F and p are of cells × seeds "
    "against what main effects, two-way interactions and the seed leave.",
    source="ours: in published tables history, ridge and number of layers change together with the residual",
    uses=("count", "batch_size", "ridges"),
    pieces=_pieces,
    findings=findings_of,
    check=check_factorial,
    defaults={"count": 40, "batch_size": 10, "seeds": (0, 1)},
)
