"""Study ``contribution``: against whole sequences with a hook, and properties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.analysis.common import search_targets
from errata.analysis.contribution import CONTRIBUTION, KINDS, probabilities
from errata.editing.contexts import generate_prefixes

from tests.reference.contribution import chance
from tests.support.editing import assert_same_bits, parameter_bits
from tests.support.study_context import done, tiny_context


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_contributions_are_those_of_whole_sequences(tmp_path: Path, family: str) -> None:
    context = tiny_context(tmp_path, family)
    facts = context.materials[0].facts.facts
    bits = parameter_bits(context.model)
    result = done(CONTRIBUTION, context, tmp_path / "out")
    assert_same_bits(parameter_bits(context.model), bits)
    prefixes = generate_prefixes(context.model, context.recipe.contexts)
    targets = search_targets(context, facts, prefixes)
    last = context.layers[-1]
    for layer in context.layers:
        left = 1 + last - layer  # the critical layers of this recipe are neighbours
        shares = {"spread": 1 / left, "sqrt-spread": left**-0.5}
        for kind in KINDS:
            gains = []
            for index, fact in enumerate(facts):
                own = targets.found[layer].delta[:, index]
                added = own if kind == "computed" else shares[kind] * targets.found[last].delta[:, index]
                without = chance(context.model, fact, prefixes, layer, torch.zeros_like(own))
                gains.append(chance(context.model, fact, prefixes, layer, added) - without)
            (row,) = [
                row
                for row in result.findings.rows
                if row.quantity == "contribution" and row.where == {"residual": kind, "layer": layer}
            ]
            assert row.mean == pytest.approx(sum(gains) / len(gains), rel=1e-4, abs=1e-7)
            assert row.n == len(facts)


def test_probabilities_do_not_depend_on_how_many_facts_are_asked_at_once(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    facts = context.materials[0].facts.facts
    delta = torch.randn(32, len(facts), generator=torch.Generator().manual_seed(0))
    (together,) = probabilities(context, facts, ("The rain",), 2, [delta])
    for index, fact in enumerate(facts):
        (alone,) = probabilities(context, [fact], ("The rain",), 2, [delta[:, index : index + 1]])
        assert float(alone) == pytest.approx(float(together[index]), rel=1e-4)


def test_at_the_last_layer_all_residuals_are_one(tmp_path: Path) -> None:
    result = done(CONTRIBUTION, tiny_context(tmp_path), tmp_path / "out")
    means = [row.mean for row in result.findings.rows if row.where.get("layer") == 3 and "residual" in row.where]
    assert len(means) == len(KINDS)
    assert max(means) - min(means) == 0
