"""The numbers of study ``weight-shift`` by layer, batch size, earlier batches and norm, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from errata.analysis.shift_norms import FROBENIUS, READINGS, SPECTRAL, bound, tighter_bound
from errata.analysis.study import AnalysisSettings, Kept

Numbers: TypeAlias = NDArray[np.float64]
"""(seeds, groups); NaN where there is no such number."""

NORMS: Final = (FROBENIUS, SPECTRAL)


@dataclass(frozen=True, slots=True)
class Case:
    """What a number is of, beside its norm."""

    layer: int
    size: int
    earlier: int


@dataclass(frozen=True, slots=True)
class Table:
    """All that the pieces kept.

    Attributes:
        layers: the critical ones, ascending.
        sizes: batch sizes, ascending.
        earlier: numbers of earlier batches, ascending.
        kept: (seed's place, earlier) -> size -> layer -> part -> norm -> one number a group.
    """

    layers: Sequence[int]
    sizes: Sequence[int]
    earlier: Sequence[int]
    seeds: int
    kept: Mapping[tuple[int, int], Mapping[str, Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]]]

    @classmethod
    def of(cls, settings: AnalysisSettings, kept: Mapping[str, Kept], name: Callable[[int, int], str]) -> Table:
        """Of pieces, by the names that ``name`` gives a seed and a number of earlier batches."""
        sizes, earlier = sorted(set(settings.sizes)), sorted(set(settings.earlier))
        found = {
            (place, number): kept[name(seed, number)]["sizes"]
            for place, seed in enumerate(settings.seeds)
            for number in earlier
        }
        layers = [int(layer) for layer in found[0, earlier[0]][str(sizes[0])]]
        return cls(layers, sizes, earlier, len(settings.seeds), found)

    def behind(self, layer: int) -> int:
        """n: how many critical layers come behind this one."""
        return len(self.layers) - 1 - list(self.layers).index(layer)

    def groups(self, size: int) -> int:
        """Over all seeds."""
        return self.part("shift", FROBENIUS, Case(self.layers[0], size, self.earlier[0])).size

    def part(self, part: str, norm: str, case: Case) -> Numbers:
        """Something that was kept: ``shift``, ``computed``, ``gap``, ``last``, ``solution``."""
        runs = [self.kept[place, case.earlier][str(case.size)][str(case.layer)] for place in range(self.seeds)]
        return np.array([run[part][norm] for run in runs], dtype=np.float64)

    def bound(self, rule: Callable[..., Numbers], reading: str, case: Case) -> Numbers:
        of_residuals, of_q = READINGS[reading]
        gap, last = self.part("gap", of_residuals, case), self.part("last", of_residuals, case)
        return rule(gap, last, self.part("solution", of_q, case), self.behind(case.layer))

    def tightness(self, rule: Callable[..., Numbers], reading: str, case: Case) -> Numbers:
        """Shift / bound; none where the bound is 0, and so is the shift."""
        return ratio(self.part("shift", READINGS[reading][0], case), self.bound(rule, reading, case))

    def relative_shift(self, norm: str, case: Case) -> Numbers:
        """Of the computed update's norm; none where nothing is to be written."""
        return ratio(self.part("shift", norm, case), self.part("computed", norm, case))

    def share_of_factor(self, reading: str, case: Case) -> Numbers:
        """How much of log(bound / shift) is log(bound / tighter bound)."""
        stated, tighter = self.bound(bound, reading, case), self.bound(tighter_bound, reading, case)
        shift = self.part("shift", READINGS[reading][0], case)
        known = (shift > 0) & (stated > shift)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(known, np.log(stated / tighter) / np.log(stated / shift), np.nan)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A column of the study.

    Attributes:
        norms: in which it is told.
        of: its numbers, by norm and case.
    """

    unit: str
    norms: Sequence[str]
    of: Callable[[Table, str, Case], Numbers]


def _part(part: str, table: Table, norm: str, case: Case) -> Numbers:
    return table.part(part, norm, case)


def _bound(rule: Callable[..., Numbers], table: Table, reading: str, case: Case) -> Numbers:
    return table.bound(rule, reading, case)


def _tightness(rule: Callable[..., Numbers], table: Table, reading: str, case: Case) -> Numbers:
    return table.tightness(rule, reading, case)


QUANTITIES: Final[Mapping[str, Quantity]] = {
    "shift": Quantity("weight", NORMS, partial(_part, "shift")),
    "bound": Quantity("weight", tuple(READINGS), partial(_bound, bound)),
    "tighter bound": Quantity("weight", tuple(READINGS), partial(_bound, tighter_bound)),
    "tightness": Quantity("1", tuple(READINGS), partial(_tightness, bound)),
    "tightness of the tighter bound": Quantity("1", tuple(READINGS), partial(_tightness, tighter_bound)),
    "relative shift": Quantity("1", NORMS, Table.relative_shift),
    "computed update": Quantity("weight", NORMS, partial(_part, "computed")),
    "residual gap": Quantity("hidden state", NORMS, partial(_part, "gap")),
    "last residual": Quantity("hidden state", NORMS, partial(_part, "last")),
    "Q": Quantity("1/key", NORMS, partial(_part, "solution")),
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
    """For each group of a larger size the numbers of the smaller groups whose facts all lie in it, (seeds, n)."""
    found = []
    for group in range(large_groups):
        first = -(-group * large_size // small_size)
        stop = (group + 1) * large_size // small_size
        found.append(small[:, first:stop])
    return found
