"""Study ``steps``: against searches of one fact at a time between dense writes, and what must hold of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
import torch

from errata.analysis.findings import Findings
from errata.analysis.steps import STEPS, written
from errata.analysis.study import StudyContext
from errata.editing.recipe import Recipe
from errata.editing.schedules import boundary
from errata.editing.target_search import find_targets
from errata.errors import FaultsError
from errata.models.language_model import LanguageModel
from errata.statistics.store import moments_for

from tests.reference.steps import behind_spread_writes, first_loss, searched, with_own_targets
from tests.reference.target import ReferenceTarget
from tests.support.bench import ASKED
from tests.support.editing import assert_same_bits, parameter_bits, tiny_language_model
from tests.support.study_context import done, tiny_context

FACTS = ASKED[:4]
RIDGE = 0.05  # writes that move much, so that one write less is another answer
TARGET = {"steps": 7, "learning_rate": 0.6, "clamp": 3.0}


def bench_of(folder: Path, family: str, **target: float) -> StudyContext:
    model = tiny_language_model(family, dtype=torch.float64)
    recipe = {"target": {**TARGET, **target}, "solver": {"ridge": RIDGE}}
    return tiny_context(folder, family, facts=FACTS, model=model, recipe=recipe)


def mean_of(findings: Findings, quantity: str, weights: str, layer: int) -> float:
    where = {"weights": weights, "layer": layer}
    (row,) = [row for row in findings.rows if row.quantity == quantity and row.where == where]
    return row.mean


def half_way(context: StudyContext, prefixes: Sequence[str]) -> float:
    """A loss that some of the searches come under."""
    found = [
        find_targets(context.model, FACTS, prefixes, layer, context.site, context.recipe.target)
        for layer in context.layers
    ]
    return float(torch.cat([targets.loss for targets in found]).median())


def copied(model: LanguageModel) -> LanguageModel:
    return LanguageModel(copy.deepcopy(model.model), model.tokenizer)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_searches_are_those_of_single_facts_between_dense_writes(tmp_path: Path, family: str) -> None:
    context = bench_of(tmp_path, family)
    prefixes = context.prepared(context.recipe).prefixes
    stop = half_way(context, prefixes)
    context = bench_of(tmp_path, family, stop_loss=stop)
    bits = parameter_bits(context.model)
    found = done(STEPS, context, tmp_path / "out").findings
    assert_same_bits(parameter_bits(context.model), bits)
    assert not context.model.edits.terms

    layers, settings = context.layers, context.recipe.target
    statistics = moments_for(context.model, layers, context.recipe.statistics, cache=context.cache)
    moments = {layer: statistics[layer].mean for layer in layers}
    expected: dict[tuple[str, int], list[tuple[ReferenceTarget, float, float]]] = {}

    def note(weights: str, layer: int, targets: Sequence[ReferenceTarget], firsts: Sequence[float]) -> None:
        for target, first in zip(targets, firsts, strict=True):
            relative = float(target.delta.norm() / (target.z - target.delta).norm())
            expected.setdefault((weights, layer), []).append((target, first, relative))

    for start in (0, 2):  # batches of two, each into the unedited model
        facts = FACTS[start : start + 2]
        for layer in layers:
            firsts = [first_loss(context.model, fact, prefixes, layer, settings) for fact in facts]
            note("unedited", layer, searched(context.model, facts, prefixes, layer, settings), firsts)
        for name, own in (("boundary", (layers[0], layers[-1])), ("own", layers)):
            results = with_own_targets(copied(context.model), facts, prefixes, own, settings, moments, RIDGE)
            for layer, (targets, firsts) in results.items():
                note(name, layer, targets, firsts)
        fresh, firsts = behind_spread_writes(copied(context.model), facts, prefixes, layers, settings, moments, RIDGE)
        note("even", layers[-1], fresh, firsts)

    assert {(row.where["weights"], row.where["layer"]) for row in found.rows if "weights" in row.where} == set(expected)
    for (weights, layer), entries in expected.items():
        means = {
            "evaluations": fmean(target.evaluations for target, _, _ in entries),
            "converged facts": fmean(target.loss < stop for target, _, _ in entries),
            "facts that need no change": fmean(first < stop for _, first, _ in entries),
            "first loss": fmean(first for _, first, _ in entries),
            "final loss": fmean(target.loss for target, _, _ in entries),
            "norm of δ, relative": fmean(relative for _, _, relative in entries),
        }
        for quantity, value in means.items():
            ours = mean_of(found, quantity, weights, layer)
            assert len(entries) == len(FACTS)
            assert ours == pytest.approx(value, rel=1e-5, abs=1e-7), (quantity, weights, layer)
    # The test sees something: searches end at different steps, and writes have changed what is left to do.
    assert len({target.evaluations for entries in expected.values() for target, _, _ in entries}) > 2
    assert len({target.loss < stop for entries in expected.values() for target, _, _ in entries}) == 2
    firsts_at_last = [mean_of(found, "first loss", weights, layers[-1]) for weights in ("unedited", "boundary", "even")]
    assert len({round(first, 4) for first in firsts_at_last}) == 3


def test_before_any_write_all_schedules_begin_alike(tmp_path: Path) -> None:
    context = bench_of(tmp_path, "gpt2")
    found = done(STEPS, context, tmp_path / "out").findings
    first = context.layers[0]
    for quantity in ("evaluations", "first loss", "final loss", "norm of δ, relative"):
        assert len({mean_of(found, quantity, weights, first) for weights in ("unedited", "boundary", "own")}) == 1
    # At δ = 0 the layer does not matter.
    losses = [mean_of(found, "first loss", "unedited", layer) for layer in context.layers]
    assert max(losses) - min(losses) == pytest.approx(0, abs=1e-9)
    texts = [claim.text for claim in found.claims]
    assert len(texts) == 5
    assert "between the boundaries" in texts[-1]


def test_facts_that_are_known_need_no_change_anywhere(tmp_path: Path) -> None:
    found = done(STEPS, bench_of(tmp_path, "gpt2", stop_loss=1e6), tmp_path / "out").findings
    for row in found.rows:
        if "weights" in row.where and row.quantity != "first loss" and row.quantity != "final loss":
            known = {"evaluations": 1, "converged facts": 1, "facts that need no change": 1}
            assert row.mean == known.get(row.quantity, 0)
    # They needed none before either, so nothing was gained.
    assert [claim.verdict for claim in found.claims if "some facts no longer need" in claim.text] == ["undecided"]


def test_where_no_fact_is_done_without_change_the_claim_says_so(tmp_path: Path) -> None:
    found = done(STEPS, bench_of(tmp_path, "gpt2", stop_loss=0.0), tmp_path / "out").findings
    (claim,) = [claim for claim in found.claims if "some facts no longer need" in claim.text]
    assert "(0 of " in claim.evidence
    assert claim.verdict in ("does not hold", "undecided")  # by how many facts there are
    assert {row.mean for row in found.rows if row.quantity == "evaluations"} == {7}
    assert {row.mean for row in found.rows if row.quantity == "converged facts"} == {0}


@pytest.mark.parametrize("method", ["r_rome+blue", "nse", "pmet"])
def test_any_method_leaves_the_model_as_it_was(tmp_path: Path, method: str) -> None:
    context = tiny_context(tmp_path, "gpt2", method, facts=FACTS[:2])
    STEPS.check(context.recipe, context.settings)
    bits = parameter_bits(context.model)
    found = done(STEPS, context, tmp_path / "out").findings
    assert_same_bits(parameter_bits(context.model), bits)
    assert not context.model.edits.terms
    assert mean_of(found, "first loss", "unedited", 3) != mean_of(found, "first loss", "boundary", 3)


def test_writes_are_taken_out_when_what_follows_them_fails(tmp_path: Path) -> None:
    context = bench_of(tmp_path, "gpt2")
    bits = parameter_bits(context.model)
    with pytest.raises(KeyboardInterrupt), written(context, context.recipe, boundary(context.layers), FACTS):
        assert not torch.equal(parameter_bits(context.model)["transformer.h.1.mlp.c_proj.weight"],
                               bits["transformer.h.1.mlp.c_proj.weight"])  # fmt: skip
        raise KeyboardInterrupt
    assert_same_bits(parameter_bits(context.model), bits)


def test_recipes_that_it_cannot_be_made_with_are_refused(tmp_path: Path) -> None:
    context = bench_of(tmp_path, "gpt2")
    wrong = Recipe.model_validate({**context.recipe.model_dump(), "layers": (2,), "shaping": ({"kind": "norm_cap"},)})
    with pytest.raises(FaultsError) as caught:
        STEPS.check(wrong, context.settings)
    assert len(caught.value.faults) == 2
