"""Which value is marked as best, and how methods stand beside each other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from errata.report.comparison import BEFORE, Interval, comparisons, separate_best
from errata.results.metrics import Group, Metric, Unit, entry_of

from tests.support.bench_runs import row

NUMBERS = st.floats(-1e6, 1e6)


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    low, mean, high = sorted((draw(NUMBERS), draw(NUMBERS), draw(NUMBERS)))
    return Interval(mean, low, high)


def obvious_best(values: list[Interval | None], better: str) -> list[int]:
    """All that are better than each other one, pair by pair."""
    found = []
    present = [(index, value) for index, value in enumerate(values) if value is not None]
    for index, value in present:
        others = [other for place, other in present if place != index]
        if better == "higher":
            wins = [other.high < value.low for other in others if other.high is not None and value.low is not None]
        else:
            wins = [other.low > value.high for other in others if other.low is not None and value.high is not None]
        if others and all(wins):
            found.append(index)
    return found


@given(st.lists(st.none() | intervals(), max_size=6), st.sampled_from(["higher", "lower"]))
def test_best_is_what_beats_each_other_one_beyond_its_interval(values: list[Interval | None], better: str) -> None:
    best = separate_best(values, better)  # type: ignore[arg-type]
    assert ([] if best is None else [best]) == obvious_best(values, better)


@given(st.lists(intervals(), min_size=2, max_size=6))
def test_upside_down_higher_is_lower(values: list[Interval]) -> None:
    turned = [Interval(-one.mean, -(one.high or 0.0), -(one.low or 0.0)) for one in values]
    assert separate_best(values, "higher") == separate_best(turned, "lower")


def test_nothing_is_best_alone_without_a_direction_without_an_interval_or_where_intervals_touch() -> None:
    low, high = Interval(0.2, 0.1, 0.3), Interval(0.8, 0.7, 0.9)
    assert separate_best([low, high], "higher") == 1
    assert separate_best([low, high], "lower") == 0
    assert separate_best([low, None, high], "higher") == 2
    assert separate_best([high], "higher") is None
    assert separate_best([None, high], "higher") is None
    assert separate_best([low, high], None) is None
    assert separate_best([low, high, Interval(0.1, None, None)], "higher") is None
    assert separate_best([low, Interval(0.5, 0.3, 0.6)], "higher") is None
    assert separate_best([high, high], "higher") is None


def test_right_after_is_shown_beside_after_and_the_unedited_model_on_top() -> None:
    rows = [
        row("a", "efficacy_accuracy", "before", 0.1),
        row("b", "efficacy_accuracy", "before", 0.1),
        row("a", "efficacy_accuracy", "right_after", 0.9),
        row("a", "efficacy_accuracy", "after", 0.4, n=180),
        row("b", "efficacy_accuracy", "after", 0.8),
        row("a", "efficacy_accuracy", "during", 0.5, edits=10),
        row("b", "no_such_metric", "after", 12.5),
    ]
    edited, unknown = comparisons(rows)
    assert edited.group is Group.EDITED
    assert [(column.moment, column.n) for column in edited.columns] == [("right after", "200"), ("after", "180–200")]
    assert [(line.name, [cell.value for cell in line.cells]) for line in edited.unedited] == [(BEFORE, ["10.0"])]
    shown = [(line.name, [(cell.value, cell.best) for cell in line.cells]) for line in edited.lines]
    assert shown == [("a", [("90.0", False), ("40.0", False)]), ("b", [("–", False), ("80.0", True)])]
    assert [cell.n for cell in edited.lines[1].cells] == ["", "n = 200"]
    assert unknown.group is Group.UNKNOWN
    assert [line.name for line in unknown.lines] == ["b"]


def test_who_stopped_early_is_shown_and_neither_best_nor_in_the_way() -> None:
    means = {"a": 0.2, "b": 0.5, "stopped": 0.9}
    rows = [row(name, "untouched_accuracy", "after", mean) for name, mean in means.items()]

    def best(*stopped: str) -> list[str]:
        (table,) = comparisons(rows, stopped)
        assert [line.cells[0].value for line in table.lines] == ["20.0", "50.0", "90.0"]
        return [line.name for line in table.lines if line.cells[0].best]

    assert best() == ["stopped"]
    assert best("stopped") == ["b"]
    assert best("stopped", "b") == []


def test_unedited_models_that_differ_have_a_line_each() -> None:
    rows = [row(name, "score", when, mean) for name, mean in (("a", 0.1), ("b", 0.2)) for when in ("before", "after")]  # type: ignore[arg-type]
    (table,) = comparisons(rows)
    assert [line.name for line in table.unedited] == [f"{BEFORE}: a", f"{BEFORE}: b"]


def test_units_are_known_or_nothing_is_guessed() -> None:
    assert entry_of("perplexity_ratio").better == "lower"
    assert entry_of("weight_norm_ratio").better is None
    assert entry_of("free_portability_exact").unit is Unit.PERCENT
    assert (entry_of("drift_kl_neighbours").unit, entry_of("drift_kl_neighbours").better) == (Unit.NATS, "lower")
    assert entry_of("ability:mmlu:acc").unit is Unit.PERCENT
    for name in ("ability:wikitext:word_perplexity", "free_something", "negation_shift", "reversal", "xyz_accuracy"):
        measure = entry_of(name)
        assert (measure.unit, measure.better) == (Unit.RAW, None)
        assert measure.number(0.123456) == "0.1235"


def test_the_papers_probes_are_in_percent_and_can_be_best() -> None:
    for suffix in ("", "_likelihood", "_glue", "_likelihood_glue"):
        for name in ("accuracy", "weighted_f1"):
            measure = entry_of(f"ability:probe_rte:{name}{suffix}")
            assert (measure.group, measure.unit, measure.better) == (Group.ABILITY, Unit.PERCENT, "higher")
    unread = entry_of("ability:probe_rte:unparsable")
    assert (unread.group, unread.unit, unread.better) == (Group.ABILITY, Unit.PERCENT, "lower")


def test_changes_of_concepts_are_side_tests_in_percent() -> None:
    for name in (Metric.CONCEPT_INSTANCE_CHANGE, Metric.CONCEPT_NON_INSTANCE_CHANGE):
        measure = entry_of(name)
        assert (measure.group, measure.unit, measure.better) == (Group.SIDE, Unit.PERCENT, "higher")
        assert measure.interval(-0.5, 0.25) == "[-50.0, 25.0]"


def test_every_metric_has_a_group_and_a_heading_of_its_own() -> None:
    entries = [metric.entry for metric in Metric]
    assert all(entry.group is not Group.UNKNOWN and entry_of(entry.name) is entry for entry in entries)
    assert len({entry.heading for entry in entries}) == len(entries)


def test_a_variant_has_the_unit_of_its_metric() -> None:
    entry = entry_of("free_efficacy_exact:chat")
    assert (entry.group, entry.unit, entry.better) == (Group.FREE, Unit.PERCENT, "higher")
    assert entry.heading == "free efficacy exact, chat"


def test_a_group_of_many_metrics_is_shown_in_several_tables_and_none_is_lost() -> None:
    kinds = ("accuracy", "success", "tokens")
    names = [f"{subject}_{kind}" for subject in ("efficacy", "generalisation") for kind in kinds]
    names += ["portability_accuracy", "portability_tokens", "efficacy_accuracy_first"]
    rows = [
        row("memit", name, when, mean)
        for name in ("score", *names)
        for when, mean in (("right_after", 0.9), ("after", 0.8))
    ]  # type: ignore[misc]
    (whole,) = comparisons(rows)
    parts = comparisons(rows, most=8)
    assert len(whole.columns) == 2 * 10
    assert all(len(part.columns) <= 8 for part in parts)
    assert [column for part in parts for column in part.columns] == list(whole.columns)
    assert [cell for part in parts for cell in part.lines[0].cells] == list(whole.lines[0].cells)
    assert whole.metrics[0][0].name == "score", "what sums up comes first"


def test_right_after_is_no_column_where_it_is_the_end_for_all_methods() -> None:
    rows = [row(method, "score", when, 0.5) for method in ("a", "b") for when in ("right_after", "after")]  # type: ignore[arg-type]
    assert [column.when for column in comparisons(rows)[0].columns] == ["after"]
    rows[0]["mean"] = 0.6
    assert [column.when for column in comparisons(rows)[0].columns] == ["right_after", "after"]
