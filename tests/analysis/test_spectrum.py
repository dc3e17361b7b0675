"""Study ``spectrum``: against whole matrices, and what its claims follow from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.analysis.findings import Finding, Findings
from errata.analysis.spectrum import SPECTRUM, effective_rank, stable_rank, top_share
from errata.analysis.studies import read_result
from errata.analysis.study import AnalysisSettings

from tests.reference.spectrum import changes
from tests.support.editing import assert_same_bits, parameter_bits, tiny_language_model
from tests.support.study_context import done, runs_context

LAYERS = (1, 2, 3)


def row(findings: Findings, quantity: str, **where: Any) -> Finding:
    (found,) = [row for row in findings.rows if row.quantity == quantity and row.where == where]
    return found


def test_ranks_and_shares_of_known_spectra() -> None:
    flat, single = [3.0] * 5, [2.0, 0.0, 0.0]
    assert stable_rank(flat) == pytest.approx(5)
    assert effective_rank(flat) == pytest.approx(5)
    assert (stable_rank(single), effective_rank(single), top_share(single, 1)) == (1, 1, 1)
    assert [top_share(flat, count) for count in (1, 2, 100)] == pytest.approx([0.2, 0.4, 1])
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum()
    squared = float((matrix**2).sum()) / float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    assert stable_rank(values.tolist()) == pytest.approx(squared)
    assert effective_rank(values.tolist()) == pytest.approx(float((-shares * shares.log()).sum().exp()))


@pytest.mark.parametrize(
    ("family", "methods"),
    [("gpt2", ("memit", "memit+blue")), ("llama", ("alphaedit", "alphaedit+blue")), ("gpt2", ("rect", "prune"))],
)
def test_spectra_and_norms_are_those_of_the_matrices(tmp_path: Path, family: str, methods: Sequence[str]) -> None:
    context = runs_context(tmp_path, family, methods)
    facts = context.materials[0].facts.facts
    bits = parameter_bits(context.model)
    findings = done(SPECTRUM, context, tmp_path / "out").findings
    assert_same_bits(parameter_bits(context.model), bits)
    assert not context.model.edits.terms
    weights = {layer: context.model.weight(layer).double() for layer in LAYERS}
    for layer, weight in weights.items():
        unedited = {"method": "W", "layer": layer}
        assert row(findings, "Frobenius norm of W", **unedited).mean == pytest.approx(float(weight.norm()))
        assert row(findings, "spectral norm of W", **unedited).mean == pytest.approx(
            float(torch.linalg.matrix_norm(weight, 2))
        )
    ends: dict[str, float] = {}
    for method in methods:
        batches = changes(tiny_language_model(family), context.recipes[method], facts, LAYERS, tmp_path / "cache")
        assert len(batches) == 3
        for number, change in enumerate(batches, 1):
            place: dict[str, Any] = {"method": method, "batches": number}
            for layer in LAYERS:
                norms = float(change[layer].norm()), float(torch.linalg.matrix_norm(change[layer], 2))
                found = [
                    row(findings, f"{kind} norm of ΔW after batches", layer=layer, **place).mean
                    for kind in ("Frobenius", "spectral")
                ]
                assert found == pytest.approx(norms, rel=1e-3, abs=1e-6)
            ends[method] = math.sqrt(sum(float(matrix.norm()) ** 2 for matrix in change.values()))
            total = row(findings, "Frobenius norm of ΔW after batches", layer="all", **place).mean
            assert total == pytest.approx(ends[method], rel=1e-3)
        for layer in LAYERS:
            where = {"method": method, "layer": layer}
            values = torch.linalg.svdvals(batches[-1][layer])
            if float(values[0]) == 0:
                assert method.endswith("+blue")
                assert findings.undefined[f"ranks and ratios of {method}, seed 0, layer {layer}"]
                continue
            ratio = float(values.norm() / weights[layer].norm())
            assert row(findings, "‖ΔW‖_F / ‖W‖_F", **where).mean == pytest.approx(ratio, rel=1e-3)
            largest = float(values[0] / torch.linalg.matrix_norm(weights[layer], 2))
            assert row(findings, "σ₁(ΔW) / σ₁(W)", **where).mean == pytest.approx(largest, rel=1e-3)
            stable = float((values**2).sum() / values[0] ** 2)
            assert row(findings, "stable rank of ΔW", **where).mean == pytest.approx(stable, rel=1e-3)
            top = float(values[0] ** 2 / (values**2).sum())
            share = row(findings, "share of the squared Frobenius norm of ΔW in its top 1", **where).mean
            assert share == pytest.approx(top, rel=1e-3)
            panel = next(panel for panel in findings.figures[0].panels if panel.title == f"Layer {layer}")
            line = next(series for series in panel.series if series.label == method)
            assert list(line.y) == pytest.approx(values[: len(line.y)].tolist(), rel=1e-2, abs=1e-4 * float(values[0]))
            assert panel.log_y
    if methods[1].endswith("+blue"):
        difference = row(
            findings,
            "Frobenius norm of ΔW, boundary updates minus spreading",
            method=methods[1],
            than=methods[0],
            layer="all",
        )
        assert difference.mean == pytest.approx(ends[methods[1]] - ends[methods[0]], rel=1e-3, abs=1e-5)
    read = read_result(tmp_path / "out").findings
    assert json.dumps(read.to_record()) == json.dumps(findings.to_record())


def kept(seed: int, method: str, schedule: str, norms: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    """What a run of one layer, of a flat spectrum of four, would keep."""
    return {
        "seed": seed,
        "method": method,
        "schedule": schedule,
        "critical": [1],
        "facts": 4,
        "spectra": {"1": [norms[-1] / 2] * 4 if norms[-1] else []},
        "Frobenius": {"1": list(norms)},
        "spectral": {"1": [norm / 2 for norm in norms]},
        "own": {"1": list(own)},
    }


def findings_of(*runs: dict[str, Any], weights: Sequence[float] = (1.0,) * 8) -> Findings:
    settings = AnalysisSettings(seeds=tuple(dict.fromkeys(run["seed"] for run in runs)))
    pieces = {str(index): run for index, run in enumerate(runs)}
    return SPECTRUM.findings(settings, {"weights": {"spectra": {"1": list(weights)}}, **pieces})


def verdicts(findings: Findings) -> dict[str, str]:
    return {claim.text: claim.verdict for claim in findings.claims}


GROWS = "The norm of the total change grows with the number of batches (memit)."
RANK = "The total change is of lower stable rank than the weight (memit)."
TOTAL = "In total, boundary updates (memit+blue) change less weight than spreading does."
BATCH = "A batch of boundary updates (memit+blue) writes less than spreading does."


@pytest.mark.usefixtures("few_are_enough")
@pytest.mark.parametrize(
    ("norms", "verdict"),
    [
        ([1.0, 2.0, 3.0], "holds"),
        ([3.0, 2.0, 1.0], "does not hold"),
        ([1.0, 3.0, 2.0], "undecided"),
        ([1.0, 2.0], "undecided"),
        ([1.0], "undecided"),
    ],
)
def test_growth_is_decided_by_what_further_batches_add(norms: Sequence[float], verdict: str) -> None:
    findings = findings_of(kept(0, "memit", "even", norms, norms))
    assert verdicts(findings)[GROWS] == verdict
    assert "the claim that boundary updates change less weight than spreading" in findings.undefined


@pytest.mark.usefixtures("few_are_enough")
def test_lower_stable_rank_is_decided_over_layers_and_seeds() -> None:
    runs = [kept(seed, "memit", "even", [2.0], [2.0]) for seed in (0, 1)]
    assert verdicts(findings_of(*runs))[RANK] == "holds"  # 4 against 8
    assert verdicts(findings_of(*runs, weights=[1.0, 1.0]))[RANK] == "does not hold"  # 4 against 2
    assert verdicts(findings_of(runs[0]))[RANK] == "undecided"
    assert row(findings_of(*runs), "stable rank of ΔW", method="memit", layer=1).mean == pytest.approx(4)


@pytest.mark.usefixtures("few_are_enough")
def test_boundary_updates_are_compared_over_seeds_and_over_batches() -> None:
    spread = [kept(seed, "memit", "even", [1.0, 3.0], [1.0, 2.0]) for seed in (0, 1)]
    boundary = [kept(seed, "memit+blue", "boundary", [1.0, 2.0], [1.5, 2.5]) for seed in (0, 1)]
    found = verdicts(findings_of(*spread, *boundary))
    assert (found[TOTAL], found[BATCH]) == ("holds", "does not hold")
    one = findings_of(spread[0], boundary[0])
    assert verdicts(one)[TOTAL] == "undecided"
    assert "n = 1 (paired over 1 seeds)" in next(claim.evidence for claim in one.claims if claim.text == TOTAL)
    assert verdicts(one)[BATCH] == "does not hold"


def test_a_run_that_changes_nothing_has_no_ranks() -> None:
    findings = findings_of(kept(0, "memit", "even", [0.0, 0.0], [0.0, 0.0]))
    assert verdicts(findings)[RANK] == "undecided"
    assert "ranks and ratios of memit, seed 0, layer 1" in findings.undefined
    assert not [row for row in findings.rows if row.quantity == "stable rank of ΔW"]
