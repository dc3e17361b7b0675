"""Study ``spectrum``: singular values of a run's total change ΔW, compared with those of the weight W."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from errata.analysis.common import NO_PAIR, about_run, boundary_pairs, edited, of_method, run_name, runs_of
from errata.analysis.findings import (
    Claim,
    Figure,
    Finding,
    Findings,
    Label,
    Panel,
    Series,
    line_of,
    mean_row,
    with_n,
)
from errata.analysis.study import AnalysisSettings, Study, StudyContext, StudyTask, TaskRecord
from errata.models.weights import Term
from errata.patches.factors import norm, singular_values
from errata.utils.tensors import to_float64

WEIGHTS: Final = "weights"
"""The task that computes the spectra of the unedited weights."""
ALL_LAYERS: Final = "all"
UNEDITED: Final = "W"
_NORMS: Final = ("Frobenius", "spectral")
_TOP: Final = (1, 10, 100)
# Singular values below this share of the largest are rounding errors of float32 factors.
_ROUNDING: Final = float(np.finfo(np.float32).eps)


def stable_rank(values: Sequence[float]) -> float:
    """‖·‖_F² / ‖·‖₂² of singular values that are not all 0, largest first."""
    return math.fsum(value**2 for value in values) / values[0] ** 2


def effective_rank(values: Sequence[float]) -> float:
    """exp(−Σ p log p), p = σ / Σσ (Roy & Vetterli 2007), of singular values that are not all 0."""
    total = math.fsum(values)
    return math.exp(-math.fsum(value / total * math.log(value / total) for value in values if value > 0))


def top_share(values: Sequence[float], count: int) -> float:
    """The share of the squared Frobenius norm in the ``count`` largest directions."""
    return math.fsum(value**2 for value in values[:count]) / math.fsum(value**2 for value in values)


def total_norms(run: TaskRecord, what: str) -> list[float]:
    """Frobenius norm over all layers, one value per batch."""
    return [math.hypot(*norms) for norms in zip(*run[what].values(), strict=True)]


def findings_of(settings: AnalysisSettings, saved: Mapping[str, TaskRecord]) -> Findings:
    """Norms, ratios and ranks by layer, norms by batch, claims, and figures of spectra and growth."""
    weights: Mapping[str, Sequence[float]] = saved[WEIGHTS]["spectra"]
    runs = {name: run for name, run in saved.items() if name != WEIGHTS}
    methods = list(dict.fromkeys(run["method"] for run in runs.values()))
    rows: list[Finding] = []
    undefined: dict[str, str] = {}
    for layer, values in weights.items():
        rows += [
            mean_row(quantity, unit, {"method": UNEDITED, "layer": int(layer)}, [value])
            for quantity, unit, value in _described(values, "W")
        ]
    growth: list[Finding] = []
    for method in methods:
        of_this = of_method(runs, method)
        rows += _rows(of_this, method, weights, undefined)
        growth += _growth(of_this, method)
    claims = [claim for method in methods for claim in (_grows(runs, method), _is_of_lower_rank(runs, method, weights))]
    pairs = boundary_pairs(runs.values())
    for boundary, spread in pairs:
        for claim, difference in _changes_less(runs, boundary, spread):
            claims.append(claim)
            rows.append(difference)
    if not pairs:
        undefined["the claim that boundary updates change less weight than spreading"] = NO_PAIR
    first = [run for run in runs.values() if run["seed"] == settings.seeds[0]]
    figures = [_spectra(first, weights), *(_norm_figure(growth, methods, kind) for kind in _NORMS)]
    return Findings([*rows, *growth], claims, figures, undefined=undefined)


def _described(values: Sequence[float], of: str) -> Iterator[tuple[str, str, float]]:
    """(quantity, unit, value) of a spectrum that is not all 0."""
    yield f"Frobenius norm of {of}", "weight", math.hypot(*values)
    yield f"spectral norm of {of}", "weight", values[0]
    yield f"stable rank of {of}", "1", stable_rank(values)
    yield f"effective rank of {of}", "1", effective_rank(values)
    for count in _TOP:
        yield f"share of the squared Frobenius norm of {of} in its top {count}", "share", top_share(values, count)


def _rows(
    runs: Mapping[int, TaskRecord], method: str, weights: Mapping[str, Sequence[float]], undefined: dict[str, str]
) -> list[Finding]:
    """Quantities of the total change by layer; means over seeds."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for seed, run in runs.items():
        for layer, values in run["spectra"].items():
            if not _is_change(values):
                undefined[f"ranks and ratios of {method}, seed {seed}, layer {layer}"] = "this layer is unchanged"
                continue
            whole = weights[layer]
            numbers = [
                *_described(values, "ΔW"),
                ("‖ΔW‖_F / ‖W‖_F", "1", math.hypot(*values) / math.hypot(*whole)),
                ("σ₁(ΔW) / σ₁(W)", "1", values[0] / whole[0]),
            ]
            for quantity, unit, value in numbers:
                found.setdefault((quantity, unit, int(layer)), []).append(value)
    return [
        mean_row(quantity, unit, {"method": method, "layer": layer}, values)
        for (quantity, unit, layer), values in found.items()
    ]


def _growth(runs: Mapping[int, TaskRecord], method: str) -> list[Finding]:
    """Norms of the change after each number of batches; means over seeds."""
    found: dict[tuple[str, Label, int], list[float]] = {}
    for run in runs.values():
        for kind in _NORMS:
            norms: dict[Label, Sequence[float]] = {int(layer): values for layer, values in run[kind].items()}
            if kind == "Frobenius":
                norms[ALL_LAYERS] = total_norms(run, kind)
            for layer, values in norms.items():
                for batches, value in enumerate(values, 1):
                    found.setdefault((kind, layer, batches), []).append(value)
    return [
        mean_row(
            f"{kind} norm of ΔW after batches", "weight", {"method": method, "layer": layer, "batches": batches}, values
        )
        for (kind, layer, batches), values in found.items()
    ]


def _is_change(values: Sequence[float]) -> bool:
    return bool(values) and values[0] > 0


def _grows(runs: Mapping[str, TaskRecord], method: str) -> Claim:
    """Tested on the increase of the norm by each further batch."""
    norms = [total_norms(run, "Frobenius") for run in of_method(runs, method).values()]
    text = f"The norm of the total change grows with the number of batches ({method})."
    ends = ", ".join(f"{found[0]:.3g} after 1 batch, {found[-1]:.3g} after {len(found)}" for found in norms)
    added = [after - before for found in norms for before, after in pairwise(found)]
    if not added:
        return Claim(text, "undecided", f"Frobenius norm over all layers {ends}: there is no further batch")
    step = mean_row("added by a further batch", "weight", {}, added)
    evidence = (
        f"Frobenius norm over all layers {ends}; a further batch adds {with_n(step)} (mean over {step.n} further "
        f"batches; {sum(value > 0 for value in added)} of them add)"
    )
    return Claim.on(step, text, evidence)


def _changes_less(runs: Mapping[str, TaskRecord], boundary: str, spread: str) -> list[tuple[Claim, Finding]]:
    """The total change, paired over seeds, and the change of each batch, paired over batches."""
    ours, theirs = of_method(runs, boundary), of_method(runs, spread)
    ends = [(total_norms(ours[seed], "Frobenius")[-1], total_norms(theirs[seed], "Frobenius")[-1]) for seed in ours]
    batches = [
        pair for seed in ours for pair in zip(*(total_norms(run[seed], "own") for run in (ours, theirs)), strict=True)
    ]
    where: dict[str, Label] = {"method": boundary, "than": spread, "layer": ALL_LAYERS}
    found = []
    for text, quantity, pairs, over in (
        ("In total, boundary updates ({}) change less weight than spreading does.", "of ΔW", ends, "seeds"),
        ("A batch of boundary updates ({}) writes less than spreading does.", "of a batch's ΔW", batches, "batches"),
    ):
        difference = mean_row(
            f"Frobenius norm {quantity}, boundary updates minus spreading", "weight", where, [a - b for a, b in pairs]
        )
        one, other = (sum(values) / len(values) for values in zip(*pairs, strict=True))
        evidence = (
            f"Frobenius norm over all layers: {boundary} {one:.3g}, {spread} {other:.3g}, difference "
            f"{with_n(difference)} (paired over {difference.n} {over})"
        )
        found.append((Claim.on(difference, text.format(boundary), evidence, claimed="negative"), difference))
    return found


def _is_of_lower_rank(runs: Mapping[str, TaskRecord], method: str, weights: Mapping[str, Sequence[float]]) -> Claim:
    """Tested over the layers of all seeds."""
    text = f"The total change is of lower stable rank than the weight ({method})."
    of_this = of_method(runs, method)
    pairs = {
        (seed, layer): (stable_rank(values), stable_rank(weights[layer]))
        for seed, run in of_this.items()
        for layer, values in run["spectra"].items()
        if _is_change(values)
    }
    if not pairs:
        return Claim(text, "undecided", "nothing was changed")
    difference = mean_row("stable rank", "1", {}, [change - weight for change, weight in pairs.values()])
    each = ", ".join(
        f"layer {layer}{f' (seed {seed})' if len(of_this) > 1 else ''}: {change:.3g} against {weight:.3g}"
        for (seed, layer), (change, weight) in pairs.items()
    )
    facts = max(run["facts"] for run in of_this.values())
    evidence = (
        f"{each}; difference {with_n(difference)} (over {difference.n} layers; a change in factors has at most one "
        f"direction a fact and pass, here {facts} facts)"
    )
    return Claim.on(difference, text, evidence, claimed="negative")


def _spectra(runs: Sequence[TaskRecord], weights: Mapping[str, Sequence[float]]) -> Figure:
    panels = []
    for layer, whole in weights.items():
        lines = {UNEDITED: whole} | {run["method"]: run["spectra"].get(layer, ()) for run in runs}
        series = []
        for label, values in lines.items():
            shown = [value for value in values if value > _ROUNDING * values[0]]
            if shown:
                series.append(Series(label, list(range(1, len(shown) + 1)), shown))
        panels.append(
            Panel(f"Layer {layer}", "rank of the singular value", "σ (weight)", series, log_x=True, log_y=True)
        )
    caption = (
        "Singular values of the whole change ΔW of each method's run with the first seed's facts, and of the unedited "
        "weight W itself, largest first, per layer; those below float32's precision are left out."
    )
    return Figure("spectrum", caption, panels)


def _norm_figure(growth: Sequence[Finding], methods: Sequence[str], kind: str) -> Figure:
    rows = [row for row in growth if row.quantity == f"{kind} norm of ΔW after batches"]
    panels = []
    for layer in sorted({row.where["layer"] for row in rows}, key=lambda label: (label == ALL_LAYERS, label)):
        of_layer = [row for row in rows if row.where["layer"] == layer]
        lines = {method: [row for row in of_layer if row.where["method"] == method] for method in methods}
        series = [line_of(found, method, "batches") for method, found in lines.items() if found]
        title = "All layers" if layer == ALL_LAYERS else f"Layer {layer}"
        panels.append(Panel(title, "batches edited", f"{kind} norm of ΔW (weight)", series))
    return Figure(
        f"spectrum-{kind.lower()}",
        f"The {kind} norm of the change so far over the number of batches, per layer; with 95 % intervals over seeds "
        "where there are several.",
        panels,
    )


def _of_weights(context: StudyContext, layers: Sequence[int]) -> TaskRecord:
    """The singular values of W of each layer, on the device that solves."""
    return {
        "spectra": {
            str(layer): torch.linalg.svdvals(to_float64(context.model.weight(layer))).tolist() for layer in layers
        }
    }


def _of_run(context: StudyContext, seed: int, method: str) -> TaskRecord:
    """Singular values of the total ΔW, its norms after each batch, and the norms of each batch's own change."""
    about = about_run(context, seed, method)
    layers = about["critical"]
    totals: dict[int, list[Float[Tensor, "n"]]] = {layer: [] for layer in layers}
    own: dict[int, list[float]] = {layer: [] for layer in layers}

    def after_batch(written: Sequence[Term], total: Sequence[Term]) -> None:
        for layer in layers:
            batch = [term for term in written if term.layer == layer]
            own[layer].append(norm(batch) if batch else 0.0)
            whole = [term for term in total if term.layer == layer]
            totals[layer].append(singular_values(whole) if whole else torch.zeros(0, dtype=torch.float64))

    with edited(context, seed, method, after_batch):
        pass
    return {
        **about,
        "facts": len(context.materials[seed].facts),
        "spectra": {str(layer): totals[layer][-1].tolist() for layer in layers},
        "Frobenius": {str(layer): [float(values.norm()) for values in totals[layer]] for layer in layers},
        "spectral": {str(layer): [max(values.tolist(), default=0.0) for values in totals[layer]] for layer in layers},
        "own": {str(layer): own[layer] for layer in layers},
    }


def _tasks(context: StudyContext) -> list[StudyTask]:
    runs = runs_of(context)
    layers = sorted({layer for _, method in runs for layer in context.recipes[method].layers})
    return [
        StudyTask(WEIGHTS, partial(_of_weights, context, layers)),
        *(StudyTask(run_name(seed, method), partial(_of_run, context, seed, method)) for seed, method in runs),
    ]


SPECTRUM = Study(
    name="spectrum",
    shows="The singular values of the total change ΔW of a run, per layer, compared with those of the weight W. Shown "
    "are Frobenius and spectral norms and their ratios, the stable rank ‖·‖_F² / ‖·‖₂², the effective rank (the "
    "exponential of the entropy of σ / Σσ), the share of ‖ΔW‖_F² in the 1, 10 and 100 largest directions, "
    "and the growth of the norms with the batches. A Frobenius norm over all layers is the root of the sum "
    "of the layers' squares.",
    units="Norms are in units of the weights; ratios, ranks and shares have no unit.",
    source="ours, in addition to the norms that papers on sequential editing report; effective rank: Roy & "
    "Vetterli 2007, The Effective Rank: A Measure of Effective Dimensionality (EUSIPCO)",
    uses=("count", "batch_size", "methods"),
    tasks=_tasks,
    findings=findings_of,
    defaults={"seeds": (0, 1, 2)},  # claims about whole runs are paired over seeds
)
