"""A cell of every kind of editor: measured through the contract, resumed, and collected with reasons for gaps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from errata.benchmark.campaign import Campaign
from errata.benchmark.cell import EditorRun, open_cell
from errata.benchmark.cell_files import CellSpec
from errata.benchmark.collect import collect
from errata.benchmark.data import BenchmarkData
from errata.benchmark.grid import Measures
from errata.benchmark.workers import progress_of
from errata.editors.contract import OnBatch
from errata.editors.registry import EditorKind
from errata.errors import EditError, InputError, NonFiniteError
from errata.facts.concept import Concept
from errata.facts.fact import Fact, Question
from errata.results.records import read_results
from errata.utils.progress import silent

from tests.support.bench import ASKED, TinyBench
from tests.support.editing import tiny_language_model, tiny_recipe
from tests.support.editors import VIEWS, MemoryEdit, MemoryEditor

EDITORS = {
    kind: EditorKind(lambda model, settings, report, kind=kind: MemoryEditor(model, kind), MemoryEdit.load)  # type: ignore[misc]
    for kind in VIEWS
}


@dataclass(frozen=True, slots=True)
class FullBench(TinyBench):
    """Its facts have all that the optional measurements need."""

    def material(self, seed: int, edits: int = 6, facts: Sequence[Fact] = ASKED) -> BenchmarkData:
        full = [
            replace(fact, generation=(f"{fact.subject} is",), reversal=(Question("The tower is", fact.subject),))
            for fact in facts
        ]
        return replace(TinyBench.material(self, seed, edits, full), concepts=CONCEPTS)


CONCEPTS = (
    Concept(
        "c", "piano", "I think that the {} is", "what she plays", "a river", instances=("The crowd",),
        unrelated=(Question("The capital of France is", "Paris"),),
    ),
)  # fmt: skip
PARTS = ("split_perplexity", "free", "answers", "texts", "drift", "side", "concepts")


@pytest.mark.parametrize("kind", VIEWS)
def test_a_cell_of_any_editor(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FullBench.of(tmp_path)
    options = {"free": {"settings": {"new_tokens": 3, "contexts": ["bare"]}}, "texts": {"writing": {"tokens": 12}}}
    grid = bench.grid(["memit"], seeds=(0,), measures=Measures(parts=PARTS, options=options))
    (spec,) = bench.specs(grid)
    shared = {name: value for name, value in spec.model_dump(mode="json").items() if name != "recipe"}
    other = CellSpec.model_validate({**shared, "label": kind, "editor": kind, "settings": {"batch_size": 2}})
    assert CellSpec.model_validate_json(other.model_dump_json()) == other
    monkeypatch.setattr(FullBench, "specs", lambda self, grid: [other])
    campaign = bench.begin(tmp_path / "out", grid)
    (cell,) = campaign.cells
    with pytest.raises(InputError) as unknown:
        open_cell(cell, silent)
    assert unknown.value.code == "EDITOR_UNKNOWN"

    def stop(what: str, done: int, total: int) -> None:
        if what == "facts edited" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # before the third batch
        open_cell(cell, stop, editors=EDITORS).work()
    assert len(list((cell / "edits").glob("*.edit"))) == 2
    open_cell(cell, silent, editors=EDITORS).work()
    assert len(list((cell / "edits").glob("*.edit"))) == 3
    assert campaign.is_done(cell)
    collect(campaign)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [entry["status"] for entry in summary["about"]["cells"]] == ["done"]
    after: dict[str, Any] = {row["metric"]: row["mean"] for row in summary["rows"] if row["when"] == "after"}
    (absent,) = summary["about"]["absent"]
    assert "semantic_edit" in absent["metrics"]
    expected = {
        "textual_edit_all:own",
        "free_efficacy_exact",
        "free_locality_neighbours",
        "fluency",
        "concept_instances",
    }
    assert expected <= after.keys()
    assert after["free_efficacy_contained"] > 0
    likelihoods = {
        "efficacy_accuracy", "split_perplexity_ratio", "drift_kl_neighbours", "negation_accuracy",
        "reversal_accuracy", "concept_reliability", "concept_locality",
    }  # fmt: skip
    if kind == "answer":
        assert likelihoods.isdisjoint(after)
        assert likelihoods <= absent["metrics"].keys()
        assert all("likelihood" in absent["metrics"][name] for name in likelihoods)
    else:
        assert likelihoods <= after.keys()
        before = {row["metric"]: row["mean"] for row in summary["rows"] if row["when"] == "before"}
        assert after["efficacy_success"] >= before["efficacy_success"]
    assert "perplexity_ratio" not in after
    assert "perplexity_ratio" in absent["metrics"]
    assert "weight_norm_ratio" not in after


def cell_of(bench: TinyBench, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Campaign, Path]:
    """A benchmark of one cell, of the editor ``prompt``: three batches of two facts."""
    grid = bench.grid(["memit"], seeds=(0,))
    (spec,) = bench.specs(grid)
    shared = {name: value for name, value in spec.model_dump(mode="json").items() if name != "recipe"}
    other = {**shared, "label": "prompt", "editor": "prompt", "settings": {"batch_size": 2}}
    monkeypatch.setattr(TinyBench, "specs", lambda self, grid: [CellSpec.model_validate(other)])
    campaign = bench.begin(out, grid)
    return campaign, campaign.cells[0]


class Overflowing(MemoryEditor):
    """Its second edit is not finite."""

    def apply(self, facts: Sequence[Fact], *, on_batch: OnBatch | None = None) -> MemoryEdit:
        if self.facts:
            raise NonFiniteError("the memory", facts=(), layer=None)
        return super().apply(facts, on_batch=on_batch)


def test_an_edit_that_is_not_finite_is_a_collapse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign, cell = cell_of(TinyBench.of(tmp_path), tmp_path / "out", monkeypatch)
    kind = EditorKind(lambda model, settings, report: Overflowing(model, "prompt"), MemoryEdit.load)
    open_cell(cell, silent, editors={"prompt": kind}).work()
    assert json.loads((cell / "collapse.json").read_text(encoding="utf-8")) == {"batch": 2, "ratio": None}
    (entry,) = read_results(collect(campaign)[0]).about["cells"]
    assert (entry["status"], entry["edits"], entry["collapsed_at"]) == ("done", 2, 2)


def test_a_failed_removal_restores_what_was_removed(tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")

    class Stuck(MemoryEditor):
        """Cannot remove its first edit."""

        def remove(self, edit: MemoryEdit) -> None:
            if edit.facts == tuple(ASKED[:1]):
                raise EditError("it is stuck", remedy="")
            super().remove(edit)

    editor = Stuck(model, "prompt")
    run = EditorRun(model, EDITORS["prompt"], editor, tmp_path, tuple(ASKED[:2]), 1, silent, "")
    run._edits.extend(editor.apply([fact]) for fact in ASKED[:2])
    with pytest.raises(EditError), run.unedited():
        pass
    assert editor.facts == tuple(ASKED[:2])


def test_a_damaged_batch_costs_one_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign, cell = cell_of(TinyBench.of(tmp_path), tmp_path / "out", monkeypatch)
    open_cell(cell, silent, editors=EDITORS).work()
    path = cell / "edits" / "0002.json"
    batch = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**batch, "said": {}}), encoding="utf-8")
    (entry,) = read_results(collect(campaign)[0]).about["cells"]
    assert entry["status"] == "failed"
    assert "0002.json" in entry["failure"]


def test_progress_of_any_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cell = cell_of(TinyBench.of(tmp_path), tmp_path / "out", monkeypatch)
    assert progress_of(cell) == (0, 6)

    def stop(what: str, done: int, total: int) -> None:
        if what == "facts edited" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cell(cell, stop, editors=EDITORS).work()
    assert progress_of(cell) == (4, 6)


def test_recorded_specifications_keep_their_form(tmp_path: Path) -> None:
    (spec,) = TinyBench.of(tmp_path).specs(TinyBench(tmp_path).grid(["memit"], seeds=(0,)))
    record = json.loads(spec.model_dump_json())
    assert list(record)[:6] == ["format", "model", "data", "label", "recipe", "seed"]
    assert "editor" not in record
    assert spec.recipe == tiny_recipe(tmp_path / "corpus.txt", "memit", target={"steps": 6}).model_copy(
        update={"batch_size": 2, "contexts": spec.recipe.contexts}
    )
    assert CellSpec.model_validate(record) == spec
