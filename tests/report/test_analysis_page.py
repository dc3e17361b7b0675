"""Studies as a page and as Markdown, read back; and what a browser makes of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lxml import html
from markdown_it import MarkdownIt

from errata.analysis.findings import Claim, Figure, Finding, Findings, Panel, PlanePoint, Series
from errata.analysis.studies import StudyResult
from errata.errors import FaultsError
from errata.report.analysis import analysis_markdown, analysis_page, figure_files, section_markdown
from errata.report.answers import read_answers
from errata.report.bench_run import read_bench_run
from errata.report.documents import report_markdown
from errata.report.figures import LIGHT, style_at
from errata.report.markdown import visible
from errata.report.page import report_page
from errata.report.studies import ShownStudy, format_value, shown, verdicts

from tests.support.bench_runs import MadeUp, write_run
from tests.support.browser import Browser, browser, chromium
from tests.support.studies import COMMAND, IDENTITY, KINDS, cloud, line, lines, made_up_findings, result

PROGRAM = chromium()
HOSTILE = (
    "</script></svg><script>alert(1)</script><img src=x onerror=alert(2)> \"' {{ 7*7 }} &amp; | `q` *b*\nnew \u202e"
)
HOSTILE_FINDINGS = Findings(
    [Finding(HOSTILE, HOSTILE, {HOSTILE: HOSTILE, "layer": 1}, 0.5, None, None, 3)],
    [Claim(HOSTILE, "holds", HOSTILE)],
    [Figure(HOSTILE, HOSTILE, [Panel(HOSTILE, HOSTILE, HOSTILE, [Series(HOSTILE, (HOSTILE,), (1.0,))], kind="bars")])],
    [PlanePoint(HOSTILE, {HOSTILE: HOSTILE}, 0.0, 0.0)],
    {HOSTILE: HOSTILE},
)
SMALL = Findings(
    made_up_findings().rows,
    made_up_findings().claims,
    [Figure("small", "A small one.", [Panel("P", "layer", "probability", [line(kind, (0, 1)) for kind in KINDS])])],
    (),
    {"spread × first layer only": "it is computed"},
)
CLOUDED = replace(made_up_findings(), figures=[lines(), cloud(700)])


@pytest.fixture(scope="module")
def small() -> Sequence[ShownStudy]:
    return shown([result("contribution", SMALL), result("alignment", replace(SMALL, rows=SMALL.rows[:4]))])


@pytest.fixture(scope="module")
def hostile() -> Sequence[ShownStudy]:
    texts = dict.fromkeys(("title", "shows", "units", "source", "created", "command", "device", "dtype"), HOSTILE)
    identity = {**IDENTITY, "study": HOSTILE, "model": HOSTILE, "recipe": {HOSTILE: HOSTILE}}
    return shown([result(findings=HOSTILE_FINDINGS, versions={HOSTILE: HOSTILE}, identity=identity, **texts)])


def words(element: html.HtmlElement) -> str:
    return " ".join(element.text_content().split())


def test_the_page_shows_all_of_a_study(small: Sequence[ShownStudy]) -> None:
    tree = html.document_fromstring(analysis_page(small))
    assert words(tree.xpath("//h1")[0]) == "2 studies of lab"
    assert [words(link) for link in tree.xpath("//nav//a")] == ["Study contribution", "Study alignment"]
    for link in tree.xpath("//nav//a"):
        (section,) = tree.xpath(f"//section[@id='{link.get('href')[1:]}']")
        assert "What nobody measured." in words(section)
        assert "Time1 min 15 s" in words(section)
        for part in ("nowhere", "2026-01-02 03:04 UTC", "lab, float32, cpu", "errata 0.1.0, torch 2.13.0", COMMAND,
                     "it is computed", "fingerprint: 0123456789abcdef", "count: 30"):  # fmt: skip
            assert part in words(section)
    first, second = tree.xpath("//section[@class='study']")
    verdicts_shown = [words(cell) for cell in first.xpath(".//table[contains(@class, 'claims')]//td[1]")]
    assert verdicts_shown == ["holds", "does not hold", "undecided"]
    lines = first.xpath(".//table[contains(@class, 'rows')]/tbody/tr")
    assert [[cell.get("data-value") for cell in row][:4] for row in lines[:2]] == [
        ["contribution", "spread", str(layer), repr(SMALL.rows[layer].mean)] for layer in (0, 1)
    ]
    assert len(lines) == 24
    assert first.xpath(".//details/summary[text()='24 rows']")  # a long table is folded away, a short one is not
    assert not second.xpath(".//details//table")
    assert len(first.xpath(".//div[@class='light']/svg | .//div[@class='dark']/svg")) == 2


def test_ids_of_a_page_are_each_there_once(small: Sequence[ShownStudy]) -> None:
    page = analysis_page(small)
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert [figure.name for study in small for figure in study.figures] == ["contribution-small", "alignment-small"]
    assert "http" not in re.sub(r'http-equiv|xmlns(:\w+)?="[^"]*"', "", page)


def test_nobodys_words_become_anything_but_text_in_html(hostile: Sequence[ShownStudy]) -> None:
    page = analysis_page(hostile)
    tree = html.document_fromstring(page)
    assert not tree.xpath("//img | //iframe | //link | //object | //@onerror | //@src | //image")
    assert len(tree.xpath("//script")) == 1
    assert all(href.startswith("#") for href in tree.xpath("//@href"))
    assert "<script>alert" not in page
    assert words(tree.xpath("//h1")[0]) == " ".join(HOSTILE.split())
    shown_texts = [element.text_content() for element in tree.xpath("//bdi")]
    assert shown_texts.count(HOSTILE) >= 9
    assert "default-src 'none'" in tree.xpath("//meta/@content")[0]


def test_nobodys_words_become_anything_but_text_in_markdown(hostile: Sequence[ShownStudy]) -> None:
    document = analysis_markdown(hostile)
    parser = MarkdownIt("commonmark").enable("table").enable("strikethrough")
    tokens = parser.parse(document)
    own = ("<picture>", "<details>", "</details>")
    assert all(token.content.startswith(own) for token in tokens if token.type == "html_block")
    picture = next(token.content for token in tokens if token.content.startswith("<picture>"))
    tree = html.fragment_fromstring(picture)
    assert [element.tag for element in tree.iter()] == ["picture", "source", "img"]
    assert tree.xpath("//img/@alt") == [visible(HOSTILE, 4000)]
    assert not tree.xpath("//@onerror")
    assert tree.xpath("//img/@src") == [f"figures/{hostile[0].figures[0].name}.svg"]
    children = [child for token in tokens for child in token.children or []]
    assert {child.type for child in children} <= {"text", "text_special", "strong_open", "strong_close"}
    assert "<script" not in re.sub(r"```.*?\n```", "", document, flags=re.DOTALL)
    for name in figure_files(hostile):
        assert re.fullmatch(r"figures/[a-z0-9-]+\.(svg|png)", name)


def test_markdown_links_to_files_that_are_written(small: Sequence[ShownStudy]) -> None:
    document, files = analysis_markdown(small), figure_files(small)
    linked = set(re.findall(r'(?:src|srcset)="([^"]*)"', document))
    assert linked == {name for name in files if name.endswith(".svg")}
    assert {name.replace(".svg", ".png") for name in linked} == files.keys() - linked
    assert all(data.startswith(b"\x89PNG" if name.endswith("png") else b"<svg ") for name, data in files.items())
    tables = [token for token in MarkdownIt("commonmark").enable("table").parse(document) if token.type == "table_open"]
    assert len(tables) == 2 * 3
    assert f"| contribution | spread | 0 | {format_value(SMALL.rows[0].mean)} |" in document
    assert "**does not hold**" in document
    assert "<details><summary>24 rows</summary>\n\n| quantity" in document
    assert f"```bash\n{COMMAND}\n```" in document


def test_a_benchmarks_report_has_them_after_its_own(tmp_path: Path, small: Sequence[ShownStudy]) -> None:
    run = read_bench_run(write_run(tmp_path / "run", MadeUp(seeds=1, facts=20, batch=10)))
    answers = read_answers(run.records)
    tree = html.document_fromstring(report_page(run, answers, small))
    assert [section.get("id") for section in tree.xpath("//main/section")][-2:] == [
        "study-contribution",
        "study-alignment",
    ]
    assert [words(link) for link in tree.xpath("//nav//a")][-2:] == ["Study contribution", "Study alignment"]
    alone = report_page(run, answers)
    assert "study-" not in alone
    assert "img-src" not in alone
    document = report_markdown(run, small)
    assert document.startswith(report_markdown(run).rstrip("\n"))
    assert document.rstrip("\n").endswith(section_markdown(small[1], 2))


def one_series(series: Series, **more: Any) -> Findings:
    return replace(SMALL, figures=[Figure("f", "c", [Panel("p", "x", "y", [series], **more)])])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"seconds": "long"}, "seconds"),
        ({"title": None}, "title"),
        ({"shows": "\ud800"}, "unreadable content"),
        ({"findings": one_series(Series("s", (1, 2), (1.0,)))}, "x, y and interval ends differ"),
        ({"findings": one_series(Series("s", (), (1.0, 2.0)))}, "x, y and interval ends differ"),
        ({"findings": one_series(Series("s", (), (1.0,)), kind="bars")}, "x, y and interval ends differ"),
        ({"findings": one_series(Series("s", ("a",), (1.0,)), kind="points")}, "numeric x"),
        ({"findings": replace(SMALL, rows=[Finding("q", "1", {}, float("nan"), None, None, 1)])}, "unreadable content"),
    ],
)
def test_damaged_results_are_reported_together(damage: dict[str, Any], message: str) -> None:
    bare = result("whole", replace(SMALL, figures=()))
    with pytest.raises(FaultsError, match=message) as caught:
        shown([bare, result(**damage), StudyResult(bare.findings, {"title": "empty"})])
    assert len(caught.value.faults) == 2


def test_a_label_looks_the_same_in_all_studies() -> None:
    def study(name: str, *labels: str) -> StudyResult:
        panel = Panel("p", "x", "y", [Series(label, (1,), (1.0,)) for label in labels], kind="points")
        return result(name, Findings([], figures=[Figure(name, "c", [panel])]))

    first, second = shown([study("a", "spread", "computed"), study("b", "computed")])
    light = [set(re.findall(r"fill: (#[0-9a-f]{6})", each.figures[0].light.svg)) for each in (first, second)]
    inks = [style_at(place, LIGHT).colour for place in (0, 1)]
    assert [[ink in found for ink in inks] for found in light] == [[True, True], [False, True]]


def test_settings_that_a_study_does_not_use_and_repeated_reasons_are_left_out() -> None:
    settings = {"count": 30, "sizes": [1], "seeds": [0], "ridges": [1.0]}
    undefined = {"first": "no questions", "other": "something else", "second": "no questions"}
    bare = Findings([], figures=[], undefined=undefined)
    known = shown([result("contribution", bare, identity={"study": "contribution", "settings": settings})])[0]
    assert known.parts[0] == ("Settings", {"count": 30, "seeds": [0]})
    assert known.undefined == [("first, second", "no questions"), ("other", "something else")]
    page = html.document_fromstring(analysis_page([known]))
    assert "first, second" in words(page)
    assert "ridges" not in words(page)
    assert "| first, second | no questions |" in analysis_markdown([known])
    (unknown,) = shown([result("made-up", bare, identity={"study": "made-up", "settings": settings})])
    assert unknown.parts[0] == ("Settings", settings)


def test_names_are_kept_apart() -> None:
    bare = Findings([], figures=[])
    assert [study.name for study in shown([result("a b", bare), result("a/b", bare), result("", bare)])] == [
        "a-b", "a-b-2", "figure",
    ]  # fmt: skip


def test_verdicts_are_counted_in_words() -> None:
    assert verdicts(made_up_findings().claims) == "3 claims: 1 holds, 1 does not hold, 1 is undecided"
    assert verdicts([Claim("", "holds", "")] * 2) == "2 claims: 2 hold"
    assert verdicts([]) == "0 claims"
    assert [format_value(value) for value in (None, 3, 0.123456, "x", 12345.6)] == ["", "3", "0.1235", "x", "1.235e+04"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("there is no Chromium on this machine")
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as driven:
        yield driven


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(analysis_page(shown([result(findings=CLOUDED), result("other", SMALL)])), encoding="utf-8")
    return path


@pytest.fixture
def driven(opened: Browser, page: Path) -> Iterator[Browser]:
    opened.look()
    opened.said.clear()
    opened.open(page)
    yield opened
    assert opened.said == []  # no error, no word on the console, nothing asked of a network


SEEN = "[...document.querySelectorAll('.drawn .{}')].map(e => e.getBoundingClientRect().height > 50)"


def test_it_renders_with_the_figures_of_the_scheme(driven: Browser) -> None:
    assert driven.run(SEEN.format("light svg")) == [True] * 3
    assert driven.run(SEEN.format("dark svg")) == [False] * 3
    driven.look(dark=True)
    assert driven.run(SEEN.format("light svg")) == [False] * 3
    assert driven.run(SEEN.format("dark svg")) == [True] * 3
    driven.look(dark=True, media="print")
    assert driven.run(SEEN.format("light svg")) == [True] * 3
    assert driven.run(SEEN.format("dark svg")) == [False] * 3


def test_a_cloud_kept_as_a_picture_is_let_through(driven: Browser) -> None:
    assert driven.run("document.querySelectorAll('.light image').length") == 1
    assert driven.run(
        "new Promise(done => { const i = new Image(); i.onload = () => done(i.naturalWidth > 50); i.onerror = () => "
        "done(false); i.src = document.querySelector('.light image').getAttribute('xlink:href'); })"
    )


def test_tables_sort_by_numbers_and_by_words(driven: Browser) -> None:
    driven.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    column = "[...document.querySelectorAll('#study-made-up .rows tbody tr')].map(e => e.cells[{}].dataset.value)"
    means = [row.mean for row in made_up_findings().rows]
    driven.click('#study-made-up .rows button[data-column="3"]')
    assert [float(value) for value in driven.run(column.format(3))] == sorted(means)
    driven.click('#study-made-up .rows button[data-column="3"]')
    assert [float(value) for value in driven.run(column.format(3))] == sorted(means, reverse=True)
    driven.click('#study-made-up .rows button[data-column="1"]')
    assert driven.run(column.format(1)) == sorted(row.where["residual"] for row in made_up_findings().rows)


@pytest.mark.parametrize("width", [320, 768])
def test_narrow_windows_do_not_scroll_sideways(driven: Browser, width: int) -> None:
    driven.look(width=width, height=700)
    driven.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert driven.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [500, 1200])
def test_a_verdict_and_its_head_are_on_one_line(driven: Browser, width: int) -> None:
    driven.look(width=width, height=700)
    heights = driven.run(
        "[...document.querySelectorAll('.claims th:nth-child(2)')].map(e => { const r = document.createRange(); "
        "r.selectNodeContents(e); return r.getClientRects().length; })"
    )
    assert heights == [1, 1]
    # However long the words beside it are, which decides where a browser breaks.
    wraps = "[...document.querySelectorAll('.claims :is(thead th, td):nth-child(2)')].map(e => getComputedStyle(e).{})"
    assert set(driven.run(wraps.format("whiteSpace"))) == {"nowrap"}


def test_hostile_words_do_nothing_in_a_browser(opened: Browser, hostile: Sequence[ShownStudy], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(analysis_page(hostile), encoding="utf-8")
    opened.look(width=360)
    opened.said.clear()
    opened.open(path)
    assert opened.said == []
    assert opened.run("document.images.length + document.scripts.length") == 1
    assert opened.run("document.documentElement.scrollWidth") <= 360
    assert json.loads(opened.run("JSON.stringify(document.querySelector('.claims tbody bdi').textContent)")) == HOSTILE
