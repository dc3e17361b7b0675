"""Study ``weight-shift``: distance of the update by the spread residual from that by the computed one (methods.md, 2).

Every solver that is linear in the residuals gives ΔW = R Q with a Q of the keys alone, so that the computed residual
R* and the spread one R_L / (n + 1) differ by (R* − R_L / (n + 1)) Q: n is the number of critical layers after this
one, the "L − l" of the formulas. The paper bounds its norm by (‖R* − R_L‖ + n ‖R_L‖) ‖Q‖; the triangle inequality
gives n / (n + 1) for n, for R* − R_L / (n + 1) = (R* − R_L) + n / (n + 1) · R_L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from errata.analysis.cost import cost_text
from errata.analysis.findings import (
    ENOUGH,
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
from errata.editing.batch import check_columns
from errata.editing.keys import SubjectTexts
from errata.editing.methods import BOUNDARY_PAPER
from errata.editing.preparation import EditContext
from errata.editing.recipe import Recipe
from errata.editing.schedules import Step
from errata.editing.shaping import BatchShaper
from errata.editing.solvers.base import LayerSolver
from errata.editing.target_search import layer_targets, read_states
from errata.editors.locate_then_edit import Editor
from errata.errors import Fault, FaultsError, InputError
from errata.facts.fact import Fact
from errata.models.language_model import Site
from errata.models.weights import Term
from errata.utils.tensors import float64_device
from errata.utils.text import counted

FROBENIUS: Final = "Frobenius"
SPECTRAL: Final = "spectral"
MIXED: Final = "Frobenius, Q spectral"

# Norms of a bound -> norm of shift and residuals, norm of Q. The paper leaves the norm open; ‖A B‖ is at
# most ‖A‖ ‖B‖ in each of these readings, and ‖A‖_F ‖B‖₂ is the least of those that bound the Frobenius norm.
READINGS: Final[Mapping[str, tuple[str, str]]] = {
    FROBENIUS: (FROBENIUS, FROBENIUS),
    MIXED: (FROBENIUS, SPECTRAL),
    SPECTRAL: (SPECTRAL, SPECTRAL),
}

Number = TypeVar("Number", float, NDArray[np.float64])


Norms: TypeAlias = dict[str, float]
"""Frobenius and spectral norm of a matrix."""


def norms_of(matrix: Float[Tensor, "rows columns"]) -> Norms:
    values = torch.linalg.svdvals(matrix)
    return {FROBENIUS: float(values.norm()), SPECTRAL: float(values.max())}


def solution(state: LayerSolver, keys: Float[Tensor, "d_in u"]) -> Float[Tensor, "u d_in"]:
    """Q: the solver's update for identity residuals, since then ΔW = I Q; float64."""
    identity = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    found = state.solve(keys, identity)
    return found.left @ found.right


def shift_norms(
    computed: Float[Tensor, "d_out u"], last: Float[Tensor, "d_out u"], later: int, q: Float[Tensor, "u d_in"]
) -> dict[str, Norms]:
    """The norms of one group of facts at one layer; nothing of size d_out × d_in is formed.

    Args:
        computed: R*, found at the layer.
        last: R_L, found at the last critical layer.
        later: n, the number of critical layers after this one.
        q: Q of the layer.

    Returns:
        The norms of ``shift``: ΔW_computed − ΔW_spread, ``computed``: ΔW_computed, ``gap``: R* − R_L, ``last``: R_L,
        and ``solution``: Q.
    """
    # Qᵀ = V T with orthonormal columns in V, so that ‖A Q‖ = ‖A Tᵀ Vᵀ‖ = ‖A Tᵀ‖ in both norms.
    folded = torch.linalg.qr(q.T, mode="r").R.T  # Tᵀ, (u, min(u, d_in))
    return {
        "shift": norms_of((computed - last / (later + 1)) @ folded),
        "computed": norms_of(computed @ folded),
        "gap": norms_of(computed - last),
        "last": norms_of(last),
        "solution": norms_of(folded),
    }


def bound(gap: Number, last: Number, q: Number, later: int) -> Number:
    """The paper's: (‖R* − R_L‖ + n ‖R_L‖) ‖Q‖."""
    return (gap + later * last) * q


def tighter_bound(gap: Number, last: Number, q: Number, later: int) -> Number:
    """That of the triangle inequality: (‖R* − R_L‖ + n / (n + 1) · ‖R_L‖) ‖Q‖."""
    return (gap + later / (later + 1) * last) * q


@dataclass(slots=True)
class EarlierBatches:
    """A run of batches that is in the model only within ``written``; each batch is computed once.

    Attributes:
        facts: of all batches, in order.
        size: facts per batch.
    """

    context: StudyContext
    recipe: Recipe
    facts: Sequence[Fact]
    size: int
    _editor: Editor | None = None
    _states: Mapping[int, LayerSolver] = field(default_factory=dict)

    @contextmanager
    def written(self, count: int) -> Iterator[Mapping[int, LayerSolver]]:
        """Put the first ``count`` batches into the model.

        Yields:
            layer -> the solver's state at every critical layer, with the history of the batches if it uses one; also
            for layers that the recipe's schedule does not write.

        Raises:
            ValueError: if more batches have been computed already.
            EditError: as ``Editor``; the model is restored bit for bit.
        """
        editor = self._opened()
        if count < len(editor.records):
            raise ValueError(f"{len(editor.records)} batches are computed, {count} requested: request them in order")
        edits = self.context.model.edits
        with edits.transaction():
            edits.add(self.terms)
            while len(editor.records) < count:
                self._write_next(editor)
            yield self._states
            edits.remove(self.terms)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The contexts of the run."""
        return self.context.prepared(self.recipe).prefixes

    @property
    def terms(self) -> list[Term]:
        """The terms of the batches computed so far."""
        return [] if self._editor is None else [term for record in self._editor.records for term in record.terms]

    def _opened(self) -> Editor:
        if self._editor is None:
            prepared = self.context.prepared(self.recipe)
            context = self.context
            self._editor = Editor(
                context.model, self.recipe, cache=context.cache, report=context.report, prepared=prepared
            )
            self._states = {layer: prepared.solvers[layer] for layer in context.layers}
        return self._editor

    def _write_next(self, editor: Editor) -> None:
        start = len(editor.records) * self.size
        facts = self.facts[start : start + self.size]
        record = editor.apply_batch(facts)
        if not self.recipe.solver.uses_history:
            return
        model, layers = self.context.model, [layer for layer in self._states if layer not in record.keys]
        keys = dict(record.keys)
        if layers:
            device = float64_device(model.device)
            texts = SubjectTexts.tokenise(model, facts, editor.prefixes)
            others = texts.read(Site.KEY, layers, self.recipe.contexts.keys)
            keys |= {layer: mean.to(device) for layer, (mean, _) in others.items()}
        self._states = {layer: state.remember(keys[layer]) for layer, state in self._states.items()}


Numbers: TypeAlias = NDArray[np.float64]
"""(seeds, groups); NaN where there is no such number."""

NORMS: Final = (FROBENIUS, SPECTRAL)


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition that a number was measured under, besides its norm."""

    layer: int
    size: int
    earlier: int


@dataclass(frozen=True, slots=True)
class Table:
    """The results of all tasks.

    Attributes:
        layers: the critical ones, ascending.
        sizes: batch sizes, ascending.
        earlier: numbers of earlier batches, ascending.
        saved: (seed's place, earlier) -> size -> layer -> part -> norm -> one number a group.
    """

    layers: Sequence[int]
    sizes: Sequence[int]
    earlier: Sequence[int]
    seeds: int
    saved: Mapping[tuple[int, int], Mapping[str, Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]]]

    @classmethod
    def of(cls, settings: AnalysisSettings, saved: Mapping[str, TaskRecord], name: Callable[[int, int], str]) -> Table:
        """Of tasks, by the names that ``name`` gives a seed and a number of earlier batches."""
        sizes, earlier = sorted(set(settings.sizes)), sorted(set(settings.earlier))
        found = {
            (place, number): saved[name(seed, number)]["sizes"]
            for place, seed in enumerate(settings.seeds)
            for number in earlier
        }
        layers = [int(layer) for layer in found[0, earlier[0]][str(sizes[0])]]
        return cls(layers, sizes, earlier, len(settings.seeds), found)

    def later(self, layer: int) -> int:
        """n: the number of critical layers after this one."""
        return len(self.layers) - 1 - list(self.layers).index(layer)

    def groups(self, size: int) -> int:
        """Over all seeds."""
        return self.part("shift", FROBENIUS, Condition(self.layers[0], size, self.earlier[0])).size

    def part(self, part: str, norm: str, case: Condition) -> Numbers:
        """One of ``shift``, ``computed``, ``gap``, ``last``, ``solution``."""
        runs = [self.saved[place, case.earlier][str(case.size)][str(case.layer)] for place in range(self.seeds)]
        return np.array([run[part][norm] for run in runs], dtype=np.float64)

    def bound(self, rule: Callable[..., Numbers], reading: str, case: Condition) -> Numbers:
        of_residuals, of_q = READINGS[reading]
        gap, last = self.part("gap", of_residuals, case), self.part("last", of_residuals, case)
        return rule(gap, last, self.part("solution", of_q, case), self.later(case.layer))

    def tightness(self, rule: Callable[..., Numbers], reading: str, case: Condition) -> Numbers:
        """Shift / bound; NaN where both are 0."""
        return ratio(self.part("shift", READINGS[reading][0], case), self.bound(rule, reading, case))

    def relative_shift(self, norm: str, case: Condition) -> Numbers:
        """Shift / norm of the computed update; NaN where that is 0."""
        return ratio(self.part("shift", norm, case), self.part("computed", norm, case))

    def share_of_factor(self, reading: str, case: Condition) -> Numbers:
        """log(bound / tighter bound) / log(bound / shift)."""
        stated, tighter = self.bound(bound, reading, case), self.bound(tighter_bound, reading, case)
        shift = self.part("shift", READINGS[reading][0], case)
        known = (shift > 0) & (stated > shift)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(known, np.log(stated / tighter) / np.log(stated / shift), np.nan)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity of the study.

    Attributes:
        norms: in which it is given.
        of: its numbers, by norm and condition.
    """

    unit: str
    norms: Sequence[str]
    of: Callable[[Table, str, Condition], Numbers]


QUANTITIES: Final[Mapping[str, Quantity]] = {
    "shift": Quantity("weight", NORMS, lambda table, *where: table.part("shift", *where)),
    "bound": Quantity("weight", tuple(READINGS), lambda table, *where: table.bound(bound, *where)),
    "tighter bound": Quantity("weight", tuple(READINGS), lambda table, *where: table.bound(tighter_bound, *where)),
    "tightness": Quantity("1", tuple(READINGS), lambda table, *where: table.tightness(bound, *where)),
    "tightness of the tighter bound": Quantity(
        "1", tuple(READINGS), lambda table, *where: table.tightness(tighter_bound, *where)
    ),
    "relative shift": Quantity("1", NORMS, Table.relative_shift),
    "computed update": Quantity("weight", NORMS, lambda table, *where: table.part("computed", *where)),
    "residual gap": Quantity("hidden state", NORMS, lambda table, *where: table.part("gap", *where)),
    "last residual": Quantity("hidden state", NORMS, lambda table, *where: table.part("last", *where)),
    "Q": Quantity("1/key", NORMS, lambda table, *where: table.part("solution", *where)),
}
"""``residual gap`` is ‖R* − R_L‖, ``last residual`` ‖R_L‖, ``relative shift`` shift / ‖ΔW_computed‖."""


def ratio(above: Numbers, below: Numbers) -> Numbers:
    """NaN where ``below`` is 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def growth(before: Numbers, after: Numbers) -> Numbers:
    """(after − before) of each group, in units of the mean of ``before``: their mean is the growth of the mean."""
    unit = float(np.nanmean(before)) if np.isfinite(before).any() else float("nan")
    return (after - before) / unit if unit > 0 else np.full_like(after, np.nan)


def slope(values: Sequence[Numbers], places: Sequence[int]) -> Numbers:
    """The least-squares slope of each group over ``places``, in units of the mean of all ``values``."""
    stacked = np.stack(values)
    centred = np.asarray(places, dtype=np.float64) - np.mean(places)
    unit = float(np.nanmean(stacked)) if np.isfinite(stacked).any() else float("nan")
    found: Numbers = np.tensordot(centred / (centred**2).sum(), stacked, axes=1)
    return found / unit if unit > 0 else np.full_like(found, np.nan)


def inside(small: Numbers, large_groups: int, small_size: int, large_size: int) -> list[Numbers]:
    """For each larger group the numbers of the smaller groups that it contains, (seeds, n)."""
    found = []
    for group in range(large_groups):
        first = -(-group * large_size // small_size)
        stop = (group + 1) * large_size // small_size
        found.append(small[:, first:stop])
    return found


_ROUNDING = 1e-9  # relative rounding error of norms of float64 products
_GROWING = ("shift", "relative shift", "residual gap", "last residual", "Q", "bound", "tighter bound")


@dataclass(frozen=True, slots=True)
class Growths:
    """How the shift grows over distance, batch size and earlier batches, paired over groups of facts.

    Over distance it is the slope over the layers before the last (where the shift is always 0), in units of the mean;
    over batch size and earlier batches the difference of the most to the least, in units of the mean at the least, at
    each layer before the last and, as ``all``, on average over them.

    Attributes:
        size: the batch size that distance and earlier batches are compared at: the largest with ``ENOUGH`` groups,
            else that with the most.
        small, large: the sizes that are compared: the least, and the largest with ``ENOUGH`` groups if that is
            another, else the largest.
        undefined: what could not be computed -> why.
    """

    table: Table
    size: int
    small: int
    large: int
    rows: list[Finding] = field(default_factory=list)
    undefined: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Table) -> Growths:
        enough = [size for size in table.sizes if table.groups(size) >= ENOUGH]
        size = max(enough) if enough else max(table.sizes, key=table.groups)
        larger = [found for found in enough if found > table.sizes[0]]
        growths = cls(table, size, table.sizes[0], max(larger) if larger else table.sizes[-1])
        growths._with_distance()
        growths._with_size()
        growths._with_earlier()
        where: dict[str, Label] = {"layer": growths.first, "size": size, "earlier": growths.start, "norm": FROBENIUS}
        shares = table.share_of_factor(FROBENIUS, Condition(growths.first, size, growths.start))
        growths._add("share of the factor in the looseness", where, shares)
        return growths

    @property
    def first(self) -> int:
        """The first critical layer."""
        return self.table.layers[0]

    @property
    def start(self) -> int:
        """The least number of earlier batches."""
        return self.table.earlier[0]

    def row(self, quantity: str, **where: Label) -> Finding | None:
        """The one row of these labels, or None where it is undefined."""
        found = [row for row in self.rows if row.quantity == quantity and row.where == where]
        return found[0] if found else None

    def _with_distance(self) -> None:
        table, layers = self.table, self.table.layers[:-1]
        if len(layers) < 2:
            self.undefined["growth with distance"] = "there is one layer before the last critical one"
            return
        for name in ("shift", "relative shift", "tightness", "tightness of the tighter bound"):
            quantity = QUANTITIES[name]
            for norm in quantity.norms:
                values = [quantity.of(table, norm, Condition(layer, self.size, self.start)) for layer in layers]
                where: dict[str, Label] = {"size": self.size, "earlier": self.start, "norm": norm}
                found = slope(values, [table.later(layer) for layer in layers])
                self._add(f"{name}, growth with distance", where, found)

    def _with_size(self) -> None:
        table, small, large = self.table, self.small, self.large
        if small == large:
            self.undefined["growth with batch size"] = "there is one batch size"
            return
        by_norm: dict[tuple[str, str], list[Numbers]] = {}
        for layer in table.layers[:-1]:
            for norm in QUANTITIES["shift"].norms:
                ones = table.part("shift", norm, Condition(layer, small, self.start))
                whole = table.part("shift", norm, Condition(layer, large, self.start))
                within = inside(ones, whole.shape[1], small, large)
                whole = whole[:, [part.shape[1] > 0 for part in within]]
                within = [part for part in within if part.shape[1] > 0]
                if not within:
                    reason = f"no group of {large} facts contains a whole group of {small}"
                    self.undefined["growth with batch size"] = reason
                    return
                means = np.stack([part.mean(axis=1) for part in within], axis=1)
                compared_with = {"shift, growth with batch size": means}
                if norm == FROBENIUS and large % small == 0:
                    # The batch's shift if the updates of its parts were orthogonal.
                    roots = np.stack([np.sqrt((part**2).sum(axis=1)) for part in within], axis=1)
                    compared_with["shift of a batch against its parts' root sum of squares"] = roots
                for name, before in compared_with.items():
                    found = growth(before, whole)
                    by_norm.setdefault((name, norm), []).append(found)
                    self._add(name, {"layer": layer, "size": large, "earlier": self.start, "norm": norm}, found)
        for (name, norm), layers in by_norm.items():
            where: dict[str, Label] = {"layer": "all", "size": large, "earlier": self.start, "norm": norm}
            self._add(name, where, np.mean(layers, axis=0))

    def _with_earlier(self) -> None:
        table, last = self.table, self.table.earlier[-1]
        if len(table.earlier) < 2:
            self.undefined["growth with earlier batches"] = "there is one number of earlier batches"
            return
        for name in _GROWING:
            quantity = QUANTITIES[name]
            for norm in quantity.norms:
                where: dict[str, Label] = {"size": self.size, "earlier": last, "norm": norm}
                over_layers = []
                for layer in table.layers[:-1]:
                    before, after = (
                        quantity.of(table, norm, Condition(layer, self.size, number)) for number in (self.start, last)
                    )
                    over_layers.append(growth(before, after))
                    self._add(f"{name}, growth with earlier batches", {"layer": layer, **where}, over_layers[-1])
                whole = np.mean(over_layers, axis=0)
                self._add(f"{name}, growth with earlier batches", {"layer": "all", **where}, whole)

    def _add(self, quantity: str, where: Mapping[str, Label], values: Numbers) -> None:
        known = values[np.isfinite(values)]
        if len(known):
            self.rows.append(mean_row(quantity, "1", where, known.tolist()))
        else:
            places = ", ".join(f"{name} {value}" for name, value in where.items())
            self.undefined[f"{quantity}: {places}"] = "the residuals are 0: the model knows all of the facts"


def claims_of(growths: Growths) -> list[Claim]:
    """The paper's claims and ours; those without data are left out (and listed as undefined)."""
    table = growths.table
    start, last = table.earlier[0], table.earlier[-1]
    at_start: dict[str, Label] = {"size": growths.size, "earlier": start, "norm": FROBENIUS}
    by_size: dict[str, Label] = {"layer": "all", "size": growths.large, "earlier": start, "norm": FROBENIUS}
    at_end: dict[str, Label] = {"layer": "all", "size": growths.size, "earlier": last, "norm": FROBENIUS}
    slopes = "slope over the layers before the last, in units of the mean per layer"
    earlier_text = f"from {start} to {last} earlier batches, mean over the layers before the last"
    size_text = f"from {growths.small} to {growths.large} facts a batch, mean over the layers before the last"
    tested: list[tuple[str, Finding | None, str]] = [
        (
            "The shift of the weights grows with the distance from the last critical layer.",
            growths.row("shift, growth with distance", **at_start),
            f"{slopes}; {_by_layer(growths)}",
        ),
        (
            "Relative to the update itself, the shift grows with the distance from the last critical layer.",
            growths.row("relative shift, growth with distance", **at_start),
            slopes,
        ),
        (
            "The shift of the weights grows with the batch size.",
            growths.row("shift, growth with batch size", **by_size),
            f"growth {size_text}",
        ),
        (
            "The growth exceeds what the number of facts explains: the shift of a batch is larger than the root sum of "
            "squares of those of its parts.",
            growths.row("shift of a batch against its parts' root sum of squares", **by_size),
            f"excess over it, {size_text}",
        ),
        (
            "The shift of the weights grows with the number of earlier batches.",
            growths.row("shift, growth with earlier batches", **at_end),
            f"growth {earlier_text}; "
            + "; ".join(
                f"{name} {with_n(row)}"
                for name in ("residual gap", "last residual", "Q", "bound")
                if (row := growths.row(f"{name}, growth with earlier batches", **at_end))
            ),
        ),
        (
            "Relative to the update itself, the shift grows with the number of earlier batches.",
            growths.row("relative shift, growth with earlier batches", **at_end),
            f"growth {earlier_text}",
        ),
    ]
    claims = [
        Claim.on(row, text, f"{with_n(row)}: {what} (Frobenius norm, paired over groups)")
        for text, row, what in tested
        if row is not None
    ]
    looser = growths.row("tightness, growth with distance", **at_start)
    if looser is not None:
        tighter = growths.row("tightness of the tighter bound, growth with distance", **at_start)
        claims.append(
            Claim.on(
                looser,
                "The theory's bound becomes looser with the distance from the last critical layer.",
                f"{with_n(looser)}: {slopes} of shift / bound (all norms Frobenius, paired over groups)"
                + (f"; of the tighter bound {with_n(tighter)}" if tighter else ""),
                claimed="negative",
            )
        )
    return [*claims, *_on_looseness(growths), _on_validity(table)]


def _by_layer(growths: Growths) -> str:
    """Shift and ‖Q‖ by layer; ‖Q‖ varies between layers independently of the residuals."""
    table, shown = growths.table, []
    for layer in table.layers[:-1]:
        case = Condition(layer, growths.size, growths.start)
        shift, q = (float(np.mean(table.part(part, FROBENIUS, case))) for part in ("shift", "solution"))
        shown.append(f"layer {layer}: shift {shift:.3g}, ‖Q‖ {q:.3g}")
    return ", ".join(shown)


def _on_looseness(growths: Growths) -> list[Claim]:
    table, case = growths.table, Condition(growths.first, growths.size, growths.start)
    shares = table.share_of_factor(FROBENIUS, case)
    known = shares[np.isfinite(shares)]
    if not len(known):
        return []
    excess = mean_row("share", "1", {}, (known - 0.5).tolist())
    share = mean_row("share", "1", {}, known.tolist())
    both = []
    for reading in READINGS:
        stated, tighter = (table.tightness(rule, reading, case) for rule in (bound, tighter_bound))
        both.append(f"{reading}: {np.nanmean(stated):.3g} and {np.nanmean(tighter):.3g}")
    return [
        Claim.on(
            excess,
            f"At layer {growths.first}, the farthest from the last, the theory's bound is loose mostly because of its "
            "factor L − l.",
            f"of log(bound / shift), the share that goes with (L − l) / (L − l + 1) in the factor's place is "
            f"{with_n(share)} (all norms Frobenius; claimed: above 0.5); shift / bound and shift / tighter bound are, "
            f"in the norms {'; '.join(both)}",
        )
    ]


def _on_validity(table: Table) -> Claim:
    """No shift exceeds its bounds, except by rounding."""
    count, bad, tightest = 0, 0, 0.0
    for earlier in table.earlier:
        for size in table.sizes:
            for layer in table.layers:
                for reading in READINGS:
                    case = Condition(layer, size, earlier)
                    shift = table.part("shift", READINGS[reading][0], case)
                    tighter, stated = (table.bound(rule, reading, case) for rule in (tighter_bound, bound))
                    wrong = (shift > tighter * (1 + _ROUNDING)) | (tighter > stated * (1 + _ROUNDING))
                    count, bad = count + shift.size, bad + int(wrong.sum())
                    known = table.tightness(tighter_bound, reading, case)
                    tightest = max(tightest, float(np.nanmax(known, initial=0.0)))
    return Claim(
        "The shift is never above the tighter bound, nor that above the theory's.",
        "holds" if bad == 0 else "does not hold",
        f"{count} comparisons (groups, layers, sizes, earlier batches, norms), {bad} of them against it; the largest "
        f"shift / tighter bound is {tightest:.4g}",
    )


_LINES = {"shift": "shift", "tighter bound": "tighter bound", "bound": "bound of the theory"}


def piece_name(seed: int, earlier: int) -> str:
    return f"seed-{seed}-after-{earlier}"


def weight_shift_findings(settings: AnalysisSettings, saved: Mapping[str, TaskRecord]) -> Findings:
    """Rows, claims and figures."""
    table = Table.of(settings, saved, piece_name)
    undefined: dict[str, str] = {}
    rows = _rows(table, undefined)
    growths = Growths.of(table)
    undefined |= growths.undefined
    return Findings([*rows, *growths.rows], claims_of(growths), _figures(rows, growths), (), undefined)


def _rows(table: Table, undefined: dict[str, str]) -> list[Finding]:
    rows: list[Finding] = []
    for earlier in table.earlier:
        for size in table.sizes:
            for layer in table.layers:
                for name, quantity in QUANTITIES.items():
                    for norm in quantity.norms:
                        found = quantity.of(table, norm, Condition(layer, size, earlier)).ravel()
                        where: dict[str, Label] = {
                            "layer": layer,
                            "distance": table.later(layer),
                            "size": size,
                            "earlier": earlier,
                            "norm": norm,
                        }
                        if len(known := found[np.isfinite(found)]):
                            rows.append(mean_row(name, quantity.unit, where, known.tolist()))
                        elif table.later(layer) == 0:
                            undefined[f"{name} at layer {layer}"] = (
                                "it is the last critical layer, where both updates are one and the bound is 0"
                            )
                        else:
                            undefined[f"{name} at layer {layer}, size {size}, after {earlier} batches"] = (
                                "the residuals are 0: the model knows all of the facts"
                            )
    return rows


def _figures(rows: list[Finding], growths: Growths) -> list[Figure]:
    """At ``growths.large``, as with one fact a batch all matrices are of rank 1 and all norms the same."""
    table, first, size, start = growths.table, growths.first, growths.large, growths.start
    groups = table.groups(size)
    means = f"mean over {counted(groups, 'group')}" + (" with 95 % intervals" if groups > 1 else "")
    large = f"{counted(size, 'fact')} a batch"
    if len(table.sizes) > 1:
        enough = groups >= ENOUGH
        large += f" ({'the largest size with' if enough else f'no size above {table.sizes[0]} has'} {ENOUGH} groups)"
    large += ", where all norms coincide" if size == 1 else ""
    earlier = counted(start, "earlier batch")
    left = f"critical layers left to the last ({table.later(first)}: layer {first}, 0: layer {table.layers[-1]})"
    at_start: dict[str, Label] = {"size": size, "earlier": start}
    titles = {"tightness": "Bound of the theory", "tightness of the tighter bound": "Tighter bound"}
    return [
        Figure(
            "weight-shift-distance",
            "Shift of the weights by spreading the residual, with its bounds, over the number of critical layers from "
            f"the one that is written to the last; {large}; {earlier}; {means}.",
            _panels(rows, "distance", at_start, left),
        ),
        Figure(
            "weight-shift-size",
            f"Shift of the weights at layer {first}, with its bounds, over the batch size (both axes logarithmic); "
            f"{earlier}; mean over groups with 95 % intervals, none where there is one group.",
            _panels(rows, "size", {"layer": first, "earlier": start}, "facts a batch", log=True),
        ),
        Figure(
            "weight-shift-earlier",
            f"Shift of the weights at layer {first}, with its bounds, over the number of batches written before; "
            f"{large}; {means}.",
            _panels(rows, "earlier", {"layer": first, "size": size}, "earlier batches"),
        ),
        Figure(
            "weight-shift-tightness",
            "How tight the bounds are: shift / bound, by the number of critical layers left to the last and by the "
            f"norm of the bound; {large}; {earlier}; {means}.",
            [
                Panel(
                    title,
                    left,
                    "shift / bound (1 is tight)",
                    [_line(rows, name, reading, reading, "distance", at_start) for reading in READINGS],
                )
                for name, title in titles.items()
            ],
        ),
    ]


def _panels(rows: list[Finding], x: str, where: Mapping[str, Label], x_label: str, *, log: bool = False) -> list[Panel]:
    """The shift and its bounds, in each of ``READINGS``."""
    panels = []
    for reading, (of_shift, _) in READINGS.items():
        series = [
            _line(rows, name, of_shift if name == "shift" else reading, label, x, where)
            for name, label in _LINES.items()
        ]
        label = f"norm of the update's shift, {of_shift} (unit of W)"
        panels.append(Panel(f"Norms: {reading}", x_label, label, series, log_x=log, log_y=log))
    return panels


def _line(rows: list[Finding], quantity: str, norm: str, label: str, x: str, where: Mapping[str, Label]) -> Series:
    chosen = [
        row
        for row in rows
        if row.quantity == quantity
        and row.where["norm"] == norm
        and all(row.where[name] == value for name, value in where.items())
    ]
    return line_of(chosen, label, x)


def residuals_now(
    context: StudyContext, recipe: Recipe, facts: Sequence[Fact], prefixes: Sequence[str], written: Sequence[Term]
) -> dict[int, Tensor]:
    """The residual z − h of each critical layer before a batch is written, on the current weights (z on the original
    ones where the recipe says so); layer -> (d_out, facts) float64.

    Args:
        written: terms of the run so far.
    """
    edit = EditContext(context.model, recipe, prefixes, (), context.report)
    texts = SubjectTexts.tokenise(context.model, facts, prefixes)
    found = {}
    for layer in context.layers:
        target = layer_targets(edit, texts, Step(layer, layer, 1.0), written)[layer]
        found[layer] = target.delta
        if recipe.target.weights == "original":
            found[layer] = target.delta + (target.states - read_states(edit, texts, layer))
        check_columns("residual", found[layer], facts, layer)
    return found


def group_norms(
    residuals: Mapping[int, Tensor], keys: Mapping[int, Tensor], states: Mapping[int, LayerSolver], size: int
) -> dict[int, list[dict[str, Norms]]]:
    """Layer -> the norms of each group of ``size`` facts, in order; an incomplete last group is left out."""
    layers = list(residuals)
    last = residuals[layers[-1]]
    found: dict[int, list[dict[str, Norms]]] = {layer: [] for layer in layers}
    for index, layer in enumerate(layers):
        for start in range(0, last.shape[1] // size * size, size):
            chosen = slice(start, start + size)
            q = solution(states[layer], keys[layer][:, chosen])
            later = len(layers) - 1 - index
            found[layer].append(shift_norms(residuals[layer][:, chosen], last[:, chosen], later, q))
    return found


def _measure(context: StudyContext, run: EarlierBatches, probe: Sequence[Fact], earlier: int) -> TaskRecord:
    model, recipe, device = context.model, run.recipe, float64_device(context.model.device)
    with run.written(earlier) as states:
        residuals = {
            layer: found.to(device)
            for layer, found in residuals_now(context, recipe, probe, run.prefixes, run.terms).items()
        }
        texts = SubjectTexts.tokenise(model, probe, run.prefixes)
        read = texts.read(Site.KEY, context.layers, recipe.contexts.keys)
        keys = {layer: mean.to(device) for layer, (mean, _) in read.items()}
        saved = {}
        for number, size in enumerate(sorted(set(context.settings.sizes))):
            context.report("groups", number, len(context.settings.sizes))
            groups = group_norms(residuals, keys, states, size)
            saved[str(size)] = {str(layer): _as_lists(norms) for layer, norms in groups.items()}
    return {"sizes": saved}


def _as_lists(groups: Sequence[Mapping[str, Norms]]) -> dict[str, dict[str, list[float]]]:
    """Quantity -> norm -> one number per group."""
    return {name: {norm: [group[name][norm] for group in groups] for norm in NORMS} for name in groups[0]}


def _tasks(context: StudyContext) -> list[StudyTask]:
    settings = context.settings
    needed = settings.count + max(settings.earlier) * settings.batch_size
    tasks = []
    for seed in settings.seeds:
        facts = context.materials[seed].facts.facts
        if len(facts) < needed:
            raise InputError(
                f"{settings.count} facts and {max(settings.earlier)} earlier batches of {settings.batch_size} need "
                f"{needed} facts, got {len(facts)} for seed {seed}",
                remedy="Use more facts, or lower count, earlier or batch_size",
                code="STUDY_TOO_FEW_FACTS",
            )
        probe, rest = facts[: settings.count], facts[settings.count : needed]
        # The tasks of a seed share a run; after an interruption the next task computes the earlier batches again.
        run = EarlierBatches(context, context.recipe_for(seed), rest, settings.batch_size)
        for earlier in sorted(set(settings.earlier)):
            tasks.append(StudyTask(piece_name(seed, earlier), partial(_measure, context, run, probe, earlier)))
    return tasks


def _faults(recipe: Recipe, settings: AnalysisSettings) -> Iterator[Fault]:
    if recipe.solver.facts_at_once is not None:
        yield Fault(
            "solver",
            f"{recipe.solver.kind!r} writes facts one after another: a batch's change is not a product R Q with "
            "a Q of the keys alone",
            "Use a method whose solver writes a batch at once",
            code="STUDY_SOLVER_UNSUITABLE",
        )
    if any(isinstance(shaper, BatchShaper) for shaper in recipe.shaping):
        yield Fault(
            "shaping",
            f"{recipe.method!r} zeroes entries of a batch's change by size: it is not a product R Q with a Q of "
            "the keys alone",
            "Use the method without this shaping",
            code="STUDY_RECIPE_UNSUITABLE",
        )
    if len(recipe.layers) < 2:
        yield Fault(
            "layers",
            f"a residual is spread over two critical layers or more, got {list(recipe.layers)}",
            "Use a recipe with several layers",
            code="STUDY_NEEDS_LAYERS",
        )
    if bad := [size for size in settings.sizes if size > settings.count]:
        yield Fault(
            "sizes",
            f"batch sizes {bad} exceed the {settings.count} facts",
            "Raise count, or leave them out",
            code="STUDY_TOO_FEW_FACTS",
        )
    for name in ("sizes", "earlier"):
        if not getattr(settings, name):
            yield Fault(name, "expected at least one value", "Give one", code="STUDY_SETTING_INVALID")


def _check(recipe: Recipe, settings: AnalysisSettings) -> None:
    if faults := list(_faults(recipe, settings)):
        raise FaultsError(f"a study of weight shift with {recipe.method!r}", faults)


WEIGHT_SHIFT = Study(
    name="weight-shift",
    shows="The distance between the update of a layer with the spread residual and the update with the residual "
    "computed there, ‖ΔW_computed − ΔW_spread‖. It is compared with the theoretical bound, with the bound that "
    "the triangle inequality gives, and with each of their factors. It depends on the number of critical "
    "layers after the layer, the batch size and the number of batches written before. Both updates of a "
    "layer are for the same facts, keys and weights, those before the batch: ΔW_computed = R* Q and ΔW_spread "
    "= R_L / (n + 1) · Q. R* is computed at the layer, R_L at the last layer, and n is the number of critical "
    "layers after it (L − l in the formulas). Q is Kᵀ (C₀ + M + K Kᵀ)⁻¹, or the corresponding matrix of the "
    "method's solver, with M if the method uses history. (An edit would read the residual and "
    "the keys again after each layer's write.) The residual is spread evenly, whatever the method's "
    "schedule. The facts examined are the same for all sizes and all numbers of earlier batches: "
    "consecutive groups, without a smaller remainder. Earlier batches consist of other facts, batch_size "
    "each, written with the method's own schedule.",
    units="Norms of updates and bounds are in units of W's entries, those of residuals in units of hidden states, "
    "those of Q in inverse units of keys; each is named Frobenius or spectral. Tightness is shift / bound. "
    "Intervals are over groups of facts; a single group has none.",
    source=f"the weight-shift bound of {BOUNDARY_PAPER}; the tighter form and the spectral norms are ours",
    uses=("count", "batch_size", "sizes", "earlier"),
    tasks=_tasks,
    findings=weight_shift_findings,
    check=_check,
    needs=lambda settings: settings.count + max(settings.earlier, default=0) * settings.batch_size,
    cost=cost_text,
)
