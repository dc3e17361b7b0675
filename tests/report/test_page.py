"""The page of a benchmark's run, read as HTML; what a browser makes of it is in test_page_browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lxml import html

from errata.errors import InputError
from errata.report.answers import OUTCOMES, outcome, read_answers
from errata.report.bench_run import read_bench_run
from errata.report.curves import chart_svg, charts
from errata.report.documents import report_markdown
from errata.report.page import duration, embedded_json, report_page

from tests.support.bench_runs import MadeUp, row, write_records, write_run

HOSTILE = "</script><script>alert(1)</script><!-- \"'><img src=x onerror=alert(2)> \u2028 \u202e {{ 7*7 }} &amp; | \\"
HOSTILE_RUN = MadeUp(
    methods=("memit", HOSTILE),
    data=(HOSTILE,),
    model=HOSTILE,
    seeds=1,
    facts=30,
    batch=10,
    fact_texts=[(HOSTILE, HOSTILE + "p", HOSTILE + "n", HOSTILE + "o")],
    about={
        "command": HOSTILE,
        "created": HOSTILE,
        "versions": {HOSTILE: HOSTILE},
        "grid": {"<k>": HOSTILE},
        "recipes": {HOSTILE: {"source": HOSTILE}},
        "absent": {HOSTILE: {HOSTILE: HOSTILE}},
        "notes": [HOSTILE],
    },
)


def page_of(directory: Path, **most: int) -> str:
    run = read_bench_run(directory)
    return report_page(run, read_answers(run.records, **most))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = write_run(tmp_path_factory.mktemp("runs") / "a <b>", HOSTILE_RUN)
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    summary["about"]["cells"][0].update(id=HOSTILE, status="failed", failure=HOSTILE)
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return page_of(directory)


def test_nobodys_words_become_anything_but_text(hostile: str) -> None:
    tree = html.document_fromstring(hostile)
    assert not tree.xpath("//img | //iframe | //link | //object | //@onerror | //@src")
    assert [script.get("type") for script in tree.xpath("//script")] == ["application/json", None]
    assert all(href.startswith("#") for href in tree.xpath("//@href"))
    assert "alert(1)</script>" not in hostile
    assert "{{" not in hostile.replace("{{ 7*7 }}", "")
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"|https?://www.w3.org\S*', "", hostile)
    failure = tree.xpath("//section[@class='alarms']//li")[0]
    assert failure.text_content() == f"{HOSTILE}: {HOSTILE}"
    assert {HOSTILE, "memit"} == {one.text_content() for one in tree.xpath("//tbody[@class='methods']//bdi")}
    assert tree.xpath("//section[@id='repeat']/pre")[0].text_content() == HOSTILE


def test_data_for_the_script_is_what_was_said(hostile: str) -> None:
    raw = html.document_fromstring(hostile).xpath("//script[@id='data']")[0].text
    assert not set("<>&\u2028\u2029") & set(raw)
    data = json.loads(raw)
    entry = data["entries"][0]
    assert data["strings"][entry[3]] == HOSTILE + "p"
    assert data["strings"][entry[4]] == HOSTILE + "n"
    assert data["strings"][entry[6][0][0]] == HOSTILE + "o"
    assert data["cells"][1][0] == data["strings"].index(HOSTILE)
    assert json.loads(embedded_json({"x": HOSTILE})) == {"x": HOSTILE}


def test_only_this_script_may_run(hostile: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', hostile)
    assert policy is not None
    assert "default-src 'none'" in html.document_fromstring(hostile).xpath("//meta/@content")[0]
    assert "sha256-" in policy[1]


def test_content_without_room_is_reported(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", MadeUp(seeds=2, facts=50, batch=10))
    answers = read_answers(read_bench_run(directory).records, entries=80, prompts=30)
    assert answers.entries == 4 * 2 * 55
    per_cell = [sum(entry[0] == cell for entry in answers.payload["entries"]) for cell in range(8)]
    assert per_cell == [10] * 8
    assert answers.entries_left_out == answers.entries - 80
    assert answers.prompts_left_out == 80 - 30
    shown = " ".join(html.document_fromstring(page_of(directory, entries=80, prompts=30)).text_content().split())
    assert "This page shows 80 of 440 entries, the first of each run; 360 are omitted." in shown
    assert "50 further prompts of the entries shown are omitted." in shown
    assert "omitted" not in html.document_fromstring(page_of(directory)).xpath("//main")[0].text_content()


def test_an_entry_has_the_three_moments_and_the_other_prompts(tmp_path: Path) -> None:
    where = {"cell": "c", "model": "m", "data": "d", "method": "memit", "seed": 1, "fact": "one", "edits": 0}

    def line(metric: str, prompt: str, when: str, value: float | None, said: str) -> dict[str, Any]:
        return {
            **where,
            "metric": metric,
            "prompt": prompt,
            "when": when,
            "value": value,
            "said": said,
            "expected": "B",
        }

    lines = [
        line("generalisation_accuracy", "q", "after", 1.0, "B"),
        line("efficacy_success", "p", "after", 1.0, "B"),
        line("efficacy_accuracy", "p", "before", 0.0, "A"),
        line("efficacy_accuracy", "p", "right_after", 1.0, "B"),
        line("efficacy_accuracy", "p", "during", 1.0, "not shown"),
        line("efficacy_accuracy", "p", "after", float("nan"), "C"),
    ]
    write_records(tmp_path / "records.parquet", lines)
    payload = read_answers(tmp_path / "records.parquet").payload
    strings, (entry,) = payload["strings"], payload["entries"]
    assert [strings[place] for place in entry[1:5]] == ["one", "efficacy accuracy", "p", "B"]
    assert [[strings[said], value] for said, value in entry[6]] == [["A", 0.0], ["B", 1.0], ["C", None]]
    ((metric, prompt, _, moments),) = entry[7]
    assert (strings[metric], strings[prompt]) == ("generalisation accuracy", "q")
    assert moments[:2] == [None, None]
    assert "not shown" not in strings
    json.dumps(payload, allow_nan=False)


@pytest.mark.parametrize(
    ("metric", "before", "right_after", "after", "expected"),
    [
        ("efficacy_accuracy", 0, 1, 1, "recalled"),
        ("efficacy_accuracy", 0, 1, 0, "forgotten"),
        ("efficacy_accuracy", 0, 0, 0, "not recalled"),
        ("efficacy_accuracy", 0, 0, 1, "recalled later"),
        ("efficacy_accuracy", 0, None, 1, "recalled"),
        ("efficacy_accuracy", 0, 1, None, "not known"),
        ("efficacy_tokens", 0, 0.5, 0.5, "not recalled"),
        ("untouched_accuracy", 1, None, 1, "kept"),
        ("untouched_accuracy", 1, None, 0, "lost"),
        ("untouched_accuracy", 0, None, 0, "never known"),
        ("untouched_accuracy", 0, None, 1, "gained"),
        ("untouched_accuracy", None, None, 1, "not known"),
        ("fluency", 500, None, 1, "not known"),
    ],
)
def test_what_became_of_a_fact(metric: str, before: float, right_after: float, after: float, expected: str) -> None:
    moments = (("before", before), ("right_after", right_after), ("after", after))
    values = {when: None if value is None else float(value) for when, value in moments}
    assert outcome(metric, values) == expected
    assert expected in OUTCOMES


def test_curves_begin_with_the_unedited_model_only_where_that_says_something() -> None:
    rows = [
        row("a", metric, when, mean, **({"edits": edits} if edits else {}))
        for metric in ("efficacy_accuracy", "untouched_accuracy", "efficacy_accuracy_first")
        for when, mean, edits in (("before", 0.5, 0), ("during", 0.8, 20), ("during", 0.9, 10), ("after", 0.7, 20))
    ]  # type: ignore[misc]
    drawn = charts(rows, ["other", "a"])
    assert [chart.entry.name for chart in drawn] == [
        "efficacy_accuracy", "efficacy_accuracy_first", "untouched_accuracy",
    ]  # fmt: skip
    assert [[point.edits for point in chart.curves[0].points] for chart in drawn] == [[10, 20], [10, 20], [0, 10, 20]]
    assert {chart.curves[0].style for chart in drawn} == {1}


def test_curves_begin_with_the_unedited_model_only_where_it_was_asked_as_many_questions() -> None:
    rows = [
        row("a", metric, "before", 0.9, n=of_all)
        for metric, of_all in (("untouched_accuracy", 300), ("specificity_accuracy", 64))
    ]
    rows += [
        row("a", metric, "during", 0.9, n=n, edits=edits)
        for metric in ("untouched_accuracy", "specificity_accuracy")
        for edits, n in ((20, 300), (10, 64))
    ]
    drawn = {chart.entry.name: [point.edits for point in chart.curves[0].points] for chart in charts(rows, ["a"])}
    assert drawn == {"untouched_accuracy": [10, 20], "specificity_accuracy": [0, 10, 20]}


def test_a_single_check_is_a_line_from_before_to_the_end_or_no_chart() -> None:
    rows = [
        row("a", "efficacy_accuracy", "before", 0.0),
        row("a", "efficacy_accuracy", "during", 0.8, n=64, edits=20),
        row("a", "efficacy_accuracy", "after", 0.9, edits=20),
        row("a", "efficacy_accuracy_first", "during", 0.8, edits=20),
        row("a", "weight_norm_ratio", "during", 0.2, n=1, edits=20),
        row("a", "weight_norm_ratio", "after", 0.2, n=1, edits=20),
        row("a", "untouched_changed", "during", 0.2, edits=20),
        row("a", "untouched_changed", "during", 0.2, edits=40),
    ]
    drawn = {
        chart.entry.name: [(point.edits, point.mean) for point in chart.curves[0].points]
        for chart in charts(rows, ["a"])
    }
    assert drawn == {"efficacy_accuracy": [(0, 0.0), (20, 0.9)], "weight_norm_ratio": [(0, 0.0), (20, 0.2)]}


def test_headings_name_no_path_of_this_machine(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "some-folder", MadeUp(seeds=1, facts=20, batch=10, model="/home/me/models/small"))
    tree = html.document_fromstring(page_of(directory))
    heads = [one.text_content() for one in tree.xpath("//title | //h1 | //h2")]
    assert not [head for head in heads if "/home" in head or "some-folder" in head]
    assert "small" in heads[0]
    assert "small" in heads[1]
    assert "new answer" in tree.xpath("//p[@class='lead']")[0].text_content()
    assert "/home" not in report_markdown(read_bench_run(directory)).partition("## Reproduce")[0]


@pytest.mark.parametrize(
    ("model", "data", "headline", "title"),
    [
        ("gpt2", ("counterfact",), "model gpt2; data counterfact", "Model gpt2, data counterfact"),
        ("gpt2", ("zsre", "lab"), "model gpt2; data zsre, lab", "Model gpt2, data zsre"),
        ("lab", ("lab",), "model lab, facts of its own world", "Model lab, facts of its own world"),
    ],
)
def test_headings_say_which_name_is_the_model_and_which_the_data(
    tmp_path: Path, model: str, data: tuple[str, ...], headline: str, title: str
) -> None:
    run = read_bench_run(write_run(tmp_path / "run", MadeUp(seeds=2, facts=20, batch=10, model=model, data=data)))
    assert run.headline == f"4 methods; {headline}; 2 seeds; 20 edits"
    assert run.sections()[0].title == title


def test_a_curve_ends_where_a_run_drops_out_of_it() -> None:
    rows = [
        row(method, "perplexity_ratio", "during", 1.5, edits=edits, seeds=seeds)
        for method, of in (("stopped", (3, 3, 1)), ("whole", (3, 3, 3)))
        for edits, seeds in zip((10, 20, 30), of, strict=True)
    ]
    rows += [row("older", "perplexity_ratio", "during", 1.5, edits=edits) for edits in (10, 20, 30)]
    (chart,) = charts(rows[::-1], ["stopped", "whole", "older"])
    drawn = {curve.method: [point.edits for point in curve.points] for curve in chart.curves}
    assert drawn == {"stopped": [10, 20], "whole": [10, 20, 30], "older": [10, 20, 30]}


def test_collapse_is_drawn_on_a_logarithmic_scale_and_stays_inside(tmp_path: Path) -> None:
    rows = [row("a", "perplexity_ratio", "during", 10.0**power, edits=10 * power + 10) for power in range(6)]
    (chart,) = charts(rows, ["a"])
    drawn = chart_svg(chart)
    assert "log scale" in drawn
    places = [float(y) for y in re.findall(r",(-?[\d.]+)", "".join(re.findall(r'<polyline points="([^"]*)"', drawn)))]
    assert places == sorted(places, reverse=True)
    assert 0 <= min(places) < max(places) <= 220


@pytest.mark.parametrize("size", [0.02, 1.0, 5e3, 2.5e7])
def test_the_label_of_an_axis_is_beside_its_ticks(size: float) -> None:
    means = [size * (1 + step) for step in range(3)]
    rows = [row("a", "something_new", "during", mean, edits=10 + index) for index, mean in enumerate(means)]
    rows += [row("a", "perplexity_ratio", "during", max(1.0, size) ** power, edits=10 + power) for power in range(3)]
    for chart in charts(rows, ["a"]):
        drawn = chart_svg(chart)
        ends = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]*)</text>', drawn)
        assert len(ends) >= 2
        begins = min(float(x) - 6.0 * len(label) for x, label in ends)  # a digit is less than 6 wide
        assert begins > 10 + 3  # where the axis's own label ends, written upwards around 10
        assert min(float(x) for x in re.findall(r'<line class="grid" x1="([\d.]+)"', drawn)) > float(ends[0][0])


def test_times_are_shown_in_natural_units() -> None:
    assert [duration(seconds) for seconds in (7.25, 185.0, 3720.0)] == ["7.2 s", "3 min 05 s", "1 h 02 min"]


@pytest.mark.parametrize("column", ["value", "said", "cell"])
def test_records_without_a_column_are_refused(tmp_path: Path, column: str) -> None:
    import pyarrow.parquet

    directory = write_run(tmp_path / "run", MadeUp(seeds=1, facts=20, batch=10))
    whole = pyarrow.parquet.read_table(directory / "records.parquet")
    pyarrow.parquet.write_table(whole.drop_columns([column]), directory / "records.parquet")
    with pytest.raises(InputError, match=f"lacks the columns {column}"):
        page_of(directory)
