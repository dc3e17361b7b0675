"""The page of a benchmark's run in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.report.answers import read_answers
from errata.report.bench_run import read_bench_run
from errata.report.page import report_page
from errata.results.metrics import Metric
from errata.results.records import When, write_results

from tests.report.test_page import HOSTILE, HOSTILE_RUN
from tests.support.bench_runs import METHODS, MadeUp, row, write_run
from tests.support.browser import Browser, browser, chromium

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")
FIRST_TABLE = "document.querySelector('table.results')"
NAMES = f"[...{FIRST_TABLE}.querySelectorAll('tbody.methods bdi')].map(e => e.textContent)"
OPEN = "document.querySelectorAll('details.all').forEach(e => { e.open = true; })"
FOUND = "document.getElementById('found').textContent"


def made(directory: Path, made_up: MadeUp) -> Path:
    run = read_bench_run(write_run(directory, made_up))
    page = directory / "report.html"
    page.write_text(report_page(run, read_answers(run.records)), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as driven:
        driven.look()
        yield driven


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("runs") / "run", MadeUp(facts=400, batch=40))


@pytest.fixture
def shown(opened: Browser, page: Path) -> Iterator[Browser]:
    opened.look()
    opened.said.clear()
    opened.open(page)
    opened.run(OPEN)
    yield opened
    assert opened.said == []  # no error, no word on the console, nothing asked of a network


def test_it_renders(shown: Browser) -> None:
    assert shown.run("document.querySelectorAll('#list tbody tr').length") == 50
    assert shown.run("document.querySelectorAll('svg.chart').length") == 6 + 5
    box = shown.run(
        "['width', 'height'].map(side => document.querySelector('svg.chart').getBoundingClientRect()[side])"
    )
    assert min(box) > 50
    assert shown.run(FOUND) == "5,280 of 5,280 entries"


def test_tables_sort_by_click_and_by_keyboard(shown: Browser) -> None:
    assert shown.run(NAMES) == list(METHODS)
    shown.click('table.results button[data-column="2"]')  # efficacy at the end, the best first
    assert shown.run(NAMES) == ["alphaedit+blue", "memit+blue [layers=4,5]", "alphaedit", "memit"]
    assert shown.run(f"{FIRST_TABLE}.querySelector('[aria-sort=descending] button').dataset.column") == "2"
    shown.run(f"{FIRST_TABLE}.querySelector('button[data-column=\"0\"]').focus()")
    shown.press("Enter", 13, "\r")
    assert shown.run(NAMES) == sorted(METHODS)
    assert shown.run(f"{FIRST_TABLE}.querySelectorAll('[aria-sort]:not([aria-sort=none])').length") == 1
    shown.press(" ", 32, " ")
    assert shown.run(NAMES) == sorted(METHODS, reverse=True)
    assert shown.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def choose(driven: Browser, select: str, label: str) -> None:
    driven.run(
        f"(() => {{ const e = document.getElementById('{select}'); e.value = [...e.options].find("
        f"o => o.text === '{label}').value; e.dispatchEvent(new Event('change')); }})()"
    )


def test_filters_find_and_pages_turn(shown: Browser) -> None:
    shown.click("#next")
    assert shown.run("document.getElementById('page').textContent") == "page 2 of 106"
    shown.run("document.getElementById('words').focus()")
    shown.call("Input.insertText", text="LAND 399")
    shown.until(f"{FOUND} === '12 of 5,280 entries'")
    choose(shown, "method", "memit")
    assert shown.run(FOUND) == "3 of 5,280 entries"
    assert shown.run("document.getElementById('next').disabled") is True
    assert shown.run(
        "[...document.querySelectorAll('#list tbody th .from')].every(e => e.textContent.includes('memit'))"
    )
    shown.click("#list .more")
    assert "Everybody knows" in shown.run("document.querySelector('#list tr.other').textContent")
    choose(shown, "outcome", "lost")
    assert shown.run(FOUND) == "0 of 5,280 entries"


def test_the_legend_hides_a_method_in_all_charts(shown: Browser) -> None:
    hidden = "[...document.querySelectorAll('.curve')].filter(e => getComputedStyle(e).display === 'none').length"
    assert shown.run(hidden) == 0
    shown.click('button.toggle[data-style="1"]')
    assert shown.run(hidden) == 6 + 5
    assert (
        shown.run("document.querySelector('button.toggle[data-style=\"1\"]').getAttribute('aria-pressed')") == "false"
    )


@pytest.mark.parametrize("width", [320, 360, 768])
def test_narrow_windows_do_not_scroll_sideways(shown: Browser, width: int) -> None:
    shown.look(width=width, height=700)
    assert shown.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("moments", [("before", "after"), ("before", "right_after", "after")])
def test_all_metrics_stand_in_a_window_of_usual_width(
    opened: Browser, tmp_path: Path, moments: tuple[When, ...]
) -> None:
    """Score and generalisation were off screen, to the right."""
    directory = write_run(tmp_path / "run", MadeUp(seeds=1, facts=20, batch=10))
    rows = [
        row(method, metric, when, 1.0 - 0.1 * place, model="lab", data="counterfact")
        for method in METHODS
        for metric in Metric
        for place, when in enumerate(moments)
    ]
    about = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["about"]
    write_results(directory / "summary.json", rows, about)
    run = read_bench_run(directory)
    page = directory / "report.html"
    page.write_text(report_page(run, read_answers(run.records)), encoding="utf-8")
    opened.look(width=1280, height=800)
    opened.open(page)
    opened.run(OPEN)
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert opened.run(cut) == 0
    assert opened.run(f"{FIRST_TABLE}.textContent").find("score") > 0
    opened.look(width=390, height=800)
    assert opened.run("document.documentElement.scrollWidth") <= 390
    lines = "[...document.querySelectorAll('tbody.methods bdi')].filter(e => e.textContent === 'alphaedit+blue')"
    assert opened.run(f"Math.max(...{lines}.map(e => e.getClientRects().length))") <= 2


@pytest.fixture(scope="module")
def with_controls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve cells of a thousand facts."""
    directory = write_run(tmp_path_factory.mktemp("runs") / "large", MadeUp(facts=1000, batch=100))
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    lost = [
        row(method, "untouched_accuracy_known", "after", mean, n=200, model="lab", data="counterfact", edits=1000)
        for method, mean in zip(METHODS, (0.6, 0.75, 0.7, 0.86), strict=True)
    ]
    write_results(directory / "summary.json", [*summary["rows"], *lost], summary["about"])
    run = read_bench_run(directory)
    page = directory / "report.html"
    page.write_text(report_page(run, read_answers(run.records)), encoding="utf-8")
    return page


def test_a_page_of_twelve_cells_is_below_a_megabyte(with_controls: Path) -> None:
    assert with_controls.stat().st_size < 1_000_000


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_shows_which_method_and_what_it_cost(
    opened: Browser, with_controls: Path, width: int, height: int
) -> None:
    opened.look(width=width, height=height)
    opened.said.clear()
    opened.open(with_controls)
    assert opened.said == []
    words = opened.run("document.querySelector('.lead').textContent")
    assert words.count(". ") == 1
    assert "alphaedit+blue gives the new answer to 96.0 %" in words
    assert re.search(r"14\.0 % \[[\d., ]+\] of the known answers about other subjects are lost", words)
    picture = "document.querySelector('.overview svg').getBoundingClientRect()"
    assert opened.run(f"{picture}.bottom") <= height
    assert opened.run("Math.min(...[...document.querySelectorAll('.overview svg text')]"
                      ".map(e => e.getBoundingClientRect().height))") >= 10  # fmt: skip
    assert opened.run("document.documentElement.scrollWidth") <= width
    assert opened.run("document.querySelector('.beside .scroll').scrollWidth") <= width
    # The crosses have the colours of the table beside them.
    line = "document.querySelectorAll('table.main tbody tr')[0].querySelector('.swatch line')"
    colour = opened.run(f"getComputedStyle({line}).stroke")
    drawn = opened.run("[...document.querySelectorAll('.overview svg path')].map(e => getComputedStyle(e).stroke)")
    assert colour in drawn


def test_all_other_columns_are_behind_a_control_for_the_keyboard_too(opened: Browser, with_controls: Path) -> None:
    opened.look()
    opened.open(with_controls)
    assert opened.run("document.querySelector('table.results').checkVisibility()") is False
    opened.run("document.querySelector('details.all > summary').focus()")
    opened.press("Enter", 13, "\r")
    assert opened.run("document.querySelector('table.results').checkVisibility()") is True


def contrast(driven: Browser, selector: str) -> float:
    """Of an element's text against the page, as WCAG 2 computes it."""
    colours = driven.run(
        f"[getComputedStyle(document.querySelector({json.dumps(selector)})).color, "
        "getComputedStyle(document.body).backgroundColor]"
    )
    luminances = []
    for colour in colours:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(", ")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminances.append(sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_can_be_read(shown: Browser, dark: bool) -> None:
    shown.look(dark=dark)
    ground = shown.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    for selector in ("body", ".interval", "caption", "nav a", ".unit", ".yes", ".no", ".badge.doubt", ".more"):
        assert contrast(shown, selector) >= 4.5, selector
    if dark:  # paper is white
        shown.look(dark=True, media="print")
        assert shown.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_hostile_words_do_nothing(opened: Browser, tmp_path: Path) -> None:
    opened.look(width=360)
    opened.said.clear()
    opened.open(made(tmp_path / "run", HOSTILE_RUN))
    assert opened.said == []
    assert opened.run("document.images.length + document.scripts.length") == 2
    assert opened.run("document.querySelector('#list .prompt').textContent") == HOSTILE + "p"
    assert opened.run("document.documentElement.scrollWidth") <= 360
