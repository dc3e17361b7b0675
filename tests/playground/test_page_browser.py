"""The playground in a real browser, as a new user would use it, on the lab's model."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from errata import LanguageModel, Patch, shipped_recipe
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.playground.session import Playground

from tests.support.browser import Browser, browser, chromium

PROGRAM = chromium()
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed"),
]
FIELD = "#{} textarea, #{} input"
PROMPT = "The native city of Milan Lang is"
READY = "document.querySelector('#controls table') !== null"
STATUS = "document.querySelector('#status').textContent.trim()"
CHANGED = "document.querySelectorAll('#controls tr.changed').length"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from errata.playground.page import serve

    recipe = shipped_recipe("lab", "memit+blue").with_choices({"batch_size": 1})
    controls = ["Fiona Meyer lives in", "Carla Lombardi won a medal in"]
    made = Playground(LanguageModel.load("lab", device="cpu"), recipe, controls, lab=True)
    page, address = serve(made, lab_facts(lab_world(), 3, seed=0), port=None, open_browser=False)
    yield address
    page.close(verbose=False)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as driven:
        yield driven


@pytest.fixture
def shown(opened: Browser, address: str) -> Iterator[Browser]:
    """A new visit; afterwards nothing but this machine was asked for anything, and no script has complained."""
    opened.look()
    opened.said.clear()
    opened.visit(address)
    opened.until(READY)
    yield opened
    assert [word for word in opened.said if not word.startswith(f"network: {address}")] == []


def enter(driven: Browser, **texts: str) -> None:
    for name, text in texts.items():
        driven.type(FIELD.format(name, name), text)


def edit(driven: Browser, subject: str, wording: str, target: str) -> None:
    enter(driven, subject=subject, wording=wording, target=target)
    driven.click("#edit")
    driven.until(f"{STATUS}.startsWith('Edited.')")
    driven.until(f"document.querySelector('#history').textContent.includes({json.dumps(target)})")


def answers(driven: Browser) -> list[str]:
    return driven.run("[...document.querySelectorAll('#answers .continued')].map(e => e.textContent.split('.')[0])")


def test_edit_break_a_control_export_and_undo(shown: Browser, tmp_path: Path) -> None:
    enter(shown, prompt=PROMPT)
    shown.click("#ask")
    shown.until("document.querySelector('#answers').textContent.includes('Delhi')")
    assert answers(shown) == ["Delhi", "Delhi"]
    assert shown.run(CHANGED) == 0
    edit(shown, "Milan Lang", PROMPT, "Istanbul")
    shown.until("document.querySelector('#answers').textContent.includes('Istanbul')")
    assert answers(shown) == ["Delhi", "Istanbul"]
    shares = shown.run(
        "[...document.querySelectorAll('#answers .card td:last-child')].map(e => parseFloat(e.textContent))"
    )
    assert len(shares) == 10
    assert shares[0] > 50
    assert shares[5] > 50
    assert shown.run("document.querySelectorAll('#status svg polyline').length") == 2  # boundary updates: two layers
    # An answer about the same person changed: in red, first, and in words.
    assert shown.run(CHANGED) == 1
    first = "document.querySelector('#controls tbody tr')"
    assert "changed" in shown.run(f"{first}.textContent")
    assert shown.run(f"getComputedStyle({first}.querySelector('th')).color") == "rgb(163, 38, 27)"
    assert shown.run("document.querySelector('#controls .said').textContent") == "1 of 8 control answers changed."
    for kind, name in (("patch", "patch.safetensors"), ("LoRA adapter", "lora.zip")):
        shown.run(f"document.querySelector('#kind input[value={json.dumps(kind)}]').click()")
        shown.click("#export")
        shown.until(f"document.querySelector('#exported').textContent.includes({json.dumps(name)})")
        shown.until(f"document.querySelector('#file a[href*={json.dumps(name)}]') !== null")
        content = shown.run(
            f"fetch(document.querySelector('#file a[href*={json.dumps(name)}]').href).then(r => r.arrayBuffer())"
            ".then(b => [...new Uint8Array(b)])"
        )
        (tmp_path / name).write_bytes(bytes(content))
    assert Patch.load(tmp_path / "patch.safetensors").facts[0].target == "Istanbul"
    assert "lora/adapter_config.json" in zipfile.ZipFile(tmp_path / "lora.zip").namelist()
    shown.click("#undo")
    shown.until(f"{STATUS} === 'Undone.'")
    shown.until("!document.querySelector('#answers').textContent.includes('Istanbul')")
    assert answers(shown) == ["Delhi", "Delhi"]
    assert shown.run(CHANGED) == 0
    assert shown.run("document.querySelector('#export').disabled") is True


def test_another_visit_begins_without_edits(shown: Browser, address: str) -> None:
    edit(shown, "Milan Lang", PROMPT, "Istanbul")
    shown.visit(address)
    shown.until(READY)
    enter(shown, prompt=PROMPT)
    shown.click("#ask")
    shown.until("document.querySelector('#answers').textContent.includes('Delhi')")
    assert answers(shown) == ["Delhi", "Delhi"]


def test_the_keyboard_is_enough(shown: Browser) -> None:
    """From the first field on, with the tab and enter keys only."""
    shown.run("document.querySelector('#subject textarea, #subject input').focus()")
    for text in ("Milan Lang", PROMPT, "Istanbul"):
        shown.call("Input.insertText", text=text)
        shown.press("Tab", 9)
    assert shown.run("document.activeElement.id") == "edit"
    assert shown.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    shown.press("Enter", 13, "\r")
    shown.until(f"{STATUS}.startsWith('Edited.')")
    shown.until("document.querySelector('#undo').disabled === false")
    shown.run("document.querySelector('#undo').focus()")
    shown.press("Enter", 13, "\r")
    shown.until(f"{STATUS} === 'Undone.'")


def test_markup_in_texts_is_shown_as_text(shown: Browser) -> None:
    edit(shown, HOSTILE, f"Home of {HOSTILE} is", "<b>Rome</b>")
    enter(shown, own=f"{HOSTILE} lives in")
    shown.click("#add")
    shown.until("document.querySelector('#controls').textContent.includes('<script>')")
    assert (
        shown.run("document.querySelectorAll('img[src=x], #controls script, #answers b, #history script').length") == 0
    )
    assert HOSTILE in shown.run("document.querySelector('#history').textContent")
    enter(shown, subject="<script>", wording="nobody", target="x")
    shown.click("#edit")
    shown.until(f"{STATUS}.includes('SUBJECT')")


def test_a_form_that_is_not_filled_in_is_said_in_the_form_s_words(shown: Browser) -> None:
    said, colour = "document.querySelector('#status .said')", "rgb(163, 38, 27)"
    assert shown.run("document.querySelector('#stop').disabled") is True
    shown.click("#edit")
    shown.until(f"{STATUS} === 'Fill in Subject, Prompt and New answer.'")
    assert shown.run(f"getComputedStyle({said}).color") == colour
    enter(shown, subject="Milan Lang", wording="nobody", target=" ")
    shown.click("#edit")
    shown.until(f"{STATUS} === 'Fill in New answer.'")
    enter(shown, target="x")
    shown.click("#edit")
    shown.until(f"{STATUS}.startsWith('FACT_SUBJECT_POSITION')")
    text = shown.run(STATUS)
    assert "'Prompt'" in text
    assert not any(hidden in text for hidden in ("↵", "edit-1"))
    assert shown.run(f"getComputedStyle({said}.querySelector('.words')).color") == colour
    shown.until("document.querySelector('#stop').disabled === true")


def test_stop_is_enabled_while_a_search_runs(shown: Browser) -> None:
    enter(shown, subject="Milan Lang", wording=PROMPT, target="Istanbul")
    shown.run(
        "window.enabled = false; new MutationObserver(() => { window.enabled ||= "
        "!document.querySelector('#stop').disabled; }).observe(document.body, {subtree: true, attributes: true, "
        "childList: true})"
    )
    shown.click("#edit")
    shown.until(f"{STATUS}.startsWith('Edited.')")
    shown.until("document.querySelector('#stop').disabled === true")
    assert shown.run("window.enabled") is True
    assert "loss" in shown.run("[...document.querySelectorAll('#status svg text')].map(e => e.textContent)")
    layers = shown.run("document.querySelector('header p').textContent")
    assert "at layers 0, 2." in layers  # boundary updates write no layer between


@pytest.mark.parametrize("dark", [False, True])
def test_narrow_screens_and_both_colour_schemes(shown: Browser, address: str, dark: bool) -> None:
    shown.look(width=390, height=800, dark=dark)
    shown.visit(address)
    shown.until(READY)
    assert shown.run("document.documentElement.scrollWidth") <= 390
    ground, ink = shown.run(
        "[getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('#controls td')).color]"
    )
    light = [sum(int(part) for part in colour[4:-1].split(",")) > 384 for colour in (ground, ink)]
    assert light == ([False, True] if dark else [True, False])
    wide = "[...document.querySelectorAll('#controls, #answers')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert shown.run(wide) == 0


def test_the_page_may_ask_nobody_else(shown: Browser, address: str) -> None:
    policy = shown.run(f"fetch({json.dumps(address)}).then(r => r.headers.get('content-security-policy'))")
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert address.startswith("http://127.0.0.1:")
