"""The paragraph that a report begins with follows from its rows, and claims nothing that intervals do not carry."""

from __future__ import annotations

from errata.report.conclusions import conclusion, unable
from errata.results.records import Row

from tests.support.bench_runs import row


def rows(n: int = 400, memit: float = 0.6, blue: float = 0.9) -> list[Row]:
    found = []
    for method, mean in (("memit", memit), ("memit+blue", blue)):
        found += [
            row(method, "efficacy_accuracy", "before", 0.0, n=n),
            row(method, "efficacy_accuracy", "after", mean, n=n),
            row(method, "score", "after", mean, n=n),
            row(method, "specificity_accuracy", "before", 0.025, n=n),
            row(method, "specificity_accuracy", "after", 0.02, n=n),
            row(method, "specificity_accuracy_known", "after", mean, n=n),
            row(method, "perplexity_ratio", "after", 1.05, n=n),
            row(method, "weight_norm_ratio", "after", 0.05, n=1),
        ]
    return found


def test_how_much_was_learnt_and_kept_and_who_is_ahead() -> None:
    text = conclusion(rows())
    assert "60.0 to 90.0 % (least by memit)" in text
    assert "score, memit+blue is better" in text
    assert "of specificity questions" in text
    assert "Warning" not in text
    assert "only" not in text


def test_nobody_is_ahead_within_the_intervals() -> None:
    text = conclusion(rows(n=20, memit=0.75, blue=0.8))
    assert "no method is better" in text
    assert "only 20 facts" in text


def test_what_began_at_its_floor_is_named() -> None:
    assert "specificity accuracy (from 2.5 %)" in conclusion(rows())
    assert list(unable(rows())) == ["specificity_accuracy"]
    assert "No effect" not in conclusion([each for each in rows() if each["when"] == "after"])


def test_harm_is_a_warning() -> None:
    harmed = rows()
    for each in harmed:
        if each["method"] == "memit" and each["metric"] == "perplexity_ratio":
            each["mean"] = 1.45
        if each["method"] == "memit+blue" and each["metric"] == "weight_norm_ratio":
            each["mean"] = 0.74
    text = conclusion(harmed)
    assert "memit (1.45)" in text
    assert "memit+blue (0.74)" in text


def test_methods_that_stopped_early_are_named_and_not_compared() -> None:
    text = conclusion(rows(), {"memit+blue"})
    assert "memit+blue stopped early" in text
    assert "ahead" not in text


def test_nothing_measured_nothing_concluded() -> None:
    assert conclusion([row("memit", "efficacy_accuracy", "before", 0.0)]) == ""
