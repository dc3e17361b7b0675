"""Study ``hidden-shift``: against prompts read one by one before and after a run; what its claims follow from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.analysis import hidden_shift
from errata.analysis.common import boundary_pairs, edited
from errata.analysis.findings import Finding, Findings
from errata.analysis.hidden_shift import HIDDEN_SHIFT, prompts_of, states_of
from errata.analysis.study import AnalysisSettings
from errata.editors.locate_then_edit import Editor
from errata.errors import FaultsError, MissingExtraError, NonFiniteError

from tests.reference.hidden_shift import cka, last_states
from tests.support.editing import assert_same_bits, parameter_bits, tiny_language_model
from tests.support.study_context import done, runs_context, tiny_context

MORE = (("crowd", "The crowd is in"), ("piano", "The piano in the city is"), ("city", "The city of"))


def row(findings: Findings, quantity: str, **where: Any) -> Finding:
    (found,) = [row for row in findings.rows if row.quantity == quantity and row.where == where]
    return found


def clustered(values: Sequence[float], clusters: Sequence[str]) -> list[float]:
    found = []
    for name in dict.fromkeys(clusters):
        own = [value for value, cluster in zip(values, clusters, strict=True) if cluster == name]
        found.append(sum(own) / len(own))
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_shifts_are_those_of_prompts_read_one_by_one(tmp_path: Path, family: str) -> None:
    context = runs_context(tmp_path, family, untouched=MORE)
    material = context.materials[0]
    bits = parameter_bits(context.model)
    findings = done(HIDDEN_SHIFT, context, tmp_path / "out").findings
    assert_same_bits(parameter_bits(context.model), bits)
    assert not context.model.edits.terms
    assert not findings.undefined
    shifts: dict[str, list[list[float]]] = {}
    for method in ("memit", "memit+blue"):
        model = tiny_language_model(family)
        editor = Editor(model, context.recipes[method], cache=tmp_path / "cache")
        asked = prompts_of(material)
        assert [prompt for _, prompt in asked["edited"]] == [fact.text for fact in material.facts]
        layers = range(len(model.blocks))
        before = {(kind, at): last_states(model, [p for _, p in asked[kind]], at) for kind in asked for at in layers}
        editor.apply(material.facts.facts)
        for (kind, layer), old in before.items():
            clusters = [cluster for cluster, _ in asked[kind]]
            new = last_states(model, [prompt for _, prompt in asked[kind]], layer)
            distances = [float((b - a).norm() / a.norm()) for a, b in zip(old, new, strict=True)]
            angles = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(old, new, strict=True)]
            where = {"method": method, "prompts": kind, "layer": layer}
            found = row(findings, "relative distance", **where)
            own = clustered(distances, clusters)
            assert found.mean == pytest.approx(sum(own) / len(own), rel=1e-3, abs=1e-6)
            assert found.n == len(own)
            turned = clustered(angles, clusters)
            assert row(findings, "cosine", **where).mean == pytest.approx(sum(turned) / len(turned), abs=1e-5)
            alike = row(findings, "CKA", **where, seed=0)
            assert alike.mean == pytest.approx(cka(old, new), abs=1e-5)
            if layer == 0:  # in front of the first layer that is written
                assert (found.mean, found.low, found.high) == (0, 0, 0)
                assert alike.mean == pytest.approx(1, abs=1e-12)
            else:
                assert found.mean > 1e-3
            if kind == "untouched":
                shifts.setdefault(method, []).append(own)
    for layer in (1, 3, 4):  # the first and the last critical layer, the last block
        pairs = zip(shifts["memit+blue"][layer], shifts["memit"][layer], strict=True)
        differences = [ours - theirs for ours, theirs in pairs]
        found = row(
            findings,
            "relative distance, boundary updates minus spreading",
            method="memit+blue",
            than="memit",
            prompts="untouched",
            layer=layer,
        )
        assert found.mean == pytest.approx(sum(differences) / len(differences), rel=1e-2, abs=1e-5)
    assert len(findings.claims) == 3


def test_pictures_hold_every_prompt_before_and_after(tmp_path: Path) -> None:
    context = runs_context(tmp_path, untouched=MORE)
    material = context.materials[0]
    findings = done(HIDDEN_SHIFT, context, tmp_path / "out").findings
    counts: dict[tuple[Any, ...], int] = {}
    for point in findings.points:
        key = (point.picture, *(point.where[name] for name in ("prompts", "method", "moment")))
        counts[key] = counts.get(key, 0) + 1
    methods = (("unedited", "before"), ("memit", "after"), ("memit+blue", "after"))
    sizes = {"untouched": len(material.untouched), "edited": len(material.facts)}
    assert counts == {
        (layer, kind, *method): size
        for layer in ("layer 3", "layer 4")
        for kind, size in sizes.items()
        for method in methods
    }
    figure = next(figure for figure in findings.figures if figure.name == "hidden-shift-plane")
    assert [len(series.x) for panel in figure.panels for series in panel.series] == list(counts.values())
    before = [point.x for point in findings.points if point.where["moment"] == "before"][: sizes["untouched"]]
    assert sum(before) == pytest.approx(0, abs=1e-6)  # the plane's origin is the mean of the untouched prompts' states


def test_what_fails_with_a_run_in_the_model_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = runs_context(tmp_path)
    bits = parameter_bits(context.model)
    with edited(context, 0, "memit") as patch:
        assert patch.layers == (1, 2, 3)
        assert len(patch.facts) == len(context.materials[0].facts)
        now = parameter_bits(context.model)
        assert {name for name in bits if not torch.equal(now[name], bits[name])} == {
            f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (1, 2, 3)
        }
    assert_same_bits(parameter_bits(context.model), bits)

    def fail(*args: Any) -> Any:
        raise NonFiniteError("score", facts=["tower"], layer=None)

    monkeypatch.setattr(hidden_shift, "facts_recalled", fail)
    with pytest.raises(NonFiniteError):
        done(HIDDEN_SHIFT, context, tmp_path / "out")
    assert_same_bits(parameter_bits(context.model), bits)
    batches = 0

    def stop(written: Any, total: Any) -> None:
        nonlocal batches
        batches += 1
        if batches == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), edited(context, 0, "memit", stop):
        pass
    assert_same_bits(parameter_bits(context.model), bits)


def test_states_that_are_not_finite_are_reported(tmp_path: Path) -> None:
    model = tiny_language_model("gpt2")
    model.weight(2)[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="hidden state of a prompt at layer 2"):
        states_of(model, ["The rain is"])


def test_methods_without_a_recipe_are_all_named_and_so_is_a_missing_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = tiny_context(tmp_path, methods=("memit", "rect"))
    with pytest.raises(FaultsError) as caught:
        HIDDEN_SHIFT.tasks(context)
    assert [fault.where for fault in caught.value.faults] == ["methods: memit", "methods: rect"]
    HIDDEN_SHIFT.check(context.recipe, context.settings)
    monkeypatch.setattr("errata.utils.optional.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"errata\[analysis\]"):
        HIDDEN_SHIFT.check(context.recipe, context.settings)


def kept(seed: int, method: str, schedule: str, distances: Sequence[float]) -> dict[str, Any]:
    """What a run of two blocks, both critical, would keep of three untouched prompts about two subjects."""
    of_kind = {
        "clusters": ["a", "a", "b"],
        "relative distance": [list(distances)] * 2,
        "cosine": [[1.0] * 3] * 2,
        "CKA": [[0.9, 0.8, 1.0], None],
    }
    about = {"seed": seed, "method": method, "schedule": schedule, "critical": [0, 1], "blocks": 2, "said": [1, 0]}
    return {**about, "kinds": {"untouched": of_kind, "edited": of_kind}, "pictures": {"1": None}}


def findings_of(*runs: Mapping[str, Any]) -> Findings:
    settings = AnalysisSettings(seeds=tuple(dict.fromkeys(run["seed"] for run in runs)))
    return HIDDEN_SHIFT.findings(settings, {str(index): run for index, run in enumerate(runs)})


@pytest.mark.usefixtures("few_are_enough")
@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((0.1, 0.1, 0.2), "holds"),
        ((0.9, 0.9, 0.8), "does not hold"),
        ((0.9, 0.9, 0.1), "undecided"),
        ((0.1, 0.8, 0.1), "holds"),  # of one subject one prompt moves more, but not both together
    ],
)
def test_a_claim_is_decided_by_differences_paired_over_subjects(ours: Sequence[float], verdict: str) -> None:
    findings = findings_of(kept(0, "memit", "even", (0.5, 0.5, 0.5)), kept(0, "memit+blue", "boundary", ours))
    assert [claim.verdict for claim in findings.claims] == [verdict] * 2
    assert "first critical layer (0)" in findings.claims[0].text
    assert "last critical layer (1)" in findings.claims[1].text
    difference = row(
        findings,
        "relative distance, boundary updates minus spreading",
        method="memit+blue",
        than="memit",
        prompts="untouched",
        layer=1,
    )
    assert difference.mean == pytest.approx(((ours[0] + ours[1]) / 2 + ours[2]) / 2 - 0.5)
    assert difference.n == 2
    assert row(findings, "facts recalled after the run", method="memit").mean == 0.5


def test_seeds_are_taken_together_and_what_is_not_there_is_undefined() -> None:
    findings = findings_of(kept(0, "memit", "even", (0.1, 0.3, 0.2)), kept(1, "memit", "even", (0.3, 0.5, 0.4)))
    found = row(findings, "relative distance", method="memit", prompts="untouched", layer=0)
    assert (found.mean, found.n) == (pytest.approx(0.3), 2)
    assert not findings.claims
    assert set(findings.undefined) == {
        "claims",
        "prompts about neighbours",
        *(f"CKA of memit, {kind}, {seed}, layer 1" for kind in ("untouched", "edited") for seed in (0, 1)),
        "picture at layer 1",
    }
    cka_lines = next(figure for figure in findings.figures if figure.name == "hidden-shift-cka").panels[0].series
    assert [line.label for line in cka_lines] == ["memit, seed 0", "memit, seed 1"]


def test_pairs_are_methods_that_differ_in_the_schedule_only() -> None:
    spread, single = {"memit": "even", "rect": "even"}, {"emmet": "single"}
    schedules = spread | single | dict.fromkeys(("memit+blue", "pmet+blue", "emmet+blue"), "boundary")
    runs = [{"method": method, "schedule": schedule} for method, schedule in schedules.items()]
    assert boundary_pairs(runs) == [("memit+blue", "memit")]
