"""Study ``spectrum``: how large the whole change of a run is, and in how many directions, beside the weight's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from errata.analysis.runs import about_run, edited, run_name, runs_of
from errata.analysis.spectrum_findings import WEIGHTS, findings_of
from errata.analysis.study import Kept, Piece, Study, Workbench
from errata.analysis.titles import TITLES
from errata.edit_batch import solve_device
from errata.factors import norm, singular_values
from errata.models.weights import Term


def _of_weights(bench: Workbench, layers: Sequence[int]) -> Kept:
    """The singular values of W of each layer, on the device where is solved."""
    device = solve_device(bench.model)
    return {
        "spectra": {
            str(layer): torch.linalg.svdvals(bench.model.weight(layer).to(device, torch.float64)).tolist()
            for layer in layers
        }
    }


def _of_run(bench: Workbench, seed: int, method: str) -> Kept:
    """The singular values of the total ΔW, its norms after each batch, and those of each batch's own change."""
    about = about_run(bench, seed, method)
    layers = about["critical"]
    totals: dict[int, list[Float[Tensor, "n"]]] = {layer: [] for layer in layers}
    own: dict[int, list[float]] = {layer: [] for layer in layers}

    def after_batch(written: Sequence[Term], total: Sequence[Term]) -> None:
        for layer in layers:
            batch = [term for term in written if term.layer == layer]
            own[layer].append(norm(batch) if batch else 0.0)
            whole = [term for term in total if term.layer == layer]
            totals[layer].append(singular_values(whole) if whole else torch.zeros(0, dtype=torch.float64))

    with edited(bench, seed, method, after_batch):
        pass
    return {
        **about,
        "facts": len(bench.materials[seed].facts),
        "spectra": {str(layer): totals[layer][-1].tolist() for layer in layers},
        "Frobenius": {str(layer): [float(values.norm()) for values in totals[layer]] for layer in layers},
        "spectral": {str(layer): [max(values.tolist(), default=0.0) for values in totals[layer]] for layer in layers},
        "own": {str(layer): own[layer] for layer in layers},
    }


def _pieces(bench: Workbench) -> list[Piece]:
    runs = runs_of(bench)
    layers = sorted({layer for _, method in runs for layer in bench.recipes[method].layers})
    return [
        Piece(WEIGHTS, partial(_of_weights, bench, layers)),
        *(Piece(run_name(seed, method), partial(_of_run, bench, seed, method)) for seed, method in runs),
    ]


SPECTRUM = Study(
    name="spectrum",
    title=TITLES["spectrum"],
    shows="The singular values of the whole change ΔW of a run, per layer, beside those of the weight W that it "
    "changes: Frobenius and spectral norms and their ratios, the stable rank ‖·‖_F² / ‖·‖₂², the effective rank (the "
    "exponential of the entropy of σ / Σσ), the share of ‖ΔW‖_F² in the 1, 10 and 100 largest directions, and how the "
    "norms grow with the batches. Over all layers a Frobenius norm is the root of the sum of the layers' squares.",
    units="Norms in the unit of the weights; ratios, ranks and shares are numbers without a unit.",
    source="ours, beside the norms that papers on sequential editing report; effective rank: Roy & "
    "Vetterli 2007, The Effective Rank: A Measure of Effective Dimensionality (EUSIPCO)",
    uses=("count", "batch_size", "methods"),
    pieces=_pieces,
    findings=findings_of,
    defaults={"seeds": (0, 1, 2)},  # claims about whole runs are paired over seeds
)
