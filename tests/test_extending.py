"""The Python blocks of docs/extending.md run, and what they define does what the page says."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

import pytest
import torch
from pydantic import Field, TypeAdapter, create_model

from errata.benchmark import recipe_search
from errata.editing.methods import method_named
from errata.editing.recipe import Recipe, shipped_recipe
from errata.editing.solvers import SOLVERS, AnySolver
from errata.editing.solvers.base import LayerSolver, Solver
from errata.editors.contract import Answerer, Edit, KnowledgeEditor
from errata.errors import FaultsError
from errata.utils.settings import by_kind

from tests.support.editing import FACTS, tiny_language_model
from tests.support.extending import BLOCK, PAGE, extending_page


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return extending_page()


def test_files_of_the_page_work_alone() -> None:
    """A block that begins with a docstring is a whole file."""
    files = [block for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if block.startswith('"""')]
    assert len(files) == 4
    for block in files:
        module = ModuleType("one_file_of_the_page")
        sys.modules[module.__name__] = module
        exec(compile(block, str(PAGE), "exec"), vars(module))


def test_solver(page: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    page["test_plain_ridge"]()
    kind = page["PlainRidge"]
    solver = kind(ridge=0.3)
    assert isinstance(solver, Solver)
    assert isinstance(solver.prepare(torch.eye(3, dtype=torch.float64)), LayerSolver)
    # All that the page says to add is the class in the union and a row.
    union = Annotated[kind | get_args(AnySolver)[0], Field(discriminator="kind")]  # type: ignore[operator]
    assert set(by_kind(union)) == {"plain_ridge", *SOLVERS}
    assert TypeAdapter(union).validate_python({"kind": "plain_ridge", "ridge": 0.3}) == solver
    monkeypatch.setattr(recipe_search, "SOLVERS", by_kind(union))
    extended = create_model("Extended", __base__=Recipe, solver=(union, ...))
    monkeypatch.setattr(recipe_search, "Recipe", extended)
    row = replace(method_named("memit"), solver={"kind": "plain_ridge"})
    statistics = shipped_recipe("lab", "memit").statistics.model_dump()
    found = recipe_search.unsearched_recipe("m", row, (1, 2), 64, statistics)
    assert found.recipe.solver.ridge == 10  # type: ignore[union-attr]
    assert not found.recipe.needs_statistics
    assert found.reasons["solver"] == "λ = 10, not searched"
    assert [one.description for one in recipe_search.solver_candidates(found.recipe.solver, 64)] == [
        "λ = 10",
        "λ = 1",
        "λ = 0.1",
    ]


def test_editor(page: dict[str, Any], tmp_path: Path) -> None:
    editor = page["ContextEditor"](tiny_language_model("llama"))
    assert isinstance(editor, KnowledgeEditor)
    assert isinstance(editor.view(), Answerer)
    pairs = [fact.pair(fact.target) for fact in FACTS]
    before, began = editor.view().score(pairs), editor.fingerprint()
    edit = editor.apply(FACTS[:2])
    assert isinstance(edit, Edit)
    edit.save(tmp_path / "edit.json")
    assert editor.view().used([FACTS[0].text, "The river"]) == [(FACTS[0].id,), ()]
    edited = editor.view().score(pairs)
    assert edited[:2] != before[:2]
    assert edited[2:] == before[2:]
    loaded = page["StoredEdit"].load(tmp_path / "edit.json")
    assert (loaded.facts, loaded.fingerprint) == (edit.facts, edit.fingerprint)
    editor.remove(edit)
    assert editor.view().score(pairs) == before
    assert editor.fingerprint() == began
    editor.restore(edit)
    assert editor.view().score(pairs) == edited


def test_metric(page: dict[str, Any]) -> None:
    model = tiny_language_model("llama")
    records = page["probability_records"](model, FACTS)
    assert [record.fact for record in records] == [fact.id for fact in FACTS]
    for record, score in zip(records, model.score([fact.pair(fact.target) for fact in FACTS]), strict=True):
        assert 0 < record.value < 1
        assert math.isclose(math.log(record.value), score.log_probability, rel_tol=1e-9)


def test_data_set(page: dict[str, Any], tmp_path: Path) -> None:
    record = {
        "number": 7,
        "about": "Torre Ombra",
        "question": "Where is Torre Ombra?",
        "right": "Lyon",
        "wrong": "Turin",
    }
    file = tmp_path / "quiz.json"
    file.write_text(json.dumps([record, {**record, "number": 8, "question": "Is Torre Ombra in Torre Ombra?"}]))
    contents = page["DATASET"].reader(file, False)
    (fact,) = contents.units[0].facts
    assert (fact.id, fact.text, fact.target, fact.old) == ("quiz-7", "Where is Torre Ombra?", "Lyon", "Turin")
    assert len(contents.units) == 1
    assert len(contents.notes) == 1
    file.write_text(json.dumps([record, {"number": 9}]))
    with pytest.raises(FaultsError) as error:
        page["DATASET"].reader(file, False)
    assert {fault.code for fault in error.value.faults} == {"FACT_MISSING_FIELD"}
