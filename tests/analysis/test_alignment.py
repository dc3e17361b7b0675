"""Study ``alignment``: against plain arithmetic on each fact's vectors, and properties."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from errata.analysis.alignment import ALIGNMENT, slopes
from errata.analysis.common import search_targets
from errata.analysis.findings import Finding, Findings
from errata.editing.contexts import generate_prefixes
from errata.errors import InputError, MissingExtraError

from tests.reference import alignment as plain
from tests.support.editing import assert_same_bits, current_states, parameter_bits
from tests.support.study_context import done, tiny_context


def one_row(findings: Findings, quantity: str, **where: str | int) -> Finding:
    (row,) = [row for row in findings.rows if row.quantity == quantity and row.where == where]
    return row


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_numbers_are_those_of_each_facts_vectors(tmp_path: Path, family: str) -> None:
    context = tiny_context(tmp_path, family)
    facts = context.materials[0].facts.facts
    bits = parameter_bits(context.model)
    found = done(ALIGNMENT, context, tmp_path / "out").findings
    assert_same_bits(parameter_bits(context.model), bits)
    targets = search_targets(context, facts, generate_prefixes(context.model, context.recipe.contexts))
    last = [column.tolist() for column in targets.found[3].delta.T.double()]
    for layer, left in ((1, 3), (2, 2), (3, 1)):
        own = [column.tolist() for column in targets.found[layer].delta.T.double()]
        states = [plain.norm(h.tolist()) for h in current_states(context.model, facts, layer, context.site).T]
        spread = [[x / left for x in vector] for vector in last]
        root = [[x / left**0.5 for x in vector] for vector in last]
        pairs = list(zip(spread, own, strict=True))
        expected: dict[tuple[str, str], list[float]] = {
            ("cosine", ""): [plain.cosine(a, b) for a, b in pairs],
            ("cosine with other facts", ""): [
                fmean(plain.cosine(a, b) for j, b in enumerate(own) if j != i) for i, a in enumerate(spread)
            ],
            ("norm of the state", ""): states,
            ("norm, spread minus computed", ""): [plain.norm(a) - plain.norm(b) for a, b in pairs],
        }
        for kind, vectors in (("spread", spread), ("sqrt-spread", root), ("computed", own)):
            expected["norm", kind] = [plain.norm(vector) for vector in vectors]
            expected["norm, relative", kind] = [plain.norm(vector) / fmean(states) for vector in vectors]
        for kind, vectors in (("spread", spread), ("sqrt-spread", root)):
            far = [plain.distance(a, b) for a, b in zip(vectors, own, strict=True)]
            expected["distance", kind] = far
            expected["distance, relative", kind] = [x / plain.norm(b) for x, b in zip(far, own, strict=True)]
        for (quantity, kind), values in expected.items():
            row = one_row(found, quantity, layer=layer, **({"residual": kind} if kind else {}))
            assert row.mean == pytest.approx(fmean(values), rel=1e-5, abs=1e-8), (quantity, kind, layer)
            assert row.n == len(facts)
        best = one_row(found, "distance at the best share, relative", layer=layer)
        tried = fmean(plain.least_distance(a, b) / plain.norm(b) for a, b in pairs)
        assert best.mean == pytest.approx(tried, abs=2e-3)


def test_claims_follow_from_the_rows(tmp_path: Path) -> None:
    found = done(ALIGNMENT, tiny_context(tmp_path), tmp_path / "out").findings
    verdicts = {claim.text: claim.verdict for claim in found.claims}
    shorter = one_row(found, "norm, spread minus computed", layer=1)
    assert shorter.high is not None
    (text,) = [text for text in verdicts if "shorter" in text]
    assert (verdicts[text] == "holds") == (shorter.high < 0)
    slope = one_row(found, "cosine, slope")
    cosines = [one_row(found, "cosine", layer=layer).mean for layer in (1, 2)]
    assert slope.mean == pytest.approx(cosines[0] - cosines[1])
    assert sum("different directions" in text for text in verdicts) == 2
    assert len(verdicts) == 2 + 3 + 2
    assert found.undefined == {}


def test_slopes_are_those_of_fitted_lines() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))
    ours = slopes(values.tolist())
    assert ours == pytest.approx(np.polyfit([3, 2, 1, 0], values, 1)[0].tolist())
    assert slopes([[1.0, None], [0.0, 1.0]]) == [1.0, None]


def test_the_picture_holds_every_residual_once_and_keeps_distances_that_lie_in_it(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, seeds=(0, 1))
    found = done(ALIGNMENT, context, tmp_path / "out").findings
    count = len(context.materials[0].facts.facts)
    assert len(found.points) == 2 * 3 * 3 * count
    at_last = {
        (point.where["residual"], point.where["fact"]): (point.x, point.y)
        for point in found.points
        if point.where["layer"] == 3 and point.picture == "residuals-seed-0"
    }
    for (_, fact), place in at_last.items():
        assert place == pytest.approx(at_last["computed", fact], abs=1e-9)
    # Spread residuals of one fact lie on a line, at a third, a half and the whole of the last layer's.
    third, half, whole = (
        np.array([point.x, point.y])
        for layer in (1, 2, 3)
        for point in found.points
        if point.picture == "residuals-seed-0" and point.where == {"residual": "spread", "layer": layer, "fact": "bell"}
    )
    np.testing.assert_allclose((whole - half) * 2, (half - third) * 6, atol=1e-6)
    assert np.linalg.norm(whole - half) > 1e-3
    figure = found.figures[1]
    assert [panel.title for panel in figure.panels] == ["Layer 1", "Layer 2", "Layer 3"]
    assert "% of the variance" in figure.panels[0].x_label


def test_facts_that_the_model_knows_have_no_direction(tmp_path: Path) -> None:
    found = done(ALIGNMENT, tiny_context(tmp_path, recipe={"target": {"stop_loss": 1e6}}), tmp_path / "out").findings
    assert one_row(found, "norm", residual="computed", layer=1).mean == 0
    assert not [row for row in found.rows if row.quantity == "cosine"]
    assert "6 of 6 facts are left out" in found.undefined["cosine, layer 1"]
    assert "picture of seed-0" in found.undefined
    assert [claim.verdict for claim in found.claims] == ["does not hold"]  # there is no difference at all
    json.dumps(found.to_record(), allow_nan=False)


def test_what_it_cannot_be_made_with_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tiny_context(tmp_path, recipe={"layers": (2,)})
    with pytest.raises(InputError) as error:
        ALIGNMENT.check(context.recipe, context.settings)
    assert error.value.code == "STUDY_NEEDS_LAYERS"
    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"errata\[analysis\]"):
        ALIGNMENT.check(tiny_context(tmp_path).recipe, context.settings)
