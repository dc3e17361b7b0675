"""What follows from the searches that ``steps`` made: rows, claims and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from errata.analysis.findings import Claim, Figure, Findings, Panel, Row, compared, line_of, mean_row, told
from errata.analysis.study import AnalysisSettings, Kept

UNEDITED: Final = "unedited"
EVEN: Final = "even"

# Quantity -> what pieces call it, unit.
_QUANTITIES: Final[Mapping[str, tuple[str, str]]] = {
    "evaluations": ("evaluations", "evaluations"),
    "converged facts": ("converged", "share"),
    "facts that need no change": ("known", "share"),
    "first loss": ("first loss", "nats"),
    "final loss": ("final loss", "nats"),
    "norm of δ, relative": ("norm", "‖h⁰‖"),
}


@dataclass(slots=True)
class _Searches:
    """The values of all facts, and the rows that were made of them.

    Attributes:
        values: (quantity, weights, layer) -> one of each fact, in the order of pieces.
    """

    values: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, kept: Mapping[str, Kept]) -> _Searches:
        searches = cls()
        for piece in kept.values():
            for weights, layers in piece["steps"].items():
                for layer, summary in layers.items():
                    for quantity, (key, _) in _QUANTITIES.items():
                        values = searches.values.setdefault((quantity, weights, int(layer)), [])
                        values.extend(float(value) for value in summary[key])
        for (quantity, weights, at), values in searches.values.items():
            unit = _QUANTITIES[quantity][1]
            searches.rows.append(mean_row(quantity, unit, {"weights": weights, "layer": at}, values))
        return searches

    def row(self, quantity: str, weights: str, layer: int) -> Row:
        where = {"weights": weights, "layer": layer}
        (found,) = [row for row in self.rows if row.quantity == quantity and row.where == where]
        return found

    def less(self, quantity: str, weights: str, than: str, layer: int) -> Row:
        """By how much a quantity is larger with the weights ``than``, paired over facts."""
        pairs = zip(self.values[quantity, than, layer], self.values[quantity, weights, layer], strict=True)
        name, unit = f"{quantity}, {than} minus {weights}", _QUANTITIES[quantity][1]
        found = mean_row(name, unit, {"layer": layer}, [a - b for a, b in pairs])
        self.rows.append(found)
        return found

    def claim(self, text: str, quantity: str, weights: str, than: str, layer: int) -> Claim:
        """That a quantity is smaller with some weights than with others."""
        difference = self.less(quantity, weights, than, layer)
        return Claim(
            text,
            compared(difference, claimed="positive"),
            f"{quantity}: {than} {told(self.row(quantity, than, layer))}, {weights} "
            f"{told(self.row(quantity, weights, layer))}; {than} minus {weights} {told(difference)} "
            "(paired over facts)",
        )


def findings_of(settings: AnalysisSettings, kept: Mapping[str, Kept]) -> Findings:
    """Evaluations, first losses and facts that are done, by schedule and layer, with paired claims."""
    searches = _Searches.of(kept)
    layers = sorted({layer for _, weights, layer in searches.values if weights == UNEDITED})
    first, last = layers[0], layers[-1]
    claims = [
        searches.claim(
            f"At the second boundary, layer {last}, fewer steps are needed once layer {first} is written with its own "
            "residual than on unedited weights.",
            "evaluations", "boundary", UNEDITED, last,
        ),
        searches.claim(
            f"At layer {last}, less is left to do (the loss at δ = 0) once layer {first} is written with its own "
            "residual than on unedited weights.",
            "first loss", "boundary", UNEDITED, last,
        ),
        _needless(searches, first, last),
        searches.claim(
            f"At layer {last}, less is left to do once layer {first} alone is written with its own residual than once "
            "all earlier layers are written with their shares of the last layer's.",
            "first loss", "boundary", EVEN, last,
        ),
    ]  # fmt: skip
    for layer in layers[1:-1]:
        claims.append(
            searches.claim(
                f"At layer {layer}, between the boundaries, fewer steps are needed once the earlier layers are written "
                "with residuals of their own than on unedited weights.",
                "evaluations", "own", UNEDITED, layer,
            )
        )  # fmt: skip
    return Findings(searches.rows, claims, [_figure(searches)])


def _needless(searches: _Searches, first: int, last: int) -> Claim:
    quantity = "facts that need no change"
    known = searches.values[quantity, "boundary", last]
    more = searches.less(quantity, UNEDITED, "boundary", last)
    verdict = compared(more, claimed="positive")
    return Claim(
        f"At layer {last}, part of the facts needs no change any more once layer {first} is written with its own "
        "residual: more of them than on unedited weights are done at δ = 0.",
        verdict,
        f"share of facts: unedited {told(searches.row(quantity, UNEDITED, last))}, boundary "
        f"{told(searches.row(quantity, 'boundary', last))} ({int(sum(known))} of {len(known)} facts); boundary minus "
        f"unedited {told(more)} (paired over facts); with all layers before it written, each with its own residual, "
        f"{told(searches.row(quantity, 'own', last))}",
    )


def _figure(searches: _Searches) -> Figure:
    def panel(title: str, quantity: str, label: str) -> Panel:
        by_weights: dict[str, list[Row]] = {}
        for row in searches.rows:
            if row.quantity == quantity:
                by_weights.setdefault(str(row.where["weights"]), []).append(row)
        return Panel(title, "layer", label, [line_of(rows, name, "layer") for name, rows in by_weights.items()])

    return Figure(
        "steps",
        "Searches of targets by layer, on unedited weights, and by schedule when the earlier layers of the batch are "
        "written ('even' is a fresh search at the last layer); means over facts with 95 % intervals.",
        [
            panel("Steps", "evaluations", "evaluations of the loss"),
            panel("Left to do", "first loss", "loss at δ = 0 (nats)"),
            panel("Nothing to do", "facts that need no change", "share of facts done at δ = 0"),
            panel("Length", "norm of δ, relative", "‖δ‖ / ‖h⁰‖ (1)"),
        ],
    )
