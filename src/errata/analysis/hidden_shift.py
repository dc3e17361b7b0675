"""Study ``hidden-shift``: how far a run moves the hidden states of edited and of unrelated prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from errata.analysis.common import (
    NO_PAIR,
    about_run,
    boundary_pairs,
    check_plane,
    edited,
    facts_recalled,
    fit_plane,
    of_method,
    run_name,
    runs_of,
)
from errata.analysis.findings import (
    RESAMPLES,
    Claim,
    Figure,
    Finding,
    Findings,
    Label,
    Panel,
    PlanePoint,
    Series,
    line_of,
    mean_row,
    with_n,
)
from errata.analysis.study import AnalysisSettings, Study, StudyContext, StudyTask, TaskRecord
from errata.benchmark.data import BenchmarkData
from errata.editing.methods import BOUNDARY_PAPER
from errata.editing.recipe import Recipe
from errata.errors import InputError, NonFiniteError
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import encode
from errata.results.records import interval_of, resampled_sums
from errata.utils.tensors import to_float64

# Squared norms below this share of the uncentred ones are rounding errors of float64.
_NOTHING = 1e-12


def relative_distances(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """‖h′ − h‖ / ‖h‖ of each row."""
    return (after - before).norm(dim=1) / before.norm(dim=1)


def cosines(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """The cosine between h and h′ of each row."""
    return (before * after).sum(1) / (before.norm(dim=1) * after.norm(dim=1))


def linear_cka(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n e"], times: Float[Tensor, "draws n"] | None = None
) -> Float[Tensor, "draws"]:
    """Linear centred kernel alignment ‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F), of centred columns; NaN where all states of
    a set are equal.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited" (ICML), section 3.

    Args:
        times: weight of each row, for each of several bootstrap samples; by default 1.
    """
    x, y = to_float64(first), to_float64(second)
    x, y = x - x.mean(0), y - y.mean(0)
    counts = torch.ones(1, len(x), dtype=torch.float64) if times is None else times
    one, other = x @ x.T, y @ y.T
    both, _ = _alignment(one, other, counts)
    (own, own_whole), (others, others_whole) = _alignment(one, one, counts), _alignment(other, other, counts)
    constant = (own <= _NOTHING * own_whole) | (others <= _NOTHING * others_whole)
    return torch.where(constant, torch.nan, both / (own.clamp_min(0) * others.clamp_min(0)).sqrt())


def _alignment(
    one: Float[Tensor, "n n"], other: Float[Tensor, "n n"], times: Float[Tensor, "draws n"]
) -> tuple[Float[Tensor, "draws"], Float[Tensor, "draws"]]:
    """⟨HKH, HLH⟩ of two Gram matrices with row weights w, and the uncentred ⟨K, L⟩.

    With N = Σ wᵢ: wᵀ(K∘L)w − (2/N) Σ wᵢ (Kw)ᵢ (Lw)ᵢ + (wᵀKw)(wᵀLw)/N². No sample's own matrix is formed.
    """
    total = times.sum(1)
    one_sums, other_sums = times @ one, times @ other
    whole = ((times @ (one * other)) * times).sum(1)
    crossed = (times * one_sums * other_sums).sum(1)
    corners = (one_sums * times).sum(1) * (other_sums * times).sum(1)
    return whole - 2 * crossed / total + corners / total**2, whole


def cka_interval(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n e"], clusters: Sequence[str], *, seed: int = 0
) -> tuple[float, float | None, float | None] | None:
    """``linear_cka`` with its 95 % bootstrap interval over clusters; None where it is undefined.

    A sample with replacement holds duplicate prompts, which raises its CKA: with fewer prompts than dimensions by far
    more than samples differ. The samples are therefore centred at the CKA of all prompts.

    Args:
        clusters: subject of each row; rows of a cluster are sampled together.

    Returns:
        (value, low, high), within 0 and 1; no interval for a single cluster.
    """
    whole = float(linear_cka(first, second))
    if not np.isfinite(whole):
        return None
    whole = min(whole, 1.0)  # rounding may leave it just above
    names = list(dict.fromkeys(clusters))
    if len(names) < 2:
        return whole, None, None
    times = resampled_sums(np.eye(len(names)), seed=seed, resamples=RESAMPLES)  # (draws, clusters)
    place = {name: index for index, name in enumerate(names)}
    resampled = linear_cka(first, second, torch.from_numpy(times)[:, [place[name] for name in clusters]]).numpy()
    low, high = interval_of(whole + resampled - np.nanmean(resampled), len(names))
    return whole, None if low is None else max(low, 0.0), None if high is None else min(high, 1.0)


UNTOUCHED: Final = "untouched"
KINDS: Final = (UNTOUCHED, "neighbours", "edited")
IN_PICTURE: Final = (UNTOUCHED, "edited")
_TITLES: Final = {UNTOUCHED: "Untouched prompts", "neighbours": "Prompts about neighbours", "edited": "Edited prompts"}
DISTANCE, COSINE, CKA = "relative distance", "cosine", "CKA"
_AXES: Final = {DISTANCE: "‖h′ − h‖ / ‖h‖ (1)", COSINE: "cosine between h and h′ (1)", CKA: "linear CKA (1)"}


def _by_cluster(runs: Mapping[int, TaskRecord], kind: str, quantity: str, layer: int) -> dict[str, list[float]]:
    """Cluster -> the values of its prompts, in all seeds."""
    found: dict[str, list[float]] = {}
    for run in runs.values():
        if kind in run["kinds"]:
            values = run["kinds"][kind][quantity][layer]
            for cluster, value in zip(run["kinds"][kind]["clusters"], values, strict=True):
                found.setdefault(cluster, []).append(value)
    return found


def _means(values: Mapping[str, Sequence[float]]) -> list[float]:
    return [sum(found) / len(found) for found in values.values()]


def findings_of(settings: AnalysisSettings, saved: Mapping[str, TaskRecord]) -> Findings:
    """Rows by layer, claims on untouched prompts, curves and planes."""
    methods = list(dict.fromkeys(run["method"] for run in saved.values()))
    rows: list[Finding] = []
    undefined: dict[str, str] = {}
    for method in methods:
        runs = of_method(saved, method)
        rows.append(_recalled(runs, method))
        for kind in KINDS:
            blocks = next(iter(runs.values()))["blocks"]
            if not _by_cluster(runs, kind, DISTANCE, 0):
                undefined[_TITLES[kind].lower()] = "there are none of them"
                continue
            for quantity in (DISTANCE, COSINE):
                for layer in range(blocks):
                    where: dict[str, Label] = {"method": method, "prompts": kind, "layer": layer}
                    rows.append(mean_row(quantity, "1", where, _means(_by_cluster(runs, kind, quantity, layer))))
            for seed, run in runs.items():
                rows += _alignments(run, kind, {"method": method, "prompts": kind, "seed": seed}, undefined)
    claims: list[Claim] = []
    pairs = boundary_pairs(saved.values())
    for boundary, spread in pairs:
        for claim, difference in _claims(saved, boundary, spread):
            claims.append(claim)
            rows.append(difference)
    if not pairs:
        undefined["claims"] = NO_PAIR
    first = [run for run in saved.values() if run["seed"] == settings.seeds[0]]
    for run in first:
        for layer, picture in run["pictures"].items():
            if picture is None:
                undefined[f"picture at layer {layer}"] = "it needs three untouched prompts whose states differ"
    return Findings(rows, claims, [*_curves(rows, methods), *_pictures(first)], _points(first), undefined)


def _recalled(runs: Mapping[int, TaskRecord], method: str) -> Finding:
    recalled = [value for run in runs.values() for value in run["said"]]
    return mean_row("facts recalled after the run", "share", {"method": method}, recalled)


def _alignments(run: TaskRecord, kind: str, where: Mapping[str, Label], undefined: dict[str, str]) -> list[Finding]:
    rows = []
    found = run["kinds"].get(kind)
    for layer, interval in enumerate(found[CKA] if found else ()):
        if interval is None:
            place = ", ".join(map(str, where.values()))
            undefined[f"CKA of {place}, layer {layer}"] = "no two of the states differ"
        else:
            prompts = len(set(found["clusters"]))
            mean, low, high = interval
            rows.append(Finding(CKA, "1", {**where, "layer": layer}, mean, low, high, prompts))
    return rows


def _claims(saved: Mapping[str, TaskRecord], boundary: str, spread: str) -> list[tuple[Claim, Finding]]:
    """The claim that boundary updates move untouched prompts less, at three layers, with the paired differences."""
    ours, theirs = of_method(saved, boundary), of_method(saved, spread)
    run = next(iter(theirs.values()))
    places: dict[int, str] = {}
    for layer, place in (
        (run["critical"][0], "the first critical layer"),
        (run["critical"][-1], "the last critical layer"),
        (run["blocks"] - 1, "the last block"),
    ):
        places.setdefault(layer, place)
    found = []
    for layer, place in places.items():
        one, other = (_by_cluster(runs, UNTOUCHED, DISTANCE, layer) for runs in (ours, theirs))
        if not one:
            continue
        where: dict[str, Label] = {"method": boundary, "than": spread, "prompts": UNTOUCHED, "layer": layer}
        differences = [a - b for a, b in zip(_means(one), _means(other), strict=True)]
        difference = mean_row(f"{DISTANCE}, boundary updates minus spreading", "1", where, differences)
        evidence = [f"difference of ‖h′ − h‖ / ‖h‖ {with_n(difference)} (paired over what the prompts are about)"]
        for method, runs, values in ((boundary, ours, one), (spread, theirs, other)):
            untouched = mean_row(DISTANCE, "1", {}, _means(values))
            moved = mean_row(DISTANCE, "1", {}, _means(_by_cluster(runs, "edited", DISTANCE, layer)))
            evidence.append(
                f"{method}: {with_n(untouched)}, the edited prompts {with_n(moved)}, "
                f"facts recalled {with_n(_recalled(runs, method))}"
            )
        text = f"At {place} ({layer}), boundary updates ({boundary}) move untouched prompts less than spreading does."
        found.append((Claim.on(difference, text, "; ".join(evidence), claimed="negative"), difference))
    return found


def _curves(rows: Sequence[Finding], methods: Sequence[str]) -> list[Figure]:
    """A quantity by layer, one panel per kind of prompt."""
    figures = []
    for quantity, axis in _AXES.items():
        panels = []
        for kind in KINDS:
            series = []
            of_kind = [row for row in rows if row.quantity == quantity and row.where.get("prompts") == kind]
            for method in methods:
                lines: dict[Label, list[Finding]] = {}
                for row in of_kind:
                    if row.where["method"] == method:
                        lines.setdefault(row.where.get("seed", ""), []).append(row)
                series += [
                    line_of(found, f"{method}, seed {seed}" if len(lines) > 1 else method, "layer")
                    for seed, found in lines.items()
                ]
            if series:
                panels.append(Panel(_TITLES[kind], "layer (block's output)", axis, series))
        caption = (
            f"{quantity[0].upper()}{quantity[1:]} of the hidden states h′ after a run and h before it, at the last "
            "token of prompts, by layer; with 95 % intervals over what the prompts are about."
        )
        if panels:
            figures.append(Figure(f"hidden-shift-{quantity.replace(' ', '-').lower()}", caption, panels))
    return figures


def _series(runs: Sequence[TaskRecord], layer: str, kind: str) -> list[tuple[str, str, Sequence[Sequence[float]]]]:
    """(method, moment, points) of a picture; the unedited model's points, equal for all methods, come once."""
    shown = [(run["method"], run["pictures"][layer]) for run in runs if run["pictures"].get(layer)]
    first = [("unedited", "before", picture["points"][kind]["before"]) for _, picture in shown[:1]]
    return first + [(method, "after", picture["points"][kind]["after"]) for method, picture in shown]


def _layers(runs: Sequence[TaskRecord]) -> list[str]:
    return list(dict.fromkeys(layer for run in runs for layer, picture in run["pictures"].items() if picture))


def _points(runs: Sequence[TaskRecord]) -> list[PlanePoint]:
    return [
        PlanePoint(f"layer {layer}", {"prompts": kind, "method": method, "moment": moment}, x, y)
        for layer in _layers(runs)
        for kind in IN_PICTURE
        for method, moment, points in _series(runs, layer, kind)
        for x, y in points
    ]


def _pictures(runs: Sequence[TaskRecord]) -> list[Figure]:
    panels = []
    for layer in _layers(runs):
        shares = next(run["pictures"][layer]["shares"] for run in runs if run["pictures"].get(layer))
        x_label, y_label = (f"component {index} ({share:.0%} of the variance)" for index, share in enumerate(shares, 1))
        for kind in IN_PICTURE:
            clouds = [
                Series(method, [x for x, _ in found], [y for _, y in found])
                for method, _, found in _series(runs, layer, kind)
            ]
            panels.append(Panel(f"layer {layer}, {_TITLES[kind].lower()}", x_label, y_label, clouds, kind="points"))
    caption = (
        "Hidden states at the last token of prompts before (unedited) and after each method's run with the first "
        "seed's facts, in the plane of the first two principal components of the untouched prompts' states before."
    )
    return [Figure("hidden-shift-plane", caption, panels)] if panels else []


def prompts_of(data: BenchmarkData) -> dict[str, list[tuple[str, str]]]:
    """Kind -> (cluster, prompt), without duplicates; the cluster is the edited subject, or that of an untouched
    question.
    """
    facts = data.facts
    found = {
        UNTOUCHED: [(cluster, question.prompt) for cluster, question in data.untouched],
        "neighbours": [(fact.subject, question.prompt) for fact in facts for question in fact.neighbours],
        "edited": [(fact.subject, fact.text) for fact in facts],
    }
    return {kind: list(dict.fromkeys(found[kind])) for kind in KINDS}


def states_of(model: LanguageModel, prompts: Sequence[str]) -> list[Float[Tensor, "prompts d"]]:
    """Every block's output at the last token of each prompt, in the model's dtype on the CPU.

    Raises:
        InputError: if a prompt is longer than the model takes.
        NonFiniteError: if a state is not finite.
    """
    rows = [row.ids for row in encode(model.tokenizer, prompts)]
    if (longest := max(map(len, rows))) > model.context_length:
        raise InputError(
            f"a prompt has {longest} tokens; {model.name!r} is limited to {model.context_length}",
            remedy="Leave it out",
            code="PROMPT_TOO_LONG",
        )
    layers = range(len(model.blocks))
    found = model.capture_last(rows, {Site.BLOCK: layers})
    for layer in layers:
        if not bool(torch.isfinite(found[Site.BLOCK, layer]).all()):
            raise NonFiniteError("hidden state of a prompt", facts=(), layer=layer)
    return [found[Site.BLOCK, layer].cpu() for layer in layers]


def _measure(context: StudyContext, seed: int, method: str) -> TaskRecord:
    prompts = {kind: found for kind, found in prompts_of(context.materials[seed]).items() if found}
    everything = [prompt for found in prompts.values() for _, prompt in found]
    before = states_of(context.model, everything)
    with edited(context, seed, method):
        after = states_of(context.model, everything)
        recalled = facts_recalled(context, context.materials[seed].facts)
    places: dict[str, slice] = {}
    for kind, found in prompts.items():
        start = sum(place.stop - place.start for place in places.values())
        places[kind] = slice(start, start + len(found))
    about = about_run(context, seed, method)
    kinds = {
        kind: _compare([cluster for cluster, _ in prompts[kind]], before, after, place)
        for kind, place in places.items()
    }
    layers = dict.fromkeys((about["critical"][-1], len(before) - 1))  # the last critical one and the last block
    pictures = {str(layer): _picture(before[layer], after[layer], places) for layer in layers}
    return {**about, "blocks": len(before), "said": recalled, "kinds": kinds, "pictures": pictures}


def _compare(clusters: Sequence[str], before: Sequence[Tensor], after: Sequence[Tensor], place: slice) -> TaskRecord:
    saved: dict[str, Any] = {"clusters": list(clusters), DISTANCE: [], COSINE: [], CKA: []}
    for old, new in zip(before, after, strict=True):
        x, y = to_float64(old[place]), to_float64(new[place])
        saved[DISTANCE].append(relative_distances(x, y).tolist())
        saved[COSINE].append(cosines(x, y).tolist())
        saved[CKA].append(cka_interval(x, y, clusters))
    return saved


def _picture(before: Tensor, after: Tensor, places: Mapping[str, slice]) -> TaskRecord | None:
    """Untouched and edited prompts before and after, in the plane of the untouched ones before."""
    plane = fit_plane(before[places[UNTOUCHED]]) if UNTOUCHED in places else None
    if plane is None:
        return None
    points = {
        kind: {"before": plane.points(before[places[kind]]), "after": plane.points(after[places[kind]])}
        for kind in IN_PICTURE
    }
    return {"shares": plane.shares, "points": points}


def _tasks(context: StudyContext) -> list[StudyTask]:
    return [
        StudyTask(run_name(seed, method), partial(_measure, context, seed, method)) for seed, method in runs_of(context)
    ]


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    check_plane()


HIDDEN_SHIFT = Study(
    name="hidden-shift",
    shows="The hidden state at the last token of a prompt, at every block's output, before (h) and after (h′) a "
    "run of edits. Measured are its relative distance ‖h′ − h‖ / ‖h‖ and cosine, and the linear centred kernel "
    "alignment between the states of all prompts before and after. Both states are also shown in the plane of the "
    "first two principal components of the untouched prompts. The prompts are about other subjects (untouched), "
    "neighbours, and the edited facts.",
    units="Distances are shares of ‖h‖. Cosines and alignments have no unit; an alignment of 1 means equal up to "
    "rotation and a common scale, and with fewer prompts than dimensions it is higher than with many "
    "prompts.",
    source=f"hidden-state shift in {BOUNDARY_PAPER}; CKA: Kornblith et al. 2019, Similarity of Neural "
    "Network Representations Revisited, arXiv:1905.00414",
    uses=("count", "batch_size", "methods"),
    tasks=_tasks,
    findings=findings_of,
    check=_check,
    defaults={"seeds": (0, 1, 2)},  # claims about whole runs are paired over seeds
)
