"""The generated parts of the documentation are current; `make pages` rewrites them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
make_pages = runpy.run_path(str(DOCS / "make_pages.py"))


def test_the_generated_pages_are_current() -> None:
    current = make_pages["pages"]()
    outdated = [file for file, text in current.items() if (DOCS / file).read_text(encoding="utf-8") != text]
    assert not outdated, f"run `make pages`; outdated: {', '.join(outdated)}"


def test_the_map_of_the_code_names_what_is_there() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    source = DOCS.parent / "src" / "errata"
    places = re.findall(r"`([\w/]+\.py)`(?:: `([\w.]+)`)?", page)
    assert len(places) >= 10
    for file, name in places:
        text = (source / file).read_text(encoding="utf-8")
        for part in filter(None, name.split(".")):
            assert re.search(rf"\b(def|class) {part}\b|^{part}\b", text, re.MULTILINE), f"{file} has no {part}"


def test_every_form_of_an_error_code_is_found(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        'class MissingError(InputError):\n    """Something is missing."""\n\n    code = "MISSING"\n\n'
        'def f(x):\n    yield Fault(x, f"{x!r} is " + "wrong", "Fix it", code="WRONG")\n'
        '    raise InputError("cannot read", code="UNREADABLE")\n    raise OutputError("full", code="UNREADABLE")\n',
        encoding="utf-8",
    )
    assert make_pages["error_rows"](tmp_path) == {
        "MISSING": ({"MissingError"}, "Something is missing"),
        "WRONG": ({"Fault"}, "… is wrong"),
        "UNREADABLE": ({"InputError", "OutputError"}, "cannot read"),
    }


def test_codes_that_the_source_no_longer_has_are_refused(tmp_path: Path) -> None:
    first, *others = make_pages["_BY_HAND"]
    texts = [f'code="{code}"' for code in others]
    (tmp_path / "module.py").write_text("\n".join(texts), encoding="utf-8")
    with pytest.raises(ValueError, match=f"no longer exist: {first}$"):
        make_pages["errors_page"](tmp_path)


def test_commands_in_the_documentation_exist_with_their_options() -> None:
    options: dict[str, set[str]] = {}
    title = ""
    for line in (DOCS / "commands.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(("## errata", "### errata")):
            title = line.lstrip("# ")
            options[title] = {"--help"}
        elif found := re.match(r"\| `([^`]+)` \|", line):
            options[title] |= set(found[1].split(", "))
    pages = [DOCS.parent / "README.md", *(page for page in DOCS.glob("*.md") if page.name != "commands.md")]
    shown = 0
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^\$ (errata .*)|`(errata [^`]+)`", text, re.MULTILINE):
            words = re.sub(r"\s#.*|\"[^\"]*\"", "", "".join(line)).split()
            command = " ".join(words[:3]) if " ".join(words[:3]) in options else " ".join(words[:2])
            if not re.fullmatch(r"[a-z]+", words[1]):
                continue  # `errata COMMAND`, `errata --help`
            assert command in options, f"{page.name}: {' '.join(words)}"
            used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert used <= options[command], f"{page.name}: {' '.join(words)}: no {used - options[command]}"
            shown += 1
    assert shown > 50
