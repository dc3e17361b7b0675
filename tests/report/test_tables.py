"""Tables of long-form rows: what stands where, and that nothing is lost in consoles of usual widths."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from errata.cli.terminal import number_tables
from errata.errors import InputError
from errata.report.layers import PART_TITLES, scan_table, tracing_table
from errata.report.tables import before_after_markdown, before_after_table, comparison_tables, markdown_tables
from errata.results.metrics import Metric
from errata.results.records import Row, When
from errata.tracing.causal_tracing import EffectEstimate
from errata.tracing.layer_scan import LayerScan, LayerScore, ScanSettings

from tests.support.errors import raises_code

METHODS = ["memit", "memit+blue", "alphaedit", "alphaedit+blue"]


def row(method: str, metric: str, when: When, mean: float, n: int = 100, spread: float = 0.03) -> Row:
    return Row(method=method, metric=metric, when=when, mean=mean, low=max(0.0, mean - spread), high=mean + spread, n=n)


def full_rows() -> list[Row]:
    rows = []
    for index, method in enumerate(METHODS):
        for metric in Metric:
            if metric in (Metric.PERPLEXITY_RATIO, Metric.SECONDS_PER_EDIT):
                rows.append(row(method, metric, "after", 1.0 + index / 100))
            else:
                rows.append(row(method, metric, "before", 0.01))
                rows.append(row(method, metric, "right_after", 0.96))
                rows.append(row(method, metric, "after", 0.9 + index / 100))
    return rows


def rendered(tables: Table | list[Table], width: int) -> list[str]:
    file = io.StringIO()
    screen = Console(file=file, width=width, color_system=None)
    for table in tables if isinstance(tables, list) else [tables]:
        screen.print(table)
    return file.getvalue().splitlines()


def test_a_wide_table_has_one_line_a_method_and_moment() -> None:
    edited, others = (rendered(table, 120) for table in comparison_tables(full_rows(), width=120))
    for lines in (edited, others):
        body = [line for line in lines if line.startswith(("before editing", "memit", "alphaedit", "  right after"))]
        assert [line[:14].strip() for line in body] == [
            "before editing",
            *(name for method in METHODS for name in (method, "right after")),
        ]
    first = next(line for line in edited if line.startswith("memit "))
    assert first.split()[:3] == ["memit", "90.0", "[87,93]"]
    last = next(line for line in edited if line.startswith("alphaedit+blue "))
    assert last.split()[-3:] == ["93.0", "[90,96]", "1.03"]
    for name in ("eff. succ.", "eff. acc.", "gen. succ.", "gen. acc.", "score", "s/edit", "n=100"):
        assert name in " ".join(edited[:4])
    words = " ".join(others[:6]).split()
    for name in ("spec.", "succ.", "known", "all", "same", "subj.", "untouched", "ppl", "ratio", "ΔW/W", "n=100"):
        assert name in words
    assert words.count("known") == words.count("all") == 3


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_nothing_is_lost_or_broken_at_usual_widths(width: int) -> None:
    lines = rendered(comparison_tables(full_rows(), width=width), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    whole = text.replace(",\n", ",")
    words = whole.split()
    assert words.count("96.0") == 12 * len(METHODS), "right after: twelve percentages a method"
    assert words.count("1.03") == 2, "alphaedit+blue's ratio and seconds"


def test_successes_are_shown_beside_accuracies_with_the_score() -> None:
    rows = [entry for entry in full_rows() if entry["method"] == "memit"]
    for entry in rows:
        if entry["metric"] == Metric.SCORE and entry["when"] == "after":
            entry["mean"] = 0.123
    table = markdown_tables(rows, right_after=False).splitlines()
    assert table[0] == (
        "| method | eff. succ. (n=100) | eff. acc. (n=100) | gen. succ. (n=100) | gen. acc. (n=100) | score (n=100) | "
        "s/edit (n=100) |"
    )
    assert table[3].startswith("| memit | 90.0 [87,93] |")
    assert "12.3" in table[3]
    assert sum(line.startswith("| memit |") for line in table) == 2


def test_what_seconds_per_edit_leave_out_is_said_where_they_are_shown() -> None:
    rows = [entry for entry in full_rows() if entry["method"] == "memit"]
    shown = "\n".join(rendered(before_after_table(rows, width=120), 120))
    compared = markdown_tables(rows)
    assert "without preparation" in " ".join(shown.split())
    assert compared.count("without preparation") == 1
    others = [entry for entry in rows if entry["metric"] != Metric.SECONDS_PER_EDIT]
    assert "without preparation" not in markdown_tables(others)
    assert "without preparation" in Metric.SECONDS_PER_EDIT.entry.heading


def test_right_after_is_left_out_where_it_is_the_end() -> None:
    """As of a run of one batch: the same numbers twice say nothing."""
    rows = [row("memit", Metric.EFFICACY_ACCURACY, when, 0.5) for when in ("before", "right_after", "after")]
    assert "right after" not in before_after_markdown(rows)
    assert "right after" not in markdown_tables(rows)
    rows[1]["mean"] = 0.6
    assert "right after" in before_after_markdown(rows)
    assert "right after" in markdown_tables(rows)


def test_the_unedited_model_is_shown_once_or_for_each_method() -> None:
    same = [row(method, Metric.EFFICACY_ACCURACY, "before", 0.1) for method in METHODS[:2]]
    after = [row(method, Metric.EFFICACY_ACCURACY, "after", 0.9) for method in METHODS[:2]]
    once = markdown_tables([*same, *after]).splitlines()[2:-2]
    assert [line.split("|")[1].strip() for line in once] == ["before editing", "memit", "memit+blue"]
    other = [same[0], row("memit+blue", Metric.EFFICACY_ACCURACY, "before", 0.2)]
    each = markdown_tables([*other, *after]).splitlines()[2:-2]
    assert [line.split("|")[1].strip().replace("&nbsp;", "") for line in each] == [
        "memit",
        "before editing",
        "memit+blue",
        "before editing",
    ]
    assert "20.0" in each[3]


def test_markdown_by_hand() -> None:
    rows = [
        row("memit", Metric.EFFICACY_ACCURACY, "before", 0.0, n=4, spread=0.0),
        row("memit", Metric.EFFICACY_ACCURACY, "after", 1.0, n=4, spread=0.0),
        row("memit", Metric.UNTOUCHED_ACCURACY_KNOWN, "before", 1.0, n=5, spread=0.0),
        row("memit", Metric.UNTOUCHED_ACCURACY_KNOWN, "after", 0.875, n=5, spread=0.125),
        row("memit", Metric.UNTOUCHED_ACCURACY, "after", 0.5, n=8, spread=0.125),
        {**row("memit", Metric.PERPLEXITY_RATIO, "after", 1.005, n=9), "low": None, "high": None},
        row("memit", Metric.WEIGHT_NORM_RATIO, "after", 0.0123, n=1),
        row("memit", Metric.SECONDS_PER_EDIT, "after", 12.3, n=4),
    ]
    lines = markdown_tables(rows).splitlines()
    assert lines[:4] == [
        "| method | eff. acc. (n=4) | s/edit (n=4) |",
        "| --- | ---: | ---: |",
        "| before editing | 0.0 [0,0] | – |",
        "| memit | 100 [100,100] | 12 |",
    ]
    assert lines[7:11] == [
        "| method | untouched known (n=5) | untouched all (n=8) | ppl ratio (n=9) | ΔW/W (n=1) |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| before editing | 100 [100,100] | – | – | – |",
        "| memit | 87.5 [75,100] | 50.0 [38,62] | 1.00 | 0.0123 |",
    ]


def test_columns_that_start_at_their_floor_or_ceiling_are_marked() -> None:
    def table(specificity: float, success: float) -> str:
        return markdown_tables(
            [
                row("memit", Metric.SPECIFICITY_ACCURACY, "before", specificity),
                row("memit", Metric.SPECIFICITY_ACCURACY, "after", 0.01),
                row("memit", Metric.EFFICACY_SUCCESS, "before", success),
                row("memit", Metric.EFFICACY_SUCCESS, "after", 1.0),
            ]
        )

    assert "spec. all * (n=100)" in table(0.025, 0.2)
    assert "eff. succ. (n=100)" in table(0.025, 0.2)
    assert "spec. all (n=100)" in table(0.7, 0.95)
    assert "eff. succ. * (n=100)" in table(0.7, 0.95)
    assert "show nothing" not in table(0.7, 0.2)


def test_n_is_a_range_where_it_differs() -> None:
    rows = [
        row("memit", Metric.EFFICACY_ACCURACY, "after", 0.5, n=90),
        row("alphaedit", Metric.EFFICACY_ACCURACY, "after", 0.5, n=100),
    ]
    assert "eff. acc. (n=90–100)" in markdown_tables(rows)


def test_a_method_s_name_is_neither_markup_nor_a_column() -> None:
    rows = [row("[bold]a|b", Metric.EFFICACY_ACCURACY, "after", 0.5)]
    assert "[bold]a|b" in "\n".join(rendered(comparison_tables(rows), 100))
    assert "| [bold]a&#124;b | 50.0 [47,53] |" in markdown_tables(rows)


def test_before_and_after_of_one_method() -> None:
    rows = [entry for entry in full_rows() if entry["method"] == "memit"]
    lines = before_after_markdown(rows).splitlines()
    assert lines[0] == "| memit | before | right after | after | n |"
    assert lines[2] == "| efficacy success | 1.0 [0,4] | 96.0 [93,99] | 90.0 [87,93] | 100 |"
    means = [metric for metric in Metric if not metric.endswith(("_lost", "_gained", "_changed"))]
    assert [line.split("|")[1].strip() for line in lines[2:-2]] == [metric.entry.heading for metric in means]
    shown = rendered(before_after_table(rows, width=80), 80)
    assert max(map(len, shown)) <= 80
    shown = rendered(before_after_table(rows, width=120), 120)
    assert any(line.split() == ["score", "1.0", "[0,4]", "96.0", "[93,99]", "90.0", "[87,93]", "100"] for line in shown)


def test_a_moment_that_was_not_measured_has_no_column() -> None:
    """A model that is compared with nothing was not measured after anything."""
    rows = [row("edited", Metric.EFFICACY_ACCURACY, "after", 0.5)]
    assert before_after_markdown(rows).splitlines()[0] == "| edited | now | n |"
    assert "unedited" in rendered(before_after_table(rows, now="unedited"), 80)[0]


def test_a_metric_of_another_name_is_shown_after_the_known_ones() -> None:
    rows = [row("m", "portability", "after", 0.5), row("m", Metric.UNTOUCHED_ACCURACY, "after", 0.5)]
    assert [line.split("|")[1].strip() for line in before_after_markdown(rows).splitlines()[2:-2]] == [
        "untouched accuracy",
        "portability",
    ]


def test_refusals() -> None:
    with raises_code("RESULTS_SEVERAL_METHODS", InputError):
        before_after_table(full_rows())
    with raises_code("RESULTS_EMPTY", InputError):
        comparison_tables([])


def all_rows() -> list[Row]:
    """Every metric of methods with long names, whose counts differ."""
    return [
        row(method, metric, when, mean, n=n)
        for method, n in (("alphaedit+blue", 2000), ("memit+blue [layers=4,5,6,7,8]", 1800), ("retrieval", 2000))
        for metric in Metric
        for when, mean in (("before", 0.31234), ("right_after", 0.987), ("after", 0.911))
    ]  # type: ignore[misc]


def scan() -> LayerScan:
    scores = tuple(LayerScore(layer, 0.98765, 0.87654, 0.12345, (0.9, 0.8)) for layer in range(120))
    return LayerScan(ScanSettings(), scores, 120, 100, 200, paraphrased=True, seconds=1.0)


def effects() -> list[EffectEstimate]:
    return [
        EffectEstimate(mean=-0.01234, low=-0.02345, high=0.01234, part=part, position="subject_last", layer=layer,
                       window=(max(0, layer - 5), layer + 4), n=1000)
        for part in PART_TITLES for layer in range(48)
    ]  # fmt: skip


def trial_lines() -> list[list[str]]:
    """Heads and rows as `errata advise` and `errata compare` have them."""
    heads = "editor facts edited paraphrased neighbours same~subject unrelated multi-hop reversal chat perplexity where"
    row = ["memit+blue", "1000", *["100 [100,100]"] * 7, "100", "× 10.25 [9.99,11.04]", "weights"]
    return [[head.replace("~", " ") for head in heads.split()], row, ["retrieval", *row[1:]]]


@pytest.mark.parametrize(
    "tables",
    [
        lambda: comparison_tables(all_rows(), width=80),
        lambda: [before_after_table([row for row in all_rows() if row["method"] == "retrieval"], width=80)],
        lambda: [scan_table(scan(), (3, 4, 5))],
        lambda: [tracing_table(effects(), (3, 4))],
        lambda: number_tables(trial_lines(), 80),
    ],
    ids=["comparison", "before and after", "scan", "tracing", "advise and compare"],
)
def test_tables_fit_eighty_columns(tables: Callable[[], list[Table]]) -> None:
    """No line is longer, and no number is broken in two, or cut."""
    narrow, wide = rendered(tables(), 80), rendered(tables(), 400)
    assert max(map(cell_len, narrow)) <= 80
    body = "\n".join(narrow)
    assert "…" not in body
    numbers = set(re.findall(r"[-+]?\d+\.?\d*", "\n".join(wide)))
    assert numbers == set(re.findall(r"[-+]?\d+\.?\d*", body))


def test_long_names_leave_room_for_the_numbers() -> None:
    metrics = ("efficacy_accuracy", "generalisation_accuracy", "specificity_accuracy", "untouched_accuracy")
    names = [f"memit [solver.history=False, schedule={name}, layers=0/1/2]" for name in ("even", "boundary")]
    rows = [
        Row(method=name, metric=metric, when="after", mean=0.5, low=0.4, high=0.6, n=300)
        for name in names
        for metric in (*metrics, "perplexity_ratio", "same_subject_accuracy", "seconds_per_edit", "score")
    ]
    for width in (80, 64):
        lines = rendered(comparison_tables(rows, width=width)[1], width)
        for part in ("memit", "  solver.history=False", "  layers=0/1/2"):
            assert len([line for line in lines if line.startswith(f"{part} ")]) == 2, (width, part)
        (whole,) = {tuple(line.split()[1:]) for line in lines if line.startswith("memit ")}
        assert whole == ("50.0", "50.0", "50.0", "0.50"), width
    assert all(len(line.rstrip()) <= width for line in lines)
    # Where there is no room for all columns, there are more tables, and no number is broken in two.
    others = [table for table in comparison_tables(rows, width=52) if str(table.title).startswith("Everything else")]
    narrow = [line for table in others for line in rendered(table, 52)]
    assert [line.split()[1:] for line in narrow if line.startswith("memit ")] == 2 * [["50.0"] * 2] + 2 * [
        ["50.0", "0.50"]
    ]
    assert sum("continued" in line for line in narrow) == 1
