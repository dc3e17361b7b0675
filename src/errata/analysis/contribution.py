"""Study ``contribution``: increase of the target's probability by a single layer's residual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from errata.analysis.common import COMPUTED, SPREADS, search_targets
from errata.analysis.findings import (
    Claim,
    Figure,
    Finding,
    Findings,
    Label,
    Panel,
    line_of,
    mean_row,
    with_n,
)
from errata.analysis.study import AnalysisSettings, Study, StudyContext, StudyTask, TaskRecord
from errata.editing.contexts import generate_prefixes
from errata.editing.methods import BOUNDARY_PAPER
from errata.editing.search_prompts import SearchPrompts
from errata.facts.fact import Fact
from errata.utils.tensors import from_float64, to_float64

KINDS = (*SPREADS, COMPUTED)
_ROWS_AT_ONCE = 1024


def probabilities(
    context: StudyContext, facts: Sequence[Fact], prefixes: Sequence[str], layer: int, deltas: Sequence[Tensor]
) -> list[Tensor]:
    """P of the targets with vectors added after a block (or at W's output, see ``StudyContext.site``) at the subject's
    last token.

    Args:
        deltas: (d, facts) each.

    Returns:
        (facts,) for each of ``deltas``: exp of the mean log-probability of the target's tokens, mean over contexts.
    """
    size = max(1, _ROWS_AT_ONCE // (len(prefixes) + 2))
    parts: list[list[Tensor]] = [[] for _ in deltas]
    for start in range(0, len(facts), size):
        rows = SearchPrompts(context.model, facts[start : start + size], prefixes, layer, (context.site,))
        for part, delta in zip(parts, deltas, strict=True):
            injected = from_float64(delta.T[start : start + size], rows.dtype, context.model.device)
            part.append(to_float64(rows.probabilities(injected)).cpu())
    return [torch.cat(part) for part in parts]


def _measure(context: StudyContext, seed: int) -> TaskRecord:
    facts = context.materials[seed].facts.facts
    prefixes = generate_prefixes(context.model, context.recipe_for(seed).contexts)
    targets = search_targets(context, facts, prefixes)
    found: dict[str, dict[str, list[float]]] = {}
    for layer in context.layers:
        residuals = [targets.residual(kind, layer) for kind in KINDS]
        nothing, *with_residual = probabilities(
            context, facts, prefixes, layer, [torch.zeros_like(residuals[0]), *residuals]
        )
        shown = zip(KINDS, with_residual, strict=True)
        found[str(layer)] = {kind: chances.tolist() for kind, chances in shown} | {"nothing": nothing.tolist()}
    return {"probabilities": found}


def _tasks(context: StudyContext) -> list[StudyTask]:
    return [StudyTask(f"seed-{seed}", partial(_measure, context, seed)) for seed in context.settings.seeds]


def _findings(settings: AnalysisSettings, saved: Mapping[str, TaskRecord]) -> Findings:
    runs = [record["probabilities"] for record in saved.values()]
    layers = [int(layer) for layer in runs[0]]
    rows: list[Finding] = []
    for kind in KINDS:
        for layer in layers:
            where: dict[str, Label] = {"residual": kind, "layer": layer}
            rows.append(mean_row("contribution", "probability", where, _gains(runs, layer, kind)))
    differences = {
        layer: mean_row(
            "contribution, computed minus spread",
            "probability",
            {"layer": layer},
            [a - b for a, b in zip(_gains(runs, layer, COMPUTED), _gains(runs, layer, "spread"), strict=True)],
        )
        for layer in layers[:-1]
    }
    claims = [
        Claim.on(
            difference,
            f"At layer {layer}, before the last one, the computed residual makes the target likelier than the spread "
            "one does.",
            f"difference of the contributions {with_n(difference)} (paired over facts)",
        )
        for layer, difference in differences.items()
    ]
    last = layers[-1]
    spread = {row.where["layer"]: row for row in rows if row.where["residual"] == "spread"}
    if len(layers) > 1:
        shares = mean_row(
            "contribution of the spread residual, last layer minus first",
            "probability",
            {},
            [a - b for a, b in zip(_gains(runs, last, "spread"), _gains(runs, layers[0], "spread"), strict=True)],
        )
        claims.append(
            Claim.on(
                shares,
                "The spread residual contributes less the further a layer is from the last one.",
                ", ".join(f"layer {layer}: {with_n(spread[layer])}" for layer in layers)
                + f"; last minus first {with_n(shares)}",
            )
        )
        rows.append(shares)
    rows += differences.values()
    figure = Figure(
        "contribution",
        "How much likelier a layer's residual alone makes the target, by layer: P(o | h + r) − P(o), mean over facts "
        "and contexts, with 95 % intervals over facts.",
        [
            Panel(
                "Contribution of one layer's residual",
                "layer",
                "P(o | h + r) − P(o) (probability)",
                [line_of([row for row in rows if row.where.get("residual") == kind], kind, "layer") for kind in KINDS],
            )
        ],
    )
    return Findings(rows, claims, [figure])


def _gains(runs: Sequence[Mapping[str, Mapping[str, Sequence[float]]]], layer: int, kind: str) -> list[float]:
    """P with the residual minus P without, for all facts of all seeds."""
    return [
        chance - without
        for run in runs
        for chance, without in zip(run[str(layer)][kind], run[str(layer)]["nothing"], strict=True)
    ]


CONTRIBUTION = Study(
    name="contribution",
    shows="How much likelier the target becomes when one layer's residual r alone is added to the hidden state at "
    "the subject's last token, on unedited weights: P(o | h_l += r) − P(o). It compares the residual that "
    "spreading assigns to the layer (δ_L divided by the number of remaining critical layers, or by its "
    "square root) with the residual computed at the layer.",
    units="Probability: P is the exponential of the mean log-probability of the target's tokens, averaged over the "
    "contexts.",
    source=f"the contribution score of {BOUNDARY_PAPER}",
    uses=("count",),
    tasks=_tasks,
    findings=_findings,
)
