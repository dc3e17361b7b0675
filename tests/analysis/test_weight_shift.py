"""Study ``weight-shift``: against dense matrices, the inequalities, and that nothing is left of the earlier batches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from errata.analysis.studies import StudyResult
from errata.analysis.study import AnalysisSettings, StudyContext
from errata.analysis.weight_shift import (
    READINGS,
    WEIGHT_SHIFT,
    EarlierBatches,
    bound,
    growth,
    inside,
    shift_norms,
    slope,
    solution,
    tighter_bound,
)
from errata.editing.preparation import prepare
from errata.editing.solvers import SOLVERS
from errata.editors.locate_then_edit import Editor
from errata.errors import FaultsError, InputError
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import key_moments

from tests.reference import solvers
from tests.reference.keys import key
from tests.reference.weight_shift import residual, weight_shift
from tests.support.bench import ASKED
from tests.support.editing import assert_same_bits, parameter_bits, tiny_language_model, tiny_recipe, write_corpus
from tests.support.fuzzing import examples
from tests.support.study_context import done, tiny_context

PLAN = {"count": 2, "batch_size": 2, "sizes": (1, 2), "earlier": (0, 1, 2)}
NUMBERS = {
    "least_squares": {"ridge": 0.7, "history": False},
    "null_space": {"threshold": 0.9, "l2": 0.1, "history": True},
    "equality": {"ridge": 0.3},
    "neurons": {"ridge": 0.7, "share": 0.6, "history": True},
}


def numbers(result: StudyResult, quantity: str, **where: object) -> list[float]:
    """The means of a quantity's rows, each of which must have these labels."""
    return [
        row.mean
        for row in result.findings.rows
        if row.quantity == quantity and all(row.where.get(name) == value for name, value in where.items())
    ]


def dense_update(
    context: StudyContext, moment: Tensor, earlier: Tensor | None, keys: Tensor, residuals: Tensor
) -> Tensor:
    """By the formulas of tests.reference.solvers."""
    solver = context.recipe.solver
    history = earlier if getattr(solver, "history", False) else None
    if solver.kind == "least_squares":
        return solvers.least_squares(keys, residuals, moment, ridge=solver.ridge, earlier=history)
    assert solver.kind == "null_space"
    return solvers.null_space(keys, residuals, moment, threshold=solver.threshold, l2=solver.l2, earlier=history)


@pytest.mark.parametrize(
    ("family", "method"),
    [("gpt2", "memit"), ("gpt2", "memit_seq+blue"), ("llama", "memit_seq"), ("llama", "alphaedit")],
)
def test_the_study_is_what_dense_updates_give(tmp_path: Path, family: str, method: str) -> None:
    context = tiny_context(tmp_path, method=method, model=tiny_language_model(family, dtype=torch.float64), **PLAN)
    bits = parameter_bits(context.model)
    result = done(WEIGHT_SHIFT, context, tmp_path / "out")
    assert_same_bits(parameter_bits(context.model), bits)
    facts = context.materials[0].facts.facts
    probe, batches = facts[:2], [facts[2:4], facts[4:6]]
    settings = context.recipe.statistics
    moments = key_moments(context.model, context.layers, open_corpus(settings.corpus).documents(), settings)
    editor = Editor(context.model, context.recipe, cache=tmp_path / "cache")
    editor.prepare()
    remembered: dict[int, list[Tensor]] = {layer: [] for layer in context.layers}
    for count in (0, 1, 2):
        if count:
            batch = batches[count - 1]
            editor.apply(batch)
            for layer, found in remembered.items():
                found += [key(context.model, fact, editor.prefixes, layer) for fact in batch]
        searched = {
            layer: torch.stack([residual(context, fact, editor.prefixes, layer) for fact in probe], dim=1)
            for layer in context.layers
        }
        for layer, found in remembered.items():
            earlier = torch.stack(found, dim=1) if found else None
            update = partial(dense_update, context, moments[layer].mean, earlier)
            keys = torch.stack([key(context.model, fact, editor.prefixes, layer) for fact in probe], dim=1)
            for groups in ([[0], [1]], [[0, 1]]):
                twins = [
                    weight_shift(context.layers, layer, keys[:, group], searched[layer][:, group], last, update)
                    for group in groups
                    for last in [searched[context.layers[-1]][:, group]]
                ]
                where = {"layer": layer, "size": len(groups[0]), "earlier": count}
                for quantity, norm in twins[0]:
                    expected = sum(twin[quantity, norm] for twin in twins) / len(twins)
                    means = numbers(result, quantity, norm=norm, **where)
                    assert means == [pytest.approx(expected, rel=1e-6)], quantity
    assert len(numbers(result, "shift")) == 3 * 3 * 2 * 2


@pytest.mark.parametrize("kind", sorted(set(SOLVERS) - {"rank_one"}))
@settings(max_examples=examples(15))
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 9),
    behind=st.integers(0, 4),
    history=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_shift_and_bounds_are_in_order_for_every_solver(
    kind: str, seed: int, count: int, behind: int, history: bool, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    wide = draw(8, 20)
    state = SOLVERS[kind](**NUMBERS[kind]).prepare(wide @ wide.T / 20)
    if history:
        state = state.remember(draw(8, 3))
    keys, computed, last = draw(8, count), scale * draw(5, count), draw(5, count)
    q = solution(state, keys)
    for residuals in (computed, last):
        expected = state.solve(keys, residuals).dense()
        torch.testing.assert_close(residuals @ q, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    found = shift_norms(computed, last, behind, q)
    shift = computed @ q - last @ q / (behind + 1)
    assert found["shift"]["Frobenius"] == pytest.approx(float(torch.linalg.norm(shift)), rel=1e-9)
    assert found["shift"]["spectral"] == pytest.approx(float(torch.linalg.norm(shift, 2)), rel=1e-9)
    assert found["solution"]["spectral"] == pytest.approx(float(torch.linalg.norm(q, 2)), rel=1e-9)
    for of_residuals, of_q in READINGS.values():
        gap, whole = (found[part][of_residuals] for part in ("gap", "last"))
        size = found["solution"][of_q]
        stated, tighter = (rule(gap, whole, size, behind) for rule in (bound, tighter_bound))
        assert found["shift"][of_residuals] <= tighter * (1 + 1e-9)
        assert tighter <= stated
        assert behind > 0 or tighter == stated


def test_the_tighter_bound_is_reached() -> None:
    """By one fact whose computed residual points against the last one's: nothing smaller bounds all cases."""
    last, q = torch.tensor([[3.0], [0.0]]).double(), torch.tensor([[2.0, 0.0, 0.0]]).double()
    found = shift_norms(2 * last, last, 3, q)
    assert found["shift"]["Frobenius"] == pytest.approx((6 - 3 / 4) * 2)
    assert tighter_bound(found["gap"]["Frobenius"], found["last"]["Frobenius"], 2.0, 3) == pytest.approx(
        (3 + 9 / 4) * 2
    )
    assert bound(found["gap"]["Frobenius"], found["last"]["Frobenius"], 2.0, 3) == pytest.approx((3 + 9) * 2)


def test_a_resumed_study_applies_the_earlier_batches_again(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, method="memit_seq", **PLAN)
    whole = done(WEIGHT_SHIFT, context, tmp_path / "out")
    (tmp_path / "out" / "pieces" / "seed-0-after-2.json").unlink()
    fresh = tiny_context(tmp_path, method="memit_seq", **PLAN)
    again = done(WEIGHT_SHIFT, fresh, tmp_path / "out")
    assert json.dumps(again.findings.to_record()) == json.dumps(whole.findings.to_record())


def test_a_run_that_breaks_off_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, method="memit_seq", **PLAN)
    bits = parameter_bits(context.model)
    run = EarlierBatches(context, context.recipe, context.materials[0].facts.facts, 2)
    with run.written(1):
        once = parameter_bits(context.model)
    assert_same_bits(parameter_bits(context.model), bits)
    with pytest.raises(KeyboardInterrupt), run.written(2):
        raise KeyboardInterrupt
    assert_same_bits(parameter_bits(context.model), bits)
    with run.written(2) as states:
        assert set(states) == set(context.layers)
    with pytest.raises(ValueError, match="2 batches"), run.written(1):
        pass
    again = EarlierBatches(context, context.recipe, context.materials[0].facts.facts, 2)
    with again.written(1):
        assert_same_bits(parameter_bits(context.model), once)


def test_seeds_share_factors_and_recipes_with_other_statistics_do_not(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    first, second = (context.prepared(context.recipe_for(seed)) for seed in (0, 1))
    assert first.prefixes != second.prefixes
    assert first.solvers[1] is second.solvers[1]
    alone = prepare(context.model, context.recipe_for(1), context.layers, cache=context.cache)
    assert second.prefixes == alone.prefixes
    other = context.recipe.model_copy(
        update={"statistics": context.recipe.statistics.model_copy(update={"tokens": 500})}
    )
    assert context.prepared(other).solvers[1] is not first.solvers[1]


def test_claims_are_decided_by_their_rows(tmp_path: Path) -> None:
    result = done(WEIGHT_SHIFT, tiny_context(tmp_path, method="memit_seq", **PLAN), tmp_path / "out")
    claims = {claim.text: claim for claim in result.findings.claims}
    assert len(claims) == 9
    (valid,) = [claim for text, claim in claims.items() if "never above" in text]
    assert valid.verdict == "holds"
    assert valid.evidence.startswith("81 comparisons")  # (2 + 1 groups) · 3 layers · 3 numbers of batches · 3 norms
    before = numbers(result, "shift", layer=1, earlier=0, size=1, norm="Frobenius")
    after = numbers(result, "shift", layer=1, earlier=2, size=1, norm="Frobenius")
    grown = numbers(result, "shift, growth with earlier batches", layer=1, norm="Frobenius")
    assert grown == [pytest.approx((after[0] - before[0]) / before[0])]
    single = numbers(result, "shift", layer=1, earlier=0, size=2, norm="Frobenius")
    by_size = numbers(result, "shift, growth with batch size", layer=1, norm="Frobenius")
    assert by_size == [pytest.approx(single[0] / before[0] - 1)]
    assert numbers(result, "shift", layer=3) == [0.0] * 12
    assert all("last critical layer" in reason for reason in result.findings.undefined.values())
    assert {figure.name.rpartition("-")[2] for figure in result.findings.figures} == {
        "distance",
        "size",
        "earlier",
        "tightness",
    }
    for figure in result.findings.figures:
        for panel in figure.panels:
            assert all(len(series.x) >= 2 for series in panel.series)
            assert not (panel.log_y and any(y <= 0 for series in panel.series for y in series.y))


def test_groups_that_hold_no_smaller_one_are_left_out(tmp_path: Path) -> None:
    """Of groups of three, none lies within facts 4 to 7: the second group of four cannot be compared with its parts."""
    plan = {"count": 8, "batch_size": 2, "sizes": (3, 4), "earlier": (0,)}
    facts = [
        *ASKED[:4],
        *(replace(fact, id=f"{fact.id}-again", prompt=f"I think that {fact.prompt}") for fact in ASKED[:4]),
    ]
    result = done(WEIGHT_SHIFT, tiny_context(tmp_path, facts=facts, **plan), tmp_path / "out")
    (row,) = [
        row
        for row in result.findings.rows
        if row.quantity == "shift, growth with batch size"
        and row.where["layer"] == 1
        and row.where["norm"] == "Frobenius"
    ]
    assert row.n == 1
    shifts = json.loads((tmp_path / "out" / "pieces" / "seed-0-after-0.json").read_text(encoding="utf-8"))
    small, large = (shifts["kept"]["sizes"][size]["1"]["shift"]["Frobenius"] for size in ("3", "4"))
    assert row.mean == pytest.approx(large[0] / small[0] - 1)


def test_pictures_are_of_the_size_at_which_norms_differ(tmp_path: Path) -> None:
    """With one fact a batch all norms are the same, so that it is drawn only where there is no other size."""
    result = done(WEIGHT_SHIFT, tiny_context(tmp_path, method="memit_seq", **PLAN), tmp_path / "out")
    figures = {figure.name.rpartition("-")[2]: figure for figure in result.findings.figures}
    for name in ("distance", "earlier", "tightness"):
        assert "2 facts a batch (no size above 1 has 5 groups)" in figures[name].caption
    panel = figures["distance"].panels[0]
    (shift,) = [series for series in panel.series if series.label == "shift"]
    assert shift.y[-1] == numbers(result, "shift", layer=1, earlier=0, size=2, norm="Frobenius")[0]
    assert panel.x_label == "critical layers left to the last (2: layer 1, 0: layer 3)"


def test_one_number_of_each_leaves_nothing_to_compare(tmp_path: Path) -> None:
    plan = {"count": 3, "sizes": (3,), "earlier": (0,), "recipe": {"layers": (1, 2)}}
    result = done(WEIGHT_SHIFT, tiny_context(tmp_path, **plan), tmp_path / "out")
    assert {"growth with distance", "growth with batch size", "growth with earlier batches"} <= set(
        result.findings.undefined
    )
    assert [claim.verdict for claim in result.findings.claims] == ["undecided", "holds"]


def test_what_cannot_be_measured_is_refused_with_all_reasons(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.txt")
    wrong = AnalysisSettings(count=4, sizes=(5,))
    with pytest.raises(FaultsError) as caught:
        WEIGHT_SHIFT.check(tiny_recipe(corpus, "rome"), wrong)
    assert [fault.where for fault in caught.value.faults] == ["solver", "layers", "sizes"]
    with pytest.raises(FaultsError) as caught:
        WEIGHT_SHIFT.check(tiny_recipe(corpus, "rect"), AnalysisSettings())
    assert caught.value.code == "STUDY_RECIPE_UNSUITABLE"
    with pytest.raises(FaultsError) as caught:
        WEIGHT_SHIFT.check(tiny_recipe(corpus), AnalysisSettings(sizes=(), earlier=()))
    assert caught.value.code == "STUDY_SETTING_INVALID"
    for method in ("memit", "memit_seq", "alphaedit", "nse", "prune", "pmet", "memit+blue"):
        WEIGHT_SHIFT.check(tiny_recipe(corpus, method), AnalysisSettings())
    with pytest.raises(InputError) as few:
        done(WEIGHT_SHIFT, tiny_context(tmp_path, count=5, sizes=(1,), earlier=(2,)), tmp_path / "out")
    assert few.value.code == "STUDY_TOO_FEW_FACTS"


def test_growth_is_reported_in_units_of_its_start() -> None:
    before, after = np.array([[1.0, 3.0]]), np.array([[2.0, 3.0]])
    assert growth(before, after).tolist() == [[0.5, 0.0]]
    assert np.isnan(growth(0 * before, after)).all()
    places: Mapping[int, float] = {1: 1.0, 2: 3.0, 3: 5.0}
    values = [np.array([[value, 2 * value]]) for value in places.values()]
    assert slope(values, list(places)).tolist() == [[pytest.approx(2 / 4.5), pytest.approx(4 / 4.5)]]
    small = np.arange(7.0)[None]
    assert [part.tolist() for part in inside(small, 2, 1, 3)] == [[[0, 1, 2]], [[3, 4, 5]]]
    assert [part.tolist() for part in inside(small, 2, 2, 5)] == [[[0, 1]], [[3, 4]]]
