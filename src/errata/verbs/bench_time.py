"""How long a benchmark takes: from its finished cells, or from counted operations and a quick measurement of speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from errata.analysis.search_cost import search_flops
from errata.analysis.search_rows import SearchRows
from errata.benchmark.campaign import Campaign
from errata.benchmark.collect_about import Ended
from errata.benchmark.finished import read_finished
from errata.models.size import ModelSize
from errata.report.page import duration
from errata.schedules import SCHEDULES
from errata.verbs.bench_plan import Plan
from errata.verbs.model_options import placement

_SAMPLE = 50  # facts of a cell whose texts are counted; they stand for the others
_ROWS, _SECONDS = 256, 0.2  # of the product that is timed, and how long


def time_left(campaign: Campaign, pending: Sequence[Path]) -> str:
    """What the pending cells take if they are like those that are done; empty where none is."""
    done = [cell for cell in campaign.cells if campaign.is_done(cell)]
    if not done or not pending:
        return ""
    seconds = [Ended.of(read_finished(campaign, cell)).seconds for cell in done]
    each = sum(seconds) / len(seconds)
    return f"At {duration(each)} a cell, as those that are done: about {duration(each * len(pending))}, one at a time."


def time_needed(plan: Plan) -> str:
    """What the searches for targets take, nearly all of an edit's time, on this machine."""
    operations = search_operations(plan)
    seconds = 0.0
    for spec in {spec.model.name: spec for spec in plan.specs}.values():
        where = placement(spec.model.device, spec.model.dtype)
        outline = plan.outlines[spec.model.name]
        device = where["device"] or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        speed = measured_speed(outline.size, device, where["dtype"] or outline.dtype)
        seconds += operations[spec.model.name] / speed
    return (
        f"About {duration(seconds)} to find the targets of all cells, one cell at a time: "
        f"{sum(operations.values()):.2g} operations at the speed of matrix products here. Key statistics and the "
        "measurements come on top."
    )


def search_operations(plan: Plan) -> dict[str, float]:
    """Model -> floating-point operations of all searches for targets in its cells, were no fact done early."""
    found: dict[str, float] = {}
    for spec in plan.specs:
        outline, recipe = plan.outlines[spec.model.name], spec.recipe
        facts = plan.materials[spec.material].facts.facts
        rows = SearchRows.of(outline.tokenizer, facts[:_SAMPLE], recipe.contexts)
        layers = {step.target_layer for step in SCHEDULES[recipe.schedule](recipe.layers) if step.follows is None}
        flops = sum(search_flops(outline.size, rows, layer, recipe.target.steps) for layer in layers)
        found[spec.model.name] = found.get(spec.model.name, 0.0) + flops * len(facts) / len(facts[:_SAMPLE])
    return found


def measured_speed(size: ModelSize, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product of the model's MLP."""
    rows = torch.ones(_ROWS, size.width, device=device, dtype=dtype)
    matrix = torch.ones(size.width, size.mlp_width, device=device, dtype=dtype)
    (rows @ matrix).sum().item()  # the first one prepares things
    started, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < _SECONDS:
        for _ in range(4):
            product = rows @ matrix
        product[0, 0].item()  # which waits for it
        count += 4
    return 2.0 * _ROWS * size.width * size.mlp_width * count / taken
