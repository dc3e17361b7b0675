"""The first screen of a benchmark's page: which method, and what it cost."""

from __future__ import annotations

import re

import pytest
from lxml import etree

from errata.report.comparison import Interval
from errata.report.overview import Overview, overview, overview_svg
from errata.results.records import Row

HOSTILE = "</svg><script>alert(1)</script>"


def rows(**methods: dict[str, tuple[float, float]]) -> list[Row]:
    """Method -> metric -> mean and half of its interval."""
    return [
        Row(method=method, metric=metric, when="after", mean=mean, low=mean - half, high=mean + half, n=100)
        for method, metrics in methods.items()
        for metric, (mean, half) in metrics.items()
    ]


def made(efficacy: float, kept: float | None = None, perplexity: float | None = None, half: float = 0.02) -> dict:
    found = {"efficacy_accuracy": (efficacy, half)}
    found |= {} if kept is None else {"untouched_accuracy_known": (kept, 0.05)}
    return found | ({} if perplexity is None else {"perplexity_ratio": (perplexity, 0.01)})


def overview_of(*stopped: str, **methods: dict) -> Overview:
    found = overview(rows(**methods), list(methods), stopped)
    assert found is not None
    return found


def test_what_was_lost_is_what_was_not_kept() -> None:
    (line,) = overview_of(a=made(0.9, kept=0.7)).lines
    assert line.efficacy == Interval(0.9, pytest.approx(0.88), pytest.approx(0.92))
    assert line.lost == Interval(pytest.approx(0.3), pytest.approx(0.25), pytest.approx(0.35))


def test_a_method_is_ahead_only_with_a_separate_interval() -> None:
    first, second = overview_of(a=made(0.9, 0.7, 1.1), b=made(0.8, 0.9, 1.0)).sentences
    assert first == "a gives the new answer to 90.0 % of the edited prompts, more than every other method."
    assert second == (
        "The cost: 30.0 % of the known answers about other subjects are lost and perplexity is 1.10 times that of the "
        "unedited model."
    )
    first, _ = overview_of(a=made(0.9, half=0.08), b=made(0.8, half=0.08)).sentences
    assert "not with an interval separate from all others" in first


def test_a_method_that_is_nearly_as_good_and_costs_less_is_named() -> None:
    _, second = overview_of(a=made(0.9, 0.7), b=made(0.88, 0.95), c=made(0.5, 1.0)).sentences
    assert second.endswith("; b, within 5 points, costs least (5.0 %).")
    _, second = overview_of(a=made(0.9, 0.95), b=made(0.88, 0.7)).sentences
    assert second.endswith(", the least of the 2 methods within 5 points.")


def test_without_control_questions_perplexity_is_the_cost() -> None:
    found = overview_of(a=made(0.9, perplexity=1.3), b=made(0.89, perplexity=1.1))
    assert found.lost == ""
    assert "b, within 5 points, costs least (1.10 times)" in found.sentences[1]
    nothing = overview_of(a=made(0.9))
    assert not nothing.can_be_drawn
    assert "not measured" in nothing.sentences[1]


def test_methods_that_stopped_are_shown_and_not_compared() -> None:
    found = overview_of("a", a=made(0.99, 0.1), b=made(0.8, 0.9))
    assert found.sentences[0].startswith("b gives")
    assert [line.is_stopped for line in found.lines] == [True, False]
    assert "stopped early" in overview_of("a", a=made(0.99, 0.1)).sentences[0]


def test_nothing_measured_is_no_overview() -> None:
    assert overview(rows(a={"perplexity_ratio": (1.0, 0.1)}), ["a"]) is None


def test_each_method_is_a_cross_in_its_colour_and_no_text_of_a_run_is_in_the_picture() -> None:
    found = overview_of(**{HOSTILE: made(0.9, 0.7), "b": made(0.6, 0.9)})
    drawn = overview_svg(found, "overview-1")
    assert "script" not in drawn
    tree = etree.fromstring(drawn)
    assert not re.search(r"#[0-9a-f]{6}", re.sub(r'(href="|url\()#\S+', "", drawn).replace("#000000", ""))
    for number, line in enumerate(found.lines):
        # Two lines, the horizontal one first, and a marker.
        strokes = [
            re.findall(r"[-\d.]+", path.get("d"))
            for path in tree.iter("{http://www.w3.org/2000/svg}path")
            if f"stroke: var(--c{number})" in (path.get("style") or "") and path.get("d").count("L") == 1
        ]
        (x1, y1, x2, y2), (x3, y3, x4, y4) = (list(map(float, points)) for points in strokes[:2])
        assert y1 == y2
        assert x3 == x4
        assert x1 < x3 < x2
        assert y3 > y1 > y4
        assert line.style == number
    assert overview_svg(found, "overview-1") == drawn  # equal bytes
