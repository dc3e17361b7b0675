"""How series are told from each other in figures: by colour, marker, dash and hatching, of which any one would do.

The colours of a scheme differ in lightness too, so that they stay apart in grey and for the colour-blind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from errata.analysis.findings import Figure
from errata.report.markdown import visible


@dataclass(frozen=True, slots=True)
class Scheme:
    """Ink on a ground.

    Attributes:
        suffix: of the names of its files.
        soft: of what is less important than the ink's words.
        rule: of the grid.
        colours: of series; the first ones differ most.
    """

    suffix: str
    ground: str
    ink: str
    soft: str
    rule: str
    colours: tuple[str, ...]


LIGHT: Final = Scheme(
    "", "#ffffff", "#1c2026", "#59616c", "#e3e6ea",
    ("#05429a", "#de7419", "#087b3f", "#002043", "#e03695", "#8007ed", "#571503"),
)  # fmt: skip
DARK: Final = Scheme(
    "-dark", "#14171b", "#e7eaee", "#a4adb8", "#2b3138",
    ("#3c8bff", "#d44a0f", "#12dc92", "#ffffff", "#ff73c4", "#7727ff", "#ffd405"),
)  # fmt: skip
SCHEMES: Final = (LIGHT, DARK)

_CLEAR: Final = 5  # places whose colours nobody takes for each other at a glance
_MARKERS: Final = ("o", "s", "^", "D", "v", "X", "P", "p", "*")
_DASHES: Final[tuple[Any, ...]] = (
    "-",
    (0, (5, 2)),
    (0, (1.2, 1.4)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1.2, 1, 1.2, 1, 1.2)),
)
_HATCHES: Final = ("", "////", "---", "\\\\\\\\", "xxxx")  # dots would be a quarter of a megabyte in an SVG


@dataclass(frozen=True, slots=True)
class Style:
    """Of one series; ``dash`` and ``hatch`` as matplotlib has them."""

    colour: str
    marker: str
    dash: Any
    hatch: str


def style_at(place: int, scheme: Scheme) -> Style:
    """The style of the label at a place; the four repeat after different numbers of places."""
    colours = scheme.colours
    return Style(
        colours[place % len(colours)],
        _MARKERS[place % len(_MARKERS)],
        _DASHES[place % len(_DASHES)],
        _HATCHES[place % len(_HATCHES)],
    )


def places_of(*studies: Iterable[Figure]) -> dict[str, int]:
    """Of each label its place, one for all figures that are given: what is called the same looks the same.

    Labels of one figure never share a place. Those of one study do only where they are more than have clearly different
    colours; those that are in no study together begin from the first colour again.

    Args:
        studies: the figures of each.
    """
    beside: dict[str, set[str]] = {}
    near: dict[str, set[str]] = {}
    for figures in studies:
        of_figures = [_labels(figure) for figure in figures]
        of_study = {label for labels in of_figures for label in labels}
        for labels in of_figures:
            for label in labels:
                beside.setdefault(label, set()).update(labels)
                near.setdefault(label, set()).update(of_study)
    places: dict[str, int] = {}
    for label in beside:
        in_study, in_figure = ({places[other] for other in group[label] if other in places} for group in (near, beside))
        free = (place for place in range(_CLEAR) if place not in in_study)
        places[label] = next(free, next(place for place in count() if place not in in_figure))
    return places


def _labels(figure: Figure) -> list[str]:
    return list(dict.fromkeys(visible(series.label) for panel in figure.panels for series in panel.series))
