"""What follows from the shifts of hidden states that study ``hidden-shift`` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from errata.analysis.findings import (
    Claim,
    Figure,
    Findings,
    Label,
    Panel,
    Point,
    Row,
    Series,
    compared,
    line_of,
    mean_row,
    told,
)
from errata.analysis.runs import NO_PAIR, boundary_pairs, of_method
from errata.analysis.study import AnalysisSettings, Kept

UNTOUCHED: Final = "untouched"
KINDS: Final = (UNTOUCHED, "neighbours", "edited")
IN_PICTURE: Final = (UNTOUCHED, "edited")
_TITLES: Final = {UNTOUCHED: "Untouched prompts", "neighbours": "Prompts about neighbours", "edited": "Edited prompts"}
DISTANCE, COSINE, CKA = "relative distance", "cosine", "CKA"
_AXES: Final = {DISTANCE: "‖h′ − h‖ / ‖h‖ (1)", COSINE: "cosine between h and h′ (1)", CKA: "linear CKA (1)"}


def _by_cluster(runs: Mapping[int, Kept], kind: str, quantity: str, layer: int) -> dict[str, list[float]]:
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


def findings_of(settings: AnalysisSettings, kept: Mapping[str, Kept]) -> Findings:
    """Rows over layers, the claims on untouched prompts, curves and planes."""
    methods = list(dict.fromkeys(run["method"] for run in kept.values()))
    rows: list[Row] = []
    undefined: dict[str, str] = {}
    for method in methods:
        runs = of_method(kept, method)
        rows.append(_said(runs, method))
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
    pairs = boundary_pairs(kept.values())
    for boundary, spread in pairs:
        for claim, difference in _claims(kept, boundary, spread):
            claims.append(claim)
            rows.append(difference)
    if not pairs:
        undefined["claims"] = NO_PAIR
    first = [run for run in kept.values() if run["seed"] == settings.seeds[0]]
    for run in first:
        for layer, picture in run["pictures"].items():
            if picture is None:
                undefined[f"picture at layer {layer}"] = "it takes three untouched prompts whose states differ"
    return Findings(rows, claims, [*_curves(rows, methods), *_pictures(first)], _points(first), undefined)


def _said(runs: Mapping[int, Kept], method: str) -> Row:
    said = [value for run in runs.values() for value in run["said"]]
    return mean_row("facts said after the run", "share", {"method": method}, said)


def _alignments(run: Kept, kind: str, where: Mapping[str, Label], undefined: dict[str, str]) -> list[Row]:
    rows = []
    found = run["kinds"].get(kind)
    for layer, interval in enumerate(found[CKA] if found else ()):
        if interval is None:
            place = ", ".join(map(str, where.values()))
            undefined[f"CKA of {place}, layer {layer}"] = "no two of the states differ"
        else:
            prompts = len(set(found["clusters"]))
            mean, low, high = interval
            rows.append(Row(CKA, "1", {**where, "layer": layer}, mean, low, high, prompts))
    return rows


def _claims(kept: Mapping[str, Kept], boundary: str, spread: str) -> list[tuple[Claim, Row]]:
    """That boundary updates move untouched prompts less, at three layers; each with its paired difference."""
    ours, theirs = of_method(kept, boundary), of_method(kept, spread)
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
        evidence = [f"difference of ‖h′ − h‖ / ‖h‖ {told(difference)} (paired over what the prompts are about)"]
        for method, runs, values in ((boundary, ours, one), (spread, theirs, other)):
            untouched = mean_row(DISTANCE, "1", {}, _means(values))
            moved = mean_row(DISTANCE, "1", {}, _means(_by_cluster(runs, "edited", DISTANCE, layer)))
            evidence.append(
                f"{method}: {told(untouched)}, the edited prompts {told(moved)}, facts said {told(_said(runs, method))}"
            )
        text = f"At {place} ({layer}), boundary updates ({boundary}) move untouched prompts less than spreading does."
        found.append((Claim(text, compared(difference, claimed="negative"), "; ".join(evidence)), difference))
    return found


def _curves(rows: Sequence[Row], methods: Sequence[str]) -> list[Figure]:
    """A quantity over the layers, a panel for each kind of prompt."""
    figures = []
    for quantity, axis in _AXES.items():
        panels = []
        for kind in KINDS:
            series = []
            of_kind = [row for row in rows if row.quantity == quantity and row.where.get("prompts") == kind]
            for method in methods:
                lines: dict[Label, list[Row]] = {}
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


def _series(runs: Sequence[Kept], layer: str, kind: str) -> list[tuple[str, str, Sequence[Sequence[float]]]]:
    """(method, moment, points) of a picture; before its run a method has changed nothing, so that stands once."""
    shown = [(run["method"], run["pictures"][layer]) for run in runs if run["pictures"].get(layer)]
    first = [("unedited", "before", picture["points"][kind]["before"]) for _, picture in shown[:1]]
    return first + [(method, "after", picture["points"][kind]["after"]) for method, picture in shown]


def _layers(runs: Sequence[Kept]) -> list[str]:
    return list(dict.fromkeys(layer for run in runs for layer, picture in run["pictures"].items() if picture))


def _points(runs: Sequence[Kept]) -> list[Point]:
    return [
        Point(f"layer {layer}", {"prompts": kind, "method": method, "moment": moment}, x, y)
        for layer in _layers(runs)
        for kind in IN_PICTURE
        for method, moment, points in _series(runs, layer, kind)
        for x, y in points
    ]


def _pictures(runs: Sequence[Kept]) -> list[Figure]:
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
