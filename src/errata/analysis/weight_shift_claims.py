"""How the shift of study ``weight-shift`` grows, each group of facts against itself, and what becomes of the claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from errata.analysis.findings import ENOUGH, Claim, Label, Row, compared, mean_row, told
from errata.analysis.shift_norms import FROBENIUS, READINGS, bound, tighter_bound
from errata.analysis.weight_shift_table import QUANTITIES, Case, Numbers, Table, growth, inside, slope

ENOUGH_GROUPS = ENOUGH
_ROUNDING = 1e-9  # relative: what the norms of float64 products may be off by
_GROWING = ("shift", "relative shift", "residual gap", "last residual", "Q", "bound", "tighter bound")


@dataclass(frozen=True, slots=True)
class Growths:
    """How the shift grows; see ``growths_of``.

    Attributes:
        size: the batch size that distance and earlier batches are compared at: the largest with ``ENOUGH_GROUPS``
            groups, else that with the most.
        small, large: the sizes that are compared: the least, and the largest with ``ENOUGH_GROUPS`` groups if that is
            another, else the largest.
        earlier: the numbers of earlier batches.
        first: the first critical layer.
    """

    size: int
    small: int
    large: int
    earlier: Sequence[int]
    first: int
    rows: list[Row] = field(default_factory=list)

    def of(self, quantity: str, **where: Label) -> Row | None:
        """The one row of these labels, or None where it is undefined."""
        found = [row for row in self.rows if row.quantity == quantity and row.where == where]
        return found[0] if found else None


def growths_of(table: Table, undefined: dict[str, str]) -> Growths:
    """Rows of how the shift grows over distance, batch size and earlier batches, paired over groups of facts.

    Over distance it is the slope over the layers before the last (where the shift is 0 whatever is done), in units of
    the mean; over batch size and earlier batches the difference of the most to the least, in units of the mean at the
    least, at each layer before the last and, as ``all``, on average over them.
    """
    enough = [size for size in table.sizes if table.groups(size) >= ENOUGH_GROUPS]
    size = max(enough) if enough else max(table.sizes, key=table.groups)
    larger = [found for found in enough if found > table.sizes[0]]
    large = max(larger) if larger else table.sizes[-1]
    growths = Growths(size, table.sizes[0], large, table.earlier, table.layers[0])
    before_last = table.layers[:-1]
    if len(before_last) < 2:
        undefined["growth with distance"] = "there is one layer before the last critical one"
    else:
        _with_distance(table, growths, undefined)
    if growths.small == growths.large:
        undefined["growth with batch size"] = "there is one batch size"
    else:
        _with_size(table, growths, undefined)
    if len(table.earlier) < 2:
        undefined["growth with earlier batches"] = "there is one number of earlier batches"
    else:
        _with_earlier(table, growths, undefined)
    shares = table.share_of_factor(FROBENIUS, Case(growths.first, size, table.earlier[0]))
    where: dict[str, Label] = {"layer": growths.first, "size": size, "earlier": table.earlier[0], "norm": FROBENIUS}
    _add(growths, undefined, "share of the factor in the looseness", where, shares)
    return growths


def _with_distance(table: Table, growths: Growths, undefined: dict[str, str]) -> None:
    layers = table.layers[:-1]
    for name in ("shift", "relative shift", "tightness", "tightness of the tighter bound"):
        quantity = QUANTITIES[name]
        for norm in quantity.norms:
            values = [quantity.of(table, norm, Case(layer, growths.size, table.earlier[0])) for layer in layers]
            where: dict[str, Label] = {"size": growths.size, "earlier": table.earlier[0], "norm": norm}
            found = slope(values, [table.behind(layer) for layer in layers])
            _add(growths, undefined, f"{name}, growth with distance", where, found)


def _with_size(table: Table, growths: Growths, undefined: dict[str, str]) -> None:
    start, small, large = table.earlier[0], growths.small, growths.large
    by_norm: dict[tuple[str, str], list[Numbers]] = {}
    for layer in table.layers[:-1]:
        for norm in QUANTITIES["shift"].norms:
            ones = table.part("shift", norm, Case(layer, small, start))
            whole = table.part("shift", norm, Case(layer, large, start))
            within = inside(ones, whole.shape[1], small, large)
            means = np.stack([part.mean(axis=1) for part in within], axis=1)
            roots = np.stack([np.sqrt((part**2).sum(axis=1)) for part in within], axis=1)
            compared_with = {"shift, growth with batch size": means}
            if norm == FROBENIUS and large % small == 0:
                # What the batch would shift if its parts did not bear on one another: updates in orthogonal directions.
                compared_with["shift of a batch against its parts' root sum of squares"] = roots
            for name, before in compared_with.items():
                found = growth(before, whole)
                by_norm.setdefault((name, norm), []).append(found)
                where: dict[str, Label] = {"layer": layer, "size": large, "earlier": start, "norm": norm}
                _add(growths, undefined, name, where, found)
    for (name, norm), layers in by_norm.items():
        where = {"layer": "all", "size": large, "earlier": start, "norm": norm}
        _add(growths, undefined, name, where, np.mean(layers, axis=0))


def _with_earlier(table: Table, growths: Growths, undefined: dict[str, str]) -> None:
    first, last = table.earlier[0], table.earlier[-1]
    for name in _GROWING:
        quantity = QUANTITIES[name]
        for norm in quantity.norms:
            over_layers = []
            for layer in table.layers[:-1]:
                before, after = (
                    quantity.of(table, norm, Case(layer, growths.size, number)) for number in (first, last)
                )
                found = growth(before, after)
                over_layers.append(found)
                where: dict[str, Label] = {"layer": layer, "size": growths.size, "earlier": last, "norm": norm}
                _add(growths, undefined, f"{name}, growth with earlier batches", where, found)
            where = {"layer": "all", "size": growths.size, "earlier": last, "norm": norm}
            _add(growths, undefined, f"{name}, growth with earlier batches", where, np.mean(over_layers, axis=0))


def _add(growths: Growths, undefined: dict[str, str], quantity: str, where: dict[str, Label], values: Numbers) -> None:
    known = values[np.isfinite(values)]
    if len(known):
        growths.rows.append(mean_row(quantity, "1", where, known.tolist()))
    else:
        places = ", ".join(f"{name} {value}" for name, value in where.items())
        undefined[f"{quantity}: {places}"] = "the residuals are 0: the model knows all of the facts"


def claims_of(table: Table, growths: Growths) -> list[Claim]:
    """The paper's claims and ours; those that there is nothing to compare for are left out (and named undefined)."""
    start, last = table.earlier[0], table.earlier[-1]
    at_start: dict[str, Label] = {"size": growths.size, "earlier": start, "norm": FROBENIUS}
    by_size: dict[str, Label] = {"layer": "all", "size": growths.large, "earlier": start, "norm": FROBENIUS}
    at_end: dict[str, Label] = {"layer": "all", "size": growths.size, "earlier": last, "norm": FROBENIUS}
    slopes = "slope over the layers before the last, in units of the mean per layer"
    earlier_text = f"from {start} to {last} earlier batches, mean over the layers before the last"
    size_text = f"from {growths.small} to {growths.large} facts a batch, mean over the layers before the last"
    tested: list[tuple[str, Row | None, str]] = [
        (
            "The shift of the weights grows with the distance from the last critical layer.",
            growths.of("shift, growth with distance", **at_start),
            f"{slopes}; {_by_layer(table, growths)}",
        ),
        (
            "Relative to the update itself, the shift grows with the distance from the last critical layer.",
            growths.of("relative shift, growth with distance", **at_start),
            slopes,
        ),
        (
            "The shift of the weights grows with the batch size.",
            growths.of("shift, growth with batch size", **by_size),
            f"growth {size_text}",
        ),
        (
            "It grows by more than the number of facts brings: the shift of a batch is larger than the root sum of "
            "squares of those of its parts.",
            growths.of("shift of a batch against its parts' root sum of squares", **by_size),
            f"excess over it, {size_text}",
        ),
        (
            "The shift of the weights grows with the number of earlier batches.",
            growths.of("shift, growth with earlier batches", **at_end),
            f"growth {earlier_text}; "
            + "; ".join(
                f"{name} {told(row)}"
                for name in ("residual gap", "last residual", "Q", "bound")
                if (row := growths.of(f"{name}, growth with earlier batches", **at_end))
            ),
        ),
        (
            "Relative to the update itself, the shift grows with the number of earlier batches.",
            growths.of("relative shift, growth with earlier batches", **at_end),
            f"growth {earlier_text}",
        ),
    ]
    claims = [
        Claim(text, compared(row, claimed="positive"), f"{told(row)}: {what} (Frobenius norm, paired over groups)")
        for text, row, what in tested
        if row is not None
    ]
    looser = growths.of("tightness, growth with distance", **at_start)
    if looser is not None:
        tighter = growths.of("tightness of the tighter bound, growth with distance", **at_start)
        claims.append(
            Claim(
                "The theory's bound gets looser with the distance from the last critical layer.",
                compared(looser, claimed="negative"),
                f"{told(looser)}: {slopes} of shift / bound (all norms Frobenius, paired over groups)"
                + (f"; of the tighter bound {told(tighter)}" if tighter else ""),
            )
        )
    return [*claims, *_on_looseness(table, growths), _on_validity(table)]


def _by_layer(table: Table, growths: Growths) -> str:
    """What the slope is of, and ‖Q‖, which differs from layer to layer for reasons of its own."""
    told_of = []
    for layer in table.layers[:-1]:
        case = Case(layer, growths.size, table.earlier[0])
        shift, q = (float(np.mean(table.part(part, FROBENIUS, case))) for part in ("shift", "solution"))
        told_of.append(f"layer {layer}: shift {shift:.3g}, ‖Q‖ {q:.3g}")
    return ", ".join(told_of)


def _on_looseness(table: Table, growths: Growths) -> list[Claim]:
    case = Case(growths.first, growths.size, table.earlier[0])
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
        Claim(
            f"At layer {growths.first}, the farthest from the last, the theory's bound is loose mostly because of its "
            "factor L − l.",
            compared(excess, claimed="positive"),
            f"of log(bound / shift), the share that goes with (L − l) / (L − l + 1) in the factor's place is "
            f"{told(share)} (all norms Frobenius; claimed: above 0.5); shift / bound and shift / tighter bound are, in "
            f"the norms {'; '.join(both)}",
        )
    ]


def _on_validity(table: Table) -> Claim:
    """That no shift is above its bounds; rounding aside."""
    count, bad, tightest = 0, 0, 0.0
    for earlier in table.earlier:
        for size in table.sizes:
            for layer in table.layers:
                for reading in READINGS:
                    case = Case(layer, size, earlier)
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
