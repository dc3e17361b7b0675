"""benchmarks/editors_speed.py on a tiny model: plain loops give the editors' results, and a wrong one is noticed."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest

from errata.editors.registry import EDITORS
from errata.models.language_model import LanguageModel

from benchmarks import editors_plain, editors_speed
from tests.support.editing import tiny_language_model

FEW = ["--facts", "3", "--reference-facts", "4", "--queries", "2", "--tokens", "2"]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model("llama")


def table(text: str) -> dict[str, list[list[str]]]:
    """Editor -> the cells of its lines."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("| "):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(name, []).append(cells)
    return found


def run(model: LanguageModel, names: str) -> None:
    def here(job: str, options: argparse.Namespace) -> dict[str, Any]:
        return editors_speed.measured(job, options, model)

    editors_speed.main([*FEW, "--editors", names], run=here)


def changed(monkeypatch: pytest.MonkeyPatch, name: str, **fields: Any) -> None:
    cases = editors_speed.CASES
    monkeypatch.setattr(editors_speed, "CASES", {**cases, name: replace(cases[name], **fields)})


def test_every_plain_loop_gives_the_editors_result(
    model: LanguageModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name, case in editors_speed.CASES.items() if case.plain is not None]
    for name in names:
        steps = {"steps": 3} if "steps" in EDITORS[name].settings.model_fields else {}
        changed(monkeypatch, name, settings=steps)
    run(model, ",".join([*names, "retrieval"]))
    rows = table(capsys.readouterr().out)
    for name in names:
        assert rows[name][0][4].endswith("×")
        assert float(rows[name][0][6]) <= editors_speed.TOLERANCE
    assert len(rows["retrieval"]) == 1
    assert rows["retrieval"][0][0].endswith("%")
    assert len(rows["grace"]) == 2


def test_a_loop_with_another_result_fails(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(editor: Any, facts: Any) -> Any:
        editor.settings = editor.settings.model_copy(update={"steps": 1})
        return editors_plain.ft_bf(editor, facts)

    changed(monkeypatch, "ft_bf", plain=shorter, settings={"steps": 3})
    with pytest.raises(SystemExit, match="differ"):
        run(model, "ft_bf")
