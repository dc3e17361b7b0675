"""The pictures of README.md, made from the program itself: ``make pictures``, or ``python -m docs.make_pictures``.

A name makes only one: ``demo`` (``errata demo`` on SmolLM2) or ``playground`` (``errata playground`` on ``lab`` in a
headless Chromium; needs the extra ``app``). The other pictures of the documentation are made by the commands that
their pages name.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from errata import LanguageModel, shipped_recipe
from errata.cli.main import run
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts, untouched_questions
from errata.playground.session import Playground

from tests.support.browser import Browser, browser, chromium

DOCS = Path(__file__).resolve().parent


def main(names: list[str]) -> None:
    for name in names or PICTURES:
        PICTURES[name]()
        print(f"Wrote the picture {name}.")


def demo() -> None:
    """``demo.svg``: ten corrections of SmolLM2."""
    with tempfile.TemporaryDirectory() as folder:
        _run("demo", "--model", "smollm2-135m-instruct", "--out", folder, "--svg", str(DOCS / "demo.svg"))


def playground() -> None:
    """``playground.png``: after an edit of ``lab`` that changed a control answer."""
    from errata.playground.page import serve

    facts = lab_facts(lab_world(), 3, seed=0)
    questions = untouched_questions(lab_world(), [*(fact.subject for fact in facts), "Milan Lang"], 4, seed=0)
    recipe = shipped_recipe("lab", "memit+blue").with_choices({"batch_size": 1})
    prompts = [question.prompt for _, question in questions]
    made = Playground(LanguageModel.load("lab", device="cpu"), recipe, prompts, lab=True)
    page, address = serve(made, facts, port=None, open_browser=False)

    def shown(driven: Browser) -> None:
        driven.visit(address)
        driven.until("document.querySelector('#controls table') !== null")
        prompt = "The native city of Milan Lang is"
        for name, text in {"subject": "Milan Lang", "wording": prompt, "target": "Istanbul"}.items():
            driven.type(f"#{name} textarea, #{name} input", text)
        driven.click("#edit")
        driven.until("document.querySelector('#controls tr.changed') !== null")

    _photograph(shown, DOCS / "playground.png")
    page.close(verbose=False)


PICTURES: Mapping[str, Callable[[], None]] = {"demo": demo, "playground": playground}


def _run(*arguments: str) -> None:
    if run(arguments):
        raise SystemExit(f"errata {' '.join(arguments)} failed")


def _photograph(show: Callable[[Browser], None], path: Path) -> None:
    program = chromium()
    if program is None:
        raise SystemExit("there is no Chromium on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browser(program, Path(profile)) as driven:
        driven.look(width=1100)
        show(driven)
        time.sleep(1)  # until animations have ended
        driven.picture(path)


if __name__ == "__main__":
    main(sys.argv[1:])
