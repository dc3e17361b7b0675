"""Study ``factorial``: each cell against an editor of its own, what cells share, and what the findings say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from errata.analysis import factorial
from errata.analysis.factorial import FACTORIAL, cells_of, check_factorial, designs_of, layer_sets, name_of, recipe_of
from errata.analysis.studies import StudyResult
from errata.analysis.study import AnalysisSettings, StudyContext
from errata.editors.locate_then_edit import Editor
from errata.errors import FaultsError, MissingExtraError

from tests.reference.factorial import answers_of
from tests.support.bench import ASKED, UNTOUCHED
from tests.support.editing import assert_same_bits, parameter_bits, tiny_recipe, write_corpus
from tests.support.study_context import done, tiny_context

FACTS = ASKED[:3]
SCHEDULES = {"spread": "even", "sqrt-spread": "sqrt", "computed": "own", "replay": "replay"}
SETS = {"first": (1,), "last": (3,), "both": (1, 3), "all": (1, 2, 3)}


def bench_of(folder: Path, family: str = "gpt2", method: str = "memit", **changes: Any) -> StudyContext:
    changes = {"facts": FACTS, "ridges": (3.0,), **changes}
    return tiny_context(folder, family, method, **changes)


def kept_in(out: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["kept"] for path in (out / "pieces").iterdir()}


def rows_where(result: StudyResult | None, quantity: str, **where: str) -> list[Any]:
    assert result is not None
    rows = [row for row in result.findings.rows if row.quantity == quantity]
    return [row for row in rows if where.items() <= row.where.items()]


def changed(context: StudyContext, cell: Mapping[str, str]) -> dict[str, Any]:
    """The recipe's sections that a cell changes, written down once more."""
    solver, contexts = context.recipe.solver.model_dump(), context.recipe.contexts.model_dump()
    ridge = "l2" if "l2" in solver else "ridge"
    solver |= {ridge: solver[ridge] * float(cell["ridge"]), "history": cell["history"] == "on"}
    if cell["contexts"] == "bare":
        contexts["keys"] = "bare"
    return {
        "schedule": SCHEDULES[cell["source"]],
        "layers": SETS[cell["layers"]],
        "solver": solver,
        "contexts": contexts,
        "batch_size": 2,
    }


@dataclass(frozen=True)
class Finished:
    """A study that is done, and the batches that it took: whether each was of a run with history."""

    context: StudyContext
    out: Path
    result: StudyResult | None = None
    batches: Sequence[bool] = ()


def finish(folder: Path, family: str = "gpt2", method: str = "memit", **changes: Any) -> Finished:
    """Three facts in batches of two, and the model bit for bit as it was."""
    context = bench_of(folder, family, method, **changes)
    bits = parameter_bits(context.model)
    batches: list[bool] = []
    apply_batch = Editor.apply_batch

    def counting(self: Editor, facts: Sequence[Any], **more: Any) -> Any:
        batches.append(bool(getattr(self.recipe.solver, "history", False)))
        return apply_batch(self, facts, **more)

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(Editor, "apply_batch", counting)
        result = done(FACTORIAL, context, folder / "out")
    assert_same_bits(parameter_bits(context.model), bits)
    return Finished(context, folder / "out", result, batches)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(tmp_path_factory.mktemp("factorial"), seeds=(0, 1))


def assert_as_editors_of_their_own(of: Finished, runs: Sequence[Mapping[str, Any]]) -> None:
    assert runs
    for run in runs:
        recipe = of.context.recipe_for(int(run["seed"])).with_choices(changed(of.context, run["cell"]))
        contexts = recipe.contexts.model_copy(update={"seed": int(run["seed"])})
        recipe = recipe.model_copy(update={"contexts": contexts})
        expected = answers_of(of.context.model, recipe, FACTS, UNTOUCHED, of.context.cache or of.out)
        assert run["sums"] == {
            metric: {fact: [sum(values), len(values)] for fact, values in facts.items()}
            for metric, facts in expected.items()
        }


def test_every_cell_is_what_an_editor_of_its_own_gives(finished: Finished) -> None:
    runs = [kept for kept in kept_in(finished.out).values() if "cell" in kept]
    assert len(runs) == 80
    assert_as_editors_of_their_own(finished, runs[::7])
    for design, layers in (("source", ("both", "all")), ("layers", ("first", "last", "both", "all"))):
        where = {"design": design, "response": "efficacy_success", "factor": "history", "level": "on"}
        (row,) = rows_where(finished.result, "mean", **where)
        found = [
            run["sums"]["efficacy_success"]
            for run in runs
            if run["cell"]["layers"] in layers
            and run["cell"]["history"] == "on"
            and (design == "source" or run["cell"]["source"] == "computed")
        ]
        assert row.mean == pytest.approx(sum(sum(v for v, _ in run.values()) for run in found) / (3 * len(found)))
        assert row.n == len(FACTS)  # both seeds have the same facts here, and a fact is one cluster


def test_another_family_and_the_null_space(tmp_path: Path) -> None:
    context = bench_of(tmp_path, "llama", "alphaedit")
    pieces = [piece for piece in FACTORIAL.tasks(context) if "before" not in piece.name]
    runs = [json.loads(json.dumps(piece.work())) for piece in pieces[1::7]]
    assert_as_editors_of_their_own(Finished(context, tmp_path), runs)
    assert {run["cell"]["history"] for run in runs} == {"on", "off"}


def test_a_run_without_history_begins_as_the_one_with_it_and_no_batch_is_made_twice(finished: Finished) -> None:
    assert finished.batches.count(True) == 40 * 2
    assert finished.batches.count(False) == 40
    # Stopped between the two runs, the second begins anew and comes out the same.
    kept = kept_in(finished.out)
    pieces = {piece.name: piece for piece in FACTORIAL.tasks(finished.context)}
    name = "seed-0-computed-both-ridge-3-averaged-history-off"
    assert json.loads(json.dumps(pieces[name].work())) == kept[name]


def test_solvers_are_prepared_once_for_each_ridge(tmp_path: Path) -> None:
    context = bench_of(tmp_path, seeds=(0, 1), ridges=(1.0, 3.0))
    pieces = {piece.name: piece for piece in FACTORIAL.tasks(context)}
    for seed, ridge, layers in ((0, 1, "first"), (0, 3, "all"), (1, 1, "last"), (1, 3, "both")):
        pieces[f"seed-{seed}-computed-{layers}-ridge-{ridge}-bare-history-off"].work()
    assert len(context._prepared) == 2


def test_both_designs_are_complete_and_share_cells(tmp_path: Path) -> None:
    context = bench_of(tmp_path, ridges=(1.0, 3.0))
    designs = designs_of(context.recipe, context.settings)
    cells = cells_of(designs)
    assert len(cells) == 80
    assert len({name_of(cell, 0) for cell in cells}) == 80
    for factors, count in ((designs["source"], 64), (designs["layers"], 32)):
        inside = [cell for cell in cells if all(cell[name] in levels for name, levels in factors.items())]
        assert len(inside) == count
    assert not [cell for cell in cells if cell["layers"] in ("first", "last") and cell["source"] != "computed"]
    for cell, following in zip(cells[::2], cells[1::2], strict=True):
        assert (cell["history"], following["history"]) == ("on", "off")
        assert {**cell, "history": "off"} == following
    recipe = recipe_of(context.recipe, context.settings, {**cells[0], "ridge": "3", "contexts": "bare"})
    assert (recipe.solver.ridge, recipe.contexts.keys) == (6.0, "bare")  # type: ignore[union-attr]


def test_findings_name_everything_and_can_be_kept(finished: Finished) -> None:
    result = finished.result
    assert result is not None
    findings = result.findings
    assert findings.undefined["spread × first layer only"].startswith("over one layer nothing is spread")
    assert len([name for name in findings.undefined if name.endswith("layer only")]) == 6
    responses = {row.where["response"] for row in findings.rows}
    assert {"efficacy_success", "score", "same_subject_accuracy", "log_perplexity_ratio"} - responses == {
        "same_subject_accuracy"  # these facts have no 'own' questions
    }
    for response in responses:
        shares = rows_where(result, "share of variance", response=response, design="source")
        if shares:
            assert sum(row.mean for row in shares) == pytest.approx(1)
            assert {row.where["factor"] for row in shares} >= {"seed", "source", "source × layers", "residual"}
        else:
            assert f"variance of {response}, design 'source'" in findings.undefined
        parts = {row.where["part"]: row.mean for row in rows_where(result, "boundary gain", response=response)}
        assert parts["source"] + parts["layers"] == pytest.approx(parts["whole"], abs=1e-12)
    names = [figure.name for figure in findings.figures]
    assert names == ["factorial-main-effects", "factorial-interaction", "factorial-decomposition"]
    (bars,) = findings.figures[2].panels
    assert bars.kind == "bars"
    assert [panel.title for panel in findings.figures[0].panels] == [
        "Source of the residual", "Layers that are written", "History of keys", "Key contexts",
    ]  # fmt: skip
    assert {panel.kind for panel in findings.figures[0].panels} == {"bars"}  # most factors have no order
    assert {panel.y_label for panel in findings.figures[0].panels} == {"difference from the design's mean (share)"}
    for figure in findings.figures:
        for panel in figure.panels:
            assert panel.y_label.endswith("(share)")
            for series in panel.series:
                assert len(series.x) == len(series.y) == len(series.low) == len(series.high) > 1
    assert any("explains" in claim.text or "brings more of the gain" in claim.text for claim in findings.claims)
    assert all("difference" in claim.evidence or "minus" in claim.evidence for claim in findings.claims)


def test_two_critical_layers_are_the_two_ends(tmp_path: Path) -> None:
    assert layer_sets((2, 5)) == {"first": (2,), "last": (5,), "both": (2, 5)}
    context = bench_of(tmp_path, recipe={"layers": (1, 3), "contexts": {"keys": "bare"}})
    result = done(FACTORIAL, context, tmp_path / "out")
    assert "all layers" in result.findings.undefined
    assert "keys averaged over contexts" in result.findings.undefined
    assert not rows_where(result, "boundary gain")
    assert len([name for name in kept_in(tmp_path / "out") if "before" not in name]) == 6 * 2
    assert result.findings.claims


def test_all_errors_of_a_design_are_reported_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt")
    settings = AnalysisSettings(count=10, batch_size=10, ridges=(1.0, 1.0))
    with pytest.raises(FaultsError) as caught:
        check_factorial(tiny_recipe(corpus), settings)
    assert [fault.where for fault in caught.value.faults] == ["count", "ridges"]
    good = AnalysisSettings(count=10, batch_size=5)
    check_factorial(tiny_recipe(corpus), good)
    for recipe, code in (
        (tiny_recipe(corpus, "emmet", layers=(1, 2), schedule="even"), "STUDY_SOLVER_UNSUITABLE"),
        (tiny_recipe(corpus, layers=(2,)), "STUDY_NEEDS_LAYERS"),
        (tiny_recipe(corpus, target={"weights": "original"}), "STUDY_RECIPE_UNSUITABLE"),
    ):
        with pytest.raises(FaultsError) as caught:
            check_factorial(recipe, good)
        assert caught.value.code == code
    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError):
        check_factorial(tiny_recipe(corpus), good)
    assert factorial.FACTORIAL.defaults["count"] > factorial.FACTORIAL.defaults["batch_size"]
