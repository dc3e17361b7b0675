"""How series are told from each other in figures: by colour, marker, dash and hatching, of which any one would do.

The colours of a scheme differ in lightness too, so that they stay apart in grey and for the colour-blind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
    ("#05429a", "#de7419", "#087b3f", "#002043", "#e03695", "#423500", "#5f5a00"),
)  # fmt: skip
DARK: Final = Scheme(
    "-dark", "#14171b", "#e7eaee", "#a4adb8", "#2b3138",
    ("#859aff", "#ffb98a", "#24d070", "#f0f3ff", "#f34ca6", "#f7dc5a", "#857f00"),
)  # fmt: skip
SCHEMES: Final = (LIGHT, DARK)

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


def places_of(figures: Iterable[Figure]) -> dict[str, int]:
    """Of each label its place, in the order of appearance: what is called the same looks the same in all of them."""
    labels = dict.fromkeys(
        visible(series.label) for figure in figures for panel in figure.panels for series in panel.series
    )
    return {label: place for place, label in enumerate(labels)}
