"""Teacher-forced beside free-running: which metrics stand side by side, and how far apart they are."""

from __future__ import annotations

from errata.report.gap import gap_svg, gaps
from errata.results.metrics import Metric

from tests.support.bench_runs import row


def test_every_question_that_is_asked_both_ways_has_its_own_pair() -> None:
    rows = [row("a", metric, "after", 0.5) for metric in Metric]
    found = {gap.title: [cell.row["metric"] for cell in (gap.lines[0].forced, *gap.lines[0].free) if cell.row]
             for gap in gaps(rows, ["a"])}  # fmt: skip
    assert found == {
        **{
            subject.capitalize(): [
                f"{subject}_accuracy",
                *(f"free_{subject}_{measure}" for measure in ("contained", "exact", "judged")),
            ]
            for subject in ("efficacy", "generalisation", "portability")
        },
        "Specificity": ["specificity_accuracy", "free_locality_neighbours"],
        "Unrelated questions": ["unrelated_agreement", "free_locality_unrelated"],
        "Untouched facts": ["untouched_accuracy", "free_locality_untouched"],
    }
    shown = {metric for pair in found.values() for metric in pair if metric.startswith("free_")}
    assert shown == {metric for metric in Metric if metric.startswith("free_")} - {Metric.FREE_JUDGE_MISSING}


def test_in_the_wild_only_the_judge_decides() -> None:
    rows = [
        row("a", "efficacy_accuracy", "after", 0.9),
        row("a", "free_efficacy_judged", "after", 0.25),
        row("b", "free_efficacy_judged", "after", 0.5),
    ]
    (gap,) = gaps(rows, ["a", "b"])
    assert (gap.title, gap.forced, gap.free) == ("Efficacy", "efficacy accuracy", ("free efficacy judged",))
    assert [(line.method, line.gap) for line in gap.lines] == [("a", "−65.0"), ("b", "–")]
    assert gap_svg(gap).count("free-running: ") == 2


def test_what_was_asked_in_one_way_only_is_not_shown() -> None:
    assert gaps([row("a", "efficacy_accuracy", "after", 0.9)], ["a"]) == []
    assert gaps([row("a", "free_locality_untouched", "after", 0.9)], ["a"]) == []
    rows = [row("a", "unrelated_accuracy", "after", 0.9), row("a", "free_locality_unrelated", "after", 0.9)]
    assert [(gap.forced, gap.free) for gap in gaps(rows, ["a"])] == [
        ("unrelated accuracy", ("free answers unchanged, unrelated",))
    ]
