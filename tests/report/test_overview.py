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
    assert line.lost["untouched_accuracy_known"] == Interval(
        pytest.approx(0.3), pytest.approx(0.25), pytest.approx(0.35)
    )


def test_a_method_is_ahead_only_with_a_separate_interval() -> None:
    first, second = overview_of(a=made(0.9, 0.7, 1.1), b=made(0.8, 0.9, 1.0)).sentences
    assert first == "a gives the new answer to 90.0 % [88.0, 92.0] of the edited prompts, more than every other method."
    assert second == (
        "The cost: 30.0 % [25.0, 35.0] of the known answers about other subjects are lost, and perplexity is 1.10 "
        "times [1.09, 1.11] that of the unedited model."
    )
    first, _ = overview_of(a=made(0.9, half=0.08), b=made(0.8, half=0.08)).sentences
    assert "more than" not in first
    assert "overlaps with that of another method" in first


@pytest.mark.parametrize(
    ("kind", "kept"), [("same_subject", 0.65), ("specificity", 0.4), ("unrelated", 0.8), ("untouched", 0.1)]
)
def test_the_largest_loss_is_named_with_its_interval(kind: str, kept: float) -> None:
    metrics = made(0.9, perplexity=1.0)
    for other in ("same_subject", "specificity", "unrelated", "untouched"):
        metrics[f"{other}_accuracy_known"] = (0.98, 0.01)
    metrics[f"{kind}_accuracy_known"] = (kept, 0.05)
    found = overview_of(a=metrics)
    name = {
        "same_subject": "other answers about the same subjects",
        "specificity": "answers about neighbours",
        "unrelated": "answers to unrelated questions",
        "untouched": "answers about other subjects",
    }
    lost = 100 * (1 - kept)
    share = f"{lost:.1f} % [{lost - 5:.1f}, {lost + 5:.1f}]"
    cost = found.sentences[1]
    assert cost.startswith(f"The cost: {share} of the known {name[kind]} are lost (the largest measured loss)")
    assert "perplexity is 1.00 times [0.99, 1.01]" in cost
    # The broadest kind, which the picture shows, is in the sentence too, once.
    assert ("2.0 % [1.0, 3.0] of the known answers about other subjects" in cost) == (kind != "untouched")
    assert cost.count("other subjects") == 1
    cells = {column.heading: column.cells for column in found.columns}
    assert cells[f"{name[kind]} lost, %"] == ((f"{lost:.1f}", f"[{lost - 5:.1f}, {lost + 5:.1f}]"),)


def test_equal_losses_are_not_called_the_largest() -> None:
    _, cost = overview_of(a=made(0.9, 0.95) | {"specificity_accuracy_known": (0.95, 0.05)}).sentences
    assert "largest" not in cost
    assert "5.0 % [0.0, 10.0] of the known answers about other subjects are lost" in cost


def test_the_main_table_has_every_measured_cost_and_no_empty_column() -> None:
    one = made(0.9, 0.98, 1.1) | {"same_subject_accuracy_known": (0.65, 0.15), "seconds_per_edit": (1.25, 0.05)}
    columns = overview_of(a=one, b=made(0.8, 0.9)).columns
    assert [(column.heading, column.cells[0][0], column.cells[1][0]) for column in columns] == [
        ("new answer, %", "90.0", "80.0"),
        ("answers about other subjects lost, %", "2.0", "10.0"),
        ("other answers about the same subjects lost, %", "35.0", "–"),
        ("perplexity ratio", "1.100", "–"),
        ("time per edit, s", "1.25", "–"),
    ]
    assert columns[2].cells == (("35.0", "[20.0, 50.0]"), ("–", ""))
    assert [column.heading for column in overview_of(a=made(0.9)).columns] == ["new answer, %"]


def test_a_method_that_is_nearly_as_good_and_costs_less_is_named() -> None:
    _, second = overview_of(a=made(0.9, 0.7), b=made(0.88, 0.95), c=made(0.5, 1.0)).sentences
    assert second.endswith(
        "; b, within 5 points of its share, loses only 5.0 % [0.0, 10.0] of the known answers about other subjects."
    )
    for cheap in (0.75, 0.6):  # no less, or only within the intervals
        _, second = overview_of(a=made(0.9, 0.7), b=made(0.88, cheap)).sentences
        assert "b," not in second
    # Compared by the largest loss of the best method, not by the broadest kind.
    a, b = (
        made(efficacy, 0.98) | {"same_subject_accuracy_known": (kept, 0.05)}
        for efficacy, kept in ((0.9, 0.6), (0.88, 0.9))
    )
    assert "b, within 5 points of its share, loses only 10.0 %" in overview_of(a=a, b=b).sentences[1]


def test_without_control_questions_perplexity_is_the_cost() -> None:
    found = overview_of(a=made(0.9, perplexity=1.3), b=made(0.89, perplexity=1.1))
    assert found.kinds == ()
    assert (
        "b, within 5 points of its share, has a perplexity of only 1.10 times [1.09, 1.11] that." in found.sentences[1]
    )
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
