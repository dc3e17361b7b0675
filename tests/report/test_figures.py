"""Figures of studies: what is drawn, that it can be read, and that nobody's labels do anything."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
from lxml import etree

from errata.analysis.findings import Figure, Findings, Panel, Series
from errata.errors import MissingExtraError
from errata.report.figures import DARK, LIGHT, SCHEMES, Scheme, composed, draw, format_number, style_at, style_indices

from tests.support.studies import KINDS, cloud, lines, mixed

HOSTILE = "</svg><script>alert(1)</script>-->]]> $x_{y}$ \\frac{ \"'& \x00\x1b\u202e\n `q` 100 %"
SVG = "{http://www.w3.org/2000/svg}"


def one_panel(*series: Series, **more: object) -> Figure:
    panel = Panel("A panel", "layer", "probability", series)
    return Figure("one", "One panel.", [replace(panel, **more)])


# Of colours: as linear light, as seen in CIELAB, and as the three kinds of colour-blind see them (Machado et al. 2009,
# "A physiologically-based model for simulation of color vision deficiency", full severity).
BLIND = {
    "nobody": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def light_of(colour: str) -> np.ndarray:
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab_of(light: np.ndarray) -> np.ndarray:
    shares = TO_XYZ @ np.clip(light, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(shares > 0.008856, np.cbrt(shares), 7.787 * shares + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_colours_differ_for_everybody_and_in_grey(scheme: Scheme) -> None:
    for kind, matrix in BLIND.items():
        seen = [lab_of(np.asarray(matrix) @ light_of(colour)) for colour in scheme.colours]
        assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > (30 if kind == "nobody" else 15)
    greys = sorted(lab_of(light_of(colour))[0] for colour in scheme.colours)
    assert min(np.diff(greys)) > 5
    for colour in (scheme.ink, *scheme.colours):
        ends = sorted(float(TO_XYZ[1] @ light_of(each)) for each in (colour, scheme.ground))
        assert (ends[1] + 0.05) / (ends[0] + 0.05) >= (7 if colour == scheme.ink else 3)


def test_any_of_marker_dash_and_colour_distinguishes_neighbours() -> None:
    styles = [style_at(index, LIGHT) for index in range(40)]
    for one, other in pairwise(styles):
        assert one.colour != other.colour
        assert one.marker != other.marker
        assert one.dash != other.dash
    assert len({(style.colour, style.marker, str(style.dash)) for style in styles}) == 40


@pytest.mark.parametrize("figure", [lines(), mixed(), cloud(40)], ids=lambda figure: figure.name)
def test_words_are_there_large_enough_and_beside_each_other(figure: Figure) -> None:
    with composed(figure, LIGHT) as canvas:
        canvas.draw_without_rendering()
        assert [axis.get_title().replace("\n", " ") for axis in canvas.axes] == [each.title for each in figure.panels]
        for axis, panel in zip(canvas.axes, figure.panels, strict=True):
            for shown, wanted, logarithmic in (
                (axis.get_xlabel(), panel.x_label, panel.log_x),
                (axis.get_ylabel(), panel.y_label, panel.log_y),
            ):
                assert shown.replace("\n", " ") == wanted + (", log scale" if logarithmic else "")
            assert (axis.get_xscale(), axis.get_yscale()) == (
                "log" if panel.log_x else "linear", "log" if panel.log_y else "linear",
            )  # fmt: skip
        texts = [text for text in canvas.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in texts) * min(1, 7 / canvas.get_figwidth()) >= 7
        legend = [text.get_text() for part in canvas.subfigs for each in part.legends for text in each.get_texts()]
        assert sorted(legend) == sorted(style_indices([figure]))
        # Ticks beyond the axes' limits are there for matplotlib, and are not drawn.
        inside = [text for text in texts if not _of_hidden_tick(canvas, text)]
        boxes = [text.get_window_extent() for text in inside]
        whole = canvas.bbox
        for box in boxes:
            assert whole.x0 - 1 <= box.x0
            assert box.x1 <= whole.x1 + 1
            assert whole.y0 - 1 <= box.y0
            assert box.y1 <= whole.y1 + 1
        level = [
            (box, text) for box, text in zip(boxes, inside, strict=True) if text.get_rotation() in (0, 90)
        ]  # a slanted text's box is mostly empty
        for (one, text), (other, second) in combinations(level, 2):
            touch = (
                min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
            )
            assert not touch, (text.get_text(), second.get_text())


def _of_hidden_tick(canvas: matplotlib.figure.Figure, text: matplotlib.text.Text) -> bool:
    for axis in canvas.axes:
        for which in (axis.xaxis, axis.yaxis):
            low, high = sorted(which.get_view_interval())
            for tick in (*which.get_major_ticks(), *which.get_minor_ticks()):
                if text in (tick.label1, tick.label2):
                    slack = 1e-9 * (high - low)
                    return not low - slack <= tick.get_loc() <= high + slack
    return False


def test_a_label_looks_the_same_in_all_panels() -> None:
    panels = [
        Panel("a", "x", "y", [Series("spread", (0, 1), (1.0, 2.0)), Series("computed", (0, 1), (2.0, 1.0))]),
        Panel("b", "x", "y", [Series("computed", (0, 1), (2.0, 1.0))]),
        Panel("c", "x", "y", [Series("computed", ("a", "b"), (2.0, 1.0))], kind="bars"),
    ]
    with composed(Figure("f", "c", panels), DARK, {"spread": 0, "computed": 3}) as canvas:
        first, second, third = canvas.axes
        style = style_at(3, DARK)
        for line in (first.lines[3], second.lines[0]):  # behind a line come the two ends of its intervals
            assert (line.get_color(), line.get_marker()) == (style.colour, style.marker)
        colour = matplotlib.colors.to_hex(third.patches[0].get_facecolor())
        assert (colour, third.patches[0].get_hatch()) == (style.colour, style.hatch)


def test_lines_and_bars_lie_where_their_values_are() -> None:
    figure = one_panel(Series("a", (3, 1, 2), (0.5, 0.25, 1.0), (0.4, None, 0.9), (0.6, None, 1.5)))
    with composed(figure, LIGHT) as canvas:
        line, low, high, *_ = canvas.axes[0].lines
        assert list(line.get_xdata()) == [3, 1, 2]
        assert list(line.get_ydata()) == [0.5, 0.25, 1.0]
        assert (list(low.get_ydata()), list(high.get_ydata())) == ([0.4, 0.9], [0.6, 1.5])
    bars = one_panel(Series("a", ("q", "p"), (1.0, -2.0)), Series("b", ("p",), (3.0,)), kind="bars")
    with composed(bars, LIGHT) as canvas:
        shown = [(round(bar.get_x() + bar.get_width() / 2, 6), bar.get_height()) for bar in canvas.axes[0].patches]
        assert shown == [(-0.2, 1.0), (0.8, -2.0), (1.2, 3.0)]
        assert [text.get_text() for text in canvas.axes[0].get_xticklabels()] == ["q", "p"]


def test_axes_are_shared_where_a_figure_says_so() -> None:
    panels = [
        Panel(f"{end}", "x", "y", [Series("a", (0.0, end), (-end, 3 * end))], kind="points") for end in (1.0, 5.0, 2.0)
    ] * 2
    for shared, several in ((False, 3), (True, 1)):
        with composed(Figure("f", "c", panels, shared_axes=shared), LIGHT) as canvas:
            assert (
                len({axis.get_xlim() for axis in canvas.axes})
                == len({axis.get_ylim() for axis in canvas.axes})
                == several
            )
            assert max(axis.get_ylim()[1] for axis in canvas.axes) > 15
    record = Findings([], figures=[Figure("f", "c", panels, shared_axes=True)]).to_record()
    assert Findings.of(record).figures[0].shared_axes
    del record["figures"][0]["shared_axes"]  # as an earlier version wrote it
    assert not Findings.of(record).figures[0].shared_axes


def test_a_level_goes_across_the_panel() -> None:
    figure = one_panel(Series("a", (0, 1, 2), (0.5, 0.25, 1.0)), Series("unedited", (), (0.75,)))
    with composed(figure, LIGHT) as canvas:
        (axis,) = canvas.axes
        (level,) = [line for line in axis.lines if list(line.get_ydata()) == [0.75, 0.75]]
        assert list(level.get_xdata()) == [0, 1]  # shares of the axes' width
        assert level.get_transform() == axis.get_yaxis_transform(which="grid")
        assert level.get_marker() == "None"
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0", "1", "2"]
    with composed(one_panel(Series("unedited", (), (-0.75,)), log_y=True), LIGHT) as canvas:
        assert "1 value not above 0" in canvas.axes[0].get_title()


def test_values_that_a_logarithmic_axis_cannot_show_are_reported() -> None:
    figure = one_panel(Series("a", (1, 2, 3), (0.1, 0.0, -1.0), (-0.1, 0.0, -2.0), (0.3, 0.0, 0.0)), log_y=True)
    with composed(figure, LIGHT) as canvas:
        assert "2 values not above 0" in canvas.axes[0].get_title()
        assert list(canvas.axes[0].lines[0].get_ydata()) == [0.1]
    with composed(one_panel(Series("a", (), ())), LIGHT) as canvas:
        assert [text.get_text() for text in canvas.axes[0].texts] == ["no values"]


def test_the_files_are_the_same_every_time_and_for_everybody() -> None:
    first = draw(lines(), DARK, name="lines")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert draw(lines(), DARK, name="lines") == first
    assert b"matplotlib" not in first.png.lower()
    assert "matplotlib.org" not in first.svg
    light = draw(lines(), LIGHT, name="lines")
    assert LIGHT.ground in light.svg
    assert DARK.ground in first.svg
    assert DARK.ink in first.svg
    assert LIGHT.ink not in first.svg


def test_hostile_labels_are_only_drawn() -> None:
    series = [Series(HOSTILE, ("a" + HOSTILE, HOSTILE), (1.0, 2.0)), Series(HOSTILE + "2", (HOSTILE,), (1.0,))]
    figure = Figure(
        HOSTILE, HOSTILE, [Panel(HOSTILE, HOSTILE, HOSTILE, series, kind=kind) for kind in ("lines", "bars")]
    )  # type: ignore[arg-type]
    drawn = draw(figure, LIGHT, name="x")
    root = etree.fromstring(drawn.svg)
    names = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert names <= {"svg", "g", "path", "use", "defs", "clipPath", "rect", "pattern"}
    assert "\\u202e" in root.get("aria-label")
    assert root.get("aria-label").startswith("</svg><script>alert(1)</script>")
    assert not set("\x00\x1b\u202e") & set(drawn.svg)
    assert (
        "script" not in drawn.svg.replace(etree.tostring(root, encoding="unicode").split(">")[0], "").split(">", 1)[1]
    )


def test_several_svgs_fit_in_one_page_in_a_page() -> None:
    drawn = draw(mixed(), LIGHT, name="first").svg
    assert drawn.startswith("<svg ")
    ids = re.findall(r'\sid="([^"]*)"', drawn)
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]*)', drawn))
    assert ids
    assert len(ids) == len(set(ids))
    assert all(each.startswith("first-") for each in ids)
    assert referred <= set(ids)
    assert "<style" not in drawn
    assert "<!--" not in drawn
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", drawn)


def test_of_many_points_there_is_one_picture_inside_the_svg() -> None:
    few, many = (draw(one, LIGHT, name="c").svg for one in (cloud(20), cloud(2000)))
    assert "<image" not in few
    assert many.count("<image") == 1
    assert all(href.startswith("data:image/png;base64,") for href in re.findall(r'<image[^>]*href="([^"]{30})', many))
    assert len(many) < 600_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (0.25, "0.25"), (-3.0, "−3"), (12500.0, "12,500"), (1e-5, "10⁻⁵"), (-2.5e7, "−2.5×10⁷"),
     (0.1 + 0.2, "0.3")],
)  # fmt: skip
def test_numbers_at_axes(value: float, expected: str) -> None:
    assert format_number(value) == expected


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="plots"):
        draw(lines(), LIGHT, name="x")


def test_styles_are_in_the_order_of_the_first_appearance() -> None:
    assert list(style_indices([lines(), mixed()]))[:4] == [*KINDS, "memit"]


def labelled(name: str, *labels: str) -> Figure:
    return Figure(name, "c", [Panel("p", "x", "y", [Series(label, (1,), (1.0,)) for label in labels])])


def test_a_label_has_one_style_in_all_studies_and_no_figure_repeats_one() -> None:
    metrics = ("efficacy", "generalisation", "specificity", "same subject", "untouched")
    studies = [
        [labelled("first", *KINDS)],
        [labelled("second", "same fact", "other facts", *KINDS, "best share")],
        [labelled("third", *metrics), labelled("fourth", "both ends", "all layers")],
        [labelled("fifth", "unedited", "computed")],
        [labelled("sixth", "memit", "memit+blue"), labelled("seventh", "W", "memit+blue", "memit")],
    ]
    styles = style_indices(*studies)
    assert [styles[kind] for kind in KINDS] == [0, 1, 2]
    for study in studies:
        for figure in study:
            of_figure = [styles[series.label] for series in figure.panels[0].series]
            assert len({style_at(index, LIGHT).colour for index in of_figure}) == len(of_figure)
    assert [styles[metric] for metric in metrics] == [0, 1, 2, 3, 4]  # in no study with those before: from the first
    assert (styles["both ends"], styles["all layers"]) == (0, 1)  # more than clear colours: differ in their figure
    assert (styles["memit"], styles["memit+blue"], styles["W"]) == (0, 1, 2)
