"""What follows from the runs of a factorial: rows, the boundary gain taken apart, claims, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from errata.analysis.contrasts import Cell, Response, Sums, Weights, effects, response_of, value_of
from errata.analysis.factorial_figures import decomposition_figure, interaction_figure, main_effect_figure
from errata.analysis.findings import Claim, Findings, Row, compared, told
from errata.analysis.study import AnalysisSettings, Kept
from errata.analysis.variance import Term, analysis_of_variance
from errata.evaluation.metrics import SUCCESSES, Metric, in_order

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
