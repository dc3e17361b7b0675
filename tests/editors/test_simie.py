"""SimIE against its published recursion over facts, one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editing.keys import SubjectTexts
from errata.editing.target_loss import TargetSettings
from errata.editing.target_search import find_targets
from errata.editors.simie import Simie, SimieSettings, inputs_of
from errata.models.language_model import LanguageModel, Site

from tests.support.editing import FACTS, assert_same_bits, parameter_bits, read_whole, tiny_language_model

LAYER = 2
TARGET = {"learning_rate": 0.3, "steps": 4}


def editor(model: LanguageModel, **values: Any) -> Simie:
    plain = {"layer": LAYER, "relative": False, "ridge": 2.0, "target": TARGET}
    return Simie(model, SimieSettings.model_validate({**plain, **values}))


def single_edits(model: LanguageModel, facts: Any) -> list[Tensor]:
    """Δ_i, dense, float64."""
    found = find_targets(model, facts, (), LAYER, Site.MLP, TargetSettings.model_validate(TARGET))
    keys = SubjectTexts.tokenise(model, facts).read(Site.KEY, [LAYER])[LAYER][1]
    return [
        torch.outer(delta, key) / (key @ key)
        for delta, key in zip(found.delta.double().T, keys.double().T, strict=True)
    ]


def recursion(model: LanguageModel, facts: Any, ridge: float) -> Tensor:
    """W as published: P ← P + A_i, W ← W + (W₀ + Δ_i − W) A_i P⁻¹, with whole forward passes."""
    start = model.weight(LAYER).double().clone()
    weight, total = start.clone(), ridge * torch.eye(start.shape[1], dtype=torch.float64)
    for fact, change in zip(facts, single_edits(model, facts), strict=True):
        ids = model.tokenizer(f"{fact.text} {fact.target}")["input_ids"]
        x = read_whole(model, ids)[Site.KEY, LAYER].double()
        products = x.T @ x
        total = total + products
        weight = weight + (start + change - weight) @ products @ torch.linalg.inv(total)
    return weight


@pytest.mark.parametrize("batch_size", [5, 2, 1])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_recursion_is_the_closed_form(family: str, batch_size: int) -> None:
    model = tiny_language_model(family, dtype=torch.float64)
    expected = recursion(model, FACTS[:5], 2.0)
    start = model.weight(LAYER).clone()
    patch = editor(model, batch_size=batch_size).apply(FACTS[:5])
    torch.testing.assert_close(model.weight(LAYER), expected, rtol=1e-9, atol=1e-10)
    assert float((expected - start).norm()) > 0.1
    assert patch.state["inputs"].shape == (sum(len(x) for x in inputs_of(model, FACTS[:5], LAYER)), start.shape[1])


def test_calls_continue_one_another_and_order_does_not_matter() -> None:
    whole, parts, turned = (tiny_language_model("llama", dtype=torch.float64) for _ in range(3))
    editor(whole).apply(FACTS[:4])
    made = editor(parts)
    first, second = made.apply(FACTS[:1]), made.apply(FACTS[1:4])
    editor(turned).apply(FACTS[:4][::-1])
    for model in (parts, turned):
        torch.testing.assert_close(model.weight(LAYER), whole.weight(LAYER), rtol=1e-6, atol=1e-8)
    bits = parameter_bits(parts)
    made.remove(second)
    again = made.apply(FACTS[1:4])
    assert_same_bits(parameter_bits(parts), bits)
    made.remove(again)
    made.remove(first)
    assert torch.equal(parts.weight(LAYER), tiny_language_model("llama", dtype=torch.float64).weight(LAYER))


def test_one_fact_with_no_ridge_is_its_single_edit_on_its_own_inputs() -> None:
    model = tiny_language_model("gpt2", dtype=torch.float64)
    (change,) = single_edits(model, FACTS[:1])
    (x,) = inputs_of(model, FACTS[:1], LAYER)
    start = model.weight(LAYER).clone()
    editor(model, ridge=1e-9).apply(FACTS[:1])
    torch.testing.assert_close(x @ (model.weight(LAYER) - start).T, x @ change.T, rtol=1e-5, atol=1e-6)


def test_default_layer_and_relative_ridge() -> None:
    model, other = (tiny_language_model("gpt2", dtype=torch.float64) for _ in range(2))
    assert Simie(model, SimieSettings()).layers == (0,)
    made = editor(model, relative=True, ridge=0.5)
    unit = made._unit(LAYER)
    assert unit > 0
    made.apply(FACTS[:2])
    editor(other, ridge=0.5 * unit).apply(FACTS[:2])
    torch.testing.assert_close(model.weight(LAYER), other.weight(LAYER))
