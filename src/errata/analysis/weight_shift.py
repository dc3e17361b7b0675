"""Study ``weight-shift``: how far the update by the spread residual lies from that by the computed one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial

from torch import Tensor

from errata.analysis.cost import cost_text
from errata.analysis.earlier_batches import EarlierBatches
from errata.analysis.shift_norms import ShiftNorms, shift_norms, solution
from errata.analysis.study import AnalysisSettings, Kept, Piece, Study, Workbench
from errata.analysis.titles import TITLES
from errata.analysis.weight_shift_findings import piece_name, weight_shift_findings
from errata.edit_batch import check_columns, solve_device
from errata.errors import Fault, FaultsError, InputError
from errata.facts import Fact
from errata.methods import BOUNDARY_PAPER
from errata.models.weights import Term
from errata.preparation import solver_of
from errata.recipe import Recipe
from errata.schedules import Step
from errata.shaping import BatchShaper, make_shaper
from errata.solvers.base import LayerSolver
from errata.targets.aims import AimFinder
from errata.targets.keys import keys_and_bare


def residuals_now(
    bench: Workbench, recipe: Recipe, facts: Sequence[Fact], prefixes: Sequence[str], written: Sequence[Term]
) -> dict[int, Tensor]:
    """The residual of each critical layer as a batch would first meet it: z − h, both at that layer, on the weights as
    they are now (z on the original ones where the recipe says so); layer -> (d_out, facts) float64.

    Args:
        written: what the run has changed so far.
    """
    shapers = [make_shaper(entry.kind, entry.model_dump(exclude={"kind"})) for entry in recipe.shaping]
    finder = AimFinder(bench.model, recipe, bench.site, prefixes, shapers, bench.report)
    found = {}
    for layer in bench.layers:
        aim = finder.find(facts, Step(layer, layer, 1.0), (), written)[layer]
        moved = recipe.target.weights == "original"
        found[layer] = aim.delta + (aim.states - finder.states(facts, layer)) if moved else aim.delta
        check_columns("residual", found[layer], facts, layer)
    return found


def group_norms(
    residuals: Mapping[int, Tensor], keys: Mapping[int, Tensor], states: Mapping[int, LayerSolver], size: int
) -> dict[int, list[ShiftNorms]]:
    """Layer -> the norms of each group of ``size`` facts, in order; a smaller rest is left out."""
    layers = list(residuals)
    last = residuals[layers[-1]]
    found: dict[int, list[ShiftNorms]] = {layer: [] for layer in layers}
    for index, layer in enumerate(layers):
        for start in range(0, last.shape[1] // size * size, size):
            chosen = slice(start, start + size)
            q = solution(states[layer], keys[layer][:, chosen])
            behind = len(layers) - 1 - index
            found[layer].append(shift_norms(residuals[layer][:, chosen], last[:, chosen], behind, q))
    return found


def _measure(bench: Workbench, run: EarlierBatches, probe: Sequence[Fact], earlier: int) -> Kept:
    model, recipe, device = bench.model, run.recipe, solve_device(bench.model)
    with run.written(earlier) as states:
        residuals = residuals_now(bench, recipe, probe, run.prefixes, run.terms)
        read = keys_and_bare(model, probe, run.prefixes, bench.layers, recipe.contexts.keys)
        keys = {layer: mean.to(device) for layer, (mean, _) in read.items()}
        residuals = {layer: found.to(device) for layer, found in residuals.items()}
        kept = {}
        for number, size in enumerate(sorted(set(bench.settings.sizes))):
            bench.report("groups", number, len(bench.settings.sizes))
            groups = group_norms(residuals, keys, states, size)
            kept[str(size)] = {str(layer): _as_lists(norms) for layer, norms in groups.items()}
    return {"sizes": kept}


def _as_lists(norms: Sequence[ShiftNorms]) -> dict[str, dict[str, list[float]]]:
    """Quantity -> norm -> one number a group."""
    records = {part.name: [getattr(group, part.name).to_record() for group in norms] for part in fields(ShiftNorms)}
    return {name: {norm: [one[norm] for one in found] for norm in found[0]} for name, found in records.items()}


def _pieces(bench: Workbench) -> list[Piece]:
    settings = bench.settings
    needed = settings.count + max(settings.earlier) * settings.batch_size
    pieces = []
    for seed in settings.seeds:
        facts = bench.materials[seed].facts.facts
        if len(facts) < needed:
            raise InputError(
                f"{settings.count} facts to look at and {max(settings.earlier)} earlier batches of "
                f"{settings.batch_size} are {needed} facts, got {len(facts)} for seed {seed}",
                remedy="Give more facts, or lower count, earlier or batch_size",
            )
        probe, rest = facts[: settings.count], facts[settings.count : needed]
        # The pieces of a seed share a run, which goes on from one to the next; a piece that is done by itself, after a
        # stop, writes the earlier batches again.
        run = EarlierBatches(bench, bench.recipe_for(seed), rest, settings.batch_size)
        for earlier in sorted(set(settings.earlier)):
            pieces.append(Piece(piece_name(seed, earlier), partial(_measure, bench, run, probe, earlier)))
    return pieces


def _faults(recipe: Recipe, settings: AnalysisSettings) -> Iterator[Fault]:
    solver = solver_of(recipe)
    if solver.facts_at_once is not None:
        yield Fault(
            "solver",
            f"{recipe.solver.kind!r} writes facts one after another, each on the weights that the one before left, so "
            "that a batch's change is no product R Q with a Q of the keys alone",
            "Take a method whose solver takes a batch at once",
        )
    shapers = [make_shaper(entry.kind, entry.model_dump(exclude={"kind"})) for entry in recipe.shaping]
    if any(isinstance(shaper, BatchShaper) for shaper in shapers):
        yield Fault(
            "shaping",
            f"{recipe.method!r} zeroes entries of a batch's change by their size, so that it is no product R Q with a "
            "Q of the keys alone",
            "Take the method without this shaping",
        )
    if len(recipe.layers) < 2:
        yield Fault(
            "layers", f"nothing is spread over one critical layer, got {list(recipe.layers)}", "Give at least two"
        )
    if bad := [size for size in settings.sizes if size > settings.count]:
        yield Fault(
            "sizes", f"a batch of {bad} cannot be made of {settings.count} facts", "Raise count, or leave it out"
        )
    for name in ("sizes", "earlier"):
        if not getattr(settings, name):
            yield Fault(name, "there are none", "Give at least one")


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    if faults := list(_faults(recipe, settings)):
        raise FaultsError(f"a study of weight shift with {recipe.method!r}", faults)


WEIGHT_SHIFT = Study(
    name="weight-shift",
    title=TITLES["weight-shift"],
    shows="How far the update of a layer by the spread residual lies from that by the residual computed there: "
    "‖ΔW_computed − ΔW_spread‖, beside the bound that the theory gives, what the triangle inequality gives in its "
    "place, and each factor of them, over the number of critical layers behind, the batch size and the number of "
    "batches that were written before. Both updates of a layer are for the same facts and keys and the same weights, "
    "those before the batch: ΔW_computed = R* Q, ΔW_spread = R_L / (n + 1) · Q, R* being computed at the layer, R_L at "
    "the last one, n the number of critical layers behind (the formulas' L − l), Q = Kᵀ (C₀ + M + K Kᵀ)⁻¹ or what the "
    "method's solver has in its place, with M where it counts history. (An edit reads the residual and the keys anew "
    "after each layer's write.) The residual is spread evenly, whatever schedule the method has. The facts looked at "
    "are the same for all sizes and all numbers of earlier batches: groups that follow one another, a smaller rest "
    "left out. The earlier batches are of other facts, batch_size each, by the method's own schedule.",
    units="Norms of updates and bounds are in the unit of W's entries, those of residuals in that of hidden states, "
    "those of Q in one over that of keys; each is named Frobenius or spectral. Tightness is shift / bound. Intervals "
    "are over groups of facts; there is none of a single group.",
    source=f"the weight-shift bound of {BOUNDARY_PAPER}; the tighter form and the spectral norms are ours",
    uses=("count", "batch_size", "sizes", "earlier"),
    pieces=_pieces,
    findings=weight_shift_findings,
    check=_check,
    needs=lambda settings: settings.count + max(settings.earlier, default=0) * settings.batch_size,
    cost=cost_text,
)
